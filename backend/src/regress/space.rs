//! What scenarios on memory are made of: a space over memory files, a device that records its pins, and threads.
use super::run::lock;
use super::scenario::{Failure, Outcome, expect, expect_equal};
use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Windows};
use mdev_pin::{Access, AccessOps, Account, Ioas, Lane, Pin, ResolveError};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The unit of the memory in scenarios.
pub const PAGE: u64 = 4096;
/// The deadline of what must succeed.
pub const LONG: Duration = Duration::from_secs(5);
/// The deadline of what must not.
pub const SHORT: Duration = Duration::from_millis(10);
/// The bound of most scenarios: how long closing a device may take while its owner does nothing.
pub const SECOND: Duration = Duration::from_secs(1);

/// Both directions.
pub const BOTH: Perm = Perm::READ.union(Perm::WRITE);

/// A memory file of so many pages.
pub fn memory(pages: u64) -> Result<Arc<BackingFile>, Failure> {
    let fd = memfd_create("mdevd-regress", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, pages * PAGE)?;
    Ok(BackingFile::new(fd, &FilePolicy::default())?)
}

/// The range of `len` bytes at `first`.
pub fn range(first: u64, len: u64) -> Result<IovaRange, Failure> {
    Ok(IovaRange::with_len(Iova(first), len)?)
}

/// `len` bytes at `iova` that are those of `file` from `offset` on.
pub fn area(file: &Arc<BackingFile>, iova: u64, len: u64, offset: u64) -> Result<Area, Failure> {
    let extent = FileExtent { file: file.clone(), offset };
    Ok(Area { range: range(iova, len)?, extent: extent.into(), perm: BOTH, log: None })
}

/// A device that records its pins, and lets go of those that an unmap names, unless it is stubborn.
#[derive(Default)]
pub struct Recorder {
    pins: Mutex<Vec<(IovaRange, Pin)>>,
    told: Mutex<Vec<IovaRange>>,
    stubborn: AtomicBool,
}

impl Recorder {
    /// Pins and records, all in one burst.
    pub fn pin(&self, lane: &mut Lane, at: u64, len: u32) -> Result<(), ResolveError> {
        let burst = lane.enter();
        let pin = burst.pin(Iova(at), len, BOTH)?;
        if let Ok(range) = IovaRange::with_len(Iova(at), u64::from(len)) {
            lock(&self.pins).push((range, pin));
        }
        Ok(())
    }

    /// Records a pin.
    pub fn record(&self, range: IovaRange, pin: Pin) {
        lock(&self.pins).push((range, pin));
    }

    /// Lets go of all pins.
    pub fn let_go(&self) {
        lock(&self.pins).clear();
    }

    /// Pins that are recorded.
    pub fn held(&self) -> usize {
        lock(&self.pins).len()
    }

    /// The ranges that unmaps have named.
    pub fn told(&self) -> Vec<IovaRange> {
        lock(&self.told).clone()
    }

    /// From now on, whether it does nothing when an unmap names its pins.
    pub fn set_stubborn(&self, stubborn: bool) {
        self.stubborn.store(stubborn, Ordering::SeqCst);
    }
}

impl AccessOps for Recorder {
    fn on_unmap(&self, range: IovaRange) {
        lock(&self.told).push(range);
        if !self.stubborn.load(Ordering::SeqCst) {
            lock(&self.pins).retain(|(pinned, _)| pinned.intersection(range).is_none());
        }
    }
}

/// A device attached to a space.
pub struct Attached {
    /// What it records.
    pub device: Arc<Recorder>,
    /// Its attachment.
    pub access: Access,
}

impl Attached {
    /// A new device on this space.
    pub fn to(ioas: &Ioas) -> Result<Attached, Failure> {
        let device = Arc::new(Recorder::default());
        let access = Access::new(device.clone());
        access.attach(ioas)?;
        Ok(Attached { device, access })
    }
}

/// A space, and a device on it.
pub struct Space {
    /// Through which its areas are mapped.
    pub windows: Arc<Windows>,
    /// The space.
    pub ioas: Ioas,
    /// The device.
    pub device: Arc<Recorder>,
    /// The device's attachment.
    pub access: Access,
}

impl Space {
    /// An empty space with one device.
    pub fn new() -> Result<Space, Failure> {
        Space::charged_to(&Account::unlimited())
    }

    /// As [`Space::new`], charged to an account.
    pub fn charged_to(account: &Account) -> Result<Space, Failure> {
        let windows = Windows::new()?;
        let ioas = Ioas::charged_to(windows.clone(), account);
        let Attached { device, access } = Attached::to(&ioas)?;
        Ok(Space { windows, ioas, device, access })
    }

    /// Closes the device and drops the space: no pin and no window may be left.
    pub fn end(self) -> Outcome {
        self.access.close(LONG)?;
        expect_equal(self.access.pins() + self.ioas.pins(), 0, "pins after the close")?;
        let Space { windows, ioas, device, access } = self;
        drop((ioas, access));
        expect_equal(device.held(), 0, "pins that the device still has")?;
        expect_equal(windows.live(), 0, "windows after the space")
    }
}

/// One access of a worker. The codes are those of Linux.
pub fn errno<T>(result: Result<T, ResolveError>) -> i32 {
    result.map_or_else(ResolveError::errno, |_| 0)
}

/// ENOENT, EINVAL, EDEADLK and EFAULT, as the kernel numbers them.
pub const ENOENT: i32 = 2;
/// See [`ENOENT`].
pub const EFAULT: i32 = 14;
/// See [`ENOENT`].
pub const EINVAL: i32 = 22;
/// See [`ENOENT`].
pub const EDEADLK: i32 = 35;

/// Waits until `done`, at most for [`LONG`].
pub fn await_that(what: &str, mut done: impl FnMut() -> bool) -> Outcome {
    let deadline = Instant::now() + LONG;
    while !done() {
        if Instant::now() >= deadline {
            return Err(Failure::new(format!("in vain: {what}")));
        }
        pause();
    }
    Ok(())
}

/// Lets other threads run. A sleep, as a yield would forfeit a whole slice: beside threads that spin, some hundred of
/// them starve who yields.
pub fn pause() {
    thread::sleep(Duration::from_micros(10));
}

/// Work for a thread that goes on until the flag says stop.
pub type Work<'w> = &'w (dyn Fn(&AtomicBool) -> Outcome + Sync);

/// Runs `workers`, each on a thread, beside `direct`, and stops them when that has returned.
pub fn beside(workers: &[Work<'_>], direct: impl FnOnce() -> Outcome) -> Outcome {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for work in workers {
            threads.push(thread::Builder::new().spawn_scoped(scope, || work(&stop)));
        }
        let directed = match threads.iter().all(Result::is_ok) {
            true => direct(),
            false => Err(Failure::new("the machine has no threads left")),
        };
        stop.store(true, Ordering::SeqCst);
        let mut worked = Ok(());
        for thread in threads.into_iter().flatten() {
            let end = thread.join().unwrap_or_else(|_| Err(Failure::new("a worker panicked")));
            worked = worked.and(end);
        }
        // What went wrong in a worker is why what was waited for did not come.
        worked.and(directed)
    })
}

/// Whether a worker is to stop.
pub fn stopped(stop: &AtomicBool) -> bool {
    stop.load(Ordering::SeqCst)
}

/// Fails unless an operation of a space failed with this code.
pub fn expect_errno<T>(result: Result<T, mdev_pin::IoasError>, wanted: i32, what: &str) -> Outcome {
    match result {
        Ok(_) => expect(false, &format!("{what}: it succeeded")),
        Err(error) => expect_equal(error.errno(), wanted, what),
    }
}
