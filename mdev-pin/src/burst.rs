//! One poll of one queue: IOVAs resolve to guest slices, without a count, a lock or a wait.

use std::{marker::PhantomData, sync::Arc};

use mdev_dma::{FileExtent, GuestSlice, Iova, Perm, SgList, poison_epoch};

use crate::{
    error::ResolveError,
    lane::{self, Lane},
    parked::Place,
    pin::Pin,
    search::checked_range,
    sys::{
        kept::KeptSlice,
        piece::Found,
        pinned::Pinned,
        published::{Inside, Reader, Section},
        snapshot::Snapshot,
    },
    view::Elsewhere,
    whole::{Stitched, Stretch},
};

/// Inside a read-side section of an access. Slices borrow it; it ends with the poll.
///
/// Its lane remembers the piece of memory that was hit last, which serves most lookups of a burst, and those of the pages
/// hit of late, which serve most of the others. The burst remembers which windows it resolved from, to tell whether one
/// of them lost a page meanwhile.
pub struct Burst<'l> {
    section: Section<'l>,
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
        Burst { section: reader.enter(), _this_thread: PhantomData }
    }

    /// What lookups go through.
    #[inline(always)]
    pub(crate) fn inside(&self) -> Inside<'_> {
        self.section.inside()
    }

    /// Resolves `len` bytes at `iova` for the direction `perm`, as one piece of host memory.
    ///
    /// # Errors
    ///
    /// Those of [`ResolveError`]; `Split` if the bytes are mapped but not contiguous here: use [`Burst::sg`].
    #[inline(always)]
    pub fn slice(&self, iova: Iova, len: u32, perm: Perm) -> Result<GuestSlice<'_>, ResolveError> {
        let inside = self.inside();
        match inside.hint().slice(iova, len, perm) {
            Some(slice) => Ok(slice),
            None => inside.search(iova, len, perm),
        }
    }

    /// The piece at `iova`, whatever it permits; for control paths.
    pub(crate) fn found_at(&self, iova: Iova) -> Result<Found<'_>, ResolveError> {
        self.inside().piece_at(iova, Perm::empty())
    }

    /// The area at `iova` that is not host memory.
    pub(crate) fn elsewhere_at(&self, iova: Iova) -> Option<&Elsewhere> {
        self.inside().elsewhere_at(iova)
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
        self.inside().walk(checked_range(iova, len)?, perm, |found, offset, len| {
            out.push(found.memory(offset, len));
            Ok::<(), ResolveError>(())
        })
    }

    /// Finds where `len` bytes of a file, from `at`, are mapped, whatever their IOVA: for rings, which keep their
    /// place as file and offset. Linear in the number of pieces; a ring calls it once per table.
    ///
    /// # Errors
    ///
    /// `Hole` if no area maps the start of the extent; `Split` if none maps all of it in one piece, and it is not kept whole
    /// either ([`crate::Ioas::keep_whole`]). The error of a gated, forbidden or poisoned area is reported only if no other area
    /// serves.
    pub fn extent(&self, at: &FileExtent, len: u64, perm: Perm) -> Result<GuestSlice<'_>, ResolveError> {
        let last = at.offset.checked_add(len.checked_sub(1).ok_or(ResolveError::Empty)?);
        let last = last.ok_or(ResolveError::Overflow)?;
        let mut outcome = ResolveError::Hole;
        for found in Found::all(self.inside()).filter(|found| found.piece().maps(at.file.id(), at.offset)) {
            let (first_byte, last_byte) = found.piece().file_bytes();
            if last > last_byte {
                outcome = ResolveError::Split;
                continue;
            }
            match self.inside().permitted(found, perm) {
                Ok(()) => return Ok(found.memory(at.offset.wrapping_sub(first_byte), len)),
                Err(error) => outcome = error,
            }
        }
        if outcome == ResolveError::Split {
            match self.inside().whole(&Stretch::In(at.clone(), len), perm) {
                Ok((slice, _)) => return Ok(slice),
                Err(error) => outcome = error,
            }
        }
        Err(self.inside().refused(outcome, Place::of(at), perm))
    }

    /// As [`Burst::slice`], with what later bursts recall it by, and across areas too where they continue each other in
    /// host memory as they do in addresses, or are kept whole ([`crate::Ioas::keep_whole`]): what a ring of several pages
    /// behind an IOMMU looks like.
    pub fn slice_to_keep(
        &self,
        iova: Iova,
        len: u32,
        perm: Perm,
    ) -> Result<(GuestSlice<'_>, KeptSlice), ResolveError> {
        let range = checked_range(iova, len)?;
        // Every byte, for what it says of those that are not there.
        self.inside().walk(range, perm, |_, _, _| Ok::<(), ResolveError>(()))?;
        let found = self.inside().piece_at(iova, perm)?;
        let offset = iova.0.wrapping_sub(found.piece().first());
        let (inside, epoch) = (self.inside(), self.inside().epoch());
        if let Some(slice) = found.through(offset, len) {
            return Ok((slice, KeptSlice::through(found, slice, epoch)));
        }
        let (slice, stitched) = inside.whole(&Stretch::At(range), perm)?;
        Ok((slice, KeptSlice::stitched(inside, stitched, 0, slice.len(), epoch)))
    }

    /// Remembers a slice that this burst returned, for later bursts. One that lies in no piece of this table, nor in what it
    /// keeps whole, is never recalled. Linear in the number of pieces.
    pub fn keep(&self, slice: GuestSlice<'_>) -> KeptSlice {
        let (address, len) = slice.as_io_vec_parts();
        let inside = |found: Found<'_>| {
            let memory = found.memory(0, u64::MAX);
            let offset = address.checked_sub(memory.as_io_vec_parts().0)?;
            memory.subslice(offset, len)?;
            Some(KeptSlice::of(found, offset as u64, len as u64, self.inside().epoch()))
        };
        let stitched = |stitched: &Stitched| {
            let first = stitched.stitch.slice(0, 0)?.as_io_vec_parts().0;
            let offset = address.checked_sub(first)? as u64;
            stitched.stitch.slice(offset, len)?;
            Some(KeptSlice::stitched(self.inside(), stitched, offset, len, self.inside().epoch()))
        };
        let kept = Found::all(self.inside()).find_map(inside);
        let kept = kept.or_else(|| self.inside().table().stitched.iter().find_map(stitched));
        kept.unwrap_or(KeptSlice::NONE)
    }

    /// A remembered slice, if it still means the same memory: the table is the one it was resolved in, and no page
    /// of any guest was lost since. Otherwise resolve again.
    #[inline(always)]
    pub fn recall(&self, kept: &KeptSlice) -> Option<GuestSlice<'_>> {
        if kept.epoch != self.inside().epoch() {
            return None;
        }
        let slice = kept.revive(self.inside().table())?;
        self.inside().touch(kept.touched);
        Some(slice)
    }

    /// Differs whenever the published table differs.
    #[inline(always)]
    pub fn generation(&self) -> u64 {
        self.inside().table().id
    }

    /// Whether a window that this burst resolved from has lost a page (SIGBUS). What was read may be zeros and what
    /// was written is lost: fail the request, and ask before anything is published to the guest.
    #[inline(always)]
    pub fn poisoned(&self) -> bool {
        poison_epoch() != self.inside().epoch() && self.touched_poison()
    }

    #[cold]
    fn touched_poison(&self) -> bool {
        let (touched, table) = (self.inside().touched(), self.inside().table());
        let stitched = |of: &Stitched| touched & of.window_bit() != 0 && of.stitch.poisoned();
        table.pieces.iter().any(|piece| touched & piece.window_bit() != 0 && piece.window().poisoned())
            || table.stitched.iter().any(stitched)
    }

    /// Takes a hold on `len` bytes at `iova` that outlives the burst. All or nothing. The device records it before
    /// the burst ends. Only through accesses that were created with [`Access::new`](crate::Access::new), others answer
    /// `NotPinning`: what it may pin was charged when it was attached or mapped.
    #[inline]
    pub fn pin(&self, iova: Iova, len: u32, perm: Perm) -> Result<Pin, ResolveError> {
        let inside = self.inside();
        match Pinned::hit(inside, iova, len, perm) {
            Some(pinned) => Ok(Pin::new(pinned)),
            None => inside.search_and_pin(iova, len, perm),
        }
    }

    /// Adds a snapshot of bytes of an area to a pin.
    pub(crate) fn hold_snapshot(
        &self,
        pinned: &mut Option<Pinned>,
        area: &Elsewhere,
        snapshot: &Arc<Snapshot>,
    ) -> Result<(), ResolveError> {
        Pinned::add_snapshot(pinned, self.inside(), area.slot.number(), snapshot)
            .ok_or_else(|| self.inside().uncounted())
    }
}

impl Drop for Burst<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        lane::burst_left();
    }
}
