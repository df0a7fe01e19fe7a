//! A submission queue: where the host puts its commands (base specification, section 3.3.3.1).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use mdev_dma::{GuestSlice, Iova, IovaRange, Perm};
use mdev_pin::{Access, Burst, KeptSlice, ResolveError};
use mdev_protocol::nvme::command::Command;
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::completion::{CompletionQueue, distance};
use super::doorbells::{Doorbell, Doorbells};
use super::legs::{Legs, Progress, Waiter};
use crate::sys::EventFd;

/// What an I/O submission queue is created with.
#[derive(Clone)]
pub struct SubmissionSetup {
    /// Its identifier.
    pub qid: u16,
    /// Where its entries are, aligned to pages.
    pub base: Iova,
    /// How many, 2 to 65536.
    pub entries: u32,
    /// Where its commands end.
    pub completion: Arc<CompletionQueue>,
    /// The device's attachment to guest memory.
    pub access: Access,
    /// Where its tail doorbell is.
    pub doorbells: Arc<Doorbells>,
    /// Signalled when the host has written a doorbell that was trapped.
    pub kick: Option<Arc<EventFd>>,
}

impl SubmissionSetup {
    /// Where its entries are. `None` if that wraps.
    pub fn range(&self) -> Option<IovaRange> {
        entries_at(self.base, self.entries, Command::LEN)
    }
}

/// So many entries of `len` bytes from `base` on.
pub(super) fn entries_at(base: Iova, entries: u32, len: usize) -> Option<IovaRange> {
    IovaRange::with_len(base, u64::from(entries).checked_mul(len as u64)?).ok()
}

/// How far the controller got in a submission queue.
pub(super) struct SubmissionQueue {
    qid: u16,
    base: Iova,
    entries: u32,
    head: u32,
    doorbell: Doorbell,
    kept: Option<KeptSlice>,
    /// The doorbell stood at a bad value when it was last read.
    bad: bool,
    /// Where the client keeps its entries.
    fetched: Option<Box<Fetched>>,
}

/// Entries that the client keeps.
#[derive(Default)]
struct Fetched {
    /// From the head on.
    entries: VecDeque<Command>,
    /// Those that are on their way.
    legs: Legs,
}

impl SubmissionQueue {
    pub(super) fn new(qid: u16, base: Iova, entries: u32, doorbells: Arc<Doorbells>) -> Self {
        let doorbell = Doorbell::of_tail(doorbells, qid);
        Self { qid, base, entries: entries.max(2), head: 0, doorbell, kept: None, bad: false, fetched: None }
    }

    pub(super) fn qid(&self) -> u16 {
        self.qid
    }

    /// Everything before it was fetched.
    pub(super) fn head(&self) -> u16 {
        self.head as u16
    }

    /// Whether it is known, without a look at guest memory, that no command waits.
    #[inline(always)]
    pub(super) fn is_empty(&mut self) -> bool {
        self.doorbell.peek() == Some(self.head)
    }

    /// How many commands wait. A doorbell that cannot be is an empty queue; it is returned as an error's value, once until it is
    /// another one.
    ///
    /// # Errors
    /// The memory of its doorbell is not there.
    #[inline(always)]
    pub(super) fn waiting(&mut self, burst: &Burst<'_>) -> Result<Waiting, ResolveError> {
        let tail = self.doorbell.read(burst)?;
        if tail < self.entries {
            self.bad = false;
            return Ok(Waiting { count: distance(self.head, tail, self.entries), bad_tail: None });
        }
        let told = std::mem::replace(&mut self.bad, true);
        Ok(Waiting { count: 0, bad_tail: (!told).then_some(tail) })
    }

    /// Asks the host to touch the register when it adds commands. True if some wait already.
    ///
    /// # Errors
    /// The memory of its doorbell is not there.
    pub(super) fn await_commands(&mut self, burst: &Burst<'_>) -> Result<bool, ResolveError> {
        self.doorbell.wish(burst, self.head)?;
        let tail = self.doorbell.read(burst)?;
        // One that is bad and was not told of yet is found by a poll.
        Ok(tail != self.head && !(tail >= self.entries && self.bad))
    }

    /// Its entries in the present table.
    ///
    /// # Errors
    /// They are not there.
    #[inline(always)]
    pub(super) fn place<'s>(&mut self, burst: &'s Burst<'_>) -> Result<GuestSlice<'s>, ResolveError> {
        match self.kept.as_ref().and_then(|kept| burst.recall(kept)) {
            Some(slice) => Ok(slice),
            None => self.find(burst),
        }
    }

    #[cold]
    fn find<'s>(&mut self, burst: &'s Burst<'_>) -> Result<GuestSlice<'s>, ResolveError> {
        self.kept = None;
        let len = self.entries.saturating_mul(Command::LEN as u32);
        let (slice, kept) = burst.slice_to_keep(self.base, len, Perm::READ)?;
        self.kept = Some(kept);
        Ok(slice)
    }

    /// The commands from the head on, at most `count` of them, where the client keeps the entries. None as long as they are on their
    /// way; `waiter` is woken when they are there.
    ///
    /// # Errors
    /// The client does not give them; or they are nowhere.
    #[cold]
    pub(super) fn fetch(
        &mut self,
        access: &Access,
        waiter: &Waiter,
        burst: &Burst<'_>,
        count: u32,
    ) -> Result<&mut VecDeque<Command>, ResolveError> {
        let Fetched { entries, legs } = &mut **self.fetched.get_or_insert_default();
        if !entries.is_empty() {
            return Ok(entries);
        }
        if legs.is_empty() {
            let here = count.min(self.entries.saturating_sub(self.head));
            let offset = u64::from(self.head).saturating_mul(Command::LEN as u64);
            let at = self.base.checked_add(offset).ok_or(ResolveError::Overflow)?;
            legs.fetch(access, burst, at, here.saturating_mul(Command::LEN as u32))?;
        }
        match legs.look(waiter) {
            Progress::Pending => {}
            Progress::Done => {
                let bytes: Vec<u8> = legs.take().flat_map(|(_, bytes)| bytes).collect();
                let commands = bytes.chunks_exact(Command::LEN).map(Command::read_from_bytes);
                entries.extend(commands.filter_map(Result::ok));
            }
            // Unmapped; if it is mapped again it is asked for again.
            Progress::Failed(Errno::CANCELED) => drop(legs.take()),
            Progress::Failed(_) => {
                drop(legs.take());
                return Err(ResolveError::Elsewhere);
            }
        }
        Ok(entries)
    }

    /// What of them was not taken.
    pub(super) fn keep(&mut self, entries: VecDeque<Command>) {
        if let Some(fetched) = &mut self.fetched {
            fetched.entries = entries;
        }
    }

    /// The first of them was taken.
    pub(super) fn forget_first(&mut self) {
        if let Some(fetched) = &mut self.fetched {
            fetched.entries.pop_front();
        }
    }

    /// Whether commands are on their way from the client. Until then `waiter` is woken.
    pub(super) fn is_fetching(&mut self, waiter: &Waiter) -> bool {
        self.fetched
            .as_mut()
            .is_some_and(|fetched| !fetched.legs.is_empty() && fetched.legs.look(waiter) == Progress::Pending)
    }

    /// When they are given up.
    pub(super) fn fetched_by(&self) -> Option<Instant> {
        self.fetched.as_ref().and_then(|fetched| fetched.legs.until())
    }

    /// Brings the next `count` commands on their way.
    #[inline(always)]
    pub(super) fn prefetch(&self, place: &GuestSlice<'_>, count: u32) {
        for ahead in 0..count {
            place.prefetch_read(self.index(ahead).wrapping_mul(Command::LEN));
        }
    }

    /// The command `ahead` of the head.
    #[inline(always)]
    pub(super) fn command(&self, place: &GuestSlice<'_>, ahead: u32) -> Option<Command> {
        place.read(self.index(ahead).wrapping_mul(Command::LEN))
    }

    /// So many commands were fetched.
    #[inline(always)]
    pub(super) fn advance(&mut self, count: u32) {
        self.head = self.index(count) as u32;
    }

    #[inline(always)]
    fn index(&self, ahead: u32) -> usize {
        let at = self.head.wrapping_add(ahead);
        (if at >= self.entries { at.wrapping_sub(self.entries) } else { at }) as usize
    }
}

/// What a look at the tail doorbell found.
#[derive(Copy, Clone, Debug)]
pub(super) struct Waiting {
    pub(super) count: u32,
    /// The doorbell has come to stand at this value, which cannot be.
    pub(super) bad_tail: Option<u32>,
}
