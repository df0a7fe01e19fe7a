//! Readiness of descriptors: the `epoll` crate, wrapped so that descriptors are borrowed and the instance
//! closes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use bitflags::bitflags;
use epoll::{ControlOptions, Event, Events};

use super::inherit;

bitflags! {
    /// What to wait for on a descriptor. Errors and hang-ups are always told.
    #[derive(Copy, Clone, Debug, PartialEq, Eq)]
    pub struct Interest: u8 {
        /// There is something to read, or the peer ended its side.
        const READ = 1;
        /// There is room to write.
        const WRITE = 2;
        /// Told once for each new event instead of for as long as it lasts: a descriptor that is always ready
        /// then cannot keep its waiter from sleeping.
        const EDGE = 4;
    }
}

/// How a descriptor is ready.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// There is something to read, or the end of the stream.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// Both directions are over, or the descriptor is in error.
    pub hung_up: bool,
}

/// One descriptor that is ready: the number it was added with, and how.
pub type Ready = (u64, Readiness);

/// How many descriptors one [`Poll::wait`] reports; others that are ready come with the next.
const AT_ONCE: usize = 64;

/// A set of descriptors and the numbers they go by.
#[derive(Debug)]
pub struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    /// An empty set.
    ///
    /// # Errors
    /// What epoll_create1(2) answers.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: inherit(epoll::create(true)?)? })
    }

    /// Watches `fd`, which goes by the number `key`.
    ///
    /// # Errors
    /// `PermissionDenied` for a descriptor that cannot be watched (a regular file), `AlreadyExists` for one
    /// that is watched already.
    pub fn add(&self, fd: impl AsFd, key: u64, interest: Interest) -> io::Result<()> {
        self.control(ControlOptions::EPOLL_CTL_ADD, fd, key, interest)
    }

    /// Changes what `fd` is watched for.
    ///
    /// # Errors
    /// `NotFound` when it is not watched.
    pub fn change(&self, fd: impl AsFd, key: u64, interest: Interest) -> io::Result<()> {
        self.control(ControlOptions::EPOLL_CTL_MOD, fd, key, interest)
    }

    /// Watches `fd` no longer. Must come before the last close of the open file on our side: a peer may hold it
    /// open, and the kernel would go on reporting it under a key that means nothing any more.
    pub fn remove(&self, fd: impl AsFd) {
        // The only error is "not watched", and that is what was asked for.
        let _ = self.control(ControlOptions::EPOLL_CTL_DEL, fd, 0, Interest::empty());
    }

    /// Waits until something is ready or `timeout` (rounded up to milliseconds; `None`: for ever) is over, and
    /// leaves what is ready in `ready`. A signal ends the wait with nothing ready.
    ///
    /// # Errors
    /// None that a correct program sees.
    pub fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        let millis = match timeout {
            None => -1,
            Some(time) => i32::try_from(time.as_micros().div_ceil(1000)).unwrap_or(i32::MAX),
        };
        let mut events = [Event::new(Events::empty(), 0); AT_ONCE];
        let count = match epoll::wait(self.epoll.as_raw_fd(), millis, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        ready.extend(events.iter().take(count).map(|event| {
            let events = Events::from_bits_truncate(event.events);
            let readiness = Readiness {
                readable: events.contains(Events::EPOLLIN),
                writable: events.contains(Events::EPOLLOUT),
                hung_up: events.intersects(Events::EPOLLHUP | Events::EPOLLERR),
            };
            (event.data, readiness)
        }));
        Ok(())
    }

    fn control(&self, what: ControlOptions, fd: impl AsFd, key: u64, interest: Interest) -> io::Result<()> {
        let mut events = Events::empty();
        events.set(Events::EPOLLIN, interest.contains(Interest::READ));
        events.set(Events::EPOLLOUT, interest.contains(Interest::WRITE));
        events.set(Events::EPOLLET, interest.contains(Interest::EDGE));
        epoll::ctl(self.epoll.as_raw_fd(), what, fd.as_fd().as_raw_fd(), Event::new(events, key))
    }
}

/// Readable while one of its descriptors is ready, so that a set can be watched in another.
impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests;
