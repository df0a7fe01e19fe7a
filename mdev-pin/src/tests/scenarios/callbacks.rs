//! 7 to 12: what an unmap asks of devices.

use std::sync::{Barrier, mpsc::sync_channel};

use super::*;

#[test]
fn scenario_07_unmap_with_pin_calls_back_once_and_succeeds() {
    let _watchdog = watchdog("scenario 7");
    let device = Arc::new(Pager::default());
    let s = pinning_space(device.clone());
    let file = map_pages(&s.ioas, 1);
    device.pin(&s.access, range(0, PAGE), Perm::READ | Perm::WRITE).unwrap();
    assert_eq!(s.ioas.unmap(range(0, PAGE), LONG).unwrap(), PAGE);
    assert_eq!(*device.notified.lock().unwrap(), [range(0, PAGE)]);
    assert_eq!(errno(s.access.unpin_pages(Iova(0), PAGE)), 22, "the callback has unpinned it");
    assert_eq!(s.ioas.unmap(range(0, PAGE), LONG).unwrap_err().errno(), 2, "the area is gone");
    all_is_released(s, file);
}

#[test]
fn scenario_08_stubborn_device_fails_the_unmap_and_the_area_stays_gated() {
    let _watchdog = watchdog("scenario 8");
    let device = Arc::new(Pager::default());
    device.stubborn.store(1, Ordering::SeqCst);
    let s = pinning_space(device.clone());
    let file = map_pages(&s.ioas, 2);
    device.pin(&s.access, range(0, PAGE), Perm::READ).unwrap();
    assert_eq!(s.ioas.unmap(range(0, PAGE), SOON).unwrap_err().errno(), 35);
    assert_eq!(s.ioas.areas().len(), 2, "still mapped");
    assert_eq!(errno(s.access.pin_pages(Iova(0), PAGE, Perm::READ)), 22);
    assert_eq!(errno(s.access.rw(Iova(0), crate::Rw::Write(&[1]))), 22);
    assert_eq!(errno(s.access.rw(Iova(PAGE), crate::Rw::Write(&[1]))), 0, "another area is unaffected");
    s.access.unpin_pages(Iova(0), PAGE).unwrap();
    assert_eq!(errno(s.access.rw(Iova(0), crate::Rw::Write(&[1]))), 22, "gated until an unmap succeeds");
    assert_eq!(s.ioas.unmap(range(0, PAGE), LONG).unwrap(), PAGE);
    s.ioas.unmap(IovaRange::FULL, LONG).unwrap();
    all_is_released(s, file);
}

#[test]
fn scenario_09_callback_waits_for_the_device_lock_and_finds_the_pin() {
    let _watchdog = watchdog("scenario 9");
    let device = Arc::new(Pager::default());
    let s = pinning_space(device.clone());
    let file = map_pages(&s.ioas, 1);
    std::thread::scope(|scope| {
        let mut record = device.pages.lock().unwrap();
        let pages = s.access.pin_pages(Iova(0), PAGE, Perm::READ).unwrap();
        // Pinned, not recorded: the gap. The callback is past its first lock and waits for the second.
        let unmap = scope.spawn(|| s.ioas.unmap(range(0, PAGE), LONG));
        while device.notified.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(s.access.pins(), 1);
        record.push(pages);
        drop(record);
        assert_eq!(unmap.join().unwrap().unwrap(), PAGE);
    });
    all_is_released(s, file);
}

#[test]
fn scenario_09_without_the_device_lock_the_unmap_ends_in_edeadlock() {
    let _watchdog = watchdog("scenario 9, without the lock");
    let device = Arc::new(Pager::default());
    let s = pinning_space(device.clone());
    let file = map_pages(&s.ioas, 1);
    let pages = s.access.pin_pages(Iova(0), PAGE, Perm::READ).unwrap();
    let unmap =
        std::thread::scope(|scope| scope.spawn(|| s.ioas.unmap(range(0, PAGE), SOON)).join().unwrap());
    assert_eq!(unmap.unwrap_err().errno(), 35, "the callback could not know of the pin");
    device.pages.lock().unwrap().push(pages);
    assert_eq!(s.ioas.unmap(range(0, PAGE), LONG).unwrap(), PAGE);
    all_is_released(s, file);
}

#[test]
fn scenario_10_callback_unpins_while_another_thread_pins_another_area() {
    let _watchdog = watchdog("scenario 10");
    let device = Arc::new(Pager::default());
    let s = pinning_space(device.clone());
    let file = map_pages(&s.ioas, 2);
    let stop = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while stop.load(Ordering::SeqCst) == 0 {
                s.access.pin_pages(Iova(PAGE), PAGE, Perm::WRITE).unwrap();
                s.access.unpin_pages(Iova(PAGE), PAGE).unwrap();
            }
        });
        for _ in 0..500 {
            device.pin(&s.access, range(0, PAGE), Perm::READ).unwrap();
            assert_eq!(s.ioas.unmap(range(0, PAGE), LONG).unwrap(), PAGE);
            s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
        }
        stop.store(1, Ordering::SeqCst);
    });
    s.ioas.unmap(IovaRange::FULL, LONG).unwrap();
    all_is_released(s, file);
}

#[test]
fn scenario_11_every_access_is_notified_and_the_idle_one_returns_at_once() {
    let _watchdog = watchdog("scenario 11");
    let (busy, idle) = (Arc::new(Pager::default()), Arc::new(Pager::default()));
    let s = pinning_space(busy.clone());
    let second = Access::pinning(idle.clone());
    second.attach(&s.ioas).unwrap();
    let file = map_pages(&s.ioas, 2);
    busy.pin(&s.access, range(0, PAGE), Perm::READ).unwrap();
    idle.pin(&second, range(PAGE, PAGE), Perm::READ).unwrap();
    s.ioas.unmap(range(0, PAGE), LONG).unwrap();
    assert_eq!(*busy.notified.lock().unwrap(), [range(0, PAGE)]);
    assert_eq!(*idle.notified.lock().unwrap(), [range(0, PAGE)]);
    assert_eq!((s.access.pins(), second.pins()), (0, 1), "its other area is unaffected");
    s.ioas.unmap(IovaRange::FULL, LONG).unwrap();
    second.close(LONG).unwrap();
    all_is_released(s, file);
}

/// A device whose callback, but not the one of its own detach, stays until the test lets it go.
struct Paused {
    entered: std::sync::mpsc::SyncSender<()>,
    leave: Mutex<Receiver<()>>,
    running: AtomicUsize,
    calls: AtomicUsize,
}

impl AccessOps for Paused {
    fn on_unmap(&self, range: IovaRange) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if range != IovaRange::FULL {
            self.running.store(1, Ordering::SeqCst);
            self.entered.send(()).unwrap();
            self.leave.lock().unwrap().recv().unwrap();
            self.running.store(0, Ordering::SeqCst);
        }
    }
}

fn paused() -> (Arc<Paused>, Receiver<()>, std::sync::mpsc::SyncSender<()>) {
    let (entered, entries) = sync_channel(1);
    let (resume, leave) = sync_channel(1);
    let (running, calls) = (AtomicUsize::new(0), AtomicUsize::new(0));
    (Arc::new(Paused { entered, leave: Mutex::new(leave), running, calls }), entries, resume)
}

#[test]
fn scenario_12_destroy_waits_for_a_callback_and_none_runs_after_it() {
    let _watchdog = watchdog("scenario 12");
    let (device, entries, resume) = paused();
    let s = pinning_space(device.clone());
    let file = map_pages(&s.ioas, 2);
    let about_to_close = Barrier::new(2);
    std::thread::scope(|scope| {
        let unmap = scope.spawn(|| s.ioas.unmap(range(0, PAGE), LONG).unwrap());
        entries.recv_timeout(LONG).unwrap();
        let close = scope.spawn(|| {
            about_to_close.wait();
            s.access.close(LONG).unwrap();
            assert_eq!(device.running.load(Ordering::SeqCst), 0, "the callback had returned");
        });
        about_to_close.wait();
        std::thread::sleep(Duration::from_millis(10));
        resume.send(()).unwrap();
        close.join().unwrap();
        assert_eq!(unmap.join().unwrap(), PAGE);
    });
    let calls = device.calls.load(Ordering::SeqCst);
    s.ioas.unmap(IovaRange::FULL, LONG).unwrap();
    assert_eq!(device.calls.load(Ordering::SeqCst), calls, "no callback after destroy");
    all_is_released(s, file);
}

#[test]
fn scenario_12_destroy_gives_up_on_a_callback_that_stays_past_the_bound() {
    let _watchdog = watchdog("scenario 12, past the bound");
    let (device, entries, resume) = paused();
    let s = pinning_space(device.clone());
    let file = map_pages(&s.ioas, 1);
    std::thread::scope(|scope| {
        let unmap = scope.spawn(|| s.ioas.unmap(range(0, PAGE), LONG).unwrap());
        entries.recv_timeout(LONG).unwrap();
        assert_eq!(errno(s.access.close(LONG)), 16);
        resume.send(()).unwrap();
        unmap.join().unwrap();
    });
    all_is_released(s, file);
}
