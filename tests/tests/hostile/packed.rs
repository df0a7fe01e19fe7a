//! Packed rings that no driver should make: each ends in an error with a name, told to this guest alone, and a ring that works when it is
//! started anew.

use std::sync::atomic::{AtomicBool, Ordering};

use mdev_dma::Iova;
use mdev_pin::ResolveError;
use mdev_protocol::virtio::packed::{Position, desc_len};
use mdev_tests::random::Random;
use mdev_tests::stage::PackedGuest;
use mdevd::ring::{Direction, RingError};
use mdevd::worker::Mode;

use super::latched::{ATTACKED, Attacks, INDIRECT, NEXT, TX, WRITE};

/// No power of two.
const SIZE: u16 = 100;

/// A guest works, then does `attack`, upon which its ring must latch `expected`, and work again when it is started anew.
fn on(attacks: &Attacks, what: &str, attack: impl FnOnce(&mut PackedGuest), expected: RingError) {
    let mut guest = PackedGuest::start(&attacks.stage, ATTACKED, SIZE);
    guest.send(70);
    assert!(!guest.needs_reset());
    attack(&mut guest);
    guest.fds.kick.signal();
    fails(attacks, what, &mut guest, expected);
    guest.start_anew();
    guest.send(20);
    assert!(!guest.needs_reset() && !attacks.stage.has_failed(guest.conn), "{what}: it failed again");
    leave(attacks, guest);
}

fn fails(attacks: &Attacks, what: &str, guest: &mut PackedGuest, expected: RingError) {
    assert_eq!(attacks.stage.failure(guest.conn), (TX, expected), "{what}");
    guest.must_err();
    assert!(guest.needs_reset(), "{what}: the status does not say so");
    attacks.victim.must_go_on(50);
}

fn leave(attacks: &Attacks, guest: PackedGuest) {
    let conn = guest.conn;
    drop(guest);
    assert_eq!(attacks.stage.ending(conn).pins, 0);
    assert_eq!(attacks.stage.windows().live(), 1, "windows of the attacker are left");
}

/// Offers a chain in scratch memory.
fn offer(guest: &mut PackedGuest, id: u16, pieces: &[(u32, u16)]) {
    let at = guest.scratch(4096);
    let pieces: Vec<_> = pieces.iter().map(|&(len, flags)| (at, len, flags)).collect();
    guest.offer(id, &pieces);
}

/// Offers an indirect table of these entries.
fn table(guest: &mut PackedGuest, entries: &[(u32, u16)]) {
    let at = guest.scratch(4096);
    for (place, &(len, flags)) in (0u64..).zip(entries) {
        let entry = guest.memory.slice(Iova(at.0 + 16 * place), 16).expect("it was allocated");
        let word = u64::from(len) | u64::from(flags) << 48;
        entry.write(0, [at.0, word]).expect("it has the room");
    }
    guest.offer(0, &[(at, 16 * entries.len() as u32, INDIRECT)]);
}

#[test]
fn packed_chains_that_may_not_be_are_named_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let attack = |what, attack: &dyn Fn(&mut PackedGuest), expected| on(&attacks, what, attack, expected);
    for id in [SIZE, u16::MAX] {
        let expected = RingError::IdOutOfRange { id, size: SIZE };
        attack("a buffer id behind the ring", &|guest| offer(guest, id, &[(100, 0)]), expected);
    }
    attack(
        "a circle through the whole ring, and on",
        &|guest| {
            let at = guest.scratch(4096);
            for place in (0..SIZE).rev() {
                guest.describe(guest.next.advance(place, SIZE), (at, 1, NEXT), 0);
            }
        },
        RingError::Overrun { size: SIZE },
    );
    attack(
        "a chain that ends in nothing",
        &|guest| {
            let at = guest.scratch(4096);
            guest.describe(guest.next, (at, 12, NEXT), 0);
        },
        // The seventy frames of one, two and three buffers had 139 slots.
        RingError::Unfinished { slot: 40 },
    );
    attack("no bytes", &|guest| offer(guest, 0, &[(0, 0)]), RingError::ZeroLength);
    let order = RingError::ReadAfterWrite;
    attack("to read after to write", &|guest| offer(guest, 0, &[(64, WRITE), (64, 0)]), order);
    let long = RingError::LengthOverflow;
    attack("4 GiB", &|guest| offer(guest, 0, &[(u32::MAX, 0), (1, 0)]), long);
    let wrong = RingError::WrongDirection(Direction::Read);
    attack("a frame to write", &|guest| offer(guest, 0, &[(100, WRITE)]), wrong);
    attack(
        "an address that wraps",
        &|guest| guest.offer(0, &[(Iova(u64::MAX - 63), 100, 0)]),
        RingError::Memory(ResolveError::Overflow),
    );
    attacks.end();
}

#[test]
fn packed_indirect_tables_that_may_not_be_are_named_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Event);
    let attack = |what, attack: &dyn Fn(&mut PackedGuest), expected| on(&attacks, what, attack, expected);
    let nested = RingError::IndirectNested;
    attack("a table in a table", &|guest| table(guest, &[(12, 0), (16, INDIRECT)]), nested);
    let both = RingError::IndirectAndNext;
    attack("a table that continues", &|guest| offer(guest, 0, &[(16, INDIRECT), (64, 0)]), both);
    attack("a chain that continues with a table", &|guest| offer(guest, 0, &[(64, 0), (16, INDIRECT)]), both);
    for len in [0, 15, 17, 16 * 1024 + 16] {
        let size = RingError::IndirectSize { len };
        attack("a table of odd size", &|guest| offer(guest, 0, &[(len, INDIRECT)]), size);
    }
    attack("an entry without bytes", &|guest| table(guest, &[(12, 0), (0, 0)]), RingError::ZeroLength);
    attack(
        "a table whose address wraps",
        &|guest| guest.offer(0, &[(Iova(u64::MAX - 15), 32, INDIRECT)]),
        RingError::Memory(ResolveError::Overflow),
    );
    // A good one, so that it is known that tables are read at all.
    let mut guest = PackedGuest::start(&attacks.stage, ATTACKED, SIZE);
    table(&mut guest, &[(12, 0), (64, NEXT)]);
    guest.send(3);
    leave(&attacks, guest);
    attacks.end();
}

#[test]
fn bases_and_sizes_that_a_packed_ring_cannot_have_are_refused_or_named() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut guest = PackedGuest::start(&attacks.stage, ATTACKED, SIZE);
    guest.send(7);
    for (base, slot) in [(0x8064_8064, 100), (0xffff_ffff, 0x7fff), (0x8005_8004, 5), (0x0003_8004, 3)] {
        guest.stop();
        guest.start_at(base);
        fails(&attacks, "a base outside the ring", &mut guest, RingError::BadPosition { slot, size: SIZE });
    }
    guest.stop();
    for size in [0, 32769, 65536, u32::MAX] {
        assert!(guest.front.client().set_vring_num(1, size).is_err(), "size {size}");
    }
    guest.start_anew();
    guest.send(20);
    leave(&attacks, guest);
    attacks.end();
}

#[test]
fn packed_ring_stops_where_it_was_and_goes_on_there_at_every_slot() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut guest = PackedGuest::start(&attacks.stage, ATTACKED, 7);
    for _ in 0..30 {
        guest.send(2);
        let base = guest.stop();
        let place = u32::from(guest.next.word());
        assert_eq!(base, place | place << 16);
        guest.start_at(base);
    }
    // A front-end that knows one position only.
    let base = guest.stop() & 0xffff;
    guest.start_at(base);
    guest.send(9);
    assert!(!guest.needs_reset());
    leave(&attacks, guest);
    attacks.end();
}

#[test]
fn flags_that_turn_while_the_device_looks_harm_nobody_else() {
    let attacks = Attacks::begin(Mode::Adaptive);
    for turn in 0..20 {
        let mut guest = PackedGuest::start(&attacks.stage, ATTACKED, SIZE);
        let at = guest.scratch(4096);
        guest.send(10);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (ring, over, kick) = (guest.descriptors(), &over, &guest.fds.kick);
            scope.spawn(move || {
                let mut random = Random::seeded(&format!("flags {turn}"));
                while !over.load(Ordering::Relaxed) {
                    let place = desc_len(random.below(SIZE.into()) as u16);
                    let flags = *random.of(&[0x80u16, 0x8000, 0x8080, 0, 0x81, 0x8001]);
                    let _ = ring.write(place, at.0);
                    let _ = ring.write(place + 8, 64u32);
                    let _ = ring.write(place + 12, random.below(SIZE.into()) as u16);
                    let _ = ring.store_u16(place + 14, flags, Ordering::Release);
                    kick.signal();
                }
            });
            let _stop = Stop(over);
            attacks.victim.must_go_on(50);
        });
        guest.start_anew();
        guest.send(5);
        assert_eq!(guest.next, Position::START.advance(9, SIZE));
        leave(&attacks, guest);
    }
    attacks.end();
}

struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
