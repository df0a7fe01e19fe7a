//! What commands that serve one device have in common: its socket, its workers, its sessions.

use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use mdev_protocol::vduse::DeviceName;

use crate::daemon::{CounterSocket, DEFAULT_STATE_DIR, Daemon, Endpoint, KernelDoor, Model, Options};
use crate::device::QueueNames;
use crate::session::SessionOptions;
use crate::sys::inherit;
use crate::worker::Mode;

use super::values::{parse_cpus, parse_duration, parse_mode};

/// Arguments of devices whose queues are virtqueues: served over vhost-user, or to the kernel.
#[derive(Debug, clap::Args)]
pub(super) struct Served {
    /// Listen on a Unix socket at this path; a socket that nobody listens on any more is replaced
    #[arg(long, value_name = "PATH", required_unless_present_any = ["connect", "fd", "vduse", "print_capabilities"], conflicts_with_all = ["connect", "fd", "vduse"])]
    socket_path: Option<PathBuf>,

    /// Connect to a front-end that listens on a Unix socket at this path, as soon as it does, and again whenever the
    /// connection has ended
    #[arg(long, value_name = "PATH", conflicts_with_all = ["fd", "vduse"])]
    connect: Option<PathBuf>,

    /// Serve the Unix socket that was inherited as this file descriptor: a listening one, or one that is
    /// connected to a front-end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..))]
    fd: Option<RawFd>,

    /// Be a device of this host's kernel, by this name: put it on the bus with `vdpa dev add name NAME mgmtdev vduse`. A device
    /// that nobody serves is taken over with the requests that were in flight
    #[arg(long, value_name = "NAME", conflicts_with = "fd")]
    vduse: Option<DeviceName>,

    /// Leave the kernel's device when this process ends
    #[arg(long, requires = "vduse")]
    keep: bool,

    /// The folder of the file in which requests of the kernel's device are recorded while they are in flight
    #[arg(long, value_name = "DIR", requires = "vduse", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,

    /// Give the kernel memory of this process for the pages through which its drivers reach the device, instead of mapping
    /// the kernel's one by one
    #[arg(long, requires = "vduse")]
    own_bounce: bool,

    /// Permissions of the socket file, octal (default: by the umask)
    #[arg(long, value_name = "MODE", value_parser = parse_mode, conflicts_with_all = ["connect", "fd", "vduse"])]
    socket_mode: Option<u32>,

    /// Populate the guest's memory when it is announced, instead of at the first access to each page
    #[arg(long)]
    prefault: bool,

    /// Offer the guest to reset single rings (VIRTIO_F_RING_RESET). Not with QEMU 11, which does not tell the device of such
    /// a reset
    #[arg(long)]
    ring_reset: bool,

    #[command(flatten)]
    running: Running,
}

/// Arguments of devices that are served over vfio-user.
#[derive(Debug, clap::Args)]
pub(super) struct Function {
    /// Listen on a Unix socket at this path; a socket that nobody listens on any more is replaced
    #[arg(long, value_name = "PATH", required_unless_present_any = ["fd", "print_capabilities"], conflicts_with = "fd")]
    socket_path: Option<PathBuf>,

    /// Serve the Unix socket that was inherited as this file descriptor: a listening one, or one that is
    /// connected to a client
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..))]
    fd: Option<RawFd>,

    /// Permissions of the socket file, octal (default: by the umask)
    #[arg(long, value_name = "MODE", value_parser = parse_mode, conflicts_with = "fd")]
    socket_mode: Option<u32>,

    #[command(flatten)]
    running: Running,
}

/// Arguments of every device.
#[derive(Debug, clap::Args)]
struct Running {
    /// What a worker does when there is nothing to do
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,

    /// Processors that run queues, one worker on each: 0,2-3 (default: as many workers as groups of queues, but not
    /// more than processors, wherever the scheduler puts them)
    #[arg(long, value_name = "LIST", value_parser = parse_cpus)]
    cpus: Option<Cpus>,

    /// Write a line of rates to standard error so often: 1s, 500ms
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    stats: Option<Duration>,

    /// Write what this program can do as JSON and exit, whatever the other options are
    #[arg(long)]
    print_capabilities: bool,

    /// Answer each byte that comes on this inherited socket with a line of counters, and end when it is closed
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(RawFd).range(0..))]
    counters_fd: Option<RawFd>,
}

/// A list that is one value to clap.
type Cpus = Vec<usize>;

/// What a command serves.
pub(super) struct Serving {
    /// A word for it in capabilities (vhost-user, "Backend program conventions").
    pub(super) kind: &'static str,
    /// What it is called in a line of the log, with its article.
    pub(super) what: &'static str,
    /// What its queues are called in counters.
    pub(super) queue_names: QueueNames,
    /// More capabilities.
    pub(super) features: &'static [&'static str],
}

impl Served {
    /// Serves the device that `make` gives, until a signal ends it.
    pub(super) fn run<D: Into<Model>>(
        &self,
        serving: &Serving,
        make: impl FnOnce(String) -> Result<D, String>,
    ) -> Result<(), String> {
        let Served { socket_path, connect, fd, vduse, keep, state_dir, own_bounce, .. } = self;
        let Served { socket_mode, prefault, ring_reset, running, .. } = self;
        let sessions = SessionOptions { prefault: *prefault, ring_reset: *ring_reset, ..Default::default() };
        let place = match (socket_path, connect, *fd, vduse) {
            (Some(path), ..) => Place::Listen(path, *socket_mode),
            (_, Some(path), ..) => Place::Dial(path),
            (_, _, Some(fd), _) => Place::Inherited(fd),
            (.., Some(name)) => {
                let (name, state_dir) = (name.clone(), state_dir.clone());
                Place::Kernel(KernelDoor { name, keep: *keep, state_dir, own_bounce: *own_bounce })
            }
            (None, None, None, None) => Place::Nowhere("give --socket-path, --connect, --fd or --vduse"),
        };
        running.run(serving, &place, sessions, make)
    }
}

impl Function {
    /// Serves the device that `make` gives, until a signal ends it.
    pub(super) fn run<D: Into<Model>>(
        &self,
        serving: &Serving,
        make: impl FnOnce(String) -> Result<D, String>,
    ) -> Result<(), String> {
        let place = match (&self.socket_path, self.fd) {
            (Some(path), _) => Place::Listen(path, self.socket_mode),
            (_, Some(fd)) => Place::Inherited(fd),
            (None, None) => Place::Nowhere("give --socket-path or --fd"),
        };
        self.running.run(serving, &place, SessionOptions::default(), make)
    }
}

/// Where front-ends come from.
enum Place<'a> {
    Listen(&'a PathBuf, Option<u32>),
    Dial(&'a PathBuf),
    Inherited(RawFd),
    Kernel(KernelDoor),
    /// Nobody said, and this is what to say.
    Nowhere(&'static str),
}

impl Place<'_> {
    fn open(&self) -> Result<Endpoint, String> {
        let endpoint = match self {
            Place::Listen(path, mode) => Endpoint::bind(path, *mode),
            Place::Dial(path) => Endpoint::dial(path),
            Place::Inherited(fd) => Endpoint::inherited(*fd),
            Place::Kernel(door) => Ok(Endpoint::Kernel(door.clone())),
            Place::Nowhere(what) => return Err((*what).to_owned()),
        };
        endpoint.map_err(|error| error.to_string())
    }

    /// What the device is called in logs: after its socket.
    fn name(&self, kind: &str) -> String {
        let stem = |path: &PathBuf| Some(path.file_stem()?.to_string_lossy().into_owned());
        match self {
            Place::Listen(path, _) | Place::Dial(path) => stem(path).unwrap_or_else(|| kind.to_owned()),
            Place::Inherited(fd) => format!("fd{fd}"),
            Place::Kernel(door) => door.name.to_string(),
            Place::Nowhere(_) => kind.to_owned(),
        }
    }

    fn describe(&self, what: &str) -> String {
        match self {
            Place::Listen(path, _) => format!("{what} on {}", path.display()),
            Place::Dial(path) => format!("{what} to whoever listens on {}", path.display()),
            Place::Inherited(fd) => format!("{what} on descriptor {fd}"),
            Place::Kernel(door) => format!("{what} to the kernel, as VDUSE device {}", door.name),
            Place::Nowhere(_) => what.to_owned(),
        }
    }
}

impl Running {
    fn run<D: Into<Model>>(
        &self,
        serving: &Serving,
        place: &Place<'_>,
        sessions: SessionOptions,
        make: impl FnOnce(String) -> Result<D, String>,
    ) -> Result<(), String> {
        if self.print_capabilities {
            let capabilities = match serving.features {
                [] => serde_json::json!({ "type": serving.kind }),
                features => serde_json::json!({ "type": serving.kind, "features": features }),
            };
            return writeln!(io::stdout(), "{capabilities:#}")
                .map_err(|error| format!("cannot write: {error}"));
        }
        let counters = self.counters_fd.map(counters).transpose()?;
        let endpoint = place.open()?;
        let device = make(place.name(serving.kind))?;
        let options = Options {
            mode: self.mode,
            cpus: self.cpus.clone().unwrap_or_default(),
            stats: self.stats,
            queue_names: serving.queue_names,
            sessions,
            counters,
        };
        let daemon = Daemon::new(device, endpoint, options).map_err(|error| error.to_string())?;
        log::info!("serving {}", place.describe(serving.what));
        daemon.run().map_err(|error| error.to_string())
    }
}

/// The socket on which the process that started this one asks for counters.
fn counters(fd: RawFd) -> Result<CounterSocket, String> {
    let socket = inherit(fd).and_then(CounterSocket::new);
    socket.map_err(|error| format!("--counters-fd {fd}: {error}"))
}
