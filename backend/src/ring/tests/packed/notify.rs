//! Kicks and calls of a packed ring: who wants to be told of what, at every position.

use mdev_protocol::virtio::packed::Position;

use super::super::guest::Guest;
use super::guest::PackedRing;
use super::naive::{DATA, MEMORY};
use crate::ring::{Ring, RingSetup};

const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const DESC: u16 = 2;

fn started(size: u16, start: Position, event_idx: bool) -> (Guest, PackedRing, Ring) {
    let guest = Guest::new(MEMORY);
    let ring = PackedRing::new(&guest, 0, size, start);
    let device = Ring::new(RingSetup { event_idx, ..ring.setup(&guest) }).unwrap();
    (guest, ring, device)
}

/// What the driver wants to hear of.
fn wish(guest: &Guest, ring: &PackedRing, at: Position, flags: u16) {
    guest.set_word(ring.driver, at.word());
    guest.set_word(ring.driver + 2, flags);
}

/// Gives a chain of so many buffers, has it used, and says whether the driver is called.
fn used_one(guest: &Guest, ring: &mut PackedRing, device: &mut Ring, slots: usize) -> bool {
    ring.offer(guest, 0, &vec![(DATA, 1, 0); slots]);
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst).unwrap();
    assert_eq!(vring.take(1, |_| Ok(())), Ok(1));
    vring.complete(0, 0).unwrap();
    vring.publish().unwrap()
}

#[test]
fn driver_is_called_as_its_flags_say() {
    for event_idx in [false, true] {
        let (guest, mut ring, mut device) = started(5, Position::START, event_idx);
        for (flags, called) in [(ENABLE, true), (DISABLE, false), (3, true), (ENABLE, true)] {
            wish(&guest, &ring, Position::START, flags);
            assert_eq!(used_one(&guest, &mut ring, &mut device, 1), called, "flags {flags}");
        }
    }
}

#[test]
fn event_position_without_its_feature_is_a_call_for_everything() {
    let (guest, mut ring, mut device) = started(5, Position::START, false);
    wish(&guest, &ring, Position { slot: 4, wrap: true }, DESC);
    assert!(used_one(&guest, &mut ring, &mut device, 1));
    assert!(used_one(&guest, &mut ring, &mut device, 1));
}

#[test]
fn driver_is_called_only_when_its_position_is_passed() {
    const SIZE: u16 = 5;
    for slots in 1..=3u16 {
        for turn in 0..2 * SIZE {
            let start = Position::START.advance(turn % SIZE, SIZE).advance(turn / SIZE * SIZE, SIZE);
            let (guest, mut ring, mut device) = started(SIZE, start, true);
            let mut at = start.advance(slots, SIZE);
            wish(&guest, &ring, at.advance(3, SIZE), DESC);
            assert!(
                used_one(&guest, &mut ring, &mut device, slots.into()),
                "nobody knows yet what it has seen"
            );
            let mut ahead = 3i32;
            while ahead > -2 {
                let called = used_one(&guest, &mut ring, &mut device, slots.into());
                assert_eq!(called, (0..i32::from(slots)).contains(&ahead), "{slots} slots at {at:?}");
                at = at.advance(slots, SIZE);
                ahead -= i32::from(slots);
            }
        }
    }
}

#[test]
fn armed_packed_ring_asks_for_kicks_and_disarmed_does_not() {
    let (guest, mut ring, mut device) = started(5, Position { slot: 4, wrap: false }, false);
    let mut lane = guest.lane();
    {
        let burst = lane.enter();
        device.begin(&burst).unwrap().disarm().unwrap();
        assert_eq!(guest.word(ring.device + 2), DISABLE);
        assert_eq!(device.begin(&burst).unwrap().arm(), Ok(false));
        assert_eq!(guest.word(ring.device + 2), ENABLE);
    }
    ring.offer(&guest, 0, &[(DATA, 1, 0)]);
    let burst = lane.enter();
    assert_eq!(device.begin(&burst).unwrap().arm(), Ok(true), "a chain came before the wish was out");
}

#[test]
fn arming_names_the_next_position_in_both_laps() {
    let (guest, mut ring, mut device) = started(3, Position { slot: 2, wrap: true }, true);
    for at in [0x8002, 0x0000, 0x0001, 0x0002, 0x8000] {
        {
            let mut lane = guest.lane();
            let burst = lane.enter();
            assert_eq!(device.begin(&burst).unwrap().arm(), Ok(false));
        }
        assert_eq!((guest.word(ring.device), guest.word(ring.device + 2)), (at, DESC));
        used_one(&guest, &mut ring, &mut device, 1);
    }
}
