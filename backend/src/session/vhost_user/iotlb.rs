//! The device IOTLB of a connection: which translations its front-end has supplied.
//!
//! An entry is an area that lies in one memory region, and the front-end's address that it was derived from. The
//! address space shows the same areas; this is what a session has to know beside that: what an update repeats, what
//! goes with a region, and what is oldest. A front-end can make no more than [`MAX_ENTRIES`] of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use mdev_dma::{Area, IovaRange};

use super::memory::{Keys, Regions};
use crate::session::translations::IotlbCounters;

/// Entries of a connection. One more pushes the oldest out.
pub const MAX_ENTRIES: usize = if cfg!(test) { 40 } else { 65_536 };
/// How many are pushed out at a time, so that it costs little for each update of a flood of them.
pub(super) const PUSHED_OUT: usize = if cfg!(test) { 4 } else { 256 };

/// A translation.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What the address space shows.
    pub area: Area,
    /// The address in a message that the first byte was derived from.
    pub user: u64,
}

/// See the [module](self).
pub struct Iotlb {
    /// By first address, with their numbers. No two overlap.
    entries: BTreeMap<u64, (u64, Entry)>,
    /// First addresses by number: the lowest is the oldest.
    ages: BTreeMap<u64, u64>,
    next: u64,
    counters: Arc<IotlbCounters>,
}

impl Iotlb {
    /// Without entries; `counters` may be shared with others.
    pub fn new(counters: Arc<IotlbCounters>) -> Self {
        Self { entries: BTreeMap::new(), ages: BTreeMap::new(), next: 0, counters }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether every byte of these areas is translated like that already.
    pub fn has<'a>(&self, mut areas: impl Iterator<Item = &'a Area>) -> bool {
        areas.all(|area| {
            let mut next = Some(area.range.first());
            for entry in self.overlapping(area.range) {
                let there = entry.area.range;
                let alike = there.intersection(area.range).is_some_and(|both| {
                    next.is_some_and(|next| there.first() <= next) && entry.area.translates_like(area, both)
                });
                if !alike {
                    return false;
                }
                next = there.last().checked_add(1);
            }
            next.is_none_or(|next| next > area.range.last())
        })
    }

    /// Whether one of these addresses is translated.
    pub fn touches(&self, range: IovaRange) -> bool {
        self.overlapping(range).next().is_some()
    }

    /// Adds an entry where there is none.
    pub fn insert(&mut self, entry: Entry) {
        let first = entry.area.range.first().0;
        if let Some((number, _)) = self.entries.insert(first, (self.next, entry)) {
            self.ages.remove(&number);
        } else {
            self.counters.add_entry();
        }
        self.ages.insert(self.next, first);
        self.next = self.next.wrapping_add(1);
    }

    /// Forgets every entry of which a byte lies in the range.
    pub fn forget(&mut self, range: IovaRange) {
        let firsts: Vec<u64> = self.overlapping(range).map(|entry| entry.area.range.first().0).collect();
        for first in firsts {
            if let Some((number, _)) = self.entries.remove(&first) {
                self.ages.remove(&number);
                self.counters.remove_entries(1);
            }
        }
    }

    /// The ranges of the oldest entries, as many as have to go before so many are added.
    pub fn too_old(&self, coming: usize) -> Vec<IovaRange> {
        let surplus = self.entries.len().saturating_add(coming).saturating_sub(MAX_ENTRIES);
        if surplus == 0 {
            return Vec::new();
        }
        let going = surplus.max(PUSHED_OUT);
        self.counters.count_evictions(going.min(self.entries.len()));
        let entries = self.ages.values().filter_map(|first| self.entries.get(first));
        entries.take(going).map(|(_, entry)| entry.area.range).collect()
    }

    /// The ranges of entries that `regions` does not derive as `before` has.
    pub fn not_derived(&self, before: &Regions, regions: &Regions, keys: Keys) -> Vec<IovaRange> {
        let changed = before.changed(regions, keys);
        let touched = |entry: &Entry| {
            let beyond =
                u64::try_from(entry.area.range.size()).map_or(u64::MAX, |size| size.saturating_sub(1));
            let last = entry.user.saturating_add(beyond);
            changed.iter().any(|(from, to)| entry.user <= *to && *from <= last)
        };
        let entries = self.entries.values().map(|(_, entry)| entry).filter(|entry| touched(entry));
        let stale = |entry: &&Entry| {
            let again = regions.derive(entry.area.range, entry.user, entry.area.perm, keys);
            again.is_none_or(|again| !matches!(again.as_slice(), [one] if same(one, entry)))
        };
        entries.filter(stale).map(|entry| entry.area.range).collect()
    }

    /// The entries of which a byte lies in the range, by address.
    fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = &Entry> {
        let (first, last) = (range.first().0, range.last().0);
        let before = self.entries.range(..first).next_back();
        let before = before.filter(move |(_, (_, entry))| entry.area.range.last().0 >= first);
        before.into_iter().chain(self.entries.range(first..=last)).map(|(_, (_, entry))| entry)
    }
}

fn same(one: &Entry, other: &Entry) -> bool {
    one.area.range == other.area.range && one.area.translates_like(&other.area, other.area.range)
}

impl Drop for Iotlb {
    fn drop(&mut self) {
        self.counters.remove_entries(self.entries.len());
    }
}
