//! `pin_pages`, `unpin_pages` and `rw`: Linux's codes, counts and bytes.

use super::*;
use crate::{Pages, Rw};

/// A device on control paths: it records pages under the lock it holds while it pins, and unpins what it is told.
#[derive(Default)]
pub struct Pager {
    pub pages: Mutex<Vec<Pages>>,
    pub notified: Mutex<Vec<IovaRange>>,
    pub stubborn: AtomicUsize,
}

impl Pager {
    pub fn pin(&self, access: &Access, at: IovaRange, perm: Perm) -> Result<(), crate::AccessError> {
        let mut pages = self.pages.lock().unwrap();
        pages.push(access.pin_pages(at.first(), at.size() as u64, perm)?);
        Ok(())
    }
}

impl AccessOps for Pager {
    fn on_unmap(&self, range: IovaRange) {
        self.notified.lock().unwrap().push(range);
        if self.stubborn.load(Ordering::SeqCst) == 0 {
            let mut pages = self.pages.lock().unwrap();
            for gone in pages.extract_if(.., |pages| pages.range().intersection(range).is_some()) {
                gone.unpin().unwrap();
            }
        }
    }
}

fn errno<T>(result: Result<T, crate::AccessError>) -> i32 {
    result.map(drop).map_or_else(|error| error.errno(), |()| 0)
}

#[test]
fn errors_of_pin_pages_and_rw_are_those_of_linux() {
    let s = pinning_space(Arc::new(Pager::default()));
    let file = memory(8);
    let with = |iova, len, offset, perm| {
        s.ioas.map(mdev_dma::Area { perm, ..area(&file, iova, len, offset) }).unwrap();
    };
    with(0, 2 * PAGE, 0, Perm::READ | Perm::WRITE);
    with(2 * PAGE, PAGE, 2 * PAGE, Perm::READ);
    with(3 * PAGE, PAGE, 3 * PAGE, Perm::WRITE);
    let pin = |iova, len, perm| errno(s.access.pin_pages(Iova(iova), len, perm));
    let read = |iova, len| errno(s.access.rw(Iova(iova), Rw::Read(&mut vec![0; len])));
    let write = |iova, len| errno(s.access.rw(Iova(iova), Rw::Write(&vec![1; len])));
    for (iova, len, code) in [(0, 0, 22), (u64::MAX, 2, 75), (4 * PAGE, 1, 2), (3 * PAGE, PAGE + 1, 2)] {
        assert_eq!(pin(iova, len, Perm::WRITE), code, "pin {len} at {iova:#x}");
        assert_eq!(write(iova, len as usize), code, "write {len} at {iova:#x}");
    }
    assert_eq!(errno(s.access.unpin_pages(Iova(0), 0)), 22);
    assert_eq!(errno(s.access.unpin_pages(Iova(u64::MAX), 2)), 75);
    assert_eq!((pin(0, u64::MAX, Perm::READ), pin(1, u64::MAX, Perm::READ)), (1, 22));
    // Permission, over areas, and both directions.
    assert_eq!((pin(PAGE, 2 * PAGE, Perm::WRITE), write(PAGE, 2 * PAGE as usize)), (1, 1));
    assert_eq!((pin(3 * PAGE, 1, Perm::READ), read(3 * PAGE, 1)), (1, 1));
    assert_eq!((pin(PAGE, 2 * PAGE, Perm::READ), read(PAGE, 2 * PAGE as usize)), (0, 0));
    assert_eq!(pin(0, PAGE, Perm::empty()), 22);
    // Alignment concerns pins only, and goes before permission.
    assert_eq!((pin(8, 8, Perm::READ), read(8, 8)), (22, 0));
    assert_eq!(pin(3 * PAGE + 8, 8, Perm::READ), 22);
    assert_eq!(pin(0, 8, Perm::READ), 0, "only the start must be aligned");
    s.access.unpin_pages(Iova(0), 8).unwrap();
    s.access.unpin_pages(Iova(PAGE), 2 * PAGE).unwrap();
    assert_eq!(s.access.pins(), 0, "failed pins leave nothing");
    s.access.detach(LONG).unwrap();
    assert_eq!((pin(0, PAGE, Perm::READ), read(0, 1)), (2, 2));
}

#[test]
fn access_that_does_not_need_pins_is_refused_them_but_may_copy() {
    let s = space();
    let file = memory(1);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    assert_eq!(errno(s.access.pin_pages(Iova(0), PAGE, Perm::READ)), 22);
    let mut seen = [9; 4];
    s.access.rw(Iova(1), Rw::Write(b"abc")).unwrap();
    s.access.rw(Iova(0), Rw::Read(&mut seen)).unwrap();
    assert_eq!(&seen, b"\0abc");
}

#[test]
fn same_range_is_counted_and_overlapping_ranges_are_separate() {
    let s = pinning_space(Arc::new(Pager::default()));
    let file = memory(4);
    s.ioas.map(area(&file, 0, 2 * PAGE, 0)).unwrap();
    s.ioas.map(area(&file, 2 * PAGE, 2 * PAGE, 2 * PAGE)).unwrap();
    let first = s.access.pin_pages(Iova(0), PAGE, Perm::READ).unwrap();
    let again = s.access.pin_pages(Iova(0), PAGE, Perm::WRITE).unwrap();
    let wide = s.access.pin_pages(Iova(0), 4 * PAGE, Perm::WRITE).unwrap();
    assert_eq!(wide.with(|pin| pin.slices().map(|s| s.len()).collect::<Vec<_>>()).unwrap(), [8192, 8192]);
    wide.with(|pin| pin.slices().for_each(|slice| slice.fill(7))).unwrap();
    for wrong in [(0, 2 * PAGE), (PAGE, PAGE), (0, PAGE - 1)] {
        assert_eq!(errno(s.access.unpin_pages(Iova(wrong.0), wrong.1)), 22, "{wrong:?}");
    }
    s.access.unpin_pages(Iova(0), PAGE).unwrap();
    assert_eq!(first.with(|pin| pin.slices().next().unwrap().read::<u8>(0)).unwrap(), Some(7));
    again.unpin().unwrap();
    assert_eq!(first.with(|_| ()).unwrap_err().errno(), 22, "pages are not shown after the last unpin");
    assert_eq!(errno(s.access.unpin_pages(Iova(0), PAGE)), 22, "unpinned once too often");
    assert_eq!(s.access.pins(), 2, "the wide one, over two areas");
    wide.unpin().unwrap();
    assert_eq!((s.access.pins(), s.ioas.unmap(IovaRange::FULL, LONG).unwrap()), (0, 4 * PAGE));
}

#[test]
fn rw_over_areas_copies_those_before_the_one_that_fails() {
    let s = space();
    let file = memory(4);
    s.ioas.map(area(&file, 0x1001, 5, 0)).unwrap();
    s.ioas.map(area(&file, 0x1006, 5, PAGE)).unwrap();
    let mut readonly = area(&file, 0x100b, 5, 2 * PAGE);
    readonly.perm = Perm::READ;
    s.ioas.map(readonly).unwrap();
    assert_eq!(errno(s.access.rw(Iova(0x1003), Rw::Write(b"abcdefghij"))), 1);
    let mut seen = [0; 10];
    s.access.rw(Iova(0x1003), Rw::Read(&mut seen)).unwrap();
    assert_eq!(&seen, b"abcdefgh\0\0");
    let mut short = [0; 20];
    assert_eq!(errno(s.access.rw(Iova(0x1001), Rw::Read(&mut short))), 2);
    assert_eq!(&short[2..10], b"abcdefgh");
    assert_eq!((s.access.pins(), s.ioas.unmap(IovaRange::FULL, LONG).unwrap()), (0, 15));
    assert_eq!(s.windows.live(), 0);
}

#[test]
fn neighbouring_areas_are_pinned_at_once_wherever_their_pages_lie_in_the_file() {
    let s = pinning_space(Arc::new(Pager::default()));
    let file = memory(8);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    s.ioas.map(area(&file, PAGE, PAGE, 4 * PAGE)).unwrap();
    assert_eq!(errno(s.access.pin_pages(Iova(0), 2 * PAGE, Perm::READ)), 0);
    s.access.unpin_pages(Iova(0), 2 * PAGE).unwrap();
    s.ioas.unmap(IovaRange::FULL, LONG).unwrap();
}

#[test]
fn pages_of_a_truncated_file_are_refused_and_lost_ones_are_told() {
    let s = pinning_space(Arc::new(Pager::default()));
    let (file, fine) = (memory(3), memory(1));
    s.ioas.map(area(&file, 0, 3 * PAGE, 0)).unwrap();
    s.ioas.map(area(&fine, 3 * PAGE, PAGE, 0)).unwrap();
    let pages = s.access.pin_pages(Iova(0), 4 * PAGE, Perm::READ).unwrap();
    ftruncate(file.as_fd(), PAGE + 1).unwrap();
    assert_eq!(errno(s.access.pin_pages(Iova(0), 3 * PAGE, Perm::READ)), 22);
    assert_eq!(errno(s.access.rw(Iova(PAGE), Rw::Read(&mut [0; 2 * PAGE as usize]))), 22);
    assert_eq!(
        errno(s.access.rw(Iova(PAGE), Rw::Read(&mut [0; PAGE as usize]))),
        0,
        "its last page is there"
    );
    let lost = pages.with(|pin| pin.slices().map(|slice| slice.read::<u8>(2 * PAGE as usize)).next());
    assert_eq!(lost.unwrap_err().errno(), 14, "not data");
    assert_eq!(errno(s.access.rw(Iova(0), Rw::Write(&[1]))), 14, "the window is poisoned");
    assert_eq!(errno(s.access.rw(Iova(3 * PAGE), Rw::Write(&[1]))), 0, "another file is not to blame");
    pages.unpin().unwrap();
    s.ioas.unmap(IovaRange::FULL, LONG).unwrap();
    assert_eq!((s.access.pins(), s.windows.live()), (0, 0));
}

#[test]
fn unpin_works_while_a_detach_is_in_flight_and_pin_does_not() {
    let device = Arc::new(Pager::default());
    device.stubborn.store(1, Ordering::SeqCst);
    let s = pinning_space(device.clone());
    let file = memory(2);
    s.ioas.map(area(&file, 0, 2 * PAGE, 0)).unwrap();
    device.pin(&s.access, range(0, PAGE), Perm::READ).unwrap();
    let mut detach = s.access.begin_detach(LONG).unwrap();
    assert!(detach.poll().is_none());
    assert_eq!(errno(s.access.pin_pages(Iova(0), PAGE, Perm::READ)), 2);
    s.access.unpin_pages(Iova(0), PAGE).unwrap();
    detach.wait().unwrap();
    assert_eq!(errno(s.access.unpin_pages(Iova(0), PAGE)), 22);
}

#[test]
fn access_dropped_with_pages_lets_them_go() {
    let device = Arc::new(Pager::default());
    device.stubborn.store(1, Ordering::SeqCst);
    let Space { windows, ioas, access } = pinning_space(device.clone());
    let file = memory(1);
    ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    device.pin(&access, range(0, PAGE), Perm::READ).unwrap();
    drop((access, ioas, file));
    assert_eq!(windows.live(), 0);
    assert_eq!(device.pages.lock().unwrap()[0].with(|_| ()).unwrap_err().errno(), 22);
}

#[test]
fn access_that_pins_demands_pages_while_it_is_attached() {
    let s = space();
    let file = memory(4);
    let pinning = Access::pinning(Arc::new(IgnoreUnmap));
    s.ioas.map(area(&file, 0x1010, 16, 0)).unwrap();
    assert_eq!(errno(pinning.attach(&s.ioas)), 98, "an area is in the way");
    s.ioas.unmap(IovaRange::FULL, LONG).unwrap();
    pinning.attach(&s.ioas).unwrap();
    assert_eq!(s.ioas.map(area(&file, 0x1010, 16, 0)).unwrap_err().errno(), 22);
    pinning.detach(LONG).unwrap();
    s.ioas.map(area(&file, 0x1010, 16, 0)).unwrap();
}
