//! The admin queue pair: what was fetched and what has ended.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use mdev_dma::Iova;
use mdev_pin::{Access, ResolveError};
use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::register::QueueAttributes;
use mdev_protocol::nvme::status::Status;

use super::memory::Way;
use crate::device::nvme::completion::{CompletionQueue, CompletionSetup, Ended};
use crate::device::nvme::legs::Waiter;
use crate::device::nvme::submission::SubmissionQueue;
use crate::device::nvme::{Doorbells, Shared, Vectors};

/// How long it waits for memory that is missing.
const LIMIT: Duration = if cfg!(test) { Duration::from_millis(30) } else { Duration::from_secs(1) };
/// How often it looks meanwhile, or for room.
const AGAIN: Duration = Duration::from_millis(5);

/// What a look at the queue found.
pub(super) enum Fetched {
    Nothing,
    /// The doorbell was set to something that cannot be.
    BadDoorbell,
    /// A command, which is not taken yet.
    Command(Command),
}

/// See the [module](self).
pub(in super::super) struct AdminQueue {
    pub(in super::super) way: Way,
    pub(in super::super) completion: Arc<CompletionQueue>,
    submission: SubmissionQueue,
    /// Commands that have ended and whose host does not know yet.
    ended: VecDeque<Ended>,
    /// A command that has ended but for its data, which are on their way.
    delayed: Option<Ended>,
    /// When it stops to wait for the memory that it lacks.
    until: Option<Instant>,
    /// When it is to be looked at again by itself.
    again: Option<Instant>,
}

impl AdminQueue {
    /// The queues at these addresses.
    pub(in super::super) fn new(
        access: &Access,
        shared: &Arc<Shared>,
        attributes: QueueAttributes,
        (submission, completion): (u64, u64),
        doorbells: &Arc<Doorbells>,
        vectors: &Arc<Vectors>,
    ) -> Self {
        let setup = CompletionSetup {
            qid: 0,
            base: Iova(completion),
            entries: u32::from(attributes.completion()).saturating_add(1),
            vector: Some(0),
            doorbells: doorbells.clone(),
            vectors: vectors.clone(),
        };
        let entries = u32::from(attributes.submission()).saturating_add(1);
        Self {
            way: Way::new(access, Waiter::new(Waker::noop(), shared)),
            completion: Arc::new(CompletionQueue::new(setup)),
            submission: SubmissionQueue::new(0, Iova(submission), entries, doorbells.clone()),
            ended: VecDeque::new(),
            delayed: None,
            until: None,
            again: None,
        }
    }

    /// Looks for a command.
    pub(super) fn fetch(&mut self) -> Result<Fetched, ResolveError> {
        let (access, waiter) = (self.way.access.clone(), self.way.waiter.clone());
        let burst = self.way.enter();
        let waiting = self.submission.waiting(&burst)?;
        if waiting.bad_tail.is_some() {
            return Ok(Fetched::BadDoorbell);
        }
        if waiting.count == 0 {
            self.until = None;
            return Ok(Fetched::Nothing);
        }
        let place = match self.submission.place(&burst) {
            Err(ResolveError::Elsewhere) => {
                let entries = self.submission.fetch(&access, &waiter, &burst, waiting.count)?;
                return Ok(entries.front().copied().map_or(Fetched::Nothing, Fetched::Command));
            }
            place => place?,
        };
        let command = self.submission.command(&place, 0).ok_or(ResolveError::Hole)?;
        if burst.poisoned() {
            return Err(ResolveError::Poisoned);
        }
        Ok(Fetched::Command(command))
    }

    /// The command that was fetched is taken.
    pub(super) fn take(&mut self) {
        self.submission.forget_first();
        self.submission.advance(1);
        self.until = None;
    }

    /// A command has ended. The host is told by [`AdminQueue::post`].
    pub(super) fn ended(&mut self, cid: u16, status: Status, result: u32) {
        self.ended.push_back(Ended { cid, status, result });
    }

    /// A command has been carried out. The host is told when its data have arrived.
    pub(super) fn carried_out(&mut self, cid: u16, result: u32) {
        let ended = Ended { cid, status: Status::SUCCESS, result };
        if self.way.is_sending() {
            self.delayed = Some(ended);
        } else {
            self.ended.push_back(ended);
        }
    }

    /// Goes on with what is on its way to the client. False: the data of a command are still.
    pub(super) fn settle(&mut self) -> Result<bool, ResolveError> {
        if self.completion.is_sending() {
            let (access, waiter) = (self.way.access.clone(), self.way.waiter.clone());
            self.completion.settle(&self.way.enter(), &access, &waiter)?;
        }
        let Some(ended) = self.delayed else { return Ok(true) };
        let Some(arrived) = self.way.has_arrived() else { return Ok(false) };
        self.delayed = None;
        let lost = Status::DATA_TRANSFER_ERROR.do_not_retry().more();
        self.ended.push_back(if arrived { ended } else { Ended { status: lost, ..ended } });
        Ok(true)
    }

    /// Whether something of it is on its way to or from the client.
    fn is_under_way(&self) -> bool {
        self.delayed.is_some()
            || self.way.is_fetching()
            || self.completion.is_sending()
            || self.submission.fetched_by().is_some()
    }

    /// A command has been carried out.
    pub(in super::super) fn succeeded(&mut self, cid: u16) {
        self.ended(cid, Status::SUCCESS, 0);
    }

    /// Tells the host of what has ended, as far as it has room. True: its head doorbell was set to something that cannot be.
    pub(super) fn post(&mut self) -> Result<bool, ResolveError> {
        if self.ended.is_empty() {
            return Ok(false);
        }
        let head = self.submission.head();
        let posted = {
            let access = self.way.access.clone();
            let burst = self.way.enter();
            match self.completion.post(&burst, 0, head, self.ended.make_contiguous()) {
                Err(ResolveError::Elsewhere) => {
                    self.completion.send(&burst, &access, (0, head), self.ended.make_contiguous())?
                }
                posted => posted?,
            }
        };
        self.ended.drain(..posted.count.min(self.ended.len()));
        self.until = None;
        if posted.count > 0 {
            self.completion.announce();
        }
        Ok(posted.bad_head.is_some())
    }

    /// Whether the host knows of all that has ended.
    pub(super) fn is_told(&self) -> bool {
        self.ended.is_empty()
    }

    /// Whether a command whose data are not there may be looked at again.
    pub(super) fn may_wait_for(&self, error: ResolveError) -> bool {
        let late = self.until.is_some_and(|until| Instant::now() >= until);
        !late && is_transient(error)
    }

    /// Takes note of memory that is not there. True if there is nothing to wait for any more.
    pub(in super::super) fn lacks(&mut self, error: ResolveError, now: Instant) -> bool {
        let until = *self.until.get_or_insert_with(|| now.checked_add(LIMIT).unwrap_or(now));
        !is_transient(error) || now >= until
    }

    /// It was looked at. `more`: commands are left.
    pub(in super::super) fn rest(&mut self, more: bool, now: Instant) {
        let waits = self.until.is_some() || !self.is_told() || self.is_under_way();
        self.again = if more { Some(now) } else { waits.then(|| now.checked_add(AGAIN)).flatten() };
    }

    /// When to look again.
    pub(in super::super) fn deadline(&self) -> Option<Instant> {
        self.again
    }
}

/// Whether this may heal by itself: an address that has no translation now.
fn is_transient(error: ResolveError) -> bool {
    matches!(error, ResolveError::Hole | ResolveError::Gated | ResolveError::Detached)
}
