//! Driving one queue pair in one direction, burst by burst.
//!
//! A [`Pair`] knows what it sent and what it expects; a poll takes back what the device has used, counts and checks it, and
//! offers more. Packets carry running numbers, so that a lost or reordered packet is seen while time is measured too.
use super::frames;
use super::latency::{Latencies, Probe};
use super::size::PacketSize;
use crate::driver::DriverError;
use crate::driver::net::{Packet, RxQueue, TxQueue};
use std::fmt;

/// Packets offered before the index is published.
pub const BURST: u32 = 32;
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
pub struct Pair {
    rx: RxQueue,
    tx: TxQueue,
    direction: Direction,
    size: PacketSize,
    care: Care,
    /// The number of the next packet to send.
    next: u64,
    /// The number of the next packet to arrive (from, loop); `None` before the first of a generator, which may have begun at any.
    expected: Option<u64>,
    probe: Probe,
    counts: Counts,
    completed: u64,
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

impl Pair {
    /// A pair on fresh queues. Transmit buffers are filled with whole frames, so that later only numbers need be written.
    pub fn new(rx: RxQueue, tx: TxQueue, direction: Direction, size: PacketSize) -> Self {
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
            next: 0,
            expected: (direction == Direction::Loop).then_some(0),
            probe: Probe::every(PROBE_INTERVAL),
            counts: Counts::default(),
            completed: 0,
        }
    }

    /// The queues: receive, transmit.
    pub fn queues(&self) -> (&RxQueue, &TxQueue) {
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

    /// What was counted since the last time.
    pub fn take(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Packets that are under way (loop; otherwise 0).
    #[inline]
    pub fn in_flight(&self) -> u64 {
        if self.direction == Direction::Loop { self.next - self.expected.unwrap_or(0) } else { 0 }
    }

    /// Packets that the device has used from the first on (to).
    pub fn completed(&self) -> u64 {
        self.completed
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
        let Self { tx, probe, counts, completed, .. } = self;
        let used = tx.reclaim(2 * BURST, |head| {
            if probe.marked() == Some(u64::from(head)) {
                probe.back().into_iter().for_each(|latency| counts.latencies.record(latency));
            }
        })?;
        counts.packets += u64::from(used);
        *completed += u64::from(used);
        let mut polled = Polled { packets: used, ..Polled::default() };
        if send && let Some((last, bytes)) = self.send(BURST)? {
            polled.kick_tx = self.tx.queue.publish();
            // The device uses all of them soon: what is under way at the end of a run does not show.
            self.counts.bytes += bytes;
            self.probe.burst(u64::from(last));
        }
        Ok(polled)
    }

    fn poll_from(&mut self) -> Result<Polled, DriverError> {
        let packets = self.receive()?;
        let kick_rx = packets > 0 && self.rx.queue.publish();
        Ok(Polled { packets, kick_rx, kick_tx: false })
    }

    fn poll_loop(&mut self, send: bool) -> Result<Polled, DriverError> {
        self.tx.reclaim(2 * BURST, |_| ())?;
        let packets = self.receive()?;
        let kick_rx = packets > 0 && self.rx.queue.publish();
        let mut polled = Polled { packets, kick_rx, kick_tx: false };
        // Never more under way than there are receive buffers: then a packet is lost only by the device's fault.
        let room = u64::from(self.rx.queue.options().size).saturating_sub(self.in_flight());
        let burst = room.min(BURST.into()) as u32;
        let first = self.next;
        if send && burst > 0 && self.send(burst)?.is_some() {
            polled.kick_tx = self.tx.queue.publish();
            if self.next > first {
                self.probe.burst(self.next - 1);
            }
        }
        Ok(polled)
    }

    /// Offers up to `count` packets: the last one's head and the bytes of all; `None` if no buffer was idle.
    #[inline]
    fn send(&mut self, count: u32) -> Result<Option<(u16, u64)>, DriverError> {
        let Self { tx, size, care, next, .. } = self;
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
            *next += 1;
            last = Some(head);
            bytes += u64::from(len);
            len.into()
        })?;
        Ok(last.map(|head| (head, bytes)))
    }

    #[inline]
    fn receive(&mut self) -> Result<u32, DriverError> {
        let Self { rx, probe, counts, expected, care, direction, size, .. } = self;
        let mut last = None;
        let packets = rx.receive(2 * BURST, |head, packet| {
            counts.bytes += packet.len() as u64;
            last = Some(head);
            let mark = if *direction == Direction::From {
                u64::from(head)
            } else {
                frames::number(&packet.frame()).unwrap_or(u64::MAX)
            };
            if probe.marked() == Some(mark) {
                probe.back().into_iter().for_each(|latency| counts.latencies.record(latency));
            }
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
        if self.direction == Direction::From
            && let Some(last) = last
        {
            probe.burst(last.into());
        }
        Ok(packets)
    }

    /// Gives up what is under way (loop): it counts as lost.
    pub fn give_up_in_flight(&mut self) {
        self.counts.lost += self.in_flight();
        self.expected = Some(self.next);
        self.probe.forget();
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
