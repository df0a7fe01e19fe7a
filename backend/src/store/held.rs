//! A store that keeps every request until somebody ends it by hand.
//!
//! # What it is
//!
//! What a disk does that does not answer, answers late, or answers in another order, at the very moment a test chooses.
//! The bytes are memory of this process. A request that is finished really moves them, a read into the guest's memory
//! and a write out of it, so that whoever watches that memory sees the transfer where it happens.
//!
//! # Objects
//!
//! - [`Held`]: the store, for whoever ends requests. Cloning shares it.
//! - [`Port`]: the end of one worker: it submits and takes what has ended. A store has any number of them.
//! - [`Pending`]: what is known of a request that is kept. It goes by a number that no other has.
//!
//! # Locks
//!
//! Three, none of which is taken inside another: the list of requests, the bytes, and the completions of each port. The
//! list and the completions are locked for one look or change, the bytes for one transfer.
//!
//! # What may block
//!
//! Nothing waits for a request to end. Ending one waits for another transfer under way, and so does [`Port::take`] when a
//! delay is over, since its thread then does the transfer. Stores for guests that matter take no lock on a worker; this
//! one is for tests.
//!
//! # What never fails
//!
//! Submitting, and letting go: a port that is dropped lets go of what it has submitted, unheard.
//!
//! # What it does not implement
//!
//! An order of requests to the same bytes. Memory that was lost (a file that shrank) under a transfer fails it with
//! `EFAULT`, after it has been made.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mdev_pin::Pin;
use rustix::io::Errno;

use super::compare::is_equal;
use super::{Completion, Limits, Operation, Request};
use crate::sys::EventFd;

/// What every such store can do.
pub const LIMITS: Limits =
    Limits { read_only: false, block: 512, physical_block: 512, max_discard: 1 << 20, max_zeroes: 1 << 20 };

/// The store, for whoever ends requests. See the [module](self).
#[derive(Clone)]
pub struct Held {
    shared: Arc<Shared>,
}

/// The end of one worker. Dropping it lets go of what it has submitted, unheard.
pub struct Port {
    shared: Arc<Shared>,
    outbox: Arc<Outbox>,
}

/// A request that is kept.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// What it goes by. Later requests have greater numbers.
    pub id: u64,
    /// The tag that its device gave it.
    pub tag: u64,
    /// What.
    pub operation: Operation,
    /// The first byte of the store.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// When a request ends by itself, successfully.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Delay {
    /// Never: only by hand.
    ByHand,
    /// When so many other requests of the store have ended from now on.
    Others(u64),
    /// At the first [`Port::take`] from this instant on.
    Until(Instant),
}

struct Shared {
    list: Mutex<List>,
    bytes: Mutex<Vec<u8>>,
}

#[derive(Default)]
struct List {
    next: u64,
    /// Requests that have ended.
    ended: u64,
    kept: BTreeMap<u64, Kept>,
}

struct Kept {
    request: Request,
    outbox: Arc<Outbox>,
    due: Due,
}

#[derive(Copy, Clone, PartialEq, Eq)]
enum Due {
    Never,
    /// When the store has ended so many.
    Ended(u64),
    At(Instant),
}

struct Outbox {
    completions: Mutex<Vec<Completion>>,
    bell: Arc<EventFd>,
    /// The bell has been signalled since it was drained, or is about to be. A worker that polls must not pay for a system call in
    /// every round.
    signalled: AtomicBool,
}

impl Outbox {
    fn signal(&self) {
        self.signalled.store(true, Ordering::Release);
        self.bell.signal();
    }
}

impl Held {
    /// A store of these bytes.
    pub fn new(bytes: Vec<u8>) -> Held {
        Held { shared: Arc::new(Shared { list: Mutex::default(), bytes: Mutex::new(bytes) }) }
    }

    /// A worker's end, whose completions signal `bell`.
    pub fn open(&self, bell: Arc<EventFd>) -> Port {
        let outbox =
            Arc::new(Outbox { completions: Mutex::default(), bell, signalled: AtomicBool::new(false) });
        Port { shared: self.shared.clone(), outbox }
    }

    /// What is kept, oldest first. A request that some thread is ending is not among it any more.
    pub fn pending(&self) -> Vec<Pending> {
        let list = lock(&self.shared.list);
        list.kept.iter().map(|(id, kept)| kept.describe(*id)).collect()
    }

    /// Carries out a request and ends it. `false` if it is not kept (any more).
    pub fn finish(&self, id: u64) -> bool {
        self.end(id, None)
    }

    /// Ends a request with an error; no byte is moved. `false` if it is not kept (any more).
    pub fn fail(&self, id: u64, errno: Errno) -> bool {
        self.end(id, Some(errno))
    }

    /// Says when a request ends by itself, instead of what was said before. `false` if it is not kept (any more).
    pub fn delay(&self, id: u64, delay: Delay) -> bool {
        let mut list = lock(&self.shared.list);
        let due = match delay {
            Delay::ByHand => Due::Never,
            Delay::Others(count) => Due::Ended(list.ended.saturating_add(count)),
            Delay::Until(at) => Due::At(at),
        };
        let Some(kept) = list.kept.get_mut(&id) else { return false };
        kept.due = due;
        let outbox = kept.outbox.clone();
        drop(list);
        // Its worker may have to wake earlier than it knows, and ends what waits for no others.
        outbox.signal();
        true
    }

    /// Finishes what is kept now, oldest first, and says how many.
    pub fn finish_all(&self) -> usize {
        let ids: Vec<u64> = lock(&self.shared.list).kept.keys().copied().collect();
        ids.into_iter().filter(|id| self.finish(*id)).count()
    }

    /// Ends what is kept now and touches these bytes of the store with `ECANCELED`, and says how many.
    pub fn cancel(&self, bytes: Range<u64>) -> usize {
        let touched = |pending: &Pending| {
            let end = pending.offset.saturating_add(pending.len);
            bytes.start.max(pending.offset) < bytes.end.min(end)
        };
        let touched: Vec<Pending> = self.pending().into_iter().filter(touched).collect();
        touched.into_iter().filter(|pending| self.fail(pending.id, Errno::CANCELED)).count()
    }

    /// How many bytes there are.
    pub fn size(&self) -> u64 {
        lock(&self.shared.bytes).len() as u64
    }

    /// A copy of the bytes.
    pub fn bytes(&self) -> Vec<u8> {
        lock(&self.shared.bytes).clone()
    }

    fn end(&self, id: u64, error: Option<Errno>) -> bool {
        let kept = lock(&self.shared.list).kept.remove(&id);
        let Some(kept) = kept else { return false };
        self.shared.end(kept, error);
        self.shared.end_overtaken();
        true
    }
}

impl Port {
    /// Keeps a request from now on.
    pub fn submit(&mut self, request: Request) {
        let mut list = lock(&self.shared.list);
        let id = list.next;
        list.next = id.saturating_add(1);
        list.kept.insert(id, Kept { request, outbox: self.outbox.clone(), due: Due::Never });
    }

    /// Ends what this port has submitted with `ECANCELED`.
    pub fn cancel(&mut self) {
        for kept in self.withdraw(|_| true) {
            self.shared.end(kept, Some(Errno::CANCELED));
        }
    }

    /// Ends the request of this tag with `ECANCELED`, if this port has submitted it.
    pub fn cancel_one(&mut self, tag: u64) {
        for kept in self.withdraw(|kept| kept.request.tag == tag) {
            self.shared.end(kept, Some(Errno::CANCELED));
        }
    }

    /// Appends the completions that have come to `out`, in the order of their ends. Ends before what was to wait until
    /// now.
    pub fn take(&mut self, out: &mut Vec<Completion>) {
        if self.outbox.signalled.swap(false, Ordering::Acquire) {
            self.outbox.bell.drain();
        }
        if let Some(due) = self.next_deadline()
            && Instant::now() >= due
        {
            self.end_due(Instant::now());
        }
        self.shared.end_overtaken();
        out.append(&mut lock(&self.outbox.completions));
    }

    /// When to [`take`](Port::take) even though the bell is silent.
    pub fn next_deadline(&self) -> Option<Instant> {
        let list = lock(&self.shared.list);
        let own = list.kept.values().filter(|kept| self.owns(kept));
        own.filter_map(|kept| if let Due::At(at) = kept.due { Some(at) } else { None }).min()
    }

    /// Signalled when a request of this port has ended.
    pub fn bell(&self) -> &Arc<EventFd> {
        &self.outbox.bell
    }

    fn owns(&self, kept: &Kept) -> bool {
        Arc::ptr_eq(&kept.outbox, &self.outbox)
    }

    fn end_due(&self, now: Instant) {
        for kept in self.withdraw(|kept| matches!(kept.due, Due::At(at) if at <= now)) {
            self.shared.end(kept, None);
        }
    }

    /// Takes those requests of this port from the list that `fits`.
    fn withdraw(&self, fits: impl Fn(&Kept) -> bool) -> Vec<Kept> {
        let mut list = lock(&self.shared.list);
        let taken = list.kept.extract_if(.., |_, kept| self.owns(kept) && fits(kept));
        taken.map(|(_, kept)| kept).collect()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // Their pins go without the lock.
        drop(self.withdraw(|_| true));
    }
}

impl Shared {
    /// Ends a request that was taken from the list.
    fn end(&self, kept: Kept, error: Option<Errno>) {
        let Kept { request, outbox, .. } = kept;
        let tag = request.tag;
        let result = match error {
            Some(errno) => Err(errno),
            None => carry_out(&request, &mut lock(&self.bytes)),
        };
        // The pins go first: who sees the completion may rely on that.
        drop(request);
        lock(&outbox.completions).push(Completion { tag, result });
        let mut list = lock(&self.list);
        list.ended = list.ended.saturating_add(1);
        drop(list);
        outbox.signal();
    }

    /// Ends what has waited for others for long enough, the oldest first; each end may be what another waits for.
    fn end_overtaken(&self) {
        while let Some(kept) = self.overtaken() {
            self.end(kept, None);
        }
    }

    fn overtaken(&self) -> Option<Kept> {
        let mut list = lock(&self.list);
        let ended = list.ended;
        let over = |kept: &Kept| matches!(kept.due, Due::Ended(count) if count <= ended);
        let id = list.kept.iter().find(|(_, kept)| over(kept)).map(|(id, _)| *id)?;
        list.kept.remove(&id)
    }
}

impl Kept {
    fn describe(&self, id: u64) -> Pending {
        let Request { tag, operation, offset, len, .. } = self.request;
        Pending { id, tag, operation, offset, len }
    }
}

/// Carries out a request.
fn carry_out(request: &Request, bytes: &mut [u8]) -> Result<u64, Errno> {
    let first = usize::try_from(request.offset).map_err(|_| Errno::INVAL)?;
    let len = usize::try_from(request.len).map_err(|_| Errno::INVAL)?;
    let end = first.checked_add(len).ok_or(Errno::INVAL)?;
    let mut rest = bytes.get_mut(first..end).ok_or(Errno::INVAL)?;
    match request.operation {
        Operation::Read | Operation::Compare | Operation::Write { .. } => {}
        Operation::Flush | Operation::Verify => return Ok(request.len),
        Operation::Discard | Operation::WriteZeroes { .. } => {
            rest.fill(0);
            return Ok(request.len);
        }
    }
    for slice in request.memory.iter().flat_map(Pin::slices) {
        let (part, behind) = rest.split_at_mut_checked(slice.len()).ok_or(Errno::INVAL)?;
        match request.operation {
            Operation::Read => slice.copy_from(part),
            Operation::Compare if !is_equal(&slice, part) => return Err(Errno::ILSEQ),
            Operation::Compare => part.len(),
            _ => slice.copy_to(part),
        };
        rest = behind;
    }
    if request.memory.iter().any(Pin::poisoned) { Err(Errno::FAULT) } else { Ok(request.len) }
}

/// What is behind these locks is valid after every step, also where a thread panicked in between.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
