//! Every way a ring can be malformed ends in an error with its name.

use mdev_dma::Iova;
use mdev_pin::ResolveError;

use super::guest::{BASE, Guest, INDIRECT, NEXT, Ring, WRITE, descriptor};
use crate::ring::{MAX_CHAIN, Part, Ring as Device, RingAddr, RingError};

const MEMORY: u64 = 1 << 20;
const TABLE: u64 = 0x4_0000;
const DATA: u64 = 0x8_0000;

/// A ring of eight, not started.
fn ring_of_eight() -> (Guest, Ring) {
    let guest = Guest::new(MEMORY);
    let ring = Ring::new(&guest, 0, 8, 0);
    (guest, ring)
}

/// What the device says to what is in the ring.
fn take(guest: &Guest, device: &mut Device) -> Result<usize, RingError> {
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst)?;
    vring.take(32, |_| Ok(()))
}

/// Offers the chain at descriptor 0 and says what the device thinks of it.
fn verdict(guest: &Guest, ring: &mut Ring) -> RingError {
    ring.offer(guest, 0);
    ring.publish(guest);
    let mut device = ring.device(guest);
    let error = take(guest, &mut device).unwrap_err();
    assert_eq!(device.state().next_avail, 0, "nothing was taken");
    error
}

/// An indirect table of (length, flags, next), named by descriptor 0.
fn indirect(guest: &Guest, ring: &Ring, entries: &[(u32, u16, u16)]) {
    for (index, &(len, flags, next)) in entries.iter().enumerate() {
        guest.write(TABLE + 16 * index as u64, &descriptor(BASE + DATA, len, flags, next));
    }
    ring.describe(guest, 0, TABLE, 16 * entries.len() as u32, INDIRECT, 0);
}

#[test]
fn sizes_that_are_no_power_of_two_are_refused() {
    let (guest, ring) = ring_of_eight();
    for size in [0u16, 3, 100, 255, 32769, 65535] {
        let error = Device::new(crate::ring::RingSetup { size, ..ring.setup(&guest) }).err();
        assert_eq!(error, Some(RingError::BadSize(size.into())));
    }
}

#[test]
fn misaligned_parts_are_refused_by_name() {
    let (guest, ring) = ring_of_eight();
    for (moved, part) in [
        (Ring { desc: ring.desc + 8, ..ring }, Part::Descriptors),
        (Ring { avail: ring.avail + 1, ..ring }, Part::Available),
        (Ring { used: ring.used + 2, ..ring }, Part::Used),
    ] {
        assert_eq!(take(&guest, &mut moved.device(&guest)), Err(RingError::Misaligned(part)));
    }
}

#[test]
fn overlapping_parts_are_refused_by_name() {
    let (guest, ring) = ring_of_eight();
    for (moved, one, other) in [
        (Ring { avail: ring.desc + 126, ..ring }, Part::Descriptors, Part::Available),
        (Ring { used: ring.desc, ..ring }, Part::Descriptors, Part::Used),
        (Ring { used: ring.avail + 16, ..ring }, Part::Available, Part::Used),
    ] {
        assert_eq!(take(&guest, &mut moved.device(&guest)), Err(RingError::Overlap(one, other)));
    }
}

#[test]
fn parts_outside_the_memory_are_holes() {
    let (guest, ring) = ring_of_eight();
    for moved in
        [Ring { desc: MEMORY, ..ring }, Ring { avail: MEMORY, ..ring }, Ring { used: 1 << 62, ..ring }]
    {
        let error = take(&guest, &mut moved.device(&guest)).unwrap_err();
        assert_eq!(error, RingError::Memory(ResolveError::Hole));
        assert!(error.is_transient());
    }
    let crossing = Ring { used: MEMORY - 16, ..ring };
    let error = take(&guest, &mut crossing.device(&guest)).unwrap_err();
    assert_eq!(error, RingError::Memory(ResolveError::Split), "it begins in memory and ends outside");
}

#[test]
fn parts_by_device_address_that_wrap_or_are_outside_are_refused() {
    let (guest, ring) = ring_of_eight();
    let at = |iova| {
        let mut setup = ring.setup(&guest);
        setup.used = RingAddr::Iova(Iova(iova));
        take(&guest, &mut Device::new(setup).unwrap())
    };
    assert_eq!(at(BASE + ring.used), Ok(0));
    assert_eq!(at(u64::MAX - 3), Err(RingError::Memory(ResolveError::Overflow)));
    assert_eq!(at(BASE + MEMORY), Err(RingError::Memory(ResolveError::Hole)));
    assert_eq!(at(BASE + MEMORY - 4), Err(RingError::Memory(ResolveError::Hole)));
}

#[test]
fn available_index_that_jumps_is_not_an_empty_or_a_full_ring() {
    let (guest, mut ring) = ring_of_eight();
    for index in [9, 0x8000, 0xffff] {
        guest.set_word(ring.avail + 2, index);
        let error = take(&guest, &mut ring.device(&guest)).unwrap_err();
        assert_eq!(error, RingError::AvailJump { next: 0, index, size: 8 });
        assert!(!error.is_transient());
    }
    guest.set_word(ring.avail + 2, 0);
    assert_eq!(take(&guest, &mut ring.device(&guest)), Ok(0));
    for _ in 0..8 {
        ring.give(&guest, 0, DATA, 1, 0);
    }
    assert_eq!(take(&guest, &mut ring.device(&guest)), Ok(8));
}

#[test]
fn heads_and_nexts_out_of_range_are_named() {
    let (guest, mut ring) = ring_of_eight();
    ring.offer(&guest, 8);
    ring.publish(&guest);
    let error = take(&guest, &mut ring.device(&guest));
    assert_eq!(error, Err(RingError::HeadOutOfRange { head: 8, size: 8 }));

    let (guest, mut ring) = ring_of_eight();
    ring.describe(&guest, 0, DATA, 1, NEXT, 0xffff);
    assert_eq!(verdict(&guest, &mut ring), RingError::NextOutOfRange { next: 0xffff, size: 8 });

    let (guest, mut ring) = ring_of_eight();
    indirect(&guest, &ring, &[(1, NEXT, 2), (1, 0, 0)]);
    assert_eq!(verdict(&guest, &mut ring), RingError::NextOutOfRange { next: 2, size: 2 });
}

#[test]
fn loops_end() {
    let (guest, mut ring) = ring_of_eight();
    ring.describe(&guest, 0, DATA, 1, NEXT, 0);
    assert_eq!(verdict(&guest, &mut ring), RingError::Loop { size: 8 });

    let (guest, mut ring) = ring_of_eight();
    ring.describe(&guest, 0, DATA, 1, NEXT, 5);
    ring.describe(&guest, 5, DATA, 1, NEXT, 3);
    ring.describe(&guest, 3, DATA, 1, NEXT, 5);
    assert_eq!(verdict(&guest, &mut ring), RingError::Loop { size: 8 });

    let (guest, mut ring) = ring_of_eight();
    indirect(&guest, &ring, &[(1, NEXT, 1), (1, NEXT, 0)]);
    assert_eq!(verdict(&guest, &mut ring), RingError::Loop { size: 2 });
}

#[test]
fn the_longest_legal_chain_is_served_and_one_more_is_not() {
    let guest = Guest::new(MEMORY);
    for (buffers, outcome) in [(MAX_CHAIN as u16, Ok(1)), (MAX_CHAIN as u16 + 1, Err(RingError::TooLong))] {
        let mut ring = Ring::new(&guest, 0, 2048, 0);
        for index in 0..buffers {
            let flags = if index + 1 < buffers { NEXT } else { 0 };
            ring.describe(&guest, index, DATA, 1, flags, index + 1);
        }
        ring.offer(&guest, 0);
        ring.publish(&guest);
        assert_eq!(take(&guest, &mut ring.device(&guest)), outcome);
    }
}

#[test]
fn indirect_tables_of_odd_size_are_named() {
    for len in [0, 8, 17, 16 * MAX_CHAIN as u32 + 16, u32::MAX - 15] {
        let (guest, mut ring) = ring_of_eight();
        ring.describe(&guest, 0, TABLE, len, INDIRECT, 0);
        assert_eq!(verdict(&guest, &mut ring), RingError::IndirectSize { len });
    }
}

#[test]
fn indirect_descriptors_where_none_may_be_are_named() {
    let (guest, mut ring) = ring_of_eight();
    indirect(&guest, &ring, &[(1, NEXT, 1), (16, INDIRECT, 0)]);
    assert_eq!(verdict(&guest, &mut ring), RingError::IndirectNested);

    let (guest, mut ring) = ring_of_eight();
    ring.describe(&guest, 0, TABLE, 16, INDIRECT | NEXT, 1);
    assert_eq!(verdict(&guest, &mut ring), RingError::IndirectAndNext);

    let (guest, mut ring) = ring_of_eight();
    indirect(&guest, &ring, &[(1, 0, 0)]);
    ring.offer(&guest, 0);
    ring.publish(&guest);
    let setup = crate::ring::RingSetup { indirect: false, ..ring.setup(&guest) };
    assert_eq!(take(&guest, &mut Device::new(setup).unwrap()), Err(RingError::IndirectRefused));
}

#[test]
fn indirect_tables_outside_the_memory_are_memory_errors() {
    for (at, error) in [
        (MEMORY, ResolveError::Hole),
        (MEMORY - 16, ResolveError::Hole),
        (0u64.wrapping_sub(BASE + 16), ResolveError::Overflow),
    ] {
        let (guest, mut ring) = ring_of_eight();
        let place = ring.desc;
        guest.write(place, &descriptor(BASE.wrapping_add(at), 32, INDIRECT, 0));
        assert_eq!(verdict(&guest, &mut ring), RingError::Memory(error), "{at:#x}");
    }
}

#[test]
fn readable_after_writable_is_named() {
    let (guest, mut ring) = ring_of_eight();
    ring.describe(&guest, 0, DATA, 1, WRITE | NEXT, 1);
    ring.describe(&guest, 1, DATA, 1, 0, 0);
    assert_eq!(verdict(&guest, &mut ring), RingError::ReadAfterWrite);

    let (guest, mut ring) = ring_of_eight();
    ring.describe(&guest, 1, TABLE, 16, INDIRECT, 0);
    guest.write(TABLE, &descriptor(BASE + DATA, 1, 0, 0));
    ring.describe(&guest, 0, DATA, 1, WRITE | NEXT, 1);
    assert_eq!(verdict(&guest, &mut ring), RingError::ReadAfterWrite, "across the border of a table too");
}

#[test]
fn buffers_without_bytes_are_named() {
    for (first, second) in [(0, 1), (1, 0)] {
        let (guest, mut ring) = ring_of_eight();
        ring.describe(&guest, 0, DATA, first, NEXT, 1);
        ring.describe(&guest, 1, DATA, second, 0, 0);
        assert_eq!(verdict(&guest, &mut ring), RingError::ZeroLength);
    }
    let (guest, mut ring) = ring_of_eight();
    ring.describe(&guest, 0, DATA, 0, WRITE, 0);
    assert_eq!(verdict(&guest, &mut ring), RingError::ZeroLength);
}

#[test]
fn lengths_that_add_up_to_four_gibibytes_are_named() {
    let (guest, mut ring) = ring_of_eight();
    ring.describe(&guest, 0, DATA, u32::MAX, NEXT, 1);
    ring.describe(&guest, 1, DATA, 1, 0, 0);
    assert_eq!(verdict(&guest, &mut ring), RingError::LengthOverflow);
}

#[test]
fn malformed_chain_behind_good_ones_is_reported_when_its_turn_comes() {
    let (guest, mut ring) = ring_of_eight();
    ring.describe(&guest, 0, DATA, 1, 0, 0);
    ring.describe(&guest, 1, DATA, 0, 0, 0);
    for head in [0, 0, 1, 0] {
        ring.offer(&guest, head);
    }
    ring.publish(&guest);
    let mut device = ring.device(&guest);
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst).unwrap();
    assert_eq!(vring.take(32, |_| Ok(())), Ok(2));
    assert_eq!(vring.take(32, |_| Ok(())), Err(RingError::ZeroLength));
    vring.complete_all().unwrap();
    vring.publish().unwrap();
    assert_eq!(device.state().next_avail, 2);
    assert_eq!(ring.used_index(&guest), 2);
    assert_eq!(take(&guest, &mut device), Err(RingError::ZeroLength));
}
