//! Copies between spaces and within one, and the error of each row of iommufd's table.

use super::*;
use crate::{IoasError, Place, RangeOwner};

const RW: Perm = Perm::READ.union(Perm::WRITE);

/// A source with two contiguous areas at 0x1000 and 0x3000, of a file each byte of which tells its page, and an area
/// behind a hole at 0x8000 that can only be read.
fn source() -> (Space, Arc<BackingFile>) {
    let s = space();
    let file = memory(8);
    for page in 0..8 {
        rustix::io::pwrite(file.as_fd(), &[page as u8; PAGE as usize], page * PAGE).unwrap();
    }
    s.ioas.map(area(&file, 0x1000, 2 * PAGE, 0)).unwrap();
    s.ioas.map(area(&file, 0x3000, PAGE, 6 * PAGE)).unwrap();
    s.ioas.map(Area { perm: Perm::READ, ..area(&file, 0x8000, PAGE, 7 * PAGE) }).unwrap();
    (s, file)
}

/// Another space on the same windows.
fn beside(s: &Space) -> Space {
    let ioas = Ioas::new(s.windows.clone());
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas).unwrap();
    Space { windows: s.windows.clone(), ioas, access }
}

fn byte(s: &Space, at: u64) -> Result<u8, ResolveError> {
    let mut lane = s.access.lane();
    let burst = lane.enter();
    burst.slice(Iova(at), 1, Perm::READ).map(|slice| slice.read::<u8>(0).unwrap())
}

fn errno<T: std::fmt::Debug>(result: Result<T, IoasError>) -> i32 {
    result.unwrap_err().errno()
}

#[test]
fn copy_makes_an_area_of_each_source_area_and_shares_the_windows() {
    let (s, _file) = source();
    let t = beside(&s);
    let mapped = s.windows.mapped_total();
    let at = t.ioas.copy_from(&s.ioas, Iova(0x1800), 0x2100, Place::At(Iova(0x10_0003)), RW).unwrap();
    assert_eq!(at, Iova(0x10_0003));
    let areas: Vec<_> = t.ioas.areas().iter().map(|a| (a.range, a.extent.start())).collect();
    assert_eq!(areas, [(range(0x10_0003, 0x1800), 0x800), (range(0x10_1803, 0x900), 6 * PAGE)]);
    assert_eq!(s.windows.mapped_total(), mapped, "nothing was mapped anew");
    assert_eq!(byte(&t, 0x10_0003), Ok(0));
    assert_eq!(byte(&t, 0x10_0803), Ok(1));
    assert_eq!(byte(&t, 0x10_1803), Ok(6));
    assert_eq!(byte(&t, 0x10_2103), Err(ResolveError::Hole));
    assert_eq!(t.ioas.unmap(range(0x10_0003, 0x2100), LONG).unwrap(), 0x2100, "two areas");
}

#[test]
fn copy_outlives_its_source_and_both_show_the_same_bytes() {
    let (s, _file) = source();
    let t = beside(&s);
    t.ioas.copy_from(&s.ioas, Iova(0x1000), PAGE, Place::At(Iova(0)), RW).unwrap();
    let mut lane = t.access.lane();
    lane.enter().slice(Iova(16), 1, Perm::WRITE).unwrap().copy_from(&[99]);
    assert_eq!(byte(&s, 0x1010), Ok(99));
    let pin = lane.enter().pin(Iova(16), 1, Perm::READ).unwrap();
    assert_eq!(s.ioas.unmap_all(LONG).unwrap(), 4 * PAGE, "a pin on the copy is no pin on the source");
    assert_eq!(byte(&t, 16), Ok(99));
    drop(pin);
    t.ioas.unmap_all(LONG).unwrap();
    assert_eq!(s.windows.live(), 0);
}

#[test]
fn copy_within_a_space_and_to_an_allocated_place_keeps_the_offset_in_the_page() {
    let (s, _file) = source();
    let at = s.ioas.copy_from(&s.ioas, Iova(0x2010), 0x1800, Place::Anywhere, Perm::READ).unwrap();
    assert_eq!(at, Iova(0x4010));
    assert_eq!((byte(&s, 0x4010), byte(&s, 0x5000)), (Ok(1), Ok(6)));
    let mut lane = s.access.lane();
    let written = lane.enter().slice(Iova(0x4010), 1, Perm::WRITE).map(|slice| slice.len());
    assert_eq!(written, Err(ResolveError::Permission), "as much as was asked for");
}

#[test]
fn copy_keeps_the_dirty_log_only_within_a_space() {
    let s = space();
    let logged = Area { log: Some(0x7000), ..area(&memory(2), 0x1000, 2 * PAGE, 0) };
    s.ioas.map(logged).unwrap();
    let t = beside(&s);
    for (to, log) in [(&s, Some(0x8000)), (&t, None)] {
        to.ioas.copy_from(&s.ioas, Iova(0x2000), PAGE, Place::At(Iova(0x9000)), RW).unwrap();
        assert_eq!(to.ioas.areas().last().unwrap().log, log);
    }
}

#[test]
fn copy_over_a_hole_returns_enoent() {
    let (s, _file) = source();
    let t = beside(&s);
    for (from, length) in [(0, 1), (0xfff, 2), (0x1000, 0x3001), (0x3fff, 2), (0x3000, 0x6000), (0x7fff, 2)] {
        let copied = t.ioas.copy_from(&s.ioas, Iova(from), length, Place::At(Iova(0)), Perm::READ);
        assert_eq!(errno(copied), 2, "{from:#x} {length:#x}");
    }
    assert!(t.ioas.areas().is_empty());
}

#[test]
fn copy_of_nothing_or_for_nothing_returns_einval() {
    let (s, _file) = source();
    let copy = |length, perm| s.ioas.copy_from(&s.ioas, Iova(0x1000), length, Place::Anywhere, perm);
    assert_eq!(errno(copy(0, RW)), 22);
    assert_eq!(errno(copy(PAGE, Perm::empty())), 22);
}

#[test]
fn copy_that_wraps_at_either_end_returns_eoverflow() {
    let (s, _file) = source();
    let copy = |from, length, to| s.ioas.copy_from(&s.ioas, Iova(from), length, Place::At(Iova(to)), RW);
    assert_eq!(errno(copy(u64::MAX - 1, 3, 0)), 75);
    assert_eq!(errno(copy(u64::MAX, 1, 0)), 75);
    assert_eq!(errno(copy(0, u64::MAX, 0)), 75);
    assert_eq!(errno(copy(0x1000, PAGE, u64::MAX - 1)), 75);
}

#[test]
fn copy_for_writing_of_what_may_only_be_read_returns_eperm() {
    let (s, _file) = source();
    let copy = |perm| s.ioas.copy_from(&s.ioas, Iova(0x8000), 16, Place::At(Iova(0)), perm);
    assert_eq!(errno(copy(RW)), 1);
    assert_eq!(errno(copy(Perm::WRITE)), 1);
    assert!(copy(Perm::READ).is_ok());
}

#[test]
fn copy_onto_an_area_returns_eexist_and_maps_nothing() {
    let (s, _file) = source();
    let copied = s.ioas.copy_from(&s.ioas, Iova(0x1000), 0x3000, Place::At(Iova(0x5001)), RW);
    assert_eq!(errno(copied), 17, "the second of two areas is in the way");
    assert_eq!(s.ioas.areas().len(), 3);
}

#[test]
fn copy_to_a_reserved_or_misaligned_place_returns_einval() {
    let (s, _file) = source();
    let t = beside(&s);
    t.ioas.reserve(range(0x5000, PAGE), RangeOwner(1)).unwrap();
    let copy =
        |from, length, to| t.ioas.copy_from(&s.ioas, Iova(from), length, Place::At(Iova(to)), Perm::READ);
    assert_eq!(errno(copy(0x1000, 2 * PAGE, 0x4000)), 22);
    t.ioas.set_huge_pages(false).unwrap();
    assert_eq!(errno(copy(0x1000, PAGE, 0x8800)), 22);
    assert_eq!(errno(copy(0x1800, PAGE, 0x8000)), 22, "the file offset");
    assert_eq!(errno(copy(0x1000, 0x800, 0x8000)), 22);
    copy(0x1000, 3 * PAGE, 0x8000).unwrap();
}

#[test]
fn copy_that_fits_nowhere_returns_enospc() {
    let (s, _file) = source();
    s.ioas.allow_iovas(&[range(0x1000, 3 * PAGE)]).unwrap();
    assert_eq!(errno(s.ioas.copy_from(&s.ioas, Iova(0x1000), PAGE, Place::Anywhere, RW)), 28);
}

#[test]
fn copy_from_or_to_a_destroyed_space_returns_enoent() {
    let (s, _file) = source();
    let gone = Ioas::new(s.windows.clone());
    gone.destroy().unwrap();
    assert_eq!(errno(gone.copy_from(&s.ioas, Iova(0x1000), 1, Place::Anywhere, RW)), 2);
    assert_eq!(errno(s.ioas.copy_from(&gone, Iova(0x1000), 1, Place::Anywhere, RW)), 2);
}

#[test]
fn copy_inside_a_burst_returns_edeadlk() {
    let (s, _file) = source();
    let mut lane = s.access.lane();
    let _burst = lane.enter();
    assert_eq!(errno(s.ioas.copy_from(&s.ioas, Iova(0x1000), 1, Place::Anywhere, RW)), 35);
}
