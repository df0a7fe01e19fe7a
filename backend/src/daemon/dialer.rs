//! The client's role: a front-end that listens, and when to call on it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, connect};

use super::endpoint::{EndpointError, new_socket};

/// The pause after the first attempt in vain, and after a connection.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The pause after many of them.
const LONGEST_PAUSE: Duration = Duration::from_millis(3200);
/// A connection that lasted for so long was no attempt in vain.
const WORTHWHILE: Duration = Duration::from_secs(1);

/// One front-end that is called on until it is there, and again when its connection has ended. Connecting to a Unix
/// socket never waits, so neither does anything here.
#[derive(Debug)]
pub struct Dialer {
    path: PathBuf,
    address: SocketAddrUnix,
    state: State,
    /// How long to wait after the next attempt in vain.
    pause: Duration,
    /// What the log says of the present wait.
    told: Option<Errno>,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum State {
    /// The next attempt, `None` for at once.
    Idle(Option<Instant>),
    /// This connection came of the last attempt.
    Connected { conn: u64, since: Instant },
}

impl Dialer {
    pub(super) fn new(path: &Path) -> Result<Dialer, EndpointError> {
        let address = SocketAddrUnix::new(path).map_err(|_| EndpointError::TooLong(path.to_owned()))?;
        let path = path.to_owned();
        Ok(Dialer { path, address, state: State::Idle(None), pause: FIRST_PAUSE, told: None })
    }

    /// When to call, if there is no connection.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match self.state {
            State::Idle(at) => Some(at.unwrap_or(now)),
            State::Connected { .. } => None,
        }
    }

    /// Calls on the front-end: a connected socket, or `None` while nobody is there; then there is a pause before the
    /// next attempt. Once for each wait, and for each new reason of it, the log says so.
    pub(super) fn dial(&mut self, name: &str, now: Instant) -> Option<OwnedFd> {
        match self.attempt() {
            Ok(socket) => Some(socket),
            Err(errno) => {
                if self.told.replace(errno) != Some(errno) {
                    let (path, error) = (&self.path, io::Error::from(errno));
                    log::info!(
                        "{name}: nobody to serve at {path:?} ({error}); trying until somebody listens"
                    );
                }
                self.wait(now);
                None
            }
        }
    }

    fn attempt(&self) -> Result<OwnedFd, Errno> {
        let socket = new_socket()?;
        connect(&socket, &self.address)?;
        Ok(socket)
    }

    /// The last attempt has become the connection `conn`.
    pub(super) fn connected(&mut self, conn: u64, now: Instant) {
        self.told = None;
        self.state = State::Connected { conn, since: now };
    }

    /// The last attempt came to nothing, or a connection has ended: a pause follows, longer each time.
    pub(super) fn wait(&mut self, now: Instant) {
        self.state = State::Idle(now.checked_add(self.pause));
        self.pause = self.pause.saturating_mul(2).min(LONGEST_PAUSE);
    }

    /// A connection has ended. If it is ours, and lasted for a while, the next attempt follows soon.
    pub(super) fn ended(&mut self, conn: u64, now: Instant) {
        let State::Connected { conn: ours, since } = self.state else { return };
        if ours == conn {
            if now.saturating_duration_since(since) >= WORTHWHILE {
                self.pause = FIRST_PAUSE;
            }
            self.wait(now);
        }
    }
}

#[cfg(test)]
mod tests;
