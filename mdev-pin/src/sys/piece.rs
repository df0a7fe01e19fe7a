//! UNSAFETY: why this file exists: the host address of a piece of guest memory is kept as a number beside the window
//! that makes it valid, so that a lookup need not follow the window. Only this file makes pieces and the slices of
//! them, and only for as long as a table that holds the piece is being read.

use std::sync::Arc;

use mdev_dma::{FileId, GuestSlice, HostWindow, Iova, IovaRange, Perm, Ranged, Segment};

use crate::{sys::published::Inside, table::Table};

/// A part of an area that lies in one window, as lanes see it.
#[derive(Clone)]
pub struct Piece {
    range: IovaRange,
    /// Of `range.first()`; `range.size()` bytes from here lie in the window.
    address: usize,
    window: Arc<HostWindow>,
    /// Where pins on it are counted.
    slot: u32,
    perm: Perm,
    gated: bool,
}

impl Piece {
    /// `None` if the segment does not lie in its window, which the windows of `mdev_dma` never give.
    pub fn new(segment: &Segment, perm: Perm, slot: u32, gated: bool) -> Option<Piece> {
        let size = usize::try_from(segment.range.size()).ok()?;
        let (address, _) = segment.window.slice(segment.offset, size)?.as_io_vec_parts();
        Some(Piece { range: segment.range, address, window: segment.window.clone(), slot, perm, gated })
    }

    pub fn perm(&self) -> Perm {
        self.perm
    }

    pub fn gated(&self) -> bool {
        self.gated
    }

    pub fn slot(&self) -> u32 {
        self.slot
    }

    pub fn window(&self) -> &Arc<HostWindow> {
        &self.window
    }

    /// The IOVA of its first byte.
    pub fn first(&self) -> u64 {
        self.range.first().0
    }

    /// Where in the window its first byte is.
    pub fn window_offset(&self) -> u64 {
        let base = self.window.slice(0, 0).map_or(self.address, |slice| slice.as_io_vec_parts().0);
        self.address.saturating_sub(base) as u64
    }

    /// Where its bytes are in the file, first and last.
    pub fn file_bytes(&self) -> (u64, u64) {
        let first = self.window.file_offset().saturating_add(self.window_offset());
        (first, first.saturating_add(self.last_offset()))
    }

    /// Whether the byte at `offset` of a file lies in it.
    pub fn maps(&self, file: FileId, offset: u64) -> bool {
        let (first, last) = self.file_bytes();
        self.window.file().id() == file && offset >= first && offset <= last
    }

    /// Offset of its last byte.
    #[inline(always)]
    fn last_offset(&self) -> u64 {
        self.range.last().0.wrapping_sub(self.range.first().0)
    }

    /// Bytes from `offset` to the end, at most `len`; 0 behind the end.
    #[inline(always)]
    fn clamp(&self, offset: u64, len: u64) -> u64 {
        match self.last_offset().checked_sub(offset) {
            Some(behind) => len.min(behind.saturating_add(1)),
            None => 0,
        }
    }

    /// The window's bit in the set of those that a burst touched, hashed by address. Two windows may share one.
    #[inline(always)]
    pub fn window_bit(&self) -> u64 {
        1 << ((Arc::as_ptr(&self.window).addr() >> 7) & 63)
    }
}

impl Ranged for Piece {
    #[inline(always)]
    fn range(&self) -> IovaRange {
        self.range
    }
}

/// A piece that is proven to be of the table of a section: only [`Inside`] gives it out.
#[derive(Copy, Clone)]
pub struct Found<'s> {
    piece: &'s Piece,
    inside: Inside<'s>,
}

impl<'s> Found<'s> {
    /// The piece at `iova` of the section's table.
    #[inline(always)]
    pub fn at(inside: Inside<'s>, iova: Iova) -> Option<Self> {
        inside.table().pieces.lookup(iova).map(|piece| Found { piece, inside })
    }

    /// All pieces of the section's table, by IOVA.
    pub fn all(inside: Inside<'s>) -> impl Iterator<Item = Found<'s>> {
        inside.table().pieces.iter().map(move |piece| Found { piece, inside })
    }

    /// The piece itself.
    #[inline(always)]
    pub fn piece(&self) -> &'s Piece {
        self.piece
    }

    /// The section it was found in.
    #[inline(always)]
    pub fn inside(&self) -> Inside<'s> {
        self.inside
    }

    /// At most `len` bytes at `offset` of the piece; fewer where it ends.
    #[inline(always)]
    pub fn memory(&self, offset: u64, len: u64) -> GuestSlice<'s> {
        let len = self.piece.clamp(offset, len);
        let address = self.piece.address.wrapping_add(if len == 0 { 0 } else { offset as usize });
        // SAFETY: `Piece::new` took the address from a slice of the whole range, and `clamp` keeps within that. The
        // window is held by the piece, the piece by the table, and the table is read during `'s`.
        unsafe { GuestSlice::from_raw_parts(address, len as usize) }
    }

    /// `len` bytes at `offset` of the piece and of those that continue it, in addresses and in the same window; `None`
    /// where they do not. Whether those may be touched is for the caller to find out.
    pub fn through(&self, offset: u64, len: u32) -> Option<GuestSlice<'s>> {
        let end = offset.checked_add(u64::from(len))?;
        let (mut last, mut covered) = (self.piece, self.piece.last_offset().checked_add(1)?);
        while covered < end {
            let next = self.inside.table().pieces.lookup(last.range.last().checked_add(1)?)?;
            let continues = Arc::ptr_eq(&next.window, &last.window)
                && next.address == self.piece.address.checked_add(usize::try_from(covered).ok()?)?;
            if !continues {
                return None;
            }
            covered = covered.checked_add(next.last_offset())?.checked_add(1)?;
            last = next;
        }
        let address = self.piece.address.wrapping_add(offset as usize);
        // SAFETY: as in `memory` for each of the pieces: they lie side by side in one window, from the first one's
        // address on, and `offset + len` is within them. Each of them holds the window.
        Some(unsafe { GuestSlice::from_raw_parts(address, len as usize) })
    }
}

/// The first address that is negative as a signed number.
const UPPER_HALF: u64 = 1 << 63;

/// The piece hit last, flattened so that a hit costs two comparisons and an addition; for use in one section.
#[derive(Copy, Clone)]
pub struct Hint<'s> {
    first: u64,
    /// The IOVA behind the bytes that may be read, and written: 0 where the piece does not permit it.
    readable: u64,
    writable: u64,
    /// What makes an IOVA an address.
    delta: usize,
    /// See [`Piece::window_bit`].
    pub window_bit: u64,
    /// Where pins on the piece are counted.
    pub slot: u32,
    /// The section's table outlives the hint.
    _table: std::marker::PhantomData<&'s Table>,
}

impl<'s> Hint<'s> {
    /// One that nothing hits.
    pub const NONE: Self = Hint {
        first: 0,
        readable: 0,
        writable: 0,
        delta: 0,
        window_bit: 0,
        slot: 0,
        _table: std::marker::PhantomData,
    };

    /// Remembers a piece that may be touched.
    #[inline(always)]
    pub fn of(found: Found<'s>) -> Self {
        let piece = found.piece;
        // Pieces in the upper half of all addresses, which no guest uses, are searched for: so a hit need not look out for an
        // end that wraps.
        let behind = piece.range.last().0.checked_add(1).filter(|behind| *behind <= UPPER_HALF);
        let if_permitted = |perm| behind.filter(|_| piece.perm.contains(perm)).unwrap_or(0);
        Hint {
            first: piece.range.first().0,
            readable: if_permitted(Perm::READ),
            writable: if_permitted(Perm::WRITE),
            delta: piece.address.wrapping_sub(piece.range.first().0 as usize),
            window_bit: piece.window_bit(),
            slot: piece.slot,
            _table: std::marker::PhantomData,
        }
    }

    /// The same with another lifetime.
    ///
    /// # Safety
    ///
    /// It is used only while the table that holds the piece is being read.
    #[inline(always)]
    pub unsafe fn for_section<'r>(self) -> Hint<'r> {
        let Hint { first, readable, writable, delta, window_bit, slot, _table } = self;
        Hint { first, readable, writable, delta, window_bit, slot, _table: std::marker::PhantomData }
    }

    /// `len` bytes at `iova`, if they lie in the piece and it permits `perm`.
    #[inline(always)]
    pub fn slice(&self, iova: Iova, len: u32, perm: Perm) -> Option<GuestSlice<'s>> {
        let limit = match (perm.contains(Perm::READ), perm.contains(Perm::WRITE)) {
            (_, false) => self.readable,
            (false, true) => self.writable,
            (true, true) => self.readable.min(self.writable),
        };
        // `first` is in the lower half unless nothing is hit, and as signed numbers those of the upper half are less.
        let below = (iova.0 as i64) < self.first as i64;
        if len == 0 || below || iova.0.wrapping_add(u64::from(len)) > limit {
            return None;
        }
        let address = self.delta.wrapping_add(iova.0 as usize);
        // SAFETY: as in `Found::memory`: all bytes lie in the piece. It ends at `limit` and begins at `first`, neither beyond
        // the upper half's begin; so `iova` is in the lower half, and the sum has not wrapped.
        Some(unsafe { GuestSlice::from_raw_parts(address, len as usize) })
    }
}
