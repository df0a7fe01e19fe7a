//! Signals as descriptors that the control thread waits for beside everything else.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::{flag, low_level};

use crate::sys::with_signals_held;

/// The signals that the daemon obeys. Their former handling does not come back on drop, since signal-hook keeps
/// its handlers installed; they just have no effect any more.
#[derive(Debug)]
pub(super) struct Signals {
    /// Readable after SIGTERM or SIGINT.
    pub(super) stop: Signal,
    /// Readable after SIGUSR1.
    pub(super) print: Signal,
    /// Readable after SIGHUP; without plans to read again that signal ends the process as it always does.
    pub(super) reload: Option<Signal>,
    registered: Vec<SigId>,
}

/// The read end of a pipe that a handler writes to.
#[derive(Debug)]
pub(super) struct Signal(pub(super) UnixStream);

impl Signals {
    /// Installs the handlers. The second SIGTERM or SIGINT ends the process at once, with status 1, whatever
    /// the control thread is doing. To be called before there are other threads: a signal that came between two steps
    /// of this would be lost, so they wait for its end, but another thread would take them.
    pub(super) fn install(reload: bool) -> io::Result<Signals> {
        with_signals_held(&[SIGTERM, SIGINT, SIGUSR1, SIGHUP], || Signals::register(reload))
    }

    fn register(reload: bool) -> io::Result<Signals> {
        let mut registered = Vec::new();
        let (stop, stopped) = UnixStream::pair()?;
        let seen = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // In this order: the first signal finds the flag unset, sets it, and wakes the control thread.
            registered.push(flag::register_conditional_shutdown(signal, 1, seen.clone())?);
            registered.push(flag::register(signal, seen.clone())?);
            registered.push(low_level::pipe::register(signal, stopped.try_clone()?)?);
        }
        let (print, wanted) = UnixStream::pair()?;
        registered.push(low_level::pipe::register(SIGUSR1, wanted)?);
        let reload = match reload {
            true => {
                let (reload, wanted) = UnixStream::pair()?;
                registered.push(low_level::pipe::register(SIGHUP, wanted)?);
                reload.set_nonblocking(true)?;
                Some(Signal(reload))
            }
            false => None,
        };
        stop.set_nonblocking(true)?;
        print.set_nonblocking(true)?;
        Ok(Signals { stop: Signal(stop), print: Signal(print), reload, registered })
    }
}

impl Signal {
    /// Takes what has come, so that the descriptor is unreadable again.
    pub(super) fn take(&self) {
        let mut bytes = [0; 64];
        while matches!((&self.0).read(&mut bytes), Ok(count) if count == bytes.len()) {}
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            low_level::unregister(id);
        }
    }
}
