//! One poll of one queue: IOVAs resolve to guest slices, without a count, a lock or a wait.

use std::marker::PhantomData;

use mdev_dma::{FileExtent, GuestSlice, Iova, IovaRange, Perm, SgList, poison_epoch};

use crate::{
    error::ResolveError,
    lane::{self, Lane},
    pin::Pin,
    sync::Cell,
    sys::{
        kept::{KeptSlice, window_bit},
        pinned::Pinned,
        published::{Found, Inside},
    },
};

/// Inside a read-side section of an access. Slices borrow it; it ends with the poll.
///
/// It remembers the piece of memory that was hit last, which serves most lookups of a burst, and which windows it
/// resolved from, to tell whether one of them lost a page meanwhile.
pub struct Burst<'l> {
    inside: Inside<'l>,
    epoch: u64,
    last: Cell<Last>,
    /// A bit per window, hashed by address; a collision can only make [`Burst::poisoned`] too careful.
    touched: Cell<u64>,
    _this_thread: PhantomData<*const ()>,
}

/// The piece hit last.
#[derive(Copy, Clone)]
struct Last {
    first: u64,
    perm: Perm,
    memory: KeptSlice,
}

impl<'l> Burst<'l> {
    #[inline(always)]
    pub(crate) fn new(lane: &'l mut Lane) -> Self {
        lane::burst_entered();
        let inside = lane.reader.enter();
        let last = Last { first: 0, perm: Perm::empty(), memory: KeptSlice::NONE };
        Burst {
            inside,
            epoch: poison_epoch(),
            last: Cell::new(last),
            touched: Cell::new(0),
            _this_thread: PhantomData,
        }
    }

    /// Resolves `len` bytes at `iova` for the direction `perm`, as one piece of host memory.
    ///
    /// # Errors
    ///
    /// Those of [`ResolveError`]; `Split` if the bytes are mapped but not contiguous here: use [`Burst::sg`].
    #[inline(always)]
    pub fn slice(&self, iova: Iova, len: u32, perm: Perm) -> Result<GuestSlice<'_>, ResolveError> {
        let last = self.last.get();
        if last.perm.contains(perm)
            && len != 0
            && let Ok(offset) = usize::try_from(iova.0.wrapping_sub(last.first))
            && let Some(memory) = last.memory.revive(self.inside.table())
            && let Some(slice) = memory.subslice(offset, len as usize)
        {
            return Ok(slice);
        }
        self.search(iova, len, perm)
    }

    #[inline(never)]
    fn search(&self, iova: Iova, len: u32, perm: Perm) -> Result<GuestSlice<'_>, ResolveError> {
        let range = checked_range(iova, len)?;
        let (found, memory) = self.piece_at(iova, perm)?;
        let piece = found.piece();
        if range.last() > piece.range.last() {
            self.sg(iova, len, perm, &mut SgList::new())?;
            return Err(ResolveError::Split);
        }
        let kept = KeptSlice::of(found, 0, memory.len(), self.epoch);
        self.last.set(Last { first: piece.range.first().0, perm: piece.perm, memory: kept });
        let offset = iova.0.wrapping_sub(piece.range.first().0);
        usize::try_from(offset)
            .ok()
            .and_then(|at| memory.subslice(at, len as usize))
            .ok_or(ResolveError::Hole)
    }

    /// The piece at `iova`, checked, and all of its memory.
    fn piece_at(&self, iova: Iova, perm: Perm) -> Result<(Found<'_>, GuestSlice<'_>), ResolveError> {
        if !self.inside.table().attached {
            return Err(ResolveError::Detached);
        }
        let found = self.inside.find(iova).ok_or(ResolveError::Hole)?;
        let memory = self.memory_of(found, perm)?;
        Ok((found, memory))
    }

    /// All memory of a piece, if it may be touched in this direction.
    fn memory_of<'s>(&'s self, found: Found<'s>, perm: Perm) -> Result<GuestSlice<'s>, ResolveError> {
        let piece = found.piece();
        if piece.gated {
            return Err(ResolveError::Gated);
        }
        if !piece.perm.contains(perm) {
            return Err(ResolveError::Permission);
        }
        // Touched first: a page that is lost from here on shows in `poisoned`.
        self.touched.set(self.touched.get() | window_bit(&piece.window));
        if piece.window.poisoned() {
            return Err(ResolveError::Poisoned);
        }
        let len = usize::try_from(piece.range.size()).map_err(|_| ResolveError::Overflow)?;
        piece.window.slice(piece.offset, len).ok_or(ResolveError::Hole)
    }

    /// Resolves like [`Burst::slice`], over any number of contiguous pieces, and appends them to `out`. On an
    /// error `out` may hold the pieces before it.
    pub fn sg<'s>(
        &'s self,
        iova: Iova,
        len: u32,
        perm: Perm,
        out: &mut SgList<'s>,
    ) -> Result<(), ResolveError> {
        self.walk(iova, len, perm, |_, _, slice| {
            out.push(slice);
            Ok(())
        })
    }

    /// Calls `each` with every piece of the range, the offset of the range's part in it, and that part's memory.
    fn walk<'s>(
        &'s self,
        iova: Iova,
        len: u32,
        perm: Perm,
        mut each: impl FnMut(Found<'s>, u64, GuestSlice<'s>) -> Result<(), ResolveError>,
    ) -> Result<(), ResolveError> {
        let range = checked_range(iova, len)?;
        let mut at = iova;
        loop {
            let (found, memory) = self.piece_at(at, perm)?;
            let piece = found.piece();
            let end = piece.range.last().min(range.last());
            let offset = at.0.wrapping_sub(piece.range.first().0);
            let size = end.0.wrapping_sub(at.0).wrapping_add(1);
            let (Ok(start), Ok(size)) = (usize::try_from(offset), usize::try_from(size)) else {
                return Err(ResolveError::Overflow);
            };
            each(found, offset, memory.subslice(start, size).ok_or(ResolveError::Hole)?)?;
            if end == range.last() {
                return Ok(());
            }
            at = end.checked_add(1).ok_or(ResolveError::Overflow)?;
        }
    }

    /// Finds where `len` bytes of a file, from `at`, are mapped, whatever their IOVA: for rings, which keep their
    /// place as file and offset. Linear in the number of pieces; a ring calls it once per table.
    ///
    /// # Errors
    ///
    /// `Hole` if no area maps the start of the extent; `Split` if none maps all of it in one piece. The error of a
    /// gated, forbidden or poisoned area is reported only if no other area serves.
    pub fn extent(&self, at: &FileExtent, len: u64, perm: Perm) -> Result<GuestSlice<'_>, ResolveError> {
        let table = self.inside.table();
        if !table.attached {
            return Err(ResolveError::Detached);
        }
        let last = at.offset.checked_add(len.checked_sub(1).ok_or(ResolveError::Empty)?);
        let last = last.ok_or(ResolveError::Overflow)?;
        let mut outcome = ResolveError::Hole;
        for found in self.inside.pieces() {
            let piece = found.piece();
            let first_byte = piece.window.file_offset().saturating_add(piece.offset);
            let size = u64::try_from(piece.range.size()).unwrap_or(u64::MAX);
            let last_byte = first_byte.saturating_add(size.saturating_sub(1));
            if piece.window.file().id() != at.file.id() || at.offset < first_byte || at.offset > last_byte {
                continue;
            }
            if last > last_byte {
                outcome = ResolveError::Split;
                continue;
            }
            match self.memory_of(found, perm) {
                Ok(memory) => {
                    let offset = usize::try_from(at.offset.wrapping_sub(first_byte));
                    let len = usize::try_from(len);
                    let (Ok(offset), Ok(len)) = (offset, len) else { return Err(ResolveError::Overflow) };
                    return memory.subslice(offset, len).ok_or(ResolveError::Hole);
                }
                Err(error) => outcome = error,
            }
        }
        Err(outcome)
    }

    /// Remembers a slice that this burst returned, for later bursts. One that lies in no piece of this table is
    /// never recalled. Linear in the number of pieces.
    pub fn keep(&self, slice: GuestSlice<'_>) -> KeptSlice {
        let (address, len) = slice.as_io_vec_parts();
        let inside = |found: Found<'_>| {
            let piece = found.piece();
            let memory = piece.window.slice(piece.offset, usize::try_from(piece.range.size()).ok()?)?;
            let offset = address.checked_sub(memory.as_io_vec_parts().0)?;
            memory.subslice(offset, len)?;
            u64::try_from(offset).ok().map(|offset| KeptSlice::of(found, offset, len, self.epoch))
        };
        self.inside.pieces().find_map(inside).unwrap_or(KeptSlice::NONE)
    }

    /// A remembered slice, if it still means the same memory: the table is the one it was resolved in, and no page
    /// of any guest was lost since. Otherwise resolve again.
    #[inline(always)]
    pub fn recall(&self, kept: &KeptSlice) -> Option<GuestSlice<'_>> {
        if kept.epoch != self.epoch {
            return None;
        }
        let slice = kept.revive(self.inside.table())?;
        self.touched.set(self.touched.get() | kept.touched);
        Some(slice)
    }

    /// Differs whenever the published table differs.
    #[inline(always)]
    pub fn generation(&self) -> u64 {
        self.inside.table().id
    }

    /// Whether a window that this burst resolved from has lost a page (SIGBUS). What was read may be zeros and what
    /// was written is lost: fail the request, and ask before anything is published to the guest.
    #[inline(always)]
    pub fn poisoned(&self) -> bool {
        poison_epoch() != self.epoch && self.touched_poison()
    }

    #[cold]
    fn touched_poison(&self) -> bool {
        let touched = self.touched.get();
        let mut windows = self.inside.table().pieces.iter().map(|piece| &piece.window);
        windows.any(|window| touched & window_bit(window) != 0 && window.poisoned())
    }

    /// Takes a hold on `len` bytes at `iova` that outlives the burst. All or nothing. The device records it before
    /// the burst ends.
    pub fn pin(&self, iova: Iova, len: u32, perm: Perm) -> Result<Pin, ResolveError> {
        let mut pinned = Pinned::new(&self.inside);
        self.walk(iova, len, perm, |found, offset, slice| {
            if pinned.add(found, offset, slice.len()) { Ok(()) } else { Err(ResolveError::Overflow) }
        })?;
        Ok(Pin::new(pinned))
    }
}

impl Drop for Burst<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        lane::burst_left();
    }
}

fn checked_range(iova: Iova, len: u32) -> Result<IovaRange, ResolveError> {
    if len == 0 {
        return Err(ResolveError::Empty);
    }
    IovaRange::with_len(iova, u64::from(len)).map_err(|_| ResolveError::Overflow)
}
