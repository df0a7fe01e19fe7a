//! Memory that is populated when it is announced.

use std::os::fd::{AsFd, OwnedFd};

use mdev_protocol::vhost_user::FrontendMessage as M;
use rustix::fs::fstat;

use super::House;
use super::front::{MIB, USER, memfd, region};

/// Bytes of a file that have memory.
fn allocated(file: &OwnedFd) -> u64 {
    fstat(file).unwrap().st_blocks as u64 * 512
}

#[test]
fn announced_memory_is_populated_if_that_is_wanted_and_only_then() {
    for wanted in [false, true] {
        let mut house = House::new(2);
        house.options.prefault = wanted;
        let mut front = house.connect();
        let file = front.settle(&mut house);
        let more = memfd(8 * MIB);
        front.done(&mut house, M::AddMemReg(region(4 * MIB, 6 * MIB, USER + 4 * MIB)), &[more.as_fd()]);
        if wanted {
            house.pump_until(|_| allocated(&file) == 4 * MIB && allocated(&more) >= 6 * MIB);
        }
        assert_eq!(allocated(&more), if wanted { 6 * MIB } else { 0 }, "nothing but what was announced");
    }
}

#[test]
fn memory_that_goes_while_it_is_populated_is_let_go() {
    let mut house = House::new(2);
    house.options.prefault = true;
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    for _ in 0..50 {
        let more = memfd(64 * MIB);
        let added = region(1 << 30, 64 * MIB, USER + (1 << 30));
        front.done(&mut house, M::AddMemReg(added), &[more.as_fd()]);
        front.done(&mut house, M::RemMemReg(added), &[]);
    }
    house.pump_until(|house| house.windows.live() == 1);
}

#[test]
fn memory_that_cannot_be_populated_is_served_all_the_same() {
    let mut house = House::new(2);
    house.options.prefault = true;
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    let shrinks = memfd(8 * MIB);
    front.done(&mut house, M::AddMemReg(region(1 << 30, 8 * MIB, USER + (1 << 30))), &[shrinks.as_fd()]);
    rustix::fs::ftruncate(&shrinks, 0).unwrap();
    front.start(&mut house, 0, 0);
    assert_eq!(front.status(&mut house), 0);
    assert_eq!(house.windows.losses().poisoned, 0, "nothing was touched");
}
