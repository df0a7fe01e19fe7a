//! Lists that a peer makes as long as it likes: running out of memory for one of them is an error, not the end of the
//! process.

use crate::faults::{self, Step};

/// No memory for a list whose length a peer chooses (`ENOMEM`).
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory for a list of areas; map fewer or shorter ones, or give the daemon more memory")]
pub struct OutOfMemory;

impl OutOfMemory {
    /// The error number to report to a peer.
    pub fn errno(self) -> i32 {
        libc::ENOMEM
    }
}

/// An empty list with room for so many items, if there is memory for it.
pub fn try_with_capacity<T>(items: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut list = Vec::new();
    if faults::fail(Step::Memory) || list.try_reserve_exact(items).is_err() {
        return Err(OutOfMemory);
    }
    Ok(list)
}

/// Appends to a list, if there is memory for it.
pub fn try_push<T>(list: &mut Vec<T>, item: T) -> Result<(), OutOfMemory> {
    if faults::fail(Step::Memory) || list.try_reserve(1).is_err() {
        return Err(OutOfMemory);
    }
    list.push(item);
    Ok(())
}
