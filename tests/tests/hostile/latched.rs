//! What every attack on a ring must come to: an error with a name, told in every way there is, to this guest alone; and a ring that works
//! when it is started anew.

use std::os::unix::net::UnixStream;

use mdev_dma::Iova;
use mdev_protocol::virtio::split::Desc;
use mdev_tests::stage::{Guest, GuestOptions, Stage, Traffic};
use mdevd::driver::SplitQueue;
use mdevd::ring::RingError;
use mdevd::worker::Mode;

pub const RX: u16 = 0;
pub const TX: u16 = 1;
/// The device that is attacked; the victim is on device 0.
pub const ATTACKED: usize = 1;
/// Descriptors of a guest's rings where nothing else is said.
pub const SIZE: u16 = 128;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A victim with traffic on, and an attacked device on the same worker.
pub struct Attacks {
    // Dropped in this order, should a test panic.
    pub victim: Traffic,
    pub stage: Stage,
}

impl Attacks {
    pub fn begin(mode: Mode) -> Self {
        let stage = Stage::of_two(mode);
        let victim = Traffic::of_victim(&stage);
        Attacks { victim, stage }
    }

    /// [`Attacks::with`] the usual options.
    pub fn on(&self, what: &str, attack: impl FnOnce(&mut Guest), index: u16, expected: RingError) {
        self.with(what, GuestOptions::default(), attack, index, expected);
    }

    /// A guest works, then does `attack`: the ring `index` must latch `expected`, say so by its err eventfd and the device's status, and
    /// work again when it is started anew; the victim goes on all the while.
    pub fn with(
        &self,
        what: &str,
        options: GuestOptions,
        attack: impl FnOnce(&mut Guest),
        index: u16,
        expected: RingError,
    ) {
        let mut guest = Guest::start(&self.stage, ATTACKED, options);
        guest.exchange(20);
        assert!(!guest.needs_reset());
        attack(&mut guest);
        guest.fds.iter().for_each(|fds| fds.kick.signal());
        self.must_fail(what, &mut guest, index, expected);

        guest.start_anew();
        assert!(!guest.needs_reset(), "{what}: the ring was started anew");
        guest.exchange(20);
        assert!(!self.stage.has_failed(guest.conn), "{what}: it failed more than once");
        self.leave(what, guest);
    }

    /// The ring `index` of this guest latches `expected` and says so everywhere; the victim goes on.
    pub fn must_fail(&self, what: &str, guest: &mut Guest, index: u16, expected: RingError) {
        assert_eq!(self.stage.failure(guest.conn), (index, expected), "{what}");
        guest.must_err(index);
        assert!(guest.needs_reset(), "{what}: the status does not say so");
        self.victim.must_go_on(50);
    }

    /// The attacker goes: nothing of it is left.
    pub fn leave(&self, what: &str, guest: Guest) {
        self.stage.leave(guest);
        assert_eq!(self.stage.windows().live(), 1, "{what}: windows of the attacker are left");
    }

    pub fn end(self) {
        self.victim.must_go_on(100);
        self.stage.end(self.victim);
    }
}

/// Where an attacker gets in.
pub trait Door {
    /// A new connection, and its number.
    fn enter(&self) -> (u64, UnixStream);

    /// The connection of this number was closed: nothing of it may be left.
    fn left(&self, conn: u64);
}

impl Door for Stage {
    fn enter(&self) -> (u64, UnixStream) {
        self.connect(ATTACKED)
    }

    fn left(&self, conn: u64) {
        assert_eq!(self.ending(conn).pins, 0);
        assert_eq!(self.windows().live(), 1, "windows of connection {conn} are left");
    }
}

/// A place in the guest's memory that nothing else uses.
pub fn scratch(guest: &mut Guest, len: u64) -> Iova {
    guest.memory.allocate(len, 4096).expect("room").at
}

/// Writes descriptors into the ring's table from place 0 on, and offers the chain that starts there, whatever the driver's books say.
pub fn offer(queue: &SplitQueue, descriptors: &[Desc]) {
    let ring = queue.raw();
    for (place, desc) in (0..).zip(descriptors) {
        ring.set_desc(place, *desc);
    }
    offer_head(queue, 0);
}

/// Offers a chain by its head, whatever the driver's books say. The ring must have nothing outstanding.
pub fn offer_head(queue: &SplitQueue, head: u16) {
    let ring = queue.raw();
    let next = ring.avail_index();
    ring.set_avail_entry(next, head);
    ring.set_avail_index(next.wrapping_add(1));
}

/// A frame, so that the device looks at the receive ring.
pub fn send_one(guest: &mut Guest) {
    let end = guest.port.frames().0 + 1;
    guest.port.send(end).expect("the transmit ring is in order");
}

/// A descriptor.
pub fn desc(at: Iova, len: u32, flags: u16, next: u16) -> Desc {
    Desc { addr: at.0, len, flags, next }
}
