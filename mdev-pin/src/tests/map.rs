//! Mapping at a fixed and at an allocated IOVA: where areas go, and the error of each row of iommufd's table.

use super::*;
use crate::{IoasError, RangeOwner};

const EPERM: i32 = 1;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EOVERFLOW: i32 = 75;

const RW: Perm = Perm::READ.union(Perm::WRITE);

fn at(file: &Arc<BackingFile>, offset: u64) -> FileExtent {
    FileExtent { file: file.clone(), offset }
}

fn errno<T: std::fmt::Debug>(result: Result<T, IoasError>) -> i32 {
    result.unwrap_err().errno()
}

#[test]
fn map_anywhere_takes_the_first_hole_that_is_aligned_as_the_source() {
    let s = space();
    let file = memory(16);
    let anywhere = |offset, length| s.ioas.map_anywhere(at(&file, offset), length, RW).unwrap().0;
    assert_eq!(anywhere(0, PAGE), PAGE, "never the first page");
    assert_eq!(anywhere(0, 4 * PAGE), 4 * PAGE);
    assert_eq!(anywhere(PAGE, 2 * PAGE), 2 * PAGE, "the hole before it");
    assert_eq!(anywhere(0x123, 0x100), 8 * PAGE + 0x123);
    rustix::io::pwrite(file.as_fd(), b"seen", 0x123).unwrap();
    let mut lane = s.access.lane();
    let burst = lane.enter();
    let slice = burst.slice(Iova(8 * PAGE + 0x123), 4, Perm::READ).unwrap();
    assert_eq!(slice.read::<[u8; 4]>(0), Some(*b"seen"));
}

#[test]
fn map_anywhere_keeps_to_allowed_ranges_and_out_of_reserved_ones() {
    let s = space();
    let file = memory(4);
    s.ioas.reserve(range(0x1000, 0x2000), RangeOwner(1)).unwrap();
    assert_eq!(s.ioas.map_anywhere(at(&file, PAGE), PAGE, RW).unwrap(), Iova(0x3000));
    s.ioas.allow_iovas(&[range(0x10_0000, 2 * PAGE)]).unwrap();
    assert_eq!(s.ioas.map_anywhere(at(&file, PAGE), PAGE, RW).unwrap(), Iova(0x10_0000));
    assert_eq!(s.ioas.map_anywhere(at(&file, PAGE), PAGE, RW).unwrap(), Iova(0x10_1000));
    assert_eq!(errno(s.ioas.map_anywhere(at(&file, PAGE), PAGE, RW)), ENOSPC);
    s.ioas.allow_iovas(&[]).unwrap();
    assert_eq!(s.ioas.map_anywhere(at(&file, PAGE), PAGE, RW).unwrap(), Iova(0x4000));
}

#[test]
fn map_anywhere_that_fits_nowhere_returns_enospc() {
    let s = space();
    let file = memory(4);
    s.ioas.allow_iovas(&[range(0x1000, PAGE)]).unwrap();
    assert_eq!(errno(s.ioas.map_anywhere(at(&file, PAGE), 2 * PAGE, RW)), ENOSPC);
    assert!(s.ioas.areas().is_empty());
}

#[test]
fn map_anywhere_of_half_the_space_or_of_an_offset_that_wraps_returns_eoverflow() {
    let s = space();
    let file = memory(4);
    assert_eq!(errno(s.ioas.map_anywhere(at(&file, 0), u64::MAX / 2, RW)), EOVERFLOW);
    assert_eq!(errno(s.ioas.map_anywhere(at(&file, 0), u64::MAX, RW)), EOVERFLOW);
    assert_eq!(errno(s.ioas.map_anywhere(at(&file, u64::MAX - 5), 10, RW)), EOVERFLOW);
}

#[test]
fn map_anywhere_of_nothing_or_for_nothing_returns_einval() {
    let s = space();
    let file = memory(4);
    assert_eq!(errno(s.ioas.map_anywhere(at(&file, 0), 0, RW)), EINVAL);
    assert_eq!(errno(s.ioas.map_anywhere(at(&file, 0), PAGE, Perm::empty())), EINVAL);
}

#[test]
fn map_anywhere_of_a_source_less_aligned_than_the_space_returns_einval() {
    let s = space();
    let file = memory(4);
    s.ioas.set_huge_pages(false).unwrap();
    for (offset, length) in [(0x100, PAGE), (0, 0x800), (0, PAGE + 0x800)] {
        assert_eq!(
            errno(s.ioas.map_anywhere(at(&file, offset), length, RW)),
            EINVAL,
            "{offset:#x} {length:#x}"
        );
    }
    assert_eq!(s.ioas.map_anywhere(at(&file, PAGE), PAGE, RW).unwrap(), Iova(PAGE));
}

#[test]
fn map_anywhere_beyond_the_end_of_its_file_returns_einval_and_takes_no_place() {
    let s = space();
    let file = memory(1);
    assert_eq!(errno(s.ioas.map_anywhere(at(&file, 0), 2 * PAGE, RW)), EINVAL);
    assert_eq!(s.ioas.map_anywhere(at(&file, 0), PAGE, RW).unwrap(), Iova(PAGE));
}

#[test]
fn fixed_map_ignores_the_allowed_ranges() {
    let s = space();
    let file = memory(4);
    s.ioas.allow_iovas(&[range(0x10_0000, PAGE)]).unwrap();
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    assert_eq!(s.ioas.areas().len(), 1);
}

#[test]
fn fixed_map_in_a_reserved_range_returns_einval() {
    let s = space();
    let file = memory(4);
    s.ioas.reserve(range(0x2000, PAGE), RangeOwner(7)).unwrap();
    for (first, len) in [(0x2000, PAGE), (0x1000, 2 * PAGE), (0x2fff, 1)] {
        assert_eq!(errno(s.ioas.map(area(&file, first, len, 0))), EINVAL, "{first:#x}");
    }
    assert_eq!(s.ioas.unreserve(RangeOwner(7)), 1);
    s.ioas.map(area(&file, 0x1000, 2 * PAGE, 0)).unwrap();
}

#[test]
fn fixed_map_less_aligned_than_the_space_returns_einval() {
    let s = space();
    let file = memory(4);
    s.ioas.set_huge_pages(false).unwrap();
    for (first, len, offset) in [(0x1001, PAGE, 0), (0x1000, PAGE + 1, 0), (0x1000, PAGE, 1)] {
        assert_eq!(
            errno(s.ioas.map(area(&file, first, len, offset))),
            EINVAL,
            "{first:#x} {len:#x} {offset:#x}"
        );
    }
    s.ioas.map(area(&file, 0x1000, PAGE, PAGE)).unwrap();
}

#[test]
fn fixed_map_at_the_last_address_or_of_the_whole_space_returns_eoverflow() {
    let s = space();
    let file = memory(1);
    assert_eq!(errno(s.ioas.map(area(&file, u64::MAX, 1, 0))), EOVERFLOW);
    let whole = Area { range: IovaRange::FULL, ..area(&file, 0, 1, 0) };
    assert_eq!(errno(s.ioas.map(whole)), EOVERFLOW);
    let file_offset_wraps = area(&file, 0, PAGE, u64::MAX - 5);
    assert_eq!(errno(s.ioas.map(file_offset_wraps)), EOVERFLOW);
}

#[test]
fn range_of_no_bytes_is_einval_and_one_that_wraps_is_eoverflow() {
    let with_len = |first, len| errno(IovaRange::with_len(Iova(first), len).map_err(IoasError::from));
    assert_eq!(with_len(0x1000, 0), EINVAL);
    assert_eq!(with_len(u64::MAX, 2), EOVERFLOW);
}

#[test]
fn fixed_map_over_an_area_returns_eexist_even_where_the_file_is_too_short() {
    let s = space();
    let file = memory(1);
    s.ioas.map(area(&file, 0x1000, PAGE, 0)).unwrap();
    assert_eq!(errno(s.ioas.map(area(&file, 0x1fff, 8 * PAGE, 0))), EEXIST);
}

#[test]
fn fixed_map_that_grants_nothing_returns_einval() {
    let s = space();
    let nothing = Area { perm: Perm::empty(), ..area(&memory(1), 0, PAGE, 0) };
    assert_eq!(errno(s.ioas.map(nothing)), EINVAL);
}

#[test]
fn fixed_map_for_writing_to_a_file_that_is_open_for_reading_returns_eperm() {
    let s = space();
    let file = memory(1);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file.as_fd()));
    let fd: OwnedFd = std::fs::File::open(path).unwrap().into();
    let readonly = BackingFile::new(fd, &FilePolicy::default()).unwrap();
    assert_eq!(errno(s.ioas.map(area(&readonly, 0, PAGE, 0))), EPERM);
    s.ioas.map(Area { perm: Perm::READ, ..area(&readonly, 0, PAGE, 0) }).unwrap();
}

#[test]
fn table_that_breaks_the_rules_of_the_space_is_refused_whole() {
    let s = space();
    let file = memory(4);
    s.ioas.map(area(&file, 0x8000, PAGE, 0)).unwrap();
    s.ioas.reserve(range(0x2000, PAGE), RangeOwner(7)).unwrap();
    s.ioas.set_huge_pages(false).unwrap();
    let fine = || area(&file, 0x1000, PAGE, 0);
    for wrong in [area(&file, 0x2000, PAGE, 0), area(&file, 0x4100, PAGE, 0)] {
        assert_eq!(errno(s.ioas.replace_table(vec![fine(), wrong], LONG)), EINVAL);
    }
    assert_eq!(s.ioas.areas().first().unwrap().range, range(0x8000, PAGE));
    s.ioas.replace_table(vec![fine()], LONG).unwrap();
}

#[test]
fn destroyed_space_returns_enoent_and_an_attached_one_ebusy() {
    let s = space();
    let file = memory(4);
    s.ioas.map(area(&file, 0x1000, 2 * PAGE, 0)).unwrap();
    s.ioas.map(area(&file, 0x8000, PAGE, 0)).unwrap();
    assert_eq!(errno(s.ioas.destroy()), 16);
    assert_eq!(s.ioas.areas().len(), 2, "nothing is unmapped");
    s.access.detach(LONG).unwrap();
    assert_eq!(s.ioas.destroy().unwrap(), 3 * PAGE);
    assert_eq!(s.windows.live(), 0);
    assert_eq!(errno(s.ioas.destroy()), ENOENT);
    assert_eq!(errno(s.ioas.map(area(&file, 0x1000, PAGE, 0))), ENOENT);
    assert_eq!(errno(s.ioas.map_anywhere(at(&file, 0), PAGE, RW)), ENOENT);
    assert_eq!(errno(s.ioas.unmap(IovaRange::FULL, LONG)), ENOENT);
    assert_eq!(errno(s.ioas.replace_table(vec![], LONG)), ENOENT);
    assert_eq!(s.access.attach(&s.ioas).unwrap_err().errno(), ENOENT);
}

#[test]
fn threads_that_map_anywhere_at_once_never_share_a_byte() {
    const EACH: u64 = 50;
    let s = space();
    let file = memory(4);
    let mapped: Vec<u64> = std::thread::scope(|scope| {
        let map = || (0..EACH).map(|_| s.ioas.map_anywhere(at(&file, PAGE), PAGE, RW).unwrap().0).collect();
        let threads = [(); 3].map(|()| scope.spawn(map));
        threads.into_iter().flat_map(|thread| -> Vec<u64> { thread.join().unwrap() }).collect()
    });
    let mut sorted = mapped;
    sorted.sort_unstable();
    let expected: Vec<u64> = (1..=3 * EACH).map(|page| page * PAGE).collect();
    assert_eq!(sorted, expected, "without a gap, too");
}
