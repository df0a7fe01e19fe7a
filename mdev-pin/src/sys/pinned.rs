//! UNSAFETY: why this file exists: a pin refers to host memory and to the counters of the lane that took it without
//! reference counts of its own; one relaxed store when it is taken and one atomic addition when it is dropped are
//! its whole cost. What keeps both alive is the very count it stands for: an unmap, a detach and the release of a
//! lane's counters all wait until it is back.

use std::ptr::NonNull;

use mdev_dma::GuestSlice;
use smallvec::SmallVec;

use crate::{
    shard::Shard,
    sys::{piece::Found, published::Inside},
};

/// A piece of pinned memory, counted on `slot`.
struct Part {
    slot: u32,
    address: usize,
    len: usize,
}

/// The holds of one pin. Counts are taken by [`Pinned::add`] and returned on drop.
pub struct Pinned {
    shard: NonNull<Shard>,
    parts: SmallVec<[Part; 1]>,
}

// SAFETY: `Shard::release` is an atomic addition that any thread may do, and the memory is volatile guest memory
// that is shared with other processes anyway.
unsafe impl Send for Pinned {}
// SAFETY: shared access only makes `GuestSlice`s, which are `Sync` themselves.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// An empty pin of the lane whose section this is.
    pub fn new(inside: &Inside<'_>) -> Self {
        Pinned { shard: NonNull::from(inside.shard()), parts: SmallVec::new() }
    }

    /// Adds at most `len` bytes at `offset` of a piece; `false` if they cannot be counted, or the piece was found in
    /// the section of another lane.
    pub fn add(&mut self, found: Found<'_>, offset: u64, len: u64) -> bool {
        let shard = found.inside().shard();
        let slot = found.piece().slot();
        // The section is open and on this thread (neither `Burst` nor what borrows it is `Send`), so this is the
        // shard's only writer, and an unmap that gates the piece waits for the section before it reads the count.
        if self.shard != NonNull::from(shard) || !shard.acquire(slot) {
            return false;
        }
        let (address, len) = found.memory(offset, len).as_io_vec_parts();
        self.parts.push(Part { slot, address, len });
        true
    }

    /// The pinned memory, in order.
    pub fn slices(&self) -> impl Iterator<Item = GuestSlice<'_>> {
        // SAFETY: the area behind the slot is not removed, and its window not unmapped, while the count that this
        // pin took is out; it is returned in `drop`, after the borrow of the slices has ended.
        self.parts.iter().map(|part| unsafe { GuestSlice::from_raw_parts(part.address, part.len) })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        for part in &self.parts {
            // SAFETY: `Published` keeps a shard while a pin is counted on it, and this part still is.
            unsafe { self.shard.as_ref() }.release(part.slot);
        }
    }
}
