//! Copies of mappings between address spaces and within one (`IOMMU_IOAS_COPY`).

use mdev_dma::{Area, Iova, IovaRange, Occupancy, Perm, Ranged, Segment, try_push};

use crate::{
    allocate::Place,
    error::IoasError,
    ioas::{Ioas, State, refuse_inside_burst},
    replace::{cut, part},
    slot::Slot,
    table::Mapped,
    tally::{self, Share, Shares},
};

impl Ioas {
    /// Maps here what `source`, which may be the same space, has mapped at `length` bytes from `from` on, and says
    /// where. The bytes may begin and end anywhere in areas, and lie in several of them without a gap; each of these
    /// becomes an area of its own here. File and windows are shared, so nothing is mapped anew, and pages are charged once
    /// for the source and its copies, to the account of the source; a window that has lost a page is lost to
    /// the copy too. The copy lives on when the source is unmapped.
    ///
    /// # Errors
    ///
    /// `Hole` \[ENOENT\]; `Range` for a length of 0 \[EINVAL\] and a range that wraps \[EOVERFLOW\]; `ReadOnly`
    /// \[EPERM\] for writing to what the source may only read; else as [`Ioas::map`] and, with [`Place::Anywhere`],
    /// [`Ioas::map_anywhere`]. On an error nothing is mapped.
    pub fn copy_from(
        &self,
        source: &Ioas,
        from: Iova,
        length: u64,
        to: Place,
        perm: Perm,
    ) -> Result<Iova, IoasError> {
        refuse_inside_burst()?;
        if perm.is_empty() {
            return Err(IoasError::NoPermission);
        }
        if from.0 == u64::MAX || length == u64::MAX {
            return Err(IoasError::Overflow);
        }
        // One space is locked at a time: what was found stays valid by the references it holds.
        let range = IovaRange::with_len(from, length)?;
        let mut parts = source.state().parts_of(range)?;
        if !self.is(source) {
            // The log of writes belongs to the source.
            parts.iter_mut().for_each(|part| part.area.log = None);
        }
        let Some(offset) = parts.first().map(|part| part.area.extent.start()) else {
            return Err(IoasError::Hole(from));
        };
        let mut state = self.state();
        let to = match to {
            Place::At(at) => IovaRange::with_len(at, length)?,
            Place::Anywhere => state.find_room(offset, length)?,
        };
        let mut copies = Vec::new();
        for part in parts {
            if perm.contains(Perm::WRITE) && !part.area.perm.contains(Perm::WRITE) {
                return Err(IoasError::ReadOnly(part.area.range));
            }
            let copy = part.moved(range.first(), to.first(), perm, self.slot()?)?;
            state.admit(&copy.0.area)?;
            try_push(&mut copies, copy)?;
        }
        let retired = state.add(copies)?;
        drop(state);
        self.adopt(retired);
        Ok(to.first())
    }
}

impl State {
    /// What is mapped at `range`, cut at its ends; `Hole` if a byte is not mapped.
    fn parts_of(&self, range: IovaRange) -> Result<Vec<Part>, IoasError> {
        self.alive()?;
        let mut parts = Vec::new();
        let mut next = Some(range.first());
        for mapped in self.areas.overlapping(range) {
            let Some(common) = mapped.range().intersection(range) else { continue };
            if next != Some(common.first()) {
                break;
            }
            let segments = cut(&mapped.0.segments, common);
            let shares = mapped.shares_in(common);
            try_push(&mut parts, Part { area: part(&mapped.0.area, common)?, segments, shares })?;
            // `None` behind the last byte of all.
            next = common.last().checked_add(1);
        }
        match next {
            Some(hole) if hole <= range.last() => Err(IoasError::Hole(hole)),
            _ => Ok(parts),
        }
    }
}

/// A part of an area that is to be copied.
struct Part {
    area: Area,
    segments: Vec<Segment>,
    shares: Vec<Share>,
}

impl Part {
    /// The same bytes as an area that lies as far from `to` as this one from `from`.
    fn moved(self, from: Iova, to: Iova, perm: Perm, slot: Slot) -> Result<Mapped, IoasError> {
        let moved = |range: IovaRange| {
            let skipped = range.first().0.wrapping_sub(from.0);
            let length = range.last().0.wrapping_sub(range.first().0);
            let first = to.checked_add(skipped).ok_or(IoasError::Overflow)?;
            let last = first.checked_add(length).ok_or(IoasError::Overflow)?;
            Ok::<IovaRange, IoasError>(IovaRange::new(first, last)?)
        };
        let mut segments = Vec::new();
        for segment in self.segments {
            try_push(&mut segments, Segment { range: moved(segment.range)?, ..segment })?;
        }
        let shares = self.shares.iter().filter_map(|share| tally::moved(share, from, to)).collect();
        let area = Area { range: moved(self.area.range)?, perm, ..self.area };
        // `None` if the source was unmapped just now, and its pages revoked.
        let occupancy = Occupancy::of(&segments).ok_or(IoasError::Hole(from))?;
        Ok(Mapped::new(area, segments, occupancy, Shares::new(shares), slot))
    }
}
