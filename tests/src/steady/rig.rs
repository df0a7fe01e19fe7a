//! A device with the drivers of its guests, all on the calling thread.

use std::sync::Arc;
use std::task::Waker;

use mdev_pin::{Access, Ioas};
use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;
use mdev_protocol::virtio::net::VIRTIO_NET_F_MRG_RXBUF;
use mdevd::device::net::{Bridges, NetConfig, NetDevice};
use mdevd::device::{Device, Enabled, Engine, EventFd, Queue, QueueSetup, Switch, VirtioDevice};
use mdevd::driver::net::{QueueOptions, RxQueue, TxQueue};
use mdevd::driver::{GuestMemory, MemoryOptions, RingOptions, Virtqueue};
use mdevd::ring::{QueueState, RingAddr, RingSetup};

use super::heap::allocations;
use crate::attached;

/// Frames of a burst.
pub const BURST: u32 = 32;
/// Bursts of a run.
pub const BURSTS: u32 = 100;
/// Bytes of a frame: an Ethernet header, and a protocol that no host knows.
const FRAME: u32 = 64;
const FEATURES: u64 = VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF;

/// A guest and the engine of its device.
struct Guest<Q> {
    rx: RxQueue<Q>,
    tx: TxQueue<Q>,
    engine: Box<dyn Engine>,
    device: NetDevice,
    _memory: GuestMemory,
    _access: Access,
    _ioas: Ioas,
}

/// Two guests on a bridge, or one.
pub struct Rig<Q> {
    guests: Vec<Guest<Q>>,
}

impl<Q: Virtqueue> Rig<Q> {
    pub fn new(link: &str, packed: bool, options: RingOptions) -> Self {
        let bridges = Bridges::default();
        let count = if link.starts_with("peer=") { 2 } else { 1 };
        let guests = (0..count).map(|number| Guest::new(number, link, packed, options, &bridges)).collect();
        Rig { guests }
    }

    /// Bursts in every direction there is: how often the engines have asked for memory, and the packets that went through queues.
    pub fn run(&mut self) -> (u64, u64) {
        let packets = |rig: &Self| rig.guests.iter().map(Guest::packets).sum::<u64>();
        let before = packets(self);
        let mut asked = 0;
        for _ in 0..BURSTS {
            for guest in &mut self.guests {
                guest.tx.send(BURST, |_, _| FRAME).expect("it is offered");
                guest.tx.queue.publish();
                let before = allocations();
                guest.engine.poll();
                asked += allocations() - before;
            }
            for guest in &mut self.guests {
                guest.tx.reclaim(BURST, |_| ()).expect("it comes back");
                guest.rx.receive(4 * BURST, |_, _| ()).expect("frames");
                guest.rx.queue.publish();
            }
        }
        (asked, packets(self) - before)
    }
}

impl<Q: Virtqueue> Guest<Q> {
    fn new(number: u8, link: &str, packed: bool, options: RingOptions, bridges: &Bridges) -> Self {
        let mut memory = GuestMemory::new(MemoryOptions::default()).expect("memory");
        let queue = QueueOptions { ring: options, ..QueueOptions::plain(options.size) };
        let mut rx = RxQueue::<Q>::on_ring(&mut memory, queue).expect("a receive ring");
        let tx = TxQueue::<Q>::on_ring(&mut memory, queue).expect("a transmit ring");
        for (_, frame) in tx.frames() {
            // To the other guest, from this one; an experimental EtherType.
            frame.copy_from(&[2, 0, 0, 0, 0, 1 - number, 2, 0, 0, 0, 0, number, 0x88, 0xb5]);
        }
        rx.offer_all().expect("all buffers");
        rx.queue.publish();
        let (ioas, access) = attached(&memory);
        let link = link.parse().expect("a link");
        let config =
            NetConfig { name: format!("steady{number}"), queue_pairs: 1, mac: None, mtu: None, link };
        let device = NetDevice::among(config, bridges).expect("a device");
        device.queue_turned(0, FEATURES, true);
        let mut engine = device.engine(0, FEATURES);
        for (index, addresses) in [(0, rx.queue.addresses()), (1, tx.queue.addresses())] {
            let ring = RingSetup {
                size: options.size,
                desc: RingAddr::Iova(addresses.desc),
                avail: RingAddr::Iova(addresses.avail),
                used: RingAddr::Iova(addresses.used),
                packed,
                in_order: options.in_order,
                event_idx: false,
                indirect: false,
                log: None,
                state: QueueState::fresh(packed),
            };
            let setup = QueueSetup {
                index,
                ring,
                access: access.clone(),
                kick: None,
                // The drivers say that they want no calls.
                call: Some(Arc::new(EventFd::new().expect("an eventfd"))),
                err: None,
                switch: Switch::new(Enabled::Yes),
            };
            let stats = device.queue_stats(index).expect("its counters");
            engine.start_queue(Queue::start(setup, stats, Waker::noop().clone()).expect("a queue"));
        }
        engine.disarm();
        Guest { rx, tx, engine, device, _memory: memory, _access: access, _ioas: ioas }
    }

    fn packets(&self) -> u64 {
        (0..2).filter_map(|index| self.device.queue_stats(index)).map(|stats| stats.counters().packets).sum()
    }
}
