//! When a ring starts, and when it does not.

use std::os::fd::AsFd;

use mdev_protocol::vhost_user::{FrontendMessage as M, ProtocolFeatures as P, VringAddr, VringFd};
use mdev_protocol::virtio::status::DEVICE_NEEDS_RESET;

use super::House;
use super::front::{FEATURES, Front, MIB, USER, eventfd, memfd, region, ring_at, state, with_fd};
use super::mock::Note;
use crate::ring::RingAddr;
use crate::session::OFFERED_PROTOCOL_FEATURES as OFFERED;
use crate::session::Session as _;
use crate::sys::Kicks;

const NEEDS_RESET: u64 = DEVICE_NEEDS_RESET as u64;

/// Everything but SET_VRING_KICK and SET_VRING_ENABLE of ring 0.
fn describe(house: &mut House, front: &mut Front, addr: VringAddr) {
    front.tell(house, M::SetVringNum(state(addr.index, 256)));
    front.tell(house, M::SetVringBase(state(addr.index, 0)));
    front.tell(house, M::SetVringAddr(addr));
}

#[test]
fn without_protocol_features_all_rings_are_enabled_at_once() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let file = memfd(4 * MIB);
    front.tell(&mut house, M::SetOwner);
    front.tell(&mut house, M::SetFeatures(FEATURES & !(1 << 30)));
    front.table(&mut house, &[(region(0, 4 * MIB, USER), file.as_fd())]);
    for index in 0..2 {
        describe(&mut house, &mut front, ring_at(u32::from(index), USER));
        let kick = eventfd();
        assert_eq!(front.ask_with(&mut house, &M::SetVringKick(with_fd(index)), &[kick.as_fd()]), None);
    }
    let enabled = true;
    let expected = [0, 1].map(|index| Note::Start { conn: 1, index, base: 0, enabled });
    assert_eq!(house.queues.take_notes(), expected);
}

#[test]
fn a_ring_is_enabled_before_or_after_its_kick() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    for index in 0..2u8 {
        describe(&mut house, &mut front, ring_at(u32::from(index), USER));
    }
    front.done(&mut house, M::SetVringEnable(state(0, 1)), &[]);
    front.done(&mut house, M::SetVringKick(with_fd(0)), &[eventfd().as_fd()]);
    front.done(&mut house, M::SetVringKick(with_fd(1)), &[eventfd().as_fd()]);
    front.done(&mut house, M::SetVringEnable(state(1, 1)), &[]);
    front.done(&mut house, M::SetVringEnable(state(0, 0)), &[]);
    assert_eq!(
        house.queues.take_notes(),
        [
            Note::Start { conn: 1, index: 0, base: 0, enabled: true },
            Note::Start { conn: 1, index: 1, base: 0, enabled: false },
            Note::Enabled { index: 1, enabled: true },
            Note::Enabled { index: 0, enabled: false },
        ]
    );
    front.tell(&mut house, M::ResetOwner);
    assert_eq!(
        house.queues.take_notes(),
        [0, 1].map(|index| Note::Enabled { index, enabled: false }),
        "RESET_OWNER disables"
    );
}

#[test]
fn a_ring_told_before_the_memory_starts_when_the_memory_comes() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(&mut house, OFFERED - P::GPA_ADDRESSES);
    describe(&mut house, &mut front, ring_at(0, USER));
    front.done(&mut house, M::SetVringKick(VringFd { index: 0, has_fd: false }), &[]);
    assert!(house.queues.running.is_empty());
    let file = memfd(4 * MIB);
    front.done(&mut house, M::AddMemReg(region(MIB, 4 * MIB, USER)), &[file.as_fd()]);
    let started = &house.queues.running[&0];
    assert!(started.kick.is_none(), "polled");
    let RingAddr::Extent(desc) = &started.ring.desc else { panic!("not in a file") };
    assert_eq!(desc.offset, 0);
}

#[test]
fn rings_are_found_by_guest_address_when_that_was_agreed() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(&mut house, OFFERED);
    let (low, high) = (memfd(4 * MIB), memfd(4 * MIB));
    // User addresses mean nothing: all are the same.
    front.done(&mut house, M::AddMemReg(region(0, 4 * MIB, 0)), &[low.as_fd()]);
    front.done(&mut house, M::AddMemReg(region(64 * MIB, 4 * MIB, 0)), &[high.as_fd()]);
    describe(&mut house, &mut front, ring_at(0, 65 * MIB));
    front.done(&mut house, M::SetVringKick(with_fd(0)), &[eventfd().as_fd()]);
    let RingAddr::Extent(used) = &house.queues.running[&0].ring.used else { panic!("not in a file") };
    assert_eq!(used.offset, MIB + 0x2000);
    front.done(&mut house, M::RemMemReg(region(0, 4 * MIB, 77)), &[]);
}

#[test]
fn a_ring_keeps_its_place_when_the_table_moves_in_the_front_end() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let file = front.settle(&mut house);
    front.start(&mut house, 0, 0);
    house.queues.take_notes();
    // The same file behind other user addresses, and no SET_VRING_ADDR.
    let moved = region(0, 4 * MIB, USER + 0x1000_0000);
    front.table(&mut house, &[(moved, file.as_fd())]);
    assert!(house.queues.take_notes().is_empty());
    front.base(&mut house, 0);
    front.done(&mut house, M::SetVringKick(with_fd(0)), &[eventfd().as_fd()]);
    assert!(house.queues.is_running(1, 0));
    // A running ring may be told again where it is, but not that it is elsewhere.
    front.done(&mut house, M::SetVringAddr(ring_at(0, USER + 0x1000_0000)), &[]);
    front.refused(&mut house, M::SetVringAddr(ring_at(1, USER + 0x1000_0000).with_index(0)), &[]);
    front.refused(&mut house, M::SetVringNum(state(0, 128)), &[]);
    front.refused(&mut house, M::SetVringBase(state(0, 5)), &[]);
}

trait WithIndex {
    fn with_index(self, index: u32) -> Self;
}

impl WithIndex for VringAddr {
    fn with_index(mut self, index: u32) -> Self {
        self.index = index;
        self
    }
}

#[test]
fn a_ring_outside_the_memory_latches_and_the_session_goes_on() {
    let end = USER + 4 * MIB;
    let good = ring_at(0, USER);
    let cases = [
        ("nowhere", VringAddr { desc: 0x1000, ..good }),
        ("table over the end", VringAddr { desc: end - 4096 + 16, ..good }),
        ("available ring over the end", VringAddr { avail: end - 256, ..good }),
        ("used ring over the end", VringAddr { used: end - 2048, ..good }),
        ("used ring wraps", VringAddr { used: u64::MAX - 3, ..good }),
        ("available ring in the table", VringAddr { avail: USER + 4094, ..good }),
        ("used ring in the available ring", VringAddr { used: USER + 0x1000 + 512, ..good }),
    ];
    for (name, addr) in cases {
        let mut house = House::new(2);
        let mut front = house.connect();
        let _file = front.settle(&mut house);
        let err = eventfd();
        front.done(&mut house, M::SetVringErr(with_fd(0)), &[err.as_fd()]);
        describe(&mut house, &mut front, addr);
        assert_eq!(err.drain(), Kicks::None, "{name}");
        front.done(&mut house, M::SetVringKick(with_fd(0)), &[eventfd().as_fd()]);
        assert!(house.queues.running.is_empty(), "{name}");
        assert_eq!(err.drain(), Kicks::Some(1), "{name}");
        assert_eq!(front.status(&mut house), NEEDS_RESET, "{name}");
        // The other ring does not notice, and the ring itself works when it is told better.
        front.start(&mut house, 1, 0);
        front.base(&mut house, 0);
        front.tell(&mut house, M::SetStatus(0));
        assert_eq!(front.status(&mut house), 0, "{name}");
        front.start(&mut house, 0, 0);
        assert!(house.queues.is_running(1, 0), "{name}");
    }
}

#[test]
fn a_ring_whose_description_was_refused_in_silence_does_not_start_with_the_old_one() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    front.start(&mut house, 0, 0);
    front.base(&mut house, 0);
    front.tell(&mut house, M::SetVringNum(state(0, 100)));
    front.done(&mut house, M::SetVringKick(with_fd(0)), &[eventfd().as_fd()]);
    assert!(house.queues.running.is_empty());
    assert_eq!(front.status(&mut house), NEEDS_RESET);
    front.start(&mut house, 0, 0);
    assert!(house.queues.is_running(1, 0));
}

#[test]
fn a_new_kick_for_a_running_ring_restarts_it_where_it_is() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    front.start(&mut house, 0, 5);
    house.queues.take_notes();
    house.queues.taken = 3;
    front.done(&mut house, M::SetVringKick(with_fd(0)), &[eventfd().as_fd()]);
    let again = Note::Start { conn: 1, index: 0, base: 8, enabled: true };
    assert_eq!(house.queues.take_notes(), [Note::Stop { conn: 1, index: 0 }, again]);
}

#[test]
fn a_queue_that_failed_shows_until_it_is_reset() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    front.start(&mut house, 0, 0);
    house.session(1).queue_failed(0, &crate::ring::RingError::IndirectNested);
    house.session(1).queue_failed(99, &crate::ring::RingError::IndirectNested);
    front.tell(&mut house, M::SetStatus(0x0f));
    assert_eq!(front.status(&mut house), 0x0f | NEEDS_RESET);
    house.queues.taken = 2;
    assert_eq!(front.base(&mut house, 0), 2, "its base is told");
    front.tell(&mut house, M::SetStatus(0));
    assert_eq!(front.status(&mut house), 0);
}

#[test]
fn call_and_err_reach_a_running_ring() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    front.start(&mut house, 0, 0);
    house.queues.take_notes();
    let none = VringFd { index: 0, has_fd: false };
    front.done(&mut house, M::SetVringCall(none), &[]);
    front.done(&mut house, M::SetVringErr(with_fd(0)), &[eventfd().as_fd()]);
    front.done(&mut house, M::SetVringErr(none), &[]);
    assert_eq!(
        house.queues.take_notes(),
        [
            Note::Call { index: 0, some: false },
            Note::Err { index: 0, some: true },
            Note::Err { index: 0, some: false }
        ]
    );
}
