//! Invalidation: all areas that a range touches go together, whole, whether or not there are any.
//!
//! The rule of caches of translations (vhost-user's IOTLB), where [`Ioas::unmap`] has the rule of owners of memory.
//! However many areas go, there is one publication that gates them and one that shows them gone.

use mdev_dma::{IovaMap, IovaRange, Ranged};

use crate::{
    change::{Change, Work},
    error::IoasError,
    ioas::{Ioas, State, exists, refuse_inside_burst},
    revoke::Within,
    slot::Slot,
    sys::published::Retired,
    table::Mapped,
    view::View,
};

/// From how many areas on the maps may be made anew: one by one costs a leaf and the spine each.
const MANY: usize = 64;
/// And from which part of all areas on: to make them anew costs a bit for each area that stays.
const PART: usize = 16;

impl Ioas {
    /// Begins to drop every area of which a byte lies in one of `ranges`, and all of its bytes with it. None is success.
    /// Areas that an earlier change could not get back are tried again. Past the deadline all of them stay, gated.
    ///
    /// # Errors
    ///
    /// `Busy` \[EBUSY\] if another change is under way that these areas are part of, or that replaces all;
    /// `InsideBurst` \[EDEADLK\].
    pub fn begin_invalidate(
        &self,
        ranges: &[IovaRange],
        within: impl Into<Within>,
    ) -> Result<Change, IoasError> {
        refuse_inside_burst()?;
        let mut state = self.state();
        state.changeable()?;
        let mut going: Vec<Mapped> =
            ranges.iter().flat_map(|range| state.areas.overlapping(*range)).cloned().collect();
        going.sort_unstable_by_key(|mapped| mapped.range().first());
        going.dedup_by_key(|mapped| mapped.range().first());
        if going.iter().any(|mapped| mapped.0.leaving) {
            return Err(IoasError::Busy);
        }
        let going: Vec<Mapped> = going.iter().map(|mapped| mapped.with_flags(true, true)).collect();
        let gated = if going.is_empty() { Vec::new() } else { state.gate(&going)? };
        drop(state);
        let work = Invalidate { gated: Some(gated), going, bytes: 0 };
        Ok(Change::begin(self.clone(), within.into(), Box::new(work)))
    }
}

impl State {
    fn one_by_one(&self, going: &[Mapped]) -> bool {
        going.len() < MANY || going.len() < self.areas.len() / PART
    }

    /// Shows these areas gated and leaving.
    fn gate(&mut self, going: &[Mapped]) -> Result<Vec<Retired>, IoasError> {
        if self.one_by_one(going) {
            for mapped in going {
                self.view.replace(mapped);
                self.replace_area(mapped.clone());
            }
            return Ok(self.publish(&[]));
        }
        let areas = self.areas.iter().map(|mapped| among(going, mapped).unwrap_or(mapped).clone());
        self.rebuild(areas.collect())
    }

    /// Takes these areas away.
    fn forget(&mut self, gone: &[Mapped]) -> Result<Vec<Retired>, IoasError> {
        if self.one_by_one(gone) {
            for mapped in gone {
                if let Some((areas, _)) = self.areas.remove(mapped.range().first()) {
                    self.areas = areas;
                }
                self.view.remove(mapped);
            }
            return Ok(self.publish(&[]));
        }
        let left = self.areas.iter().filter(|mapped| among(gone, mapped).is_none()).cloned();
        self.rebuild(left.collect())
    }

    fn rebuild(&mut self, areas: Vec<Mapped>) -> Result<Vec<Retired>, IoasError> {
        let view = View::of(&areas)?;
        let areas = IovaMap::from_items(areas).map_err(exists)?;
        Ok(self.install(areas, view))
    }
}

/// The one of `sorted` that begins where this area does.
fn among<'s>(sorted: &'s [Mapped], mapped: &Mapped) -> Option<&'s Mapped> {
    let first = mapped.range().first();
    let at = sorted.binary_search_by_key(&first, |other| other.range().first()).ok()?;
    sorted.get(at)
}

/// An invalidation under way.
struct Invalidate {
    /// The tables that the gated ones have replaced, until they are waited for.
    gated: Option<Vec<Retired>>,
    /// What goes, gated, by IOVA.
    going: Vec<Mapped>,
    bytes: u64,
}

impl Work for Invalidate {
    fn begin(&mut self, _ioas: &Ioas) -> Option<Result<Vec<Retired>, IoasError>> {
        let retired = self.gated.take()?;
        (!self.going.is_empty()).then_some(Ok(retired))
    }

    fn notify(&mut self, ioas: &Ioas) {
        for mapped in &self.going {
            ioas.notify(mapped.range());
        }
    }

    fn drained(&self, ioas: &Ioas) -> bool {
        let slots: Vec<Slot> = self.going.iter().flat_map(Mapped::slots).collect();
        !ioas.pinned(&slots)
    }

    fn revoke(&mut self, ioas: &Ioas, late: &[Retired]) -> bool {
        ioas.revoke(&self.going, late)
    }

    fn finish(&mut self, ioas: &Ioas) -> Vec<Retired> {
        let gone = std::mem::take(&mut self.going);
        // Taking items out of a map makes no overlap.
        let retired = ioas.state().forget(&gone).unwrap_or_default();
        for mapped in &gone {
            mapped.0.shares.release_whole();
            mapped.0.occupancy.vacate();
            let size = u64::try_from(mapped.range().size()).unwrap_or(u64::MAX);
            self.bytes = self.bytes.saturating_add(size);
        }
        retired
    }

    fn fail(&mut self, ioas: &Ioas) -> IovaRange {
        let stuck = std::mem::take(&mut self.going);
        let mut state = ioas.state();
        for mapped in &stuck {
            state.replace_area(mapped.with_flags(true, false));
        }
        stuck.first().map_or(IovaRange::FULL, Mapped::range)
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}
