//! K6 to K8: detach, close and destruction, and what they mean for others.

use super::*;

#[test]
fn detach_fails_every_later_lookup_and_leaves_others_alone() {
    let s = space();
    let other = Access::new(Arc::new(IgnoreUnmap));
    other.attach(&s.ioas).unwrap();
    let file = memory(1);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    s.access.detach(LONG).unwrap();
    for _ in 0..3 {
        let mut lane = s.access.lane();
        assert_eq!(lane.enter().pin(Iova(0), 1, Perm::READ).unwrap_err(), ResolveError::Detached);
        assert!(other.lane().enter().pin(Iova(0), 1, Perm::READ).is_ok());
    }
    s.ioas.map(area(&file, PAGE, PAGE, 0)).unwrap();
    assert_eq!(s.access.lane().enter().slice(Iova(PAGE), 1, Perm::READ).unwrap_err(), ResolveError::Detached);
    assert_eq!(s.access.detach(LONG).unwrap_err().errno(), 2);
    s.access.attach(&s.ioas).unwrap();
    assert_eq!(s.access.attach(&s.ioas).unwrap_err().errno(), 22);
    assert!(s.access.lane().enter().slice(Iova(PAGE), 1, Perm::READ).is_ok());
}

#[test]
fn detach_tells_the_device_to_let_everything_go() {
    let device = Arc::new(Recorder::default());
    let s = space_with(device.clone());
    let file = memory(2);
    s.ioas.map(area(&file, 0, 2 * PAGE, 0)).unwrap();
    {
        let mut lane = s.access.lane();
        let burst = lane.enter();
        for at in [0, PAGE] {
            let pin = burst.pin(Iova(at), 8, Perm::READ).unwrap();
            device.pins.lock().unwrap().push((range(at, 8), pin));
        }
    }
    s.access.close(LONG).unwrap();
    assert_eq!(*device.notified.lock().unwrap(), [IovaRange::FULL]);
    assert_eq!(s.access.pins(), 0);
    assert_eq!(s.access.attach(&s.ioas).unwrap_err().errno(), 2);
    s.ioas.unmap(IovaRange::FULL, LONG).unwrap();
    assert_eq!(device.notified.lock().unwrap().len(), 1, "no callback after close");
}

#[test]
fn detach_with_stubborn_device_times_out_and_can_be_repeated() {
    let device = Arc::new(Recorder::default());
    device.stubborn.store(1, Ordering::SeqCst);
    let s = space_with(device.clone());
    let file = memory(1);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let mut lane = s.access.lane();
    {
        let burst = lane.enter();
        let pin = burst.pin(Iova(0), 8, Perm::READ).unwrap();
        device.pins.lock().unwrap().push((range(0, 8), pin));
    }
    assert_eq!(s.access.detach(SOON).unwrap_err().errno(), 35);
    assert_eq!(lane.enter().slice(Iova(0), 1, Perm::READ).unwrap_err(), ResolveError::Detached);
    let mut second = s.access.begin_detach(LONG).unwrap();
    assert!(second.poll().is_none());
    assert_eq!(s.access.detach(LONG).unwrap_err().errno(), 16, "a change is under way");
    device.pins.lock().unwrap().clear();
    second.wait().unwrap();
    s.access.attach(&s.ioas).unwrap();
    assert!(lane.enter().slice(Iova(0), 1, Perm::READ).is_ok());
}

#[test]
fn space_lives_as_long_as_an_access_is_attached() {
    let Space { windows, ioas, access } = space();
    let file = memory(1);
    ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    drop(file);
    drop(ioas);
    let mut lane = access.lane();
    assert!(lane.enter().slice(Iova(0), 1, Perm::WRITE).is_ok());
    assert_eq!(windows.live(), 1);
    drop(lane);
    drop(access);
    assert_eq!(windows.live(), 0, "everything went with the last reference");
}

#[test]
fn access_dropped_with_a_pin_out_keeps_the_memory_for_it() {
    let Space { windows, ioas, access } = space();
    let file = memory(1);
    ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let mut lane = access.lane();
    let pin = lane.enter().pin(Iova(0), 8, Perm::WRITE).unwrap();
    drop((lane, ioas, access, file));
    assert_eq!(windows.live(), 1);
    assert_eq!(pin.slices().map(|s| s.copy_from(&[9; 8])).sum::<usize>(), 8);
}

#[test]
fn close_waits_for_a_callback_in_flight() {
    struct Slow(std::sync::mpsc::SyncSender<()>, Mutex<std::sync::mpsc::Receiver<()>>);
    impl AccessOps for Slow {
        fn on_unmap(&self, range: IovaRange) {
            if range != IovaRange::FULL {
                self.0.send(()).unwrap();
                self.1.lock().unwrap().recv().unwrap();
            }
        }
    }
    let (started_in, started) = std::sync::mpsc::sync_channel(1);
    let (resume, resumed) = std::sync::mpsc::sync_channel(1);
    let s = space_with(Arc::new(Slow(started_in, Mutex::new(resumed))));
    let file = memory(1);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let closed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| s.ioas.unmap(range(0, PAGE), LONG).unwrap());
        started.recv_timeout(LONG).unwrap();
        scope.spawn(|| {
            s.access.close(LONG).unwrap();
            closed.store(1, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(closed.load(Ordering::SeqCst), 0);
        resume.send(()).unwrap();
    });
    assert_eq!(closed.load(Ordering::SeqCst), 1);
}

#[test]
fn pin_after_close_never_succeeds_at_any_instant() {
    let rounds = 2000;
    for round in 0..rounds {
        let s = space();
        let file = memory(1);
        s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
        let closed = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut lane = s.access.lane();
                loop {
                    let over = closed.load(Ordering::SeqCst) == 1;
                    match lane.enter().pin(Iova(0), 8, Perm::WRITE) {
                        Ok(pin) => {
                            assert!(!over, "a pin succeeded after close returned, round {round}");
                            drop(pin);
                        }
                        Err(error) => assert_eq!(error, ResolveError::Detached),
                    }
                    if over {
                        break;
                    }
                }
            });
            for _ in 0..round % 64 {
                std::hint::spin_loop();
            }
            s.access.close(LONG).unwrap();
            closed.store(1, Ordering::SeqCst);
        });
        assert_eq!(s.access.pins(), 0);
    }
}

/// An access that is leaving is shown nothing any more, but a burst that began before still sees all areas.
#[test]
fn unmap_waits_for_a_burst_of_an_access_that_is_leaving() {
    let s = space();
    let file = memory(1);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let (enter, entered) = std::sync::mpsc::channel();
    let (leave, left) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let mut lane = s.access.lane();
        scope.spawn(move || {
            let burst = lane.enter();
            let slice = burst.slice(Iova(0), 8, Perm::WRITE).unwrap();
            enter.send(()).unwrap();
            let _ = left.recv();
            slice.fill(1);
        });
        entered.recv().unwrap();
        let mut detach = s.access.begin_detach(LONG).unwrap();
        let mut unmap = s.ioas.begin_unmap(range(0, PAGE), LONG).unwrap();
        assert!(detach.poll().is_none());
        assert!(unmap.poll().is_none(), "the burst may still write");
        drop(leave);
        assert_eq!(unmap.wait().unwrap(), PAGE);
        detach.wait().unwrap();
    });
}
