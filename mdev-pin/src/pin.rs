//! An owned hold on guest memory, for I/O that outlives the burst.

use mdev_dma::GuestSlice;

use crate::sys::pinned::Pinned;

/// A live hold on a range of guest memory. While it exists the memory stays mapped here and no unmap of its area
/// succeeds. Drop it soon after `AccessOps::on_unmap` named its range.
///
/// An unmap that revokes ([`crate::Past::Revoke`]) does not wait for ever: past its deadline the pin is *void*. Its slices
/// are still memory, but not the guest's: what is written is seen by nobody, what is read is zeros or what was written.
///
/// Taken by [`crate::Burst::pin`]. It must be recorded by the device before the burst ends: that is what makes
/// "no unrecorded pin exists" true once an unmap's grace is over.
pub struct Pin {
    pinned: Pinned,
}

impl Pin {
    pub(crate) fn new(pinned: Pinned) -> Self {
        Pin { pinned }
    }

    /// The memory, in order of IOVA.
    pub fn slices(&self) -> impl Iterator<Item = GuestSlice<'_>> {
        self.pinned.slices()
    }

    /// Whether its memory has lost a page (the file was truncated, or memory ran out). What was read may be zeros, and what
    /// was written lost: ask after the last access, and before anything is shown to the guest; then fail the request.
    pub fn poisoned(&self) -> bool {
        self.slices().any(|slice| slice.poisoned())
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.slices().map(|slice| slice.len()).sum()
    }

    /// Never: an empty range cannot be pinned.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pin").field("len", &self.len()).finish()
    }
}
