//! A completion queue: how the host learns what has ended (base specification, section 3.3.3.2).
//!
//! The submission queues of several engines may end in one completion queue, so its position is behind a mutex, which an engine
//! tries once per burst that has ended something. Where another engine has it, or the queue is full, the completions stay
//! with their engine: none is lost, and none is waited for.
//!
//! Where the client keeps the entries, they are sent to it: see `remote`.
//!
//! The host's head doorbell is read only when the room that is known is used up. A head that is not between the last one and
//! the tail is ignored and told of.

mod remote;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use mdev_dma::{GuestSlice, Iova, IovaRange, Perm};
use mdev_pin::{Burst, KeptSlice, ResolveError};
use mdev_protocol::nvme::command::Completion;
use mdev_protocol::nvme::status::Status;

use super::doorbells::{Doorbell, Doorbells};
use super::legs::Legs;
use super::submission::entries_at;
use super::vectors::Vectors;

/// What a completion queue is created with.
pub struct CompletionSetup {
    /// Its identifier.
    pub qid: u16,
    /// Where its entries are, aligned to pages.
    pub base: Iova,
    /// How many, 2 to 65536.
    pub entries: u32,
    /// The vector that it interrupts with, if it does.
    pub vector: Option<u16>,
    /// Where its head doorbell is.
    pub doorbells: Arc<Doorbells>,
    /// Who is interrupted.
    pub vectors: Arc<Vectors>,
}

/// A completion queue. Shared by the engines of its submission queues and the control thread.
pub struct CompletionQueue {
    qid: u16,
    base: Iova,
    entries: u32,
    vector: Option<u16>,
    vectors: Arc<Vectors>,
    position: Mutex<Position>,
    /// The tail, for those who only look.
    tail: AtomicU32,
    /// Somebody has completions and found no room.
    awaited: AtomicBool,
    /// The client keeps its entries.
    is_remote: AtomicBool,
    /// Entries are on their way there.
    is_sending: AtomicBool,
    /// How many such batches have arrived.
    batch: AtomicU32,
}

struct Position {
    tail: u32,
    /// Of the entry at the tail.
    phase: bool,
    /// Where the host was seen.
    head: u32,
    /// Entries that may be written without another look.
    room: u32,
    doorbell: Doorbell,
    kept: Option<KeptSlice>,
    /// The doorbell stood at a bad value when it was last read.
    bad: bool,
    /// Entries that are on their way to the client, and where they go.
    runs: Vec<(Iova, Vec<u8>)>,
    legs: Legs,
}

/// A command that has ended, for its host.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The command's identifier.
    pub cid: u16,
    /// How it ended.
    pub status: Status,
    /// Dword 0 of the completion.
    pub result: u32,
}

impl Ended {
    /// The end of a command that has no result.
    pub const fn new(cid: u16, status: Status) -> Self {
        Self { cid, status, result: 0 }
    }

    /// The two words of its entry. The phase tag is in the second one.
    #[inline(always)]
    fn words(&self, sq_id: u16, sq_head: u16, phase: bool) -> [u64; 2] {
        let status = u64::from(self.status.0) << 1 | u64::from(phase);
        let queue = u64::from(sq_head) | u64::from(sq_id) << 16;
        [u64::from(self.result).to_le(), (queue | u64::from(self.cid) << 32 | status << 48).to_le()]
    }
}

/// What came of an attempt to post completions.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Posted {
    /// So many of them were written, from the first on.
    pub count: usize,
    /// The head doorbell has come to stand at this value, which cannot be.
    pub bad_head: Option<u32>,
    /// There is no room for the others.
    pub full: bool,
}

impl CompletionQueue {
    /// An empty queue, whose entries the host has set to zero.
    pub fn new(setup: CompletionSetup) -> Self {
        let CompletionSetup { qid, base, entries, vector, doorbells, vectors } = setup;
        let entries = entries.max(2);
        let position = Position {
            tail: 0,
            phase: true,
            head: 0,
            room: entries.saturating_sub(1),
            doorbell: Doorbell::of_head(doorbells, qid),
            kept: None,
            bad: false,
            runs: Vec::new(),
            legs: Legs::default(),
        };
        let (tail, awaited) = (AtomicU32::new(0), AtomicBool::new(false));
        let (is_remote, is_sending) = (AtomicBool::new(false), AtomicBool::new(false));
        let (position, batch) = (Mutex::new(position), AtomicU32::new(0));
        Self { qid, base, entries, vector, vectors, position, tail, awaited, is_remote, is_sending, batch }
    }

    /// Its identifier.
    pub fn qid(&self) -> u16 {
        self.qid
    }

    /// Where its entries are. `None` if that wraps.
    pub fn range(&self) -> Option<IovaRange> {
        entries_at(self.base, self.entries, Completion::LEN)
    }

    /// The vector that it interrupts with, if it does.
    pub fn vector(&self) -> Option<u16> {
        self.vector
    }

    /// Writes as many completions as there is room for, of commands of submission queue `sq_id`, from which everything before
    /// `sq_head` was fetched. The host is not told: see [`CompletionQueue::announce`].
    ///
    /// # Errors
    /// Its memory is not there, and nothing was written; or was lost, and nobody knows what was.
    #[inline]
    pub fn post(
        &self,
        burst: &Burst<'_>,
        sq_id: u16,
        sq_head: u16,
        ended: &[Ended],
    ) -> Result<Posted, ResolveError> {
        let mut position = match self.position.try_lock() {
            Ok(position) => position,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Another engine is posting: the next poll tries again.
            Err(TryLockError::WouldBlock) => return Ok(Posted::default()),
        };
        let position = &mut *position;
        let place = self.place(position, burst)?;
        let wanted = ended.len();
        let mut posted = Posted::default();
        if (position.room as usize) < wanted {
            posted.bad_head = self.look(position, burst)?;
        }
        // Entries are 16 bytes, in two words; the phase tag is in the second one.
        let slots = place.pairs().unwrap_or_default();
        for one in ended.iter().take(position.room as usize) {
            let Some([first, second]) = slots.get(position.tail as usize) else { break };
            let words = one.words(sq_id, sq_head, position.phase);
            first.store(words[0], Ordering::Relaxed);
            second.store(words[1], Ordering::Release);
            self.step(position);
            posted.count = posted.count.wrapping_add(1);
        }
        position.room = position.room.saturating_sub(posted.count as u32);
        posted.full = posted.count < wanted;
        self.tail.store(position.tail, Ordering::Release);
        if burst.poisoned() && place.poisoned() { Err(ResolveError::Poisoned) } else { Ok(posted) }
    }

    #[inline(always)]
    fn step(&self, position: &mut Position) {
        position.tail = position.tail.wrapping_add(1);
        if position.tail >= self.entries {
            position.tail = 0;
            position.phase = !position.phase;
        }
    }

    /// Interrupts the host, if it wants to be: once for whatever was posted since.
    #[inline]
    pub fn announce(&self) {
        // What is on its way is told of when it has arrived.
        if !self.is_remote.load(Ordering::Relaxed) {
            self.interrupt();
        }
    }

    #[inline]
    fn interrupt(&self) {
        if let Some(vector) = self.vector {
            self.vectors.raise(vector);
        }
    }

    /// Asks the host to touch its doorbell when it takes entries, for somebody who goes to sleep with completions that found no
    /// room. True if there is room already, or may be.
    ///
    /// # Errors
    /// Its memory is not there.
    pub fn await_room(&self, burst: &Burst<'_>) -> Result<bool, ResolveError> {
        let Ok(mut position) = self.position.try_lock() else { return Ok(true) };
        self.awaited.store(true, Ordering::Relaxed);
        // Whoever writes the doorbell looks at this behind that.
        fence(Ordering::SeqCst);
        let head = position.head;
        position.doorbell.wish(burst, head)?;
        // A bad head is for the next poll to tell of.
        let bad = self.look(&mut position, burst)?.is_some();
        position.bad &= !bad;
        Ok(bad || position.room > 0)
    }

    /// Whether somebody sleeps until the host takes entries: to be asked, once, after its head doorbell was written. Then the engines of
    /// its submission queues are to be kicked.
    pub fn take_awaited(&self) -> bool {
        fence(Ordering::SeqCst);
        self.awaited.swap(false, Ordering::Relaxed)
    }

    /// Whether the host has not taken all entries yet: what keeps a level-triggered interrupt asserted. Memory that is not there
    /// counts as taken.
    pub fn has_entries(&self, burst: &Burst<'_>) -> bool {
        let mut position = self.lock();
        let head = position.doorbell.read(burst).unwrap_or(position.tail);
        head != position.tail
    }

    /// Where the next completion goes.
    pub fn tail(&self) -> u32 {
        self.tail.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Position> {
        // A position is valid after every step.
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its entries in the present table.
    #[inline(always)]
    fn place<'s>(
        &self,
        position: &mut Position,
        burst: &'s Burst<'_>,
    ) -> Result<GuestSlice<'s>, ResolveError> {
        match position.kept.as_ref().and_then(|kept| burst.recall(kept)) {
            Some(slice) => Ok(slice),
            None => self.find(position, burst),
        }
    }

    #[cold]
    fn find<'s>(
        &self,
        position: &mut Position,
        burst: &'s Burst<'_>,
    ) -> Result<GuestSlice<'s>, ResolveError> {
        position.kept = None;
        let len = self.entries.saturating_mul(Completion::LEN as u32);
        let (slice, kept) = burst.slice_to_keep(self.base, len, Perm::READ | Perm::WRITE)?;
        position.kept = Some(kept);
        Ok(slice)
    }

    /// Looks where the host is. A value that cannot be is returned, once until it is another one.
    fn look(&self, position: &mut Position, burst: &Burst<'_>) -> Result<Option<u32>, ResolveError> {
        let head = position.doorbell.read(burst)?;
        let used = distance(position.head, position.tail, self.entries);
        if head >= self.entries || distance(position.head, head, self.entries) > used {
            let told = std::mem::replace(&mut position.bad, true);
            return Ok((!told).then_some(head));
        }
        position.bad = false;
        position.head = head;
        let used = distance(head, position.tail, self.entries);
        position.room = self.entries.saturating_sub(1).saturating_sub(used);
        Ok(None)
    }
}

/// Entries from one place to another, in a queue of `entries`. Both are less than that.
#[inline(always)]
pub(super) fn distance(from: u32, to: u32, entries: u32) -> u32 {
    if to >= from { to.wrapping_sub(from) } else { to.wrapping_add(entries).wrapping_sub(from) }
}
