//! Rings that change while the device reads them.

use std::sync::atomic::Ordering;

use mdev_dma::{GuestSlice, Iova};
use mdev_tests::random::Random;
use mdev_tests::stage::{Busy, Guest, GuestOptions, await_that};
use mdevd::worker::Mode;

use super::latched::{ATTACKED, Attacks, INDIRECT, NEXT, RX, SIZE, TX, WRITE};

/// Offsets of a descriptor's fields.
const LEN: usize = 8;
const FLAGS: usize = 12;
const NEXT_FIELD: usize = 14;

/// The descriptor table of one of the guest's rings.
fn table(guest: &Guest, ring: u16) -> Iova {
    let queue = if ring == RX { &guest.port.rx } else { &guest.port.tx };
    queue.addresses().desc
}

/// Changes a random descriptor of the table, until the victim has received so many frames more or the guest's device has failed.
fn race(
    attacks: &Attacks,
    conn: u64,
    (busy, table): (&Busy<'_>, Iova),
    random: &mut Random,
    mut change: impl FnMut(&mut Random, &GuestSlice<'_>),
) {
    let table = busy.memory.slice(table, 16 * u64::from(SIZE)).expect("it is in memory");
    let (end, enough) = (attacks.victim.passed() + 200, busy.received() + 200);
    await_that("frames, or an error", || {
        for _ in 0..64 {
            let place = random.below(SIZE.into()) as usize;
            change(random, &table.subslice(16 * place, 16).expect("it is in the table"));
        }
        let passed = attacks.victim.passed() >= end && busy.received() >= enough;
        passed || attacks.stage.has_failed(conn)
    });
}

#[test]
fn lengths_that_change_while_they_are_read_break_no_rule_and_nothing_else() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut random = Random::seeded("lengths that change");
    for ring in [RX, TX] {
        let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
        let (conn, table) = (guest.conn, table(&guest, ring));
        guest.churn(|busy| {
            race(&attacks, conn, (busy, table), &mut random, |random, desc| {
                // Any length is legal, be it too short for a frame or longer than any.
                let len: u32 = *random.of(&[1, 11, 12, 13, 25, 26, 60, 64, 2048, 2048, 2048, 1 << 17]);
                let _ = desc.store_u32(LEN, len, Ordering::Relaxed);
            });
        });
        assert!(!attacks.stage.has_failed(conn), "{:?}", attacks.stage.failure(conn));
        attacks.victim.must_go_on(50);
        guest.start_anew();
        guest.exchange(50);
        attacks.leave("lengths that change", guest);
    }
    attacks.end();
}

#[test]
fn descriptors_that_change_while_they_are_read_hurt_their_own_guest_only() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut random = Random::seeded("descriptors that change");
    let mut failed = 0;
    for round in 0..40 {
        let ring = if round % 2 == 0 { RX } else { TX };
        let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
        let (conn, table) = (guest.conn, table(&guest, ring));
        guest.churn(|busy| {
            race(&attacks, conn, (busy, table), &mut random, |random, desc| {
                let flags = *random.of(&[0, 0, 0, WRITE, WRITE, WRITE, NEXT, NEXT | WRITE, INDIRECT, 0xffff]);
                let _ = match random.below(16) {
                    0 => desc.store_u32(LEN, *random.of(&[0, u32::MAX, 16 * 1024, 17]), Ordering::Relaxed),
                    1 => desc.store_u64(0, *random.of(&[u64::MAX, u64::MAX - 63]), Ordering::Relaxed),
                    2..8 => desc.store_u16(FLAGS, flags, Ordering::Relaxed),
                    _ => desc.store_u16(NEXT_FIELD, random.below(200) as u16, Ordering::Relaxed),
                };
            });
        });
        while attacks.stage.has_failed(conn) {
            let _ = attacks.stage.failure(conn);
            failed += 1;
        }
        guest.start_anew();
        guest.exchange(20);
        attacks.leave("descriptors that change", guest);
    }
    assert!(failed > 10, "only {failed} of 40 rings met what was wrong with them");
    attacks.victim.must_go_on(50);
    attacks.end();
}

#[test]
fn available_rings_that_change_while_they_are_read_hurt_their_own_guest_only() {
    let attacks = Attacks::begin(Mode::Event);
    let mut random = Random::seeded("available rings that change");
    for ring in [RX, TX, RX, TX] {
        let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
        let queue = if ring == RX { &guest.port.rx } else { &guest.port.tx };
        let (conn, avail) = (guest.conn, queue.addresses().avail);
        guest.churn(|busy| {
            let entries = busy.memory.slice(avail, 4 + 2 * u64::from(SIZE)).expect("it is in memory");
            let end = attacks.victim.passed() + 200;
            await_that("frames of the victim", || {
                // The same chain twice, or in another order: within the rules of the ring, if not of the driver.
                for _ in 0..64 {
                    let slot = 4 + 2 * random.below(SIZE.into()) as usize;
                    let _ = entries.store_u16(slot, random.below(SIZE.into()) as u16, Ordering::Relaxed);
                }
                attacks.victim.passed() >= end || attacks.stage.has_failed(conn)
            });
        });
        assert!(!attacks.stage.has_failed(conn), "{:?}", attacks.stage.failure(conn));
        guest.start_anew();
        guest.exchange(20);
        attacks.leave("available rings that change", guest);
    }
    attacks.end();
}
