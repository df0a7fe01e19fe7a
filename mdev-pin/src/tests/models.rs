//! The protocols explored by loom: every interleaving of two or three threads, and every value that the memory
//! model lets a load return. Run with `RUSTFLAGS="--cfg loom" cargo test -p mdev-pin --release`.
//!
//! Guest memory itself cannot be watched by loom, so each model has a cell that stands for it: devices read the cell
//! while they may touch the memory, and the control thread writes it when it has been told that nobody can. Loom
//! reports the two as a race unless one is ordered before the other. Windows and files are made outside the models:
//! they take no part in the protocols.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use loom::{sync::Mutex, thread};
use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Windows};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::{Access, AccessOps, IgnoreUnmap, Ioas, Pages, Pin, ResolveError, sys::watched::Memory};

const FOREVER: Duration = Duration::MAX;

fn windows() -> Arc<Windows> {
    static WINDOWS: OnceLock<Arc<Windows>> = OnceLock::new();
    WINDOWS.get_or_init(|| Windows::new().unwrap()).clone()
}

/// One page, whose window stays mapped for the whole exploration.
fn area() -> Area {
    page(0)
}

/// The same page at another one of the space.
fn page(number: u64) -> Area {
    let range = IovaRange::with_len(Iova(number * 4096), 4096).unwrap();
    Area { range, ..first_page() }
}

fn first_page() -> Area {
    static AREA: OnceLock<(Area, Vec<mdev_dma::Segment>)> = OnceLock::new();
    let made = AREA.get_or_init(|| {
        let fd = memfd_create("model", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 4096).unwrap();
        let file = BackingFile::new(fd, &FilePolicy::default()).unwrap();
        let range = IovaRange::with_len(Iova(0), 4096).unwrap();
        let area = Area {
            range,
            extent: FileExtent { file, offset: 0 }.into(),
            perm: Perm::READ | Perm::WRITE,
            log: None,
        };
        let segments = windows().segments(&area).unwrap();
        (area, segments)
    });
    made.0.clone()
}

fn space(ops: Arc<dyn AccessOps>) -> (Ioas, Access) {
    let ioas = Ioas::new(windows());
    let access = Access::new(ops);
    access.attach(&ioas).unwrap();
    ioas.map(area()).unwrap();
    (ioas, access)
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(5);
    builder.check(f);
}

#[test]
fn loom_burst_against_unmap() {
    model(|| {
        let (ioas, access) = space(Arc::new(IgnoreUnmap));
        let memory = Memory::new();
        let device = thread::spawn({
            let (mut lane, memory) = (access.lane(), memory.clone());
            move || {
                for _ in 0..2 {
                    let burst = lane.enter();
                    match burst.slice(Iova(0), 8, Perm::WRITE) {
                        Ok(_) => memory.touch(),
                        Err(error) => assert!(matches!(error, ResolveError::Gated | ResolveError::Hole)),
                    }
                }
            }
        });
        assert_eq!(ioas.unmap(IovaRange::FULL, FOREVER).unwrap(), 4096);
        memory.reuse();
        device.join().unwrap();
    });
}

/// A device that records its pins under a lock and drops them when it is told.
struct Recorder(Mutex<Option<Pin>>);

impl AccessOps for Recorder {
    fn on_unmap(&self, _range: IovaRange) {
        drop(self.0.lock().unwrap().take());
    }
}

/// Pins inside a burst, records before it ends.
fn pin_and_record(access: &Access, device: &Recorder, memory: &Memory) {
    let mut lane = access.lane();
    let burst = lane.enter();
    if let Ok(pin) = burst.pin(Iova(0), 8, Perm::WRITE) {
        memory.touch();
        *device.0.lock().unwrap() = Some(pin);
    }
}

#[test]
fn loom_pin_against_unmap() {
    model(|| {
        let device = Arc::new(Recorder(Mutex::new(None)));
        let (ioas, access) = space(device.clone());
        let memory = Memory::new();
        let worker = thread::spawn({
            let (access, device, memory) = (access.clone(), device.clone(), memory.clone());
            move || pin_and_record(&access, &device, &memory)
        });
        // No retry is needed: K5 says that the callback finds every pin.
        assert_eq!(ioas.unmap(IovaRange::FULL, FOREVER).unwrap(), 4096);
        memory.reuse();
        assert!(device.0.lock().unwrap().is_none(), "a pin survived the unmap");
        worker.join().unwrap();
    });
}

#[test]
fn loom_pin_dropped_elsewhere_against_unmap() {
    model(|| {
        let (ioas, access) = space(Arc::new(IgnoreUnmap));
        let memory = Memory::new();
        let pin = access.lane().enter().pin(Iova(0), 8, Perm::WRITE).unwrap();
        let completion = thread::spawn({
            let memory = memory.clone();
            move || {
                memory.touch();
                drop(pin);
            }
        });
        assert_eq!(ioas.unmap(IovaRange::FULL, FOREVER).unwrap(), 4096);
        memory.reuse();
        completion.join().unwrap();
    });
}

#[test]
fn loom_scenario_02_pin_against_close() {
    model(|| {
        let device = Arc::new(Recorder(Mutex::new(None)));
        let (ioas, access) = space(device.clone());
        let memory = Memory::new();
        let worker = thread::spawn({
            let (access, device, memory) = (access.clone(), device.clone(), memory.clone());
            move || pin_and_record(&access, &device, &memory)
        });
        access.close(FOREVER).unwrap();
        memory.reuse();
        assert_eq!(access.pins(), 0);
        let refused = access.lane().enter().pin(Iova(0), 8, Perm::WRITE).map(|_| ());
        assert_eq!(refused, Err(ResolveError::Detached));
        worker.join().unwrap();
        assert_eq!(ioas.pins(), 0);
    });
}

/// A device that is torn down after its close: loom sees a callback that runs later as a race.
struct Torn(Arc<Memory>);

impl AccessOps for Torn {
    fn on_unmap(&self, _range: IovaRange) {
        self.0.touch();
    }
}

#[test]
fn loom_scenario_12_callback_against_close() {
    model(|| {
        let device = Memory::new();
        let (ioas, access) = space(Arc::new(Torn(device.clone())));
        let unmapper = thread::spawn({
            let ioas = ioas.clone();
            move || ioas.unmap(IovaRange::FULL, FOREVER).unwrap()
        });
        access.close(FOREVER).unwrap();
        device.reuse();
        unmapper.join().unwrap();
    });
}

/// Scenario 13: a pin is on the old space and waited for, or refused; never on an old space that was left.
#[test]
fn loom_scenario_13_replace_against_pin() {
    model(|| {
        let (ioas, access) = space(Arc::new(IgnoreUnmap));
        let second = Ioas::new(windows());
        let memory = Memory::new();
        let worker = thread::spawn({
            let (mut lane, memory) = (access.lane(), memory.clone());
            move || {
                let pin = lane.enter().pin(Iova(0), 8, Perm::WRITE);
                match pin {
                    Ok(_pin) => memory.touch(),
                    Err(error) => assert!(matches!(error, ResolveError::Detached | ResolveError::Hole)),
                }
            }
        });
        access.replace(&second, FOREVER).unwrap();
        memory.reuse();
        assert_eq!(access.pins(), 0);
        ioas.destroy().unwrap();
        let refused = access.lane().enter().pin(Iova(0), 8, Perm::WRITE).map(|_| ());
        assert_eq!(refused, Err(ResolveError::Hole), "on the second space, which is empty");
        worker.join().unwrap();
        access.close(FOREVER).unwrap();
    });
}

/// A device on control paths, which pins and records under one lock.
struct Pager(Mutex<Option<Pages>>);

impl AccessOps for Pager {
    fn on_unmap(&self, _range: IovaRange) {
        if let Some(pages) = self.0.lock().unwrap().take() {
            pages.unpin().unwrap();
        }
    }
}

/// Scenario 9: the callback waits for the device lock and finds the pin, however late it was recorded.
#[test]
fn loom_scenario_09_pin_pages_against_unmap() {
    model(|| {
        let device = Arc::new(Pager(Mutex::new(None)));
        let (ioas, access) = (Ioas::new(windows()), Access::pinning(device.clone()));
        access.attach(&ioas).unwrap();
        ioas.map(area()).unwrap();
        let memory = Memory::new();
        let worker = thread::spawn({
            let (access, device, memory) = (access.clone(), device.clone(), memory.clone());
            move || {
                let mut record = device.0.lock().unwrap();
                if let Ok(pages) = access.pin_pages(Iova(0), 4096, Perm::WRITE) {
                    memory.touch();
                    *record = Some(pages);
                }
            }
        });
        assert_eq!(ioas.unmap(IovaRange::FULL, FOREVER).unwrap(), 4096);
        memory.reuse();
        assert_eq!(access.pins(), 0);
        worker.join().unwrap();
    });
}

/// Scenario 10: a callback unpins what goes while another thread of the same access pins what stays; neither waits for the
/// other.
#[test]
fn loom_scenario_10_callback_unpins_while_another_thread_pins() {
    model(|| {
        let device = Arc::new(Pager(Mutex::new(None)));
        let (ioas, access) = (Ioas::new(windows()), Access::pinning(device.clone()));
        access.attach(&ioas).unwrap();
        ioas.map(page(0)).unwrap();
        ioas.map(page(1)).unwrap();
        let memory = Memory::new();
        memory.touch();
        *device.0.lock().unwrap() = Some(access.pin_pages(Iova(0), 4096, Perm::WRITE).unwrap());
        let worker = thread::spawn({
            let access = access.clone();
            move || {
                let pages = access.pin_pages(Iova(4096), 4096, Perm::WRITE).unwrap();
                pages.unpin().unwrap();
            }
        });
        assert_eq!(ioas.unmap(page(0).range, FOREVER).unwrap(), 4096);
        memory.reuse();
        assert!(device.0.lock().unwrap().is_none(), "a pin survived the unmap");
        worker.join().unwrap();
        assert_eq!(access.pins(), 0);
    });
}

/// Rings a bell that loom knows; a thread that waits for one that never rings is a deadlock to it.
struct Bell(loom::sync::Arc<loom::sync::Notify>);

impl std::task::Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.notify();
    }
}

/// Looks for the page, and sleeps whenever it is told that there is nothing to look for.
fn until_answered(access: &Access) -> Result<(), ResolveError> {
    let bell = loom::sync::Arc::new(loom::sync::Notify::new());
    let waker = std::task::Waker::from(Arc::new(Bell(bell.clone())));
    let mut lane = access.lane();
    loop {
        match lane.enter().slice(Iova(0), 8, Perm::WRITE).map(drop) {
            Err(ResolveError::Hole | ResolveError::Gated) => {}
            answer => return answer,
        }
        let parked = lane.park(std::time::Instant::now() + Duration::from_secs(3600), &waker).unwrap();
        while parked.state() == crate::ParkState::Waiting {
            bell.wait();
        }
    }
}

#[test]
fn loom_park_against_map() {
    model(|| {
        let (ioas, access) = (Ioas::new(windows()), Access::new(Arc::new(IgnoreUnmap)));
        access.attach(&ioas).unwrap();
        let queue = thread::spawn({
            let access = access.clone();
            move || until_answered(&access)
        });
        ioas.map(area()).unwrap();
        assert_eq!(queue.join().unwrap(), Ok(()));
    });
}

#[test]
fn loom_park_against_detach() {
    model(|| {
        let (ioas, access) = (Ioas::new(windows()), Access::new(Arc::new(IgnoreUnmap)));
        access.attach(&ioas).unwrap();
        let queue = thread::spawn({
            let access = access.clone();
            move || until_answered(&access)
        });
        access.detach(FOREVER).unwrap();
        assert_eq!(queue.join().unwrap(), Err(ResolveError::Detached));
    });
}
