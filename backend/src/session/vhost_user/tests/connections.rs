//! One front-end after another, and two at a time.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use mdev_dma::{Iova, Perm};
use mdev_protocol::vhost_user::{FrontendMessage as M, ProtocolFeatures as P};

use super::House;
use super::front::{FEATURES, MIB, USER, eventfd, memfd, region, ring_at, state, with_fd};
use super::mock::Note;
use crate::ring::RingAddr;
use crate::session::OFFERED_PROTOCOL_FEATURES as OFFERED;

/// Scenario 21, in the order in which cpr-transfer was seen: the second front-end sets everything up while the guest
/// runs on the first, and goes on where that one stopped, on the same files behind other addresses.
#[test]
fn a_live_update_moves_the_rings_to_the_second_connection() {
    const MOVED: u64 = 0x7fd7_7bff_f000;
    let mut house = House::new(2);
    let mut old = house.connect();
    let file = old.settle(&mut house);
    old.start(&mut house, 0, 0);
    house.queues.take_notes();
    let mapped = house.windows.mapped_total();

    let mut new = house.connect();
    new.negotiate(&mut house, OFFERED - P::GPA_ADDRESSES);
    new.tell(&mut house, M::ResetDevice);
    new.tell(&mut house, M::SetStatus(0));
    new.done(&mut house, M::SetVringEnable(state(0, 1)), &[]);
    new.done(&mut house, M::SetVringEnable(state(0, 0)), &[]);
    assert!(house.queues.take_notes().is_empty(), "the rings of the first connection are its own");
    assert_eq!(house.device.resets.load(Ordering::Relaxed), 0, "the device is in use");

    house.queues.taken = 0x10ad;
    old.done(&mut house, M::SetVringEnable(state(0, 0)), &[]);
    assert_eq!(old.base(&mut house, 0), 0x10ad);
    old.tell(&mut house, M::SetStatus(0));
    house.queues.take_notes();

    new.tell(&mut house, M::SetFeatures(FEATURES));
    new.done(&mut house, M::AddMemReg(region(0, 4 * MIB, MOVED)), &[file.as_fd()]);
    assert_eq!(house.windows.mapped_total(), mapped, "nothing is mapped in the black-out");
    new.tell(&mut house, M::SetVringNum(state(0, 256)));
    new.tell(&mut house, M::SetVringBase(state(0, 0x10ad)));
    // The old keys mean nothing here.
    new.tell(&mut house, M::SetVringAddr(ring_at(0, USER)));
    new.done(&mut house, M::SetVringKick(with_fd(0)), &[eventfd().as_fd()]);
    assert!(house.queues.running.is_empty());
    new.tell(&mut house, M::SetVringAddr(ring_at(0, MOVED)));
    new.done(&mut house, M::SetVringKick(with_fd(0)), &[eventfd().as_fd()]);
    new.done(&mut house, M::SetVringEnable(state(0, 1)), &[]);
    let resumed = Note::Start { conn: 2, index: 0, base: 0x10ad, enabled: false };
    assert_eq!(house.queues.take_notes(), [resumed, Note::Enabled { index: 0, enabled: true }]);

    drop(old);
    house.pump();
    assert!(house.queues.is_running(2, 0));
    let setup = &house.queues.running[&0];
    let RingAddr::Extent(desc) = &setup.ring.desc else { panic!("not in a file") };
    assert_eq!(desc.offset, 0);
    let mut lane = setup.access.lane();
    let burst = lane.enter();
    assert!(
        burst.slice(Iova(0x1000), 4096, Perm::WRITE).is_ok(),
        "closing the first unmaps nothing of the second"
    );
    assert!(burst.extent(desc, 4096, Perm::READ).is_ok());
}

#[test]
fn a_second_connection_that_starts_early_waits_for_the_first() {
    let mut house = House::new(2);
    let mut first = house.connect();
    let _memory = first.settle(&mut house);
    first.start(&mut house, 0, 0);
    first.start(&mut house, 1, 0);
    let mut second = house.connect();
    let _other_memory = second.settle(&mut house);
    second.start(&mut house, 0, 7);
    second.start(&mut house, 1, 7);
    second.done(&mut house, M::SetVringNum(state(1, 128)), &[]);
    house.queues.take_notes();

    first.base(&mut house, 0);
    assert_eq!(house.queues.take_notes(), [Note::Stop { conn: 1, index: 0 }], "one ring still runs");
    drop(first);
    house.pump();
    assert_eq!(
        house.queues.take_notes(),
        [
            Note::Stop { conn: 1, index: 1 },
            Note::Cancel { conn: 1, index: 1 },
            Note::Start { conn: 2, index: 0, base: 7, enabled: true },
            Note::Start { conn: 2, index: 1, base: 7, enabled: true },
        ]
    );
    assert_eq!(house.queues.running[&1].ring.size, 128);
}

#[test]
fn a_ring_that_waits_can_be_stopped_and_forgotten() {
    let mut house = House::new(2);
    let mut first = house.connect();
    let _memory = first.settle(&mut house);
    first.start(&mut house, 0, 0);
    let mut second = house.connect();
    let _other_memory = second.settle(&mut house);
    second.start(&mut house, 0, 9);
    assert_eq!(second.base(&mut house, 0), 9, "where it was to start");
    first.base(&mut house, 0);
    assert!(house.queues.running.is_empty());

    first.start(&mut house, 0, 0);
    second.start(&mut house, 0, 9);
    drop(second);
    house.pump();
    assert_eq!(house.sessions.len(), 1);
    first.base(&mut house, 0);
    assert!(house.queues.running.is_empty());
}

#[test]
fn the_end_of_one_connection_is_nothing_to_the_other() {
    let mut house = House::new(2);
    let mut first = house.connect();
    let _memory = first.settle(&mut house);
    first.start(&mut house, 0, 0);
    house.queues.take_notes();
    for _ in 0..3 {
        let mut second = house.connect();
        let _other_memory = second.settle(&mut house);
        second.start(&mut house, 0, 0);
        drop(second);
        house.pump();
    }
    assert!(house.queues.take_notes().is_empty());
    assert_eq!(first.status(&mut house), 0);
}

#[test]
fn what_a_connection_held_is_given_back_when_it_ends() {
    let mut house = House::new(2);
    for _ in 0..3 {
        let mut front = house.connect();
        let _file = front.settle(&mut house);
        let more = memfd(MIB);
        front.done(&mut house, M::AddMemReg(region(64 * MIB, MIB, USER + 64 * MIB)), &[more.as_fd()]);
        front.start(&mut house, 0, 0);
        front.start(&mut house, 1, 0);
        assert!(house.windows.live() > 0);
        drop(front);
        house.pump();
        assert_eq!((house.sessions.len(), house.windows.live()), (0, 0));
    }
}

#[test]
fn the_device_is_reset_only_by_a_connection_that_has_it_to_itself() {
    let mut house = House::new(2);
    let mut first = house.connect();
    let _memory = first.settle(&mut house);
    let mut second = house.connect();
    first.tell(&mut house, M::ResetDevice);
    assert_eq!(house.device.resets.load(Ordering::Relaxed), 1);
    first.start(&mut house, 0, 0);
    second.negotiate(&mut house, OFFERED);
    second.tell(&mut house, M::ResetDevice);
    assert_eq!(house.device.resets.load(Ordering::Relaxed), 1);
    first.tell(&mut house, M::ResetDevice);
    assert_eq!(house.device.resets.load(Ordering::Relaxed), 2);
    assert!(house.queues.running.is_empty());
}
