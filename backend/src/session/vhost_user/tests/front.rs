//! The front-end's side: messages as QEMU sends them, and guest memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use mdev_protocol::frame::{Connection, Received};
use mdev_protocol::vhost_user::{
    FrontendMessage as M, FrontendReply as R, MemoryRegion, MemoryTable, ProtocolFeatures, VringAddr,
    VringFd, VringState,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::House;
use crate::sys::EventFd;

/// Where the first region of a front-end begins in its own address space.
pub const USER: u64 = 0x7f20_53ff_f000;
pub const MIB: u64 = 1 << 20;

pub struct Front {
    pub conn: u64,
    pub link: Connection<R>,
}

/// A memory file, as a memory-backend-memfd makes it.
pub fn memfd(size: u64) -> OwnedFd {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, size).unwrap();
    fd
}

pub fn region(guest_addr: u64, size: u64, user_addr: u64) -> MemoryRegion {
    MemoryRegion { guest_addr, size, user_addr, mmap_offset: 0 }
}

/// Ring `index` as a guest of 256 entries lays it out, in user addresses from `user`.
pub fn ring_at(index: u32, user: u64) -> VringAddr {
    let base = user + 0x4000 * u64::from(index);
    VringAddr { index, flags: 0, desc: base, avail: base + 0x1000, used: base + 0x2000, log: 0 }
}

pub fn state(index: u32, num: u32) -> VringState {
    VringState { index, num }
}

pub fn with_fd(index: u8) -> VringFd {
    VringFd { index, has_fd: true }
}

pub fn eventfd() -> EventFd {
    EventFd::new().unwrap()
}

/// What came back.
pub fn ack(message: &M, value: u64) -> Option<R> {
    Some(R::Ack { request: message.request().id(), value })
}

impl Front {
    pub fn new(conn: u64, socket: UnixStream) -> Self {
        Front { conn, link: Connection::new(socket) }
    }

    /// Sends without letting the back-end have its turn.
    pub fn send(&mut self, message: &M, fds: &[BorrowedFd<'_>], need_reply: bool) {
        self.link.send(&message.to_bytes(need_reply), fds).unwrap();
    }

    /// The next reply, if there is one.
    pub fn receive(&mut self) -> Option<R> {
        match self.link.receive().unwrap() {
            Received::Message(frame) => Some(frame.message),
            Received::WouldBlock => None,
            other => panic!("instead of a reply: {other:?}"),
        }
    }

    /// Whether the back-end has closed the connection.
    pub fn is_cut(&mut self) -> bool {
        matches!(self.link.receive(), Ok(Received::Closed) | Err(_))
    }

    /// A message that gets no reply.
    pub fn tell(&mut self, house: &mut House, message: M) {
        self.send(&message, &[], false);
        house.pump();
        assert_eq!(self.receive(), None, "{message:?} was answered");
    }

    /// A message whose reply is awaited.
    pub fn ask(&mut self, house: &mut House, message: M) -> R {
        let reply = self.ask_with(house, &message, &[]);
        reply.unwrap_or_else(|| panic!("{message:?} was not answered"))
    }

    /// A message with descriptors whose reply is awaited, if there is one by now.
    pub fn ask_with(&mut self, house: &mut House, message: &M, fds: &[BorrowedFd<'_>]) -> Option<R> {
        self.send(message, fds, true);
        house.pump();
        self.receive()
    }

    /// A message that must be acknowledged as done.
    pub fn done(&mut self, house: &mut House, message: M, fds: &[BorrowedFd<'_>]) {
        assert_eq!(self.ask_with(house, &message, fds), ack(&message, 0), "{message:?}");
    }

    /// A message that must be refused.
    pub fn refused(&mut self, house: &mut House, message: M, fds: &[BorrowedFd<'_>]) {
        assert_eq!(self.ask_with(house, &message, fds), ack(&message, 1), "{message:?}");
    }

    pub fn status(&mut self, house: &mut House) -> u64 {
        match self.ask(house, M::GetStatus) {
            R::GetStatus(status) => status,
            other => panic!("{other:?}"),
        }
    }

    pub fn base(&mut self, house: &mut House, index: u32) -> u32 {
        match self.ask(house, M::GetVringBase(state(index, 0))) {
            R::GetVringBase(state) => state.num,
            other => panic!("{other:?}"),
        }
    }

    /// Protocol features, and virtio features with vhost-user's own bit.
    pub fn negotiate(&mut self, house: &mut House, protocol: ProtocolFeatures) {
        self.tell(house, M::SetProtocolFeatures(protocol));
        self.tell(house, M::SetOwner);
        self.tell(house, M::SetFeatures(FEATURES));
    }

    /// One file of 4 MiB as guest memory from address 0, all features, by ADD_MEM_REG.
    pub fn settle(&mut self, house: &mut House) -> OwnedFd {
        self.negotiate(house, super::super::OFFERED_PROTOCOL_FEATURES - ProtocolFeatures::GPA_ADDRESSES);
        let file = memfd(4 * MIB);
        self.done(house, M::AddMemReg(region(0, 4 * MIB, USER)), &[file.as_fd()]);
        file
    }

    /// Describes ring `index` and starts it, as QEMU does for a block device.
    pub fn start(&mut self, house: &mut House, index: u8, base: u16) -> (EventFd, EventFd) {
        let (kick, call) = (eventfd(), eventfd());
        let ring = u32::from(index);
        self.done(house, M::SetVringCall(with_fd(index)), &[call.as_fd()]);
        self.tell(house, M::SetVringNum(state(ring, 256)));
        self.tell(house, M::SetVringBase(state(ring, base.into())));
        self.tell(house, M::SetVringAddr(ring_at(ring, USER)));
        self.done(house, M::SetVringKick(with_fd(index)), &[kick.as_fd()]);
        self.done(house, M::SetVringEnable(state(ring, 1)), &[]);
        (kick, call)
    }

    /// A memory table, as QEMU sends it without memory slots.
    pub fn table(&mut self, house: &mut House, regions: &[(MemoryRegion, BorrowedFd<'_>)]) -> Option<R> {
        let table = MemoryTable::new(regions.iter().map(|(region, _)| *region).collect()).unwrap();
        let fds: Vec<_> = regions.iter().map(|(_, fd)| *fd).collect();
        self.ask_with(house, &M::SetMemTable(table), &fds)
    }
}

/// Virtio features as a Linux guest acknowledges them, with bit 30.
pub const FEATURES: u64 = 0x1_7000_6e44;
