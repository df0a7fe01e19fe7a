//! The memory of a device behind an IOMMU (`VIRTIO_F_ACCESS_PLATFORM`): what its front-end has translated, and not
//! the regions themselves.

use mdev_dma::{Iova, IovaRange, Perm, Segment};
use mdev_pin::{Change, Within};
use mdev_protocol::vhost_user::{Iotlb as Message, IotlbPerm, MemoryRegion};

use super::Session;
use super::barrier::{Then, Wait};
use super::error::Refusal;
use super::iotlb::{Entry, Iotlb};
use super::memory::{MAX_SLOTS, Regions, addresses};
use super::misses::Misses;
use super::reply::{Asker, Outcome};
use super::vring::Run;
use crate::session::translations::Event;

/// What a session has beside its regions while the feature is acknowledged.
pub(super) struct Iommu {
    entries: Iotlb,
    /// Keeps the windows of all regions mapped, whatever is translated at the moment.
    held: Vec<Segment>,
    /// What an update will add when its place is free.
    coming: Vec<Entry>,
    /// First and last addresses of regions that went with the last change, and with those before it that failed.
    going: Vec<(u64, u64)>,
    pub(super) misses: Misses,
}

impl Session {
    /// Makes the address space follow the features: translations, or the regions themselves. No ring runs.
    pub(super) fn switch_iommu(&mut self, asker: Asker) -> Result<Outcome, Refusal> {
        let on = self.negotiated.is_translated();
        let held = if on { self.hold_windows(&self.regions)? } else { Vec::new() };
        let areas = if on { Vec::new() } else { self.regions.areas() };
        let change = self.ioas.begin_replace(areas, Within::or_revoke(self.options.barrier))?;
        self.iommu = on.then(|| Iommu {
            entries: Iotlb::new(self.translations.clone()),
            held,
            coming: Vec::new(),
            going: Vec::new(),
            misses: Misses::default(),
        });
        self.hold(asker, Wait::Table(change), Then::Featured);
        Ok(Outcome::Later)
    }

    /// Windows of all regions. A region that cannot be mapped is refused as it would be without an IOMMU.
    fn hold_windows(&self, regions: &Regions) -> Result<Vec<Segment>, Refusal> {
        let mut held = Vec::new();
        for area in regions.areas() {
            held.extend(self.ioas.windows().segments(&area).map_err(mdev_pin::IoasError::from)?);
        }
        Ok(held)
    }

    /// Drops the translations that new regions do not lead to; `None` where there is no IOMMU.
    pub(super) fn retranslate(&mut self, regions: &Regions) -> Result<Option<Change>, Refusal> {
        let keys = self.negotiated.keys();
        if self.iommu.is_none() {
            return Ok(None);
        }
        let held = self.hold_windows(regions)?;
        let mut stale = self.stuck();
        let Some(iommu) = &mut self.iommu else { return Ok(None) };
        if stale.is_empty() {
            iommu.going.clear();
        }
        iommu.going.extend(self.regions.changed(regions, keys));
        let surplus = iommu.going.len().saturating_sub(MAX_SLOTS);
        iommu.going.drain(..surplus);
        stale.extend(iommu.entries.not_derived(&self.regions, regions, keys));
        let change = self.ioas.begin_invalidate(&stale, Within::or_revoke(self.options.barrier))?;
        stale.iter().for_each(|range| iommu.entries.forget(*range));
        iommu.held = held;
        Ok(Some(change))
    }

    /// What an earlier change could not get back: it is still there, and nothing is translated like that any more.
    pub(super) fn stuck(&self) -> Vec<IovaRange> {
        let Some(iommu) = &self.iommu else { return Vec::new() };
        let areas = self.ioas.areas().into_iter().map(|area| area.range);
        areas.filter(|range| !iommu.entries.touches(*range)).collect()
    }

    /// Whether something that was derived from a region that was removed is still there.
    pub(super) fn is_kept_translated(&self, region: &MemoryRegion) -> bool {
        let addresses = addresses(region, self.negotiated.keys());
        let went = self.iommu.as_ref().is_some_and(|iommu| iommu.going.contains(&addresses));
        went && !self.stuck().is_empty()
    }

    pub(super) fn iotlb_msg(&mut self, asker: Asker, message: Message) -> Result<Outcome, Refusal> {
        match message {
            Message::Update { iova, size, user_addr, perm } => {
                self.translations.count(Event::Update);
                self.update(asker, iova, size, user_addr, permission(perm))
            }
            Message::Invalidate { iova, size } => {
                self.translations.count(Event::Invalidation);
                let (first, last) = Message::concerned(iova, size);
                match IovaRange::new(Iova(first), Iova(last)) {
                    Ok(range) => self.invalidate(asker, range),
                    Err(_) => Ok(Outcome::Done),
                }
            }
            Message::Miss { .. } | Message::AccessFail { .. } => Err(Refusal::Unsupported),
        }
    }

    /// The same translation again changes nothing; another one takes the place of all it touches.
    fn update(
        &mut self,
        asker: Asker,
        iova: u64,
        size: u64,
        user: u64,
        perm: Perm,
    ) -> Result<Outcome, Refusal> {
        let keys = self.negotiated.keys();
        let iommu = self.iommu.as_mut().ok_or(Refusal::NoIommu)?;
        let outside = || Refusal::Untranslatable { user, size };
        let range = IovaRange::with_len(Iova(iova), size).map_err(|_| outside())?;
        let entries = self.regions.derive(range, user, perm, keys).ok_or_else(outside)?;
        if iommu.entries.has(entries.iter().map(|entry| &entry.area)) {
            iommu.misses.met(range, perm);
            return Ok(Outcome::Done);
        }
        let mut going = iommu.entries.too_old(entries.len());
        going.push(range);
        let change = self.ioas.begin_invalidate(&going, Within::or_revoke(self.options.barrier))?;
        going.iter().for_each(|range| iommu.entries.forget(*range));
        iommu.coming = entries;
        self.hold(asker, Wait::Table(change), Then::Translate);
        Ok(Outcome::Later)
    }

    /// Second half of an update: nothing is in its place any more.
    pub(super) fn translate(&mut self) -> Result<Outcome, Refusal> {
        let Some(iommu) = &mut self.iommu else { return Ok(Outcome::Done) };
        for entry in std::mem::take(&mut iommu.coming) {
            self.ioas.map(entry.area.clone())?;
            iommu.misses.met(entry.area.range, entry.area.perm);
            iommu.entries.insert(entry);
        }
        Ok(Outcome::Done)
    }

    /// Without an IOMMU there is nothing to forget.
    fn invalidate(&mut self, asker: Asker, range: IovaRange) -> Result<Outcome, Refusal> {
        let Some(iommu) = &mut self.iommu else { return Ok(Outcome::Done) };
        let change = self.ioas.begin_invalidate(&[range], Within::or_revoke(self.options.barrier))?;
        iommu.entries.forget(range);
        self.hold(asker, Wait::Table(change), Then::Acknowledge);
        Ok(Outcome::Later)
    }

    /// Once no ring is started, front-ends do not say any more what is to be forgotten: so everything is.
    pub(super) fn forget_when_suspended(&mut self) -> Result<Option<Change>, Refusal> {
        let started = self.vrings.iter().any(|vring| vring.kick.is_some() || vring.run != Run::Stopped);
        let Some(iommu) = self.iommu.as_mut().filter(|iommu| !started && !iommu.entries.is_empty()) else {
            return Ok(None);
        };
        let all = [IovaRange::FULL];
        let change = self.ioas.begin_invalidate(&all, Within::or_revoke(self.options.barrier))?;
        iommu.entries.forget(IovaRange::FULL);
        Ok(Some(change))
    }
}

fn permission(perm: IotlbPerm) -> Perm {
    let mut permission = Perm::empty();
    permission.set(Perm::READ, perm.contains(IotlbPerm::READ));
    permission.set(Perm::WRITE, perm.contains(IotlbPerm::WRITE));
    permission
}
