//! The data path of one queue pair.

use std::time::Instant;

use super::header::{F_MRG_RXBUF, HEADER};
use super::incoming::{Incoming, Refusal};
use super::outgoing::Outgoing;
use super::pieces::BURST;
use crate::device::{DropCause, Engine, Queue};
use crate::link::{Frame, Generator, Sink};
use crate::ring::RingError;
use crate::sys::tsc;

/// What a pair's frames are connected to.
pub(super) enum Link {
    Null(Sink),
    Loopback,
    Pktgen(Generator),
}

/// A receive queue (even index), a transmit queue (odd index), and the link between them and the world.
pub(super) struct NetEngine {
    mergeable: bool,
    link: Link,
    receive: Option<Queue>,
    transmit: Option<Queue>,
}

impl NetEngine {
    pub(super) fn new(features: u64, link: Link) -> Self {
        Self { mergeable: features & F_MRG_RXBUF != 0, link, receive: None, transmit: None }
    }

    fn place(&mut self, index: u16) -> &mut Option<Queue> {
        if index & 1 == 0 { &mut self.receive } else { &mut self.transmit }
    }

    fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.receive.iter().chain(&self.transmit)
    }
}

impl Engine for NetEngine {
    fn start_queue(&mut self, queue: Queue) {
        let place = self.place(queue.index);
        *place = Some(queue);
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        self.place(index).take_if(|queue| queue.index == index)
    }

    fn queue_mut(&mut self, index: u16) -> Option<&mut Queue> {
        self.place(index).as_mut().filter(|queue| queue.index == index)
    }

    fn poll(&mut self) -> u32 {
        let Self { mergeable, link, receive, transmit } = self;
        match link {
            Link::Null(sink) => {
                if let Some(queue) = receive {
                    hush(queue);
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
                    hush(queue);
                }
                transmit.as_mut().map_or(0, |queue| turn(queue, receive.as_mut(), *mergeable))
            }
        }
    }

    fn arm(&mut self) -> bool {
        // Receive buffers are work only where frames come by themselves.
        let receive = match self.link {
            Link::Pktgen(_) => self.receive.as_mut(),
            Link::Null(_) | Link::Loopback => None,
        };
        let mut work = false;
        for queue in receive.into_iter().filter(|queue| queue.enabled).chain(&mut self.transmit) {
            work |= arm(queue);
        }
        work
    }

    fn disarm(&mut self) {
        self.receive.iter_mut().chain(&mut self.transmit).for_each(hush);
    }

    fn needs_reset(&self) -> bool {
        self.queues().any(|queue| queue.failed.is_some())
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.queues().filter_map(Queue::deadline).min()
    }
}

/// What a burst on one queue came to.
struct Served {
    chains: usize,
    call: bool,
}

impl Served {
    const IDLE: Served = Served { chains: 0, call: false };
}

/// Runs a burst on a queue, unless there is a reason not to, and takes note of what came of it.
#[inline(always)]
fn serve(queue: &mut Queue, burst: impl FnOnce(&mut Queue) -> Result<Served, RingError>) -> u32 {
    if !queue.ready() {
        return 0;
    }
    match burst(queue) {
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

/// One burst of a transmit queue whose frames go to `consume`.
fn send(queue: &mut Queue, mut consume: impl FnMut(&Frame<'_, '_>)) -> u32 {
    hush(queue);
    serve(queue, |queue| {
        let Queue { ring, lane, stats, enabled, .. } = queue;
        let burst = lane.enter();
        let vring = ring.begin(&burst)?;
        if vring.pending()? == 0 {
            stats.add_empty_poll();
            return Ok(Served::IDLE);
        }
        let began = tsc::now();
        if !*enabled {
            return discard(vring, stats);
        }
        let frames = Outgoing::take(vring)?;
        let chains = frames.len();
        for index in 0..chains {
            if let Some(frame) = frames.frame(index) {
                consume(&frame);
            }
        }
        let call = frames.finish(stats, tsc::now().wrapping_sub(began))?;
        Ok(Served { chains, call })
    })
}

/// One burst of a disabled transmit queue: chains are used up, nothing is read (vhost-user, "Ring states").
#[cold]
fn discard(
    mut vring: crate::ring::Vring<'_, '_>,
    stats: &crate::device::QueueStats,
) -> Result<Served, RingError> {
    let chains = vring.take(BURST, |_| Ok(()))?;
    vring.complete_all()?;
    let call = vring.publish()?;
    stats.add_drops(DropCause::Disabled, chains as u64);
    Ok(Served { chains, call })
}

/// One burst of a receive queue with frames of the generator.
fn fill(queue: &mut Queue, mergeable: bool, generator: &mut Generator) -> u32 {
    hush(queue);
    if !queue.enabled {
        return 0;
    }
    serve(queue, |queue| {
        let Queue { ring, lane, stats, .. } = queue;
        let burst = lane.enter();
        let vring = ring.begin(&burst)?;
        if vring.pending()? == 0 {
            stats.add_empty_poll();
            return Ok(Served::IDLE);
        }
        let began = tsc::now();
        let mut room = Incoming::open(vring, mergeable, BURST);
        let mut small = 0;
        for emitted in 0..BURST {
            match room.room(generator.size()) {
                Ok(room) => generator.emit(&room, HEADER),
                // A malformed chain behind good ones is said when it is the first.
                Err(Refusal::Broken(error)) if emitted == 0 => return Err(error),
                Err(Refusal::Small) => {
                    small = 1;
                    break;
                }
                Err(Refusal::Full | Refusal::Later | Refusal::Broken(_)) => break,
            }
        }
        let (frames, bytes, call) = room.finish()?;
        if frames != 0 {
            stats.add_burst(frames, bytes, tsc::now().wrapping_sub(began));
        }
        stats.add_drops(DropCause::ReceiverSmall, small);
        Ok(Served { chains: frames as usize, call })
    })
}

/// One burst of a transmit queue into the receive queue of the same pair.
fn turn(transmit: &mut Queue, receive: Option<&mut Queue>, mergeable: bool) -> u32 {
    hush(transmit);
    let mut receiver = receive.filter(|queue| queue.enabled);
    let mut trouble = None;
    let mut receiver_call = false;
    let chains = serve(transmit, |queue| {
        let Queue { ring, lane, stats, enabled, .. } = queue;
        let burst = lane.enter();
        let vring = ring.begin(&burst)?;
        if vring.pending()? == 0 {
            stats.add_empty_poll();
            return Ok(Served::IDLE);
        }
        let began = tsc::now();
        if !*enabled {
            return discard(vring, stats);
        }
        let mut frames = Outgoing::take(vring)?;
        let ready = receiver.as_deref_mut().and_then(|queue| queue.ready().then_some(queue));
        match ready {
            Some(queue) => match pass(&mut frames, queue, mergeable, stats)? {
                Ok(call) => receiver_call = call,
                Err(error) => trouble = Some(error),
            },
            None => stats.add_drops(DropCause::NoReceiver, frames.len() as u64),
        }
        let chains = frames.len();
        let call = frames.finish(stats, tsc::now().wrapping_sub(began))?;
        Ok(Served { chains, call })
    });
    if let Some(receiver) = receiver {
        match trouble {
            Some(error) => receiver.trouble(error),
            None if receiver_call => receiver.call(),
            None => {}
        }
    }
    chains
}

/// Copies frames into a receive queue and publishes them there. What finds no room is dropped and counted at its sender.
///
/// Two results: what is wrong with the sender's memory, and inside, what is wrong with the receiver, or whether it
/// wants a call.
#[inline]
fn pass(
    frames: &mut Outgoing<'_, '_>,
    receiver: &mut Queue,
    mergeable: bool,
    sender: &crate::device::QueueStats,
) -> Result<Result<bool, RingError>, RingError> {
    let Queue { ring, lane, stats, parked, .. } = receiver;
    let burst = lane.enter();
    let vring = match ring.begin(&burst) {
        Ok(vring) => vring,
        Err(error) => {
            sender.add_drops(DropCause::NoReceiver, frames.len() as u64);
            return Ok(Err(error));
        }
    };
    let mut room = Incoming::open(vring, mergeable, frames.len());
    let mut broken = None;
    let (mut full, mut small, mut lost) = (0u64, 0u64, 0u64);
    for index in 0..frames.len() {
        let Some(frame) = frames.frame(index) else { continue };
        match room.room(frame.len()) {
            Ok(room) => room.write_frame(HEADER, &frame),
            Err(Refusal::Full) => full = full.wrapping_add(1),
            Err(Refusal::Small) => small = small.wrapping_add(1),
            Err(Refusal::Later) if index > 0 => {
                frames.keep(index);
                break;
            }
            // A frame that needs more chains than a burst has will not fit the next one either.
            Err(Refusal::Later) => full = full.wrapping_add(1),
            Err(Refusal::Broken(error)) => {
                broken = Some(error);
                lost = lost.wrapping_add(1);
            }
        }
    }
    // Nothing that was read from lost pages may be shown to the receiver.
    if frames.poisoned() {
        return Err(RingError::Poisoned);
    }
    sender.add_drops(DropCause::ReceiverFull, full);
    sender.add_drops(DropCause::ReceiverSmall, small);
    sender.add_drops(DropCause::NoReceiver, lost);
    Ok(room
        .finish()
        .map(|(count, bytes, call)| {
            stats.add_burst(count, bytes, 0);
            (call, count)
        })
        .and_then(|(call, count)| match broken {
            Some(error) => Err(error),
            None => {
                if count != 0 {
                    *parked = None;
                }
                Ok(call)
            }
        }))
}

/// Tells the driver of a queue that polls need no kicks, once.
#[inline(always)]
fn hush(queue: &mut Queue) {
    if !queue.quiet {
        hush_now(queue);
    }
}

#[cold]
fn hush_now(queue: &mut Queue) {
    if !queue.ready() {
        return;
    }
    let burst = queue.lane.enter();
    // A ring that cannot be opened says so when it is polled.
    if let Ok(mut vring) = queue.ring.begin(&burst)
        && vring.disarm().is_ok()
    {
        queue.quiet = true;
    }
}

/// Asks the driver of a queue for a kick. True if there is work already.
fn arm(queue: &mut Queue) -> bool {
    if queue.failed.is_some() || queue.parked.is_some() {
        return false;
    }
    let armed = {
        let burst = queue.lane.enter();
        queue.ring.begin(&burst).and_then(|mut vring| vring.arm())
    };
    queue.quiet = false;
    armed.unwrap_or_else(|error| {
        queue.trouble(error);
        false
    })
}
