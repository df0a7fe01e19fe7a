//! One measurement: one direction, one size, one back-end.
use super::drive::{Counts, Direction, Pair};
use super::run::{Member, Plan, RunError, Slice, drive, verify};
use super::size::PacketSize;
use crate::driver::net::{HEADER_LEN, QueueOptions, RxQueue, TxQueue};
use crate::driver::{
    DriverError, FrontEnd, FrontEndError, GuestMemory, MemoryError, MemoryOptions, RingFds, RingOptions,
};
use crate::report::CounterLine;
use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;
use mdev_protocol::virtio::net::{VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Packets that are looked at byte by byte before time is measured.
pub const VERIFIED: u64 = 100_000;
/// Slices that the measured time is cut into.
pub const SLICES: usize = 5;
/// How long the back-end may take to listen, and for each answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What to measure.
#[derive(Clone, Debug)]
pub struct CellOptions {
    /// Which way the packets go.
    pub direction: Direction,
    /// Their sizes.
    pub size: PacketSize,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// Descriptors of each ring.
    pub ring_size: u16,
    /// Time of the whole cell; a tenth of it goes by before the measuring begins.
    pub duration: Duration,
    /// Processors of the driving threads; none: one thread wherever the scheduler puts it.
    pub cpus: Vec<usize>,
    /// Whether the back-end is known to make numbered packets ([`Direction::From`]); what comes from others is counted
    /// only. (What comes back in a loop is always checked.)
    pub numbered: bool,
}

/// Why a cell could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// The conversation failed.
    #[error(transparent)]
    FrontEnd(#[from] FrontEndError),
    /// The rings or their memory could not be made.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No descriptors.
    #[error("no event counters: {0}")]
    EventFd(#[source] io::Error),
    /// The run ended early.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct CellResult {
    /// The slices of the measured time.
    pub slices: Vec<Slice>,
    /// What the packets looked at before were like; `None` where they could not be looked at.
    pub verified: Option<Counts>,
    /// The device's counters at the beginning of the first slice and at the end of each, as far as it answered.
    pub counters: Vec<CounterLine>,
    /// Its counters after the rings were stopped.
    pub last: Option<CounterLine>,
    /// Whether the packets that came had numbers, so that a lost one was missed.
    pub numbered: bool,
    /// Packets the device used over the connection's whole life ([`Direction::To`]).
    pub completed: u64,
}

/// A back-end with all its pairs running.
struct Attached {
    front_end: FrontEnd,
    members: Vec<Member>,
    /// What the rings and buffers lie in.
    _memory: GuestMemory,
}

impl Attached {
    fn new(socket: &Path, options: &CellOptions) -> Result<Self, CellError> {
        let optional = VIRTIO_NET_F_MRG_RXBUF | if options.queue_pairs > 1 { VIRTIO_NET_F_MQ } else { 0 };
        let mut front_end =
            FrontEnd::connect(socket, TIMEOUT, VIRTIO_F_VERSION_1, optional, FrontEnd::usual_protocol())?;
        front_end.need_queues(options.queue_pairs.into())?;
        let queue = QueueOptions {
            ring: RingOptions::plain(options.ring_size),
            capacity: capacity(options.size),
            mergeable: front_end.features() & VIRTIO_NET_F_MRG_RXBUF != 0,
            ..QueueOptions::plain(options.ring_size)
        };
        let size = u64::from(options.queue_pairs) * 2 * ring_bytes(&queue) + (1 << 20);
        let mut memory = GuestMemory::new(MemoryOptions { size, ..MemoryOptions::default() })?;
        let mut members = Vec::with_capacity(options.queue_pairs.into());
        for _ in 0..options.queue_pairs {
            let rx = RxQueue::new(&mut memory, queue)?;
            let tx = TxQueue::new(&mut memory, queue)?;
            let mut pair = Pair::new(rx, tx, options.direction, options.size);
            pair.prime()?;
            let fds = || RingFds::new().map_err(CellError::EventFd);
            members.push(Member { pair, rx: fds()?, tx: fds()? });
        }
        front_end.share(&memory)?;
        for (number, member) in members.iter().enumerate() {
            let (rx, tx) = member.pair.queues();
            let first = 2 * number as u8;
            front_end.start(first, &rx.queue, &member.rx, &memory)?;
            front_end.start(first + 1, &tx.queue, &member.tx, &memory)?;
        }
        Ok(Attached { front_end, members, _memory: memory })
    }

    /// Stops all rings and takes back what the device had used by then.
    fn stop(&mut self) -> Result<(), CellError> {
        for ring in 0..2 * self.members.len() as u8 {
            self.front_end.stop(ring)?;
        }
        for member in &mut self.members {
            while member.pair.poll(false)?.packets > 0 {}
        }
        Ok(())
    }
}

/// Bytes of a buffer that holds every frame of this size with its header, at least 2 KiB as drivers have them.
fn capacity(size: PacketSize) -> u32 {
    (u32::from(size.greatest()) + HEADER_LEN as u32).next_multiple_of(1024).max(2048)
}

/// Bytes of guest memory that a ring with its buffers takes, at most.
fn ring_bytes(queue: &QueueOptions) -> u64 {
    u64::from(queue.ring.size) * (u64::from(queue.capacity) + 512) + 16_384
}

/// Measures one cell at the back-end that listens at `socket`. `counters` is asked on this thread after the warm-up and after each slice;
/// `progress` is told that a slice is over.
///
/// # Errors
/// [`CellError`]; a device that loses, swaps or changes packets is no error but a result.
pub fn measure(
    socket: &Path,
    options: &CellOptions,
    stop: &AtomicBool,
    mut counters: impl FnMut() -> Option<CounterLine>,
    mut progress: impl FnMut(),
) -> Result<CellResult, CellError> {
    let mut attached = Attached::new(socket, options)?;
    let Attached { front_end, members, .. } = &mut attached;
    let alive = || !front_end.peer_is_gone();
    let numbered = options.numbered || options.direction == Direction::Loop;
    let mut result = CellResult { numbered, ..CellResult::default() };
    match options.direction {
        Direction::Loop => result.verified = Some(verify(members, VERIFIED, stop, alive)?),
        Direction::From if options.numbered => {
            result.verified = Some(verify(members, VERIFIED, stop, alive)?)
        }
        Direction::From => {
            members.iter_mut().for_each(|member| member.pair.set_care(super::drive::Care::None))
        }
        Direction::To => {}
    }
    let warm_up = options.duration / 10;
    let plan = Plan { warm_up, slice: (options.duration - warm_up) / SLICES as u32, slices: SLICES };
    let boundaries = &mut result.counters;
    let at_boundary = |boundary| {
        boundaries.extend(counters());
        if boundary > 0 {
            progress();
        }
    };
    result.slices = drive(members, &plan, &options.cpus, stop, at_boundary, alive)?;
    attached.stop()?;
    result.last = counters();
    result.completed = attached.members.iter().map(|member| member.pair.completed()).sum();
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_hold_the_greatest_frame_and_its_header() {
        for size in
            [PacketSize::Bytes(60), PacketSize::Bytes(2036), PacketSize::Bytes(9018), PacketSize::Imix]
        {
            assert!(capacity(size) >= u32::from(size.greatest()) + 12);
        }
        assert_eq!(capacity(PacketSize::Bytes(2036)), 2048);
        assert_eq!(capacity(PacketSize::Bytes(2037)), 3072);
    }

    #[test]
    fn memory_is_enough_for_all_rings_at_any_size() {
        for size in [64u16, 256, 1024, 4096] {
            let queue =
                QueueOptions { capacity: capacity(PacketSize::Bytes(9018)), ..QueueOptions::plain(size) };
            let bytes = 2 * ring_bytes(&queue);
            let mut memory = GuestMemory::new(MemoryOptions { size: bytes, ..Default::default() }).unwrap();
            RxQueue::new(&mut memory, queue).unwrap();
            TxQueue::new(&mut memory, queue).unwrap();
        }
    }
}
