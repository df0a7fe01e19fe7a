//! Replies that wait until the device has let go (contract K11, scenario 22), and what happens meanwhile.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mdev_dma::{Iova, Perm};
use mdev_pin::Pin;
use mdev_protocol::vhost_user::{FrontendMessage as M, FrontendReply as R, ProtocolFeatures as P};
use mdev_protocol::virtio::status::DEVICE_NEEDS_RESET;
use rustix::fs::ftruncate;

use super::House;
use super::front::{Front, MIB, USER, ack, memfd, region, state};
use super::mock::Note;
use crate::session::Session as _;
use crate::session::SessionError;

const NEEDS_RESET: u64 = DEVICE_NEEDS_RESET as u64;
const DIMM: u64 = 64 * MIB;

/// A front-end with a ring running and a second region, and a pin of the device in that region.
fn with_pin(house: &mut House) -> (Front, Pin) {
    let mut front = house.connect();
    let _file = front.settle(house);
    let dimm = memfd(MIB);
    front.done(house, M::AddMemReg(region(DIMM, MIB, USER + DIMM)), &[dimm.as_fd()]);
    front.start(house, 0, 0);
    let pin = pin_at(house, DIMM + 4096).unwrap();
    (front, pin)
}

fn pin_at(house: &mut House, iova: u64) -> Option<Pin> {
    let access = house.queues.running[&0].access.clone();
    let mut lane = access.lane();
    let burst = lane.enter();
    burst.pin(Iova(iova), 512, Perm::READ).ok()
}

fn remove_dimm() -> M {
    M::RemMemReg(region(DIMM, MIB, USER + DIMM))
}

#[test]
fn removal_is_answered_when_the_last_pin_is_gone() {
    let mut house = House::new(2);
    let (mut front, pin) = with_pin(&mut house);
    assert_eq!(front.ask_with(&mut house, &remove_dimm(), &[]), None, "the device holds it");
    assert!(pin_at(&mut house, DIMM).is_none(), "no new pin while it goes");
    assert!(pin_at(&mut house, 4096).is_some(), "the rest of the memory does not notice");
    // What comes after waits its turn.
    front.send(&M::GetStatus, &[], true);
    house.pump();
    assert_eq!(front.receive(), None);
    drop(pin);
    house.pump();
    assert_eq!(front.receive(), ack(&remove_dimm(), 0));
    assert_eq!(front.receive(), Some(R::GetStatus(0)));
    assert!(house.queues.is_running(1, 0));
}

#[test]
fn a_table_without_the_pinned_bytes_waits_and_one_with_them_does_not() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let file = front.settle(&mut house);
    front.start(&mut house, 0, 0);
    let pin = pin_at(&mut house, MIB).unwrap();
    // The same bytes, cut elsewhere, at other user addresses, with more behind them.
    let more = memfd(MIB);
    let mut upper = region(2 * MIB, 2 * MIB, USER + 34 * MIB);
    upper.mmap_offset = 2 * MIB;
    let cut = [
        (region(0, 2 * MIB, USER + 32 * MIB), file.as_fd()),
        (upper, file.as_fd()),
        (region(DIMM, MIB, USER + DIMM), more.as_fd()),
    ];
    let acked = front.table(&mut house, &cut);
    assert!(matches!(acked, Some(R::Ack { value: 0, .. })), "{acked:?}");
    assert_eq!(house.session(1).ioas.pins(), 1);
    assert_eq!(front.table(&mut house, &cut[1..]), None, "pinned bytes go");
    drop(pin);
    house.pump();
    assert!(matches!(front.receive(), Some(R::Ack { value: 0, .. })));
}

#[test]
fn removal_waits_for_a_burst_that_may_have_seen_the_region() {
    let mut house = House::new(2);
    let (mut front, pin) = with_pin(&mut house);
    drop(pin);
    let access = house.queues.running[&0].access.clone();
    let (enter, entered) = std::sync::mpsc::channel();
    let (leave, left) = std::sync::mpsc::channel::<()>();
    let worker = std::thread::spawn(move || {
        let mut lane = access.lane();
        let burst = lane.enter();
        let slice = burst.slice(Iova(DIMM), 64, Perm::READ).map(|slice| slice.len());
        enter.send(slice).unwrap();
        let _ = left.recv();
    });
    assert_eq!(entered.recv().unwrap(), Ok(64));
    assert_eq!(front.ask_with(&mut house, &remove_dimm(), &[]), None);
    drop(leave);
    worker.join().unwrap();
    house.pump();
    assert_eq!(front.receive(), ack(&remove_dimm(), 0));
}

#[test]
fn get_vring_base_is_answered_when_the_ring_has_stopped() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    front.start(&mut house, 0, 3);
    front.start(&mut house, 1, 0);
    house.queues.hold_stops = true;
    house.queues.taken = 4;
    assert_eq!(front.ask_with(&mut house, &M::GetVringBase(state(0, 0)), &[]), None);
    assert!(house.queues.is_running(1, 1));
    house.release_stops();
    assert_eq!(front.receive(), Some(R::GetVringBase(state(0, 7))));
    // Asked again, and for a ring that never ran.
    assert_eq!(front.base(&mut house, 0), 7);
    assert_eq!(house.queues.notes.iter().filter(|note| matches!(note, Note::Stop { .. })).count(), 1);
}

#[test]
fn reset_is_acknowledged_when_all_rings_have_stopped() {
    for message in [M::ResetDevice, M::SetStatus(0), M::SetOwner] {
        let mut house = House::new(2);
        let mut front = house.connect();
        let _file = front.settle(&mut house);
        front.start(&mut house, 0, 0);
        front.start(&mut house, 1, 0);
        house.queues.hold_stops = true;
        assert_eq!(front.ask_with(&mut house, &message, &[]), None);
        house.release_stops();
        assert_eq!(front.receive(), ack(&message, 0));
        assert!(house.queues.running.is_empty());
        let areas = if message == M::SetOwner { 0 } else { 1 };
        assert_eq!(house.session(1).ioas.areas().len(), areas, "{message:?}");
    }
}

#[test]
fn a_new_session_is_acknowledged_when_the_memory_of_the_old_is_free() {
    let mut house = House::new(2);
    let (mut front, pin) = with_pin(&mut house);
    assert_eq!(front.ask_with(&mut house, &M::SetOwner, &[]), None);
    assert!(house.queues.running.is_empty());
    drop(pin);
    house.pump();
    assert_eq!(front.receive(), ack(&M::SetOwner, 0));
    assert!(house.session(1).ioas.areas().is_empty());
}

#[test]
fn a_device_that_does_not_let_go_in_time_is_an_error_and_asks_for_a_reset() {
    let mut house = House::impatient(2);
    let (mut front, pin) = with_pin(&mut house);
    front.send(&remove_dimm(), &[], true);
    let mut reply = None;
    house.pump_until(|_| {
        reply = front.receive();
        reply.is_some()
    });
    assert_eq!(reply, ack(&remove_dimm(), 1));
    assert_eq!(front.status(&mut house), NEEDS_RESET);
    assert!(house.queues.running.is_empty(), "its queues are stopped");
    // The front-end may try again, and ask for what was never there.
    let mut stranger = region(DIMM, MIB / 2, USER + DIMM);
    assert_eq!(front.ask_with(&mut house, &M::RemMemReg(stranger), &[]), ack(&remove_dimm(), 1));
    stranger = region(0, 4 * MIB, USER + DIMM);
    assert_eq!(front.ask_with(&mut house, &M::RemMemReg(stranger), &[]), ack(&remove_dimm(), 1));
    // The front-end may take no notice and put other memory there; that works when the device has let go.
    drop(pin);
    let other = memfd(MIB);
    front.done(&mut house, M::AddMemReg(region(DIMM, MIB, USER + DIMM)), &[other.as_fd()]);
    front.tell(&mut house, M::SetStatus(0));
    assert_eq!(front.status(&mut house), 0);
    front.start(&mut house, 0, 0);
    assert!(pin_at(&mut house, DIMM).is_some());
}

#[test]
fn a_device_that_lets_go_when_it_is_told_to_cancel_has_obeyed_but_asks_for_a_reset() {
    let mut house = House::new(2);
    house.options.barrier = Duration::from_millis(100);
    let (mut front, pin) = with_pin(&mut house);
    house.queues.hold_stops = true;
    assert_eq!(front.ask_with(&mut house, &remove_dimm(), &[]), None);
    let cancelled = Note::Cancel { conn: 1, index: 0 };
    house.pump_until(|house| house.queues.notes.contains(&cancelled));
    drop(pin);
    let mut reply = None;
    house.pump_until(|_| {
        reply = front.receive();
        reply.is_some()
    });
    assert_eq!(reply, ack(&remove_dimm(), 0));
    assert_eq!(house.session(1).ioas.areas().len(), 1);
    assert_eq!(front.status(&mut house), NEEDS_RESET);
}

/// A front-end as [`with_pin`], of a device that copies and does not let go; all it keeps is the processor's.
fn with_void_pin(house: &mut House) -> (Front, Pin) {
    house.device.copies.store(true, Ordering::Relaxed);
    with_pin(house)
}

fn answer_in_time(house: &mut House, front: &mut Front, message: &M) -> Option<R> {
    front.send(message, &[], true);
    let mut reply = None;
    house.pump_until(|_| {
        reply = front.receive();
        reply.is_some()
    });
    reply
}

#[test]
fn memory_is_taken_away_from_a_device_that_does_not_let_go_in_time() {
    let mut house = House::impatient(2);
    let (mut front, pin) = with_void_pin(&mut house);
    let other = pin_at(&mut house, 4096).unwrap();
    other.slices().for_each(|slice| slice.fill(7));
    assert_eq!(answer_in_time(&mut house, &mut front, &remove_dimm()), ack(&remove_dimm(), 0));
    pin.slices().for_each(|slice| slice.fill(9));
    assert_eq!(other.slices().next().unwrap().read(0), Some(7_u8), "the rest of the memory does not notice");
    assert_eq!(front.status(&mut house), 0, "nothing remains that a reset would heal");
    assert!(house.queues.is_running(1, 0));
    assert_eq!((house.session(1).ioas.areas().len(), house.session(1).ioas.pins()), (1, 1));
    // Other memory in the same place is the device's at once.
    let dimm = memfd(MIB);
    front.done(&mut house, M::AddMemReg(region(DIMM, MIB, USER + DIMM)), &[dimm.as_fd()]);
    assert!(pin_at(&mut house, DIMM).is_some());
    let mut seen = [0; 8];
    rustix::io::pread(&dimm, &mut seen, 4096).unwrap();
    assert_eq!(seen, [0; 8], "a void pin reaches nobody's memory");
    drop((pin, other));
}

#[test]
fn memory_of_a_connection_that_is_gone_is_taken_away_from_a_device_that_does_not_let_go() {
    let mut house = House::impatient(2);
    let (front, pin) = with_void_pin(&mut house);
    drop(front);
    house.pump_until(|house| house.sessions.is_empty());
    let losses = house.windows.losses();
    assert_eq!((losses.revoked, house.windows.live()), (1, 1), "what the void pin points to stays");
    pin.slices().for_each(|slice| slice.fill(9));
    drop(pin);
}

#[test]
fn memory_that_another_connection_has_too_is_not_taken_away() {
    let mut house = House::impatient(2);
    house.device.copies.store(true, Ordering::Relaxed);
    let (mut first, mut second) = (house.connect(), house.connect());
    let _file = first.settle(&mut house);
    let _other = second.settle(&mut house);
    let dimm = memfd(MIB);
    for front in [&mut first, &mut second] {
        front.done(&mut house, M::AddMemReg(region(DIMM, MIB, USER + DIMM)), &[dimm.as_fd()]);
    }
    first.start(&mut house, 0, 0);
    let pin = pin_at(&mut house, DIMM + 4096).unwrap();
    assert_eq!(answer_in_time(&mut house, &mut first, &remove_dimm()), ack(&remove_dimm(), 1));
    assert_eq!(first.status(&mut house), NEEDS_RESET);
    assert_eq!(house.windows.losses().revoked, 0);
    second.done(&mut house, remove_dimm(), &[]);
    // Now nobody else has it.
    assert_eq!(answer_in_time(&mut house, &mut first, &remove_dimm()), ack(&remove_dimm(), 0));
    assert_eq!(house.windows.losses().revoked, 1);
    drop(pin);
}

#[test]
fn the_same_memory_announced_again_heals_what_was_lost() {
    for by_table in [false, true] {
        let mut house = House::new(2);
        let mut front = house.connect();
        let file = front.settle(&mut house);
        front.start(&mut house, 0, 0);
        ftruncate(&file, 0).unwrap();
        let pin = pin_at(&mut house, 4096).unwrap();
        assert_eq!(pin.slices().next().unwrap().read(0), Some(0_u8));
        assert!(pin.poisoned() && pin_at(&mut house, 0).is_none());
        drop(pin);
        assert_eq!(house.windows.losses().poisoned, 1);
        ftruncate(&file, 4 * MIB).unwrap();
        let again = (region(0, 4 * MIB, USER), file.as_fd());
        let acked = match by_table {
            true => front.table(&mut house, &[again]),
            false => front.ask_with(&mut house, &M::AddMemReg(again.0), &[again.1]),
        };
        assert!(matches!(acked, Some(R::Ack { value: 0, .. })), "{acked:?}");
        assert_eq!(house.windows.losses().poisoned, 0);
        rustix::io::pwrite(&file, b"there", 4096).unwrap();
        let pin = pin_at(&mut house, 4096).unwrap();
        assert_eq!(pin.slices().next().unwrap().read(0), Some(*b"there"));
        drop(pin);
    }
}

#[test]
fn a_removal_that_has_failed_can_be_tried_again() {
    let mut house = House::impatient(2);
    let (mut front, pin) = with_pin(&mut house);
    let mut again = |house: &mut House| {
        front.send(&remove_dimm(), &[], true);
        let mut reply = None;
        house.pump_until(|_| {
            reply = front.receive();
            reply.is_some()
        });
        reply
    };
    for _ in 0..2 {
        assert_eq!(again(&mut house), ack(&remove_dimm(), 1));
    }
    drop(pin);
    assert_eq!(again(&mut house), ack(&remove_dimm(), 0));
    assert_eq!(house.session(1).ioas.areas().len(), 1);
    assert_eq!(again(&mut house), ack(&remove_dimm(), 1), "it is gone");
}

#[test]
fn rings_that_do_not_stop_in_time_are_an_error() {
    let mut house = House::impatient(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    front.start(&mut house, 0, 0);
    house.queues.hold_stops = true;
    front.send(&M::ResetDevice, &[], true);
    let mut reply = None;
    house.pump_until(|_| {
        reply = front.receive();
        reply.is_some()
    });
    assert_eq!(reply, ack(&M::ResetDevice, 1));
    assert_eq!(front.status(&mut house), NEEDS_RESET);
    // The ring comes back by itself, and starts only then.
    house.queues.take_notes();
    front.start(&mut house, 0, 0);
    assert!(house.queues.take_notes().is_empty());
    house.release_stops();
    assert!(house.queues.is_running(1, 0));
}

#[test]
fn the_end_of_the_connection_is_noticed_during_a_barrier() {
    let mut house = House::new(2);
    let (mut front, pin) = with_pin(&mut house);
    assert_eq!(front.ask_with(&mut house, &remove_dimm(), &[]), None);
    front.send(&M::GetStatus, &[], true);
    drop(front);
    house.pump();
    assert!(matches!(house.ended.get(&1), Some(SessionError::Closed)));
    assert!(house.queues.running.is_empty(), "its rings stop at once");
    assert!(!house.session(1).is_closed(), "the pin is still out");
    // The next front-end need not wait for that.
    let mut next = house.connect();
    let _file = next.settle(&mut house);
    next.start(&mut house, 0, 0);
    assert!(house.queues.is_running(2, 0));
    drop(pin);
    house.pump();
    assert_eq!(house.sessions.len(), 1);
}

#[test]
fn the_end_of_the_connection_is_noticed_while_a_ring_stops() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    front.start(&mut house, 0, 0);
    house.queues.hold_stops = true;
    assert_eq!(front.ask_with(&mut house, &M::GetVringBase(state(0, 0)), &[]), None);
    let cancelled = Note::Cancel { conn: 1, index: 0 };
    assert!(!house.queues.notes.contains(&cancelled), "its requests are to be finished");
    drop(front);
    house.pump();
    assert!(house.ended.contains_key(&1));
    assert!(house.queues.notes.contains(&cancelled), "nobody waits for them any more");
    assert_eq!(house.sessions.len(), 1);
    house.release_stops();
    assert!(house.sessions.is_empty());
    assert_eq!(house.windows.live(), 0);
}

#[test]
fn without_reply_ack_nothing_is_answered_but_the_order_is_kept() {
    let mut house = House::new(2);
    let (mut front, pin) = with_pin(&mut house);
    front.tell(&mut house, M::SetProtocolFeatures(P::CONFIGURE_MEM_SLOTS | P::STATUS));
    assert_eq!(front.ask_with(&mut house, &remove_dimm(), &[]), None);
    front.send(&M::GetStatus, &[], false);
    house.pump();
    assert_eq!(front.receive(), None);
    drop(pin);
    house.pump();
    assert_eq!(front.receive(), Some(R::GetStatus(0)), "only what has a reply of its own");
}
