//! Rings in places where no ring can be.

use mdev_dma::Iova;
use mdev_protocol::vhost_user::VringAddr;
use mdev_tests::stage::{Guest, GuestOptions};
use mdevd::driver::RingAddresses;
use mdevd::ring::{Part, RingError};
use mdevd::worker::Mode;

use super::latched::{ATTACKED, Attacks, RX, SIZE, TX};

const INDEX: u8 = TX as u8;
/// Bytes of the parts of a ring of [`SIZE`] entries with event indices.
const DESC: u64 = 16 * SIZE as u64;
const AVAIL: u64 = 6 + 2 * SIZE as u64;
const USED: u64 = 6 + 8 * SIZE as u64;

/// Where the parts of the ring are said to be, in the front-end's addresses.
#[derive(Copy, Clone, Debug)]
struct Places {
    desc: u64,
    avail: u64,
    used: u64,
}

impl Places {
    fn of(guest: &Guest) -> Places {
        let user = |at: Iova| guest.memory.user(at).expect("it is in memory").0;
        let RingAddresses { desc, avail, used } = guest.port.tx.addresses();
        Places { desc: user(desc), avail: user(avail), used: user(used) }
    }
}

/// Starts the transmit ring with its parts at `places`, with all descriptors it takes.
fn start(guest: &mut Guest, places: Places) {
    start_at(guest, places, 0);
}

/// The same from another available index on.
fn start_at(guest: &mut Guest, places: Places, base: u16) {
    let Places { desc, avail, used } = places;
    let index = u32::from(INDEX);
    let fds = &guest.fds[usize::from(INDEX)];
    let client = guest.front.client();
    client.set_vring_num(index, SIZE.into()).expect("the size is good");
    client.set_vring_base(index, base.into()).expect("the base is good");
    client.set_vring_addr(VringAddr { index, flags: 0, desc, used, avail, log: 0 }).expect("it is only said");
    client.set_vring_call(INDEX, Some(std::os::fd::AsFd::as_fd(&fds.call))).expect("an eventfd");
    client.set_vring_err(INDEX, Some(std::os::fd::AsFd::as_fd(&fds.err))).expect("an eventfd");
    client.set_vring_kick(INDEX, Some(std::os::fd::AsFd::as_fd(&fds.kick))).expect("an eventfd");
    client.set_vring_enable(index, true).expect("it can be enabled");
}

/// A guest whose transmit ring is said to be at the `misplaced` places; then at the right ones.
fn misplace(
    attacks: &Attacks,
    misplaced: impl FnOnce(&Guest, Places) -> Places,
    told: impl FnOnce(&mut Guest),
) {
    let mut guest = Guest::connect(&attacks.stage, ATTACKED, GuestOptions::default());
    guest.share();
    let right = Places::of(&guest);
    let wrong = misplaced(&guest, right);
    start(&mut guest, wrong);
    told(&mut guest);
    guest.must_err(TX);
    assert!(guest.needs_reset(), "{wrong:x?}");
    attacks.victim.must_go_on(20);

    for index in 0..2 {
        guest.front.stop(index).expect("what does not run stops");
    }
    guest.start_rings();
    assert!(!guest.needs_reset());
    guest.exchange(20);
    attacks.leave("rings in impossible places", guest);
}

#[test]
fn rings_outside_of_memory_are_refused_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let outside = |misplaced: &dyn Fn(Places, u64) -> Places, part: &str| {
        misplace(
            &attacks,
            |guest, right| {
                let region = &guest.memory.regions()[0];
                misplaced(right, region.user.0 + region.size())
            },
            |_| {
                let line = attacks.stage.said("is not in guest memory");
                assert!(line.contains(part), "{line}");
            },
        );
    };
    outside(&|right, end| Places { desc: end, ..right }, "descriptor table");
    outside(&|right, end| Places { desc: end + 16 - DESC, ..right }, "descriptor table");
    outside(&|right, end| Places { avail: end + 2 - AVAIL, ..right }, "available ring");
    outside(&|right, end| Places { used: end + 4 - USED, ..right }, "used ring");
    outside(&|right, _| Places { desc: 0, ..right }, "descriptor table");
    outside(&|right, _| Places { used: u64::MAX - 3, ..right }, "used ring");
    outside(&|right, _| Places { avail: right.avail + (1 << 63), ..right }, "available ring");
    attacks.end();
}

#[test]
fn parts_that_overlap_are_refused_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let overlapping = |misplaced: &dyn Fn(Places) -> Places| {
        misplace(
            &attacks,
            |_, right| misplaced(right),
            |_| drop(attacks.stage.said("overlap: SET_VRING_ADDR is wrong")),
        );
    };
    overlapping(&|right| Places { avail: right.desc, ..right });
    overlapping(&|right| Places { used: right.avail, ..right });
    overlapping(&|right| Places { used: right.desc + DESC - 4, ..right });
    overlapping(&|right| Places { avail: right.used + USED - 2, ..right });
    overlapping(&|right| Places { desc: right.used, avail: right.used, used: right.used });
    attacks.end();
}

#[test]
fn parts_that_are_not_aligned_are_named_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let misaligned = |misplaced: &dyn Fn(Places) -> Places, part: Part| {
        misplace(
            &attacks,
            |_, right| misplaced(right),
            |guest| {
                let failure = attacks.stage.failure(guest.conn);
                assert_eq!(failure, (TX, RingError::Misaligned(part)));
            },
        );
    };
    misaligned(
        &|right| Places { desc: right.desc + 8, avail: right.avail + 4096, ..right },
        Part::Descriptors,
    );
    misaligned(&|right| Places { avail: right.avail + 1, ..right }, Part::Available);
    misaligned(&|right| Places { used: right.used + 2, ..right }, Part::Used);
    attacks.end();
}

#[test]
fn a_base_that_is_not_where_the_ring_is_gives_way_to_the_used_ring() {
    let attacks = Attacks::begin(Mode::Adaptive);
    for base in [1u16, 5000, u16::MAX - SIZE] {
        let mut guest = Guest::connect(&attacks.stage, ATTACKED, GuestOptions::default());
        guest.share();
        guest.start_rings();
        guest.exchange(20);
        let stopped = guest.front.stop(INDEX).expect("it stops");
        assert_eq!(stopped, 20);
        let right = Places::of(&guest);
        // A device that uses chains in order knows better than a front-end that guesses.
        start_at(&mut guest, right, 20u16.wrapping_add(base));
        guest.exchange(20);
        assert_eq!(guest.front.stop(INDEX).expect("it stops"), 40);
        start_at(&mut guest, right, 40);
        guest.exchange(20);
        assert!(!guest.needs_reset());
        attacks.leave("a base elsewhere", guest);
    }
    attacks.end();
}

#[test]
fn two_rings_in_one_place_hurt_their_own_guest_only() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut guest = Guest::connect(&attacks.stage, ATTACKED, GuestOptions::default());
    guest.share();
    // What is transmitted is received into itself, and completed twice.
    for index in [0u8, 1] {
        let fds = &guest.fds[usize::from(index)];
        guest.front.start(index, &guest.port.tx, fds, &guest.memory).expect("nothing forbids it");
    }
    for _ in 0..20 {
        guest.port.forgive();
        // The driver finds chains used that it never offered; so does the device.
        if guest.port.send(u64::MAX).is_err() {
            break;
        }
        guest.fds[1].kick.signal();
        attacks.victim.must_go_on(10);
    }
    attacks.leave("two rings in one place", guest);
    attacks.end();
}

#[test]
fn buffers_that_are_the_ring_itself_hurt_their_own_guest_only() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let parts: [fn(&RingAddresses) -> Iova; 3] = [|at| at.desc, |at| at.avail, |at| at.used];
    for (ring, part) in [RX, TX].into_iter().flat_map(|ring| parts.map(|part| (ring, part))) {
        let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
        guest.exchange(20);
        // The frames that come back are written over one of the rings that they came through.
        let queue = if ring == RX { &guest.port.rx } else { &guest.port.tx };
        let at = part(&queue.addresses());
        for place in 0..SIZE {
            guest.port.rx.raw().set_desc(place, super::latched::desc(at, 2048, super::latched::WRITE, 0));
        }
        for _ in 0..20 {
            guest.port.forgive();
            if guest.port.send(u64::MAX).is_err() {
                break;
            }
            guest.fds[1].kick.signal();
            attacks.victim.must_go_on(5);
        }
        // Whatever the device made of it, the front-end can take the rings back and start new ones.
        guest.start_anew();
        guest.exchange(20);
        attacks.leave("buffers over the ring", guest);
    }
    attacks.end();
}
