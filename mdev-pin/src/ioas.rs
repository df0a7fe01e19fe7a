//! An address space: areas that map IOVAs to file extents, and the accesses attached to it.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use mdev_dma::{Area, IovaMap, IovaRange, MapError, Occupancy, Ranged, Segment, Windows};

use crate::{
    account::Account,
    change::{Change, Work},
    change_process::Arrival,
    error::IoasError,
    lane,
    limits::{Limits, PAGE},
    members::Member,
    replace::{Plan, Replace},
    revoke::Within,
    slot::{Slot, Slots},
    sync::{Arc, Mutex, lock},
    sys::published::Retired,
    table::{Mapped, Table},
    tally::{Share, Shares},
    view::View,
    whole::Whole,
};

/// The address space of a guest, as a software device sees it (`struct iommufd_ioas`). Cloning shares it; the areas
/// go when the last clone and the last attached access are gone.
#[derive(Clone)]
pub struct Ioas {
    inner: Arc<Inner>,
}

struct Inner {
    windows: std::sync::Arc<Windows>,
    slots: Slots,
    /// Counts spaces: the order in which the states of several are locked.
    number: u64,
    state: Mutex<State>,
}

/// Only makes numbers; it protects nothing.
static NEXT: AtomicU64 = AtomicU64::new(1);

pub(crate) struct State {
    pub areas: IovaMap<Mapped>,
    /// What the areas look like to lanes; always in step with `areas`.
    pub view: View,
    pub table: Arc<Table>,
    /// What is wanted in one piece.
    pub whole: Whole,
    windows: std::sync::Arc<Windows>,
    pub members: Vec<Member>,
    /// Replaced tables whose grace was not over when their change ended.
    retired: Vec<Retired>,
    /// A replacement of the table is under way: nothing else may change.
    pub replacing: bool,
    /// The areas that it will install.
    pub coming: Vec<Mapped>,
    /// What is mapped is charged to it.
    pub account: Account,
    /// Cloned by whoever is about to add areas, so that it can be told that somebody is.
    pub arrivals: std::sync::Arc<()>,
    /// Where areas may lie.
    pub limits: Limits,
    /// Nothing is mapped or attached any more.
    pub destroyed: bool,
}

impl Ioas {
    /// An empty space whose areas will be mapped through `windows`, and charged to an account without a limit.
    pub fn new(windows: std::sync::Arc<Windows>) -> Ioas {
        Ioas::charged_to(windows, &Account::unlimited())
    }

    /// As [`Ioas::new`]; what devices hold of its areas is charged to `account`, each page once: the pages that
    /// [`Access::pin_pages`](crate::Access::pin_pages) pins while they are pinned, and all areas while an access that
    /// pins in bursts is attached. [`change_process`](crate::change_process) changes the account.
    pub fn charged_to(windows: std::sync::Arc<Windows>, account: &Account) -> Ioas {
        let state = State {
            areas: IovaMap::new(),
            view: View::default(),
            table: Table::new(View::default(), Vec::new()),
            whole: Whole::default(),
            windows: windows.clone(),
            members: Vec::new(),
            retired: Vec::new(),
            replacing: false,
            coming: Vec::new(),
            account: account.clone(),
            arrivals: std::sync::Arc::default(),
            limits: Limits::default(),
            destroyed: false,
        };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ioas { inner: Arc::new(Inner { windows, slots: Slots::default(), number, state: Mutex::new(state) }) }
    }

    /// Maps an extent at a fixed IOVA (`IOMMU_IOAS_MAP_FILE`, or `IOMMU_IOAS_MAP` of a process, with `FIXED_IOVA`). The
    /// area holds the file until it is unmapped. The list of allowed ranges does not bind it. Whether a process has
    /// anything there is found out when the bytes are used.
    ///
    /// # Errors
    ///
    /// `Overflow` \[EOVERFLOW\]; `NoPermission`, `Misaligned` and `Reserved` \[EINVAL\]; `Exists` \[EEXIST\];
    /// `Window` if the file cannot be mapped; `Charge` \[ENOMEM\]; `Busy`, `Full`, `Destroyed`, `InsideBurst`.
    pub fn map(&self, area: Area) -> Result<(), IoasError> {
        refuse_inside_burst()?;
        // First without mapping the file, then when it is mapped: the lock is free meanwhile.
        let arrival = {
            let state = self.state();
            state.admit(&area)?;
            state.arrives()
        };
        let mapped = self.mapped(area, &arrival)?;
        let mut state = self.state();
        state.admit(&mapped.0.area)?;
        let retired = state.add(vec![mapped])?;
        drop(state);
        self.adopt(retired);
        Ok(())
    }

    /// Unmaps all areas that lie in `range`, waiting for lanes and pins up to `within`; see [`Ioas::begin_unmap`].
    pub fn unmap(&self, range: IovaRange, within: impl Into<Within>) -> Result<u64, IoasError> {
        self.begin_unmap(range, within)?.wait()
    }

    /// Unmaps everything, waiting as [`Ioas::unmap`] does, and says how many bytes that was; an empty space has 0.
    pub fn unmap_all(&self, within: impl Into<Within>) -> Result<u64, IoasError> {
        self.unmap(IovaRange::FULL, within)
    }

    /// Begins to unmap the areas that lie in `range` (`IOMMU_IOAS_UNMAP`), one after another by IOVA. Only whole
    /// areas; [`IovaRange::FULL`] succeeds on an empty space too. When one area times out, those before it are gone,
    /// it stays mapped and gated, and those after it are as they were.
    ///
    /// # Errors
    ///
    /// `NotFound` \[ENOENT\], `Busy` \[EBUSY\] if an area is already leaving, `InsideBurst` \[EDEADLK\].
    pub fn begin_unmap(&self, range: IovaRange, within: impl Into<Within>) -> Result<Change, IoasError> {
        refuse_inside_burst()?;
        let state = lock(&self.inner.state);
        state.changeable()?;
        let found: Vec<&Mapped> = state.areas.overlapping(range).collect();
        if found.iter().any(|mapped| mapped.0.leaving) {
            return Err(IoasError::Busy);
        }
        let whole = found.iter().all(|mapped| range.contains_range(mapped.range()));
        if !whole || (found.is_empty() && range != IovaRange::FULL) {
            return Err(IoasError::NotFound(range));
        }
        let rest = found.iter().map(|mapped| mapped.range()).collect();
        drop(state);
        let work = Unmap { rest, current: None, bytes: 0 };
        Ok(Change::begin(self.clone(), within.into(), Box::new(work)))
    }

    /// Replaces all areas, waiting for lanes and pins up to `within`; see [`Ioas::begin_replace`].
    pub fn replace_table(&self, areas: Vec<Area>, within: impl Into<Within>) -> Result<(), IoasError> {
        self.begin_replace(areas, within)?.wait().map(drop)
    }

    /// Begins to replace all areas by `areas` in one publication. Bytes whose (file, offset, permission) stay the
    /// same never fail a lookup and keep their pins, however the areas around them are cut, unless they lie in an area that
    /// has lost a page and whose file is long enough again: that is mapped anew, and healed. The others are gated,
    /// drained and released. Past the deadline the space is left with what stayed, and with what could not go,
    /// gated; the same call can be made again.
    ///
    /// # Errors
    ///
    /// As [`Ioas::map`], for any of `areas`; `Exists` if two of them overlap.
    pub fn begin_replace(&self, areas: Vec<Area>, within: impl Into<Within>) -> Result<Change, IoasError> {
        refuse_inside_burst()?;
        if areas.iter().any(|area| area.perm.is_empty()) {
            return Err(IoasError::NoPermission);
        }
        let wanted = IovaMap::from_items(areas).map_err(exists)?;
        loop {
            let (areas, seen, arrival) = {
                let state = lock(&self.inner.state);
                if state.replacing || state.areas.iter().any(|mapped| mapped.0.leaving) {
                    return Err(IoasError::Busy);
                }
                (state.areas.clone(), state.table.id, state.arrives())
            };
            let plan = Plan::new(self, &areas, &wanted, &arrival)?;
            let mut state = lock(&self.inner.state);
            state.alive()?;
            wanted.iter().try_for_each(|area| state.permits(area))?;
            if state.table.id == seen && !state.replacing {
                state.prepare_for(plan.coming())?;
                state.replacing = true;
                drop(state);
                return Ok(Change::begin(self.clone(), within.into(), Box::new(Replace::new(plan))));
            }
            // Another change came between; plan again on what it left.
        }
    }

    /// The mapped areas by IOVA, gated ones included.
    pub fn areas(&self) -> Vec<Area> {
        lock(&self.inner.state).areas.iter().map(|mapped| mapped.0.area.clone()).collect()
    }

    /// Pins out on this space, void ones not counted.
    pub fn pins(&self) -> u64 {
        lock(&self.inner.state).counted().map(|core| core.published.pins()).sum()
    }

    /// The windows that its areas are mapped through.
    pub fn windows(&self) -> &std::sync::Arc<Windows> {
        &self.inner.windows
    }

    /// An area with its host memory and a slot, not published yet.
    pub(crate) fn mapped(&self, area: Area, arrival: &Arrival) -> Result<Mapped, IoasError> {
        if area.perm.is_empty() {
            return Err(IoasError::NoPermission);
        }
        let (segments, occupancy) = self.host_memory(&area)?;
        let shares = Shares::new(vec![Share::new(&area, &arrival.account)]);
        Ok(Mapped::new(area, segments, occupancy, shares, self.slot()?))
    }

    /// The host memory of an area, and the word that nobody takes it away.
    pub(crate) fn host_memory(&self, area: &Area) -> Result<(Vec<Segment>, Occupancy), IoasError> {
        loop {
            let segments = self.inner.windows.segments(area)?;
            if let Some(occupancy) = Occupancy::of(&segments) {
                return Ok((segments, occupancy));
            }
            // Pages of a window were revoked in between; it is not handed out a second time.
        }
    }

    pub(crate) fn slot(&self) -> Result<Slot, IoasError> {
        self.inner.slots.take().ok_or(IoasError::Full)
    }

    /// Whether no lane can be reading any table but the current one.
    pub(crate) fn quiet(&self) -> bool {
        self.adopt(Vec::new());
        lock(&self.inner.state).retired.is_empty()
    }

    /// Whether both are the same space.
    pub(crate) fn is(&self, other: &Ioas) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Different for every space.
    pub(crate) fn number(&self) -> u64 {
        self.inner.number
    }

    pub(crate) fn state(&self) -> crate::sync::MutexGuard<'_, State> {
        lock(&self.inner.state)
    }

    /// Takes over tables whose grace may not be over, and frees those whose is.
    pub(crate) fn adopt(&self, mut retired: Vec<Retired>) {
        retired.append(&mut lock(&self.inner.state).retired);
        // Outside the lock: freeing the last table of a window unmaps it.
        retired.retain_mut(|table| !table.poll());
        let void: Vec<_> = {
            let mut state = lock(&self.inner.state);
            state.retired.append(&mut retired);
            state.counted().filter(|core| core.published.has_void()).cloned().collect()
        };
        void.iter().for_each(|core| core.published.sweep());
    }
}

impl State {
    /// What every area must be aligned to, in bytes.
    pub fn alignment(&self) -> u64 {
        let pages = if self.limits.small_pages { PAGE } else { 1 };
        self.members.iter().map(|member| member.alignment).fold(pages, u64::max)
    }

    /// How many accesses are attached.
    pub fn accesses(&self) -> usize {
        self.members.len()
    }

    /// Adds areas that were admitted, all or none, and publishes.
    pub fn add(&mut self, new: Vec<Mapped>) -> Result<Vec<Retired>, IoasError> {
        self.charge_new(&new)?;
        let (mut areas, mut view) = (self.areas.clone(), self.view.clone());
        for mapped in &new {
            view.insert(mapped)?;
            areas = areas.insert(mapped.clone()).map_err(exists)?;
        }
        self.areas = areas;
        self.view = view;
        Ok(self.publish(&new))
    }

    /// Publishes the view, which differs from that of the last table by `added` and by what is gone or gated, as a new
    /// table to every open access.
    pub fn publish(&mut self, added: &[Mapped]) -> Vec<Retired> {
        let stitched = self.whole.stitch(&self.view.pieces, &self.windows);
        self.table = self.table.next(self.view.clone(), stitched, added);
        self.publish_table()
    }

    /// Replaces areas and view together, and publishes.
    pub fn install(&mut self, areas: IovaMap<Mapped>, view: View) -> Vec<Retired> {
        self.areas = areas;
        self.view = view;
        let stitched = self.whole.stitch(&self.view.pieces, &self.windows);
        self.table = Table::new(self.view.clone(), stitched);
        self.publish_table()
    }

    pub fn replace_area(&mut self, mapped: Mapped) {
        if let Some(areas) = self.areas.replace(mapped) {
            self.areas = areas;
        }
    }
}

/// Unmaps areas one after another.
struct Unmap {
    rest: VecDeque<IovaRange>,
    current: Option<Mapped>,
    bytes: u64,
}

impl Work for Unmap {
    fn begin(&mut self, ioas: &Ioas) -> Option<Result<Vec<Retired>, IoasError>> {
        loop {
            let range = self.rest.pop_front()?;
            let mut state = ioas.state();
            // The lock was free between two areas: this one may be gone, or leaving by somebody else's hand.
            let Some(mapped) =
                state.areas.lookup(range.first()).filter(|mapped| mapped.range() == range).cloned()
            else {
                continue;
            };
            if mapped.0.leaving || state.replacing {
                return Some(Err(IoasError::Busy));
            }
            let gated = mapped.with_flags(true, true);
            state.view.replace(&gated);
            state.replace_area(gated.clone());
            self.current = Some(gated);
            return Some(Ok(state.publish(&[])));
        }
    }

    fn notify(&mut self, ioas: &Ioas) {
        if let Some(current) = &self.current {
            ioas.notify(current.range());
        }
    }

    fn drained(&self, ioas: &Ioas) -> bool {
        let slots: Vec<Slot> = self.current.iter().flat_map(Mapped::slots).collect();
        !ioas.pinned(&slots)
    }

    fn revoke(&mut self, ioas: &Ioas, late: &[Retired]) -> bool {
        self.current.as_ref().is_some_and(|current| ioas.revoke(std::slice::from_ref(current), late))
    }

    fn finish(&mut self, ioas: &Ioas) -> Vec<Retired> {
        let Some(gone) = self.current.take() else { return Vec::new() };
        let mut state = ioas.state();
        if let Some((areas, _)) = state.areas.remove(gone.range().first()) {
            state.areas = areas;
        }
        state.view.remove(&gone);
        let retired = state.publish(&[]);
        drop(state);
        gone.0.shares.release_whole();
        gone.0.occupancy.vacate();
        self.bytes = self.bytes.saturating_add(u64::try_from(gone.range().size()).unwrap_or(u64::MAX));
        retired
    }

    fn fail(&mut self, ioas: &Ioas) -> IovaRange {
        let Some(stuck) = self.current.take() else { return IovaRange::FULL };
        ioas.state().replace_area(stuck.with_flags(true, false));
        stuck.range()
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

pub(crate) fn exists(error: MapError) -> IoasError {
    let MapError::Overlap { new, existing } = error;
    IoasError::Exists { wanted: new, existing }
}

/// A control operation inside a burst would wait for itself.
pub(crate) fn refuse_inside_burst() -> Result<(), IoasError> {
    if lane::inside_burst() { Err(IoasError::InsideBurst) } else { Ok(()) }
}
