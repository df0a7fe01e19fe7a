//! A guest with one packed transmit ring, which it writes word by word: right, or as a test wants it.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use mdev_dma::{GuestSlice, Iova};
use mdev_protocol::vhost_user::{Client, VringAddr};
use mdev_protocol::virtio::feature::{
    VIRTIO_F_RING_PACKED, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use mdev_protocol::virtio::packed::{
    EVENT_LEN, FLAGS_OFFSET, Position, VIRTQ_DESC_F_NEXT, available_flags, desc_len, is_used,
};
use mdev_protocol::virtio::status::DEVICE_NEEDS_RESET;
use mdevd::driver::{FrontEnd, GuestMemory, MemoryOptions, RingFds};
use mdevd::sys::Kicks;

use super::guest::{FEATURES, PROTOCOL};
use super::{Stage, WATCHDOG, await_that};

/// The ring: a queue pair's transmit queue.
const TX: u8 = 1;
/// Bytes of a frame and the header before it.
const FRAME: u32 = 12 + 64;

/// A buffer: where it is, its length, its flags without those that make it available.
pub type Piece = (Iova, u32, u16);

/// A guest that runs a packed transmit ring on a device of a [`Stage`].
pub struct PackedGuest {
    /// The number of its connection.
    pub conn: u64,
    /// Its front-end.
    pub front: FrontEnd,
    /// Its memory.
    pub memory: GuestMemory,
    /// The eventfds of its ring.
    pub fds: RingFds,
    /// Descriptors of the ring.
    pub size: u16,
    /// Where the next chain goes.
    pub next: Position,
    ring: [Iova; 3],
    buffer: Iova,
}

impl PackedGuest {
    /// A guest whose ring runs.
    ///
    /// # Panics
    /// When anything refuses it.
    pub fn start(stage: &Stage, device: usize, size: u16) -> PackedGuest {
        let (conn, socket) = stage.connect(device);
        let features =
            FEATURES | VIRTIO_F_RING_PACKED | VIRTIO_RING_F_EVENT_IDX | VIRTIO_RING_F_INDIRECT_DESC;
        let front = FrontEnd::over(Client::new(socket, WATCHDOG), features, 0, PROTOCOL).expect("features");
        let mut memory =
            GuestMemory::new(MemoryOptions { size: 64 << 20, ..Default::default() }).expect("memory");
        let buffer = memory.allocate(4096, 4096).expect("room").at;
        let fds = RingFds::new().expect("eventfds");
        let ring = [Iova(0); 3];
        let mut guest = PackedGuest { conn, front, memory, fds, size, next: Position::START, ring, buffer };
        guest.front.share(&guest.memory).expect("the memory is good");
        guest.lay_out();
        guest.start_at(0x8000_8000);
        guest
    }

    /// Takes new memory for the ring, all of it zero.
    fn lay_out(&mut self) {
        let lengths = [desc_len(self.size) as u64, EVENT_LEN as u64, EVENT_LEN as u64];
        self.ring = lengths.map(|len| self.memory.allocate(len, 4096).expect("room").at);
        self.next = Position::START;
    }

    /// Starts the ring at a base.
    ///
    /// # Panics
    /// When that is refused.
    pub fn start_at(&mut self, base: u32) {
        let [desc, avail, used] = self.ring.map(|at| self.memory.user(at).expect("it is there").0);
        let (index, client) = (u32::from(TX), self.front.client());
        client.set_vring_num(index, self.size.into()).expect("a size of a packed ring");
        client.set_vring_base(index, base).expect("a base of a packed ring");
        client.set_vring_addr(VringAddr { index, flags: 0, desc, used, avail, log: 0 }).expect("places");
        client.set_vring_call(TX, Some(self.fds.call.as_fd())).expect("an eventfd");
        client.set_vring_err(TX, Some(self.fds.err.as_fd())).expect("an eventfd");
        client.set_vring_kick(TX, Some(self.fds.kick.as_fd())).expect("an eventfd");
        client.set_vring_enable(index, true).expect("a ring");
        self.fds.kick.signal();
    }

    /// Stops the ring, and says where it stands.
    ///
    /// # Panics
    /// When there is no answer.
    pub fn stop(&mut self) -> u32 {
        self.front.client().vring_base(TX.into()).expect("an answer").num
    }

    /// Stops the ring and starts a new one.
    pub fn start_anew(&mut self) {
        self.stop();
        self.lay_out();
        self.start_at(0x8000_8000);
    }

    /// The descriptors' bytes.
    ///
    /// # Panics
    /// Never: they were allocated.
    pub fn descriptors(&self) -> GuestSlice<'_> {
        self.memory.slice(self.ring[0], desc_len(self.size) as u64).expect("the ring is there")
    }

    /// Memory that nothing else uses.
    ///
    /// # Panics
    /// When there is none left.
    pub fn scratch(&mut self, len: u64) -> Iova {
        self.memory.allocate(len, 4096).expect("room").at
    }

    /// Writes a descriptor at a position, its flags last.
    ///
    /// # Panics
    /// When the ring does not have the slot.
    pub fn describe(&self, at: Position, (buffer, len, flags): Piece, id: u16) {
        let (ring, place) = (self.descriptors(), desc_len(at.slot));
        ring.write(place, buffer.0).expect("a slot");
        ring.write(place + 8, len).expect("a slot");
        ring.write(place + 12, id).expect("a slot");
        let flags = flags | available_flags(at.wrap);
        ring.store_u16(place + FLAGS_OFFSET, flags, Ordering::Release).expect("a slot");
    }

    /// Makes a chain available, its first descriptor last.
    pub fn offer(&mut self, id: u16, pieces: &[Piece]) {
        for (place, piece) in (0..pieces.len() as u16).zip(pieces).rev() {
            let last = usize::from(place) + 1 == pieces.len();
            let more = if last { 0 } else { VIRTQ_DESC_F_NEXT };
            self.describe(self.next.advance(place, self.size), (piece.0, piece.1, piece.2 | more), id);
        }
        self.next = self.next.advance(pieces.len() as u16, self.size);
        self.fds.kick.signal();
    }

    /// Sends frames of one, two or three buffers, one after another, and waits until each was used.
    ///
    /// # Panics
    /// When one is not.
    pub fn send(&mut self, frames: u16) {
        for number in 0..frames {
            let (at, id) = (self.next, number % self.size);
            let pieces: Vec<Piece> = match number % 3 {
                0 => vec![(self.buffer, FRAME, 0)],
                1 => vec![(self.buffer, 12, 0), (self.buffer, FRAME - 12, 0)],
                _ => vec![(self.buffer, 8, 0), (self.buffer, 30, 0), (self.buffer, FRAME - 38, 0)],
            };
            self.offer(id, &pieces);
            await_that("a frame is used", || {
                let flags = self.descriptors().load_u16(desc_len(at.slot) + FLAGS_OFFSET, Ordering::Acquire);
                flags.is_some_and(|flags| is_used(flags, at.wrap))
            });
            assert_eq!(self.descriptors().read::<u16>(desc_len(at.slot) + 12), Some(id));
        }
    }

    /// Whether the device asks for a reset.
    ///
    /// # Panics
    /// When the back-end does not tell.
    pub fn needs_reset(&mut self) -> bool {
        self.front.client().status().expect("a status") & u64::from(DEVICE_NEEDS_RESET) != 0
    }

    /// Waits for the err eventfd, which must not have been signalled more than once.
    ///
    /// # Panics
    /// When it is not signalled, or more often.
    pub fn must_err(&self) {
        let mut count = Kicks::None;
        await_that("the err eventfd is signalled", || {
            count = self.fds.err.drain();
            count != Kicks::None
        });
        assert_eq!(count, Kicks::Some(1), "one failure was told more than once");
    }
}
