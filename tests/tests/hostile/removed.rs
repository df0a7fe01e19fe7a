//! Memory that is taken away by messages, under traffic.

use mdev_pin::ResolveError;
use mdev_tests::stage::{Busy, Guest, GuestOptions, await_that};
use mdevd::ring::RingError;
use mdevd::worker::Mode;

use super::files::described;
use super::latched::{ATTACKED, Attacks};

const APART: GuestOptions =
    GuestOptions { size: 128, event_idx: true, indirect: true, apart: true, translated: false };
const HOLE: RingError = RingError::Memory(ResolveError::Hole);
/// What is written over memory that the device has let go of.
const MARK: u8 = 0xa5;

#[derive(Copy, Clone, Debug)]
enum Way {
    /// REM_MEM_REG.
    Region,
    /// SET_MEM_TABLE without the region.
    Table,
}

fn remove(busy: &mut Busy<'_>, region: usize, way: Way) {
    let regions = busy.memory.regions();
    let done = match way {
        Way::Region => busy.front.client().remove_mem_region(described(&regions[region])),
        Way::Table => {
            let rest = regions.iter().enumerate().filter(|(number, _)| *number != region);
            let rest: Vec<_> =
                rest.map(|(_, region)| (described(region), region.extent.file.as_fd())).collect();
            busy.front.client().set_mem_table(&rest)
        }
    };
    done.expect("memory can be taken away at any time");
}

fn add(busy: &mut Busy<'_>, region: usize) {
    let region = &busy.memory.regions()[region];
    let added = busy.front.client().add_mem_region(described(region), region.extent.file.as_fd());
    added.expect("it was there before");
}

#[test]
fn after_the_reply_removed_buffers_are_never_touched_and_their_ring_is_named_after_a_second() {
    let attacks = Attacks::begin(Mode::Adaptive);
    for way in [Way::Region, Way::Table] {
        let mut guest = Guest::start(&attacks.stage, ATTACKED, APART);
        guest.exchange(100);
        // From here on the driver offers chains and does not touch the buffers itself.
        let heads: Vec<u16> = guest.port.tx.held_heads().collect();
        let conn = guest.conn;
        let (index, error) = guest.churn_descriptors(&heads, |busy| {
            await_that("traffic", || busy.received() > 200);
            remove(busy, 1, way);
            let region = &busy.memory.regions()[1];
            let memory = busy.memory.slice(region.range.first(), region.size()).expect("it is the driver's");
            memory.fill(MARK);
            attacks.victim.must_go_on(200);
            let mut now = vec![0; memory.len()];
            memory.copy_to(&mut now);
            let touched = now.iter().position(|byte| *byte != MARK);
            assert_eq!(touched, None, "{way:?}: the device wrote there after the reply");
            attacks.stage.failure(conn)
        });
        assert_eq!(error, HOLE);
        guest.must_err(index);
        assert!(guest.needs_reset());
        attacks.leave("removed buffers", guest);
    }
    attacks.end();
}

#[test]
fn buffers_that_come_back_within_a_second_are_used_as_if_nothing_had_been() {
    let attacks = Attacks::begin(Mode::Event);
    let parks = || (0..2).map(|queue| attacks.stage.counters(ATTACKED, queue).parks).sum::<u64>();
    for round in 0..20 {
        let way = if round % 2 == 0 { Way::Region } else { Way::Table };
        let mut guest = Guest::start(&attacks.stage, ATTACKED, APART);
        let conn = guest.conn;
        let late = guest.churn(|busy| {
            await_that("traffic", || busy.received() > 100);
            let before = parks();
            remove(busy, 1, way);
            await_that("a ring sees that its buffers are gone", || parks() > before);
            add(busy, 1);
            let before = busy.received();
            await_that("traffic, or too late", || {
                busy.received() > before + 100 || attacks.stage.has_failed(conn)
            });
            attacks.stage.has_failed(conn)
        });
        attacks.victim.must_go_on(20);
        // On a busy machine more than a second may pass between the two messages.
        if late {
            assert_eq!(attacks.stage.failure(conn).1, HOLE);
        } else {
            assert!(!guest.needs_reset());
            guest.settle();
            guest.exchange(50);
        }
        attacks.leave("buffers that come back", guest);
    }
    attacks.end();
}

#[test]
fn rings_that_are_removed_are_named_after_a_second_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    for way in [Way::Region, Way::Table] {
        let mut guest = Guest::start(&attacks.stage, ATTACKED, APART);
        let conn = guest.conn;
        let index = guest.churn(|busy| {
            await_that("traffic", || busy.received() > 200);
            remove(busy, 0, way);
            let (index, error) = attacks.stage.failure(conn);
            assert_eq!(error, HOLE);
            index
        });
        guest.must_err(index);
        assert!(guest.needs_reset());
        attacks.victim.must_go_on(50);
        attacks.leave("removed rings", guest);
    }
    attacks.end();
}

#[test]
fn all_memory_removed_and_added_under_traffic_a_hundred_times_leaves_nothing_behind() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    let conn = guest.conn;
    guest.churn(|busy| {
        for round in 0..100 {
            remove(busy, 0, Way::Region);
            add(busy, 0);
            if round % 10 == 0 {
                attacks.victim.must_go_on(10);
            }
        }
    });
    while attacks.stage.has_failed(conn) {
        assert_eq!(attacks.stage.failure(conn).1, HOLE);
    }
    guest.start_anew();
    guest.exchange(50);
    attacks.leave("memory that comes and goes", guest);
    attacks.end();
}

#[test]
fn regions_that_are_not_there_cannot_be_removed() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    let there = described(&guest.memory.regions()[0]);
    let mut wrong = [there; 3];
    wrong[0].size -= 4096;
    wrong[1].guest_addr += 4096;
    wrong[2].user_addr += 4096;
    for region in wrong {
        guest.refused(|client| client.remove_mem_region(region));
        attacks.stage.said("there is no region at guest address");
    }
    guest.exchange(20);
    attacks.leave("regions that are not there", guest);
    attacks.end();
}
