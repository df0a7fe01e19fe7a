//! The engine under this program's own driver, in every shape that rings can have: what is sent comes back whole, in order, once.

use std::sync::Arc;
use std::task::Waker;

use mdev_pin::{Access, IgnoreUnmap, Ioas};

use super::pair::config;
use super::*;
use crate::device::{Device, Enabled, Engine, Queue, QueueSetup, Switch};
use crate::driver::net::{Layout, QueueOptions, RxQueue, TxQueue};
use crate::driver::{GuestMemory, MemoryOptions, PackedQueue, RingOptions, SplitQueue, Virtqueue};
use crate::link::LinkKind;
use crate::perf::drive::{Care, Direction, Pair};
use crate::perf::size::PacketSize;
use crate::ring::{QueueState, RingAddr, RingSetup};

/// A driver and a device on one thread.
struct Rig<Q> {
    pair: Pair<Q>,
    device: NetDevice,
    engine: Box<dyn Engine>,
    access: Access,
    packed: bool,
    _memory: GuestMemory,
    _ioas: Ioas,
}

impl<Q: Virtqueue> Rig<Q> {
    fn new(packed: bool, direction: Direction, size: PacketSize, options: QueueOptions) -> Self {
        let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
        let rx = RxQueue::<Q>::on_ring(&mut memory, options).unwrap();
        let tx = TxQueue::<Q>::on_ring(&mut memory, options).unwrap();
        let mut pair = Pair::new(rx, tx, direction, size);
        pair.set_care(Care::Bytes);
        pair.prime().unwrap();
        let ioas = Ioas::new(memory.windows().clone());
        for region in memory.regions() {
            ioas.map(region.area()).unwrap();
        }
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).unwrap();
        let link = match direction {
            Direction::To => LinkKind::Null,
            Direction::From => format!("pktgen,size={size}").parse().unwrap(),
            Direction::Loop => LinkKind::Loopback,
        };
        let device = NetDevice::new(config(link)).unwrap();
        let engine = device.engine(0, F_VERSION_1 | if options.mergeable { F_MRG_RXBUF } else { 0 });
        let mut rig = Rig { pair, device, engine, access, packed, _memory: memory, _ioas: ioas };
        rig.start([QueueState::fresh(packed); 2]);
        rig
    }

    fn start(&mut self, states: [QueueState; 2]) {
        let (rx, tx) = self.pair.queues();
        for (index, queue, state) in [(0, &rx.queue, states[0]), (1, &tx.queue, states[1])] {
            let (addresses, options) = (queue.addresses(), queue.options());
            let setup = QueueSetup {
                index,
                ring: RingSetup {
                    size: options.size,
                    desc: RingAddr::Iova(addresses.desc),
                    avail: RingAddr::Iova(addresses.avail),
                    used: RingAddr::Iova(addresses.used),
                    event_idx: options.event_idx,
                    indirect: options.indirect,
                    packed: self.packed,
                    in_order: options.in_order,
                    state,
                    log: None,
                },
                access: self.access.clone(),
                kick: None,
                call: None,
                err: None,
                switch: Switch::new(Enabled::Yes),
            };
            let stats = self.device.queue_stats(index).unwrap();
            self.engine.start_queue(Queue::start(setup, stats, Waker::noop().clone()).unwrap());
        }
    }

    /// Stops both queues and starts them where they stood, which must be what the driver would say.
    fn restart(&mut self) {
        let states = [0, 1].map(|index| self.engine.stop_queue(index).unwrap().ring.state());
        // What the device has used the driver has not looked at yet.
        while self.pair.poll(false).unwrap().packets > 0 {}
        if self.packed {
            let (rx, tx) = self.pair.queues();
            let words = [rx.queue.base(), tx.queue.base()].map(|base| (base >> 16) as u16);
            assert_eq!(states.map(|state| state.next_used), words.map(Some));
        }
        self.start(states);
    }

    fn check(&mut self, what: &str, rounds: usize) {
        let mut arrived = 0;
        for round in 0..rounds {
            self.pair.poll(true).unwrap_or_else(|error| panic!("{what}, round {round}: {error}"));
            self.engine.poll();
            assert!(!self.engine.needs_reset(), "{what}, round {round}");
            if round % 25 == 24 {
                self.restart();
            }
        }
        for _ in 0..64 {
            self.engine.poll();
            self.pair.poll(false).unwrap();
        }
        let counts = self.pair.take();
        arrived += counts.packets;
        assert_eq!((counts.lost, counts.misordered, counts.corrupt), (0, 0, 0), "{what}");
        assert!(arrived > rounds as u64, "{what}: {arrived} packets");
        if self.pair.direction() != Direction::From {
            assert_eq!((self.pair.in_flight(), arrived), (0, self.pair.offered()[0]), "{what}");
        }
    }
}

/// All shapes of one format.
fn all_shapes<Q: Virtqueue>(packed: bool, ring_sizes: &[u16]) {
    let flags = [false, true];
    for &ring_size in ring_sizes {
        for (in_order, event_idx) in flags.iter().flat_map(|&first| flags.map(|second| (first, second))) {
            for (layout, indirect) in [(Layout::Joined, false), (Layout::Split, false), (Layout::Split, true)]
            {
                for direction in [Direction::To, Direction::From, Direction::Loop] {
                    let ring = RingOptions { size: ring_size, event_idx, indirect, in_order };
                    let mergeable = event_idx != in_order;
                    let options = QueueOptions { ring, layout, capacity: 2048, mergeable };
                    let what = format!("{direction} packed {packed} {options:?}");
                    let mut rig = Rig::<Q>::new(packed, direction, PacketSize::Imix, options);
                    rig.check(&what, 60);
                }
            }
        }
    }
}

#[test]
fn split_rings_of_every_shape_carry_packets_whole_and_in_order() {
    all_shapes::<SplitQueue>(false, &[16, 128]);
}

#[test]
fn packed_rings_of_every_shape_and_of_odd_sizes_carry_packets_whole_and_in_order() {
    all_shapes::<PackedQueue>(true, &[16, 100]);
}
