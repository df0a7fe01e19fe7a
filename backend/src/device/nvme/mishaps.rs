//! Commands that failed, for the error information log.
//!
//! The last [`Mishaps::KEPT`] of them. Engines and the controller record; whoever would have to wait for the lock only counts,
//! so that no engine blocks: the log has fewer entries then than errors happened, which the specification allows.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use mdev_protocol::nvme::status::Status;

/// A command that failed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Mishap {
    /// Its submission queue.
    pub qid: u16,
    /// Its identifier.
    pub cid: u16,
    /// How it ended.
    pub status: Status,
    /// The byte of the command that is at fault (bits 0-7) and the bit in it (8-10); 0xffff if that is not known.
    pub location: u16,
    /// The first logical block that failed, or 0.
    pub block: u64,
    /// Its namespace.
    pub nsid: u32,
}

/// The last commands that failed.
#[derive(Debug, Default)]
pub struct Mishaps {
    count: AtomicU64,
    last: Mutex<VecDeque<(u64, Mishap)>>,
}

impl Mishaps {
    /// Entries of the log.
    pub const KEPT: usize = 64;

    /// Records one. Does not wait.
    #[cold]
    pub fn record(&self, mishap: Mishap) {
        let number = self.count.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let mut last = match self.last.try_lock() {
            Ok(last) => last,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if last.len() >= Self::KEPT {
            last.pop_back();
        }
        last.push_front((number, mishap));
    }

    /// How many there were in the device's life.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The last ones with their numbers, from 1 on, the latest first.
    pub fn last(&self) -> Vec<(u64, Mishap)> {
        self.lock().iter().copied().collect()
    }

    /// Forgets those that were kept, not how many there were.
    pub fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(u64, Mishap)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
