//! UNSAFETY: why this file exists: a resolved address is remembered without borrowing the table, across lookups of
//! one burst and across bursts. It is turned back into a slice only inside a burst that reads the very same table,
//! which holds the window that the address lies in.

use mdev_dma::{GuestSlice, HostWindow};

use crate::{sys::published::Found, table::Table};

/// A resolved piece of guest memory, valid for one table. Not accessible by itself: see `Burst::recall`.
#[derive(Copy, Clone, Debug)]
pub struct KeptSlice {
    address: usize,
    len: usize,
    table: u64,
    /// Poison epoch at which it was resolved.
    pub(crate) epoch: u64,
    /// The window it lies in, as `window_bit` says.
    pub(crate) touched: u64,
}

impl KeptSlice {
    /// One that no table revives.
    pub(crate) const NONE: KeptSlice = KeptSlice { address: 0, len: 0, table: 0, epoch: 0, touched: 0 };

    /// Remembers `len` bytes at `offset` of a piece; `NONE` if they do not lie in it.
    pub(crate) fn of(found: Found<'_>, offset: u64, len: usize, epoch: u64) -> Self {
        let piece = found.piece();
        let within = u128::from(offset).saturating_add(len as u128) <= piece.range.size();
        let at = piece.offset.checked_add(offset).filter(|_| within);
        let parts = at.and_then(|at| piece.window.slice(at, len)).map(|slice| slice.as_io_vec_parts());
        match parts {
            Some((address, len)) => KeptSlice {
                address,
                len,
                table: found.inside().table().id,
                epoch,
                touched: window_bit(&piece.window),
            },
            None => Self::NONE,
        }
    }

    /// The slice again, if `table` is the table it was resolved in.
    #[inline(always)]
    pub(crate) fn revive<'t>(&self, table: &'t Table) -> Option<GuestSlice<'t>> {
        if self.table != table.id {
            return None;
        }
        // SAFETY: ids are unique, so `table` is the table that `of` found the piece in, which holds the window (and
        // so the mapping) for as long as it lives, that is for `'t`. `NONE` has an id that no table has.
        Some(unsafe { GuestSlice::from_raw_parts(self.address, self.len) })
    }
}

/// A window's bit in the set of those that a burst touched, hashed by address. Two windows may share one.
#[inline(always)]
pub(crate) fn window_bit(window: &HostWindow) -> u64 {
    1 << ((std::ptr::from_ref(window).addr() >> 7) & 63)
}
