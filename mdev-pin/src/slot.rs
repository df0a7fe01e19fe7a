//! Slots: dense numbers under which the pins of an area are counted.
//!
//! A slot is shared by all areas that were cut out of one, and returns to the allocator when the last of them is
//! gone, which is after its pins have drained.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use mdev_dma::IovaRange;

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
    /// Ranges whose bytes, in another process, were taken away from pins that are counted here.
    revoked: Mutex<Vec<IovaRange>>,
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
        Some(Slot(Arc::new(Owned { number, from: self.clone(), revoked: Mutex::default() })))
    }
}

impl Slot {
    /// Index into the counters of every lane.
    pub fn number(&self) -> u32 {
        self.0.number
    }

    /// Takes bytes of another process away from the pins on `range`; `false` if some are being written back just now.
    pub fn try_revoke(&self, range: IovaRange) -> bool {
        let mut revoked = match self.0.revoked.try_lock() {
            Ok(revoked) => revoked,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        revoked.push(range);
        true
    }

    /// Whether a byte of `range` was taken away.
    pub fn is_revoked(&self, range: IovaRange) -> bool {
        self.revoked().iter().any(|revoked| revoked.intersection(range).is_some())
    }

    /// Does something with the bytes of `range`, which nobody takes away meanwhile, if they were not taken away.
    pub fn unless_revoked(&self, range: IovaRange, write: impl FnOnce()) {
        let revoked = self.revoked();
        if !revoked.iter().any(|revoked| revoked.intersection(range).is_some()) {
            write();
        }
    }

    fn revoked(&self) -> MutexGuard<'_, Vec<IovaRange>> {
        self.0.revoked.lock().unwrap_or_else(PoisonError::into_inner)
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
