//! The commands in flight of one queue.

use super::steps::Steps;
use crate::store::{MAX_IN_FLIGHT, Operation};

/// A command that a store has.
pub(super) struct Flown {
    /// Its identifier.
    pub(super) cid: u16,
    /// What the store does, and where: for whoever reads of its failure.
    pub(super) operation: Operation,
    pub(super) offset: u64,
    /// What is to be done when the store has ended this.
    pub(super) rest: Option<Box<Steps>>,
    /// It is a flush of all namespaces, which goes from one to the next.
    pub(super) everywhere: bool,
    /// Its data are with a client, and it goes by this number there.
    pub(super) remote: Option<u64>,
}

/// All of them. A request's tag is its slot.
pub(super) struct Flying {
    slots: Vec<Option<Flown>>,
    free: Vec<u16>,
}

impl Flying {
    pub(super) fn new() -> Self {
        let slots = (0..MAX_IN_FLIGHT).map(|_| None).collect();
        let free = (0..MAX_IN_FLIGHT as u16).rev().collect();
        Self { slots, free }
    }

    pub(super) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// One more: its tag. `None` if there is no room.
    pub(super) fn add(&mut self, flown: Flown) -> Option<u64> {
        let slot = self.free.pop()?;
        *self.slots.get_mut(usize::from(slot))? = Some(flown);
        Some(slot.into())
    }

    /// A request that has ended, if it is one.
    pub(super) fn get_mut(&mut self, tag: u64) -> Option<&mut Flown> {
        self.slots.get_mut(usize::try_from(tag).ok()?)?.as_mut()
    }

    /// The request of a command, if it is one: the first that is found, should the host have given an identifier twice.
    pub(super) fn find(&self, cid: u16) -> Option<u64> {
        let of_it = |flown: &Option<Flown>| flown.as_ref().is_some_and(|flown| flown.cid == cid);
        self.slots.iter().position(of_it).map(|slot| slot as u64)
    }

    /// It is not in flight any more.
    pub(super) fn land(&mut self, tag: u64) -> Option<Flown> {
        let slot = u16::try_from(tag).ok()?;
        let flown = self.slots.get_mut(usize::from(slot))?.take()?;
        self.free.push(slot);
        Some(flown)
    }
}
