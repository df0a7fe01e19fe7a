//! 13, 15 and 16: replacement, and what an unmap takes.

use super::*;

#[test]
fn scenario_13_replace_moves_pins_or_nothing() {
    let _watchdog = watchdog("scenario 13");
    let device = Arc::new(Pager::default());
    let s = pinning_space(device.clone());
    let file = map_pages(&s.ioas, 2);
    let (second, unaligned) = (Ioas::new(s.windows.clone()), Ioas::new(s.windows.clone()));
    unaligned.map(area(&file, 0x10, 0x20, 0)).unwrap();
    second.map(area(&file, 0, PAGE, PAGE)).unwrap();
    device.pin(&s.access, range(0, PAGE), Perm::READ).unwrap();
    device.pin(&s.access, range(0, 2 * PAGE), Perm::READ).unwrap();

    // A conflict: nothing has happened.
    assert_eq!(errno(s.access.replace(&unaligned, LONG)), 98);
    assert_eq!((s.access.pins(), s.ioas.pins(), device.notified.lock().unwrap().len()), (3, 3, 0));
    assert_eq!(errno(s.access.pin_pages(Iova(0), PAGE, Perm::READ)), 0, "still on the first space");
    s.access.unpin_pages(Iova(0), PAGE).unwrap();
    unaligned.destroy().unwrap();

    // A second change while one is under way, and what works meanwhile.
    device.stubborn.store(1, Ordering::SeqCst);
    let mut change = s.access.begin_replace(&second, LONG).unwrap().unwrap();
    assert!(change.poll().is_none());
    assert_eq!(*device.notified.lock().unwrap(), [IovaRange::FULL]);
    assert_eq!(errno(s.access.replace(&second, LONG)), 16);
    assert_eq!(errno(s.access.detach(LONG)), 16);
    assert_eq!(errno(s.access.pin_pages(Iova(0), PAGE, Perm::READ)), 2);
    assert_eq!(s.ioas.destroy().unwrap_err().errno(), 16, "its pins are out");
    device.pages.lock().unwrap().clear();
    s.access.unpin_pages(Iova(0), PAGE).unwrap();
    s.access.unpin_pages(Iova(0), 2 * PAGE).unwrap();
    change.wait().unwrap();

    // Arrived.
    assert_eq!(s.access.pins(), 0);
    s.ioas.destroy().unwrap();
    assert_eq!(errno(s.access.pin_pages(Iova(PAGE), PAGE, Perm::READ)), 2, "not mapped in the second space");
    let pages = s.access.pin_pages(Iova(0), PAGE, Perm::WRITE).unwrap();
    pages.with(|pin| pin.slices().for_each(|slice| slice.fill(5))).unwrap();
    assert_eq!((s.ioas.pins(), second.pins()), (0, 1));
    let mut seen = [0];
    rustix::io::pread(file.as_fd(), &mut seen, PAGE).unwrap();
    assert_eq!(seen, [5]);
    pages.unpin().unwrap();
    all_is_released(Space { ioas: second, ..s }, file);
}

#[test]
fn scenario_13_pins_of_a_busy_device_are_on_one_space_or_the_other() {
    let _watchdog = watchdog("scenario 13, busy");
    let device = Arc::new(Pager::default());
    let s = pinning_space(device.clone());
    let file = map_pages(&s.ioas, 1);
    let second = Ioas::new(s.windows.clone());
    second.map(area(&file, 0, PAGE, 0)).unwrap();
    let stop = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while stop.load(Ordering::SeqCst) == 0 {
                match device.pin(&s.access, range(0, PAGE), Perm::READ) {
                    Ok(()) => {}
                    Err(error) => assert_eq!(error.errno(), 2),
                }
                if let Some(pages) = device.pages.lock().unwrap().pop() {
                    pages.unpin().unwrap();
                }
            }
        });
        for _ in 0..300 {
            s.access.replace(&second, LONG).unwrap();
            assert_eq!((s.ioas.pins(), s.ioas.unmap(range(0, PAGE), LONG).unwrap()), (0, PAGE));
            s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
            s.access.replace(&s.ioas, LONG).unwrap();
            assert_eq!(second.pins(), 0);
        }
        stop.store(1, Ordering::SeqCst);
    });
    second.destroy().unwrap();
    s.ioas.unmap(IovaRange::FULL, LONG).unwrap();
    all_is_released(s, file);
}

#[test]
fn scenario_15_unmap_of_half_an_area_touches_nothing() {
    let _watchdog = watchdog("scenario 15");
    let device = Arc::new(Pager::default());
    let s = pinning_space(device.clone());
    let file = memory(2);
    s.ioas.map(area(&file, 0, 2 * PAGE, 0)).unwrap();
    device.pin(&s.access, range(0, 2 * PAGE), Perm::READ).unwrap();
    for half in [range(0, PAGE), range(PAGE, PAGE), range(PAGE, 4 * PAGE)] {
        assert_eq!(s.ioas.unmap(half, LONG).unwrap_err().errno(), 2);
    }
    assert_eq!((s.ioas.areas().len(), s.access.pins(), device.notified.lock().unwrap().len()), (1, 1, 0));
    assert_eq!(errno(s.access.pin_pages(Iova(0), PAGE, Perm::WRITE)), 0, "not gated");
    s.access.unpin_pages(Iova(0), PAGE).unwrap();
    assert_eq!(s.ioas.unmap(IovaRange::FULL, LONG).unwrap(), 2 * PAGE);
    all_is_released(s, file);
}

#[test]
fn scenario_16_unmap_of_two_areas_frees_the_first_and_fails_at_the_stubborn_one() {
    let _watchdog = watchdog("scenario 16");
    let device = Arc::new(Pager::default());
    device.stubborn.store(1, Ordering::SeqCst);
    let s = pinning_space(device.clone());
    let file = map_pages(&s.ioas, 2);
    device.pin(&s.access, range(PAGE, PAGE), Perm::READ).unwrap();
    assert_eq!(s.ioas.unmap(range(0, 2 * PAGE), SOON).unwrap_err().errno(), 35);
    assert_eq!(s.ioas.areas().iter().map(|area| area.range).collect::<Vec<_>>(), [range(PAGE, PAGE)]);
    assert_eq!(errno(s.access.pin_pages(Iova(PAGE), PAGE, Perm::READ)), 22, "gated");
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    assert_eq!(errno(s.access.rw(Iova(0), crate::Rw::Write(&[1]))), 0, "its IOVA was free for another area");
    s.access.unpin_pages(Iova(PAGE), PAGE).unwrap();
    assert_eq!(s.ioas.unmap(IovaRange::FULL, LONG).unwrap(), 2 * PAGE);
    all_is_released(s, file);
}
