//! What restricts the IOVAs of a space, as its user sees it: allowed and reserved ranges, alignment, the huge-page
//! option.

use mdev_dma::{Area, IovaRange, Ranged};

use crate::{
    error::IoasError,
    ioas::{Ioas, State, refuse_inside_burst},
    limits::{PAGE, RangeOwner, misaligned},
};

/// What [`Ioas::iova_ranges`] found.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct IovaRanges {
    /// How many ranges were written.
    pub count: usize,
    /// What IOVA, length and file offset of every area must be multiples of.
    pub alignment: u64,
}

impl Ioas {
    /// Writes the ranges in which areas may be mapped, which is all that is not reserved, to the front of `ranges`
    /// (`IOMMU_IOAS_IOVA_RANGES`). What is mapped already makes no difference.
    ///
    /// # Errors
    ///
    /// `TooFewRanges` \[EMSGSIZE\]: `ranges` is full, and the error says how many there are.
    pub fn iova_ranges(&self, ranges: &mut [IovaRange]) -> Result<IovaRanges, IoasError> {
        let state = self.state();
        state.alive()?;
        let mut count = 0usize;
        for hole in state.limits.holes() {
            if let Some(range) = ranges.get_mut(count) {
                *range = hole;
            }
            count = count.saturating_add(1);
        }
        if count > ranges.len() {
            return Err(IoasError::TooFewRanges { needed: count });
        }
        Ok(IovaRanges { count, alignment: state.alignment() })
    }

    /// Replaces the list of ranges in which IOVAs are allocated (`IOMMU_IOAS_ALLOW_IOVAS`); an empty list allows
    /// everything. Fixed mappings are not bound by it, but no range in it can be reserved any more. Nothing changes
    /// on an error.
    ///
    /// # Errors
    ///
    /// `Allowed` \[EINVAL\] for a range of one byte or one that overlaps another; `InUse` \[EADDRINUSE\] for one
    /// that is reserved.
    pub fn allow_iovas(&self, ranges: &[IovaRange]) -> Result<(), IoasError> {
        let mut state = self.state();
        state.alive()?;
        state.limits.allow(ranges)
    }

    /// Takes a range out of the space: nothing can be mapped there any more (`iopt_reserve_iova`). Reserved ranges
    /// may overlap.
    ///
    /// # Errors
    ///
    /// `InUse` \[EADDRINUSE\] if an area or an allowed range is there; `Busy` during a replacement of the table.
    pub fn reserve(&self, range: IovaRange, owner: RangeOwner) -> Result<(), IoasError> {
        let mut state = self.state();
        state.changeable()?;
        let area = state.areas.overlapping(range).next().map(Ranged::range);
        if let Some(by) = area.or_else(|| state.limits.allowed_in(range)) {
            return Err(IoasError::InUse { wanted: range, by });
        }
        state.limits.reserve(range, owner);
        Ok(())
    }

    /// Gives back every range that `owner` reserved (`iopt_remove_reserved_iova`), and says how many.
    pub fn unreserve(&self, owner: RangeOwner) -> usize {
        self.state().limits.unreserve(owner)
    }

    /// What IOVA, length and file offset of every area must be multiples of: the page size while an access that pins
    /// pages is attached or huge pages are off, else 1. It falls again when that ends.
    pub fn iova_alignment(&self) -> u64 {
        self.state().alignment()
    }

    /// Whether huge pages may be used (`IOMMU_OPTION_HUGE_PAGES`, get). On at first.
    pub fn huge_pages(&self) -> bool {
        !self.state().limits.small_pages
    }

    /// Switches the use of huge pages (`IOMMU_OPTION_HUGE_PAGES`, set). Off, every area must be aligned to pages.
    ///
    /// # Errors
    ///
    /// `Unaligned` \[EADDRINUSE\] if an area is not, when it is switched off; `Busy` during a replacement of the
    /// table.
    pub fn set_huge_pages(&self, on: bool) -> Result<(), IoasError> {
        let mut state = self.state();
        state.alive()?;
        if !on {
            state.can_align(PAGE)?;
        }
        state.limits.small_pages = !on;
        Ok(())
    }

    /// Ends the space (`IOMMU_DESTROY`): unmaps everything and says how many bytes that was. Every later operation
    /// on it, also through its clones, answers `Destroyed` \[ENOENT\].
    ///
    /// # Errors
    ///
    /// `Attached` \[EBUSY\] while an access is attached, `Busy` while a change is under way, `InsideBurst`.
    pub fn destroy(&self) -> Result<u64, IoasError> {
        refuse_inside_burst()?;
        let mut state = self.state();
        state.changeable()?;
        let accesses = state.accesses();
        if accesses > 0 {
            return Err(IoasError::Attached { accesses });
        }
        if state.areas.iter().any(|mapped| mapped.0.leaving) {
            return Err(IoasError::Busy);
        }
        let bytes = state.areas.iter().map(|mapped| mapped.range().size()).sum::<u128>();
        let areas = std::mem::take(&mut state.areas);
        // No access, so no lane and no pin: nobody can be reading.
        let retired = state.install(Default::default(), Default::default());
        state.destroyed = true;
        drop(state);
        drop(areas);
        self.adopt(retired);
        Ok(u64::try_from(bytes).unwrap_or(u64::MAX))
    }
}

impl State {
    /// The space was not destroyed.
    pub fn alive(&self) -> Result<(), IoasError> {
        if self.destroyed { Err(IoasError::Destroyed) } else { Ok(()) }
    }

    /// Nothing stands in the way of a change.
    pub fn changeable(&self) -> Result<(), IoasError> {
        self.alive()?;
        if self.replacing { Err(IoasError::Busy) } else { Ok(()) }
    }

    /// Whether the rules of the space permit this area, whatever is mapped (`iopt_check_iova`, `iopt_insert_area`).
    pub fn permits(&self, area: &Area) -> Result<(), IoasError> {
        self.alive()?;
        if area.range.first().0 == u64::MAX || area.range.size() >= u128::from(u64::MAX) {
            return Err(IoasError::Overflow);
        }
        if area.perm.is_empty() {
            return Err(IoasError::NoPermission);
        }
        let behind = area.range.last().0.wrapping_sub(area.range.first().0);
        if area.extent.checked_add(behind).is_none() {
            return Err(IoasError::Overflow);
        }
        if let Some(error) = misaligned(area, self.alignment()) {
            return Err(error);
        }
        match self.limits.reserved_in(area.range) {
            Some(reserved) => Err(IoasError::Reserved { wanted: area.range, reserved }),
            None => Ok(()),
        }
    }

    /// Whether this area can be added now.
    pub fn admit(&self, area: &Area) -> Result<(), IoasError> {
        self.changeable()?;
        self.permits(area)?;
        match self.areas.overlapping(area.range).next() {
            Some(existing) => Err(IoasError::Exists { wanted: area.range, existing: existing.range() }),
            None => Ok(()),
        }
    }

    /// Whether every area keeps to `alignment` (`iopt_check_iova_alignment`). What the space demands already is kept.
    pub fn can_align(&self, alignment: u64) -> Result<(), IoasError> {
        if alignment <= self.alignment() {
            return Ok(());
        }
        if self.replacing {
            return Err(IoasError::Busy);
        }
        let unaligned = self.areas.iter().find(|mapped| misaligned(&mapped.0.area, alignment).is_some());
        unaligned.map_or(Ok(()), |mapped| Err(IoasError::Unaligned { area: mapped.range(), alignment }))
    }
}
