use super::*;
use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Windows};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::sync::Arc;

const SIZE: u64 = 1 << 20;

/// Memory of its own, as it stands in a table of windows.
fn segments(windows: &Windows) -> Vec<Segment> {
    let fd = memfd_create("memory", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, SIZE).unwrap();
    let file = BackingFile::new(fd, &FilePolicy::default()).unwrap();
    let range = IovaRange::with_len(Iova(0), SIZE).unwrap();
    let extent = FileExtent { file, offset: 0 }.into();
    windows.segments(&Area { range, extent, perm: Perm::READ | Perm::WRITE, log: None }).unwrap()
}

fn house() -> (Arc<Windows>, Kept, Instant) {
    let windows = Windows::new().unwrap();
    let (mut kept, now) = (Kept::default(), Instant::now());
    kept.keep(segments(&windows), now);
    assert_eq!(windows.live(), 1);
    (windows, kept, now)
}

#[test]
fn what_nobody_comes_for_goes_in_time() {
    let (windows, mut kept, now) = house();
    assert_eq!(kept.until(), Some(now + COME));
    kept.on_time(now + COME / 2);
    assert_eq!(windows.live(), 1);
    kept.on_time(now + COME);
    assert_eq!((windows.live(), kept.until()), (0, None));
}

#[test]
fn whoever_comes_has_time_to_announce_it() {
    let (windows, mut kept, now) = house();
    kept.somebody_came(now + COME / 2);
    kept.on_time(now + COME);
    assert_eq!(windows.live(), 1);
    kept.on_time(now + COME / 2 + START);
    assert_eq!(windows.live(), 0);
    kept.somebody_came(now + COME);
    assert_eq!(kept.until(), None, "there is nothing to come for");
}

#[test]
fn only_the_last_ones_memory_is_kept() {
    let (windows, mut kept, now) = house();
    kept.keep(segments(&windows), now);
    assert_eq!(windows.live(), 1);
    kept.keep(Vec::new(), now);
    assert_eq!((windows.live(), kept.until()), (0, None));
}

#[test]
fn a_ring_that_runs_ends_it() {
    let (windows, mut kept, _) = house();
    kept.let_go();
    assert_eq!((windows.live(), kept.until()), (0, None));
}
