//! Chains that no driver should make.

use mdev_dma::Iova;
use mdev_pin::ResolveError;
use mdev_tests::stage::{Guest, GuestOptions};
use mdevd::ring::{Direction, RingError};
use mdevd::worker::Mode;

use super::latched::{Attacks, NEXT, RX, SIZE, TX, WRITE, desc, offer, offer_head, scratch, send_one};

#[test]
fn loops_are_found_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let looping = RingError::Loop { size: SIZE };
    attacks.on(
        "a descriptor that continues at itself",
        |guest| {
            let at = scratch(guest, 4096);
            offer(&guest.port.tx, &[desc(at, 16, NEXT, 0)]);
        },
        TX,
        looping,
    );
    attacks.on(
        "two descriptors that continue at each other",
        |guest| {
            let at = scratch(guest, 4096);
            offer(&guest.port.tx, &[desc(at, 16, NEXT, 1), desc(at, 16, NEXT, 0)]);
        },
        TX,
        looping,
    );
    attacks.on(
        "a circle through the whole table",
        |guest| {
            let at = scratch(guest, 4096);
            let circle: Vec<_> = (0..SIZE).map(|place| desc(at, 1, NEXT, (place + 1) % SIZE)).collect();
            offer(&guest.port.tx, &circle);
        },
        TX,
        looping,
    );
    let large = GuestOptions { size: 2048, ..Default::default() };
    attacks.with(
        "a circle in a table longer than any chain may be",
        large,
        |guest| {
            let at = scratch(guest, 4096);
            offer(&guest.port.tx, &[desc(at, 1, NEXT, 1), desc(at, 1, NEXT, 0)]);
        },
        TX,
        RingError::TooLong,
    );
    attacks.on("a circle of receive buffers", circle_of_receive_buffers, RX, looping);
    attacks.end();
}

/// The device looks at a receive chain when a frame comes for it: all that it has are made to loop.
fn circle_of_receive_buffers(guest: &mut Guest) {
    let at = scratch(guest, 4096);
    for place in 0..SIZE {
        guest.port.rx.raw().set_desc(place, desc(at, 64, NEXT | WRITE, place));
    }
    send_one(guest);
}

#[test]
fn indices_out_of_range_are_named_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Event);
    for head in [SIZE, SIZE + 1, u16::MAX] {
        let expected = RingError::HeadOutOfRange { head, size: SIZE };
        attacks.on("a head behind the table", |guest| offer_head(&guest.port.tx, head), TX, expected);
    }
    for next in [SIZE, u16::MAX] {
        attacks.on(
            "a chain that continues behind the table",
            |guest| {
                let at = scratch(guest, 4096);
                offer(&guest.port.tx, &[desc(at, 64, NEXT, 1), desc(at, 64, NEXT, next)]);
            },
            TX,
            RingError::NextOutOfRange { next, size: SIZE },
        );
    }
    attacks.on(
        "a receive head behind the table",
        |guest| {
            // All its entries, since the device may be at any of them.
            (0..SIZE).for_each(|slot| guest.port.rx.raw().set_avail_entry(slot, SIZE));
            send_one(guest);
        },
        RX,
        RingError::HeadOutOfRange { head: SIZE, size: SIZE },
    );
    attacks.end();
}

#[test]
fn available_indices_that_jump_are_named_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    // Twenty frames were exchanged: the device stands at 20.
    let jump = |index| RingError::AvailJump { next: 20, index, size: SIZE };
    for index in [20 + SIZE + 1, 20 + 0x8000, 19, 0] {
        attacks.on(
            "an index more than the ring ahead, or behind",
            |guest| guest.port.tx.raw().set_avail_index(index),
            TX,
            jump(index),
        );
    }
    attacks.end();
}

#[test]
fn addresses_and_lengths_that_wrap_are_named_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let wraps = RingError::Memory(ResolveError::Overflow);
    let last = Iova(u64::MAX - 63);
    attacks.on("a frame across the end", |guest| offer(&guest.port.tx, &[desc(last, 100, 0, 0)]), TX, wraps);
    attacks.on(
        "the second buffer of a frame across the end",
        |guest| {
            let at = scratch(guest, 4096);
            offer(&guest.port.tx, &[desc(at, 64, NEXT, 1), desc(last, 65, 0, 0)]);
        },
        TX,
        wraps,
    );
    attacks.on(
        "a receive buffer across the end",
        |guest| {
            (0..SIZE).for_each(|place| guest.port.rx.raw().set_desc(place, desc(last, 2048, WRITE, 0)));
            send_one(guest);
        },
        RX,
        wraps,
    );
    attacks.on(
        "lengths that add up to 4 GiB",
        |guest| {
            let at = scratch(guest, 4096);
            offer(&guest.port.tx, &[desc(at, u32::MAX, NEXT, 1), desc(at, 1, 0, 0)]);
        },
        TX,
        RingError::LengthOverflow,
    );
    attacks.end();
}

#[test]
fn addresses_outside_of_memory_park_for_a_second_and_are_named_then() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let hole = RingError::Memory(ResolveError::Hole);
    attacks.on(
        "a frame that begins where no memory is",
        |guest| offer(&guest.port.tx, &[desc(Iova(0), 100, 0, 0)]),
        TX,
        hole,
    );
    attacks.on(
        "a frame that ends where no memory is",
        |guest| {
            let last = guest.memory.regions()[0].range.last();
            offer(&guest.port.tx, &[desc(Iova(last.0 - 63), 100, 0, 0)]);
        },
        TX,
        hole,
    );
    attacks.end();
}

#[test]
fn buffers_without_length_or_in_the_wrong_order_are_named_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let zero = RingError::ZeroLength;
    attacks.on(
        "a buffer of no bytes",
        |guest| {
            let at = scratch(guest, 4096);
            offer(&guest.port.tx, &[desc(at, 0, 0, 0)]);
        },
        TX,
        zero,
    );
    attacks.on(
        "a buffer of no bytes at the end of a chain",
        |guest| {
            let at = scratch(guest, 4096);
            offer(&guest.port.tx, &[desc(at, 100, NEXT, 1), desc(at, 0, 0, 0)]);
        },
        TX,
        zero,
    );
    attacks.on(
        "a receive buffer of no bytes",
        |guest| {
            let at = scratch(guest, 4096);
            (0..SIZE).for_each(|place| guest.port.rx.raw().set_desc(place, desc(at, 0, WRITE, 0)));
            send_one(guest);
        },
        RX,
        zero,
    );
    attacks.on(
        "a buffer to read behind one to write",
        |guest| {
            let at = scratch(guest, 4096);
            offer(&guest.port.tx, &[desc(at, 64, NEXT | WRITE, 1), desc(at, 64, 0, 0)]);
        },
        TX,
        RingError::ReadAfterWrite,
    );
    attacks.on(
        "a frame in a buffer to write",
        |guest| {
            let at = scratch(guest, 4096);
            offer(&guest.port.tx, &[desc(at, 100, WRITE, 0)]);
        },
        TX,
        RingError::WrongDirection(Direction::Read),
    );
    attacks.on(
        "a receive buffer to read",
        |guest| {
            let at = scratch(guest, 4096);
            (0..SIZE).for_each(|place| guest.port.rx.raw().set_desc(place, desc(at, 2048, 0, 0)));
            send_one(guest);
        },
        RX,
        RingError::WrongDirection(Direction::Write),
    );
    attacks.end();
}
