//! A queue pair of one guest, and the driver's side of its two rings.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::Waker;

use mdev_protocol::virtio::net::NetHeader;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FallocateFlags;
use zerocopy::{FromBytes, IntoBytes};

use crate::device::net::header::{F_MRG_RXBUF, F_VERSION_1};
use crate::device::net::{NetConfig, NetDevice};
use crate::device::{
    Device, DropCause, Enabled, Engine, EventFd, Queue, QueueCounters, QueueSetup, Switch, VirtioDevice,
};
use crate::link::LinkKind;
use crate::ring::RingError;
use crate::ring::tests::guest::{Guest, NEXT, Ring, WRITE};
use crate::sys::Kicks;

pub(super) const MEMORY: u64 = 1 << 20;
/// Where transmit and receive buffers begin.
pub(super) const OUT: u64 = 0x2_0000;
pub(super) const IN: u64 = 0x8_0000;
pub(super) const HEADER: usize = 12;
/// Entries of both rings.
pub(super) const SIZE: u16 = 512;

pub(super) fn config(link: LinkKind) -> NetConfig {
    NetConfig { name: "test".into(), queue_pairs: 1, mac: None, mtu: None, link }
}

/// A guest with one pair on a device of its own.
pub(super) struct Pair {
    pub(super) guest: Guest,
    pub(super) device: NetDevice,
    pub(super) engine: Box<dyn Engine>,
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    calls: [Arc<EventFd>; 2],
    errors: [Arc<EventFd>; 2],
    out: u64,
    room: u64,
    seen: [u16; 2],
    /// Where the next chain's descriptors are, round and round.
    free: [u16; 2],
}

impl Pair {
    /// Both queues running.
    pub(super) fn new(link: LinkKind, mergeable: bool) -> Self {
        let mut pair = Self::stopped(link, mergeable);
        pair.start(0);
        pair.start(1);
        pair
    }

    pub(super) fn stopped(link: LinkKind, mergeable: bool) -> Self {
        let device = NetDevice::new(config(link)).unwrap();
        Self::of(device, F_VERSION_1 | if mergeable { F_MRG_RXBUF } else { 0 })
    }

    /// The first pair of a device, not running, whose driver has acknowledged these features.
    pub(super) fn of(device: NetDevice, features: u64) -> Self {
        let guest = Guest::new(MEMORY);
        let engine = device.engine(0, features);
        let (rx, tx) = (Ring::new(&guest, 0, SIZE, 0), Ring::new(&guest, 0x4000, SIZE, 65530));
        let event = || Arc::new(EventFd::new().unwrap());
        Self {
            guest,
            device,
            engine,
            rx,
            tx,
            calls: [event(), event()],
            errors: [event(), event()],
            out: OUT,
            room: IN,
            seen: [0, 65530],
            free: [0, 0],
        }
    }

    pub(super) fn start(&mut self, index: u16) {
        self.start_with(index, false);
    }

    /// Behind an IOMMU it asks for translations, and nobody brings any.
    pub(super) fn start_with(&mut self, index: u16, behind_iommu: bool) {
        let ring = if index == 0 { &self.rx } else { &self.tx };
        let setup = QueueSetup {
            index,
            ring: ring.setup(&self.guest),
            access: self.guest.access.clone(),
            kick: None,
            call: Some(self.calls[usize::from(index)].clone()),
            err: Some(self.errors[usize::from(index)].clone()),
            switch: Switch::new(Enabled::Yes),
        };
        let stats = self.device.queue_stats(index).unwrap();
        let mut queue = Queue::start(setup, stats, Waker::noop().clone()).unwrap();
        if behind_iommu {
            queue = queue.behind_iommu(Box::new(|_, _| {}));
        }
        self.engine.start_queue(queue);
    }

    /// Sends a frame whose chain is cut into buffers of the given lengths; the last takes the rest.
    pub(super) fn send_cut(&mut self, frame: &[u8], cuts: &[usize]) {
        let bytes = [&[0xaa; HEADER][..], frame].concat();
        self.guest.write(self.out, &bytes);
        self.send_at(self.out, bytes.len(), cuts);
        self.out += bytes.len() as u64;
    }

    pub(super) fn send(&mut self, frame: &[u8]) {
        self.send_cut(frame, &[]);
    }

    /// Sends a frame with a header of its own.
    pub(super) fn send_with(&mut self, header: NetHeader, frame: &[u8], cuts: &[usize]) {
        let bytes = [header.as_bytes(), frame].concat();
        self.guest.write(self.out, &bytes);
        self.send_at(self.out, bytes.len(), cuts);
        self.out += bytes.len() as u64;
    }

    /// Sends a frame whose header asks for nothing.
    pub(super) fn send_plain(&mut self, frame: &[u8]) {
        self.send_with(NetHeader::default(), frame, &[]);
    }

    /// Sends the bytes that are at an offset, header included.
    pub(super) fn send_at(&mut self, at: u64, len: usize, cuts: &[usize]) {
        chain(&self.guest, &mut self.tx, &mut self.free[1], at, len, cuts, 0);
    }

    /// Offers room of `len` bytes in buffers of the given lengths.
    pub(super) fn offer_cut(&mut self, len: usize, cuts: &[usize]) {
        chain(&self.guest, &mut self.rx, &mut self.free[0], self.room, len, cuts, WRITE);
        self.room += len as u64;
    }

    /// Offers room that is not in any memory.
    pub(super) fn offer_nowhere(&mut self, len: usize) {
        chain(&self.guest, &mut self.rx, &mut self.free[0], MEMORY, len, &[], WRITE);
    }

    pub(super) fn offer(&mut self, count: usize, len: usize) {
        (0..count).for_each(|_| self.offer_cut(len, &[]));
    }

    /// Forgets where buffers were allocated: those before are not in use any more.
    pub(super) fn begin_again(&mut self) {
        (self.out, self.room) = (OUT, IN);
    }

    /// What arrived since the last look: of each frame its `num_buffers` and bytes.
    pub(super) fn received(&mut self) -> Vec<(u16, Vec<u8>)> {
        let plain = |(header, frame): (NetHeader, _)| {
            assert_eq!(header.as_bytes()[..10], [0; 10], "no offloads were negotiated");
            (u16::from_le(header.num_buffers), frame)
        };
        self.received_with().into_iter().map(plain).collect()
    }

    /// What arrived since the last look, with the headers.
    pub(super) fn received_with(&mut self) -> Vec<(NetHeader, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some(first) = self.next_used(0) {
            let mut bytes = first;
            let count = u16::from_le_bytes([bytes[10], bytes[11]]);
            for _ in 1..count {
                bytes.extend(self.next_used(0).expect("as many chains as the header says"));
            }
            let frame = bytes.split_off(HEADER);
            frames.push((NetHeader::read_from_bytes(&bytes).unwrap(), frame));
        }
        frames
    }

    /// How many sent chains came back since the last look.
    pub(super) fn sent(&mut self) -> usize {
        std::iter::from_fn(|| self.next_used(1)).count()
    }

    /// The bytes of the next used chain, as many as the device says it wrote.
    fn next_used(&mut self, queue: usize) -> Option<Vec<u8>> {
        let ring = if queue == 0 { &self.rx } else { &self.tx };
        if self.seen[queue] == ring.used_index(&self.guest) {
            return None;
        }
        let (head, len) = ring.used(&self.guest, self.seen[queue]);
        self.seen[queue] = self.seen[queue].wrapping_add(1);
        let (mut bytes, mut at) = (Vec::new(), head as u16);
        while bytes.len() < len as usize {
            let desc = self.guest.read(ring.desc + 16 * u64::from(at), 16);
            let word = |from: usize| u32::from_le_bytes(desc[from..from + 4].try_into().unwrap());
            let buffer = u64::from(word(0)) - crate::ring::tests::guest::BASE;
            let take = (word(8) as usize).min(len as usize - bytes.len());
            bytes.extend(self.guest.read(buffer, take));
            at = u16::from_le_bytes([desc[14], desc[15]]);
        }
        Some(bytes)
    }

    /// Polls until nothing happens; what was processed.
    pub(super) fn run(&mut self) -> u32 {
        std::iter::repeat_with(|| self.engine.poll()).take(1000).take_while(|count| *count != 0).sum()
    }

    pub(super) fn counters(&self, queue: u16) -> QueueCounters {
        self.device.queue_stats(queue).unwrap().counters()
    }

    pub(super) fn drops(&self, cause: DropCause) -> u64 {
        self.counters(1).drops_by(cause)
    }

    /// Cuts the memory file short, as only its owner can.
    pub(super) fn shrink(&self, len: u64) {
        rustix::fs::ftruncate(self.guest.file.as_fd(), len).unwrap();
    }

    /// Takes pages out of the memory file.
    pub(super) fn punch(&self, at: u64, len: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(self.guest.file.as_fd(), flags, at, len).unwrap();
    }

    pub(super) fn failed(&mut self, queue: u16) -> Option<RingError> {
        self.engine.queue_mut(queue).unwrap().failed
    }

    pub(super) fn was_called(&self, queue: usize) -> bool {
        self.calls[queue].drain() != Kicks::None
    }

    pub(super) fn err_was_written(&self, queue: usize) -> bool {
        self.errors[queue].drain() != Kicks::None
    }

    /// Sends a frame through a loopback and sees it come back.
    pub(super) fn still_turns(&mut self) -> bool {
        let frame = frame(100, self.tx.next as u8);
        self.sent();
        self.received();
        self.offer(1, 2048);
        self.send(&frame);
        self.run();
        self.received().last().is_some_and(|last| last.1 == frame) && self.sent() == 1
    }
}

/// A chain of `flags` buffers cut to lengths, published.
fn chain(guest: &Guest, ring: &mut Ring, free: &mut u16, at: u64, len: usize, cuts: &[usize], flags: u16) {
    let mut pieces = Vec::new();
    let mut left = len;
    for cut in cuts {
        let piece = (*cut).clamp(1, left);
        pieces.push(piece);
        left -= piece;
        if left == 0 {
            break;
        }
    }
    if left != 0 {
        pieces.push(left);
    }
    let first = *free;
    *free = free.wrapping_add(pieces.len() as u16) % ring.size;
    let index = |n: usize| first.wrapping_add(n as u16) % ring.size;
    let mut offset = at;
    for (n, piece) in pieces.iter().enumerate() {
        let more = if n + 1 < pieces.len() { NEXT } else { 0 };
        ring.describe(guest, index(n), offset, *piece as u32, flags | more, index(n + 1));
        offset += *piece as u64;
    }
    let head = index(0);
    ring.offer(guest, head);
    ring.publish(guest);
}

/// A frame of `len` bytes that is not like another.
pub(super) fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(7).wrapping_add(seed)).collect()
}

/// Whether a descriptor is readable now.
pub(super) fn is_readable(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}
