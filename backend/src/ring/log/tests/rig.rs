//! A driver, its ring and the ring's log, and devices that come one after the other.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use mdev_dma::{GuestSlice, Iova, Perm};
use mdev_pin::{Access, IgnoreUnmap, Ioas, Lane, Pin};

use super::super::RingLog;
use crate::driver::{GuestMemory, MemoryOptions, Piece, RingOptions, Virtqueue};
use crate::ring::{Chain, QueueState, Ring, RingAddr, RingSetup};

/// What a burst of the device is to do.
#[derive(Copy, Clone, Debug)]
pub(super) struct Step {
    /// How many chains are offered before it.
    pub(super) offer: u8,
    /// How many it takes at most.
    pub(super) take: u8,
    /// How many of those it has in flight it uses at most, and from which on.
    pub(super) uses: u8,
    pub(super) from: u8,
    /// What else: it may give some back, or be given up.
    pub(super) whim: u8,
}

pub(super) struct Rig<D> {
    memory: GuestMemory,
    ioas: Ioas,
    access: Access,
    pub(super) driver: D,
    packed: bool,
    log_at: Iova,
    held: VecDeque<u16>,
    /// Lengths of the pieces of each chain, those to be read and those to be written.
    lengths: BTreeMap<u16, [Vec<u32>; 2]>,
    /// Heads of the chains that the device has and has not used, in the order in which they were made available.
    pub(super) outstanding: Vec<u16>,
}

impl<D: Virtqueue> Rig<D> {
    pub(super) fn new(options: RingOptions, packed: bool, shapes: &[u8]) -> Self {
        let mut memory = GuestMemory::new(MemoryOptions { size: 1 << 20, ..Default::default() }).unwrap();
        let mut driver = D::new(&mut memory, options).unwrap();
        let buffer = memory.allocate(4096, 64).unwrap().at;
        let log_at = memory.allocate(RingLog::len_of(packed, options.size) as u64, 64).unwrap().at;
        let ioas = Ioas::new(memory.windows().clone());
        for region in memory.regions() {
            ioas.map(region.area()).unwrap();
        }
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).unwrap();
        let (mut held, mut lengths) = (VecDeque::new(), BTreeMap::new());
        for (shape, number) in shapes.iter().cycle().zip(0u32..).take(options.size.into()) {
            let piece = |n: u8| Piece {
                at: Iova(buffer.0 + 64 * u64::from(n)),
                len: 1 + 8 * number + u32::from(n),
                device_writes: n >= shape >> 4,
            };
            let pieces: Vec<Piece> = (0..shape % 3 + 1).map(piece).collect();
            let Ok(head) = driver.prepare(&pieces) else { break };
            held.push_back(head);
            let lens = |writes: bool| {
                pieces.iter().filter(|piece| piece.device_writes == writes).map(|piece| piece.len).collect()
            };
            lengths.insert(head, [lens(false), lens(true)]);
        }
        Rig { memory, ioas, access, driver, packed, log_at, held, lengths, outstanding: Vec::new() }
    }

    /// The log's bytes.
    pub(super) fn pin(&self) -> Pin {
        let len = RingLog::len_of(self.packed, self.driver.options().size) as u32;
        let mut lane = self.access.lane();
        let burst = lane.enter();
        burst.pin(self.log_at, len, Perm::READ | Perm::WRITE).unwrap()
    }

    pub(super) fn with_log<T>(&self, look: impl FnOnce(&GuestSlice<'_>) -> T) -> T {
        let pin = self.pin();
        let slice = pin.slices().next().unwrap();
        look(&slice)
    }

    pub(super) fn lane(&self) -> Lane {
        let _ = (&self.memory, &self.ioas);
        self.access.lane()
    }

    /// What a device is given that knows nothing but the ring and its log.
    pub(super) fn setup(&self) -> RingSetup {
        let RingOptions { size, event_idx, in_order, .. } = self.driver.options();
        let addresses = self.driver.addresses();
        RingSetup {
            size,
            desc: RingAddr::Iova(addresses.desc),
            avail: RingAddr::Iova(addresses.avail),
            used: RingAddr::Iova(addresses.used),
            packed: self.packed,
            in_order,
            event_idx,
            indirect: true,
            state: QueueState::fresh(self.packed),
            log: Some(RingLog::new(self.pin(), size)),
        }
    }

    pub(super) fn offer(&mut self, count: usize) -> Vec<u16> {
        let offered: Vec<u16> = self.held.drain(..count.min(self.held.len())).collect();
        self.driver.offer_each(offered.iter().copied()).unwrap();
        self.driver.publish();
        self.outstanding.extend(&offered);
        offered
    }

    /// The driver takes what was used; it must have been outstanding.
    pub(super) fn reap(&mut self) {
        let count = self.driver.ready().unwrap();
        let mut used = Vec::new();
        self.driver.pop_each(count, |entry| used.push(entry.head)).unwrap();
        for head in used {
            let at = self.outstanding.iter().position(|other| *other == head);
            self.outstanding.remove(at.expect("a chain was used twice"));
            self.held.push_back(head);
        }
    }

    fn check(&self, chain: Chain<'_>) {
        let found: [Vec<u32>; 2] =
            [chain.readable, chain.writable].map(|side| side.iter().map(|buffer| buffer.len).collect());
        assert_eq!(self.lengths[&chain.head], found, "chain {}", chain.head);
    }

    /// A device from its start to its end: takes the outstanding chains in their order, then new ones. At its end it
    /// uses all that it has.
    pub(super) fn live(&mut self, steps: &[Step]) {
        let mut ring = Ring::new(self.setup()).unwrap();
        assert!(ring.keeps_log());
        let mut lane = self.lane();
        let mut expected: VecDeque<u16> = self.outstanding.iter().copied().collect();
        let mut in_flight: Vec<u16> = Vec::new();
        let end = Step { offer: 0, take: u8::MAX, uses: u8::MAX, from: 0, whim: 9 };
        let ends = std::iter::repeat_n(&end, 2 + usize::from(self.driver.options().size));
        for step in steps.iter().chain(ends) {
            expected.extend(self.offer(step.offer.into()));
            let burst = lane.enter();
            let mut vring = ring.begin(&burst).unwrap();
            let mut taken = Vec::new();
            vring
                .take(step.take.into(), |chain| {
                    self.check(chain);
                    taken.push(chain.head);
                    Ok(())
                })
                .unwrap();
            if step.whim == 0 {
                vring.untake(1);
                taken.pop();
            }
            assert_eq!(vring.taken(), taken.len());
            assert!(taken.iter().eq(expected.iter().take(taken.len())), "{taken:?} of {expected:?}");
            let mut after: Vec<u16> = in_flight.iter().copied().chain(taken.iter().copied()).collect();
            for _ in 0..usize::from(step.uses).min(after.len()) {
                let head = after.remove(usize::from(step.from) % after.len());
                vring.complete(head, 0).unwrap();
            }
            if step.whim == 1 {
                // Nothing was taken, nothing used.
                continue;
            }
            vring.publish().unwrap();
            drop(burst);
            expected.drain(..taken.len());
            in_flight = after;
            self.reap();
        }
        assert_eq!((expected.len(), in_flight.len(), self.outstanding.len()), (0, 0, 0));
    }
}
