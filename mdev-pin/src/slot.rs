//! Slots: dense numbers under which the pins of an area are counted.
//!
//! A slot is shared by all areas that were cut out of one, and returns to the allocator when the last of them is
//! gone, which is after its pins have drained.

use std::sync::{Arc, Mutex, PoisonError};

use mdev_dma::faults::{self, Step};

use crate::shard::MAX_SLOTS;

/// Hands out the lowest free numbers first, so that the counters of a lane stay dense.
#[derive(Debug, Default)]
struct Free {
    returned: std::collections::BinaryHeap<std::cmp::Reverse<u32>>,
    next: u32,
}

/// The allocator of one address space.
#[derive(Clone, Debug, Default)]
pub struct Slots(Arc<Mutex<Free>>);

/// A slot in use; cloning shares it.
#[derive(Clone, Debug)]
pub struct Slot(Arc<Owned>);

#[derive(Debug)]
struct Owned {
    number: u32,
    from: Slots,
}

impl Slots {
    /// A free slot, or `None` when all [`MAX_SLOTS`] are in use.
    pub fn take(&self) -> Option<Slot> {
        if faults::fail(Step::AreaSlot) {
            return None;
        }
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match free.returned.pop() {
            Some(std::cmp::Reverse(number)) => number,
            None if free.next < MAX_SLOTS => {
                let number = free.next;
                free.next = number.saturating_add(1);
                number
            }
            None => return None,
        };
        Some(Slot(Arc::new(Owned { number, from: self.clone() })))
    }
}

impl Slot {
    /// Index into the counters of every lane.
    pub fn number(&self) -> u32 {
        self.0.number
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let mut free = self.from.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.returned.push(std::cmp::Reverse(self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_slot_is_reused_before_a_new_one() {
        let slots = Slots::default();
        let (a, b) = (slots.take().unwrap(), slots.take().unwrap());
        assert_eq!((a.number(), b.number()), (0, 1));
        let shared = a.clone();
        drop(a);
        assert_eq!(slots.take().unwrap().number(), 2, "a shared slot is still in use");
        drop(shared);
        assert_eq!(slots.take().unwrap().number(), 0);
    }
}
