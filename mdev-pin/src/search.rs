//! Lookups that a section's hint does not answer: what was hit of late, the table, and why it answers no.
//!
//! Everything here takes the section by value, see [`Inside`].

use mdev_dma::{GuestSlice, Iova, IovaRange, Perm, Ranged};

use crate::{
    error::ResolveError,
    parked::Place,
    pin::Pin,
    sys::{piece::Found, pinned::Pinned, published::Inside},
    view::Elsewhere,
    whole::{Stitched, Stretch},
};

impl<'s> Inside<'s> {
    /// `len` bytes at `iova` in one piece, which is remembered. Cold so that a loop of hits jumps over no call.
    #[cold]
    #[inline(never)]
    pub fn search(self, iova: Iova, len: u32, perm: Perm) -> Result<GuestSlice<'s>, ResolveError> {
        if self.recall_at(iova)
            && let Some(slice) = self.hint().slice(iova, len, perm)
        {
            return Ok(slice);
        }
        let range = checked_range(iova, len)?;
        let found = self.piece_at(iova, perm)?;
        let piece = found.piece().range();
        if range.last() > piece.last() {
            self.walk(range, perm, |_, _, _| Ok::<(), ResolveError>(()))?;
            return Err(ResolveError::Split);
        }
        self.remember(found, iova);
        Ok(found.memory(iova.0.wrapping_sub(piece.first().0), u64::from(len)))
    }

    /// Whether what was hit of late in the page of `iova` is what is remembered now; the burst touches its window then.
    #[inline(always)]
    fn recall_at(self, iova: Iova) -> bool {
        let recalled = self.recall(iova);
        if recalled {
            self.touch(self.hint().window_bit);
        }
        recalled
    }

    /// The piece at `iova`, which may be touched in this direction.
    #[inline(always)]
    pub fn piece_at(self, iova: Iova, perm: Perm) -> Result<Found<'s>, ResolveError> {
        match Found::at(self, iova) {
            Some(found) => match self.permitted(found, perm) {
                Ok(()) => Ok(found),
                Err(error) => Err(self.refused(error, Place::At(iova), perm)),
            },
            None => Err(self.absent(iova, perm)),
        }
    }

    /// A stretch that the space keeps whole by a stitch; `Split` if there is none.
    #[cold]
    pub fn whole(
        self,
        stretch: &Stretch,
        perm: Perm,
    ) -> Result<(GuestSlice<'s>, &'s Stitched), ResolveError> {
        let stitched = self.table().stitched.iter().find(|stitched| stitched.is(stretch));
        let stitched = stitched.ok_or(ResolveError::Split)?;
        if !stitched.perm.contains(perm) {
            return Err(ResolveError::Permission);
        }
        self.touch(stitched.window_bit());
        if stitched.stitch.poisoned() {
            return Err(ResolveError::Poisoned);
        }
        let len = usize::try_from(stitched.stitch.len()).map_err(|_| ResolveError::Split)?;
        Ok((stitched.stitch.slice(0, len).ok_or(ResolveError::Split)?, stitched))
    }

    /// The area at `iova` that is not host memory.
    pub fn elsewhere_at(self, iova: Iova) -> Option<&'s Elsewhere> {
        self.table().elsewhere.lookup(iova)
    }

    /// Why there is no piece at `iova`.
    #[cold]
    fn absent(self, iova: Iova, perm: Perm) -> ResolveError {
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
    pub fn refused(self, error: ResolveError, place: Place, perm: Perm) -> ResolveError {
        let attached = self.table().attached;
        if matches!(error, ResolveError::Hole | ResolveError::Gated | ResolveError::Permission) {
            self.missed(place, perm);
        }
        if attached { error } else { ResolveError::Detached }
    }

    /// Whether a piece may be touched in this direction; from here on the burst has touched its window.
    #[inline(always)]
    pub fn permitted(self, found: Found<'s>, perm: Perm) -> Result<(), ResolveError> {
        let piece = found.piece();
        if piece.gated() {
            return Err(ResolveError::Gated);
        }
        if !piece.perm().contains(perm) {
            return Err(ResolveError::Permission);
        }
        self.touch(piece.window_bit());
        if self.table().clean_at != Some(self.epoch()) && piece.window().poisoned() {
            return Err(ResolveError::Poisoned);
        }
        Ok(())
    }

    /// Calls `each` with every piece of the range, and offset and length of the range's part in it.
    #[inline(always)]
    pub fn walk<E: From<ResolveError>>(
        self,
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

    /// Pins `len` bytes at `iova`, over any number of pieces.
    #[inline(never)]
    pub fn search_and_pin(self, iova: Iova, len: u32, perm: Perm) -> Result<Pin, ResolveError> {
        if self.recall_at(iova)
            && let Some(pinned) = Pinned::hit(self, iova, len, perm)
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
    pub fn hold(
        self,
        pinned: &mut Option<Pinned>,
        found: Found<'s>,
        offset: u64,
        len: u64,
    ) -> Result<(), ResolveError> {
        self.remember(found, Iova(found.piece().first().wrapping_add(offset)));
        Pinned::add(pinned, found, offset, len).ok_or_else(|| self.uncounted())
    }
}

/// The addresses of `len` bytes at `iova`.
#[inline(always)]
pub fn checked_range(iova: Iova, len: u32) -> Result<IovaRange, ResolveError> {
    if len == 0 {
        return Err(ResolveError::Empty);
    }
    IovaRange::with_len(iova, u64::from(len)).map_err(|_| ResolveError::Overflow)
}
