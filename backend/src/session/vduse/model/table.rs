//! What is mapped: entries that do not overlap, by their first address.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mdev_dma::IovaRange;
use mdev_protocol::vhost_user::IotlbPerm;

/// Memory behind some IOVAs.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The addresses.
    pub range: IovaRange,
    /// What the device may do there.
    pub perm: IotlbPerm,
    /// The file.
    pub file: Arc<OwnedFd>,
    /// Where the first address is in it.
    pub offset: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeMap<u64, Entry>);

impl Table {
    pub(super) fn entries(&self) -> &BTreeMap<u64, Entry> {
        &self.0
    }

    /// Only these from now on. Of two that overlap the first stays.
    pub(super) fn set(&mut self, entries: Vec<Entry>) {
        self.0.clear();
        for entry in entries {
            self.insert(entry);
        }
    }

    /// Adds one. `false`: something is there.
    pub(super) fn insert(&mut self, entry: Entry) -> bool {
        let (first, last) = (entry.range.first().0, entry.range.last().0);
        let free = self.lowest(first, last).is_none();
        if free {
            self.0.insert(first, entry);
        }
        free
    }

    /// Takes the one away that begins there.
    pub(super) fn remove(&mut self, first: u64) -> Option<Entry> {
        self.0.remove(&first)
    }

    /// The lowest one with one of these addresses.
    pub(super) fn lowest(&self, first: u64, last: u64) -> Option<&Entry> {
        let before = self.0.range(..first).next_back().map(|(_, entry)| entry);
        before
            .filter(|entry| entry.range.last().0 >= first)
            .or_else(|| self.0.range(first..=last.max(first)).next().map(|(_, entry)| entry))
    }
}
