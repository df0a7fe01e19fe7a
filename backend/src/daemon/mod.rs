//! The process around a device: its socket, its connections, its workers, signals and counters.
//!
//! **Objects.** [`Endpoint`] (where front-ends come from), [`Daemon`] (the device, its workers and its
//! endpoint, until [`Daemon::run`] returns), `Rings` (which worker runs which ring, and for which connection;
//! what a session may ask of the running side), one [`Session`](crate::session::Session) per connection.
//!
//! **Threads and locks.** One control thread, the one that calls `run`, and the workers. The control thread is
//! an epoll loop over the endpoint, the connections, the events of the workers, signals and one timer. It takes
//! no lock that a worker holds and never waits for a worker or a front-end: a reply that depends on a worker is
//! sent when the worker's event has come; a session that waits for memory to be let go is called again by the
//! timer.
//!
//! **What may block.** `epoll_wait`, and writing to standard error.
//!
//! **What ends what.** A connection's end (or an error in what it says) stops its rings and nothing else; the
//! session lives until they have stopped. A front-end that we connect to is called on again after its connection
//! has ended, with pauses that grow from 100 ms to some seconds while nobody is there. The process ends with SIGTERM or SIGINT (all connections are closed,
//! their rings drained, the socket's file removed; status 0), with the only connection if it was given a
//! connected socket, in the same way with whoever asks for counters, or when a worker's thread dies, which is a
//! defect and ends it with an error rather than leaving guests with half a device. A second SIGTERM or SIGINT ends
//! it at once.
//!
//! **Limits.** So many connections at a time ([`MAX_CONNECTIONS`]); further ones are closed on arrival with a
//! log line. When the process has no descriptors left, accepting pauses for a moment instead of spinning.
//!
//! **Not here.** More than one device in a process, configuration while it runs, privileges: it keeps those it
//! was started with.

mod control;
mod counters;
mod dialer;
mod endpoint;
mod rings;
mod signals;
mod stats;

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use mdev_dma::Windows;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;

use crate::device::Device;
use crate::session::SessionOptions;
use crate::worker::{self, Mode, Worker};

pub use control::MAX_CONNECTIONS;
pub use counters::CounterSocket;
pub use dialer::Dialer;
pub use endpoint::{Endpoint, EndpointError, Listener};
pub use stats::QueueNames;

use control::Control;
use rings::Rings;

/// How a daemon runs its device.
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
}

impl DaemonError {
    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| DaemonError::System { what, source }
    }
}

/// A device that is served to whoever comes to its endpoint.
pub struct Daemon {
    control: Control,
}

impl Daemon {
    /// Starts the workers, installs the handlers for signals and for lost memory, and raises the limit on open
    /// files: from here on front-ends are heard, if not yet answered.
    ///
    /// # Errors
    /// What the system refuses; a processor that may not be used.
    pub fn new(device: Arc<dyn Device>, endpoint: Endpoint, options: Options) -> Result<Daemon, DaemonError> {
        raise_file_limit();
        let windows = Windows::new().map_err(DaemonError::system("prepare for lost memory"))?;
        let (sink, source) = worker::events().map_err(DaemonError::system("create an eventfd"))?;
        let workers = cpus(device.as_ref(), &options)
            .into_iter()
            .enumerate()
            .map(|(number, cpu)| Worker::spawn(&format!("mdevd-w{number}"), cpu, options.mode, sink.clone()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(DaemonError::system("start a worker"))?;
        let rings = Rings::new(device, workers);
        Ok(Daemon { control: Control::new(endpoint, rings, source, windows, options)? })
    }

    /// Serves until a signal, or the end of the only connection, ends it.
    ///
    /// # Errors
    /// A worker died, or did not stop in time.
    pub fn run(self) -> Result<(), DaemonError> {
        self.control.run()
    }
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
