//! Memory by an address in another process: copies, snapshots, and what is left of both when the process is not.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use mdev_dma::{Process, ProcessExtent, UserAddr};

use super::*;
use crate::{Account, Place, Rw, change_process};

const BOTH: Perm = Perm::READ.union(Perm::WRITE);

fn at(process: &Arc<Process>, address: u64) -> ProcessExtent {
    ProcessExtent { process: process.clone(), address: UserAddr(address) }
}

fn area_of(process: &Arc<Process>, iova: u64, len: u64, address: u64) -> Area {
    Area { range: range(iova, len), extent: at(process, address).into(), perm: BOTH, log: None }
}

/// Pages of this process that start on a page.
struct Owned {
    bytes: Vec<u8>,
    process: Arc<Process>,
}

impl Owned {
    fn new(pages: usize) -> Owned {
        let bytes = (0..(pages + 1) * PAGE as usize).map(|at| (at % 251) as u8).collect();
        Owned { bytes, process: Process::open(std::process::id()).unwrap() }
    }

    fn start(&self) -> usize {
        self.bytes.as_ptr().align_offset(PAGE as usize)
    }

    fn address(&self) -> u64 {
        self.bytes.as_ptr() as u64 + self.start() as u64
    }

    /// The bytes as the kernel sees them; nobody else writes here by a reference.
    fn now(&self, from: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.process.read(UserAddr(self.address() + from), &mut bytes).unwrap();
        bytes
    }
}

/// A program that ends when it is told, and a page of its stack.
fn program() -> (Child, Arc<Process>, u64) {
    let mut child = Command::new("/bin/sh").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.as_mut().unwrap(), "echo ready").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let process = Process::open(child.id()).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let end = u64::from_str_radix(stack.split(['-', ' ']).nth(1).unwrap(), 16).unwrap();
    (child, process, end - PAGE)
}

fn pinning_on(ioas: &Ioas) -> Access {
    let access = Access::pinning(Arc::new(IgnoreUnmap));
    access.attach(ioas).unwrap();
    access
}

fn errno<T>(result: Result<T, crate::AccessError>) -> i32 {
    result.map_or_else(|error| error.errno(), |_| 0)
}

#[test]
fn copies_go_over_files_and_processes_at_any_byte() {
    let s = space();
    let owned = Owned::new(2);
    let file = memory(1);
    s.ioas.map(area_of(&owned.process, 0x1000, 0x1003, owned.address() + 5)).unwrap();
    s.ioas.map(area(&file, 0x2003, 0x7fd, 3)).unwrap();
    let mut seen = vec![0; 0x1500];
    s.access.rw(Iova(0x1001), Rw::Read(&mut seen)).unwrap();
    assert_eq!(seen[..0x1002], owned.now(6, 0x1002));
    assert_eq!(seen[0x1002..], [0; 0x4fe]);
    let new: Vec<u8> = (0..0x1500).map(|at| (at % 7) as u8).collect();
    s.access.rw(Iova(0x1001), Rw::Write(&new)).unwrap();
    assert_eq!(owned.now(6, 0x1002), new[..0x1002]);
    let mut written = vec![0; 0x4fe];
    rustix::io::pread(file.as_fd(), &mut written, 3).unwrap();
    assert_eq!(written, new[0x1002..]);
    assert_eq!(errno(s.access.rw(Iova(0x2000), Rw::Read(&mut vec![0; 0x1000]))), 2, "a hole behind");
}

#[test]
fn lanes_say_that_it_is_elsewhere_and_gated_and_forbidden() {
    let device = Arc::new(Recorder::default());
    let s = space_with(device.clone());
    let owned = Owned::new(1);
    s.ioas.map(Area { perm: Perm::READ, ..area_of(&owned.process, 0, PAGE, owned.address()) }).unwrap();
    s.ioas.map(area(&memory(1), PAGE, PAGE, 0)).unwrap();
    let mut lane = s.access.lane();
    {
        let burst = lane.enter();
        let slice = |perm| burst.slice(Iova(8), 8, perm).map(|s| s.len()).unwrap_err();
        assert_eq!(
            (slice(Perm::READ), slice(Perm::WRITE)),
            (ResolveError::Elsewhere, ResolveError::Permission)
        );
        assert_eq!(slice(Perm::READ).errno(), 22);
        assert_eq!(burst.pin(Iova(8), 8, Perm::READ).unwrap_err(), ResolveError::Elsewhere);
        let mut list = SgList::new();
        assert_eq!(burst.sg(Iova(PAGE - 1), 2, Perm::READ, &mut list), Err(ResolveError::Elsewhere));
        assert!(burst.slice(Iova(PAGE), 8, BOTH).is_ok());
        assert_eq!(burst.slice(Iova(2 * PAGE), 8, BOTH).map(|s| s.len()), Err(ResolveError::Hole));
    }
    assert_eq!(errno(s.access.rw(Iova(8), Rw::Write(&[1]))), 1);
    assert_eq!(
        s.ioas.account().pinned(),
        1,
        "a device that pins in bursts cannot pin it, so it is not charged"
    );
    let pinner = pinning_on(&s.ioas);
    pinner.pin_pages(Iova(0), 8, Perm::READ).unwrap();
    assert_eq!(s.ioas.unmap(range(0, PAGE), SOON).unwrap_err().errno(), 35);
    assert_eq!(lane.enter().slice(Iova(8), 8, Perm::READ).map(|s| s.len()), Err(ResolveError::Gated));
    assert_eq!(
        (errno(s.access.rw(Iova(8), Rw::Read(&mut [0]))), errno(pinner.pin_pages(Iova(0), 8, Perm::READ))),
        (22, 22)
    );
    pinner.unpin_pages(Iova(0), 8).unwrap();
    assert_eq!(s.ioas.unmap(range(0, PAGE), LONG).unwrap(), PAGE);
    assert_eq!(lane.enter().slice(Iova(8), 8, Perm::READ).map(|s| s.len()), Err(ResolveError::Hole));
}

#[test]
fn pin_is_a_snapshot_that_goes_back_when_it_was_to_be_written() {
    let ioas = Ioas::new(Windows::new().unwrap());
    let access = pinning_on(&ioas);
    let owned = Owned::new(3);
    let file = memory(1);
    ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    ioas.map(area_of(&owned.process, PAGE, 2 * PAGE, owned.address())).unwrap();
    let before = owned.now(0, 2 * PAGE as usize);
    let pages = access.pin_pages(Iova(0), 3 * PAGE, Perm::READ).unwrap();
    assert_eq!(
        (access.pins(), ioas.account().pinned()),
        (2, 3),
        "a count for each area, a charge for each page"
    );
    pages
        .with(|pin| {
            let slices: Vec<_> = pin.slices().collect();
            assert_eq!(slices.iter().map(|slice| slice.len()).collect::<Vec<_>>(), [4096, 8192]);
            let mut seen = vec![0; 8192];
            slices[1].copy_to(&mut seen);
            assert_eq!(seen, before);
            slices.iter().for_each(|slice| slice.fill(3));
        })
        .unwrap();
    pages.unpin().unwrap();
    assert_eq!(owned.now(0, 2 * PAGE as usize), before, "pinned to read: nothing goes back");

    let first = access.pin_pages(Iova(PAGE), PAGE, Perm::READ).unwrap();
    owned.process.write(UserAddr(owned.address()), &[0xee]).unwrap();
    first.with(|pin| assert_eq!(pin.slices().next().unwrap().read::<u8>(0), Some(before[0]))).unwrap();
    // The same range again, to write: one snapshot stands for both.
    let again = access.pin_pages(Iova(PAGE), PAGE, BOTH).unwrap();
    again.with(|pin| pin.slices().for_each(|slice| slice.fill(4))).unwrap();
    again.unpin().unwrap();
    assert_eq!(owned.now(0, 1), [0xee], "not before the last one goes");
    first.with(|_| access.unpin_pages(Iova(PAGE), PAGE).unwrap()).unwrap();
    assert_eq!(owned.now(0, PAGE as usize), [4; PAGE as usize]);
    assert_eq!((access.pins(), ioas.account().pinned()), (0, 0));
    for (iova, code) in [(PAGE + 8, 22), (3 * PAGE, 2)] {
        assert_eq!(errno(access.pin_pages(Iova(iova), 8, BOTH)), code);
    }
}

#[test]
fn owner_that_ends_leaves_pins_and_nothing_else() {
    let ioas = Ioas::new(Windows::new().unwrap());
    let access = pinning_on(&ioas);
    let (mut child, process, page) = program();
    ioas.map(area_of(&process, 0, PAGE, page)).unwrap();
    let pages = access.pin_pages(Iova(0), PAGE, BOTH).unwrap();
    access.rw(Iova(64), Rw::Read(&mut [0; 8])).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(errno(access.pin_pages(Iova(0), 8, Perm::READ)), 14);
    assert_eq!(errno(access.rw(Iova(64), Rw::Read(&mut [0; 8]))), 14);
    assert_eq!(errno(access.rw(Iova(64), Rw::Write(&[0; 8]))), 14);
    assert_eq!((access.pins(), ioas.account().pinned()), (1, 1), "what failed left nothing");
    pages.with(|pin| pin.slices().for_each(|slice| slice.fill(1))).unwrap();
    pages.with(|pin| assert_eq!(pin.slices().next().unwrap().read::<u8>(9), Some(1))).unwrap();
    drop(process);
    access.close(SOON).unwrap_err();
    pages.unpin().unwrap();
    access.close(LONG).unwrap();
    assert_eq!((ioas.unmap_all(LONG).unwrap(), ioas.account().pinned()), (PAGE, 0));
}

#[test]
fn address_that_the_owner_has_not_mapped_is_efault_when_it_is_used() {
    let ioas = Ioas::new(Windows::new().unwrap());
    let access = pinning_on(&ioas);
    let me = Process::open(std::process::id()).unwrap();
    ioas.map(area_of(&me, 0, PAGE, PAGE)).unwrap();
    assert_eq!(errno(access.pin_pages(Iova(0), PAGE, Perm::READ)), 14);
    assert_eq!(errno(access.rw(Iova(0), Rw::Write(&[1]))), 14);
    assert_eq!(access.pins(), 0);
    let wraps = area_of(&me, 2 * PAGE, 2 * PAGE, u64::MAX - PAGE + 1);
    assert_eq!(ioas.map(wraps).unwrap_err().errno(), 75);
}

#[test]
fn copies_and_replacements_treat_it_as_other_memory() {
    let (ioas, to) = (Ioas::new(Windows::new().unwrap()), Account::unlimited());
    let access = pinning_on(&ioas);
    let owned = Owned::new(4);
    ioas.map(area_of(&owned.process, 0, 4 * PAGE, owned.address())).unwrap();
    ioas.copy_from(&ioas, Iova(PAGE), 2 * PAGE, Place::At(Iova(0x10_0000)), BOTH).unwrap();
    access.pin_pages(Iova(0x10_0000), PAGE, Perm::READ).unwrap();
    access.pin_pages(Iova(PAGE), PAGE, Perm::READ).unwrap();
    assert_eq!(ioas.account().pinned(), 1, "a copy shares the charge");
    let refused = change_process(std::slice::from_ref(&ioas), &to).unwrap_err();
    assert_eq!((refused.errno(), ioas.account().pinned(), to.pinned()), (22, 1, 0));
    access.unpin_pages(Iova(0x10_0000), PAGE).unwrap();
    // What stays in its place keeps its pin.
    let half = |at| area_of(&owned.process, at, 2 * PAGE, owned.address() + at);
    ioas.replace_table(vec![half(0), half(2 * PAGE)], LONG).unwrap();
    assert_eq!((access.pins(), ioas.areas().len()), (1, 2));
    access.unpin_pages(Iova(PAGE), PAGE).unwrap();
    let anywhere = ioas.map_anywhere(at(&owned.process, owned.address()), PAGE, BOTH).unwrap();
    access.rw(anywhere, Rw::Write(&[5])).unwrap();
    assert_eq!(owned.now(0, 1), [5]);
    access.close(LONG).unwrap();
    assert_eq!(ioas.account().pinned(), 0);
}

#[test]
fn revoked_snapshot_is_void_and_never_goes_back() {
    let ioas = Ioas::new(Windows::new().unwrap());
    let access = Access::pinning(Arc::new(IgnoreUnmap));
    access.attach(&ioas).unwrap();
    let owned = Owned::new(2);
    ioas.map(area_of(&owned.process, 0, PAGE, owned.address())).unwrap();
    ioas.map(area_of(&owned.process, PAGE, PAGE, owned.address() + PAGE)).unwrap();
    let before = owned.now(0, 16);
    let pages = access.pin_pages(Iova(0), PAGE, BOTH).unwrap();
    let other = access.pin_pages(Iova(PAGE), PAGE, BOTH).unwrap();
    ioas.unmap(range(0, PAGE), crate::Within::or_revoke(SOON)).unwrap();
    let touched = pages.with(|pin| pin.slices().for_each(|slice| slice.fill(9)));
    assert!(matches!(touched, Err(crate::AccessError::Revoked(_))), "{touched:?}");
    other.with(|pin| pin.slices().for_each(|slice| slice.fill(7))).unwrap();
    ioas.map(area_of(&owned.process, 0, PAGE, owned.address())).unwrap();
    let again = access.pin_pages(Iova(0), PAGE, Perm::READ).unwrap();
    again.with(|_| ()).unwrap();
    pages.unpin().unwrap();
    other.unpin().unwrap();
    assert_eq!((owned.now(0, 16), owned.now(PAGE, 16)), (before, vec![7; 16]));
    again.unpin().unwrap();
    assert_eq!((access.pins(), ioas.account().pinned()), (0, 0));
}
