//! `mdevd net`: a virtio network device over vhost-user.

use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::daemon::{CounterSocket, Daemon, Endpoint, Options};
use crate::device::net::{NetConfig, NetDevice, QUEUE_NAMES, parse_mac};
use crate::link::LinkKind;
use crate::session::SessionOptions;
use crate::sys::inherit;
use crate::worker::Mode;

use super::values::{parse_cpus, parse_duration, parse_mode};

/// Arguments of `mdevd net`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "mdevd net (--socket-path <PATH> | --connect <PATH> | --fd <N>) [OPTIONS]")]
pub(super) struct Args {
    /// Listen on a Unix socket at this path; a socket that nobody listens on any more is replaced
    #[arg(long, value_name = "PATH", required_unless_present_any = ["connect", "fd", "print_capabilities"], conflicts_with_all = ["connect", "fd"])]
    socket_path: Option<PathBuf>,

    /// Connect to a front-end that listens on a Unix socket at this path, as soon as it does, and again whenever the
    /// connection has ended
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    connect: Option<PathBuf>,

    /// Serve the Unix socket that was inherited as this file descriptor: a listening one, or one that is
    /// connected to a front-end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(0..))]
    fd: Option<RawFd>,

    /// Permissions of the socket file, octal (default: by the umask)
    #[arg(long, value_name = "MODE", value_parser = parse_mode, conflicts_with_all = ["connect", "fd"])]
    socket_mode: Option<u32>,

    /// What the device is connected to: null (drop and count), loopback (every frame comes back),
    /// pktgen[,size=N|imix] (fill the guest's receive rings as fast as it empties them, count what it sends),
    /// tap=NAME (an interface of the host, made if there is none), peer=NAME (the other devices of this process on the
    /// bridge NAME: mdevd serve)
    #[arg(long, value_name = "LINK", default_value = "loopback")]
    link: LinkKind,

    /// Pairs of a receive and a transmit queue, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    queue_pairs: u16,

    /// The guest's MAC address (default: the front-end chooses)
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    mac: Option<[u8; 6]>,

    /// The largest packet that the guest should send, without its Ethernet header, 68 to 65535 bytes (default:
    /// the front-end chooses)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(68..))]
    mtu: Option<u16>,

    /// Populate the guest's memory when it is announced, instead of at the first access to each page
    #[arg(long)]
    prefault: bool,

    /// Offer the guest to reset single rings (VIRTIO_F_RING_RESET). Not with QEMU 11, which does not tell the device of such
    /// a reset
    #[arg(long)]
    ring_reset: bool,

    /// What a worker does when there is nothing to do
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,

    /// Processors that run queues, one worker on each: 0,2-3 (default: as many workers as queue pairs, but not
    /// more than processors, wherever the scheduler puts them)
    #[arg(long, value_name = "LIST", value_parser = parse_cpus)]
    cpus: Option<Cpus>,

    /// Write a line of packet rates to standard error so often: 1s, 500ms
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

/// Serves until a signal ends it.
pub(super) fn run(args: &Args) -> Result<(), String> {
    if args.print_capabilities {
        let capabilities = serde_json::json!({ "type": "net" });
        return writeln!(io::stdout(), "{capabilities:#}").map_err(|error| format!("cannot write: {error}"));
    }
    let counters = args.counters_fd.map(counters).transpose()?;
    let endpoint = match (&args.socket_path, &args.connect, args.fd) {
        (Some(path), _, _) => Endpoint::bind(path, args.socket_mode),
        (_, Some(path), _) => Endpoint::dial(path),
        (_, _, Some(fd)) => Endpoint::inherited(fd),
        (None, None, None) => return Err("give --socket-path, --connect or --fd".to_owned()),
    };
    let endpoint = endpoint.map_err(|error| error.to_string())?;
    let config = NetConfig {
        name: name(args),
        queue_pairs: args.queue_pairs,
        mac: args.mac,
        mtu: args.mtu,
        link: args.link,
    };
    let device = NetDevice::new(config).map_err(|error| error.to_string())?;
    let options = Options {
        mode: args.mode,
        cpus: args.cpus.clone().unwrap_or_default(),
        stats: args.stats,
        queue_names: QUEUE_NAMES,
        sessions: SessionOptions {
            prefault: args.prefault,
            ring_reset: args.ring_reset,
            ..Default::default()
        },
        counters,
    };
    let daemon = Daemon::new(Arc::new(device), endpoint, options).map_err(|error| error.to_string())?;
    log::info!("serving {}", describe(args));
    daemon.run().map_err(|error| error.to_string())
}

/// The socket on which the process that started this one asks for counters.
fn counters(fd: RawFd) -> Result<CounterSocket, String> {
    let socket = inherit(fd).and_then(CounterSocket::new);
    socket.map_err(|error| format!("--counters-fd {fd}: {error}"))
}

/// What the device is called in logs: after its socket.
fn name(args: &Args) -> String {
    let path = args.socket_path.as_ref().or(args.connect.as_ref());
    let stem = path.and_then(|path| path.file_stem());
    match (stem, args.fd) {
        (Some(stem), _) => stem.to_string_lossy().into_owned(),
        (None, Some(fd)) => format!("fd{fd}"),
        (None, None) => "net".to_owned(),
    }
}

fn describe(args: &Args) -> String {
    match (&args.socket_path, &args.connect, args.fd) {
        (Some(path), _, _) => format!("a network device on {}", path.display()),
        (_, Some(path), _) => format!("a network device to whoever listens on {}", path.display()),
        (_, _, Some(fd)) => format!("a network device on descriptor {fd}"),
        (None, None, None) => String::new(),
    }
}
