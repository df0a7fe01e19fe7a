//! Driving one queue pair in one direction, burst by burst.
//!
//! A [`Pair`] knows what it sent and what it expects; a poll takes back what the device has used, counts and checks it, and
//! offers more. Packets carry running numbers, so that a lost or reordered packet is seen while time is measured too.
use super::frames;
use super::latency::{Latencies, Probe, Stamps, Timing};
use super::pace::Load;
use super::shape::BURST;
use super::size::PacketSize;
use crate::driver::net::{Packet, RxQueue, TxQueue};
use crate::driver::{DriverError, SplitQueue, Virtqueue};
use std::fmt;
use std::time::Instant;

/// One burst in this many has a packet whose latency is taken.
const PROBE_INTERVAL: u32 = 64;

/// Which way the packets go, as the guest sees it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Direction {
    /// From the driver to the device, which drops them.
    To,
    /// From the device, which makes them, to the driver.
    From,
    /// From the driver to the device and back.
    Loop,
}

impl Direction {
    /// As written on the command line and in names of results.
    pub fn name(self) -> &'static str {
        match self {
            Direction::To => "to",
            Direction::From => "from",
            Direction::Loop => "loop",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// How much of a packet is written and checked.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Care {
    /// The number only.
    Numbers,
    /// Every byte.
    Bytes,
    /// Nothing: the packets are a stranger's.
    None,
}

/// What was counted since the last [`Pair::take`].
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Packets that arrived: used by the device (to), received (from, loop).
    pub packets: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Numbers that never arrived.
    pub lost: u64,
    /// Packets that arrived after a later one, or twice.
    pub misordered: u64,
    /// Packets with wrong bytes.
    pub corrupt: u64,
    /// Latencies of the sampled ones.
    pub latencies: Latencies,
}

impl Counts {
    /// The packet that is known by `mark` has arrived.
    #[inline]
    fn arrived(&mut self, timing: &mut Timing, mark: u64) {
        let latency = match timing {
            Timing::Sampled(probe) if probe.marked() == Some(mark) => probe.back(),
            Timing::Sampled(_) => None,
            Timing::Every(stamps) => stamps.stop(mark),
        };
        if let Some(latency) = latency {
            self.latencies.record(latency);
        }
    }

    /// Adds another pair's.
    pub fn merge(&mut self, other: &Counts) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.lost += other.lost;
        self.misordered += other.misordered;
        self.corrupt += other.corrupt;
        self.latencies.merge(&other.latencies);
    }
}

/// A queue pair under load.
pub struct Pair<Q = SplitQueue> {
    rx: RxQueue<Q>,
    tx: TxQueue<Q>,
    direction: Direction,
    size: PacketSize,
    care: Care,
    /// Packets offered before they are published.
    burst: u32,
    /// The number of the next packet to send.
    next: u64,
    /// The number of the next packet to arrive (from, loop); `None` before the first of a generator, which may have begun at any.
    expected: Option<u64>,
    load: Load,
    timing: Timing,
    counts: Counts,
    completed: u64,
    /// Packets that found no room when they were due.
    refused: u64,
}

/// Which of a pair's queues have to be kicked after a poll.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Polled {
    /// Packets that arrived.
    pub packets: u32,
    /// The device sleeps on the receive queue.
    pub kick_rx: bool,
    /// The device sleeps on the transmit queue.
    pub kick_tx: bool,
}

impl<Q: Virtqueue> Pair<Q> {
    /// A pair on fresh queues. Transmit buffers are filled with whole frames, so that later only numbers need be written.
    pub fn new(rx: RxQueue<Q>, tx: TxQueue<Q>, direction: Direction, size: PacketSize) -> Self {
        for (head, frame) in tx.frames() {
            if let Some(frame) = frame.subslice(0, usize::from(size.greatest()).min(frame.len())) {
                frames::write(&frame, u64::from(head));
            }
        }
        Pair {
            rx,
            tx,
            direction,
            size,
            care: Care::Numbers,
            burst: BURST,
            next: 0,
            expected: (direction == Direction::Loop).then_some(0),
            load: Load::Greatest,
            timing: Timing::Sampled(Probe::every(PROBE_INTERVAL)),
            counts: Counts::default(),
            completed: 0,
            refused: 0,
        }
    }

    /// The queues: receive, transmit.
    pub fn queues(&self) -> (&RxQueue<Q>, &TxQueue<Q>) {
        (&self.rx, &self.tx)
    }

    /// Offers all receive buffers; true if the device wants a kick for it.
    ///
    /// # Errors
    /// As [`RxQueue::offer_all`].
    pub fn prime(&mut self) -> Result<bool, DriverError> {
        self.rx.offer_all()?;
        Ok(self.rx.queue.publish())
    }

    /// How much is checked from now on.
    pub fn set_care(&mut self, care: Care) {
        self.care = care;
    }

    /// How many packets are offered, at least one, before they are published.
    pub fn set_burst(&mut self, burst: u32) {
        self.burst = burst.max(1);
    }

    /// How many packets are sent from now on ([`Direction::To`], [`Direction::Loop`]).
    pub fn set_load(&mut self, load: Load) {
        self.load = load;
    }

    /// From now on every packet's latency is taken ([`Direction::To`], [`Direction::Loop`]).
    pub fn time_every_packet(&mut self) {
        self.timing = Timing::Every(Stamps::new(self.rx.queue.options().size));
    }

    /// What was counted since the last time.
    pub fn take(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Packets that were sent and did not arrive yet (from: none).
    #[inline]
    pub fn in_flight(&self) -> u64 {
        match self.direction {
            Direction::To => self.tx.queue.outstanding().into(),
            Direction::From => 0,
            Direction::Loop => self.next - self.expected.unwrap_or(0),
        }
    }

    /// Packets that arrived from the first on: used by the device (to), received (from, loop).
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// Packets that were sent from the first on, and those that found no room when they were due.
    pub fn offered(&self) -> [u64; 2] {
        [self.next, self.refused]
    }

    /// Which way its packets go.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// One round; `send` false lets what is under way come in and sends no more.
    ///
    /// # Errors
    /// [`DriverError`]: the device does what no device may.
    #[inline]
    pub fn poll(&mut self, send: bool) -> Result<Polled, DriverError> {
        match self.direction {
            Direction::To => self.poll_to(send),
            Direction::From => self.poll_from(),
            Direction::Loop => self.poll_loop(send),
        }
    }

    fn poll_to(&mut self, send: bool) -> Result<Polled, DriverError> {
        let limit = self.limit();
        let Self { tx, timing, counts, completed, .. } = self;
        let used = tx.reclaim(limit, |head| counts.arrived(timing, head.into()))?;
        counts.packets += u64::from(used);
        *completed += u64::from(used);
        let room = self.tx.idle() as u64;
        let mut polled = Polled { packets: used, ..Polled::default() };
        if send {
            // The device uses all of them soon: what is under way at the end of a run does not show.
            let (kick, bytes) = self.send(room)?;
            polled.kick_tx = kick;
            self.counts.bytes += bytes;
        }
        Ok(polled)
    }

    fn poll_from(&mut self) -> Result<Polled, DriverError> {
        let packets = self.receive()?;
        let kick_rx = packets > 0 && self.rx.queue.publish();
        Ok(Polled { packets, kick_rx, kick_tx: false })
    }

    fn poll_loop(&mut self, send: bool) -> Result<Polled, DriverError> {
        self.tx.reclaim(self.limit(), |_| ())?;
        let packets = self.receive()?;
        let kick_rx = packets > 0 && self.rx.queue.publish();
        let mut polled = Polled { packets, kick_rx, kick_tx: false };
        // Never more under way than there are receive buffers: then a packet is lost only by the device's fault.
        let room = u64::from(self.rx.queue.options().size).saturating_sub(self.in_flight());
        if send {
            polled.kick_tx = self.send(room)?.0;
        }
        Ok(polled)
    }

    /// How many packets are taken from a ring at a time. At the greatest rate neither side is to wait for the other's whole ring;
    /// below it nothing may be left there that somebody needs room for.
    fn limit(&self) -> u32 {
        if matches!(self.load, Load::Greatest) { 2 * self.burst } else { u32::MAX }
    }

    /// Sends what the load wants, as far as there is `room`, and publishes each burst of it: whether the device wants a
    /// kick, and the bytes.
    #[inline]
    fn send(&mut self, room: u64) -> Result<(bool, u64), DriverError> {
        let burst = self.burst;
        let wanted = match &mut self.load {
            Load::Greatest => burst,
            Load::One => 1,
            Load::Paced(pace) => pace.due(Instant::now()),
        };
        let mut left = match self.load {
            Load::One if self.in_flight() > 0 => 0,
            _ => room.min(wanted.into()) as u32,
        };
        let (mut kick, mut bytes) = (false, 0);
        let first = self.next;
        while left > 0 {
            let Some(sent) = self.send_burst(left.min(burst))? else { break };
            kick |= self.tx.queue.publish();
            bytes += sent;
            left = left.saturating_sub(burst);
        }
        if matches!(self.load, Load::Paced(_)) {
            self.refused += u64::from(wanted).saturating_sub(self.next - first);
        }
        Ok((kick, bytes))
    }

    /// Offers up to `count` packets: the bytes of all; `None` if no buffer was idle.
    #[inline]
    fn send_burst(&mut self, count: u32) -> Result<Option<u64>, DriverError> {
        let Self { tx, size, care, next, timing, direction, .. } = self;
        let now = matches!(timing, Timing::Every(_)).then(Instant::now);
        // A packet is known by what tells of its arrival: its buffer's use, or its number.
        let mark = |head: u16, number: u64| if *direction == Direction::To { head.into() } else { number };
        let (mut last, mut bytes) = (None, 0u64);
        tx.send(count, |head, frame| {
            let len = size.of(*next);
            if *care == Care::Bytes {
                if let Some(frame) = frame.subslice(0, len.into()) {
                    frames::write(&frame, *next);
                }
            } else {
                frames::stamp(frame, *next);
            }
            if let (Timing::Every(stamps), Some(now)) = (&mut *timing, now) {
                stamps.start(mark(head, *next), now);
            }
            last = Some(mark(head, *next));
            *next += 1;
            bytes += u64::from(len);
            len.into()
        })?;
        if let (Timing::Sampled(probe), Some(last)) = (timing, last) {
            probe.burst(last);
        }
        Ok(last.map(|_| bytes))
    }

    #[inline]
    fn receive(&mut self) -> Result<u32, DriverError> {
        let limit = self.limit();
        let Self { rx, timing, counts, expected, care, direction, size, .. } = self;
        let mut last = None;
        let packets = rx.receive(limit, |head, packet| {
            counts.bytes += packet.len() as u64;
            last = Some(head);
            let mark = if *direction == Direction::From {
                u64::from(head)
            } else {
                frames::number(&packet.frame()).unwrap_or(u64::MAX)
            };
            counts.arrived(timing, mark);
            if *care != Care::None {
                let whole = examine(packet, expected, counts);
                if *care == Care::Bytes
                    && !whole.is_some_and(|number| is_right(packet, *direction, *size, number))
                {
                    counts.corrupt += 1;
                }
            }
        })?;
        counts.packets += u64::from(packets);
        self.completed += u64::from(packets);
        if self.direction == Direction::From
            && let (Timing::Sampled(probe), Some(last)) = (&mut self.timing, last)
        {
            probe.burst(last.into());
        }
        Ok(packets)
    }

    /// Gives up what is under way (loop): it counts as lost.
    pub fn give_up_in_flight(&mut self) {
        self.counts.lost += self.in_flight();
        self.expected = Some(self.next);
        if let Timing::Sampled(probe) = &mut self.timing {
            probe.forget();
        }
    }
}

/// Compares a packet's number with what was to come; the number, if it has one.
#[inline]
fn examine(packet: &Packet<'_>, expected: &mut Option<u64>, counts: &mut Counts) -> Option<u64> {
    let number = frames::number(&packet.frame())?;
    let due = expected.unwrap_or(number);
    if number >= due {
        counts.lost += number - due;
        *expected = Some(number.wrapping_add(1));
    } else {
        counts.misordered += 1;
    }
    Some(number)
}

/// Whether every byte of a packet is right.
fn is_right(packet: &Packet<'_>, direction: Direction, size: PacketSize, number: u64) -> bool {
    let bytes = packet.to_vec();
    let len = usize::from(size.of(number));
    match direction {
        Direction::Loop => bytes.len() == len && frames::is_ours(&bytes, number),
        Direction::From | Direction::To => frames::is_numbered(&bytes, len),
    }
}

#[cfg(test)]
#[path = "drive_tests.rs"]
mod tests;
