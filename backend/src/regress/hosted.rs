//! A daemon of this process.
use super::scenario::{Failure, Outcome, expect};
use super::space::await_that;
use crate::daemon::{CounterSocket, Daemon, DaemonError, Endpoint, Model, Options};
use crate::device::QueueNames;
use crate::session::SessionOptions;
use crate::worker::Mode;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// A daemon on a thread.
pub struct Hosted {
    /// The daemon ends when the other end of its counters is gone.
    counters: Option<UnixStream>,
    daemon: Option<JoinHandle<Result<(), DaemonError>>>,
}

impl Hosted {
    /// Starts one.
    pub fn start(
        model: Model,
        endpoint: Endpoint,
        queue_names: QueueNames,
        sessions: SessionOptions,
    ) -> Result<Hosted, Failure> {
        let (counters, theirs) = UnixStream::pair()?;
        let options = Options {
            mode: Mode::Adaptive,
            cpus: Vec::new(),
            stats: None,
            queue_names,
            sessions,
            counters: Some(CounterSocket::new(theirs.into())?),
        };
        let daemon = std::thread::Builder::new()
            .name("regress-daemon".to_owned())
            .spawn(move || Daemon::new(model, endpoint, options)?.run())?;
        Ok(Hosted { counters: Some(counters), daemon: Some(daemon) })
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.daemon.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends it. It must have nothing to complain about.
    pub fn end(mut self) -> Outcome {
        self.counters = None;
        let Some(daemon) = self.daemon.take() else { return Ok(()) };
        await_that("the daemon ends", || daemon.is_finished())?;
        match daemon.join() {
            Ok(result) => Ok(result?),
            Err(_) => expect(false, "the daemon panicked"),
        }
    }
}
