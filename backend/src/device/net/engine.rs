//! The data path of one queue pair.

use std::sync::Arc;
use std::time::Instant;

use super::bridge::{Jack, Receiver, Receiving};
use super::bridged::Bridged;
use super::header::{F_MRG_RXBUF, HEADER};
use super::incoming::{Incoming, Offered, Refusal};
use super::looped::{holds_up, turn};
use super::offload::Offloads;
use super::outgoing::{Outgoing, Sent};
use super::pieces::burst_of;
use super::tapped::Tapped;
use crate::device::{Bell, DropCause, Enabled, Engine, Queue, QueueStats};
use crate::link::{Frame, Generator, Sink};
use crate::ring::{RingError, Vring};
use crate::sys::tsc;

/// What a pair's frames are connected to.
pub(super) enum Link {
    Null(Sink),
    Loopback,
    Pktgen(Generator),
    Tap(Tapped),
    /// The receive queue lies in the device's port, where the others find it, and not here.
    Peer {
        bridged: Bridged,
        jack: Arc<Jack>,
    },
}

/// A receive queue (even index), a transmit queue (odd index), and the link between them and the world.
pub(super) struct NetEngine {
    mergeable: bool,
    /// What the guest may be given undone.
    takes: Offloads,
    link: Link,
    receive: Option<Queue>,
    transmit: Option<Queue>,
}

impl NetEngine {
    pub(super) fn new(features: u64, link: Link) -> Self {
        let takes = Offloads::to_guest(features);
        Self { mergeable: features & F_MRG_RXBUF != 0, takes, link, receive: None, transmit: None }
    }

    fn place(&mut self, index: u16) -> &mut Option<Queue> {
        if index & 1 == 0 { &mut self.receive } else { &mut self.transmit }
    }

    /// Where the receive queue lies, if the others fill it.
    fn receiver(&self) -> Option<&Receiver> {
        match &self.link {
            Link::Peer { bridged, jack } => jack.receiver(bridged.pair),
            Link::Null(_) | Link::Loopback | Link::Pktgen(_) | Link::Tap(_) => None,
        }
    }

    /// The same for a queue of this index.
    fn receiver_of(&self, index: u16) -> Option<&Receiver> {
        if index & 1 == 0 { self.receiver() } else { None }
    }

    fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.receive.iter().chain(&self.transmit)
    }
}

/// What runs in a port does not outlive its engine.
impl Drop for NetEngine {
    fn drop(&mut self) {
        if let Some(receiver) = self.receiver() {
            receiver.replace(None);
        }
    }
}

impl Engine for NetEngine {
    fn start_queue(&mut self, mut queue: Queue) {
        if let Some(receiver) = self.receiver_of(queue.index) {
            queue.hush();
            receiver.replace(Some(Receiving { queue, mergeable: self.mergeable, takes: self.takes }));
            return;
        }
        let place = self.place(queue.index);
        *place = Some(queue);
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        if let Some(receiver) = self.receiver_of(index) {
            return receiver.replace(None);
        }
        self.place(index).take_if(|queue| queue.index == index)
    }

    fn bell(&self) -> Option<Bell> {
        match &self.link {
            Link::Tap(tap) => Some(tap.queue().clone()),
            Link::Peer { .. } => self.receiver().map(|receiver| receiver.bell().clone() as Bell),
            Link::Null(_) | Link::Loopback | Link::Pktgen(_) => None,
        }
    }

    fn queue_mut(&mut self, index: u16) -> Option<&mut Queue> {
        self.place(index).as_mut().filter(|queue| queue.index == index)
    }

    fn with_queue(&mut self, index: u16, change: &mut dyn FnMut(&mut Queue)) {
        match self.receiver_of(index) {
            Some(receiver) => receiver.with(change),
            None => self.queue_mut(index).into_iter().for_each(change),
        }
    }

    fn poll(&mut self) -> u32 {
        let Self { mergeable, link, receive, transmit, .. } = self;
        match link {
            Link::Null(sink) => {
                if let Some(queue) = receive {
                    queue.hush();
                }
                transmit.as_mut().map_or(0, |queue| send(queue, |frame| sink.consume(frame)))
            }
            Link::Pktgen(generator) => {
                let received = receive.as_mut().map_or(0, |queue| fill(queue, *mergeable, generator));
                let sent = transmit.as_mut().map_or(0, |queue| send(queue, |_| {}));
                received.saturating_add(sent)
            }
            Link::Loopback => {
                if let Some(queue) = receive {
                    queue.hush();
                }
                transmit.as_mut().map_or(0, |queue| turn(queue, receive.as_mut(), *mergeable))
            }
            Link::Tap(tap) => {
                let received = receive.as_mut().map_or(0, |queue| tap.receive(queue, *mergeable));
                let sent = transmit.as_mut().map_or(0, |queue| tap.send(queue));
                received.saturating_add(sent)
            }
            Link::Peer { bridged, .. } => transmit.as_mut().map_or(0, |queue| bridged.send(queue)),
        }
    }

    fn arm(&mut self) -> bool {
        let held_up = matches!(self.link, Link::Loopback) && self.receive.as_mut().is_some_and(holds_up);
        // Receive buffers are work only where frames come by themselves.
        let receive = match &self.link {
            Link::Pktgen(_) => self.receive.as_mut(),
            Link::Tap(tap) if tap.wants_room() => self.receive.as_mut(),
            Link::Null(_) | Link::Loopback | Link::Tap(_) | Link::Peer { .. } => None,
        };
        let receive = receive.filter(|queue| queue.switch.get() == Enabled::Yes);
        let transmit = self.transmit.as_mut().filter(|queue| {
            // Whoever brings the translation wakes the worker.
            queue.switch.get() != Enabled::NotYet && !held_up
        });
        let mut work = false;
        for queue in receive.into_iter().chain(transmit) {
            work |= queue.arm();
        }
        work
    }

    fn disarm(&mut self) {
        self.receive.iter_mut().chain(&mut self.transmit).for_each(Queue::hush);
    }

    fn needs_reset(&self) -> bool {
        self.queues().any(|queue| queue.failed.is_some()) || self.receiver().is_some_and(Receiver::is_failed)
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.queues().filter_map(Queue::deadline).min()
    }
}

/// What a burst on one queue came to.
pub(super) struct Served {
    pub(super) chains: usize,
    pub(super) call: bool,
}

impl Served {
    const IDLE: Served = Served { chains: 0, call: false };
}

/// Opens a queue's ring for one burst, unless there is a reason not to, and takes note of what came of it. Finding nothing
/// is cheap; `work` runs only if chains wait.
#[inline(always)]
pub(super) fn serve(
    queue: &mut Queue,
    work: impl FnOnce(Vring<'_, '_>, &QueueStats) -> Result<Served, RingError>,
) -> u32 {
    queue.hush();
    if !queue.ready() {
        return 0;
    }
    let outcome = {
        let Queue { ring, lane, stats, .. } = queue;
        let burst = lane.enter();
        match ring.begin(&burst).and_then(|vring| Ok((vring.pending()?, vring))) {
            Ok((0, _)) => {
                stats.add_empty_poll();
                Ok(Served::IDLE)
            }
            Ok((_, vring)) => work(vring, stats),
            Err(error) => Err(error),
        }
    };
    match outcome {
        Ok(served) => {
            queue.healed();
            if served.call {
                queue.call();
            }
            served.chains as u32
        }
        Err(error) => {
            queue.trouble(error);
            0
        }
    }
}

/// [`serve`] for a transmit queue: what it is given while it is disabled is discarded.
#[inline(always)]
pub(super) fn transmit(
    queue: &mut Queue,
    work: impl FnOnce(Vring<'_, '_>, &QueueStats) -> Result<Served, RingError>,
) -> u32 {
    if queue.switch.get() != Enabled::Yes {
        return discard(queue);
    }
    serve(queue, work)
}

/// One burst of a transmit queue whose frames go to `consume`.
#[inline(always)]
fn send(queue: &mut Queue, consume: impl FnMut(&Frame<'_, '_>)) -> u32 {
    transmit(queue, |vring, stats| send_burst(vring, stats, consume))
}

#[inline(never)]
fn send_burst(
    vring: Vring<'_, '_>,
    stats: &QueueStats,
    mut consume: impl FnMut(&Frame<'_, '_>),
) -> Result<Served, RingError> {
    let began = tsc::now();
    let mut sent = Sent::new();
    let mut frames = Outgoing::take(vring, &mut sent)?;
    let chains = frames.len();
    for index in 0..chains {
        if let Some(frame) = frames.frame(index) {
            consume(&frame);
        }
    }
    let call = frames.finish(stats, began)?;
    Ok(Served { chains, call })
}

/// One burst of a transmit queue that is not enabled: what it is given is discarded if it was disabled.
#[cold]
pub(super) fn discard(queue: &mut Queue) -> u32 {
    let switch = queue.switch.clone();
    if switch.get() == Enabled::NotYet {
        return 0;
    }
    serve(queue, |vring, stats| match switch.get() {
        // It was disabled when these chains were there already, or came.
        Enabled::No => discard_burst(vring, stats),
        Enabled::NotYet | Enabled::Yes => Ok(Served::IDLE),
    })
}

/// Uses chains up, and reads nothing (vhost-user, "Ring states").
fn discard_burst(mut vring: Vring<'_, '_>, stats: &QueueStats) -> Result<Served, RingError> {
    let began = tsc::now();
    let mut bytes = 0u64;
    let chains = vring.take(burst_of(&vring), |chain| {
        let len = chain.readable.iter().fold(0u64, |sum, buffer| sum.saturating_add(buffer.len.into()));
        bytes = bytes.saturating_add(len.saturating_sub(HEADER as u64));
        Ok(())
    })?;
    vring.complete_all()?;
    let call = vring.publish()?;
    stats.add_drops(DropCause::Disabled, chains as u64);
    stats.add_burst(chains as u64, bytes, tsc::now().wrapping_sub(began));
    Ok(Served { chains, call })
}

/// One burst of a receive queue with frames of the generator.
#[inline(always)]
fn fill(queue: &mut Queue, mergeable: bool, generator: &mut Generator) -> u32 {
    if queue.switch.get() != Enabled::Yes {
        queue.hush();
        return 0;
    }
    serve(queue, |vring, stats| fill_burst(vring, stats, mergeable, generator))
}

#[inline(never)]
fn fill_burst(
    vring: Vring<'_, '_>,
    stats: &QueueStats,
    mergeable: bool,
    generator: &mut Generator,
) -> Result<Served, RingError> {
    let began = tsc::now();
    let mut offered = Offered::new();
    let burst = burst_of(&vring);
    let mut room = Incoming::open(vring, &mut offered, mergeable, burst);
    for emitted in 0..burst {
        match room.room(generator.size()) {
            Ok(room) => generator.emit(&room, HEADER),
            // A malformed chain behind good ones is said when it is the first.
            Err(Refusal::Broken(error)) if emitted == 0 => return Err(error),
            Err(Refusal::Small) => {
                stats.add_drops(DropCause::ReceiverSmall, 1);
                break;
            }
            Err(Refusal::Full | Refusal::Later | Refusal::Broken(_)) => break,
        }
    }
    let received = room.finish(stats, began)?;
    Ok(Served { chains: received.frames as usize, call: received.call })
}
