//! Memory regions and ring descriptions that cannot be: each is refused by itself and the session goes on.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use mdev_protocol::vhost_user::{FrontendMessage as M, FrontendReply as R, MemoryRegion, VringFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::House;
use super::front::{MIB, USER, eventfd, memfd, region, ring_at, state, with_fd};
use crate::session::{MAX_SLOTS, OFFERED_PROTOCOL_FEATURES as OFFERED};

#[test]
fn a_region_longer_than_its_file_is_refused() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    let file = memfd(MIB);
    let at =
        |size, mmap_offset| MemoryRegion { guest_addr: 64 * MIB, size, user_addr: 64 * MIB, mmap_offset };
    for wrong in [at(MIB + 1, 0), at(MIB, 1), at(1, MIB), at(MIB, u64::MAX - 5), at(u64::MAX, 0), at(0, 0)] {
        front.refused(&mut house, M::AddMemReg(wrong), &[file.as_fd()]);
        let answer = front.table(&mut house, &[(wrong, file.as_fd())]);
        assert!(matches!(answer, Some(R::Ack { value: 1, .. })), "{wrong:?}");
    }
    assert_eq!(house.session(1).ioas.areas().len(), 1, "the table is as it was");
    front.done(&mut house, M::AddMemReg(at(MIB - 4096, 4096)), &[file.as_fd()]);
    front.start(&mut house, 0, 0);
    assert!(house.queues.is_running(1, 0));
}

#[test]
fn a_descriptor_that_is_no_memory_file_is_refused() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    let (_read, pipe) = rustix::pipe::pipe().unwrap();
    let wrong: [(&str, OwnedFd); 4] = [
        ("a file on disk", File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap().into()),
        ("a pipe", pipe),
        ("a directory", File::open("/").unwrap().into()),
        ("a character device", File::open("/dev/zero").unwrap().into()),
    ];
    for (name, fd) in wrong {
        let add = M::AddMemReg(region(64 * MIB, 16, USER + 64 * MIB));
        let answer = front.ask_with(&mut house, &add, &[fd.as_fd()]);
        assert!(matches!(answer, Some(R::Ack { value: 1, .. })), "{name}");
    }
    assert_eq!(house.session(1).ioas.areas().len(), 1);
}

#[test]
fn regions_that_overlap_are_refused_and_the_same_again_is_not() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let file = front.settle(&mut house);
    let other = memfd(4 * MIB);
    let same = region(0, 4 * MIB, USER);
    front.done(&mut house, M::AddMemReg(same), &[file.as_fd()]);
    front.refused(&mut house, M::AddMemReg(same), &[other.as_fd()]);
    front.refused(&mut house, M::AddMemReg(region(4 * MIB - 1, 1, 0x1000)), &[other.as_fd()]);
    front.refused(&mut house, M::AddMemReg(region(64 * MIB, MIB, USER + 4 * MIB - 1)), &[other.as_fd()]);
    front.refused(&mut house, M::AddMemReg(region(u64::MAX, 2, 0x1000)), &[other.as_fd()]);
    front.refused(&mut house, M::RemMemReg(region(0, 4 * MIB, USER + 1)), &[]);
    front.refused(&mut house, M::RemMemReg(region(0, MIB, USER)), &[]);
    assert_eq!(house.session(1).ioas.areas().len(), 1);
}

#[test]
fn the_same_region_again_begins_a_session_whose_memory_replaces_the_old() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let file = front.settle(&mut house);
    let dimm = memfd(MIB);
    front.done(&mut house, M::AddMemReg(region(64 * MIB, MIB, USER + 64 * MIB)), &[dimm.as_fd()]);
    let larger = memfd(2 * MIB);
    let over = M::AddMemReg(region(64 * MIB, 2 * MIB, USER + 64 * MIB));
    front.refused(&mut house, over.clone(), &[larger.as_fd()]);
    // No ring is started and a region is announced again: the other is of the former session.
    front.done(&mut house, M::AddMemReg(region(0, 4 * MIB, USER)), &[file.as_fd()]);
    front.done(&mut house, over, &[larger.as_fd()]);
    assert_eq!(house.session(1).ioas.areas().len(), 2);
    // While a ring runs it changes nothing.
    front.start(&mut house, 0, 0);
    front.done(&mut house, M::AddMemReg(region(0, 4 * MIB, USER)), &[file.as_fd()]);
    front.refused(&mut house, M::AddMemReg(region(64 * MIB, MIB, USER + 64 * MIB)), &[dimm.as_fd()]);
}

#[test]
fn as_many_regions_as_were_promised_and_no_more() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(&mut house, OFFERED);
    let file = memfd((MAX_SLOTS as u64 + 1) * 4096);
    let slot =
        |at: u64| MemoryRegion { guest_addr: at * 8192, size: 4096, user_addr: 0, mmap_offset: at * 4096 };
    for at in 0..MAX_SLOTS as u64 {
        front.done(&mut house, M::AddMemReg(slot(at)), &[file.as_fd()]);
    }
    front.refused(&mut house, M::AddMemReg(slot(MAX_SLOTS as u64)), &[file.as_fd()]);
    for at in (0..MAX_SLOTS as u64).rev() {
        front.done(&mut house, M::RemMemReg(slot(at)), &[]);
    }
    assert!(house.session(1).ioas.areas().is_empty());
}

#[test]
fn a_read_only_file_gives_memory_that_is_only_read() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    let rom = memfd_create("rom", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&rom, MIB).unwrap();
    fcntl_add_seals(&rom, SealFlags::SHRINK).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&rom));
    let read_only = File::open(path).unwrap();
    front.done(&mut house, M::AddMemReg(region(64 * MIB, MIB, USER + 64 * MIB)), &[read_only.as_fd()]);
    let areas = house.session(1).ioas.areas();
    assert_eq!(areas.iter().filter(|area| area.perm == mdev_dma::Perm::READ).count(), 1);
}

#[test]
fn ring_numbers_sizes_and_bases_are_checked() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    for index in [2, 255, 65536, u32::MAX] {
        front.refused(&mut house, M::SetVringNum(state(index, 256)), &[]);
        front.refused(&mut house, M::SetVringBase(state(index, 0)), &[]);
        front.refused(&mut house, M::SetVringEnable(state(index, 1)), &[]);
        front.refused(&mut house, M::SetVringAddr(ring_at(0, USER).with(index)), &[]);
    }
    front.refused(&mut house, M::SetVringKick(with_fd(2)), &[eventfd().as_fd()]);
    front.refused(&mut house, M::SetVringCall(with_fd(255)), &[eventfd().as_fd()]);
    for size in [0, 3, 2048, 32768, 65536, u32::MAX] {
        front.refused(&mut house, M::SetVringNum(state(0, size)), &[]);
    }
    front.done(&mut house, M::SetVringNum(state(0, 1024)), &[]);
    front.done(&mut house, M::SetVringNum(state(0, 1)), &[]);
    front.done(&mut house, M::SetVringBase(state(0, 0xffff)), &[]);
    front.refused(&mut house, M::SetVringBase(state(0, 0x10000)), &[]);
    front.refused(&mut house, M::SetVringEnable(state(0, 2)), &[]);
}

trait With {
    fn with(self, index: u32) -> Self;
}

impl With for mdev_protocol::vhost_user::VringAddr {
    fn with(mut self, index: u32) -> Self {
        self.index = index;
        self
    }
}

#[test]
fn descriptors_that_are_no_eventfds_are_refused() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    let (_read, pipe) = rustix::pipe::pipe().unwrap();
    let wrong: [OwnedFd; 4] =
        [pipe, File::open("/").unwrap().into(), File::open("/dev/zero").unwrap().into(), memfd(4096)];
    front.tell(&mut house, M::SetVringNum(state(0, 256)));
    front.tell(&mut house, M::SetVringAddr(ring_at(0, USER)));
    for fd in &wrong {
        for message in [M::SetVringKick, M::SetVringCall, M::SetVringErr] {
            front.refused(&mut house, message(with_fd(0)), &[fd.as_fd()]);
        }
    }
    assert!(house.queues.running.is_empty());
    front.start(&mut house, 0, 0);
    assert!(house.queues.is_running(1, 0));
}

#[test]
fn descriptors_that_are_missing_or_too_many_are_refused() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let file = front.settle(&mut house);
    let event = eventfd();
    front.refused(&mut house, M::SetVringKick(with_fd(0)), &[]);
    front.refused(&mut house, M::SetVringKick(VringFd { index: 0, has_fd: false }), &[event.as_fd()]);
    front.refused(&mut house, M::SetVringCall(with_fd(0)), &[event.as_fd(), event.as_fd()]);
    front.refused(&mut house, M::AddMemReg(region(64 * MIB, MIB, 0x1000)), &[]);
    front.refused(&mut house, M::AddMemReg(region(64 * MIB, MIB, 0x1000)), &[file.as_fd(), file.as_fd()]);
    front.refused(&mut house, M::SetBackendReqFd, &[]);
    front.refused(&mut house, M::SetStatus(1), &[file.as_fd()]);
    assert_eq!(front.status(&mut house), 0);
    assert_eq!(house.session(1).ioas.areas().len(), 1);
}
