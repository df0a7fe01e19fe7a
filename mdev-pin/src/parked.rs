//! Parking: a queue that needs a translation which is not there waits for it, not its thread.
//!
//! A burst that finds no translation, or none that permits what it is about to do, leaves a note of where it looked;
//! [`Lane::park`] makes a waiter of the note. Every publication to the access looks through its waiters, after the new table was stored, and wakes those for whom the
//! answer is another one now: the address is mapped, or the access was detached, closed or replaced. Nobody else is
//! woken, and nobody waits here: a worker asks [`Parked::state`] or sleeps until its waker was called.
//!
//! No wake-up is lost, because a waiter is entered first and then looks at the table once more. Waiters lie under a
//! mutex that publications take after they have stored the table: either the publication comes to the waiter, or
//! the waiter comes later and finds the new table. Explored by the models `park_against_map` and `park_against_detach`.

use std::{task::Waker, time::Instant};

use mdev_dma::{FileExtent, FileId, Iova, Perm};

use crate::{
    lane::Lane,
    sync::{Arc, AtomicBool, Mutex, Ordering, lock},
    sys::published::Published,
    table::Table,
};

/// Where a burst looked for memory.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At an address.
    At(Iova),
    /// At a byte of a file, whatever its address.
    In(FileId, u64),
}

impl Place {
    /// The first byte of an extent.
    pub fn of(extent: &FileExtent) -> Self {
        Place::In(extent.file.id(), extent.offset)
    }
}

/// What a table says of a place, as far as waiting for it goes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is mapped, and may be touched as far as its area goes.
    There,
    /// It is mapped and may not be touched that way.
    Forbidden,
    /// It is not mapped, or gated, which is on the way to not being mapped.
    Missing,
    /// The access is not attached.
    Detached,
}

/// The note that a burst leaves: where it looked, what it was about to do there, and what it was told.
#[derive(Copy, Clone, Debug)]
pub struct Miss {
    pub place: Place,
    pub perm: Perm,
    pub answer: Answer,
}

/// A queue that waits for a translation. Dropping it ends the wait.
///
/// It holds the access's pointer to its table and nothing of the space: what it waits for can be unmapped, replaced
/// and destroyed.
#[must_use = "dropping it ends the wait"]
pub struct Parked {
    waiter: Arc<Waiter>,
    published: Arc<Published>,
    until: Instant,
}

/// Whether a parked queue should look again.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum ParkState {
    /// Nothing has changed for it.
    Waiting,
    /// The answer is another one now: look again.
    Woken,
    /// Its time is over.
    Expired,
}

/// See [`Parked`].
struct Waiter {
    miss: Miss,
    /// Set once. A flag of its own carries no data: what made it true is read from the table.
    woken: AtomicBool,
    waker: Waker,
}

/// Who waits for tables of one access.
#[derive(Default)]
pub struct Waiters(Mutex<Vec<Arc<Waiter>>>);

impl Waiters {
    /// Wakes those who wait for something else than `table` says. Called after `table` was published.
    pub fn look(&self, table: &Table) {
        let mut woken = Vec::new();
        lock(&self.0).retain(|waiter| {
            let waits = table.answer(waiter.miss.place, waiter.miss.perm) == waiter.miss.answer;
            if !waits {
                woken.push(waiter.clone());
            }
            waits
        });
        // Without the lock: what a waker does is its owner's business.
        woken.iter().for_each(|waiter| waiter.wake());
    }

    fn enter(&self, waiter: &Arc<Waiter>) {
        lock(&self.0).push(waiter.clone());
    }

    fn leave(&self, waiter: &Arc<Waiter>) {
        lock(&self.0).retain(|other| !Arc::ptr_eq(other, waiter));
    }
}

impl Waiter {
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.waker.wake_by_ref();
    }
}

impl Lane {
    /// Parks the queue of this lane: `waker` is called once, from the thread that changes the table, when the place
    /// that was looked for in vain last is mapped, or the access is detached, closed or replaced. Until then, and not
    /// after `until`, there is nothing to look for. If that has happened since the miss, it is called before this returns.
    ///
    /// `waker` must not block, nor call this crate; a control operation may be under way above it.
    ///
    /// `None` if no burst of this lane has missed anything since the last call.
    pub fn park(&mut self, until: Instant, waker: &Waker) -> Option<Parked> {
        let miss = self.reader.take_miss()?;
        let published = self.reader.published().clone();
        let waiter = Arc::new(Waiter { miss, woken: AtomicBool::new(false), waker: waker.clone() });
        published.waiters.enter(&waiter);
        // Once more, after it was entered.
        if self.reader.enter().inside().table().answer(miss.place, miss.perm) != miss.answer {
            published.waiters.leave(&waiter);
            waiter.wake();
        }
        Some(Parked { waiter, published, until })
    }
}

impl Parked {
    /// Whether to look again.
    pub fn state(&self) -> ParkState {
        if self.waiter.woken.load(Ordering::Acquire) {
            ParkState::Woken
        } else if Instant::now() >= self.until {
            ParkState::Expired
        } else {
            ParkState::Waiting
        }
    }

    /// The address at which it looked in vain; `None` if it looked for a place in a file.
    pub fn iova(&self) -> Option<Iova> {
        match self.waiter.miss.place {
            Place::At(iova) => Some(iova),
            Place::In(..) => None,
        }
    }

    /// What it was about to do there.
    pub fn perm(&self) -> Perm {
        self.waiter.miss.perm
    }

    /// Its time is over at that moment, unless it is earlier.
    pub fn end_by(&mut self, at: Instant) {
        self.until = self.until.min(at);
    }

    /// When its time is over: what a worker sleeps until at most.
    pub fn until(&self) -> Instant {
        self.until
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.published.waiters.leave(&self.waiter);
    }
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parked").field("miss", &self.waiter.miss).field("state", &self.state()).finish()
    }
}
