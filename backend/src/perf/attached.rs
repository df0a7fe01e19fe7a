//! A back-end with all its pairs running: what every measurement begins with.
use super::cell::{CellError, CellOptions};
use super::drive::Pair;
use super::run::Member;
use super::size::PacketSize;
use crate::driver::net::{HEADER_LEN, QueueOptions, RxQueue, TxQueue};
use crate::driver::{FrontEnd, GuestMemory, MemoryOptions, RingFds, Virtqueue};
use mdev_protocol::virtio::net::VIRTIO_NET_F_MQ;
use std::path::Path;
use std::time::Duration;

/// How long the back-end may take to listen, and for each answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A back-end with all its pairs running.
pub struct Attached<Q> {
    /// The connection.
    pub front_end: FrontEnd,
    /// The pairs and their counters.
    pub members: Vec<Member<Q>>,
    /// What the rings and buffers lie in.
    _memory: GuestMemory,
}

impl<Q: Virtqueue> Attached<Q> {
    /// Connects to the back-end at `socket`, shares memory and starts the rings.
    ///
    /// # Errors
    /// [`CellError`]: nobody listens, the back-end refuses or lacks something, no memory.
    pub fn new(socket: &Path, options: &CellOptions) -> Result<Self, CellError> {
        let shape = options.shape;
        let optional = shape.optional() | if options.queue_pairs > 1 { VIRTIO_NET_F_MQ } else { 0 };
        let mut front_end =
            FrontEnd::connect(socket, TIMEOUT, shape.required(), optional, FrontEnd::usual_protocol())?;
        front_end.need_queues(options.queue_pairs.into())?;
        let queue = shape.queue(front_end.features(), capacity(options.size));
        let size = u64::from(options.queue_pairs) * 2 * ring_bytes(&queue) + (1 << 20);
        let mut memory = GuestMemory::new(MemoryOptions { size, ..MemoryOptions::default() })?;
        let mut members = Vec::with_capacity(options.queue_pairs.into());
        for _ in 0..options.queue_pairs {
            let rx = RxQueue::on_ring(&mut memory, queue)?;
            let tx = TxQueue::on_ring(&mut memory, queue)?;
            let mut pair = Pair::new(rx, tx, options.direction, options.size);
            pair.set_burst(shape.burst);
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
    ///
    /// # Errors
    /// [`CellError`]: no answer, or the device broke the rules of a ring.
    pub fn stop(&mut self) -> Result<(), CellError> {
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
