use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::io::{pread, pwrite};

use super::{CHUNK, WindowError};
use crate::tests::{area, memory, resize};
use crate::{Area, BackingFile, FilePolicy, Iova, IovaRange, Losses, Occupancy, Perm, Segment, Windows};

fn reopen(file: &BackingFile, options: &OpenOptions) -> Arc<BackingFile> {
    let again = options.open(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).unwrap();
    BackingFile::new(again.into(), &FilePolicy::default()).unwrap()
}

fn same_window(a: &[Segment], b: &[Segment]) -> bool {
    Arc::ptr_eq(&a[0].window, &b[0].window)
}

fn read_only(area: Area) -> Area {
    Area { perm: Perm::READ, ..area }
}

#[test]
fn areas_of_one_file_share_a_window_and_see_the_same_bytes() {
    let windows = Windows::new().unwrap();
    let file = memory(1 << 20);
    let one = windows.segments(&area(&file, 0x1000, 0, 0x2000)).unwrap();
    let two = windows.segments(&area(&file, 0x9001, 0x101, 0x100)).unwrap();
    one[0].slice(Iova(0x1101), 4).unwrap().copy_from(b"here");
    assert_eq!(two[0].slice(Iova(0x9001), 4).unwrap().read::<[u8; 4]>(0), Some(*b"here"));
    assert!(same_window(&one, &two));
    assert_eq!((windows.live(), windows.mapped_total()), (1, 1));
    drop((one, two));
    assert_eq!((windows.live(), windows.mapped_total()), (0, 1));
}

#[test]
fn a_window_keeps_its_file_open_and_a_dead_one_is_mapped_anew() {
    let windows = Windows::new().unwrap();
    let file = memory(4096);
    let segments = windows.segments(&area(&file, 0, 0, 4096)).unwrap();
    assert_eq!(Arc::strong_count(&file), 2);
    assert!(Arc::ptr_eq(segments[0].window.file(), &file));
    drop(segments);
    assert_eq!(Arc::strong_count(&file), 1);
    windows.segments(&area(&file, 0, 0, 4096)).unwrap();
    assert_eq!(windows.mapped_total(), 2);
}

#[test]
fn an_area_is_cut_where_chunks_meet() {
    let windows = Windows::new().unwrap();
    let file = memory(3 * CHUNK);
    let (offset, len) = (CHUNK - 3, CHUNK + 5);
    let segments = windows.segments(&area(&file, 0x77, offset, len)).unwrap();
    let shape: Vec<_> = segments.iter().map(|s| (s.range, s.window.file_offset(), s.offset)).collect();
    let range = |first, len| IovaRange::with_len(Iova(first), len).unwrap();
    assert_eq!(
        shape,
        [
            (range(0x77, 3), 0, CHUNK - 3),
            (range(0x7a, CHUNK), CHUNK, 0),
            (range(0x7a + CHUNK, 2), 2 * CHUNK, 0)
        ]
    );
    segments[0].slice(Iova(0x77), 3).unwrap().copy_from(b"abc");
    segments[1].slice(Iova(0x7a), 1).unwrap().copy_from(b"d");
    let mut seen = [0; 4];
    pread(file.as_fd(), &mut seen, offset).unwrap();
    assert_eq!(&seen, b"abcd");
    assert!(segments[0].slice(Iova(0x77), 4).is_none(), "beyond the segment, though the area goes on");
}

#[test]
fn the_last_addresses_of_the_space_can_be_mapped() {
    let windows = Windows::new().unwrap();
    let file = memory(8192);
    let segments = windows.segments(&area(&file, u64::MAX - 99, 8092, 100)).unwrap();
    assert_eq!(segments[0].range.last(), Iova(u64::MAX));
    assert!(segments[0].slice(Iova(u64::MAX), 1).is_some());
    assert!(segments[0].slice(Iova(u64::MAX), 2).is_none());
    assert!(segments[0].slice(Iova(u64::MAX), usize::MAX).is_none());
    assert_eq!(segments[0].slice(Iova(u64::MAX - 99), 0).unwrap().len(), 0);
}

#[test]
fn an_area_beyond_the_end_of_its_file_is_refused() {
    let windows = Windows::new().unwrap();
    let file = memory(8192);
    for (offset, len) in [(0, 8193), (8192, 1), (8000, 1 << 40)] {
        let error = windows.segments(&area(&file, 0, offset, len)).unwrap_err();
        assert!(matches!(error, WindowError::BeyondEnd { size: 8192, .. }), "{error}");
        assert_eq!(error.errno(), libc::EINVAL);
    }
    assert_eq!(windows.mapped_total(), 0);
}

#[test]
fn sums_that_wrap_are_refused() {
    let windows = Windows::new().unwrap();
    let file = memory(8192);
    let whole_space = Area { range: IovaRange::FULL, ..area(&file, 0, 0, 1) };
    for area in [area(&file, 0, u64::MAX, 1), area(&file, 0, 1, u64::MAX), whole_space] {
        let error = windows.segments(&area).unwrap_err();
        assert!(matches!(error, WindowError::Overflow { .. }), "{error}");
        assert_eq!(error.errno(), libc::EOVERFLOW);
    }
}

#[test]
fn permissions_are_those_of_the_descriptor_even_where_a_writable_window_exists() {
    let windows = Windows::new().unwrap();
    let file = memory(8192);
    let writable = windows.segments(&area(&file, 0, 0, 8192)).unwrap();
    let reader = reopen(&file, OpenOptions::new().read(true));
    let error = windows.segments(&area(&reader, 0, 0, 8192)).unwrap_err();
    assert!(matches!(error, WindowError::Permission { .. }), "{error}");
    assert_eq!(error.errno(), libc::EACCES);

    let readable = windows.segments(&read_only(area(&reader, 0, 0, 8192))).unwrap();
    assert!(!same_window(&writable, &readable), "protection is not shared");
    writable[0].slice(Iova(5), 1).unwrap().fill(b'x');
    assert_eq!(readable[0].slice(Iova(5), 1).unwrap().read(0), Some(b'x'));

    let neither = Area { perm: Perm::empty(), ..area(&file, 0, 0, 1) };
    assert!(matches!(windows.segments(&neither), Err(WindowError::NoPermission)));
}

#[test]
fn windows_are_shared_by_who_holds_the_same_file_and_by_nobody_else() {
    let windows = Windows::new().unwrap();
    let file = memory(8192);
    let mine = windows.segments(&area(&file, 0, 0, 8192)).unwrap();
    let copy = BackingFile::new(file.as_fd().try_clone_to_owned().unwrap(), &FilePolicy::default()).unwrap();
    let again = reopen(&file, OpenOptions::new().read(true).write(true));
    for other in [&copy, &again] {
        assert!(same_window(&mine, &windows.segments(&area(other, 0x4000, 1, 100)).unwrap()));
    }
    let stranger = windows.segments(&area(&memory(8192), 0, 0, 8192)).unwrap();
    assert!(!same_window(&mine, &stranger));
    assert_eq!(windows.mapped_total(), 2);
}

#[test]
fn a_file_that_grew_gets_a_larger_window_and_the_old_one_stays() {
    let windows = Windows::new().unwrap();
    let file = memory(5000);
    let before = windows.segments(&area(&file, 0, 0, 5000)).unwrap();
    assert_eq!(before[0].window.len(), 8192, "rounded up to pages");
    resize(&file, 1 << 20);
    assert!(same_window(&before, &windows.segments(&area(&file, 0, 0, 8192)).unwrap()), "still fits");
    let after = windows.segments(&area(&file, 0, 0, 8193)).unwrap();
    assert_eq!(after[0].window.len(), 1 << 20);
    assert!(same_window(&after, &windows.segments(&area(&file, 0, 1 << 19, 64)).unwrap()));
    before[0].slice(Iova(7), 1).unwrap().fill(9);
    assert_eq!(after[0].slice(Iova(7), 1).unwrap().read(0), Some(9_u8));
}

#[test]
fn a_poisoned_window_is_not_handed_out_again() {
    let windows = Windows::new().unwrap();
    let file = memory(1 << 20);
    let old = windows.segments(&area(&file, 0, 0, 1 << 20)).unwrap();
    resize(&file, 4096);
    assert_eq!(old[0].slice(Iova(8192), 8).unwrap().read(0), Some(0_u64));
    assert!(old[0].window.poisoned());
    assert!(matches!(windows.segments(&area(&file, 0, 0, 1 << 20)), Err(WindowError::BeyondEnd { .. })));

    resize(&file, 1 << 20);
    pwrite(file.as_fd(), b"fresh", 8192).unwrap();
    let new = windows.segments(&area(&file, 0, 0, 1 << 20)).unwrap();
    assert!(!same_window(&old, &new));
    assert_eq!(new[0].slice(Iova(8192), 5).unwrap().read(0), Some(*b"fresh"));
    assert!(!new[0].window.poisoned());
    drop(old);
    assert!(same_window(&new, &windows.segments(&area(&file, 0, 0, 1)).unwrap()));
}

#[test]
fn losses_tell_of_windows_that_are_there_and_of_faults_that_ever_were() {
    let windows = Windows::new().unwrap();
    let (file, other) = (memory(1 << 20), memory(4096));
    let bad = windows.segments(&area(&file, 0, 0, 1 << 20)).unwrap();
    let fine = windows.segments(&area(&other, 0, 0, 4096)).unwrap();
    assert_eq!(windows.losses(), Losses::default());
    resize(&file, 0);
    for page in 0..3 {
        bad[0].slice(Iova(4096 * page), 1).unwrap().fill(0);
    }
    assert_eq!(windows.losses(), Losses { poisoned: 1, revoked: 0, faults: 3 });
    let occupied = Occupancy::of(&fine).unwrap();
    Occupancy::revoke([&occupied]).unwrap();
    assert_eq!(windows.losses(), Losses { poisoned: 1, revoked: 1, faults: 3 });
    drop((bad, fine, occupied));
    assert_eq!(windows.losses(), Losses { poisoned: 0, revoked: 0, faults: 3 });
    assert_eq!(Windows::new().unwrap().losses(), Losses::default(), "each has its own");
}

#[test]
fn a_file_sealed_against_writing_is_refused_for_writing_only() {
    let windows = Windows::new().unwrap();
    let file = memory(4096);
    fcntl_add_seals(file.as_fd(), SealFlags::WRITE).unwrap();
    let error = windows.segments(&area(&file, 0, 0, 4096)).unwrap_err();
    assert!(matches!(error, WindowError::Map(_)), "{error}");
    assert_eq!(error.errno(), libc::EPERM);
    assert_eq!(windows.live(), 0);
    assert!(windows.segments(&read_only(area(&file, 0, 0, 4096))).is_ok());
}

#[test]
fn windows_that_are_gone_are_forgotten() {
    let windows = Windows::new().unwrap();
    let kept: Vec<_> = (0..10).map(|_| windows.segments(&area(&memory(4096), 0, 0, 1)).unwrap()).collect();
    for _ in 0..2000 {
        windows.segments(&area(&memory(4096), 0, 0, 1)).unwrap();
    }
    let known = windows.known.lock().unwrap();
    let entries: usize = known.windows.values().map(Vec::len).sum();
    assert_eq!(entries, known.entries);
    assert!(entries <= 64, "{entries} entries for {} windows", windows.live());
    assert_eq!(windows.live(), kept.len());
}

#[test]
fn windows_are_not_inherited_and_not_dumped() {
    let windows = Windows::new().unwrap();
    let segments = windows.segments(&area(&memory(4096), 0, 0, 4096)).unwrap();
    let (address, _) = segments[0].slice(Iova(0), 1).unwrap().as_io_vec_parts();
    let maps = std::io::read_to_string(File::open("/proc/self/smaps").unwrap()).unwrap();
    let of_window = maps.lines().skip_while(|line| !line.starts_with(&format!("{address:x}-")));
    let flags = of_window.into_iter().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
    let flags: Vec<_> = flags.split_whitespace().collect();
    assert!(flags.contains(&"dc") && flags.contains(&"dd"), "{flags:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The naive model is the file itself, read and written by system calls.
    #[test]
    fn bytes_written_through_areas_are_the_bytes_of_the_file(
        writes in prop::collection::vec(
            (any::<u32>(), 0..40_000_u64, 1..30_000_u64, 0..30_000_u64, prop::collection::vec(any::<u8>(), 1..200)),
            1..20,
        ),
    ) {
        let windows = Windows::new().unwrap();
        let file = memory(40_000);
        let mut model = vec![0; 40_000];
        for (iova, offset, len, at, data) in writes {
            let area = area(&file, iova.into(), offset, len);
            match windows.segments(&area) {
                Err(error) => prop_assert!(offset + len > 40_000, "{}", error),
                Ok(segments) => {
                    prop_assert!(offset + len <= 40_000);
                    let slice = segments[0].slice(Iova(u64::from(iova) + at), data.len());
                    prop_assert_eq!(slice.is_some(), at + data.len() as u64 <= len);
                    if let Some(slice) = slice {
                        slice.copy_from(&data);
                        model[(offset + at) as usize..][..data.len()].copy_from_slice(&data);
                    }
                }
            }
        }
        let mut seen = vec![0; 40_000];
        prop_assert_eq!(pread(file.as_fd(), &mut seen, 0).unwrap(), seen.len());
        prop_assert_eq!(seen, model);
    }
}

#[test]
fn bytes_are_populated_with_their_pages_and_nothing_else_is() {
    let windows = Windows::new().unwrap();
    let file = memory(1 << 20);
    let allocated = || rustix::fs::fstat(file.as_fd()).unwrap().st_blocks * 512;
    let segment = windows.segments(&area(&file, 0, 0x1000, 0x8000)).unwrap().remove(0);
    assert_eq!(allocated(), 0);
    segment.window.populate(segment.offset + 0x10, 0x1000).unwrap();
    assert_eq!(allocated(), 0x2000);
    segment.window.populate(segment.offset, 0).unwrap();
    assert_eq!(allocated(), 0x2000);
}

#[test]
fn bytes_that_the_file_has_lost_are_not_populated_and_no_page_is_lost_by_it() {
    let windows = Windows::new().unwrap();
    let file = memory(1 << 20);
    let segment = windows.segments(&area(&file, 0, 0, 1 << 20)).unwrap().remove(0);
    resize(&file, 0x1000);
    assert!(segment.window.populate(0, 1 << 20).is_err());
    assert!(segment.window.populate(0, (1 << 30) + 1).is_err());
    assert!(segment.window.populate(u64::MAX, 2).is_err());
    assert!(!segment.window.poisoned());
    segment.window.populate(0, 0x1000).unwrap();
}
