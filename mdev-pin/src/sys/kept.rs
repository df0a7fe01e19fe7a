//! UNSAFETY: why this file exists: a resolved address is remembered without borrowing the table, across lookups of
//! one burst and across bursts. It is turned back into a slice only inside a burst that reads the very same table,
//! which holds the window or the stitch that the address lies in.

use std::sync::Arc;

use mdev_dma::GuestSlice;

use crate::{
    sys::{piece::Found, published::Inside},
    table::Table,
    whole::Stitched,
};

/// A resolved piece of guest memory, valid for one table. Not accessible by itself: see `Burst::recall`.
#[derive(Copy, Clone, Debug)]
pub struct KeptSlice {
    address: usize,
    len: usize,
    table: u64,
    /// Poison epoch at which it was resolved.
    pub(crate) epoch: u64,
    /// The window it lies in, as `Piece::window_bit` says.
    pub(crate) touched: u64,
}

impl KeptSlice {
    /// One that no table revives.
    pub(crate) const NONE: KeptSlice = KeptSlice { address: 0, len: 0, table: 0, epoch: 0, touched: 0 };

    /// Remembers at most `len` bytes at `offset` of a piece.
    pub(crate) fn of(found: Found<'_>, offset: u64, len: u64, epoch: u64) -> Self {
        let (address, len) = found.memory(offset, len).as_io_vec_parts();
        let table = found.inside().table().id;
        KeptSlice { address, len, table, epoch, touched: found.piece().window_bit() }
    }

    /// Remembers a slice that begins in a piece and lies in its window.
    pub(crate) fn through(found: Found<'_>, slice: GuestSlice<'_>, epoch: u64) -> Self {
        let (address, len) = slice.as_io_vec_parts();
        let table = found.inside().table().id;
        KeptSlice { address, len, table, epoch, touched: found.piece().window_bit() }
    }

    /// Remembers `len` bytes at `offset` of a stitch of the section's table; `NONE` if they do not lie in it.
    pub(crate) fn stitched(inside: Inside<'_>, at: &Stitched, offset: u64, len: usize, epoch: u64) -> Self {
        // So the slice is known to be of something that the table holds.
        let held = inside.table().stitched.iter().any(|stitched| Arc::ptr_eq(&stitched.stitch, &at.stitch));
        let Some(slice) = at.stitch.slice(offset, len).filter(|_| held) else { return Self::NONE };
        let (address, len) = slice.as_io_vec_parts();
        KeptSlice { address, len, table: inside.table().id, epoch, touched: at.window_bit() }
    }

    /// The slice again, if `table` is the table it was resolved in.
    #[inline(always)]
    pub(crate) fn revive<'t>(&self, table: &'t Table) -> Option<GuestSlice<'t>> {
        if self.table != table.id {
            return None;
        }
        // SAFETY: ids are unique, so `table` is the table that the piece or the stitch was found in, which holds the window or
        // the stitch (and so the mapping) for as long as it lives, that is for `'t`. `NONE` has an id that no table has.
        Some(unsafe { GuestSlice::from_raw_parts(self.address, self.len) })
    }
}
