//! Who may use an image at the same time, said as QEMU says it.
//!
//! QEMU names what may be done to an image by bits. A shared lock on byte 100 + bit says "I do this", one on byte 200 +
//! bit "nobody else may". All locks are shared, so setting them fails for nobody; who has set its own looks for those of others
//! that contradict. Two that come at the same time may both see each other, and both go.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::sys::ofd;

const DOES: u64 = 100;
const FORBIDS: u64 = 200;

/// To rely on what is read.
const READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;

/// The guest is not asked before the bytes change under it, nor before there are fewer.
const FORBIDDEN: [u64; 2] = [WRITE, RESIZE];
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Why there is no lock.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Somebody else uses the file.
    InUse,
    /// The file system does not lock.
    Failed(Errno),
}

/// Locks the file for as long as it is open. Waits for others, for at most `patience`: the kernel may still be at work for
/// a process that was killed.
pub(super) fn take(file: BorrowedFd<'_>, read_only: bool, patience: Duration) -> Result<(), Refused> {
    let does: &[u64] = if read_only { &[READ] } else { &[READ, WRITE] };
    let deadline = Instant::now().checked_add(patience);
    loop {
        match attempt(file, does) {
            Err(Refused::InUse) if deadline.is_some_and(|deadline| Instant::now() < deadline) => {
                std::thread::sleep(PAUSE);
            }
            end => return end,
        }
    }
}

fn attempt(file: BorrowedFd<'_>, does: &[u64]) -> Result<(), Refused> {
    let own = bytes(DOES, does).chain(bytes(FORBIDS, &FORBIDDEN));
    let contrary = bytes(FORBIDS, does).chain(bytes(DOES, &FORBIDDEN));
    let result = own.clone().try_for_each(|byte| share(file, byte)).and_then(|()| look(file, contrary));
    if result.is_err() {
        own.for_each(|byte| ofd::unlock(file, byte).unwrap_or_default());
    }
    result
}

fn bytes(base: u64, bits: &[u64]) -> impl Iterator<Item = u64> + Clone {
    bits.iter().map(move |bit| base.saturating_add(*bit))
}

fn share(file: BorrowedFd<'_>, byte: u64) -> Result<(), Refused> {
    ofd::share(file, byte).map_err(|errno| match errno {
        Errno::AGAIN | Errno::ACCESS => Refused::InUse,
        errno => Refused::Failed(errno),
    })
}

fn look(file: BorrowedFd<'_>, mut bytes: impl Iterator<Item = u64>) -> Result<(), Refused> {
    bytes.try_for_each(|byte| match ofd::is_locked_by_others(file, byte) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Refused::InUse),
        Err(errno) => Err(Refused::Failed(errno)),
    })
}
