//! The memory of a device: what the kernel says is behind its addresses, as (file, offset).
//!
//! The address space is a copy of the kernel's table. It is fetched when the driver is ready and whenever the kernel says that it
//! has changed, and replaced as a whole: what is the same stays, with its pins, and what is not is out of reach when the request
//! is answered. So an answer waits for requests of the device in what has gone, and for no others.
//!
//! Memory appears without a word too: bounce pages with the first request of a driver of the host, coherent memory whenever it
//! asks for some. A ring that misses something is parked, and the kernel is asked. Of a table with very many entries, of which
//! each change of each would have to be fetched, nothing is fetched but what is missed, and what was before and is there still.

use std::sync::Arc;
use std::time::Duration;

use mdev_dma::{Area, BackingFile, FileExtent, FileKind, Iova, IovaRange, Perm};
use mdev_pin::{Change, IoasError, Within};
use mdev_protocol::vduse::IotlbFile;
use mdev_protocol::vhost_user::IotlbPerm;
use thiserror::Error;

use super::barrier::{PATIENCE, Then, Wait};
use super::error::Refusal;
use super::requests::Outcome;
use super::rings::Run;
use super::{Queues, Session};
use crate::session::translations::Event;

/// Entries of a table that is fetched as a whole.
pub(super) const FETCHED: usize = if cfg!(test) { 8 } else { 1024 };

/// Why there is nothing at an address.
#[derive(Debug, Error)]
enum Hole {
    #[error(
        "the kernel has no memory there: of a process it leaves out what is not a shared mapping of a file (QEMU: \
         -object memory-backend-memfd,share=on)"
    )]
    Nothing,
    #[error("the device may not {wanted:?} there, only {perm:?}")]
    Permission { wanted: Perm, perm: Perm },
    #[error("{0}")]
    Unusable(String),
}

/// The kernel's own memory, in which several entries may lie.
#[derive(Default)]
pub(super) struct Domain(Option<Arc<BackingFile>>);

impl Session {
    /// The driver is ready: its rings run when what they lie in is there.
    pub(super) fn begin(&mut self, id: Option<u32>) -> Result<(), Refusal> {
        self.look_at_rings()?;
        let change = self.change_table(PATIENCE)?;
        self.hold(id, Wait::Table(change), Then::Run);
        Ok(())
    }

    /// The kernel's table has changed. Until the driver is ready nothing is done with it, and nothing of it is kept.
    pub(super) fn update_iotlb(&mut self, queues: &mut dyn Queues, id: u32) -> Result<Outcome, Refusal> {
        self.translations.count(Event::Invalidation);
        // Whatever is answered, the kernel's table is not any more what it was.
        let change = self.change_table(PATIENCE).map_err(|refusal| self.give_up(queues, refusal))?;
        self.hold(Some(id), Wait::Table(change), Then::Run);
        Ok(Outcome::Later)
    }

    /// Begins to replace the address space by what the kernel has now.
    pub(super) fn change_table(&mut self, within: Duration) -> Result<Change, Refusal> {
        let areas = if self.driver.runs() { self.fetch() } else { Vec::new() };
        // The kernel's own pages may be others at the same place only after a reset, and then nothing is kept.
        Ok(self.ioas.begin_replace(areas, Within::or_revoke(within))?)
    }

    /// Begins to forget everything. The kernel's own memory is mapped anew afterwards: it may have other pages by then.
    pub(super) fn forget_memory(&mut self, within: Duration) -> Result<Change, Refusal> {
        self.domain = Domain::default();
        Ok(self.ioas.begin_replace(Vec::new(), Within::or_revoke(within))?)
    }

    /// The kernel's table. If it is too long to be fetched as a whole, what of it is mapped already; nothing if it cannot be had
    /// now. The rest is asked for when it is missed.
    fn fetch(&mut self) -> Vec<Area> {
        let mut areas = Vec::new();
        let mut from = Some(0);
        for _ in 0..=FETCHED {
            let memory = match from.map(|first| self.kernel.memory(first, u64::MAX)) {
                Some(Ok(Some(memory))) => memory,
                Some(Err(error)) => {
                    let name = &self.name;
                    log::warn!(
                        "{name}: what is mapped cannot be fetched now, but only when it is needed: {error}"
                    );
                    return Vec::new();
                }
                Some(Ok(None)) | None => {
                    self.translations.count(Event::Update);
                    return areas;
                }
            };
            if from > Some(memory.first) {
                // It is being replaced under our eyes, and the kernel is about to say so.
                return Vec::new();
            }
            from = memory.last.checked_add(1);
            let at = memory.first;
            match self.area(memory) {
                Ok(area) => areas.push(area),
                Err(hole) => self.tell_hole(Iova(at), &hole),
            }
        }
        self.still_there()
    }

    /// What is mapped, as far as the kernel has it where it was. Nothing if that is too much to ask for.
    fn still_there(&mut self) -> Vec<Area> {
        let mapped = self.ioas.areas();
        let (mut areas, mut free) = (Vec::new(), Some(Iova(0)));
        for first in mapped.iter().map(|area| area.range.first()).filter(|_| mapped.len() <= FETCHED) {
            let Ok(Some(memory)) = self.kernel.memory(first.0, first.0) else { continue };
            // The kernel has cut it elsewhere, or is doing so.
            if memory.first != first.0 || free.is_none_or(|free| first < free) {
                continue;
            }
            if let Ok(area) = self.area(memory) {
                free = area.range.last().checked_add(1);
                areas.push(area);
            }
        }
        areas
    }

    /// An entry of the kernel's table as an area that can be mapped.
    fn area(&mut self, memory: IotlbFile) -> Result<Area, Hole> {
        let unusable = |error: &dyn ToString| Hole::Unusable(error.to_string());
        let IotlbFile { first, last, perm, offset, file } = memory;
        let range = IovaRange::new(Iova(first), Iova(last)).map_err(|error| unusable(&error))?;
        let file = BackingFile::new(file, &self.files).map_err(|error| unusable(&error))?;
        let file = match self.bounce.file(self.kernel.as_ref(), first, last) {
            Some(ours) => ours,
            None => self.domain.known(file),
        };
        let area =
            Area { range, extent: FileExtent { file, offset }.into(), perm: permission(perm), log: None };
        // What cannot be mapped would spoil all the others.
        self.ioas.windows().segments(&area).map_err(|error| unusable(&error))?;
        Ok(area)
    }

    /// A ring has missed something, and waits for it: also one that is being stopped, which has to tell of what has ended.
    pub(super) fn missed(&mut self, queues: &mut dyn Queues, index: u16, iova: Iova, perm: Perm) {
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return };
        if vring.run != Run::Stopped {
            vring.missing = Some((iova, perm));
            self.translations.count(Event::Miss);
            self.supply(queues);
        }
    }

    /// Asks the kernel for what rings miss. While the table is being changed they wait: the change may bring it.
    pub(super) fn supply(&mut self, queues: &mut dyn Queues) {
        if self.barrier.as_ref().is_some_and(|barrier| barrier.changes_table()) {
            return;
        }
        for index in 0..self.vrings.len() {
            let Some(vring) = self.vrings.get_mut(index) else { return };
            let Some((iova, perm)) = vring.missing.take().filter(|_| vring.run != Run::Stopped) else {
                continue;
            };
            match self.map_missing(iova, perm) {
                Ok(true) => {}
                // What is there is out of date, and the kernel is about to say so.
                Ok(false) => {
                    if let Some(vring) = self.vrings.get_mut(index) {
                        vring.missing = Some((iova, perm));
                    }
                }
                Err(hole) => {
                    queues.forsake(self.conn, index as u16, iova);
                    self.tell_hole(iova, &hole);
                }
            }
        }
    }

    /// Maps what the kernel has at an address. `false`: something else is mapped where that lies.
    fn map_missing(&mut self, iova: Iova, wanted: Perm) -> Result<bool, Hole> {
        let there = self.ioas.areas().into_iter().find(|area| area.range.contains(iova));
        if there.is_some_and(|area| area.perm.contains(wanted)) {
            return Ok(true);
        }
        let memory = self.kernel.memory(iova.0, iova.0).map_err(|error| Hole::Unusable(error.to_string()))?;
        let area = self.area(memory.ok_or(Hole::Nothing)?)?;
        if !area.perm.contains(wanted) {
            return Err(Hole::Permission { wanted, perm: area.perm });
        }
        match self.ioas.map(area) {
            Ok(()) => {
                self.translations.count(Event::Update);
                Ok(true)
            }
            Err(IoasError::Exists { .. } | IoasError::Busy) => Ok(false),
            Err(error) => Err(Hole::Unusable(error.to_string())),
        }
    }

    fn tell_hole(&self, iova: Iova, hole: &Hole) {
        if let Some(left_out) = self.log_limit.permit() {
            log::warn!("{}: address {:#x} cannot be reached: {hole}{left_out}", self.name, iova.0);
        }
    }
}

impl Domain {
    /// The file itself, or, for the kernel's own memory, the one that was given first: each time it comes as another
    /// descriptor of the same file.
    fn known(&mut self, file: Arc<BackingFile>) -> Arc<BackingFile> {
        if file.kind() != FileKind::VduseDomain {
            return file;
        }
        match &self.0 {
            Some(known) if known.is_same_file(&file) => known.clone(),
            _ => self.0.insert(file).clone(),
        }
    }
}

fn permission(perm: IotlbPerm) -> Perm {
    let mut access = Perm::empty();
    access.set(Perm::READ, perm.contains(IotlbPerm::READ));
    access.set(Perm::WRITE, perm.contains(IotlbPerm::WRITE));
    access
}
