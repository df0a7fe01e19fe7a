//! One engine on its worker: its queues, the watch over their kicks and over its bell, the report of what they latch,
//! and their stops, which wait for requests in flight.

use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use mdev_dma::Iova;
use mdev_protocol::virtio::feature::VIRTIO_F_ACCESS_PLATFORM;

use crate::device::{self, Call, Device, Engine, Missed, Queue, QueueSetup, QueueStats, VirtioDevice};
use crate::limit::LogLimit;
use crate::ring::{QueueState, RingError};
use crate::sys::{EventFd, Interest, Kicks, Poll};

use super::roster::Numbered;
use super::{EventSink, WorkerEvent};

/// Where a queue stands that does not run.
pub(super) const NOWHERE: QueueState = QueueState::split(0);

static STILLBORN: LogLimit = LogLimit::new(10, Duration::from_secs(10));
static UNWATCHED: LogLimit = LogLimit::new(10, Duration::from_secs(10));

/// Descriptors of a slot in its worker's poll: a queue's kick by its index, and the bell.
const KEYS: u64 = 1 << 17;
const BELL: u64 = 1 << 16;

/// One engine and the queues that run in it.
pub(super) struct Slot {
    /// The number it goes by on its worker.
    id: u64,
    /// So many rounds have found no work.
    pub(super) idle: u32,
    pub(super) device_key: u64,
    pub(super) group: u16,
    device: Arc<dyn Device>,
    pub(super) engine: Box<dyn Engine>,
    queues: Vec<Member>,
    bell: Option<Bell>,
    /// A queue is being stopped and has requests in flight.
    draining: bool,
    /// Its rings ask the front-end for translations.
    translated: bool,
    /// Its rings are used in order.
    in_order: bool,
    /// The answers to the stops of its last queue, which wait for the engine's end.
    last_words: Vec<WorkerEvent>,
}

/// What wakes the worker for what no kick announces.
struct Bell {
    fd: device::Bell,
    watched: bool,
}

/// What the worker keeps of a queue beside the engine's own state.
struct Member {
    index: u16,
    /// The number its kick goes by in the worker's poll.
    key: u64,
    kick: Option<Arc<EventFd>>,
    /// The kick wakes the worker.
    watched: bool,
    stats: Arc<QueueStats>,
    /// A latched error has been reported.
    reported: bool,
    /// The ring could not be made: where it would have stood.
    stillborn: Option<QueueState>,
    /// The stops that wait for its requests in flight, by token.
    stops: Vec<u64>,
}

impl Slot {
    /// A group of rings, none of which runs yet.
    pub(super) fn of_rings(
        id: u64,
        device: Arc<dyn VirtioDevice>,
        device_key: u64,
        group: u16,
        features: u64,
        poll: &Poll,
    ) -> Self {
        let (engine, in_order) = (device.engine(group, features), device.uses_in_order());
        let translated = features & VIRTIO_F_ACCESS_PLATFORM != 0;
        Slot { translated, in_order, ..Slot::new(id, device, device_key, group, engine, poll) }
    }

    /// An engine, which goes by the number `id`.
    pub(super) fn new(
        id: u64,
        device: Arc<dyn Device>,
        device_key: u64,
        group: u16,
        engine: Box<dyn Engine>,
        poll: &Poll,
    ) -> Self {
        let bell = engine.bell().map(|fd| {
            let added = poll.add(fd.as_ref(), id * KEYS + BELL, Interest::READ | Interest::EDGE);
            if let (Err(error), Some(left_out)) = (&added, UNWATCHED.permit()) {
                let name = device.name();
                log::warn!(
                    "{name}: its requests or its link cannot be watched ({error}); looking at them every \
                     millisecond{left_out}"
                );
            }
            Bell { fd, watched: added.is_ok() }
        });
        let queues = Vec::new();
        Slot {
            id,
            idle: 0,
            device_key,
            group,
            device,
            engine,
            queues,
            bell,
            draining: false,
            translated: false,
            in_order: false,
            last_words: Vec::new(),
        }
    }

    /// The engine has its only queue already, which is no ring.
    pub(super) fn run(&mut self, index: u16, kick: Option<Arc<EventFd>>, poll: &Poll) {
        let stats = self.device.queue_stats(index).unwrap_or_default();
        stats.add_start();
        let mut member = self.member_of(index, kick, stats);
        member.watch(self.device.name(), poll);
        self.queues.push(member);
    }

    fn member_of(&self, index: u16, kick: Option<Arc<EventFd>>, stats: Arc<QueueStats>) -> Member {
        let key = self.id * KEYS + u64::from(index);
        let (watched, reported, stillborn, stops) = (false, false, None, Vec::new());
        Member { index, key, kick, watched, stats, reported, stillborn, stops }
    }

    /// The last queue has stopped: the engine and its link end, and only then is that answered, since who hears it may open
    /// the link anew.
    pub(super) fn leave(self, poll: &Poll, sink: &EventSink) {
        let Slot { engine, bell, device, last_words, .. } = self;
        if let Some(Bell { fd, watched: true, .. }) = &bell {
            poll.remove(fd.as_ref());
        }
        drop((engine, bell, device));
        last_words.into_iter().for_each(|event| sink.tell(event));
    }

    /// The number it goes by.
    pub(super) fn number(&self) -> u64 {
        self.id
    }

    /// The number of the slot that a descriptor in the poll belongs to.
    pub(super) fn number_of(key: u64) -> u64 {
        key / KEYS
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub(super) fn has(&self, device_key: u64, index: u16) -> bool {
        self.device_key == device_key && self.member(index).is_some()
    }

    /// Runs a queue from now on; `waker` wakes the worker when it was parked.
    pub(super) fn start(&mut self, setup: QueueSetup, poll: &Poll, sink: &EventSink, waker: Waker) {
        let stats = self.device.queue_stats(setup.index).unwrap_or_default();
        let state = setup.ring.state;
        self.idle = 0;
        stats.add_start();
        let mut member = self.member_of(setup.index, setup.kick.clone(), stats.clone());
        let err = setup.err.clone();
        match Queue::start(setup, stats, waker) {
            Ok(mut queue) => {
                if self.in_order {
                    queue.ring.begin_at_used();
                }
                if self.translated {
                    queue = queue.behind_iommu(self.asking(member.index, sink));
                }
                if state != QueueState::fresh(state.next_used.is_some()) || queue.ring.keeps_log() {
                    // Whoever served it before may have used chains and called nobody, or nobody who listens now.
                    queue.call();
                }
                self.engine.start_queue(queue);
                member.watch(self.device.name(), poll);
            }
            Err(error) => {
                if let Some(err) = err {
                    err.signal();
                }
                if let Some(left_out) = STILLBORN.permit() {
                    let (name, index) = (self.device.name(), member.index);
                    log::warn!("{name}: queue {index} cannot run: {error}{left_out}");
                }
                member.stillborn = Some(state);
                member.tell(self.device_key, error, sink);
            }
        }
        self.queues.push(member);
    }

    /// How a queue asks for a translation.
    fn asking(&self, index: u16, sink: &EventSink) -> Missed {
        let (device_key, sink) = (self.device_key, sink.clone());
        Box::new(move |iova, perm| sink.tell(WorkerEvent::Missed { device_key, index, iova, perm }))
    }

    /// Stops a queue that runs here. The answer goes to `sink` when no request of it is in flight, which may be now.
    pub(super) fn stop(&mut self, index: u16, token: u64, poll: &Poll, sink: &EventSink) {
        if let Some(member) = self.queues.iter_mut().find(|member| member.index == index) {
            member.stops.push(token);
            member.unwatch(poll);
            self.settle(sink);
        }
    }

    /// Cancels what a queue that is being stopped has in flight. Its stop is answered after the next round.
    pub(super) fn cancel(&mut self, index: u16) {
        if self.member(index).is_some_and(|member| !member.stops.is_empty()) {
            self.engine.cancel(index);
        }
    }

    /// Aborts a command of a queue that is no ring.
    pub(super) fn abort(&mut self, index: u16, cid: u16, number: u64) {
        self.engine.abort(index, cid, number);
    }

    /// Ends a queue whatever is in flight. Stops that waited are answered.
    pub(super) fn end(&mut self, index: u16, poll: &Poll, sink: &EventSink) {
        if let Some(at) = self.queues.iter().position(|member| member.index == index) {
            let mut member = self.queues.swap_remove(at);
            member.unwatch(poll);
            self.finish(member, sink);
        }
    }

    /// Answers the stops that need not wait any longer.
    #[cold]
    fn settle(&mut self, sink: &EventSink) {
        self.draining = false;
        for at in (0..self.queues.len()).rev() {
            let Some(member) = self.queues.get(at).filter(|member| !member.stops.is_empty()) else {
                continue;
            };
            if member.stillborn.is_some() || self.engine.quiesce(member.index) {
                let member = self.queues.swap_remove(at);
                self.finish(member, sink);
            } else {
                self.draining = true;
            }
        }
    }

    /// Takes a queue from its engine and answers its stops, of the last one when the slot [leaves](Slot::leave).
    fn finish(&mut self, member: Member, sink: &EventSink) {
        let Member { index, stillborn, stops, .. } = member;
        let stopped = stillborn.map(|state| (state, false)).or_else(|| {
            let queue = self.engine.stop_queue(index)?;
            Some((queue.ring.state(), queue.failed.is_none()))
        });
        let (state, clean) = stopped.unwrap_or((NOWHERE, false));
        let answers = stops.into_iter().map(|token| WorkerEvent::Stopped { token, index, state, clean });
        if self.queues.is_empty() {
            self.last_words.extend(answers);
        } else {
            answers.for_each(|answer| sink.tell(answer));
        }
    }

    pub(super) fn forsake(&mut self, index: u16, iova: Iova) {
        if let Some(queue) = self.engine.queue_mut(index) {
            queue.forsake(iova);
        }
    }

    /// Calls on `call` from now on, and once at once: front-ends replace the eventfd of a ring that runs, and do not listen to what
    /// the old one was told a moment before.
    pub(super) fn set_call(&mut self, index: u16, call: Option<Arc<dyn Call>>) {
        self.engine.with_queue(index, &mut |queue| {
            queue.call.clone_from(&call);
            queue.call();
        });
    }

    pub(super) fn set_err(&mut self, index: u16, err: Option<Arc<EventFd>>) {
        self.engine.with_queue(index, &mut |queue| queue.err.clone_from(&err));
    }

    /// One burst on each queue; whether there was work. Errors that latched are reported.
    pub(super) fn round(&mut self, sink: &EventSink) -> bool {
        let work = self.engine.poll() > 0;
        self.idle = if work { 0 } else { self.idle.saturating_add(1) };
        if self.engine.needs_reset() {
            self.report_latched(sink);
        }
        if self.draining {
            self.settle(sink);
        }
        work
    }

    #[cold]
    fn report_latched(&mut self, sink: &EventSink) {
        for member in self.queues.iter_mut().filter(|member| !member.reported) {
            let mut error = None;
            self.engine.with_queue(member.index, &mut |queue| error = queue.failed);
            if let Some(error) = error {
                member.tell(self.device_key, error, sink);
            }
        }
        let device_key = self.device_key;
        while let Some((index, news)) = self.engine.news() {
            sink.tell(WorkerEvent::News { device_key, index, news });
        }
    }

    /// A kick came under `key`: counts it. `hung_up`: it will never come again. The bell is the engine's to count.
    pub(super) fn kicked(&mut self, key: u64, hung_up: bool, poll: &Poll) {
        let Some(member) = self.queues.iter_mut().find(|member| member.key == key) else { return };
        if member.count_kicks() == Kicks::Broken || hung_up {
            member.unwatch(poll);
            if let Some(left_out) = UNWATCHED.permit() {
                let (name, index) = (self.device.name(), member.index);
                log::warn!(
                    "{name}: the kick of queue {index} broke; looking at its ring every millisecond{left_out}"
                );
            }
        }
    }

    /// Counts kicks that came while nobody slept.
    pub(super) fn count_kicks(&mut self) {
        for member in &mut self.queues {
            member.count_kicks();
        }
    }

    /// A queue here cannot wake the worker, or what no kick announces cannot.
    pub(super) fn is_blind(&self) -> bool {
        let blind = |member: &Member| !member.watched && !member.reported && member.stops.is_empty();
        self.queues.iter().any(blind) || self.bell.as_ref().is_some_and(|bell| !bell.watched)
    }

    /// When a parked queue wants to look again.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.engine.next_deadline()
    }

    fn member(&self, index: u16) -> Option<&Member> {
        self.queues.iter().find(|member| member.index == index)
    }
}

impl Numbered for Slot {
    fn id(&self) -> u64 {
        self.id
    }
}

impl Member {
    fn watch(&mut self, device: &str, poll: &Poll) {
        let Some(kick) = &self.kick else { return };
        match poll.add(kick.as_ref(), self.key, Interest::READ | Interest::EDGE) {
            Ok(()) => self.watched = true,
            Err(error) => self.unwatchable(device, &error),
        }
    }

    fn unwatchable(&self, device: &str, error: &io::Error) {
        if let Some(left_out) = UNWATCHED.permit() {
            let index = self.index;
            log::warn!(
                "{device}: the kick of queue {index} cannot be watched ({error}); \
                 looking at its ring every millisecond{left_out}"
            );
        }
    }

    fn unwatch(&mut self, poll: &Poll) {
        self.count_kicks();
        if let (Some(kick), true) = (&self.kick, self.watched) {
            poll.remove(kick.as_ref());
        }
        self.watched = false;
    }

    fn count_kicks(&self) -> Kicks {
        let Some(kick) = &self.kick else { return Kicks::None };
        let kicks = kick.drain();
        if let Kicks::Some(count) = kicks {
            self.stats.add_kicks(count);
        }
        kicks
    }

    /// Tells the control thread of the queue's latched error, once.
    fn tell(&mut self, device_key: u64, error: RingError, sink: &EventSink) {
        self.reported = true;
        sink.tell(WorkerEvent::Failed { device_key, index: self.index, error });
    }
}
