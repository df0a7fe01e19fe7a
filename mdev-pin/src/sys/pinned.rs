//! UNSAFETY: why this file exists: a pin refers to host memory and to the counters of the lane that took it without
//! reference counts of its own; one relaxed store when it is taken and one atomic addition when it is dropped are
//! its whole cost. What keeps both alive is the very count it stands for: an unmap, a detach and the release of a
//! lane's counters all wait until it is back. One that revoked it does not wait, but leaves the memory to the access,
//! which keeps it as long (`Published::keep`).

use std::ptr::NonNull;

use mdev_dma::{GuestSlice, Iova, Perm};

use crate::{
    shard::Count,
    sys::{piece::Found, published::Inside},
};

/// A piece of pinned memory, and where it is counted.
struct Part {
    count: NonNull<Count>,
    address: usize,
    len: usize,
}

impl Part {
    fn found(found: Found<'_>, offset: u64, len: u64) -> Option<Part> {
        Part::count(found.inside(), found.piece().slot(), found.memory(offset, len))
    }

    /// Counts a slice of the piece that has this slot in the section's table.
    #[inline(always)]
    fn count(inside: &Inside<'_>, slot: u32, slice: GuestSlice<'_>) -> Option<Part> {
        // The section is open and on this thread (neither `Burst` nor what borrows it is `Send`), so this is the
        // shard's only writer, and an unmap that gates the piece waits for the section before it reads the count.
        let count = inside.counter(slot)?;
        count.acquire();
        let (address, len) = slice.as_io_vec_parts();
        Some(Part { count: NonNull::from(count), address, len })
    }
}

/// The holds of one pin. Counts are taken when parts are made and returned on drop.
pub struct Pinned {
    /// Nearly always the only one.
    first: Part,
    rest: Vec<Part>,
}

// SAFETY: `Count::release` is an atomic addition that any thread may do, and the memory is volatile guest memory
// that is shared with other processes anyway.
unsafe impl Send for Pinned {}
// SAFETY: shared access only makes `GuestSlice`s, which are `Sync` themselves.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// What the section's hint resolves in one piece; `None` if it does not, or it cannot be counted.
    #[inline(always)]
    pub fn hit(inside: &Inside<'_>, iova: Iova, len: u32, perm: Perm) -> Option<Self> {
        let hint = inside.hint();
        Self::of(Part::count(inside, hint.slot, hint.slice(iova, len, perm)?)?)
    }

    /// At most `len` bytes at `offset` of a piece; `None` if they cannot be counted.
    pub fn found(found: Found<'_>, offset: u64, len: u64) -> Option<Self> {
        Self::of(Part::found(found, offset, len)?)
    }

    /// Adds at most `len` bytes at `offset` of a piece; `false` if they cannot be counted.
    pub fn add(&mut self, found: Found<'_>, offset: u64, len: u64) -> bool {
        Part::found(found, offset, len).map(|part| self.rest.push(part)).is_some()
    }

    #[inline(always)]
    fn of(first: Part) -> Option<Self> {
        Some(Pinned { first, rest: Vec::new() })
    }

    /// The pinned memory, in order.
    pub fn slices(&self) -> impl Iterator<Item = GuestSlice<'_>> {
        // SAFETY: the area behind the slot is not removed, and its window not unmapped, while the count that this
        // pin took is out, or `Published` keeps the window for it; it is returned in `drop`, after the borrow of the
        // slices has ended.
        self.parts().map(|part| unsafe { GuestSlice::from_raw_parts(part.address, part.len) })
    }

    #[inline(always)]
    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.first).chain(&self.rest)
    }
}

impl Drop for Pinned {
    #[inline]
    fn drop(&mut self) {
        for part in self.parts() {
            // SAFETY: `Published` keeps a shard, and so its counters, while a pin is counted on it, and this part
            // still is.
            unsafe { part.count.as_ref() }.release();
        }
    }
}
