//! Rings behind an IOMMU whose pages lie anywhere in the front-end's memory, in no order, and are moved, taken away or lost under the device.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use mdev_dma::{GuestSlice, Iova};
use mdev_pin::ResolveError;
use mdev_protocol::vhost_user::{
    Client, FrontendMessage as M, Iotlb, IotlbPerm, ProtocolFeatures, VringAddr,
};
use mdev_protocol::virtio::feature::VIRTIO_F_ACCESS_PLATFORM;
use mdev_tests::random::Random;
use mdev_tests::stage::{FEATURES, PROTOCOL, WATCHDOG, await_that};
use mdevd::driver::{FrontEnd, GuestMemory, MemoryOptions, RingFds};
use mdevd::ring::RingError;
use mdevd::worker::Mode;
use rustix::fs::ftruncate;

use super::latched::{ATTACKED, Attacks, TX};

const PAGE: u64 = 4096;
const SIZE: u16 = 1024;
/// Where the device has the ring: four pages of descriptors, one for the available ring, three for the used ring.
const RING: u64 = 1 << 40;
const AVAIL: u64 = 4 * PAGE;
const USED: u64 = 5 * PAGE;
const PAGES: u64 = 8;
/// Bytes of a frame and the header before it.
const FRAME: u32 = 12 + 64;

/// A guest with one transmit ring, and nothing in it that needs a second look.
struct Scattered {
    conn: u64,
    front: FrontEnd,
    memory: GuestMemory,
    fds: RingFds,
    /// Where the pages of the ring are, by guest physical address.
    pages: Vec<u64>,
    /// Pages that the ring may move to.
    free: Vec<u64>,
    buffer: Iova,
    next: u16,
    random: Random,
    _channel: UnixStream,
}

impl Scattered {
    /// A guest whose ring has started, and none of whose ring is translated.
    fn start(attacks: &Attacks) -> Scattered {
        let (conn, socket) = attacks.stage.connect(ATTACKED);
        let protocol = PROTOCOL | ProtocolFeatures::GPA_ADDRESSES;
        let features = FEATURES | VIRTIO_F_ACCESS_PLATFORM;
        let mut front =
            FrontEnd::over(Client::new(socket, WATCHDOG), features, 0, protocol).expect("features");
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        front.client().set_backend_req_fd(theirs.as_fd()).expect("a connected stream");
        let mut memory =
            GuestMemory::new(MemoryOptions { size: 4 << 20, ..Default::default() }).expect("memory");
        let buffer = memory.allocate(PAGE, PAGE).expect("room").at;
        let at = memory.allocate(64 * PAGE, PAGE).expect("room").at.0;
        let mut random = Random::seeded("scattered rings");
        let mut free: Vec<u64> = (0..64).map(|page| at + page * PAGE).collect();
        let pages = (0..PAGES).map(|_| take(&mut free, &mut random)).collect();
        front.share(&memory).expect("the memory is good");
        let fds = RingFds::new().expect("eventfds");
        let client = front.client();
        let index = u32::from(TX);
        client.set_vring_num(index, SIZE.into()).expect("a size");
        client.set_vring_base(index, 0).expect("a base");
        let (desc, avail, used) = (RING, RING + AVAIL, RING + USED);
        client.set_vring_addr(VringAddr { index, flags: 0, desc, used, avail, log: 0 }).expect("places");
        client.set_vring_call(TX as u8, Some(fds.call.as_fd())).expect("an eventfd");
        client.set_vring_err(TX as u8, Some(fds.err.as_fd())).expect("an eventfd");
        client.set_vring_kick(TX as u8, Some(fds.kick.as_fd())).expect("an eventfd");
        client.set_vring_enable(index, true).expect("a ring");
        let mut guest =
            Scattered { conn, front, memory, fds, pages, free, buffer, next: 0, random, _channel: ours };
        guest.translate(buffer.0, PAGE, buffer.0);
        guest
    }

    fn translate(&mut self, iova: u64, size: u64, user_addr: u64) {
        let perm = IotlbPerm::all();
        let update = M::IotlbMsg(Iotlb::Update { iova, size, user_addr, perm });
        self.front.client().call(&update, &[]).expect("it is in a region");
    }

    fn translate_ring(&mut self) {
        for (page, at) in (0..).zip(self.pages.clone()) {
            self.translate(RING + page * PAGE, PAGE, at);
        }
    }

    /// Memory of the ring, within one page.
    fn at(&self, offset: u64, len: u64) -> GuestSlice<'_> {
        let page = self.pages[(offset / PAGE) as usize];
        self.memory.slice(Iova(page + offset % PAGE), len).expect("it is the driver's")
    }

    /// Makes so many frames available.
    fn offer(&mut self, frames: u16) {
        for _ in 0..frames {
            let head = self.next % SIZE;
            let words = [self.buffer.0, FRAME.into()];
            self.at(16 * u64::from(head), 16).write(0, words).expect("a descriptor");
            self.at(AVAIL + 4 + 2 * u64::from(head), 2).write(0, head).expect("an entry");
            self.next = self.next.wrapping_add(1);
        }
        self.at(AVAIL + 2, 2).store_u16(0, self.next, Ordering::Release).expect("an index");
        self.fds.kick.signal();
    }

    fn used(&self) -> u16 {
        self.at(USED + 2, 2).load_u16(0, Ordering::Acquire).expect("an index")
    }

    /// Sends so many frames, and looks whether each was used in its turn.
    fn send(&mut self, frames: u16) {
        let first = self.next;
        self.offer(frames);
        await_that("every frame is used", || self.used() == self.next);
        for number in 0..frames {
            let head = first.wrapping_add(number) % SIZE;
            // An entry may begin in one page and end in the next.
            let word = |at: u64| self.at(USED + at + 8 * u64::from(head), 4).read::<u32>(0).expect("a word");
            let entry = [word(4), word(8)];
            assert_eq!(entry, [u32::from(head), 0]);
        }
    }

    /// Takes the translation of a page of the ring back, and has it somewhere else, with what was in it.
    fn move_page(&mut self, page: u64) {
        let (iova, size) = (RING + page * PAGE, self.random.below(PAGE) + 1);
        self.front
            .client()
            .call(&M::IotlbMsg(Iotlb::Invalidate { iova, size }), &[])
            .expect("nothing to refuse");
        let mut bytes = vec![0; PAGE as usize];
        self.at(page * PAGE, PAGE).copy_to(&mut bytes);
        let to = take(&mut self.free, &mut self.random);
        // What the device wrote to the old place from here on would be missed in the new one.
        self.at(page * PAGE, PAGE).fill(0xa5);
        self.free.push(std::mem::replace(&mut self.pages[page as usize], to));
        assert_eq!(self.at(page * PAGE, PAGE).copy_from(&bytes), bytes.len());
        self.translate(iova, PAGE, to);
    }

    fn leave(self, attacks: &Attacks) {
        let conn = self.conn;
        drop(self);
        assert_eq!(attacks.stage.ending(conn).pins, 0);
        assert_eq!(attacks.stage.windows().live(), 1, "windows of the attacker are left");
    }
}

fn take(from: &mut Vec<u64>, random: &mut Random) -> u64 {
    from.swap_remove(random.below(from.len() as u64) as usize)
}

#[test]
fn rings_of_scattered_pages_work_and_their_pages_move_under_traffic() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut guest = Scattered::start(&attacks);
    guest.translate_ring();
    for _ in 0..10 {
        guest.send(300);
    }
    // The victim's window, the guest's, and one for each part of the ring that is not in one page.
    let windows = attacks.stage.windows().live();
    assert!((4..=5).contains(&windows), "{windows} windows");
    for round in 0..200 {
        guest.offer(20);
        guest.move_page(round % PAGES);
        guest.send(30);
        if round % 20 == 0 {
            attacks.victim.must_go_on(10);
        }
    }
    assert!(!attacks.stage.has_failed(guest.conn));
    guest.leave(&attacks);
    attacks.end();
}

#[test]
fn pages_of_a_scattered_ring_that_are_lost_are_named_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut guest = Scattered::start(&attacks);
    guest.translate_ring();
    guest.send(300);
    ftruncate(guest.memory.regions()[0].extent.file.as_fd(), 0).expect("nothing forbids it");
    guest.fds.kick.signal();
    assert_eq!(attacks.stage.failure(guest.conn), (TX, RingError::Poisoned));
    attacks.victim.must_go_on(50);
    guest.leave(&attacks);
    attacks.end();
}

#[test]
fn parts_of_rings_that_do_not_meet_at_pages_are_named_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut guest = Scattered::start(&attacks);
    guest.translate_ring();
    guest.send(300);
    let (free, half) = (guest.free[0], PAGE / 2);
    guest.translate(RING, half, free);
    guest.translate(RING + half, half, guest.free[1]);
    guest.fds.kick.signal();
    assert_eq!(attacks.stage.failure(guest.conn), (TX, RingError::Memory(ResolveError::Split)));
    attacks.victim.must_go_on(50);
    guest.leave(&attacks);
    attacks.end();
}
