//! The data path of one submission queue.
//!
//! A poll takes a burst of commands, and posts what has ended since the last one. Nothing in it blocks, and nothing is locked
//! but the position of the completion queue, which is tried once per burst. A command is read once, then checked, then used.
//!
//! What cannot be posted stays here, and while there is some no command is taken: so there is room for all that can end.
//! A command whose data, or a queue whose entries, are in no memory parks the queue ([`super::reach`]).
//!
//! # Locks
//!
//! In this order: the position of a completion queue, tried; the host's memory for doorbells, taken when it was changed; the list
//! of namespaces, likewise. A vector's own, for one signal, when nothing else is held. None is held across a burst.
//!
//! # What fails alone
//!
//! A command that makes no sense, whose data lie nowhere or were lost, or whose store fails. A queue fails when its entries, those of its
//! completion queue or its doorbell in memory are lost, or stay away for a second. Completions that are posted before are good.
//!
//! # What it does not implement
//!
//! Fused commands, arbitration between queues (each has its turn), interrupt coalescing, the abort of one command in flight (Abort
//! may fail, and does). Force Unit Access of a read means nothing: what is written is read, cached or not.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use mdev_pin::ResolveError;
use mdev_protocol::nvme::status::Status;
use rustix::io::Errno;

use super::backends::{Backend, Backends};
use super::completion::{CompletionQueue, Ended};
use super::data::Piece;
use super::flying::{Flown, Flying};
use super::queued;
use super::reach::{QueueFailure, Reach};
use super::serving::{BURST, Served, Serving, UnderWay};
use super::submission::{SubmissionQueue, SubmissionSetup};
use super::tally::Tally;
use super::{Mishap, Namespace, Shared};
use crate::device::{Bell, DropCause, EventFd, QueueStats};
use crate::store::{Completion, MAX_IN_FLIGHT, Operation};

/// One submission queue, from its creation to its deletion, on one worker.
pub struct SubmissionEngine {
    shared: Arc<Shared>,
    queue: SubmissionQueue,
    completion: Arc<CompletionQueue>,
    reach: Reach,
    backends: Backends,
    flying: Flying,
    /// A command of which a store that needs no time has done some steps.
    under_way: Option<UnderWay>,
    /// Commands that have ended and whose host does not know yet.
    ended: Vec<Ended>,
    /// What was not counted yet.
    tally: Tally,
    /// What one poll passes on; kept for its memory.
    completions: Vec<Completion>,
    pieces: Vec<Piece>,
    stats: Arc<QueueStats>,
    kick: Option<Arc<EventFd>>,
    bell: Arc<EventFd>,
    /// The completion queue had no room.
    full: bool,
    /// Nothing more is taken.
    quiesced: bool,
    /// What is in flight has been cancelled.
    cancelled: bool,
}

impl SubmissionEngine {
    /// A queue that starts, on the thread that will run it. `bell` is signalled when requests of it have ended; `waker` gets
    /// that thread out of its sleep when memory that was missing is there.
    pub fn new(
        shared: Arc<Shared>,
        setup: SubmissionSetup,
        stats: Arc<QueueStats>,
        bell: Arc<EventFd>,
        waker: Waker,
    ) -> Self {
        let SubmissionSetup { qid, base, entries, completion, access, doorbells, kick } = setup;
        let mut backends = Backends::new(bell.clone());
        backends.refresh(&shared);
        Self {
            shared,
            queue: SubmissionQueue::new(qid, base, entries, doorbells),
            completion,
            reach: Reach::new(&access, waker),
            backends,
            flying: Flying::new(),
            under_way: None,
            ended: Vec::with_capacity(MAX_IN_FLIGHT.saturating_add(BURST as usize)),
            tally: Tally::default(),
            completions: Vec::with_capacity(MAX_IN_FLIGHT),
            pieces: Vec::new(),
            stats,
            kick,
            bell,
            full: false,
            quiesced: false,
            cancelled: false,
        }
    }

    /// The queue's identifier.
    pub fn qid(&self) -> u16 {
        self.queue.qid()
    }

    /// Where its commands end.
    pub fn completion(&self) -> &Arc<CompletionQueue> {
        &self.completion
    }

    /// What wakes its worker when a trapped doorbell was written.
    pub fn kick(&self) -> Option<&Arc<EventFd>> {
        self.kick.as_ref()
    }

    /// Its counters.
    pub fn stats(&self) -> &Arc<QueueStats> {
        &self.stats
    }

    /// Becomes readable when requests have ended. It wakes the worker, once each time.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// One burst. Says how many commands were taken or have ended; 0 is idle.
    #[inline]
    pub fn poll(&mut self) -> u32 {
        if !self.flying.is_empty() {
            self.collect();
        }
        let nothing_owed = self.ended.is_empty() && self.under_way.is_none();
        if nothing_owed && (self.quiesced || self.queue.is_empty()) || !self.reach.is_ready() {
            self.stats.add_empty_poll();
            return 0;
        }
        self.serve()
    }

    fn serve(&mut self) -> u32 {
        self.backends.refresh(&self.shared);
        let patience = self.reach.patience();
        let mut serving = Serving {
            shared: &self.shared,
            queue: &mut self.queue,
            completion: &self.completion,
            backends: &mut self.backends,
            flying: &mut self.flying,
            under_way: &mut self.under_way,
            ended: &mut self.ended,
            pieces: &mut self.pieces,
            stats: &self.stats,
            patience,
            write_through: self.shared.is_write_through(),
            takes: !self.quiesced,
            tally: &mut self.tally,
            submitted: false,
        };
        let mut served = Served::default();
        let outcome = serving.run(&self.reach.lane.enter(), &mut served);
        if serving.submitted {
            self.backends.begin();
        }
        self.note(served, outcome)
    }

    /// Tells whoever is to know what a burst came to.
    fn note(&mut self, served: Served, outcome: Result<(), ResolveError>) -> u32 {
        let Served { taken, posted, full, bad_tail, bad_head } = served;
        self.full = full;
        if posted > 0 {
            self.completion.announce();
            if self.completion.vector().is_some() {
                self.stats.add_call();
            }
        }
        if let Some(value) = bad_tail {
            self.reach.tell(QueueFailure::InvalidDoorbell { qid: self.queue.qid(), head: false, value });
        }
        if let Some(value) = bad_head {
            self.reach.tell(QueueFailure::InvalidDoorbell { qid: self.completion.qid(), head: true, value });
        }
        match outcome {
            Ok(()) => self.reach.healed(),
            Err(error) => self.reach.lacks(error, &self.stats),
        }
        taken.saturating_add(posted)
    }

    /// Takes the completions that have come.
    fn collect(&mut self) {
        let Self { shared, backends, flying, completions, ended, stats, queue, cancelled, tally, .. } = self;
        let mut swept = false;
        let mut submitted = false;
        for backend in backends.iter_mut() {
            backend.take(completions);
            for Completion { tag, result } in completions.drain(..) {
                let Some(flown) = flying.get_mut(tag) else { continue };
                let status = match result {
                    Ok(bytes) => {
                        if !*cancelled && go_on(backend, flown, tag) {
                            submitted = true;
                            continue;
                        }
                        // What was cancelled between two steps is not all done.
                        if flown.rest.as_ref().is_some_and(|rest| !rest.is_done()) {
                            tally.failed();
                            aborted(*cancelled)
                        } else {
                            tally.done(flown.operation, bytes);
                            Status::SUCCESS
                        }
                    }
                    Err(errno) => {
                        let (status, cause) = failure(flown.operation, errno, *cancelled);
                        stats.add_drops(cause, 1);
                        tally.failed();
                        let (qid, operation, offset) = (queue.qid(), flown.operation, flown.offset);
                        if errno != Errno::CANCELED && errno != Errno::ILSEQ {
                            shared.complain(format_args!("queue {qid}: {operation:?} at {offset}"), errno);
                        }
                        if errno != Errno::CANCELED {
                            let block = offset.checked_div(Namespace::BLOCK).unwrap_or(0);
                            let (cid, nsid) = (flown.cid, backend.nsid);
                            let location = u16::MAX;
                            shared.mishaps.record(Mishap { qid, cid, status, location, block, nsid });
                        }
                        status
                    }
                };
                let Some(Flown { cid, .. }) = flying.land(tag) else { continue };
                swept |= backend.in_flight == 0;
                ended.push(Ended::new(cid, status));
            }
        }
        if submitted {
            backends.begin();
        }
        if swept {
            backends.sweep();
        }
    }

    /// Asks for what wakes the worker, before it sleeps. True if there is work already: poll again instead.
    pub fn arm(&mut self) -> bool {
        let work = self.backends.arm();
        if self.reach.has_failed() {
            return work;
        }
        if self.reach.is_parked() {
            // Woken since it was polled: whoever woke it may have been heard already.
            return work || self.reach.is_ready();
        }
        if self.under_way.is_some() {
            return true;
        }
        let armed = {
            let burst = self.reach.lane.enter();
            if !self.ended.is_empty() {
                self.completion.await_room(&burst)
            } else if self.quiesced || self.flying.is_full() {
                Ok(false)
            } else {
                self.queue.await_commands(&burst)
            }
        };
        match armed {
            Ok(more) => work || more,
            Err(error) => {
                self.reach.lacks(error, &self.stats);
                work
            }
        }
    }

    /// The worker looks by itself.
    pub fn disarm(&mut self) {
        self.backends.disarm();
    }

    /// When to poll again even if nobody wakes the worker.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.reach.deadline().into_iter().chain(self.backends.next_deadline()).min()
    }

    /// Whether there is something to tell of.
    #[inline]
    pub fn has_failure(&self) -> bool {
        self.reach.has_untold()
    }

    /// What there is to tell of, once.
    #[inline]
    pub fn failure(&mut self) -> Option<QueueFailure> {
        self.reach.take_failure()
    }

    /// Takes nothing more. True when no command is in flight and the host knows of all that have ended, as far as it has room
    /// for that: then the engine can be dropped. Until then it is polled as before, and asked this after every poll.
    pub fn quiesce(&mut self) -> bool {
        self.quiesced = true;
        let unheard = self.full || self.reach.has_failed() || self.reach.is_parked();
        self.flying.is_empty() && (self.under_way.is_none() || unheard) && (self.ended.is_empty() || unheard)
    }

    /// What is missing will not come: a command that waits for its data fails in the next poll, and a queue that waits for its own
    /// memory.
    pub fn forsake(&mut self) {
        self.reach.forsake();
    }

    /// Nobody waits for what is in flight, since the queue is being deleted: what can be ended is aborted; the rest ends when it
    /// ends.
    pub fn cancel(&mut self) {
        self.cancelled = true;
        self.backends.cancel();
        if let Some(under_way) = self.under_way.take() {
            self.ended.push(Ended::new(under_way.cid, Status::ABORTED_SQ_DELETION));
        }
    }
}

/// The next step of a command whose last one went well. False if there is none.
fn go_on(backend: &mut Backend, flown: &mut Flown, tag: u64) -> bool {
    let limits = backend.namespace.store.limits();
    let Some(port) = backend.queued() else { return false };
    let more = queued::go_on(flown, tag, port, &limits);
    if more {
        backend.in_flight = backend.in_flight.saturating_add(1);
    }
    more
}

fn aborted(cancelled: bool) -> Status {
    if cancelled { Status::ABORTED_SQ_DELETION } else { Status::ABORT_REQUESTED }
}

/// How a command ends whose store has failed, and what that is counted as.
#[cold]
pub(super) fn failure(operation: Operation, errno: Errno, cancelled: bool) -> (Status, DropCause) {
    match errno {
        Errno::CANCELED => (aborted(cancelled), DropCause::Cancelled),
        Errno::ILSEQ if operation == Operation::Compare => (Status::COMPARE_FAILURE, DropCause::StoreFailed),
        Errno::NOSPC | Errno::DQUOT => (Status::CAPACITY_EXCEEDED, DropCause::NoSpace),
        Errno::FAULT => (Status::DATA_TRANSFER_ERROR, DropCause::MemoryLost),
        // The store has become shorter, or cannot be written to any more.
        Errno::INVAL => (Status::LBA_OUT_OF_RANGE.do_not_retry(), DropCause::OutOfRange),
        Errno::ROFS => (Status::WRITE_PROTECTED.do_not_retry(), DropCause::ReadOnly),
        _ => match operation {
            Operation::Read | Operation::Compare | Operation::Verify => {
                (Status::UNRECOVERED_READ_ERROR, DropCause::StoreFailed)
            }
            Operation::Flush => (Status::INTERNAL_ERROR, DropCause::StoreFailed),
            _ => (Status::WRITE_FAULT, DropCause::StoreFailed),
        },
    }
}
