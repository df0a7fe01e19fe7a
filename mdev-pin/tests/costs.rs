//! What a space leaves behind in its process: memory, descriptors, mappings.
//!
//! `MDEVD_CYCLES=1000000 cargo test --release -p mdev-pin --test costs` repeats more often.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Windows};
use mdev_pin::{Access, IgnoreUnmap, Ioas};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const PAGE: u64 = 4096;
const LONG: Duration = Duration::from_secs(20);
const NAME: &str = "mdev-pin-costs";

/// The memory of the process is measured: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// KiB of anonymous memory in use: the heap. Windows are not in it.
fn heap() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Descriptors and mappings of the memory of these tests.
fn held() -> (usize, usize) {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let ours = |name: &str| name.contains(NAME);
    (links.filter(|to| ours(&to.to_string_lossy())).count(), maps.lines().filter(|line| ours(line)).count())
}

fn file(pages: u64) -> Arc<BackingFile> {
    let fd = memfd_create(NAME, MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, pages * PAGE).unwrap();
    BackingFile::new(fd, &FilePolicy::default()).unwrap()
}

fn area(file: &Arc<BackingFile>, iova: u64, page: u64) -> Area {
    let range = IovaRange::with_len(Iova(iova), PAGE).unwrap();
    let extent = FileExtent { file: file.clone(), offset: page * PAGE }.into();
    Area { range, extent, perm: Perm::READ | Perm::WRITE, log: None }
}

fn space() -> (Ioas, Access) {
    let ioas = Ioas::new(Windows::new().unwrap());
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas).unwrap();
    (ioas, access)
}

#[test]
fn space_of_512_areas_over_64_files_costs_under_a_mebibyte() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = heap();
    let (ioas, access) = space();
    let mut lane = access.lane();
    let files: Vec<_> = (0..64).map(|_| file(16)).collect();
    for number in 0..512u64 {
        let file = &files[number as usize % 64];
        ioas.map(area(file, number * 2 * PAGE, number / 64 * 2)).unwrap();
        // A pin in each, so that the counters of the lane are there too.
        drop(lane.enter().pin(Iova(number * 2 * PAGE), 8, Perm::WRITE).unwrap());
    }
    let cost = heap().saturating_sub(before);
    println!("512 areas over 64 files: {cost} KiB");
    assert_eq!((ioas.areas().len(), held()), (512, (64, 64)));
    assert!(cost < 1024, "{cost} KiB");
    access.close(LONG).unwrap();
    ioas.destroy().unwrap();
    drop((lane, access, ioas, files));
    assert_eq!(held(), (0, 0));
}

#[test]
fn cycles_of_map_and_unmap_leave_memory_descriptors_and_mappings_where_they_were() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cycles = std::env::var("MDEVD_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000u64);
    let (ioas, access) = space();
    let mut lane = access.lane();
    let stays = file(8);
    ioas.map(area(&stays, 0, 0)).unwrap();
    let mut cycle = |n: u64| {
        // Every other one with a file of its own, and so with a window.
        let own = n.is_multiple_of(2).then(|| file(1));
        let wanted =
            own.as_ref().map_or_else(|| area(&stays, (1 + n % 64) * PAGE, n % 8), |own| area(own, PAGE, 0));
        let range = wanted.range;
        ioas.map(wanted).unwrap();
        let burst = lane.enter();
        burst.slice(range.first(), 8, Perm::WRITE).unwrap().fill(7);
        drop(burst.pin(range.first(), 8, Perm::WRITE).unwrap());
        drop(burst);
        assert_eq!(ioas.unmap(range, LONG).unwrap(), PAGE);
    };
    (0..2_000).for_each(&mut cycle);
    let (before, held_before) = (heap(), held());
    (0..cycles).for_each(&mut cycle);
    let grown = heap().saturating_sub(before);
    println!("{cycles} cycles: {grown} KiB more");
    assert_eq!((held(), held_before), ((1, 1), (1, 1)));
    assert!(grown < 128, "{cycles} cycles left {grown} KiB");
}
