//! Front-ends that want more than their share: of memory, of descriptors, of the worker's time.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use mdev_dma::Iova;
use mdev_protocol::vhost_user::{ClientError, MemoryRegion};
use mdev_tests::stage::{Guest, GuestOptions};
use mdevd::session::MAX_SLOTS;
use mdevd::worker::Mode;

use super::files::memfd;
use super::latched::{ATTACKED, Attacks, INDIRECT, NEXT, SIZE, desc, scratch};

pub const TIB: u64 = 1 << 40;

/// Region `number` of a table in which each has so many bytes.
fn region(number: u64, size: u64) -> MemoryRegion {
    let (guest_addr, user_addr) = ((1 << 40) + number * size, (1 << 40) + number * size);
    MemoryRegion { guest_addr, size, user_addr, mmap_offset: 0 }
}

#[test]
fn regions_beyond_the_limit_are_refused_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    // Each a file of its own: a descriptor and a window of the back-end's.
    for number in 1..MAX_SLOTS as u64 {
        let file = memfd(4096);
        guest.front.client().add_mem_region(region(number, 4096), file.as_fd()).expect("it is offered");
    }
    assert_eq!(attacks.stage.windows().live(), 1 + MAX_SLOTS);
    let file = memfd(4096);
    guest.refused(|client| client.add_mem_region(region(0, 4096), file.as_fd()));
    attacks.stage.said("must not exceed what GET_MAX_MEM_SLOTS said");
    drop(file);
    guest.exchange(50);
    attacks.victim.must_go_on(50);
    attacks.leave("as many regions as there may be", guest);
    attacks.end();
}

#[test]
fn terabytes_run_into_a_limit_and_those_who_are_there_do_not_notice() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let file = memfd(64 * TIB);
    let mut greedy = Guest::connect(&attacks.stage, ATTACKED, GuestOptions::default());
    // In pieces that get smaller, until there is nothing left to be had.
    let mut taken = 0;
    for size in [TIB, TIB / 32, TIB / 1024] {
        loop {
            let at = (1 << 41) + taken;
            let piece = MemoryRegion { guest_addr: at, user_addr: at, size, mmap_offset: taken };
            match greedy.front.client().add_mem_region(piece, file.as_fd()) {
                Ok(()) => taken += size,
                Err(ClientError::Refused { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
        attacks.stage.said("windows are in use");
    }
    assert!(taken > 10 * TIB, "{taken:#x} bytes");
    attacks.victim.must_go_on(100);
    attacks.stage.leave(greedy);
    assert_eq!(attacks.stage.windows().live(), 1);

    let mut newcomer = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    newcomer.exchange(20);
    attacks.leave("who comes when the greedy one is gone", newcomer);
    drop(file);
    attacks.end();
}

#[test]
fn chains_as_long_as_they_may_be_do_not_starve_the_others() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    guest.exchange(20);
    // Tables of 1024 buffers of one byte, as many as the ring has, for ever.
    let at = scratch(&mut guest, 16 * 1024);
    let byte = scratch(&mut guest, 16);
    for place in 0..1024u16 {
        let flags = if place == 1023 { 0 } else { NEXT };
        let slice = guest.memory.slice(Iova(at.0 + 16 * u64::from(place)), 16).expect("it was allocated");
        slice.write(0, desc(byte, 1, flags, place.wrapping_add(1))).expect("it fits");
    }
    for place in 0..SIZE {
        guest.port.tx.raw().set_desc(place, desc(at, 16 * 1024, INDIRECT, 0));
    }
    let before = guest.port.tx.raw().used_index();
    for _ in 0..20 {
        let used = guest.port.tx.raw().used_index();
        for slot in 0..SIZE {
            guest.port.tx.raw().set_avail_entry(used.wrapping_add(slot), slot);
        }
        guest.port.tx.raw().set_avail_index(used.wrapping_add(SIZE));
        guest.fds[1].kick.signal();
        attacks.victim.must_go_on(20);
    }
    assert!(!guest.needs_reset(), "{:?}", attacks.stage.failure(guest.conn));
    assert_ne!(guest.port.tx.raw().used_index(), before);
    guest.start_anew();
    guest.exchange(20);
    attacks.leave("long chains", guest);
    attacks.end();
}

#[test]
fn connections_that_say_nothing_hold_nobody() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let silent: Vec<(u64, UnixStream)> = (0..100).map(|_| attacks.stage.connect(ATTACKED)).collect();
    let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    guest.exchange(50);
    attacks.victim.must_go_on(50);
    for (conn, socket) in silent {
        drop(socket);
        assert!(attacks.stage.ending(conn).clean);
    }
    attacks.leave("a guest beside many that say nothing", guest);
    attacks.end();
}
