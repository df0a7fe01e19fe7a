//! Every way a packed ring can be malformed ends in an error with its name.

use mdev_pin::ResolveError;
use mdev_protocol::virtio::packed::{Position, used_flags};

use super::super::guest::{BASE, Guest, INDIRECT, NEXT, WRITE};
use super::guest::{PackedRing, entry};
use super::naive::{DATA, MEMORY, TABLES};
use crate::ring::{MAX_CHAIN, Part, QueueState, Ring, RingError, RingSetup};

fn ring_of(size: u16) -> (Guest, PackedRing) {
    let guest = Guest::new(MEMORY);
    let ring = PackedRing::fresh(&guest, size);
    (guest, ring)
}

fn take(guest: &Guest, device: &mut Ring) -> Result<usize, RingError> {
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst)?;
    vring.take(32, |_| Ok(()))
}

/// What the device thinks of the ring, of which it takes nothing.
fn verdict(guest: &Guest, ring: &PackedRing) -> RingError {
    let mut device = ring.ring(guest);
    let before = device.state();
    let error = take(guest, &mut device).unwrap_err();
    assert_eq!(device.state(), before, "nothing was taken");
    assert!(!error.is_transient() || matches!(error, RingError::Memory(_)));
    error
}

/// An indirect table of (length, flags), named by the next descriptor.
fn indirect(guest: &Guest, ring: &mut PackedRing, entries: &[(u32, u16)]) {
    for (index, &(len, flags)) in (0u64..).zip(entries) {
        guest.write(TABLES + 16 * index, &entry(BASE + DATA, len, 0, flags));
    }
    ring.offer(guest, 0, &[(TABLES, 16 * entries.len() as u32, INDIRECT)]);
}

#[test]
fn sizes_of_any_kind_up_to_the_largest_are_served_and_others_are_not() {
    let (guest, ring) = ring_of(8);
    for size in [1, 3, 100, 255, 32768] {
        assert!(Ring::new(RingSetup { size, ..ring.setup(&guest) }).is_ok());
    }
    for size in [0, 32769, 65535] {
        let error = Ring::new(RingSetup { size, ..ring.setup(&guest) }).err();
        assert_eq!(error, Some(RingError::BadPackedSize(size)));
    }
}

#[test]
fn positions_that_the_ring_does_not_have_are_named() {
    let (guest, ring) = ring_of(8);
    let start = |next_avail, next_used| {
        let state = QueueState { next_avail, next_used };
        Ring::new(RingSetup { state, ..ring.setup(&guest) }).map(|ring| ring.state())
    };
    assert_eq!(start(8, None), Err(RingError::BadPosition { slot: 8, size: 8 }));
    assert_eq!(start(0x8007, Some(0xffff)), Err(RingError::BadPosition { slot: 0x7fff, size: 8 }));
    // Used may not be ahead of available.
    assert_eq!(start(0x8003, Some(0x8004)), Err(RingError::BadPosition { slot: 4, size: 8 }));
    assert_eq!(start(0x8004, Some(0x0003)), Err(RingError::BadPosition { slot: 3, size: 8 }));
    let wrapped = QueueState { next_avail: 3, next_used: Some(0x8004) };
    assert_eq!(start(3, Some(0x8004)), Ok(wrapped));
    let alone = QueueState { next_avail: 3, next_used: Some(3) };
    assert_eq!(start(3, None), Ok(alone), "a front-end that knows one position only");
}

#[test]
fn misaligned_and_overlapping_parts_of_a_packed_ring_are_named() {
    let (guest, ring) = ring_of(8);
    for (moved, error) in [
        (
            PackedRing { desc: 8, driver: 0x1000, device: 0x1004, ..ring },
            RingError::Misaligned(Part::Descriptors),
        ),
        (
            PackedRing { driver: ring.driver + 2, device: 0x1000, ..ring },
            RingError::Misaligned(Part::DriverEvents),
        ),
        (PackedRing { device: ring.device + 1, ..ring }, RingError::Misaligned(Part::DeviceEvents)),
        (PackedRing { driver: 124, ..ring }, RingError::Overlap(Part::Descriptors, Part::DriverEvents)),
        (PackedRing { device: 0, ..ring }, RingError::Overlap(Part::Descriptors, Part::DeviceEvents)),
        (
            PackedRing { device: ring.driver, ..ring },
            RingError::Overlap(Part::DriverEvents, Part::DeviceEvents),
        ),
        (PackedRing { driver: MEMORY, ..ring }, RingError::Memory(ResolveError::Hole)),
        (PackedRing { desc: MEMORY - 64, ..ring }, RingError::Memory(ResolveError::Split)),
    ] {
        assert_eq!(take(&guest, &mut moved.ring(&guest)), Err(error));
    }
}

#[test]
fn buffer_ids_out_of_range_or_in_flight_are_named() {
    let (guest, mut ring) = ring_of(8);
    ring.offer(&guest, 8, &[(DATA, 1, 0)]);
    assert_eq!(verdict(&guest, &ring), RingError::IdOutOfRange { id: 8, size: 8 });

    let (guest, mut ring) = ring_of(8);
    ring.offer(&guest, 0xffff, &[(DATA, 1, 0), (DATA, 1, WRITE)]);
    assert_eq!(verdict(&guest, &ring), RingError::IdOutOfRange { id: 0xffff, size: 8 });

    // In one burst, and over two.
    let (guest, mut ring) = ring_of(8);
    let mut device = ring.ring(&guest);
    ring.offer(&guest, 3, &[(DATA, 1, 0)]);
    ring.offer(&guest, 3, &[(DATA, 1, 0)]);
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst).unwrap();
    assert_eq!(vring.take(8, |_| Ok(())), Ok(1), "the good one first");
    assert_eq!(vring.take(8, |_| Ok(())), Err(RingError::IdInFlight { id: 3 }));
    vring.publish().unwrap();
    let mut vring = device.begin(&burst).unwrap();
    assert_eq!(vring.take(8, |_| Ok(())), Err(RingError::IdInFlight { id: 3 }));
    // When it has been used it may come again.
    vring.complete(3, 0).unwrap();
    vring.publish().unwrap();
    assert_eq!(device.begin(&burst).unwrap().take(8, |_| Ok(())), Ok(1));
}

#[test]
fn chain_is_used_once_however_often_it_is_completed() {
    let (guest, mut ring) = ring_of(8);
    let mut device = ring.ring(&guest);
    ring.offer(&guest, 3, &[(DATA, 1, 0), (DATA, 1, 0)]);
    let mut lane = guest.lane();
    let burst = lane.enter();
    for _ in 0..2 {
        let mut vring = device.begin(&burst).unwrap();
        vring.take(8, |_| Ok(())).unwrap();
        (0..3).for_each(|_| vring.complete(3, 0).unwrap());
        vring.complete(7, 1).unwrap();
        vring.publish().unwrap();
        assert_eq!(device.state().next_used, Some(0x8002));
    }
}

#[test]
fn chains_longer_than_the_ring_or_than_its_free_slots_are_named() {
    // Every descriptor continues, and the lap after it looks available too.
    let (guest, ring) = ring_of(4);
    for slot in 0..4 {
        ring.describe(&guest, Position { slot, wrap: true }, (DATA, 1, NEXT), 0);
    }
    assert_eq!(verdict(&guest, &ring), RingError::Overrun { size: 4 });

    // Two slots are in flight; the driver turns the flags of their descriptors over as if they were free.
    let (guest, mut ring) = ring_of(4);
    let mut device = ring.ring(&guest);
    ring.offer(&guest, 0, &[(DATA, 1, 0), (DATA, 1, 0)]);
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst).unwrap();
    assert_eq!(vring.take(1, |_| Ok(())), Ok(1));
    vring.publish().unwrap();
    ring.offer(&guest, 1, &[(DATA, 1, 0), (DATA, 1, 0), (DATA, 1, 0)]);
    let mut vring = device.begin(&burst).unwrap();
    assert_eq!(vring.take(1, |_| Ok(())), Err(RingError::Overrun { size: 4 }));
}

#[test]
fn ring_that_is_full_and_still_has_something_available_is_not_an_empty_one() {
    let (guest, mut ring) = ring_of(2);
    let mut device = ring.ring(&guest);
    (0..2).for_each(|id| ring.offer(&guest, id, &[(DATA, 1, 0)]));
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst).unwrap();
    assert_eq!(vring.take(8, |_| Ok(())), Ok(2));
    assert_eq!((vring.pending(), vring.take(8, |_| Ok(()))), (Ok(0), Ok(0)));
    vring.publish().unwrap();
    ring.offer(&guest, 0, &[(DATA, 1, 0)]);
    let mut vring = device.begin(&burst).unwrap();
    assert_eq!(vring.pending(), Err(RingError::Overrun { size: 2 }));
    assert_eq!(vring.take(8, |_| Ok(())), Err(RingError::Overrun { size: 2 }));
}

#[test]
fn chain_that_continues_where_nothing_is_available_is_named() {
    for (slot, flags) in [(1, used_flags(true)), (1, used_flags(false)), (1, 0x8000)] {
        let (guest, ring) = ring_of(4);
        ring.describe(&guest, Position::START, (DATA, 1, NEXT), 0);
        guest.write(ring.at(slot) + 8, &1u32.to_le_bytes());
        guest.set_word(ring.at(slot) + 14, flags);
        assert_eq!(verdict(&guest, &ring), RingError::Unfinished { slot });
    }
    // Across the end: the second half has flags of the first lap.
    let guest = Guest::new(MEMORY);
    let ring = PackedRing::new(&guest, 0, 4, Position { slot: 3, wrap: true });
    ring.describe(&guest, Position { slot: 3, wrap: true }, (DATA, 1, NEXT), 0);
    ring.describe(&guest, Position { slot: 0, wrap: true }, (DATA, 1, 0), 0);
    assert_eq!(verdict(&guest, &ring), RingError::Unfinished { slot: 0 });
}

#[test]
fn flags_that_turn_over_are_seen_at_most_once() {
    // Made available, taken back, made available: the device has it once or not at all.
    let (guest, mut ring) = ring_of(4);
    let mut device = ring.ring(&guest);
    ring.offer(&guest, 0, &[(DATA, 1, 0)]);
    guest.set_word(14, used_flags(false));
    assert_eq!(take(&guest, &mut device), Ok(0));
    ring.describe(&guest, Position::START, (DATA, 1, 0), 0);
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst).unwrap();
    assert_eq!(vring.take(8, |_| Ok(())), Ok(1));
    vring.complete_all().unwrap();
    vring.publish().unwrap();
    // A used descriptor that is turned into an available one lies behind the device.
    ring.describe(&guest, Position::START, (DATA, 1, 0), 0);
    assert_eq!(device.begin(&burst).unwrap().take(8, |_| Ok(())), Ok(0));
}

#[test]
fn indirect_descriptors_that_may_not_be_are_named() {
    let (guest, mut ring) = ring_of(8);
    indirect(&guest, &mut ring, &[(1, 0), (16, INDIRECT)]);
    assert_eq!(verdict(&guest, &ring), RingError::IndirectNested);

    let (guest, mut ring) = ring_of(8);
    ring.offer(&guest, 0, &[(TABLES, 16, INDIRECT), (DATA, 1, 0)]);
    assert_eq!(verdict(&guest, &ring), RingError::IndirectAndNext);

    let (guest, mut ring) = ring_of(8);
    ring.offer(&guest, 0, &[(DATA, 1, 0), (TABLES, 16, INDIRECT)]);
    assert_eq!(verdict(&guest, &ring), RingError::IndirectAndNext);

    let (guest, mut ring) = ring_of(8);
    indirect(&guest, &mut ring, &[(1, 0)]);
    let mut device = Ring::new(RingSetup { indirect: false, ..ring.setup(&guest) }).unwrap();
    assert_eq!(take(&guest, &mut device), Err(RingError::IndirectRefused));
}

#[test]
fn indirect_tables_of_odd_size_or_outside_the_memory_are_named() {
    for len in [0, 8, 17, 16 * MAX_CHAIN as u32 + 16, u32::MAX - 15] {
        let (guest, mut ring) = ring_of(8);
        ring.offer(&guest, 0, &[(TABLES, len, INDIRECT)]);
        assert_eq!(verdict(&guest, &ring), RingError::IndirectSize { len });
    }
    for (at, error) in [
        (MEMORY, ResolveError::Hole),
        (MEMORY - 16, ResolveError::Hole),
        (0u64.wrapping_sub(BASE + 16), ResolveError::Overflow),
    ] {
        let (guest, ring) = ring_of(8);
        guest.write(0, &entry(BASE.wrapping_add(at), 32, 0, INDIRECT | 0x80));
        assert_eq!(verdict(&guest, &ring), RingError::Memory(error), "{at:#x}");
    }
}

#[test]
fn buffers_in_the_wrong_order_or_of_no_or_too_much_length_are_named() {
    for (pieces, error) in [
        (vec![(DATA, 1, WRITE), (DATA, 1, 0)], RingError::ReadAfterWrite),
        (vec![(DATA, 0, 0)], RingError::ZeroLength),
        (vec![(DATA, 1, 0), (DATA, 0, WRITE)], RingError::ZeroLength),
        (vec![(DATA, u32::MAX, 0), (DATA, 1, 0)], RingError::LengthOverflow),
    ] {
        let (guest, mut ring) = ring_of(8);
        ring.offer(&guest, 0, &pieces);
        assert_eq!(verdict(&guest, &ring), error);
        let (guest, mut ring) = ring_of(8);
        indirect(&guest, &mut ring, &pieces.iter().map(|piece| (piece.1, piece.2)).collect::<Vec<_>>());
        assert_eq!(verdict(&guest, &ring), error, "in a table");
    }
}

#[test]
fn the_longest_legal_chain_of_a_packed_ring_is_served_and_one_more_is_not() {
    for (buffers, outcome) in [(MAX_CHAIN, Ok(1)), (MAX_CHAIN + 1, Err(RingError::TooLong))] {
        let (guest, mut ring) = ring_of(1500);
        ring.offer(&guest, 0, &vec![(DATA, 1, 0); buffers]);
        assert_eq!(take(&guest, &mut ring.ring(&guest)), outcome);
    }
}
