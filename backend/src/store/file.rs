//! A store in a file or block device, through io_uring.
//!
//! # What it is
//!
//! Bytes move between the file and the pages of the guest that a request has pinned, by the kernel alone: through the page
//! cache, or past it (`direct=on`). A request may take several operations of the kernel, one after the other; it ends
//! when all its bytes have moved, or with the first error.
//!
//! # Objects
//!
//! - [`File`]: the open file, its lock, its size and what it can do; shared by all engines.
//! - [`Port`]: the end of one engine, with a ring of its own (`sys::uring`), which owns the requests in flight.
//! - `Job`: one request, between the operations it takes.
//!
//! # Locks
//!
//! None in this process. Other processes are kept away by locks on bytes of the file as QEMU has them (`lock`), so an
//! image that QEMU or `qemu-img` uses is refused, and the other way round. These locks belong to the open file, and what the kernel
//! still does for a daemon that was killed keeps that file open: once a new daemon has the locks, no write of the old one
//! can come after its own. That makes a restart safe, and is why opening waits up to two seconds for them. (Of two
//! descriptors of a direct store one has the locks; a ring holds both until the last of its requests is over.)
//!
//! # Direct I/O
//!
//! The kernel wants offsets and lengths to be multiples of one number and addresses of another. Guest memory that is not
//! aligned goes through a buffer. Requests that are not, in the store, go through the page cache, by a second
//! descriptor of the file: the kernel writes back and drops the cached pages under direct I/O, so that both see the same
//! bytes, unless they overlap in time; and then their order is undefined anyway.
//!
//! # What may block, what fails
//!
//! Opening asks the file system and waits for locks; dropping a port waits for its requests for up to a second. All else waits for
//! nothing. An error of the file system is the request's. A file that was made shorter fails requests beyond its end
//! with `EIO`, and with `EINVAL` once its size was looked at. Guest memory that was lost fails a request with `EFAULT`.
//! A discard is a hint: where the file system knows none, it succeeds and does nothing. Zeroes are written where
//! they cannot be asked for.
//!
//! # What it does not implement
//!
//! Image formats; growing the file for the guest; polled I/O; buffers and memory registered with the kernel.

mod job;
mod lock;
mod port;
mod shape;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::{Limits, SECTOR, StoreError};
use crate::sys::EventFd;
use shape::Shape;

pub use port::Port;

/// How often the size is looked at.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
/// How long another user of the file is waited for.
const LOCK: Duration = Duration::from_secs(2);

/// The file's number in the ring.
const MAIN: u32 = 0;
/// The number of the same file through the page cache, where the other goes past it.
const CACHED: u32 = 1;

/// Which file, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// The file.
    pub path: PathBuf,
    /// Past the page cache.
    pub direct: bool,
    /// Only to be read.
    pub read_only: bool,
}

impl FileOptions {
    /// The file at `path`, through the page cache.
    pub fn new(path: PathBuf) -> Self {
        FileOptions { path, direct: false, read_only: false }
    }
}

/// A store in a file. See the [module](self).
pub struct File {
    shared: Arc<Shared>,
    /// Rings when the size is to be looked at.
    timer: OwnedFd,
}

/// What engines share.
struct Shared {
    path: PathBuf,
    /// [`MAIN`], which has the locks, and perhaps [`CACHED`].
    files: Arc<[OwnedFd]>,
    /// Bytes, whole sectors.
    size: AtomicU64,
    shape: Shape,
    limits: Limits,
    /// The file system knows no holes.
    no_holes: AtomicBool,
    /// Nor does it make zeros in another way.
    no_zeroes: AtomicBool,
}

impl File {
    /// Opens and locks the file.
    ///
    /// # Errors
    /// What the operator has to change.
    pub(super) fn open(options: &FileOptions) -> Result<File, StoreError> {
        let FileOptions { path, direct, read_only } = options;
        // To open what is no store could wait, or change it.
        let stat = rustix::fs::stat(path).map_err(|errno| not_opened(path, errno))?;
        kind_of(path, stat.st_mode)?;
        let access = if *read_only { OFlags::RDONLY } else { OFlags::RDWR } | OFlags::CLOEXEC;
        let open = |flags| rustix::fs::open(path, flags, Mode::empty());
        let mut files = Vec::new();
        if *direct {
            files.push(open(access | OFlags::DIRECT).map_err(|errno| match errno {
                Errno::INVAL => StoreError::NotDirect { path: path.clone() },
                errno => not_opened(path, errno),
            })?);
        }
        files.push(open(access).map_err(|errno| not_opened(path, errno))?);
        let files: Arc<[OwnedFd]> = files.into();
        let main = files.first().ok_or_else(|| not_opened(path, Errno::BADF))?;
        // The path may have come to mean another file since; both descriptors have to mean one.
        let stat = rustix::fs::fstat(main).map_err(|errno| not_opened(path, errno))?;
        let device = kind_of(path, stat.st_mode)? == FileType::BlockDevice;
        for file in files.iter() {
            let other = rustix::fs::fstat(file).map_err(|errno| not_opened(path, errno))?;
            if (other.st_dev, other.st_ino) != (stat.st_dev, stat.st_ino) {
                return Err(not_opened(path, Errno::STALE));
            }
        }
        lock::take(main.as_fd(), *read_only, LOCK).map_err(|refused| match refused {
            lock::Refused::InUse if is_open_here(&stat, &files) => StoreError::LockedHere(path.clone()),
            lock::Refused::InUse => StoreError::Locked(path.clone()),
            lock::Refused::Failed(errno) => StoreError::Lock { path: path.clone(), source: errno.into() },
        })?;
        let shape = Shape::of(main.as_fd(), device, *direct)
            .ok_or_else(|| StoreError::NotDirect { path: path.clone() })?;
        let bytes = size_of(main.as_fd(), device).map_err(|errno| not_opened(path, errno))?;
        let size = whole_sectors(bytes);
        if size == 0 {
            return Err(StoreError::Empty { path: path.clone(), size: bytes });
        }
        let timer =
            watch().map_err(|errno| StoreError::Watch { path: path.clone(), source: errno.into() })?;
        let shared = Shared {
            path: path.clone(),
            files,
            size: AtomicU64::new(size),
            shape,
            limits: shape.limits(*read_only),
            no_holes: AtomicBool::new(false),
            no_zeroes: AtomicBool::new(false),
        };
        Ok(File { shared: Arc::new(shared), timer })
    }

    /// Bytes, when it was last looked.
    pub(super) fn size(&self) -> u64 {
        self.shared.size()
    }

    pub(super) fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// See [`super::Store::port`]. The ring belongs to the thread that begins its first request.
    pub(super) fn port(&self, bell: Arc<EventFd>) -> io::Result<Port> {
        Port::new(self.shared.clone(), bell)
    }

    pub(super) fn watched(&self) -> Option<BorrowedFd<'_>> {
        Some(self.timer.as_fd())
    }

    /// Looks at the size. Whether it has changed.
    pub(super) fn look(&self) -> bool {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.shared.look()
    }
}

impl Shared {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn look(&self) -> bool {
        let Some(main) = self.files.first() else { return false };
        // A size that cannot be had is the one we know.
        let Ok(bytes) = size_of(main.as_fd(), self.shape.device) else { return false };
        let size = whole_sectors(bytes);
        self.size.swap(size, Ordering::Relaxed) != size
    }
}

/// Whether this process has the file open besides `own`. The kernel does not tell who holds a lock of an open file
/// description, so what is open here is looked through.
fn is_open_here(file: &Stat, own: &[OwnedFd]) -> bool {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else { return false };
    open.flatten().any(|entry| {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let others = number.is_some_and(|number: i32| own.iter().all(|own| own.as_raw_fd() != number));
        let same = |other: Stat| (other.st_dev, other.st_ino) == (file.st_dev, file.st_ino);
        others && rustix::fs::stat(entry.path()).is_ok_and(same)
    })
}

fn not_opened(path: &Path, errno: Errno) -> StoreError {
    StoreError::Open { path: path.to_owned(), source: errno.into() }
}

/// A regular file or a block device; else it is no store.
fn kind_of(path: &Path, mode: u32) -> Result<FileType, StoreError> {
    match FileType::from_raw_mode(mode) {
        kind @ (FileType::RegularFile | FileType::BlockDevice) => Ok(kind),
        _ => Err(StoreError::NotAStore(path.to_owned())),
    }
}

fn size_of(file: BorrowedFd<'_>, device: bool) -> Result<u64, Errno> {
    if device {
        // Nothing depends on where a descriptor stands.
        return rustix::fs::seek(file, SeekFrom::End(0));
    }
    let stat = rustix::fs::fstat(file)?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

fn whole_sectors(bytes: u64) -> u64 {
    bytes & !SECTOR.saturating_sub(1)
}

/// A timer that rings again and again.
fn watch() -> Result<OwnedFd, Errno> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: LOOK, it_value: LOOK })?;
    Ok(timer)
}

#[cfg(test)]
mod tests;
