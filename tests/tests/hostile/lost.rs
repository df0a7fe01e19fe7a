//! Memory whose pages go away under traffic: files that shrink, and files that get holes.

use mdev_dma::Iova;
use mdev_tests::stage::{Busy, Guest, GuestOptions, Port, Stage, Traffic, await_that};
use mdevd::driver::{MemoryOptions, RingOptions};
use mdevd::link::LinkKind;
use mdevd::ring::RingError;
use mdevd::worker::Mode;
use rustix::fs::{FallocateFlags, fallocate, ftruncate};

use super::latched::{ATTACKED, Attacks, RX, TX};

const APART: GuestOptions =
    GuestOptions { size: 128, event_idx: true, indirect: true, apart: true, translated: false };

/// Sets the length of a region's file.
fn truncate(busy: &Busy<'_>, region: usize, len: u64) {
    let file = &busy.memory.regions()[region].extent.file;
    ftruncate(file.as_fd(), len).expect("nothing forbids it");
}

/// Takes the pages of a region's file away; they are zeros when they are touched again.
fn punch(busy: &Busy<'_>, region: usize, offset: u64, len: u64) {
    let file = &busy.memory.regions()[region].extent.file;
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file.as_fd(), hole, offset, len).expect("memory files can have holes");
}

/// A guest with traffic on loses memory by `shrink`: that is an error of its rings alone, and new memory makes it work again.
fn must_be_poisoned(attacks: &Attacks, what: &str, options: GuestOptions, shrink: impl FnOnce(&Busy<'_>)) {
    let mut guest = Guest::start(&attacks.stage, ATTACKED, options);
    let conn = guest.conn;
    let before = attacks.stage.windows().losses();
    let index = guest.churn(|busy| {
        await_that("traffic", || busy.received() > 200);
        shrink(busy);
        let (index, error) = attacks.stage.failure(conn);
        assert_eq!(error, RingError::Poisoned, "{what}: ring {index}");
        let losses = attacks.stage.windows().losses();
        assert!(losses.poisoned > 0 && losses.faults > before.faults, "{what}: {losses:?}");
        attacks.victim.must_go_on(100);
        index
    });
    guest.must_err(index);
    assert!(guest.needs_reset(), "{what}: the status does not say so");

    for index in 0..2 {
        guest.front.stop(index).expect("it stops");
    }
    renew_memory(&mut guest);
    assert_eq!(attacks.stage.windows().losses().poisoned, 0, "{what}: what was lost is mapped still");
    guest.start_rings();
    assert!(!guest.needs_reset());
    guest.exchange(50);
    attacks.leave(what, guest);
}

/// Other memory, and rings in it.
pub fn renew_memory(guest: &mut Guest) {
    let options = MemoryOptions { first: Iova(1 << 40), ..Default::default() };
    guest.memory.add_region(options).expect("memory");
    let ring = RingOptions { event_idx: true, ..RingOptions::plain(128) };
    guest.port = Port::new(&mut guest.memory, ring).expect("room");
    let region = guest.memory.regions().last().expect("it was added");
    let described = super::files::described(region);
    guest.front.client().set_mem_table(&[(described, region.extent.file.as_fd())]).expect("good memory");
}

#[test]
fn a_file_that_shrinks_under_traffic_ends_its_own_rings_only() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let whole = GuestOptions::default();
    must_be_poisoned(&attacks, "all memory is gone", whole, |busy| truncate(busy, 0, 0));
    must_be_poisoned(&attacks, "the buffers are gone", APART, |busy| truncate(busy, 1, 0));
    must_be_poisoned(&attacks, "the rings are gone", APART, |busy| truncate(busy, 0, 0));
    must_be_poisoned(&attacks, "some buffers are gone", APART, |busy| truncate(busy, 1, 128 * 1024));
    attacks.end();
}

#[test]
fn a_file_that_shrinks_and_grows_again_is_not_trusted_again() {
    let attacks = Attacks::begin(Mode::Event);
    must_be_poisoned(&attacks, "the file shrinks and grows", APART, |busy| {
        let size = busy.memory.regions()[1].size();
        // Often, so that it happens in the middle of a burst too.
        for _ in 0..2000 {
            truncate(busy, 1, 0);
            truncate(busy, 1, size);
        }
        truncate(busy, 1, 0);
    });
    attacks.end();
}

#[test]
fn a_file_that_shrinks_under_what_the_device_sends_ends_its_own_ring_only() {
    let stage = Stage::new(Mode::Adaptive, &[LinkKind::Loopback, LinkKind::Pktgen { size: 64 }]);
    let victim = Traffic::of_victim(&stage);
    let mut guest = Guest::start(&stage, ATTACKED, APART);
    let conn = guest.conn;
    guest.churn(|busy| {
        await_that("traffic", || busy.received() > 200);
        truncate(busy, 1, 0);
        // Either ring may touch a lost page first.
        let (index, error) = stage.failure(conn);
        assert!([RX, TX].contains(&index));
        assert_eq!(error, RingError::Poisoned);
        victim.must_go_on(100);
    });
    assert!(guest.needs_reset());
    stage.leave(guest);
    stage.end(victim);
}

#[test]
fn holes_in_the_buffers_are_zeros_and_traffic_goes_on() {
    let attacks = Attacks::begin(Mode::Adaptive);
    for options in [APART, GuestOptions { event_idx: false, ..APART }] {
        let mut guest = Guest::start(&attacks.stage, ATTACKED, options);
        let conn = guest.conn;
        guest.churn(|busy| {
            let size = busy.memory.regions()[1].size();
            for round in 0..200 {
                let len = (size >> (round % 12)).next_multiple_of(4096).min(size);
                punch(busy, 1, (size - len) / 2 / 4096 * 4096, len);
                if round % 50 == 0 {
                    let before = busy.received();
                    await_that("traffic over holes", || busy.received() > before + 50);
                }
            }
            let before = busy.received();
            await_that("traffic over holes", || busy.received() > before + 100);
            attacks.victim.must_go_on(100);
        });
        assert!(!attacks.stage.has_failed(conn), "{:?}", attacks.stage.failure(conn));
        assert!(!guest.needs_reset());
        // Without being started anew.
        guest.settle();
        guest.exchange(50);
        attacks.leave("holes", guest);
    }
    attacks.end();
}

#[test]
fn holes_in_the_rings_hurt_their_own_guest_only() {
    let attacks = Attacks::begin(Mode::Adaptive);
    for _ in 0..10 {
        let mut guest = Guest::start(&attacks.stage, ATTACKED, APART);
        guest.churn(|busy| {
            await_that("traffic", || busy.received() > 200);
            let size = busy.memory.regions()[0].size();
            (0..50).for_each(|_| punch(busy, 0, 0, size));
            attacks.victim.must_go_on(50);
        });
        while attacks.stage.has_failed(guest.conn) {
            let (_, error) = attacks.stage.failure(guest.conn);
            assert_ne!(error, RingError::Poisoned, "no page was lost for good");
        }
        guest.start_anew();
        guest.exchange(20);
        attacks.leave("holes in the rings", guest);
    }
    attacks.end();
}
