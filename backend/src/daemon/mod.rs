//! The process around devices: their sockets, their connections, the workers, signals and counters.
//!
//! **Objects.** [`Plan`] (a device as its operator wants it) and [`Plans`] (all of them, and what makes devices of them),
//! [`Endpoint`] (where a device's front-ends come from), [`Daemon`] (devices, workers and windows, until
//! [`Daemon::run`] returns), `Pool` (the workers, shared by all devices), `Served` (one device with its endpoint),
//! `Kept` (what its last front-end has left), `Rings` (which worker runs which of its rings, and for which connection; what a session may ask of the running
//! side), one [`Session`](crate::session::Session) per connection.
//!
//! **Threads and locks.** One control thread, the one that calls `run`, and the workers. The control thread is
//! an epoll loop over the endpoints, the connections, the events of the workers, signals and one timer. It takes
//! no lock that a worker holds and never waits for a worker or a front-end: a reply that depends on a worker is
//! sent when the worker's event has come; a session that waits for memory to be let go is called again by the
//! timer.
//!
//! **What may block.** `epoll_wait`, and writing to standard error.
//!
//! **What ends what.** A connection's end (or an error in what it says) stops its rings and nothing else; the
//! session lives until they have stopped. A front-end that we connect to is called on again after its connection
//! has ended, with pauses that grow from 100 ms to some seconds while nobody is there. The process ends with SIGTERM
//! or SIGINT (all connections are closed, their rings drained, the sockets' files removed; status 0), with the only
//! connection if it was given a connected socket, in the same way with whoever asks for counters, or when a
//! worker's thread dies, which is a defect and ends it with an error rather than leaving guests with half a device. A
//! second SIGTERM or SIGINT ends it at once.
//!
//! **Many devices.** They share workers and windows, and nothing else: a device that cannot begin is left out, one that
//! fails fails alone. The rings of a group run on one worker: of those that the device may run on, the one with the
//! fewest rings. With SIGHUP the plans are read again. A device whose plan is the same is not touched: its
//! connections, rings and counters go on. One whose plan is gone ends like the process does, and one whose plan has
//! changed ends and begins anew, the new one when the old one's rings have stopped, since the guest's rings may be the
//! same. Plans with errors change nothing. The workers stay those the process began with.
//!
//! **Limits.** So many connections of a device at a time ([`MAX_CONNECTIONS`]); further ones are closed on arrival
//! with a log line. When the process has no descriptors left, accepting pauses for a moment instead of spinning.
//!
//! **Not here.** Moving rings between workers, privileges: the process keeps those it was started with.

mod connection;
mod control;
mod counters;
mod dialer;
mod endpoint;
mod kept;
mod kernel_device;
mod key;
mod model;
mod plan;
mod pool;
mod rings;
mod roll;
mod served;
mod signals;
mod stats;

use std::io;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;
use std::time::Duration;

use mdev_dma::Windows;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;

use crate::device::{Device, QueueNames};
use crate::session::SessionOptions;
use crate::worker::{self, Mode, Worker};

pub use connection::MAX_CONNECTIONS;
pub use counters::CounterSocket;
pub use dialer::Dialer;
pub use endpoint::{Endpoint, EndpointError, Listener};
pub use kernel_device::{DEFAULT_STATE_DIR, KernelDeviceError, KernelDoor};
pub use model::Model;
pub use plan::{Door, Kind, Plan, Plans};

use control::{Control, Parts};
use pool::Pool;
use roll::Beginning;
use signals::Signals;

/// How a daemon runs its only device.
#[derive(Debug)]
pub struct Options {
    /// What workers do without work.
    pub mode: Mode,
    /// One worker bound to each of these processors; if empty, one unbound worker for each queue group, but not
    /// more than there are processors.
    pub cpus: Vec<usize>,
    /// How often a line of rates is written to standard error.
    pub stats: Option<Duration>,
    /// What the device's queues are called in counters.
    pub queue_names: QueueNames,
    /// What each connection is served with.
    pub sessions: SessionOptions,
    /// Where the process that started this one asks for counters. When it is gone the daemon ends as after SIGTERM.
    pub counters: Option<CounterSocket>,
}

/// How a daemon runs the devices of its plans.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// What workers do without work.
    pub mode: Mode,
    /// The processor of each worker, `None` for wherever the scheduler puts it. At least one.
    pub workers: Vec<Option<usize>>,
    /// How often a line of rates is written to standard error, for each device.
    pub stats: Option<Duration>,
}

/// Why a daemon could not start or had to end.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The system refused something that the daemon cannot do without.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What it answered.
        source: io::Error,
    },
    /// A worker's thread panicked.
    #[error("worker {0} died; this is a defect of mdevd, please report the lines above")]
    WorkerDied(String),
    /// A worker did not stop its rings in time.
    #[error("a worker did not let go of its rings within {0:?}; the process ends without waiting any longer")]
    Drain(Duration),
    /// The kernel's device cannot be served.
    #[error(transparent)]
    Kernel(#[from] KernelDeviceError),
    /// The kernel has given the only device up.
    #[error("{0}: the kernel has given the device up; the lines above say why")]
    GivenUp(String),
    /// The plans are wrong: what is, a line each.
    #[error("{}", .0.join("\n"))]
    Plans(Vec<String>),
    /// No device of the plans could begin.
    #[error("none of the {0} devices can be served; the lines above say why")]
    Nothing(usize),
}

impl DaemonError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| DaemonError::System { what, source }
    }
}

/// Devices that are served to whoever comes to their endpoints.
pub struct Daemon {
    control: Control,
}

impl Daemon {
    /// A daemon of one device. Starts the workers, installs the handlers for signals and for lost memory, and raises
    /// the limit on open files: from here on front-ends are heard, if not yet answered.
    ///
    /// # Errors
    /// What the system refuses; a processor that may not be used.
    pub fn new(model: impl Into<Model>, endpoint: Endpoint, options: Options) -> Result<Daemon, DaemonError> {
        let model = model.into();
        let workers = cpus(model.device().as_ref(), &options);
        let Options { mode, stats, queue_names, sessions, counters, .. } = options;
        let mut control = start(&Shared { mode, workers, stats }, counters, None)?;
        let plan = None;
        control.begin(Beginning {
            model,
            endpoint,
            workers: Vec::new(),
            sessions,
            names: queue_names,
            plan,
        })?;
        Ok(Daemon { control })
    }

    /// A daemon of as many devices as there are plans, now and whenever SIGHUP comes. What else it does is what
    /// [`Daemon::new`] does.
    ///
    /// # Errors
    /// As there; plans with errors; there are plans and none of them can be served.
    pub fn of_plans(mut plans: Box<dyn Plans>, shared: &Shared) -> Result<Daemon, DaemonError> {
        let wanted = plans.read().map_err(DaemonError::Plans)?;
        let mut control = start(shared, None, Some(plans))?;
        let count = wanted.len();
        control.wanted = wanted;
        if control.begin_wanted() == count && count > 0 {
            return Err(DaemonError::Nothing(count));
        }
        Ok(Daemon { control })
    }

    /// Serves until a signal, or the end of the only connection, ends it.
    ///
    /// # Errors
    /// A worker died, or did not stop in time.
    pub fn run(self) -> Result<(), DaemonError> {
        self.control.run()
    }
}

/// Workers without rings, and the loop around them.
fn start(
    shared: &Shared,
    counters: Option<CounterSocket>,
    plans: Option<Box<dyn Plans>>,
) -> Result<Control, DaemonError> {
    let signals =
        Signals::install(plans.is_some()).map_err(DaemonError::system("install handlers of signals"))?;
    raise_file_limit();
    let windows = Windows::new().map_err(DaemonError::system("prepare for lost memory"))?;
    let (sink, events) = worker::events().map_err(DaemonError::system("create an eventfd"))?;
    let numbered = shared.workers.iter().enumerate();
    let workers = numbered
        .map(|(number, &cpu)| Worker::spawn(&format!("mdevd-w{number}"), cpu, shared.mode, sink.clone()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(DaemonError::system("start a worker"))?;
    let pool = Pool::new(workers);
    let busy_workers = shared.mode == Mode::Busy;
    let parts = Parts { signals, pool, busy_workers, events, windows, stats: shared.stats, counters, plans };
    Control::new(parts).map_err(DaemonError::system("watch descriptors"))
}

/// The processor of each worker.
fn cpus(device: &dyn Device, options: &Options) -> Vec<Option<usize>> {
    if !options.cpus.is_empty() {
        return options.cpus.iter().copied().map(Some).collect();
    }
    let groups =
        (0..device.queue_count()).map(|index| usize::from(device.group(index)) + 1).max().unwrap_or(1);
    let processors = available_parallelism().map_or(1, NonZeroUsize::get);
    vec![None; groups.min(processors)]
}

/// Each memory region of each front-end is a descriptor, and so are three eventfds for each ring.
fn raise_file_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err() {
        log::warn!(
            "cannot raise the limit on open files ({current:?}): front-ends with much memory may be refused"
        );
    }
}
