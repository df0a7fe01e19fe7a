//! K4 and K5: the order of an unmap, and what a device must do.

use std::sync::{Barrier, atomic::Ordering};

use super::*;

/// Pins a range and records it before the burst ends, as K5 asks.
fn pin_and_record(s: &Space, device: &Recorder, at: IovaRange) {
    let mut lane = s.access.lane();
    let burst = lane.enter();
    let len = u32::try_from(at.size()).unwrap();
    let pin = burst.pin(at.first(), len, Perm::READ).unwrap();
    device.pins.lock().unwrap().push((at, pin));
}

#[test]
fn unmap_with_pin_calls_back_once_and_succeeds() {
    let device = Arc::new(Recorder::default());
    let s = space_with(device.clone());
    let file = memory(4);
    s.ioas.map(area(&file, 0x1000, 2 * PAGE, 0)).unwrap();
    pin_and_record(&s, &device, range(0x1800, 16));
    assert_eq!(s.ioas.pins(), 1);
    assert_eq!(s.ioas.unmap(range(0x1000, 2 * PAGE), LONG).unwrap(), 2 * PAGE);
    assert_eq!(*device.notified.lock().unwrap(), [range(0x1000, 2 * PAGE)]);
    assert_eq!((s.ioas.pins(), s.ioas.areas().len()), (0, 0));
    assert_eq!(s.windows.live(), 0, "the file is no longer mapped");
}

#[test]
fn unmap_with_stubborn_device_returns_edeadlock_and_stays_gated() {
    let device = Arc::new(Recorder::default());
    device.stubborn.store(1, Ordering::SeqCst);
    let s = space_with(device.clone());
    let file = memory(4);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    s.ioas.map(area(&file, PAGE, PAGE, PAGE)).unwrap();
    pin_and_record(&s, &device, range(8, 8));
    assert_eq!(s.ioas.unmap(range(0, PAGE), SOON).unwrap_err().errno(), 35);
    let mut lane = s.access.lane();
    {
        let burst = lane.enter();
        assert_eq!(burst.slice(Iova(0), 1, Perm::READ).map(|s| s.len()), Err(ResolveError::Gated));
        assert_eq!(burst.pin(Iova(0), 1, Perm::READ).unwrap_err().errno(), 22);
        assert!(burst.slice(Iova(PAGE), 1, Perm::READ).is_ok(), "another area is untouched");
    }
    assert_eq!(s.ioas.areas().len(), 2, "nothing was released");
    assert_eq!(s.ioas.map(area(&file, 0, PAGE, 0)).unwrap_err().errno(), 17);
    device.pins.lock().unwrap().clear();
    assert_eq!(s.ioas.unmap(range(0, PAGE), LONG).unwrap(), PAGE);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    assert!(lane.enter().slice(Iova(0), 1, Perm::READ).is_ok());
}

#[test]
fn unmap_of_half_an_area_returns_enoent_and_changes_nothing() {
    let s = space();
    let file = memory(4);
    s.ioas.map(area(&file, 0, 2 * PAGE, 0)).unwrap();
    for half in [range(0, PAGE), range(PAGE, PAGE), range(1, 4 * PAGE), range(4 * PAGE, PAGE)] {
        assert_eq!(s.ioas.unmap(half, LONG).unwrap_err().errno(), 2);
    }
    assert!(s.access.lane().enter().slice(Iova(0), 1, Perm::READ).is_ok());
    assert_eq!(s.ioas.unmap(IovaRange::FULL, LONG).unwrap(), 2 * PAGE);
    assert_eq!(s.ioas.unmap(IovaRange::FULL, LONG).unwrap(), 0, "unmap-all succeeds on an empty space");
}

#[test]
fn unmap_of_two_areas_frees_the_first_when_the_second_is_stubborn() {
    let device = Arc::new(Recorder::default());
    device.stubborn.store(1, Ordering::SeqCst);
    let s = space_with(device.clone());
    let file = memory(4);
    for page in [0, 1, 2] {
        s.ioas.map(area(&file, page * PAGE, PAGE, page * PAGE)).unwrap();
    }
    pin_and_record(&s, &device, range(PAGE, 8));
    assert_eq!(s.ioas.unmap(IovaRange::FULL, SOON).unwrap_err().errno(), 35);
    assert_eq!(s.ioas.areas().iter().map(|a| a.range.first().0).collect::<Vec<_>>(), [PAGE, 2 * PAGE]);
    s.ioas.map(area(&file, 0, PAGE, 3 * PAGE)).unwrap();
    assert!(s.access.lane().enter().slice(Iova(2 * PAGE), 1, Perm::READ).is_ok(), "the third is as it was");
    device.pins.lock().unwrap().clear();
    assert_eq!(s.ioas.unmap(IovaRange::FULL, LONG).unwrap(), 3 * PAGE);
}

#[test]
fn unmap_of_thousands_of_areas_takes_several_polls_and_lanes_go_on_between_them() {
    let s = space();
    let file = memory(2);
    let areas = u64::from(crate::change::AT_ONCE) * 2 + 10;
    for number in 0..areas {
        s.ioas.map(area(&file, number * 2 * PAGE, PAGE, 0)).unwrap();
    }
    let last = Iova((areas - 1) * 2 * PAGE);
    let mut change = s.ioas.begin_unmap(IovaRange::FULL, LONG).unwrap();
    assert!(s.access.lane().enter().slice(last, 1, Perm::READ).is_ok(), "its turn has not come");
    assert_eq!(s.ioas.unmap(range(0, PAGE), LONG).unwrap_err().errno(), 2, "the first is gone");
    let mut polls = 0;
    let outcome = loop {
        polls += 1;
        if let Some(outcome) = change.poll() {
            break outcome;
        }
    };
    assert_eq!((outcome.unwrap(), polls), (areas * PAGE, 2));
    assert!(s.ioas.areas().is_empty() && s.windows.live() == 0);
}

#[test]
fn unmap_waits_for_a_burst_that_saw_the_area_and_not_for_later_ones() {
    let s = space();
    let file = memory(1);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let (entered, leave, left) = (Barrier::new(2), Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut lane = s.access.lane();
            let burst = lane.enter();
            let slice = burst.slice(Iova(0), 8, Perm::WRITE).unwrap();
            entered.wait();
            leave.wait();
            slice.copy_from(&[1; 8]);
            drop(burst);
            let later = lane.enter();
            assert_eq!(later.slice(Iova(0), 8, Perm::WRITE).map(|s| s.len()), Err(ResolveError::Gated));
            left.wait();
            leave.wait();
        });
        entered.wait();
        let mut change = s.ioas.begin_unmap(range(0, PAGE), LONG).unwrap();
        assert!(change.poll().is_none(), "the burst may still write");
        assert_eq!(s.ioas.unmap(range(0, PAGE), LONG).unwrap_err().errno(), 16, "leaving already");
        leave.wait();
        left.wait();
        // The later burst read the gated table: the area goes, and only its release waits.
        assert!(change.poll().is_none());
        assert_eq!(s.ioas.areas().len(), 0);
        leave.wait();
        assert_eq!(change.wait().unwrap(), PAGE);
    });
    assert_eq!(s.windows.live(), 0);
}

#[test]
fn change_that_is_dropped_leaves_the_area_gated_and_a_retry_works() {
    let device = Arc::new(Recorder::default());
    device.stubborn.store(1, Ordering::SeqCst);
    let s = space_with(device.clone());
    let file = memory(1);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    pin_and_record(&s, &device, range(0, 8));
    drop(s.ioas.begin_unmap(range(0, PAGE), LONG).unwrap());
    assert_eq!(s.access.lane().enter().slice(Iova(0), 1, Perm::READ).unwrap_err(), ResolveError::Gated);
    device.pins.lock().unwrap().clear();
    assert_eq!(s.ioas.unmap(range(0, PAGE), LONG).unwrap(), PAGE);
}

#[test]
fn every_access_is_notified_and_the_idle_one_is_not_waited_for() {
    let (busy, idle) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    let s = space_with(busy.clone());
    let second = Access::new(idle.clone());
    second.attach(&s.ioas).unwrap();
    let file = memory(1);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    pin_and_record(&s, &busy, range(0, 8));
    s.ioas.unmap(range(0, PAGE), LONG).unwrap();
    assert_eq!((busy.notified.lock().unwrap().len(), idle.notified.lock().unwrap().len()), (1, 1));
}

#[test]
fn pin_that_races_with_unmap_is_refused_or_waited_for() {
    let device = Arc::new(Recorder::default());
    let s = space_with(device.clone());
    let file = memory(1);
    let stop = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut lane = s.access.lane();
            while stop.load(Ordering::SeqCst) == 0 {
                let burst = lane.enter();
                match burst.pin(Iova(8), 8, Perm::WRITE) {
                    Ok(pin) => device.pins.lock().unwrap().push((range(8, 8), pin)),
                    Err(error) => assert!(matches!(error, ResolveError::Hole | ResolveError::Gated)),
                }
                drop(burst);
                device.pins.lock().unwrap().clear();
            }
        });
        for _ in 0..500 {
            s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
            std::thread::yield_now();
            assert_eq!(s.ioas.unmap(range(0, PAGE), LONG).unwrap(), PAGE);
            assert_eq!(s.windows.live(), 0);
        }
        stop.store(1, Ordering::SeqCst);
    });
    assert_eq!(s.ioas.pins(), 0);
}

#[test]
fn unmap_of_a_hole_returns_enoent_and_a_superset_returns_the_bytes() {
    let s = space();
    let file = memory(4);
    s.ioas.map(area(&file, 0x2000, PAGE, 0)).unwrap();
    s.ioas.map(area(&file, 0x5000, 2 * PAGE, PAGE)).unwrap();
    assert_eq!(s.ioas.unmap(range(0x3000, 0x2000), LONG).unwrap_err().errno(), 2);
    assert_eq!(s.ioas.unmap(range(0, 0x10_0000), LONG).unwrap(), 3 * PAGE);
    assert_eq!(s.ioas.unmap(range(0, 0x10_0000), LONG).unwrap_err().errno(), 2);
}

#[test]
fn unmap_all_returns_the_bytes_and_succeeds_on_an_empty_space() {
    let s = space();
    let file = memory(4);
    s.ioas.map(area(&file, 0x2001, 5, 0)).unwrap();
    s.ioas.map(area(&file, 0x5000, PAGE, 0)).unwrap();
    assert_eq!(s.ioas.unmap_all(LONG).unwrap(), PAGE + 5);
    assert_eq!(s.ioas.unmap_all(LONG).unwrap(), 0);
}

#[test]
fn unmap_of_an_area_that_is_leaving_returns_ebusy() {
    let s = space();
    s.ioas.map(area(&memory(1), 0x2000, PAGE, 0)).unwrap();
    let pin = s.access.lane().enter().pin(Iova(0x2000), 1, Perm::READ).unwrap();
    let change = s.ioas.begin_unmap(range(0x2000, PAGE), LONG).unwrap();
    assert_eq!(s.ioas.unmap_all(LONG).unwrap_err().errno(), 16);
    drop(pin);
    assert_eq!(change.wait().unwrap(), PAGE);
}
