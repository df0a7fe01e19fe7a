//! A guest's network driver behind a front-end: one queue pair.

use std::path::Path;
use std::time::Instant;

use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;
use mdev_protocol::virtio::net::VIRTIO_NET_F_MRG_RXBUF;
use mdevd::driver::net::{QueueOptions, RxQueue, TxQueue};
use mdevd::driver::{FrontEnd, GuestMemory, MemoryOptions, RingFds};

use crate::process::WATCHDOG;

pub struct Guest {
    pub front_end: FrontEnd,
    memory: GuestMemory,
    rx: RxQueue,
    tx: TxQueue,
    rx_fds: RingFds,
    tx_fds: RingFds,
}

impl Guest {
    /// Connects and shares memory; no ring runs.
    pub fn connect(socket: &Path) -> Guest {
        Guest::connect_with(socket, 0)
    }

    /// The same with more features, which the device must offer.
    pub fn connect_with(socket: &Path, features: u64) -> Guest {
        let needed = VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF | features;
        let protocol = FrontEnd::usual_protocol();
        let mut front_end = FrontEnd::connect(socket, WATCHDOG, needed, 0, protocol).unwrap();
        let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
        let rx = RxQueue::new(&mut memory, QueueOptions::plain(64)).unwrap();
        let tx = TxQueue::new(&mut memory, QueueOptions::plain(64)).unwrap();
        front_end.share(&memory).unwrap();
        Guest { front_end, memory, rx, tx, rx_fds: RingFds::new().unwrap(), tx_fds: RingFds::new().unwrap() }
    }

    pub fn start(&mut self) {
        self.front_end.start(0, &self.rx.queue, &self.rx_fds, &self.memory).unwrap();
        self.front_end.start(1, &self.tx.queue, &self.tx_fds, &self.memory).unwrap();
        self.rx.offer_all().unwrap();
        if self.rx.queue.publish() {
            self.rx_fds.kick.signal();
        }
    }

    /// Makes the device's next notification of a received frame block: the counter is full, and no longer
    /// non-blocking.
    pub fn block_calls(&mut self) {
        let call = &self.rx_fds.call;
        rustix::io::write(call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        rustix::fs::fcntl_setfl(call, rustix::fs::OFlags::empty()).unwrap();
        self.rx.queue.want_calls(true);
    }

    /// Stops both rings.
    pub fn stop(&mut self) {
        self.front_end.stop(0).unwrap();
        self.front_end.stop(1).unwrap();
    }

    /// Resets the transmit ring alone, and starts it anew with so many entries.
    pub fn reset_transmit(&mut self, size: u16) {
        self.front_end.stop(1).unwrap();
        self.tx = TxQueue::new(&mut self.memory, QueueOptions::plain(size)).unwrap();
        self.front_end.start(1, &self.tx.queue, &self.tx_fds, &self.memory).unwrap();
    }

    /// Hands over one frame of 64 bytes.
    pub fn send(&mut self) {
        let sent = self.tx.send(1, |_, frame| {
            frame.fill(0x5a);
            64
        });
        assert_eq!(sent.unwrap(), 1);
        if self.tx.queue.publish() {
            self.tx_fds.kick.signal();
        }
    }

    /// Whether the device has taken all that was sent.
    pub fn all_sent(&mut self) -> bool {
        let size = self.tx.queue.options().size;
        self.tx.reclaim(size.into(), |_| ()).unwrap();
        self.tx.idle() == usize::from(size)
    }

    /// Sends `count` frames and waits until the device has taken each.
    pub fn send_all(&mut self, count: usize) {
        let deadline = Instant::now() + WATCHDOG;
        for _ in 0..count {
            self.send();
            while !self.all_sent() {
                assert!(Instant::now() < deadline, "a frame is not taken");
                std::thread::yield_now();
            }
        }
    }

    /// Waits for `count` frames.
    pub fn receive(&mut self, count: u32) {
        let deadline = Instant::now() + WATCHDOG;
        let mut received = 0;
        while received < count {
            assert!(Instant::now() < deadline, "{received} of {count} frames came");
            received += self.rx.receive(64, |_, packet| assert_eq!(packet.len(), 64)).unwrap();
            if self.rx.queue.publish() {
                self.rx_fds.kick.signal();
            }
            std::thread::yield_now();
        }
    }
}
