//! One poll of one queue: IOVAs resolve to guest slices, without a count, a lock or a wait.

use std::{cell::Cell, marker::PhantomData, sync::Arc};

use mdev_dma::{FileExtent, GuestSlice, Iova, IovaRange, Perm, Ranged, SgList, poison_epoch};

use crate::{
    error::ResolveError,
    lane::{self, Lane},
    parked::Place,
    pin::Pin,
    sys::{
        kept::KeptSlice,
        piece::Found,
        pinned::Pinned,
        published::{Inside, Reader},
        snapshot::Snapshot,
    },
    view::Elsewhere,
};

/// Inside a read-side section of an access. Slices borrow it; it ends with the poll.
///
/// Its lane remembers the piece of memory that was hit last, which serves most lookups of a burst, and those of the pages
/// hit of late, which serve most of the others. The burst remembers which windows it resolved from, to tell whether one
/// of them lost a page meanwhile.
pub struct Burst<'l> {
    inside: Inside<'l>,
    /// A set of windows, see `Piece::window_bit`; a collision can only make [`Burst::poisoned`] too careful.
    touched: Cell<u64>,
    _this_thread: PhantomData<*const ()>,
}

impl<'l> Burst<'l> {
    #[inline(always)]
    pub(crate) fn new(lane: &'l mut Lane) -> Self {
        Burst::of(&mut lane.reader)
    }

    #[inline(always)]
    pub(crate) fn of(reader: &'l mut Reader) -> Self {
        lane::burst_entered();
        let inside = reader.enter();
        // What an earlier burst remembered may be hit without a search.
        let touched = Cell::new(inside.hint().window_bit);
        Burst { inside, touched, _this_thread: PhantomData }
    }

    /// Resolves `len` bytes at `iova` for the direction `perm`, as one piece of host memory.
    ///
    /// # Errors
    ///
    /// Those of [`ResolveError`]; `Split` if the bytes are mapped but not contiguous here: use [`Burst::sg`].
    #[inline(always)]
    pub fn slice(&self, iova: Iova, len: u32, perm: Perm) -> Result<GuestSlice<'_>, ResolveError> {
        match self.inside.hint().slice(iova, len, perm) {
            Some(slice) => Ok(slice),
            None => self.search(iova, len, perm),
        }
    }

    #[inline(never)]
    fn search(&self, iova: Iova, len: u32, perm: Perm) -> Result<GuestSlice<'_>, ResolveError> {
        if self.recall_at(iova)
            && let Some(slice) = self.inside.hint().slice(iova, len, perm)
        {
            return Ok(slice);
        }
        let range = checked_range(iova, len)?;
        let found = self.piece_at(iova, perm)?;
        let piece = found.piece().range();
        if range.last() > piece.last() {
            self.sg(iova, len, perm, &mut SgList::new())?;
            return Err(ResolveError::Split);
        }
        self.inside.remember(found, iova);
        Ok(found.memory(iova.0.wrapping_sub(piece.first().0), u64::from(len)))
    }

    /// Whether what was hit of late in the page of `iova` is what is remembered now; the burst touches its window then.
    #[inline(always)]
    fn recall_at(&self, iova: Iova) -> bool {
        let recalled = self.inside.recall(iova);
        if recalled {
            self.touched.set(self.touched.get() | self.inside.hint().window_bit);
        }
        recalled
    }

    /// The piece at `iova`, which may be touched in this direction.
    #[inline(always)]
    fn piece_at(&self, iova: Iova, perm: Perm) -> Result<Found<'_>, ResolveError> {
        match Found::at(&self.inside, iova) {
            Some(found) => match self.permitted(found, perm) {
                Ok(()) => Ok(found),
                Err(error) => Err(self.refused(error, Place::At(iova), perm)),
            },
            None => Err(self.absent(iova, perm)),
        }
    }

    /// The piece at `iova`, whatever it permits; for control paths.
    pub(crate) fn found_at(&self, iova: Iova) -> Result<Found<'_>, ResolveError> {
        self.piece_at(iova, Perm::empty())
    }

    /// The area at `iova` that is not host memory.
    pub(crate) fn elsewhere_at(&self, iova: Iova) -> Option<&Elsewhere> {
        self.inside.table().elsewhere.lookup(iova)
    }

    /// Why there is no piece at `iova`.
    #[cold]
    fn absent(&self, iova: Iova, perm: Perm) -> ResolveError {
        let error = match self.elsewhere_at(iova) {
            None => ResolveError::Hole,
            Some(elsewhere) if elsewhere.gated => ResolveError::Gated,
            Some(elsewhere) if !elsewhere.perm.contains(perm) => ResolveError::Permission,
            Some(_) => ResolveError::Elsewhere,
        };
        self.refused(error, Place::At(iova), perm)
    }

    /// Leaves a note of what is not there, or not for this, for a queue that wants to wait for it.
    #[cold]
    fn refused(&self, error: ResolveError, place: Place, perm: Perm) -> ResolveError {
        let attached = self.inside.table().attached;
        if matches!(error, ResolveError::Hole | ResolveError::Gated | ResolveError::Permission) {
            self.inside.missed(place, perm);
        }
        if attached { error } else { ResolveError::Detached }
    }

    /// Whether a piece may be touched in this direction; from here on the burst has touched its window.
    #[inline(always)]
    fn permitted(&self, found: Found<'_>, perm: Perm) -> Result<(), ResolveError> {
        let piece = found.piece();
        if piece.gated() {
            return Err(ResolveError::Gated);
        }
        if !piece.perm().contains(perm) {
            return Err(ResolveError::Permission);
        }
        self.touched.set(self.touched.get() | piece.window_bit());
        if self.inside.table().clean_at != Some(self.inside.epoch()) && piece.window().poisoned() {
            return Err(ResolveError::Poisoned);
        }
        Ok(())
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
        self.walk(checked_range(iova, len)?, perm, |found, offset, len| {
            out.push(found.memory(offset, len));
            Ok::<(), ResolveError>(())
        })
    }

    /// Calls `each` with every piece of the range, and offset and length of the range's part in it.
    #[inline(always)]
    pub(crate) fn walk<'s, E: From<ResolveError>>(
        &'s self,
        range: IovaRange,
        perm: Perm,
        mut each: impl FnMut(Found<'s>, u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = range.first();
        loop {
            let found = self.piece_at(at, perm)?;
            let piece = found.piece().range();
            let end = piece.last().min(range.last());
            let size = end.0.wrapping_sub(at.0).wrapping_add(1);
            each(found, at.0.wrapping_sub(piece.first().0), size)?;
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
        let last = at.offset.checked_add(len.checked_sub(1).ok_or(ResolveError::Empty)?);
        let last = last.ok_or(ResolveError::Overflow)?;
        let mut outcome = ResolveError::Hole;
        for found in Found::all(&self.inside).filter(|found| found.piece().maps(at.file.id(), at.offset)) {
            let (first_byte, last_byte) = found.piece().file_bytes();
            if last > last_byte {
                outcome = ResolveError::Split;
                continue;
            }
            match self.permitted(found, perm) {
                Ok(()) => return Ok(found.memory(at.offset.wrapping_sub(first_byte), len)),
                Err(error) => outcome = error,
            }
        }
        Err(self.refused(outcome, Place::of(at), perm))
    }

    /// As [`Burst::slice`], with what later bursts recall it by, and across areas too where they continue each other in
    /// host memory as they do in addresses: what a ring of several pages behind an IOMMU looks like.
    pub fn slice_to_keep(
        &self,
        iova: Iova,
        len: u32,
        perm: Perm,
    ) -> Result<(GuestSlice<'_>, KeptSlice), ResolveError> {
        let range = checked_range(iova, len)?;
        // Every byte, for what it says of those that are not there.
        self.walk(range, perm, |_, _, _| Ok::<(), ResolveError>(()))?;
        let found = self.piece_at(iova, perm)?;
        let offset = iova.0.wrapping_sub(found.piece().first());
        let slice = found.through(offset, len).ok_or(ResolveError::Split)?;
        Ok((slice, KeptSlice::through(found, slice, self.inside.epoch())))
    }

    /// Remembers a slice that this burst returned, for later bursts. One that lies in no piece of this table is
    /// never recalled. Linear in the number of pieces.
    pub fn keep(&self, slice: GuestSlice<'_>) -> KeptSlice {
        let (address, len) = slice.as_io_vec_parts();
        let inside = |found: Found<'_>| {
            let memory = found.memory(0, u64::MAX);
            let offset = address.checked_sub(memory.as_io_vec_parts().0)?;
            memory.subslice(offset, len)?;
            Some(KeptSlice::of(found, offset as u64, len as u64, self.inside.epoch()))
        };
        Found::all(&self.inside).find_map(inside).unwrap_or(KeptSlice::NONE)
    }

    /// A remembered slice, if it still means the same memory: the table is the one it was resolved in, and no page
    /// of any guest was lost since. Otherwise resolve again.
    #[inline(always)]
    pub fn recall(&self, kept: &KeptSlice) -> Option<GuestSlice<'_>> {
        if kept.epoch != self.inside.epoch() {
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
        poison_epoch() != self.inside.epoch() && self.touched_poison()
    }

    #[cold]
    fn touched_poison(&self) -> bool {
        let touched = self.touched.get();
        let mut pieces = self.inside.table().pieces.iter();
        pieces.any(|piece| touched & piece.window_bit() != 0 && piece.window().poisoned())
    }

    /// Takes a hold on `len` bytes at `iova` that outlives the burst. All or nothing. The device records it before
    /// the burst ends. Only through accesses that were created with [`Access::new`](crate::Access::new), others answer
    /// `NotPinning`: what it may pin was charged when it was attached or mapped.
    #[inline]
    pub fn pin(&self, iova: Iova, len: u32, perm: Perm) -> Result<Pin, ResolveError> {
        match Pinned::hit(&self.inside, iova, len, perm) {
            Some(pinned) => Ok(Pin::new(pinned)),
            None => self.search_and_pin(iova, len, perm),
        }
    }

    #[inline(never)]
    fn search_and_pin(&self, iova: Iova, len: u32, perm: Perm) -> Result<Pin, ResolveError> {
        if self.recall_at(iova)
            && let Some(pinned) = Pinned::hit(&self.inside, iova, len, perm)
        {
            return Ok(Pin::new(pinned));
        }
        let mut pinned: Option<Pinned> = None;
        self.walk(checked_range(iova, len)?, perm, |found, offset, len| {
            self.hold(&mut pinned, found, offset, len)
        })?;
        pinned.map(Pin::new).ok_or(ResolveError::Empty)
    }

    /// Adds a part of a piece to a pin.
    pub(crate) fn hold(
        &self,
        pinned: &mut Option<Pinned>,
        found: Found<'_>,
        offset: u64,
        len: u64,
    ) -> Result<(), ResolveError> {
        self.inside.remember(found, Iova(found.piece().first().wrapping_add(offset)));
        Pinned::add(pinned, found, offset, len).ok_or_else(|| self.inside.uncounted())
    }

    /// Adds a snapshot of bytes of an area to a pin.
    pub(crate) fn hold_snapshot(
        &self,
        pinned: &mut Option<Pinned>,
        area: &Elsewhere,
        snapshot: &Arc<Snapshot>,
    ) -> Result<(), ResolveError> {
        Pinned::add_snapshot(pinned, &self.inside, area.slot.number(), snapshot)
            .ok_or_else(|| self.inside.uncounted())
    }
}

impl Drop for Burst<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        lane::burst_left();
    }
}

#[inline(always)]
fn checked_range(iova: Iova, len: u32) -> Result<IovaRange, ResolveError> {
    if len == 0 {
        return Err(ResolveError::Empty);
    }
    IovaRange::with_len(iova, u64::from(len)).map_err(|_| ResolveError::Overflow)
}
