//! How many windows one user may have: no more than are left.
//!
//! The table that the signal handler reads has room for so many windows of the whole process. Who shares it with strangers takes a share
//! ([`Windows::share`](crate::Windows::share)): it may map another window while it holds fewer than there are places left. One that takes all it can get ends with half of
//! the places, and the next finds half of what it has left. Nobody has to be told how many users there will be.
//!
//! A window counts for whoever had it mapped, until it is gone, though others may use it too. The counters are relaxed, since nothing is read
//! because of them: two who map at the same moment may both get the last place that the rule has, and the table itself is exact.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How many windows there are and were, stitches among them.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    live: AtomicUsize,
    mapped: AtomicU64,
    /// Faults contained in windows that are gone.
    faults: AtomicU64,
}

/// One user's part of the places.
#[derive(Debug)]
pub(crate) struct Share {
    all: Arc<Counts>,
    /// Windows it has had mapped that are there; `None` if it is not bound by what others have.
    held: Option<Arc<AtomicUsize>>,
    places: usize,
}

/// A window's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    all: Arc<Counts>,
    held: Option<Arc<AtomicUsize>>,
}

impl Share {
    /// The user to whom all of so many places belong.
    pub(crate) fn whole(places: usize) -> Share {
        Share { all: Arc::default(), held: None, places }
    }

    /// Another user of the same places, who may have as many as are left.
    pub(crate) fn part(&self) -> Share {
        Share { all: Arc::clone(&self.all), held: Some(Arc::default()), places: self.places }
    }

    /// A place for one more window; otherwise how many this user holds.
    pub(crate) fn take(&self) -> Result<Place, usize> {
        if let Some(held) = &self.held {
            let held = held.load(Ordering::Relaxed);
            if held >= self.places.saturating_sub(self.live()) {
                return Err(held);
            }
        }
        for count in [Some(&self.all.live), self.held.as_deref()].into_iter().flatten() {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Place { all: Arc::clone(&self.all), held: self.held.clone() })
    }

    /// Windows of all users, now.
    pub(crate) fn live(&self) -> usize {
        self.all.live.load(Ordering::Relaxed)
    }

    /// Windows of all users, ever.
    pub(crate) fn mapped(&self) -> u64 {
        self.all.mapped.load(Ordering::Relaxed)
    }

    /// Faults contained in windows that are gone.
    pub(crate) fn faults(&self) -> u64 {
        self.all.faults.load(Ordering::Relaxed)
    }
}

impl Place {
    /// It is mapped.
    pub(crate) fn mapped(&self) {
        self.all.mapped.fetch_add(1, Ordering::Relaxed);
    }

    /// What was mapped there goes, after so many faults.
    pub(crate) fn leave_faults(&self, faults: u64) {
        self.all.faults.fetch_add(faults, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for count in [Some(&self.all.live), self.held.as_deref()].into_iter().flatten() {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
