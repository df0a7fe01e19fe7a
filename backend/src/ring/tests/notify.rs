//! Kicks and calls: who wants to be told of what, at every index.

use std::ops::ControlFlow;

use proptest::prelude::*;

use super::guest::{Guest, Ring};
use crate::ring::{Ring as Device, RingSetup};
use mdev_protocol::virtio::split::needs_event;

const DATA: u64 = 0x8000;

/// A ring of eight at `start` with what was negotiated.
fn started(start: u16, event_idx: bool) -> (Guest, Ring, Device) {
    let guest = Guest::new(1 << 16);
    let ring = Ring::new(&guest, 0, 8, start);
    let device = Device::new(RingSetup { event_idx, ..ring.setup(&guest) }).unwrap();
    (guest, ring, device)
}

/// Gives one chain, has it used, and says whether the driver is called.
fn used_one(guest: &Guest, ring: &mut Ring, device: &mut Device) -> bool {
    ring.give(guest, 0, DATA, 1, 0);
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst).unwrap();
    assert_eq!(vring.take(1, |_| Ok(())), Ok(1));
    vring.complete(0, 0).unwrap();
    vring.publish().unwrap()
}

fn arm(guest: &Guest, device: &mut Device) -> bool {
    let mut lane = guest.lane();
    let burst = lane.enter();
    device.begin(&burst).unwrap().arm().unwrap()
}

fn disarm(guest: &Guest, device: &mut Device) {
    let mut lane = guest.lane();
    let burst = lane.enter();
    device.begin(&burst).unwrap().disarm().unwrap();
}

#[test]
fn driver_that_wants_no_interrupt_is_not_called() {
    let (guest, mut ring, mut device) = started(0, false);
    assert!(used_one(&guest, &mut ring, &mut device));
    guest.set_word(ring.avail, 1);
    assert!(!used_one(&guest, &mut ring, &mut device));
    guest.set_word(ring.avail, 0);
    assert!(used_one(&guest, &mut ring, &mut device));
}

#[test]
fn burst_that_used_nothing_calls_nobody() {
    let (guest, _, mut device) = started(0, false);
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst).unwrap();
    assert_eq!(vring.take(8, |_| Ok(())), Ok(0));
    assert_eq!(vring.publish(), Ok(false));
}

#[test]
fn driver_is_called_only_when_its_event_is_passed() {
    for start in [0, 65534] {
        let (guest, mut ring, mut device) = started(start, true);
        let event = ring.avail + 4 + 2 * 8;
        guest.set_word(event, start.wrapping_add(3));
        assert!(used_one(&guest, &mut ring, &mut device), "nobody knows yet what the driver has seen");
        let calls: Vec<bool> = (0..5).map(|_| used_one(&guest, &mut ring, &mut device)).collect();
        assert_eq!(calls, [false, false, true, false, false], "start {start}");
    }
}

#[test]
fn armed_ring_asks_for_kicks_and_disarmed_does_not() {
    let (guest, ring, mut device) = started(0, false);
    disarm(&guest, &mut device);
    assert_eq!(guest.word(ring.used), 1);
    assert!(!arm(&guest, &mut device));
    assert_eq!(guest.word(ring.used), 0);
}

#[test]
fn arming_names_the_next_index_and_sees_what_came_meanwhile() {
    let (guest, mut ring, mut device) = started(65535, true);
    assert!(!arm(&guest, &mut device));
    let event = ring.used + 4 + 8 * 8;
    assert_eq!(guest.word(event), 65535);
    assert!(used_one(&guest, &mut ring, &mut device));
    assert!(!arm(&guest, &mut device));
    assert_eq!(guest.word(event), 0);
    ring.give(&guest, 0, DATA, 1, 0);
    assert!(arm(&guest, &mut device), "a chain came before the event was out");
}

proptest! {
    #[test]
    fn need_event_is_whether_a_step_passes_the_event(event: u16, old: u16, steps in 0u16..600) {
        // Step by step, as one would explain it: the event is passed by the step that leaves it behind.
        let mut at = old;
        let walked = (0..steps).try_for_each(|_| {
            let here = at;
            at = at.wrapping_add(1);
            if here == event { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        prop_assert_eq!(needs_event(event, old.wrapping_add(steps), old), walked.is_break());
    }

    #[test]
    fn events_near_the_index_are_found_too(distance in -8i32..8, old: u16, steps in 0u16..8) {
        let event = old.wrapping_add(distance as u16);
        let passed = (0..i32::from(steps)).any(|step| step == distance);
        prop_assert_eq!(needs_event(event, old.wrapping_add(steps), old), passed);
    }
}
