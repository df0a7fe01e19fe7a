//! The replacement of a whole table: which bytes stay, which go, and the two tables that lead there.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use mdev_dma::{Area, Iova, IovaMap, IovaRange, Occupancy, Ranged, Segment, poison_epoch, try_push};

use crate::{
    change::Work,
    change_process::Arrival,
    error::IoasError,
    ioas::{Ioas, exists},
    slot::Slot,
    sys::published::Retired,
    table::{Mapped, MappedArea},
    tally::{Share, Shares},
    view::View,
};

/// A replacement worked out against the areas of one moment.
pub struct Plan {
    /// What stays, cut where it has to be, and what goes, gated.
    between: Vec<Mapped>,
    after: Vec<Mapped>,
    /// Ranges that go, for the devices.
    going: Vec<IovaRange>,
    /// Where pins on them are counted.
    slots: Vec<Slot>,
    /// Old areas that have lost pages, by where they begin, and can be mapped anew: nothing of them stays.
    healing: BTreeMap<Iova, Occupancy>,
    /// Bytes that leave the space.
    bytes: u64,
}

impl Plan {
    /// The bytes of an old area that stay mapped as they are.
    fn stays(&self, mapped: &Mapped, area: &Area) -> Option<IovaRange> {
        same(mapped, area).filter(|_| !self.healing.contains_key(&mapped.range().first()))
    }

    /// Plans the way from `old` to `wanted`. Maps what is new, outside any lock.
    pub fn new(
        ioas: &Ioas,
        old: &IovaMap<Mapped>,
        wanted: &IovaMap<Area>,
        arrival: &Arrival,
    ) -> Result<Plan, IoasError> {
        let mut plan = Plan {
            between: Vec::new(),
            after: Vec::new(),
            going: Vec::new(),
            slots: Vec::new(),
            healing: healing(ioas, old),
            bytes: 0,
        };
        // Pins on an inherited slot can no longer grow once every earlier table is out of use.
        let settled = ioas.quiet();
        for area in wanted.iter() {
            plan.arrive(ioas, old, area, arrival, settled)?;
        }
        for mapped in old.iter() {
            plan.depart(mapped, wanted)?;
        }
        // What arrives occupies it now.
        plan.healing.clear();
        Ok(plan)
    }

    /// The areas that will be installed, for a while or for good.
    pub fn coming(&self) -> Vec<Mapped> {
        self.between.iter().chain(&self.after).cloned().collect()
    }

    /// Plans one wanted area.
    fn arrive(
        &mut self,
        ioas: &Ioas,
        old: &IovaMap<Mapped>,
        area: &Area,
        arrival: &Arrival,
        settled: bool,
    ) -> Result<(), IoasError> {
        let staying: Vec<(&Mapped, IovaRange)> = old
            .overlapping(area.range)
            .filter_map(|mapped| Some((mapped, self.stays(mapped, area)?)))
            .collect();
        if let [(mapped, range)] = staying.as_slice()
            && *range == mapped.range()
            && *range == area.range
        {
            try_push(&mut self.between, (*mapped).clone())?;
            return Ok(try_push(&mut self.after, (*mapped).clone())?);
        }
        let slot = ioas.slot()?;
        let (mut segments, mut shares) = (Vec::new(), Vec::new());
        let mut inherited = Vec::new();
        // Keeps what is new until the area itself does.
        let mut occupancies = Vec::new();
        let mut next = Some(area.range.first());
        for (mapped, range) in &staying {
            if let Some(first) = next
                && first < range.first()
                && let Some(before) = range.first().0.checked_sub(1)
            {
                let new = fresh(ioas, area, first, Iova(before), arrival)?;
                segments.extend(new.0);
                occupancies.push(new.1);
                shares.push(new.2);
            }
            let cut = cut(&mapped.0.segments, *range);
            let cut_shares = mapped.shares_in(*range);
            let slots: Vec<Slot> = std::iter::once(mapped.0.slot.clone())
                .chain(
                    mapped
                        .0
                        .inherited
                        .iter()
                        .filter(|slot| !settled || ioas.pinned(&[(*slot).clone()]))
                        .cloned(),
                )
                .collect();
            let kept = part(&mapped.0.area, *range)?;
            let kept = Mapped::cut(
                kept,
                cut.clone(),
                Shares::new(cut_shares.clone()),
                slot.clone(),
                slots.clone(),
                false,
            );
            try_push(&mut self.between, kept)?;
            segments.extend(cut);
            shares.extend(cut_shares);
            inherited.extend(slots);
            next = range.last().checked_add(1);
        }
        if let Some(first) = next
            && first <= area.range.last()
        {
            let new = fresh(ioas, area, first, area.range.last(), arrival)?;
            segments.extend(new.0);
            occupancies.push(new.1);
            shares.push(new.2);
        }
        let arriving = Mapped::cut(area.clone(), segments, Shares::new(shares), slot, inherited, false);
        try_push(&mut self.after, arriving)?;
        Ok(())
    }

    /// Plans what of an old area goes.
    fn depart(&mut self, mapped: &Mapped, wanted: &IovaMap<Area>) -> Result<(), IoasError> {
        let mut next = Some(mapped.range().first());
        let mut gone = Vec::new();
        for range in wanted.overlapping(mapped.range()).filter_map(|area| self.stays(mapped, area)) {
            if let Some(first) = next
                && let Some(before) = range.first().0.checked_sub(1)
                && let Ok(gap) = IovaRange::new(first, Iova(before))
            {
                gone.push(gap);
            }
            next = range.last().checked_add(1);
        }
        if let Some(gap) = next.and_then(|first| IovaRange::new(first, mapped.range().last()).ok()) {
            gone.push(gap);
        }
        if gone.is_empty() {
            return Ok(());
        }
        self.slots.extend(mapped.slots());
        let size = |range: IovaRange| u64::try_from(range.size()).unwrap_or(u64::MAX);
        // What is only mapped anew does not leave.
        let back = wanted.overlapping(mapped.range()).filter_map(|area| same(mapped, area)).map(size);
        let left = back.fold(size(mapped.range()), u64::saturating_sub);
        self.bytes = self.bytes.saturating_add(left);
        for range in gone {
            let MappedArea { area, segments, slot, inherited, .. } = &*mapped.0;
            let (area, segments) = (part(area, range)?, cut(segments, range));
            let gated = Mapped::cut(
                area,
                segments,
                Shares::new(mapped.shares_in(range)),
                slot.clone(),
                inherited.clone(),
                true,
            );
            try_push(&mut self.between, gated)?;
            try_push(&mut self.going, range)?;
        }
        Ok(())
    }
}

/// The bytes of an old area whose translation `area` leaves as it is. Gated bytes never stay.
fn same(mapped: &Mapped, area: &Area) -> Option<IovaRange> {
    let common = mapped.range().intersection(area.range)?;
    (!mapped.0.gated && mapped.0.area.translates_like(area, common)).then_some(common)
}

/// The areas that have lost pages, and whose file has them again, with what they occupy anew. Lookups in a window that has
/// lost a page fail, so a replacement takes nothing from them when it maps them a second time. Those whose file is still
/// too short stay as they are.
fn healing(ioas: &Ioas, old: &IovaMap<Mapped>) -> BTreeMap<Iova, Occupancy> {
    if poison_epoch() == 0 {
        return BTreeMap::new();
    }
    let poisoned =
        old.iter().filter(|mapped| mapped.0.segments.iter().any(|segment| segment.window.poisoned()));
    let anew = |mapped: &Mapped| Some((mapped.range().first(), ioas.host_memory(&mapped.0.area).ok()?.1));
    poisoned.filter_map(anew).collect()
}

/// A sub-range of an area as an area of its own.
pub fn part(area: &Area, range: IovaRange) -> Result<Area, IoasError> {
    let extent = area.extent_at(range.first()).ok_or(IoasError::NotFound(range))?;
    let skipped = range.first().0.wrapping_sub(area.range.first().0);
    let log = area.log.and_then(|log| log.checked_add(skipped));
    Ok(Area { range, extent, perm: area.perm, log })
}

/// New host memory for `first..=last` of a wanted area, and what its pages are charged by.
fn fresh(
    ioas: &Ioas,
    area: &Area,
    first: Iova,
    last: Iova,
    arrival: &Arrival,
) -> Result<(Vec<Segment>, Occupancy, Share), IoasError> {
    let range = IovaRange::new(first, last).map_err(|_| IoasError::NotFound(area.range))?;
    let part = part(area, range)?;
    let (segments, occupancy) = ioas.host_memory(&part)?;
    Ok((segments, occupancy, Share::new(&part, &arrival.account)))
}

/// The segments within a range, cut at its ends. Keeps their windows, poisoned ones too.
pub fn cut(segments: &[Segment], range: IovaRange) -> Vec<Segment> {
    let within = segments.iter().filter_map(|segment| {
        let common = segment.range.intersection(range)?;
        let skipped = common.first().0.wrapping_sub(segment.range.first().0);
        Some(Segment {
            range: common,
            window: segment.window.clone(),
            offset: segment.offset.checked_add(skipped)?,
        })
    });
    within.collect()
}

/// A planned replacement under way.
pub struct Replace {
    plan: Option<Plan>,
    bytes: u64,
}

impl Replace {
    pub fn new(plan: Plan) -> Replace {
        Replace { plan: Some(plan), bytes: 0 }
    }

    fn install(ioas: &Ioas, areas: &[Mapped]) -> Result<Vec<Retired>, IoasError> {
        let view = View::of(areas)?;
        let areas = IovaMap::from_items(areas.to_vec()).map_err(exists)?;
        let mut state = ioas.state();
        let before = std::mem::replace(&mut state.areas, areas.clone());
        let retired = state.install(areas, view);
        // What stays is charged by areas of its own already, or by the very same ones; and occupied by them. Tables that
        // are still being read, and void pins, keep areas longer than the space does.
        let kept: HashSet<_> = state.areas.iter().map(|mapped| Arc::as_ptr(&mapped.0.shares)).collect();
        let gone = before.iter().filter(|mapped| !kept.contains(&Arc::as_ptr(&mapped.0.shares)));
        gone.for_each(|mapped| mapped.0.shares.release_whole());
        let kept: HashSet<_> = state.areas.iter().map(|mapped| Arc::as_ptr(&mapped.0.occupancy)).collect();
        let gone = before.iter().filter(|mapped| !kept.contains(&Arc::as_ptr(&mapped.0.occupancy)));
        gone.for_each(|mapped| mapped.0.occupancy.vacate());
        Ok(retired)
    }
}

impl Work for Replace {
    fn begin(&mut self, ioas: &Ioas) -> Option<Result<Vec<Retired>, IoasError>> {
        let plan = self.plan.as_ref()?;
        if plan.going.is_empty() {
            // Nothing has to be waited for: `finish` follows at once.
            return Some(Ok(Vec::new()));
        }
        Some(Self::install(ioas, &plan.between))
    }

    fn notify(&mut self, ioas: &Ioas) {
        for range in self.plan.iter().flat_map(|plan| &plan.going) {
            ioas.notify(*range);
        }
    }

    fn drained(&self, ioas: &Ioas) -> bool {
        self.plan.as_ref().is_none_or(|plan| !ioas.pinned(&plan.slots))
    }

    fn revoke(&mut self, ioas: &Ioas, late: &[Retired]) -> bool {
        let Some(plan) = &self.plan else { return false };
        let going: Vec<Mapped> = plan.between.iter().filter(|mapped| mapped.0.gated).cloned().collect();
        ioas.revoke(&going, late)
    }

    fn finish(&mut self, ioas: &Ioas) -> Vec<Retired> {
        let Some(plan) = self.plan.take() else { return Vec::new() };
        self.bytes = plan.bytes;
        // The areas were checked for overlaps when the plan was made.
        Self::install(ioas, &plan.after).unwrap_or_default()
    }

    fn fail(&mut self, _ioas: &Ioas) -> IovaRange {
        let plan = self.plan.take();
        plan.and_then(|plan| plan.going.first().copied()).unwrap_or(IovaRange::FULL)
    }

    fn ended(&mut self, ioas: &Ioas) {
        let mut state = ioas.state();
        state.replacing = false;
        state.coming = Vec::new();
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}
