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
//! Fused commands, arbitration between queues (each has its turn), interrupt coalescing, the abort of a command that was not taken
//! yet. Force Unit Access of a read means nothing: what is written is read, cached or not.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use mdev_pin::{Lane, ResolveError};
use mdev_protocol::nvme::status::Status;
use rustix::io::Errno;

use super::Shared;
use super::aborts::Aborts;
use super::backends::Backends;
use super::completion::{CompletionQueue, Ended};
use super::data::Piece;
use super::flying::Flying;
use super::legs::Waiter;
use super::reach::{QueueNews, Reach};
use super::remote::Remote;
use super::serving::{BURST, Served, Serving, UnderWay};
use super::submission::{SubmissionQueue, SubmissionSetup};
use super::tally::Tally;
use crate::device::{Bell, EventFd, QueueStats};
use crate::store::{Completion, MAX_IN_FLIGHT};

/// How often a queue looks whether its completions have arrived at the client, if nobody wakes it.
const SETTLES: Duration = Duration::from_millis(1);

/// One submission queue, from its creation to its deletion, on one worker.
pub struct SubmissionEngine {
    pub(super) shared: Arc<Shared>,
    queue: SubmissionQueue,
    completion: Arc<CompletionQueue>,
    reach: Reach,
    pub(super) backends: Backends,
    pub(super) flying: Flying,
    /// The way to the device's bucket.
    bucket: Lane,
    /// Commands in flight that the host wants to be aborted.
    pub(super) aborts: Aborts,
    /// A command of which a store that needs no time has done some steps.
    pub(super) under_way: Option<UnderWay>,
    /// Commands that have ended and whose host does not know yet.
    pub(super) ended: Vec<Ended>,
    /// Commands whose data are with the client. Behind the stores, which may have its memory.
    pub(super) remote: Remote,
    /// What was not counted yet.
    pub(super) tally: Tally,
    /// What one poll passes on; kept for its memory.
    pub(super) completions: Vec<Completion>,
    /// The same: requests that have ended, by tag, and their namespaces.
    pub(super) landed: Vec<(u64, u32, Result<u64, Errno>)>,
    pieces: Vec<Piece>,
    stats: Arc<QueueStats>,
    kick: Option<Arc<EventFd>>,
    bell: Arc<EventFd>,
    /// The completion queue had no room.
    full: bool,
    /// Nothing more is taken.
    quiesced: bool,
    /// What is in flight has been cancelled.
    pub(super) cancelled: bool,
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
            bucket: shared.bucket.lane(),
            remote: Remote::new(&access, Waiter::new(&waker, &shared)),
            shared,
            queue: SubmissionQueue::new(qid, base, entries, doorbells),
            completion,
            reach: Reach::new(&access, waker),
            backends,
            flying: Flying::new(),
            aborts: Aborts::default(),
            under_way: None,
            ended: Vec::with_capacity(MAX_IN_FLIGHT.saturating_add(BURST as usize)),
            tally: Tally::default(),
            completions: Vec::with_capacity(MAX_IN_FLIGHT),
            landed: Vec::with_capacity(MAX_IN_FLIGHT),
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
        let moved = self.go_on();
        if !self.aborts.is_empty() {
            self.aborts.look(self.ended.is_empty(), self.completion.arrives());
        }
        moved
    }

    #[inline(always)]
    fn go_on(&mut self) -> u32 {
        let nothing_owed = self.ended.is_empty() && self.under_way.is_none();
        let ready = self.reach.is_ready();
        let idle = nothing_owed && (self.quiesced || self.queue.is_empty()) || !ready;
        let travels = !self.remote.is_empty() || self.completion.is_sending();
        if idle && !travels || self.shared.is_paused() {
            self.stats.add_empty_poll();
            return 0;
        }
        self.serve(ready)
    }

    /// `ready`: the queue is to be looked at, and not only what is on its way from and to the client.
    fn serve(&mut self, ready: bool) -> u32 {
        self.backends.refresh(&self.shared);
        let patience = self.reach.patience();
        let mut serving = Serving {
            shared: &self.shared,
            queue: &mut self.queue,
            completion: &self.completion,
            backends: &mut self.backends,
            flying: &mut self.flying,
            bucket: &mut self.bucket,
            under_way: &mut self.under_way,
            ended: &mut self.ended,
            pieces: &mut self.pieces,
            stats: &self.stats,
            patience,
            write_through: self.shared.is_write_through(),
            takes: !self.quiesced && ready,
            tally: &mut self.tally,
            remote: &mut self.remote,
            submitted: false,
        };
        let mut served = Served::default();
        let outcome = serving.run(&self.reach.lane.enter(), &mut served);
        if serving.submitted {
            self.backends.begin();
        }
        if self.remote.wants_bounce {
            self.remote.furnish();
        }
        self.note(served, outcome, ready)
    }

    /// Tells whoever is to know what a burst came to.
    fn note(&mut self, served: Served, outcome: Result<(), ResolveError>, ready: bool) -> u32 {
        let Served { taken, posted, full, bad_tail, bad_head } = served;
        self.full = full;
        if posted > 0 {
            self.completion.announce();
            if self.completion.vector().is_some() {
                self.stats.add_call();
            }
        }
        if let Some(value) = bad_tail {
            self.reach.tell(QueueNews::InvalidDoorbell { qid: self.queue.qid(), head: false, value });
        }
        if let Some(value) = bad_head {
            self.reach.tell(QueueNews::InvalidDoorbell { qid: self.completion.qid(), head: true, value });
        }
        match outcome {
            Ok(()) if ready => self.reach.healed(),
            Ok(()) => {}
            Err(error) => self.reach.lacks(error, &self.stats),
        }
        taken.saturating_add(posted)
    }

    /// Asks for what wakes the worker, before it sleeps. True if there is work already: poll again instead.
    pub fn arm(&mut self) -> bool {
        let work = self.backends.arm();
        if self.shared.is_paused() {
            return work;
        }
        let work = work | self.remote.arm();
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
        if self.completion.is_sending() {
            return work | self.completion.has_arrived(&self.remote.waiter);
        }
        let armed = {
            let burst = self.reach.lane.enter();
            if !self.ended.is_empty() {
                self.completion.await_room(&burst)
            } else if self.quiesced
                || self.flying.is_full()
                || self.remote.is_full
                || self.queue.is_fetching(&self.remote.waiter)
            {
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
        // What is parked, or on its way to or from the client, has time in a pause.
        let waits = (!self.shared.is_paused()).then(|| {
            // Another queue may have the only waker of a completion queue that they share.
            let settles = self.completion.is_sending().then(|| Instant::now().checked_add(SETTLES)).flatten();
            [settles, self.remote.deadline(), self.queue.fetched_by(), self.reach.deadline()]
        });
        waits.into_iter().flatten().chain([self.backends.next_deadline()]).flatten().min()
    }

    /// Whether there is something to tell of.
    #[inline]
    pub fn has_news(&self) -> bool {
        self.reach.has_untold() || !self.aborts.is_empty() && self.aborts.has_decided()
    }

    /// What there is to tell of, once.
    #[inline]
    pub fn news(&mut self) -> Option<QueueNews> {
        let decided = |(number, aborted)| QueueNews::Abort { number, aborted };
        self.reach.take_news().or_else(|| self.aborts.take_decided().map(decided))
    }

    /// Takes nothing more. True when no command is in flight and the host knows of all that have ended, as far as it has room
    /// for that and lets the function reach its memory: then the engine can be dropped. Until then it is polled as before, and asked this after every poll.
    pub fn quiesce(&mut self) -> bool {
        self.quiesced = true;
        let paused = self.shared.is_paused();
        let unheard = self.full || paused || self.reach.has_failed() || self.reach.is_parked();
        self.flying.is_empty()
            && (self.remote.is_empty() || paused)
            && (self.under_way.is_none() || unheard)
            && (self.ended.is_empty() || unheard)
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
        let gone = self.remote.cancel();
        self.ended.extend(gone.into_iter().map(|cid| Ended::new(cid, Status::ABORTED_SQ_DELETION)));
        if let Some(under_way) = self.under_way.take() {
            self.ended.push(Ended::new(under_way.cid, Status::ABORTED_SQ_DELETION));
        }
    }
}
