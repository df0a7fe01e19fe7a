//! The chains in flight of one queue.

use mdev_pin::Pin;

use crate::store::{MAX_IN_FLIGHT, Operation};

/// A chain that the store has.
pub(super) struct Flown {
    /// Its name in the ring.
    pub(super) head: u16,
    /// What its used entry says if all goes well.
    pub(super) writable: u32,
    /// The byte for its status.
    pub(super) status: Pin,
    /// What the store does, and where: for whoever reads of its failure.
    pub(super) operation: Operation,
    pub(super) offset: u64,
}

/// All of them. A request's tag is its slot, and the start of the queue that it belongs to: a request of an earlier start has no chain any more, and
/// ends unheard.
pub(super) struct Flying {
    slots: Vec<Option<Flown>>,
    free: Vec<u16>,
    /// Counts the starts.
    start: u64,
    /// Requests of this start.
    own: usize,
}

impl Flying {
    pub(super) fn new() -> Self {
        let slots = (0..MAX_IN_FLIGHT).map(|_| None).collect();
        let free = (0..MAX_IN_FLIGHT as u16).rev().collect();
        Self { slots, free, start: 0, own: 0 }
    }

    /// The queue starts anew.
    pub(super) fn start(&mut self) {
        self.start = self.start.wrapping_add(1);
        self.own = 0;
    }

    /// How many more there may be.
    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    /// Whether none of this start is in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.own == 0
    }

    /// One more: its tag. `None` if there is no room.
    pub(super) fn add(&mut self, flown: Flown) -> Option<u64> {
        let slot = self.free.pop()?;
        *self.slots.get_mut(usize::from(slot))? = Some(flown);
        self.own = self.own.saturating_add(1);
        Some(self.start.wrapping_shl(16) | u64::from(slot))
    }

    /// The end of a request: its chain, if it is one of this start.
    pub(super) fn land(&mut self, tag: u64) -> Option<Flown> {
        let slot = tag as u16;
        let flown = self.slots.get_mut(usize::from(slot))?.take()?;
        self.free.push(slot);
        if tag != self.start.wrapping_shl(16) | u64::from(slot) {
            return None;
        }
        self.own = self.own.saturating_sub(1);
        Some(flown)
    }
}
