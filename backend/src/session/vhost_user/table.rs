//! Messages about memory: each makes a new table of regions, and its reply waits until the device has let go of
//! what is not in it any more.

use mdev_dma::{Area, FileKind, Iova, IovaRange, Segment};
use mdev_pin::Within;
use mdev_protocol::frame::Fds;
use mdev_protocol::vhost_user::{FrontendReply, MemoryRegion, MemoryTable};

use super::Session;
use super::barrier::{Then, Wait};
use super::error::Refusal;
use super::memory::{Added, MAX_SLOTS, MemoryError, Regions};
use super::reply::{Asker, Outcome};
use super::vring::Run;

impl Session {
    pub(super) fn get_max_mem_slots(&self) -> Outcome {
        Outcome::Reply(FrontendReply::GetMaxMemSlots(MAX_SLOTS as u64))
    }

    pub(super) fn set_mem_table(
        &mut self,
        asker: Asker,
        table: &MemoryTable,
        fds: Fds,
    ) -> Result<Outcome, Refusal> {
        let keys = self.negotiated.keys();
        let regions = self.regions.replaced(table.regions(), fds, keys, &self.options.files)?;
        self.change_table(asker, regions)
    }

    pub(super) fn add_mem_reg(
        &mut self,
        asker: Asker,
        region: &MemoryRegion,
        fds: Fds,
    ) -> Result<Outcome, Refusal> {
        let keys = self.negotiated.keys();
        let fd = fds.into_iter().next().ok_or(Refusal::NoFd)?;
        let regions = match self.regions.with(region, fd, keys, &self.options.files)? {
            Added::Table(regions) => regions,
            Added::AlreadyThere => {
                // Without a ring that is started this is a front-end that begins anew and forgot to say so.
                let starts_over = self.vrings.iter().all(|vring| vring.kick.is_none());
                let mut regions = self.regions.clone();
                regions.renew(region, keys, starts_over);
                regions
            }
        };
        self.change_table(asker, regions)
    }

    /// The same message again tries again to get back what the device kept longer than it may.
    pub(super) fn rem_mem_reg(&mut self, asker: Asker, region: &MemoryRegion) -> Result<Outcome, Refusal> {
        let regions = match self.regions.without(region, self.negotiated.keys()) {
            Err(MemoryError::NotFound { .. }) if self.is_kept(region) => self.regions.clone(),
            result => result?,
        };
        self.change_table(asker, regions)
    }

    /// Whether a region that was removed is still mapped.
    fn is_kept(&self, region: &MemoryRegion) -> bool {
        if self.iommu.is_some() {
            return self.is_kept_translated(region);
        }
        let range = IovaRange::with_len(Iova(region.guest_addr), region.size);
        let has = |areas: Vec<Area>| range.is_ok_and(|range| areas.iter().any(|area| area.range == range));
        has(self.ioas.areas()) && !has(self.regions.areas())
    }

    /// Makes `regions` the memory of this connection. They are what the front-end wants from now on, even where the
    /// device keeps something longer than it may: a later change tries again to get it back.
    pub(super) fn change_table(&mut self, asker: Asker, regions: Regions) -> Result<Outcome, Refusal> {
        let (before, now) = (self.regions.areas(), regions.areas());
        let change = match self.retranslate(&regions)? {
            Some(change) => change,
            None => {
                let within = Within::or_revoke(self.options.barrier);
                self.ioas.begin_replace(now.clone(), within)?
            }
        };
        self.prefault(&before, &now);
        self.regions = regions;
        self.hold(asker, Wait::Table(change), Then::Resume);
        Ok(Outcome::Later)
    }

    /// Where the memory of a front-end lies that has stopped its rings, for whoever expects it back after its end. Nothing
    /// when a ring of it runs, and no huge pages: they are scarce.
    pub(super) fn stays_mapped(&self) -> Vec<Segment> {
        if !self.is_open() || self.vrings.iter().any(|vring| vring.run != Run::Stopped) {
            return Vec::new();
        }
        let there = self.regions.areas().into_iter().filter(|area| {
            area.extent.file().is_some_and(|extent| extent.file.kind() != FileKind::Hugetlbfs)
        });
        there.filter_map(|area| self.ioas.windows().segments(&area).ok()).flatten().collect()
    }
}
