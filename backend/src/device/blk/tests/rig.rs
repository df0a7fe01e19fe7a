//! A driver and a device on one thread.

use std::sync::Arc;
use std::task::Waker;

use mdev_dma::Iova;
use mdev_pin::{Access, IgnoreUnmap, Ioas};
use mdev_protocol::virtio::blk::BlkHeader;
use zerocopy::IntoBytes;

use super::super::*;
use super::config;
use crate::device::{Enabled, Queue, QueueCounters, QueueSetup, Switch};
use crate::driver::{GuestMemory, MemoryOptions, Part, Piece, RingOptions, Virtqueue};
use crate::ring::{QueueState, RingAddr, RingSetup};
use crate::store::held::Held;

/// Bytes of the stores here.
pub const SIZE: u64 = 1 << 20;
/// Where requests have their data.
const DATA: u64 = 256 << 10;

pub struct Rig<Q> {
    pub memory: GuestMemory,
    pub ioas: Ioas,
    pub access: Access,
    pub device: BlkDevice,
    pub engine: Box<dyn Engine>,
    pub queue: Q,
    /// Headers, a line each with the status behind.
    lines: Part,
    pub data: Part,
    packed: bool,
    next: u64,
}

/// A request that was offered.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub head: u16,
    /// Where its line is.
    line: u64,
}

impl<Q: Virtqueue> Rig<Q> {
    pub fn new(packed: bool, store: &str) -> Self {
        Self::of(packed, BlkDevice::new(config(store)).unwrap(), u64::MAX)
    }

    pub fn held(packed: bool) -> (Self, Held) {
        let held = Held::new(vec![0; SIZE as usize]);
        let device = BlkDevice::on(config("null,size=512"), Store::Held(held.clone())).unwrap();
        (Self::of(packed, device, u64::MAX), held)
    }

    pub fn of(packed: bool, device: BlkDevice, features: u64) -> Self {
        let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
        let ring = RingOptions::plain(1024);
        let queue = Q::new(&mut memory, ring).unwrap();
        let lines = memory.allocate(64 * 512, 4096).unwrap();
        let data = memory.allocate(DATA, 4096).unwrap();
        let ioas = Ioas::new(memory.windows().clone());
        for region in memory.regions() {
            ioas.map(region.area()).unwrap();
        }
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).unwrap();
        let engine = device.engine(0, features & device.features());
        let mut rig = Rig { memory, ioas, access, device, engine, queue, lines, data, packed, next: 0 };
        rig.start(QueueState::fresh(packed));
        rig
    }

    pub fn start(&mut self, state: QueueState) {
        let (addresses, options) = (self.queue.addresses(), self.queue.options());
        let setup = QueueSetup {
            index: 0,
            ring: RingSetup {
                size: options.size,
                desc: RingAddr::Iova(addresses.desc),
                avail: RingAddr::Iova(addresses.avail),
                used: RingAddr::Iova(addresses.used),
                event_idx: options.event_idx,
                indirect: options.indirect,
                packed: self.packed,
                in_order: false,
                state,
                log: None,
            },
            access: self.access.clone(),
            kick: None,
            call: None,
            err: None,
            switch: Switch::new(Enabled::Yes),
        };
        let stats = self.device.queue_stats(0).unwrap();
        self.engine.start_queue(Queue::start(setup, stats, Waker::noop().clone()).unwrap());
    }

    /// Offers a request: header, data, and room for a status.
    pub fn ask(&mut self, kind: u32, sector: u64, data: &[Piece]) -> Asked {
        let line = 64 * (self.next % 512);
        self.next += 1;
        let slice = self.lines.range(line, 64).unwrap();
        slice.copy_from(BlkHeader::new(kind, sector).as_bytes());
        slice.write(32, 0xffu8).unwrap();
        let at = self.lines.at.0 + line;
        let mut pieces = vec![Piece { at: Iova(at), len: 16, device_writes: false }];
        pieces.extend_from_slice(data);
        pieces.push(Piece { at: Iova(at + 32), len: 1, device_writes: true });
        let head = self.offer(&pieces);
        Asked { head, line }
    }

    /// Offers a chain.
    pub fn offer(&mut self, pieces: &[Piece]) -> u16 {
        let head = self.queue.prepare(pieces).unwrap();
        self.queue.offer_each([head]).unwrap();
        self.queue.publish();
        head
    }

    /// `len` bytes of the data from `offset` on.
    pub fn piece(&self, offset: u64, len: u32, device_writes: bool) -> Piece {
        Piece { at: Iova(self.data.at.0 + offset), len, device_writes }
    }

    pub fn fill(&self, offset: u64, len: u64, byte: u8) {
        self.data.range(offset, len).unwrap().fill(byte);
    }

    pub fn bytes(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.data.range(offset, len).unwrap().copy_to(&mut bytes);
        bytes
    }

    /// The status of a request; 0xff if it has none yet.
    pub fn status(&self, asked: Asked) -> u8 {
        self.lines.range(asked.line, 64).unwrap().read(32).unwrap()
    }

    /// Takes what was used: heads and lengths.
    pub fn used(&mut self) -> Vec<(u16, u32)> {
        let count = self.queue.ready().unwrap();
        let mut used = Vec::new();
        self.queue.pop_each(count, |one| used.push((one.head, one.len))).unwrap();
        for (head, _) in &used {
            self.queue.release(*head).unwrap();
        }
        used
    }

    /// Offers a request, has it served, and says its status and its used length.
    pub fn status_of(&mut self, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32) {
        let asked = self.ask(kind, sector, data);
        self.engine.poll();
        let used = self.used();
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, asked.head);
        (self.status(asked), used[0].1)
    }

    pub fn counters(&self) -> QueueCounters {
        self.device.queue_stats(0).unwrap().counters()
    }
}
