//! The memory that a client has lent.
//!
//! What is mapped is known by address and size, as messages name it, and changes when a message comes; the address space follows, and
//! replies leave in order when it has.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Instant;

use mdev_dma::{Area, BackingFile, Extent, FileExtent, FileKind, Iova, IovaRange, Perm, RemoteExtent};
use mdev_pin::{Change, IoasError, Within};
use mdev_protocol::frame::Fds;
use mdev_protocol::vfio_user::{DmaFlags, DmaMap, DmaUnmap, Header, Reply};

use super::error::Refusal;
use super::{LAST_CHANCE, Queues, Session};
use crate::session::ask_again;

/// Ranges that may be mapped at a time.
pub(super) const MAX_MAPS: usize = 65535;
/// Replies that may be outstanding before nothing more is read.
const MAX_UNDER_WAY: usize = 256;
/// All ranges are of whole pages of this size.
const PAGE: u64 = 4096;

/// What is lent, and what is under way.
#[derive(Default)]
pub(super) struct Lent {
    /// By first address.
    ranges: BTreeMap<u64, Size>,
    /// The files that they are in.
    files: Vec<Weak<BackingFile>>,
    under_way: VecDeque<UnderWay>,
}

/// Bytes of a range.
type Size = u64;

/// A message that is not answered yet.
struct UnderWay {
    header: Header,
    since: Instant,
    step: Step,
}

enum Step {
    /// The device is letting go; or will be, when another unmap before it is done with the same addresses.
    Unmap { unmap: DmaUnmap, gone: BTreeMap<u64, Size>, change: Option<Change>, last_chance: bool },
    /// Waits for an unmap before it that has the same addresses.
    Map(Area),
    /// The reply is known.
    Done(Result<Reply, Refusal>),
}

impl Lent {
    /// Whether nothing more is to be read.
    pub(super) fn is_busy(&self) -> bool {
        self.under_way.len() >= MAX_UNDER_WAY
    }

    /// When to look again.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        ask_again(self.under_way.front()?.since, now)
    }

    /// The range that has one of these addresses.
    fn overlapping(&self, first: u64, last: u64) -> Option<u64> {
        let (&address, size) = self.ranges.range(..=last).next_back()?;
        (address.saturating_add(size.saturating_sub(1)) >= first).then_some(address)
    }

    /// Whether a range like this is being unmapped, or waits for that.
    fn is_leaving(&self, range: IovaRange) -> bool {
        self.under_way.iter().any(|one| match &one.step {
            Step::Unmap { gone, .. } => gone.iter().any(|(&address, size)| {
                let last = address.saturating_add(size.saturating_sub(1));
                address <= range.last().0 && last >= range.first().0
            }),
            Step::Map(area) => area.range.intersection(range).is_some(),
            Step::Done(_) => false,
        })
    }

    /// A file that is held already and is the same, so that a thousand ranges of one cost one descriptor.
    fn shared(&mut self, file: Arc<BackingFile>) -> Arc<BackingFile> {
        let same = |there: &Arc<BackingFile>| {
            matches!(file.kind(), FileKind::Shmem | FileKind::Hugetlbfs)
                && there.id() == file.id()
                && there.perm() == file.perm()
        };
        if let Some(known) = self.files.iter().filter_map(Weak::upgrade).find(same) {
            return known;
        }
        self.files.retain(|there| there.strong_count() > 0);
        self.files.push(Arc::downgrade(&file));
        file
    }
}

impl Session {
    /// `DMA_MAP`.
    pub(super) fn dma_map(&mut self, header: &Header, map: &DmaMap, mut fds: Fds) -> Result<(), Refusal> {
        let DmaMap { flags, offset, address, size } = *map;
        if !(address | size | offset).is_multiple_of(PAGE) {
            return Err(Refusal::Unaligned { address, size });
        }
        let range =
            IovaRange::with_len(Iova(address), size).map_err(|_| Refusal::Unaligned { address, size })?;
        let perm = perm_of(flags);
        if perm.is_empty() {
            return Err(Refusal::NoAccess);
        }
        if let Some(existing) = self.lent.overlapping(address, range.last().0) {
            return Err(Refusal::Overlap { address, size, existing });
        }
        if self.lent.ranges.len() >= MAX_MAPS {
            return Err(Refusal::TooMany(MAX_MAPS));
        }
        let extent: Extent = match fds.pop() {
            None => RemoteExtent { memory: self.wire.outbox().clone(), address }.into(),
            Some(fd) => {
                let file = BackingFile::new(fd, &self.options.files)
                    .map_err(|source| Refusal::File { address, source })?;
                let length = file.size().map_err(|source| Refusal::Length { address, source })?;
                let end = offset.saturating_add(size);
                if end > length {
                    return Err(Refusal::BeyondFile { address, end, file: length });
                }
                if !file.perm().contains(perm) {
                    return Err(Refusal::Permission { address });
                }
                FileExtent { file: self.lent.shared(file), offset }.into()
            }
        };
        let area = Area { range, extent, perm, log: None };
        let step = if self.lent.is_leaving(range) {
            Step::Map(area)
        } else {
            self.ioas.map(area)?;
            Step::Done(Ok(Reply::DmaMap))
        };
        self.lent.ranges.insert(address, size);
        self.lent.under_way.push_back(UnderWay { header: *header, since: Instant::now(), step });
        Ok(())
    }

    /// `DMA_UNMAP`.
    pub(super) fn dma_unmap(&mut self, header: &Header, unmap: DmaUnmap) -> Result<(), Refusal> {
        let gone = match unmap {
            DmaUnmap::All => std::mem::take(&mut self.lent.ranges),
            DmaUnmap::Range { address, size } => {
                if self.lent.ranges.get(&address) != Some(&size) {
                    return Err(Refusal::NotMapped { address, size });
                }
                self.lent.ranges.remove_entry(&address).into_iter().collect()
            }
        };
        self.settle_maps(&gone);
        let step = if gone.is_empty() {
            Step::Done(Ok(Reply::DmaUnmap(unmap)))
        } else {
            self.begin_unmap(unmap, gone)
        };
        self.lent.under_way.push_back(UnderWay { header: *header, since: Instant::now(), step });
        Ok(())
    }

    /// Begins an unmap, unless another one is at work there.
    fn begin_unmap(&mut self, unmap: DmaUnmap, gone: BTreeMap<u64, Size>) -> Step {
        match range_of(unmap).map(|range| self.ioas.begin_unmap(range, Within::or_revoke(self.within()))) {
            Some(Ok(change)) => Step::Unmap { unmap, gone, change: Some(change), last_chance: false },
            Some(Err(IoasError::Busy)) => Step::Unmap { unmap, gone, change: None, last_chance: false },
            // It was never made, since it was to be unmapped again.
            None | Some(Err(IoasError::NotFound(_))) => Step::Done(Ok(Reply::DmaUnmap(unmap))),
            Some(Err(error)) => self.stuck(gone, error),
        }
    }

    /// Maps that wait and are to be unmapped again need not be made.
    fn settle_maps(&mut self, gone: &BTreeMap<u64, Size>) {
        for one in &mut self.lent.under_way {
            if let Step::Map(area) = &one.step
                && gone.contains_key(&area.range.first().0)
            {
                one.step = Step::Done(Ok(Reply::DmaMap));
            }
        }
    }

    /// Goes on with what is under way, and answers what is done, in order.
    pub(super) fn advance_memory(&mut self, queues: &mut dyn Queues) {
        let mut under_way = std::mem::take(&mut self.lent.under_way);
        for at in 0..under_way.len() {
            let Some(one) = under_way.get_mut(at) else { break };
            let step = std::mem::replace(&mut one.step, Step::Done(Ok(Reply::DmaMap)));
            let step = match step {
                Step::Unmap { unmap, gone, change: Some(change), last_chance } => {
                    self.advance_unmap(queues, unmap, gone, change, last_chance)
                }
                Step::Unmap { unmap, gone, change: None, .. } => self.begin_unmap(unmap, gone),
                step => step,
            };
            if let Some(one) = under_way.get_mut(at) {
                one.step = step;
            }
        }
        self.lent.under_way = under_way;
        self.map_what_waited();
        while let Some(UnderWay { header, step: Step::Done(_), .. }) = self.lent.under_way.front() {
            let header = *header;
            let Some(UnderWay { step: Step::Done(done), .. }) = self.lent.under_way.pop_front() else {
                break;
            };
            match done {
                Ok(reply) => self.answer(&header, &reply),
                Err(refusal) => self.refuse(&header, &refusal),
            }
        }
    }

    fn advance_unmap(
        &mut self,
        queues: &mut dyn Queues,
        unmap: DmaUnmap,
        gone: BTreeMap<u64, Size>,
        mut change: Change,
        last_chance: bool,
    ) -> Step {
        let Some(outcome) = change.poll() else {
            return Step::Unmap { unmap, gone, change: Some(change), last_chance };
        };
        if change.revoked() {
            log::warn!("{}: memory that the device held on to was taken away from it", self.name);
        }
        match (outcome, range_of(unmap)) {
            (Ok(_), _) => Step::Done(Ok(Reply::DmaUnmap(unmap))),
            (Err(IoasError::Deadlock(_)), Some(range)) if !last_chance => {
                log::warn!(
                    "{}: commands still use memory that is being unmapped; they are cancelled, and the controller \
                     stops until its host resets it",
                    self.name
                );
                self.function.give_up(&self.access, self.conn, queues);
                match self.ioas.begin_unmap(range, Within::or_revoke(LAST_CHANCE)) {
                    Ok(change) => Step::Unmap { unmap, gone, change: Some(change), last_chance: true },
                    Err(error) => self.stuck(gone, error),
                }
            }
            (Err(error), _) => self.stuck(gone, error),
        }
    }

    /// What could not be unmapped is there still, as far as the client is concerned.
    fn stuck(&mut self, gone: BTreeMap<u64, Size>, error: IoasError) -> Step {
        log::error!(
            "{}: memory could not be released: {error}. The client was told, but QEMU prints this error at most and \
             goes on as if the memory were free",
            self.name
        );
        for (address, size) in gone {
            self.lent.ranges.entry(address).or_insert(size);
        }
        Step::Done(Err(error.into()))
    }

    /// Makes the maps whose addresses are free now.
    fn map_what_waited(&mut self) {
        let mut before: Vec<IovaRange> = Vec::new();
        for at in 0..self.lent.under_way.len() {
            let Some(one) = self.lent.under_way.get(at) else { return };
            let area = match &one.step {
                Step::Map(area) => area.clone(),
                Step::Unmap { gone, .. } => {
                    before.extend(
                        gone.iter()
                            .filter_map(|(&address, &size)| IovaRange::with_len(Iova(address), size).ok()),
                    );
                    continue;
                }
                Step::Done(_) => continue,
            };
            if before.iter().any(|range| range.intersection(area.range).is_some()) {
                continue;
            }
            let address = area.range.first().0;
            let done = self.ioas.map(area).map(|()| Reply::DmaMap).map_err(Refusal::from);
            if done.is_err() {
                self.lent.ranges.remove(&address);
            }
            if let Some(one) = self.lent.under_way.get_mut(at) {
                one.step = Step::Done(done);
            }
        }
    }
}

/// The addresses that an unmap is about.
fn range_of(unmap: DmaUnmap) -> Option<IovaRange> {
    match unmap {
        DmaUnmap::All => Some(IovaRange::FULL),
        DmaUnmap::Range { address, size } => IovaRange::with_len(Iova(address), size).ok(),
    }
}

fn perm_of(flags: DmaFlags) -> Perm {
    let mut perm = Perm::empty();
    perm.set(Perm::READ, flags.contains(DmaFlags::READ));
    perm.set(Perm::WRITE, flags.contains(DmaFlags::WRITE));
    perm
}
