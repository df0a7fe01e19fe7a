//! An area: a range of device addresses and the place where its bytes are.

use crate::{Extent, Iova, IovaRange, Perm, Ranged};

/// A range of device addresses and what backs it. It may start at any byte of either.
#[derive(Clone, Debug)]
pub struct Area {
    /// The device addresses.
    pub range: IovaRange,
    /// Where the first byte is.
    pub extent: Extent,
    /// What the device may do here.
    pub perm: Perm,
    /// Where the area's first byte falls in the dirty log: a byte offset in guest physical memory, which differs
    /// from the IOVA behind an IOMMU. `None`: writes here are not logged.
    pub log: Option<u64>,
}

impl Area {
    /// Where the byte at `at` is; `None` outside the area.
    pub fn extent_at(&self, at: Iova) -> Option<Extent> {
        self.extent.checked_add(self.range.offset_of(at)?)
    }

    /// Whether every byte of `range` is in both areas, in the same place of the same file with the same permission:
    /// a table that changes from one area to the other changes nothing there.
    pub fn translates_like(&self, other: &Area, range: IovaRange) -> bool {
        if self.perm != other.perm || !self.range.contains_range(range) || !other.range.contains_range(range)
        {
            return false;
        }
        match (self.extent_at(range.first()), other.extent_at(range.first())) {
            (Some(mine), Some(theirs)) => mine.same_place(&theirs),
            _ => false,
        }
    }
}

impl Ranged for Area {
    #[inline]
    fn range(&self) -> IovaRange {
        self.range
    }
}

#[cfg(test)]
mod tests;
