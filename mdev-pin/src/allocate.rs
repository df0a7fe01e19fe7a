//! Mapping where there is room (`IOMMU_IOAS_MAP_FILE` without `FIXED_IOVA`).

use mdev_dma::{Area, Extent, Iova, IovaRange, Perm, RangeError};

use crate::{
    error::IoasError,
    ioas::{Ioas, State, refuse_inside_burst},
    limits::Need,
};

/// Where new areas go.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At this IOVA (`IOMMU_IOAS_MAP_FIXED_IOVA`).
    At(Iova),
    /// Where the space finds room.
    Anywhere,
}

impl Ioas {
    /// Maps `length` bytes from a place on at the lowest free IOVA and says where: as aligned as the length and the offset
    /// in the file (or the address) are, up to 2 MiB; at the offset in the page that the source has; within the allowed ranges, if
    /// there are any; never in the first page, and in no reserved range.
    ///
    /// # Errors
    ///
    /// `Range` \[EINVAL\] for a length of 0; `TooLong` and `Overflow` \[EOVERFLOW\]; `Misaligned` \[EINVAL\] where
    /// the space demands more alignment than the source has; `NoSpace` \[ENOSPC\]; else as [`Ioas::map`].
    pub fn map_anywhere(
        &self,
        extent: impl Into<Extent>,
        length: u64,
        perm: Perm,
    ) -> Result<Iova, IoasError> {
        refuse_inside_burst()?;
        if perm.is_empty() {
            return Err(IoasError::NoPermission);
        }
        let extent = extent.into();
        if extent.start().checked_add(length).is_none() {
            return Err(IoasError::Overflow);
        }
        loop {
            let (range, arrival) = {
                let state = self.state();
                (state.find_room(extent.start(), length)?, state.arrives())
            };
            // Without the lock: this may map a file.
            let mapped = self.mapped(Area { range, extent: extent.clone(), perm, log: None }, &arrival)?;
            let mut state = self.state();
            if state.admit(&mapped.0.area).is_err() || !state.limits.allows(range) {
                // Somebody else was faster; search again.
                continue;
            }
            let retired = state.add(vec![mapped])?;
            drop(state);
            self.adopt(retired);
            return Ok(range.first());
        }
    }
}

impl State {
    /// The lowest place for `length` bytes at `offset` of a file.
    pub fn find_room(&self, offset: u64, length: u64) -> Result<IovaRange, IoasError> {
        self.changeable()?;
        if length == 0 {
            return Err(RangeError::Empty { first: Iova(0) }.into());
        }
        let need = Need::new(offset, length, self.alignment())?;
        self.limits.first_fit(&self.areas, need).ok_or(IoasError::NoSpace { length })
    }
}
