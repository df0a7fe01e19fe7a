//! The contract's rules on real memory files.

mod account;
mod charge_model;
mod copy;
mod detach;
mod faults;
mod invalidate;
mod map;
mod model;
mod pages;
mod pages_model;
mod parked;
mod process;
mod ranges;
mod reattach;
mod recent;
mod replace;
mod revoke;
mod revoke_model;
mod scenarios;
mod space_model;
mod transfer;
mod truncate;
mod unmap;
mod whole;

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, SgList, Windows};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::{Access, AccessOps, IgnoreUnmap, Ioas, Pin, ResolveError};

pub const PAGE: u64 = 4096;
pub const SOON: Duration = Duration::from_millis(50);
pub const LONG: Duration = Duration::from_secs(20);

pub fn memory(pages: u64) -> Arc<BackingFile> {
    let fd: OwnedFd = memfd_create("mdev-pin-test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, pages * PAGE).unwrap();
    BackingFile::new(fd, &FilePolicy::default()).unwrap()
}

pub fn range(first: u64, len: u64) -> IovaRange {
    IovaRange::with_len(Iova(first), len).unwrap()
}

pub fn area(file: &Arc<BackingFile>, iova: u64, len: u64, offset: u64) -> Area {
    let extent = FileExtent { file: file.clone(), offset };
    Area { range: range(iova, len), extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None }
}

/// A space with one access attached.
pub struct Space {
    pub windows: Arc<Windows>,
    pub ioas: Ioas,
    pub access: Access,
}

pub fn space() -> Space {
    space_with(Arc::new(IgnoreUnmap))
}

pub fn space_with(ops: Arc<dyn AccessOps>) -> Space {
    let windows = Windows::new().unwrap();
    let ioas = Ioas::new(windows.clone());
    let access = Access::new(ops);
    access.attach(&ioas).unwrap();
    Space { windows, ioas, access }
}

/// A space with one access that pins pages.
pub fn pinning_space(ops: Arc<dyn AccessOps>) -> Space {
    let windows = Windows::new().unwrap();
    let ioas = Ioas::new(windows.clone());
    let access = Access::pinning(ops);
    access.attach(&ioas).unwrap();
    Space { windows, ioas, access }
}

/// A device that records its pins and drops those that an unmap names, or all.
#[derive(Default)]
pub struct Recorder {
    pub pins: Mutex<Vec<(IovaRange, Pin)>>,
    pub notified: Mutex<Vec<IovaRange>>,
    pub stubborn: AtomicUsize,
}

impl AccessOps for Recorder {
    fn on_unmap(&self, range: IovaRange) {
        self.notified.lock().unwrap().push(range);
        if self.stubborn.load(Ordering::SeqCst) == 0 {
            self.pins.lock().unwrap().retain(|(pinned, _)| pinned.intersection(range).is_none());
        }
    }
}

#[test]
fn slice_reads_and_writes_the_file() {
    let s = space();
    let file = memory(4);
    s.ioas.map(area(&file, 0x10_0000, 2 * PAGE, PAGE)).unwrap();
    let mut lane = s.access.lane();
    let burst = lane.enter();
    let slice = burst.slice(Iova(0x10_0010), 5, Perm::WRITE).unwrap();
    assert_eq!(slice.copy_from(b"hello"), 5);
    let mut seen = [0; 5];
    rustix::io::pread(file.as_fd(), &mut seen, PAGE + 16).unwrap();
    assert_eq!(&seen, b"hello");
}

#[test]
fn lookups_that_cannot_be_served_say_why() {
    let s = space();
    let file = memory(4);
    let mut readonly = area(&file, 0x1000, PAGE, 0);
    readonly.perm = Perm::READ;
    s.ioas.map(readonly).unwrap();
    s.ioas.map(area(&file, u64::MAX - PAGE + 1, PAGE, PAGE)).unwrap();
    let mut lane = s.access.lane();
    let burst = lane.enter();
    let slice = |iova, len, perm| burst.slice(Iova(iova), len, perm).map(|s| s.len());
    assert_eq!(slice(0x1000, 0, Perm::READ), Err(ResolveError::Empty));
    assert_eq!(slice(0x1000, 1, Perm::WRITE), Err(ResolveError::Permission));
    assert_eq!(slice(0x1000, 1, Perm::READ), Ok(1));
    assert_eq!(slice(0x1000, 1, Perm::WRITE), Err(ResolveError::Permission), "the hint keeps the permission");
    assert_eq!(slice(0x1fff, 2, Perm::READ), Err(ResolveError::Hole));
    assert_eq!(slice(0x0fff, 1, Perm::READ), Err(ResolveError::Hole));
    assert_eq!(slice(u64::MAX, 1, Perm::WRITE), Ok(1));
    assert_eq!(slice(u64::MAX, 2, Perm::WRITE), Err(ResolveError::Overflow));
    assert_eq!(slice(u64::MAX, 2, Perm::WRITE).unwrap_err().errno(), 75);
    drop(burst);
    s.access.detach(LONG).unwrap();
    assert_eq!(lane.enter().slice(Iova(0x1000), 1, Perm::READ).map(|s| s.len()), Err(ResolveError::Detached));
}

#[test]
fn range_over_two_areas_is_split_but_resolves_as_a_list() {
    let s = space();
    let file = memory(4);
    s.ioas.map(area(&file, 0x1000, PAGE, 3 * PAGE)).unwrap();
    s.ioas.map(area(&file, 0x2000, PAGE, 0)).unwrap();
    let mut lane = s.access.lane();
    let burst = lane.enter();
    assert_eq!(burst.slice(Iova(0x1ffc), 8, Perm::READ).map(|s| s.len()), Err(ResolveError::Split));
    let mut sg = SgList::new();
    burst.sg(Iova(0x1ffc), 8, Perm::WRITE, &mut sg).unwrap();
    assert_eq!(sg.iter().map(|s| s.len()).collect::<Vec<_>>(), [4, 4]);
    assert_eq!(burst.slice(Iova(0x2ffc), 8, Perm::READ).map(|s| s.len()), Err(ResolveError::Hole));
    let pin = burst.pin(Iova(0x1ffc), 8, Perm::READ).unwrap();
    assert_eq!(pin.len(), 8);
    assert_eq!(s.access.pins(), 2, "one count per piece");
    drop(pin);
    assert_eq!(s.ioas.pins(), 0);
}

#[test]
fn map_over_an_area_returns_eexist() {
    let s = space();
    let file = memory(4);
    s.ioas.map(area(&file, 0x1000, 2 * PAGE, 0)).unwrap();
    for (first, len) in [(0x1000, PAGE), (0x2fff, 1), (0, 0x1001), (0, 0x10_0000)] {
        assert_eq!(
            s.ioas.map(area(&file, first, len.min(4 * PAGE), 0)).unwrap_err().errno(),
            17,
            "{first:x}"
        );
    }
    assert_eq!(s.ioas.areas().len(), 1);
}

#[test]
fn extent_is_found_by_file_and_offset_and_recalled_until_the_table_changes() {
    let s = space();
    let (file, other) = (memory(8), memory(1));
    s.ioas.map(area(&file, 0x10_0000, 4 * PAGE, 2 * PAGE)).unwrap();
    let mut lane = s.access.lane();
    let at = |offset| FileExtent { file: file.clone(), offset };
    let burst = lane.enter();
    let slice = burst.extent(&at(3 * PAGE), 64, Perm::READ).unwrap();
    slice.copy_from(&[7; 64]);
    assert_eq!(burst.slice(Iova(0x10_1000), 1, Perm::READ).unwrap().read::<u8>(0), Some(7));
    assert_eq!(burst.extent(&at(PAGE), 64, Perm::READ).map(|s| s.len()), Err(ResolveError::Hole));
    assert_eq!(burst.extent(&at(6 * PAGE - 1), 2, Perm::READ).map(|s| s.len()), Err(ResolveError::Split));
    let kept = burst.keep(slice);
    assert!(burst.recall(&kept).is_some_and(|s| s.len() == 64));
    drop(burst);
    assert!(lane.enter().recall(&kept).is_some(), "it outlives the burst");
    s.ioas.map(area(&other, 0, PAGE, 0)).unwrap();
    let burst = lane.enter();
    assert!(burst.recall(&kept).is_none(), "not the table");
    assert!(burst.extent(&at(3 * PAGE), 64, Perm::READ).is_ok());
}

#[test]
fn control_operation_inside_a_burst_returns_edeadlk() {
    let s = space();
    let file = memory(1);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let mut lane = s.access.lane();
    let burst = lane.enter();
    assert_eq!(s.ioas.unmap(IovaRange::FULL, LONG).unwrap_err().errno(), 35);
    assert_eq!(s.ioas.map(area(&file, PAGE, PAGE, 0)).unwrap_err().errno(), 35);
    assert_eq!(s.ioas.replace_table(vec![], LONG).unwrap_err().errno(), 35);
    assert_eq!(s.access.detach(LONG).unwrap_err().errno(), 35);
    drop(burst);
    assert_eq!(s.ioas.unmap(IovaRange::FULL, LONG).unwrap(), PAGE);
}

#[test]
fn truncated_file_poisons_its_window_until_mapped_anew() {
    let s = space();
    let (file, fine) = (memory(2), memory(1));
    s.ioas.map(area(&file, 0, 2 * PAGE, 0)).unwrap();
    s.ioas.map(area(&fine, 0x10_0000, PAGE, 0)).unwrap();
    let mut lane = s.access.lane();
    {
        let burst = lane.enter();
        let slice = burst.slice(Iova(0), 16, Perm::READ).unwrap();
        let other = burst.slice(Iova(0x10_0000), 16, Perm::WRITE).unwrap();
        ftruncate(file.as_fd(), 0).unwrap();
        other.copy_from(&[1; 16]);
        assert!(!burst.poisoned());
        assert_eq!(slice.read::<u64>(0), Some(0), "contained, reads zeros");
        assert!(burst.poisoned());
    }
    {
        let burst = lane.enter();
        assert_eq!(burst.slice(Iova(PAGE), 1, Perm::READ).map(|s| s.len()), Err(ResolveError::Poisoned));
        assert!(burst.slice(Iova(0x10_0000), 16, Perm::READ).is_ok(), "another file is not to blame");
        assert!(!burst.poisoned());
    }
    ftruncate(file.as_fd(), 2 * PAGE).unwrap();
    s.ioas.unmap(range(0, 2 * PAGE), LONG).unwrap();
    s.ioas.map(area(&file, 0, 2 * PAGE, 0)).unwrap();
    assert!(lane.enter().slice(Iova(0), 1, Perm::WRITE).is_ok(), "mapped anew, healed");
}

#[test]
fn forgotten_burst_times_out_unmaps_and_harms_nothing_else() {
    let s = space();
    let file = memory(2);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let ioas = s.ioas.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut lane = s.access.lane();
            std::mem::forget(lane.enter());
            assert_eq!(
                std::thread::scope(|t| t
                    .spawn(|| ioas.unmap(range(0, PAGE), SOON).unwrap_err().errno())
                    .join()
                    .unwrap()),
                35
            );
            let burst = lane.enter();
            assert_eq!(burst.slice(Iova(0), 1, Perm::READ).map(|s| s.len()), Err(ResolveError::Gated));
        });
    });
    assert_eq!(s.ioas.unmap(range(0, PAGE), LONG).unwrap(), PAGE, "the lane has moved on");
}
