//! Allowed and reserved ranges, alignment and the huge-page option.

use super::*;
use crate::{IoasError, IovaRanges, RangeOwner};

const EINVAL: i32 = 22;
const EMSGSIZE: i32 = 90;
const EADDRINUSE: i32 = 98;

const RW: Perm = Perm::READ.union(Perm::WRITE);

fn anywhere(ioas: &Ioas, file: &Arc<BackingFile>) -> Iova {
    ioas.map_anywhere(FileExtent { file: file.clone(), offset: PAGE }, PAGE, RW).unwrap()
}

fn errno<T: std::fmt::Debug>(result: Result<T, IoasError>) -> i32 {
    result.unwrap_err().errno()
}

#[test]
fn allowed_range_of_one_byte_or_that_overlaps_another_returns_einval_and_the_old_list_stays() {
    let s = space();
    let file = memory(4);
    s.ioas.allow_iovas(&[range(0x5000, PAGE)]).unwrap();
    assert_eq!(errno(s.ioas.allow_iovas(&[range(0x9000, PAGE), range(0x7000, 1)])), EINVAL);
    assert_eq!(errno(s.ioas.allow_iovas(&[range(0x9000, PAGE), range(0x7000, 0x2001)])), EINVAL);
    assert_eq!(anywhere(&s.ioas, &file), Iova(0x5000));
}

#[test]
fn allowed_range_that_is_reserved_returns_eaddrinuse_and_the_old_list_stays() {
    let s = space();
    let file = memory(4);
    s.ioas.allow_iovas(&[range(0x5000, PAGE)]).unwrap();
    s.ioas.reserve(range(0x9800, 8), RangeOwner(1)).unwrap();
    assert_eq!(errno(s.ioas.allow_iovas(&[range(0x7000, PAGE), range(0x9000, PAGE)])), EADDRINUSE);
    assert_eq!(anywhere(&s.ioas, &file), Iova(0x5000));
}

#[test]
fn range_with_an_area_or_an_allowed_one_in_it_cannot_be_reserved() {
    let s = space();
    s.ioas.map(area(&memory(1), 0x3000, PAGE, 0)).unwrap();
    s.ioas.allow_iovas(&[range(0x8000, PAGE)]).unwrap();
    assert_eq!(errno(s.ioas.reserve(range(0x2000, 0x1001), RangeOwner(1))), EADDRINUSE);
    assert_eq!(errno(s.ioas.reserve(range(0x8fff, 1), RangeOwner(1))), EADDRINUSE);
    s.ioas.allow_iovas(&[]).unwrap();
    s.ioas.reserve(range(0x8fff, 1), RangeOwner(1)).unwrap();
}

#[test]
fn reserved_ranges_go_with_their_owner() {
    let s = space();
    let file = memory(1);
    s.ioas.reserve(range(0x1000, PAGE), RangeOwner(1)).unwrap();
    s.ioas.reserve(range(0x1800, PAGE), RangeOwner(2)).unwrap();
    assert_eq!(s.ioas.unreserve(RangeOwner(1)), 1);
    s.ioas.map(area(&file, 0x1000, 0x800, 0)).unwrap();
    assert_eq!(errno(s.ioas.map(area(&file, 0x1800, 8, 0))), EINVAL);
    assert_eq!(s.ioas.unreserve(RangeOwner(2)), 1);
    s.ioas.map(area(&file, 0x1800, 8, 0)).unwrap();
}

#[test]
fn iova_ranges_are_the_holes_between_reserved_ones() {
    let s = space();
    let mut seen = [IovaRange::FULL; 3];
    assert_eq!(s.ioas.iova_ranges(&mut seen).unwrap(), IovaRanges { count: 1, alignment: 1 });
    assert_eq!(seen[0], IovaRange::FULL);
    s.ioas.reserve(range(0x1000, PAGE), RangeOwner(1)).unwrap();
    s.ioas.reserve(range(0xf000, PAGE), RangeOwner(1)).unwrap();
    s.ioas.map(area(&memory(1), 0x5000, PAGE, 0)).unwrap();
    s.ioas.set_huge_pages(false).unwrap();
    assert_eq!(s.ioas.iova_ranges(&mut seen).unwrap(), IovaRanges { count: 3, alignment: PAGE });
    let behind = IovaRange::new(Iova(0x1_0000), Iova(u64::MAX)).unwrap();
    assert_eq!(seen, [range(0, 0x1000), range(0x2000, 0xd000), behind]);
}

#[test]
fn iova_ranges_with_too_little_room_return_emsgsize_and_the_needed_count() {
    let s = space();
    s.ioas.reserve(range(0x1000, PAGE), RangeOwner(1)).unwrap();
    let mut seen = [IovaRange::FULL; 1];
    let error = s.ioas.iova_ranges(&mut seen).unwrap_err();
    assert_eq!(error.errno(), EMSGSIZE);
    assert!(matches!(error, IoasError::TooFewRanges { needed: 2 }));
    assert_eq!(seen, [range(0, 0x1000)], "filled as far as it goes");
    assert_eq!(errno(s.ioas.iova_ranges(&mut [])), EMSGSIZE);
}

#[test]
fn huge_pages_off_raise_the_alignment_and_on_lower_it() {
    let s = space();
    assert!(s.ioas.huge_pages());
    assert_eq!(s.ioas.iova_alignment(), 1);
    s.ioas.set_huge_pages(false).unwrap();
    assert!(!s.ioas.huge_pages());
    assert_eq!(s.ioas.iova_alignment(), PAGE);
    s.ioas.set_huge_pages(true).unwrap();
    assert_eq!(s.ioas.iova_alignment(), 1);
}

#[test]
fn huge_pages_off_with_an_unaligned_area_return_eaddrinuse_and_stay_on() {
    let file = memory(4);
    for (first, len, offset) in [(0x1800, PAGE, 0), (0x1000, 0x800, 0), (0x1000, PAGE, 0x800)] {
        let s = space();
        s.ioas.map(area(&file, first, len, offset)).unwrap();
        assert_eq!(errno(s.ioas.set_huge_pages(false)), EADDRINUSE, "{first:#x} {len:#x} {offset:#x}");
        assert!(s.ioas.huge_pages());
        assert_eq!(s.ioas.iova_alignment(), 1);
        s.ioas.unmap(IovaRange::FULL, LONG).unwrap();
        s.ioas.set_huge_pages(false).unwrap();
    }
}

#[test]
fn alignment_rises_with_an_access_that_pins_and_falls_when_it_has_left() {
    let s = space();
    let file = memory(4);
    let pinning = [(); 2].map(|()| Access::pinning(Arc::new(Recorder::default())));
    pinning.iter().for_each(|access| access.attach(&s.ioas).unwrap());
    assert_eq!(s.ioas.iova_alignment(), PAGE);
    assert_eq!(errno(s.ioas.map(area(&file, 0x1000, 0x800, 0))), EINVAL);
    pinning[0].detach(LONG).unwrap();
    assert_eq!(s.ioas.iova_alignment(), PAGE, "the other is still there");
    s.ioas.map(area(&file, 0x1000, PAGE, 0)).unwrap();
    let page = pinning[1].pin_pages(Iova(0x1000), PAGE, Perm::READ).unwrap();
    let leaving = pinning[1].begin_detach(LONG).unwrap();
    assert_eq!(s.ioas.iova_alignment(), PAGE, "it holds a page");
    page.unpin().unwrap();
    leaving.wait().unwrap();
    assert_eq!(s.ioas.iova_alignment(), 1);
    s.ioas.map(area(&file, 0x2000, 0x800, 0)).unwrap();
}

#[test]
fn access_that_pins_is_refused_with_eaddrinuse_where_an_area_is_unaligned() {
    let s = space();
    s.ioas.map(area(&memory(1), 0x1000, 0x800, 0)).unwrap();
    let pinning = Access::pinning(Arc::new(Recorder::default()));
    assert_eq!(pinning.attach(&s.ioas).unwrap_err().errno(), EADDRINUSE);
    assert_eq!(s.ioas.iova_alignment(), 1);
    assert_eq!(pinning.detach(LONG).unwrap_err().errno(), 2, "it is not attached");
    s.ioas.unmap_all(LONG).unwrap();
    pinning.attach(&s.ioas).unwrap();
}
