//! A queue pair on a bridge: frames from its transmit queue into the receive queues of other devices. What the sender left
//! undone goes along to receivers that take it, and is done here for those that do not.

use mdev_protocol::virtio::net::{NetHeader, VIRTIO_NET_HDR_GSO_NONE};
use smallvec::SmallVec;
use zerocopy::IntoBytes;

use super::bridge::{Found, Jack, Receiver, Receiving, Sender, Target};
use super::engine::{Served, transmit};
use super::header::HEADER;
use super::incoming::{Arrival, Incoming, Offered, Refusal};
use super::offload::Offloads;
use super::outgoing::{Outgoing, Sent};
use super::pieces::BURST;
use super::segment::{Cut, missing_sum, part};
use crate::device::{DropCause, Enabled, Queue, QueueStats};
use crate::link::{Frame, Room};
use crate::ring::{RingError, Vring};
use crate::sys::tsc;

/// How often a receive queue that another sender fills is tried again, before its frames are dropped.
const TRIES: usize = 16;

/// The pair's way to the others.
pub(super) struct Bridged {
    sender: Sender,
    /// Which receive queue of theirs it prefers.
    pub(super) pair: u16,
    /// What its guest may leave to be done.
    leaves: Offloads,
}

/// A frame of a burst: where it goes, and what its header says, checked.
#[derive(Copy, Clone)]
struct Outbound {
    target: Target,
    header: NetHeader,
}

/// How far a burst has come with one port.
enum Progress {
    /// All that was for it has been given to it, or dropped.
    Done,
    /// The queue has no room for the frame of this number.
    Full(usize),
}

impl Bridged {
    /// A pair whose driver has acknowledged `features`.
    pub(super) fn new(sender: Sender, pair: u16, features: u64) -> Self {
        Self { sender, pair, leaves: Offloads::from_guest(features) }
    }

    /// One burst of the transmit queue.
    pub(super) fn send(&mut self, queue: &mut Queue) -> u32 {
        transmit(queue, |vring, stats| self.send_burst(vring, stats))
    }

    fn send_burst(&mut self, vring: Vring<'_, '_>, stats: &QueueStats) -> Result<Served, RingError> {
        let began = tsc::now();
        let now = self.sender.begin();
        let mut sent = Sent::new();
        let mut frames = Outgoing::take_with_headers(vring, &mut sent)?;
        let chains = frames.len();
        let mut outbound: SmallVec<[Outbound; BURST]> = SmallVec::new();
        let mut odd = 0u64;
        for index in 0..chains {
            let header = frames.header(index);
            let mut one = Outbound { target: Target::None, header: NetHeader::default() };
            if let Some(frame) = frames.frame(index) {
                match self.leaves.check(header, frame.len()) {
                    Some(header) => {
                        let mut addresses = [0; 12];
                        frame.copy_to(&mut addresses);
                        one = Outbound { target: self.sender.target(addresses, now), header };
                    }
                    None => odd = odd.saturating_add(1),
                }
            }
            outbound.push(one);
        }
        stats.add_drops(DropCause::Header, odd);
        let mut reached = false;
        for port in self.sender.others() {
            if outbound.iter().any(|one| one.target.is(port.number)) {
                reached |= self.deliver(port, &frames, &outbound, stats)?;
            }
        }
        if !reached {
            let flooded = outbound.iter().filter(|one| one.target == Target::All).count();
            stats.add_drops(DropCause::NoReceiver, flooded as u64);
        }
        let call = frames.finish(stats, began)?;
        Ok(Served { chains, call })
    }

    /// Gives a port what is for it, and drops what finds no room. Whether anything runs there; what was for it alone is counted
    /// as dropped if not.
    ///
    /// # Errors
    /// The sender's memory was lost.
    fn deliver(
        &self,
        port: &Jack,
        frames: &Outgoing<'_, '_, '_>,
        outbound: &[Outbound],
        stats: &QueueStats,
    ) -> Result<bool, RingError> {
        let mut next = 0;
        let mut reached = false;
        for receiver in port.receivers_from(self.pair) {
            let mut place = match take(receiver) {
                Found::Queue(place) => place,
                Found::Busy => {
                    reached = true;
                    continue;
                }
                Found::Nobody => continue,
            };
            let Some(receiving) = place.as_mut() else { continue };
            if receiving.queue.switch.get() != Enabled::Yes || !receiving.queue.ready() {
                continue;
            }
            reached = true;
            let header = |index: usize| {
                outbound.get(index).filter(|one| one.target.is(port.number)).map(|one| one.header)
            };
            match fill(receiver, receiving, frames, next, header, stats)? {
                Progress::Done => return Ok(true),
                Progress::Full(index) => next = index,
            }
        }
        let left = outbound.get(next..).unwrap_or_default().iter();
        let (cause, left) = match reached {
            true => (DropCause::ReceiverFull, left.filter(|one| one.target.is(port.number)).count()),
            false => {
                (DropCause::NoReceiver, left.filter(|one| one.target == Target::Port(port.number)).count())
            }
        };
        stats.add_drops(cause, left as u64);
        Ok(reached)
    }
}

/// Takes a receive queue, trying for about as long as another sender's burst takes.
fn take(receiver: &Receiver) -> Found<'_> {
    for _ in 0..TRIES {
        match receiver.try_take() {
            Found::Busy => std::hint::spin_loop(),
            found => return found,
        }
    }
    Found::Busy
}

/// Copies the frames from `next` on that are meant for a receive queue, those with a header here, into it, and publishes them
/// there.
///
/// # Errors
/// The sender's memory was lost. What is wrong with the receiver's is its own matter.
fn fill(
    receiver: &Receiver,
    receiving: &mut Receiving,
    frames: &Outgoing<'_, '_, '_>,
    next: usize,
    header: impl Fn(usize) -> Option<NetHeader>,
    sender: &QueueStats,
) -> Result<Progress, RingError> {
    let Receiving { queue, mergeable, takes } = receiving;
    let mut next = next;
    loop {
        let began = next;
        let arrival = fill_burst(queue, (*mergeable, *takes), frames, &mut next, &header, sender)?;
        // Here the receiver's burst is over; the sender's is not, and nothing of this waits.
        if !arrival.tell(queue) {
            if queue.failed.is_some() {
                receiver.has_failed();
            }
            return Ok(Progress::Full(next));
        }
        if next >= frames.len() {
            return Ok(Progress::Done);
        }
        if next == began {
            return Ok(Progress::Full(next));
        }
    }
}

/// One burst of [`fill`]: `next` moves on behind what was copied or dropped.
///
/// # Errors
/// The sender's memory was lost.
fn fill_burst(
    queue: &mut Queue,
    (mergeable, takes): (bool, Offloads),
    frames: &Outgoing<'_, '_, '_>,
    next: &mut usize,
    header: impl Fn(usize) -> Option<NetHeader>,
    sender: &QueueStats,
) -> Result<Arrival, RingError> {
    let Queue { ring, lane, stats, parked, .. } = queue;
    let burst = lane.enter();
    let vring = match ring.begin(&burst) {
        Ok(vring) => vring,
        Err(error) => return Ok(Arrival::trouble(error)),
    };
    let mut offered = Offered::new();
    let meant = (*next..frames.len()).filter(|index| header(*index).is_some()).count();
    let mut room = Incoming::open(vring, &mut offered, mergeable, meant);
    let mut at = *next;
    let mut broken = None;
    while at < frames.len() {
        if let Some(header) = header(at)
            && let Some(frame) = frames.peek(at)
        {
            match put(&mut room, takes, &header, &frame, sender) {
                Ok(()) => {}
                Err(Refusal::Small) => sender.add_drops(DropCause::ReceiverSmall, 1),
                Err(Refusal::Full | Refusal::Later) => break,
                Err(Refusal::Broken(error)) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        at = at.saturating_add(1);
    }
    let shown = room.show(frames, stats, parked)?;
    if shown.is_ok() {
        *next = at;
    }
    Ok(Arrival::of(shown, broken))
}

/// Gives a receive queue one frame: as it is where its driver takes that, else summed and cut here.
///
/// # Errors
/// Why there is no room for it; nothing was used then. Of a frame that is cut the rest is dropped and counted.
fn put(
    incoming: &mut Incoming<'_, '_, '_>,
    takes: Offloads,
    header: &NetHeader,
    frame: &Frame<'_, '_>,
    sender: &QueueStats,
) -> Result<(), Refusal> {
    if header.gso_type == VIRTIO_NET_HDR_GSO_NONE {
        let sum = match takes.check(*header, frame.len()) {
            Some(_) => None,
            None => Some(missing_sum(header, frame)),
        };
        let room = incoming.room(frame.len())?;
        room.write_frame(HEADER, frame);
        match sum {
            Some((at, sum)) => room.write(HEADER.saturating_add(at), &sum),
            None if header.flags != 0 => write_header(&room, header),
            None => {}
        }
        return Ok(());
    }
    // What cannot be cut is not what it says, and nobody is given it.
    let Some(cut) = Cut::new(header, frame) else {
        sender.add_drops(DropCause::Header, 1);
        return Ok(());
    };
    let whole = NetHeader { hdr_len: (cut.headers_len() as u16).to_le(), ..*header };
    if takes.check(whole, frame.len()).is_some() {
        let room = incoming.room(frame.len())?;
        room.write_frame(HEADER, frame);
        write_header(&room, &whole);
        return Ok(());
    }
    for index in 0..cut.count() {
        let (mut headers, from, len) = cut.segment(index);
        let pieces = part(frame, from, len);
        let payload = Frame::new(&pieces, len);
        let headers = headers.with_sum_of(&payload);
        match incoming.room(headers.len().saturating_add(len)) {
            Ok(room) => {
                room.write(HEADER, headers);
                room.write_frame(HEADER.saturating_add(headers.len()), &payload);
            }
            Err(refusal) if index == 0 => return Err(refusal),
            Err(_) => {
                sender.add_drops(DropCause::ReceiverFull, 1);
                break;
            }
        }
    }
    Ok(())
}

/// Writes a header over the one that is there; the number of chains stays as it is.
fn write_header(room: &Room<'_, '_>, header: &NetHeader) {
    room.write(0, header.as_bytes().get(..NetHeader::NUM_BUFFERS_OFFSET).unwrap_or_default());
}
