//! A submission queue and its completion queue (base specification, section 3.3).

use std::sync::atomic::Ordering;

use mdev_dma::Iova;
use mdev_protocol::nvme::command::{Command, Completion};

use super::doorbell::Doorbell;
use crate::driver::{DriverError, GuestMemory, MemoryError, Part};

const PAGE: u64 = 4096;

/// A pair of queues. One entry is never used, so that a full queue is none that is empty; with as many entries, and no other
/// submission queue, the completion queue cannot overflow.
pub struct QueuePair {
    qid: u16,
    entries: u32,
    submissions: Part,
    completions: Part,
    tail: u32,
    head: u32,
    /// What the tag of the next completion is.
    phase: bool,
    under_way: u32,
    tail_bell: Doorbell,
    head_bell: Doorbell,
}

impl QueuePair {
    pub(super) fn new(
        memory: &mut GuestMemory,
        qid: u16,
        entries: u32,
        [tail_bell, head_bell]: [Doorbell; 2],
    ) -> Result<Self, MemoryError> {
        let submissions = memory.allocate(u64::from(entries) * Command::LEN as u64, PAGE)?;
        let completions = memory.allocate(u64::from(entries) * Completion::LEN as u64, PAGE)?;
        let (tail, head, under_way) = (0, 0, 0);
        Ok(QueuePair {
            qid,
            entries,
            submissions,
            completions,
            tail,
            head,
            phase: true,
            under_way,
            tail_bell,
            head_bell,
        })
    }

    /// Bytes of guest memory that a pair takes at most.
    pub fn memory(entries: u32) -> u64 {
        u64::from(entries) * (Command::LEN + Completion::LEN) as u64 + 2 * PAGE
    }

    /// Its number.
    pub fn qid(&self) -> u16 {
        self.qid
    }

    /// Entries of each of its queues.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Commands that can be pushed.
    #[inline]
    pub fn room(&self) -> u32 {
        self.entries.saturating_sub(1).saturating_sub(self.under_way)
    }

    /// Commands whose completions have not been reaped.
    #[inline]
    pub fn under_way(&self) -> u32 {
        self.under_way
    }

    /// Where the submission queue and the completion queue are.
    pub(super) fn bases(&self) -> [Iova; 2] {
        [self.submissions.at, self.completions.at]
    }

    /// Writes the next submission queue entry; false if there is no room. The controller does not look there before
    /// [`QueuePair::ring`].
    #[inline]
    pub fn push(&mut self, command: &Command) -> bool {
        let at = self.tail as usize * Command::LEN;
        let Some(entries) = self.submissions.slice().filter(|_| self.room() > 0) else { return false };
        if entries.write(at, *command).is_none() {
            return false;
        }
        self.tail = if self.tail + 1 < self.entries { self.tail + 1 } else { 0 };
        self.under_way += 1;
        true
    }

    /// Lets the controller see all that was pushed.
    ///
    /// # Errors
    /// The connection is over.
    #[inline]
    pub fn ring(&mut self) -> Result<(), DriverError> {
        self.tail_bell.ring(self.tail)
    }

    /// Hands up to `limit` completions to `each`, and lets the controller use their entries again. How many they were.
    ///
    /// # Errors
    /// A completion although nothing is under way; the connection is over.
    #[inline]
    pub fn reap(&mut self, limit: u32, mut each: impl FnMut(Completion)) -> Result<u32, DriverError> {
        let Some(entries) = self.completions.slice() else { return Ok(0) };
        let mut count = 0;
        while count < limit {
            let at = self.head as usize * Completion::LEN;
            // The rest of an entry is there when its last dword is.
            let Some(last) = entries.load_u32(at + Completion::LAST_OFFSET, Ordering::Acquire) else { break };
            let status = (u32::from_le(last) >> 16) as u16;
            if (status & 1 != 0) != self.phase {
                break;
            }
            let Some(completion) = entries.read::<Completion>(at) else { break };
            self.under_way = self.under_way.checked_sub(1).ok_or(DriverError::NotUnderWay(completion.cid))?;
            count += 1;
            self.head += 1;
            if self.head == self.entries {
                self.head = 0;
                self.phase = !self.phase;
            }
            each(completion);
        }
        if count > 0 {
            self.head_bell.ring(self.head)?;
        }
        Ok(count)
    }

    /// Begins anew, when the controller does. What was under way is forgotten.
    pub(super) fn begin_anew(&mut self) {
        self.completions.slice().iter().for_each(|entries| entries.fill(0));
        (self.tail, self.head, self.under_way, self.phase) = (0, 0, 0, true);
    }
}
