//! What is counted of translations that a device asks for and is given.

use std::sync::atomic::{AtomicU64, Ordering};

/// What has happened in the address spaces of all connections that share it.
#[derive(Debug, Default)]
pub struct IotlbCounters {
    entries: AtomicU64,
    misses: AtomicU64,
    updates: AtomicU64,
    invalidations: AtomicU64,
    evictions: AtomicU64,
}

/// [`IotlbCounters`] at one moment.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct IotlbLine {
    /// Translations that are there.
    pub entries: u64,
    /// Translations that were asked for, ever.
    pub misses: u64,
    /// Messages that supplied some, ever.
    pub updates: u64,
    /// Messages that took some back, ever.
    pub invalidations: u64,
    /// Translations that had to make room for others, ever.
    pub evictions: u64,
}

/// What is counted.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A translation was asked for.
    Miss,
    /// Some were supplied.
    Update,
    /// Some were taken back.
    Invalidation,
}

impl IotlbCounters {
    /// The counters now.
    pub fn line(&self) -> IotlbLine {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        IotlbLine {
            entries: get(&self.entries),
            misses: get(&self.misses),
            updates: get(&self.updates),
            invalidations: get(&self.invalidations),
            evictions: get(&self.evictions),
        }
    }

    pub(super) fn count(&self, event: Event) {
        let counter = match event {
            Event::Miss => &self.misses,
            Event::Update => &self.updates,
            Event::Invalidation => &self.invalidations,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_entry(&self) {
        self.entries.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn remove_entries(&self, count: usize) {
        self.entries.fetch_sub(count as u64, Ordering::Relaxed);
    }

    pub(super) fn count_evictions(&self, count: usize) {
        self.evictions.fetch_add(count as u64, Ordering::Relaxed);
    }
}
