//! Event counters shared with a peer: kick, call and err of a vring, and the wake-up of our own threads.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::OFlags;
use rustix::io::{Errno, ReadWriteFlags};

use super::bell;

/// An eventfd(2), non-blocking.
///
/// The descriptor may come from a hostile peer that shares its open file, so nothing here relies on what the peer
/// could change behind our back. Reading asks for "no wait" with every call. A signal to a peer's counter is left to
/// the kernel's asynchronous I/O, which never waits, whatever the counter and the file's flags are (a write costs
/// half as much, and waits for a peer that clears `O_NONBLOCK` and fills the counter). A descriptor that is no eventfd
/// is refused on arrival.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
    /// Somebody else has the file open.
    shared: bool,
}

/// What [`EventFd::drain`] found.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kicks {
    /// The counter stood at this number and is zero now (a semaphore eventfd counts one at a time).
    Some(u64),
    /// Nothing was signalled.
    None,
    /// This descriptor does not behave like an eventfd; watching it is of no use.
    Broken,
}

impl EventFd {
    /// A new counter at zero.
    ///
    /// # Errors
    /// What eventfd(2) answers: no descriptors left, no memory.
    pub fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd, shared: false })
    }

    /// Takes over a descriptor that a peer sent, and makes it non-blocking.
    ///
    /// # Errors
    /// `InvalidInput` when it is not an eventfd. A pipe, a regular file or a FUSE file could block the writer
    /// for as long as somebody else likes.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        match rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new()) {
            Ok(target) if target.as_bytes() == b"anon_inode:[eventfd]" => {}
            Ok(target) => {
                let text = format!("{} is not an eventfd", target.to_string_lossy());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            // Without /proc there is nobody to ask.
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        Self::unchecked(fd)
    }

    /// [`EventFd::from_fd`] without asking what it is.
    pub(crate) fn unchecked(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        if !flags.contains(OFlags::NONBLOCK) {
            rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        }
        Ok(Self { fd, shared: true })
    }

    /// Adds one to the counter and wakes who waits for it. A counter at its limit is signalled already, and a
    /// peer that is gone needs no signal: errors have no meaning here.
    pub fn signal(&self) {
        if self.shared {
            match bell::ring(self.fd.as_fd()) {
                // No asynchronous I/O here: a counter that is not full takes a write, and who fills it in between
                // must be lucky to hold us.
                Err(Errno::NOSYS | Errno::PERM | Errno::AGAIN | Errno::NOMEM) if self.has_room() => {}
                Ok(()) | Err(_) => return,
            }
        }
        while let Err(Errno::INTR) = rustix::io::write(&self.fd, &1u64.to_ne_bytes()) {}
    }

    fn has_room(&self) -> bool {
        let mut ends = [PollFd::new(&self.fd, PollFlags::OUT)];
        poll(&mut ends, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }

    /// Takes the counter. Never waits, whatever the peer did to the file's flags.
    pub fn drain(&self) -> Kicks {
        let mut count = [0u8; 8];
        loop {
            // Offset -1 reads at the file position, as read(2) does.
            let mut parts = [IoSliceMut::new(&mut count)];
            return match rustix::io::preadv2(&self.fd, &mut parts, u64::MAX, ReadWriteFlags::NOWAIT) {
                Ok(8) => match u64::from_ne_bytes(count) {
                    0 => Kicks::None,
                    kicks => Kicks::Some(kicks),
                },
                Err(Errno::AGAIN) => Kicks::None,
                Err(Errno::INTR) => continue,
                Ok(_) | Err(_) => Kicks::Broken,
            };
        }
    }
}

/// A thread that sleeps until the counter is readable is woken by signalling it, which never blocks.
impl std::task::Wake for EventFd {
    fn wake(self: Arc<Self>) {
        self.signal();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.signal();
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests;
