//! Where engines, on their workers, ask for transfers from and to the client; the control thread takes them from here.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mdev_dma::{RemoteMemory, Reply};
use rustix::io::Errno;

use crate::sys::EventFd;

/// Transfers that may wait for their turn.
pub(super) const MOST_ASKED: usize = 8192;

/// While there is no room, only one transfer in so many has all looked through for those that were given up: an engine that asks for
/// too much must not spend the time of its worker on that.
const LOOK: usize = 512;

/// Where engines ask.
pub(super) struct Outbox {
    asked: Mutex<VecDeque<Ask>>,
    /// Transfers that came since there was room last. Written with `asked` locked.
    crowd: AtomicUsize,
    /// Signalled when there is something new.
    bell: EventFd,
}

/// A transfer that nothing was sent of.
pub(super) struct Ask {
    pub(super) address: u64,
    pub(super) what: What,
    pub(super) reply: Reply,
}

/// What is to be done.
pub(super) enum What {
    Read(usize),
    Write(Vec<u8>),
}

impl Outbox {
    pub(super) fn new() -> io::Result<Arc<Outbox>> {
        Ok(Arc::new(Outbox { asked: Mutex::default(), crowd: AtomicUsize::new(0), bell: EventFd::new()? }))
    }

    /// Readable when engines have asked for something.
    pub(super) fn bell(&self) -> &EventFd {
        &self.bell
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, VecDeque<Ask>> {
        // A queue is valid after every step.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, ask: Ask) {
        let mut asked = self.lock();
        // Where nothing is sent any more, what was given up must not pile up.
        while asked.front().is_some_and(|ask| !ask.reply.is_wanted()) {
            asked.pop_front();
        }
        if asked.len() >= MOST_ASKED && self.crowd.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK) {
            asked.retain(|ask| ask.reply.is_wanted());
        }
        if asked.len() >= MOST_ASKED {
            drop(asked);
            return ask.reply.failed(Errno::NOBUFS.raw_os_error());
        }
        self.crowd.store(0, Ordering::Relaxed);
        let first = asked.is_empty();
        asked.push_back(ask);
        drop(asked);
        if first {
            self.bell.signal();
        }
    }
}

impl RemoteMemory for Outbox {
    fn read(&self, address: u64, len: usize, reply: Reply) {
        self.ask(Ask { address, what: What::Read(len), reply });
    }

    fn write(&self, address: u64, bytes: Vec<u8>, reply: Reply) {
        self.ask(Ask { address, what: What::Write(bytes), reply });
    }
}

#[cfg(test)]
mod tests;
