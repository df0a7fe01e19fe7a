//! UNSAFETY: why this file exists: a pin refers to host memory and to the counters of the lane that took it without
//! reference counts of its own; one relaxed store when it is taken and one atomic addition when it is dropped are
//! its whole cost. What keeps both alive is the very count it stands for: an unmap, a detach and the release of a
//! lane's counters all wait until it is back. One that revoked it does not wait, but leaves the memory to the access,
//! which keeps it as long (`Published::keep`).

use std::{ptr::NonNull, sync::Arc};

use mdev_dma::{GuestSlice, Iova, Perm};

use crate::{
    shard::Count,
    sys::{piece::Found, published::Inside, snapshot::Snapshot},
};

/// A piece of pinned memory, and where it is counted.
struct Part {
    count: NonNull<Count>,
    address: usize,
    len: usize,
}

impl Part {
    /// Uncounts it, once.
    #[inline(always)]
    fn release(&self) {
        // SAFETY: `Published` keeps a shard, and so its counters, while a pin is counted on it, and this part still is.
        unsafe { self.count.as_ref() }.release();
    }

    fn found(found: Found<'_>, offset: u64, len: u64) -> Option<Part> {
        Part::count(found.inside(), found.piece().slot(), found.memory(offset, len))
    }

    /// Counts a slice of the piece that has this slot in the section's table.
    #[inline(always)]
    fn count(inside: Inside<'_>, slot: u32, slice: GuestSlice<'_>) -> Option<Part> {
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
    more: Option<Box<More>>,
}

/// What a pin of one piece of host memory does without.
#[derive(Default)]
struct More {
    parts: Vec<Part>,
    /// What parts that are no guest memory lie in.
    snapshots: Vec<Arc<Snapshot>>,
}

impl More {
    #[cold]
    fn release(&self) {
        self.parts.iter().for_each(Part::release);
    }
}

// SAFETY: `Count::release` is an atomic addition that any thread may do, and the memory is volatile guest memory
// that is shared with other processes anyway.
unsafe impl Send for Pinned {}
// SAFETY: shared access only makes `GuestSlice`s, which are `Sync` themselves.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// What the section's hint resolves in one piece; `None` if it does not, or it cannot be counted.
    #[inline(always)]
    pub fn hit(inside: Inside<'_>, iova: Iova, len: u32, perm: Perm) -> Option<Self> {
        let hint = inside.hint();
        Self::of(Part::count(inside, hint.slot, hint.slice(iova, len, perm)?)?)
    }

    /// Adds at most `len` bytes at `offset` of a piece; `None` if they cannot be counted.
    pub fn add(to: &mut Option<Self>, found: Found<'_>, offset: u64, len: u64) -> Option<()> {
        let part = Part::found(found, offset, len)?;
        Self::push(to, part, None);
        Some(())
    }

    /// Adds a snapshot of bytes in the area that has this slot in the section's table; `None` if they cannot be counted.
    pub fn add_snapshot(
        to: &mut Option<Self>,
        inside: Inside<'_>,
        slot: u32,
        snapshot: &Arc<Snapshot>,
    ) -> Option<()> {
        let part = Part::count(inside, slot, snapshot.slice())?;
        Self::push(to, part, Some(snapshot.clone()));
        Some(())
    }

    fn push(to: &mut Option<Self>, part: Part, snapshot: Option<Arc<Snapshot>>) {
        match to {
            Some(pinned) => {
                let more = pinned.more.get_or_insert_default();
                more.parts.push(part);
                more.snapshots.extend(snapshot);
            }
            None => {
                let more = |snapshot| Box::new(More { parts: Vec::new(), snapshots: vec![snapshot] });
                *to = Some(Pinned { first: part, more: snapshot.map(more) });
            }
        }
    }

    #[inline(always)]
    fn of(first: Part) -> Option<Self> {
        Some(Pinned { first, more: None })
    }

    /// The pinned memory, in order.
    pub fn slices(&self) -> impl Iterator<Item = GuestSlice<'_>> {
        // SAFETY: the area behind the slot is not removed, and its window not unmapped, while the count that this
        // pin took is out, or `Published` keeps the window for it; it is returned in `drop`, after the borrow of the
        // slices has ended. Snapshots are kept as long.
        self.parts().map(|part| unsafe { GuestSlice::from_raw_parts(part.address, part.len) })
    }

    #[inline(always)]
    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.first).chain(self.more.iter().flat_map(|more| &more.parts))
    }
}

impl Drop for Pinned {
    #[inline]
    fn drop(&mut self) {
        self.first.release();
        if let Some(more) = &self.more {
            more.release();
        }
    }
}
