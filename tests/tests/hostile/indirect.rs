//! Indirect tables that no driver should make.

use mdev_dma::Iova;
use mdev_pin::ResolveError;
use mdev_protocol::virtio::split::Desc;
use mdev_tests::stage::{Guest, GuestOptions};
use mdevd::ring::RingError;
use mdevd::worker::Mode;

use super::latched::{Attacks, INDIRECT, NEXT, RX, SIZE, TX, WRITE, desc, offer, scratch, send_one};

/// A table of these descriptors, in the guest's memory.
fn table(guest: &mut Guest, descriptors: &[Desc]) -> Iova {
    let at = scratch(guest, 16 * descriptors.len() as u64);
    for (place, desc) in descriptors.iter().enumerate() {
        let slice = guest.memory.slice(Iova(at.0 + 16 * place as u64), 16).expect("it was allocated");
        slice.write(0, *desc).expect("it fits");
    }
    at
}

/// Sends the chain of this table, `len` bytes long by its descriptor.
fn send(guest: &mut Guest, descriptors: &[Desc], len: u32) {
    let at = table(guest, descriptors);
    offer(&guest.port.tx, &[desc(at, len, INDIRECT, 0)]);
}

/// A buffer to read somewhere in the guest's memory.
fn buffer(guest: &mut Guest, flags: u16, next: u16) -> Desc {
    desc(scratch(guest, 4096), 64, flags, next)
}

#[test]
fn tables_of_impossible_size_are_named_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    for len in [0, 1, 15, 17, 16 * 1024 + 16, u32::MAX, u32::MAX - 15] {
        attacks.on(
            "a table of no, half or too many descriptors",
            |guest| {
                let one = buffer(guest, 0, 0);
                send(guest, &[one, one], len);
            },
            TX,
            RingError::IndirectSize { len },
        );
    }
    attacks.on(
        "a receive table of half a descriptor",
        |guest| {
            let one = buffer(guest, WRITE, 0);
            let at = table(guest, &[one]);
            (0..SIZE).for_each(|place| guest.port.rx.raw().set_desc(place, desc(at, 8, INDIRECT, 0)));
            send_one(guest);
        },
        RX,
        RingError::IndirectSize { len: 8 },
    );
    attacks.end();
}

#[test]
fn tables_that_loop_nest_or_lead_astray_are_named_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Event);
    attacks.on(
        "a table whose chain runs in a circle",
        |guest| {
            let descriptors = [buffer(guest, NEXT, 1), buffer(guest, NEXT, 2), buffer(guest, NEXT, 0)];
            send(guest, &descriptors, 48);
        },
        TX,
        RingError::Loop { size: 3 },
    );
    for next in [2, u16::MAX] {
        attacks.on(
            "a table whose chain leaves it",
            |guest| {
                let descriptors = [buffer(guest, NEXT, next), buffer(guest, 0, 0)];
                send(guest, &descriptors, 32);
            },
            TX,
            RingError::NextOutOfRange { next, size: 2 },
        );
    }
    attacks.on(
        "a table in a table",
        |guest| {
            let inner = buffer(guest, 0, 0);
            let inner = desc(table(guest, &[inner]), 16, INDIRECT, 0);
            let first = buffer(guest, NEXT, 1);
            send(guest, &[first, inner], 32);
        },
        TX,
        RingError::IndirectNested,
    );
    attacks.on(
        "a table that is itself",
        |guest| {
            let at = scratch(guest, 16);
            let itself = desc(at, 16, INDIRECT, 0);
            guest.memory.slice(at, 16).and_then(|slice| slice.write(0, itself)).expect("it was allocated");
            offer(&guest.port.tx, &[itself]);
        },
        TX,
        RingError::IndirectNested,
    );
    attacks.on(
        "a table and a descriptor behind it",
        |guest| {
            let (one, rest) = (buffer(guest, 0, 0), buffer(guest, 0, 0));
            let at = table(guest, &[one]);
            offer(&guest.port.tx, &[desc(at, 16, INDIRECT | NEXT, 1), rest]);
        },
        TX,
        RingError::IndirectAndNext,
    );
    attacks.on(
        "a buffer of no bytes in a table",
        |guest| {
            let descriptors = [buffer(guest, NEXT, 1), desc(Iova(1 << 20), 0, 0, 0)];
            send(guest, &descriptors, 32);
        },
        TX,
        RingError::ZeroLength,
    );
    attacks.end();
}

#[test]
fn tables_where_none_can_be_are_named_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let last = Iova(u64::MAX - 15);
    attacks.on(
        "a table across the end of the address space",
        |guest| offer(&guest.port.tx, &[desc(last, 32, INDIRECT, 0)]),
        TX,
        RingError::Memory(ResolveError::Overflow),
    );
    attacks.on(
        "a table that ends where no memory is",
        |guest| {
            let end = guest.memory.regions()[0].range.last();
            offer(&guest.port.tx, &[desc(Iova(end.0 - 15), 32, INDIRECT, 0)]);
        },
        TX,
        RingError::Memory(ResolveError::Hole),
    );
    let without = GuestOptions { indirect: false, ..Default::default() };
    attacks.with(
        "a table that was not negotiated",
        without,
        |guest| {
            let one = buffer(guest, 0, 0);
            send(guest, &[one], 16);
        },
        TX,
        RingError::IndirectRefused,
    );
    attacks.end();
}
