//! UNSAFETY: none in this file; it is the half of SIGBUS containment that a signal handler reads.
//!
//! A fixed table of windows: written under a mutex when a window is mapped or unmapped, read by the SIGBUS handler
//! without a lock.
//!
//! A slot is published before its window is handed out, and cleared after its last user is gone but *before* the
//! memory is unmapped. The thread in the handler was interrupted inside an access to a window it holds, so the slot of
//! that window stands still for as long as the handler runs. Other slots may change meanwhile: each has a sequence
//! number, odd while it is written, and the handler passes over a slot that was written while it looked. Passing over
//! is right, because that slot is not the one it seeks. Without the number it could combine an old base with a new
//! length and blame a window that has nothing to do with the fault.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, PoisonError};

use crate::faults::{self, Step};

/// Windows that can exist at once in a process.
pub(crate) const SLOTS: usize = 16_384;

/// What the handler must know of one window.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where the window is mapped.
    pub base: usize,
    /// Its length in bytes, a multiple of `page`.
    pub len: usize,
    /// The file's page size, a power of two.
    pub page: usize,
    /// Whether it is mapped for writing.
    pub writable: bool,
}

#[derive(Debug)]
struct Slot {
    /// Odd while the slot is written.
    seq: AtomicU32,
    writable: AtomicU32,
    base: AtomicUsize,
    /// Zero: the slot is free.
    len: AtomicUsize,
    page: AtomicUsize,
    /// Faults contained in this window.
    poison: AtomicU64,
}

static TABLE: [Slot; SLOTS] = [const { Slot::free() }; SLOTS];
/// Slots that were ever in use: what the handler has to look through.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Slots below `USED` that are free. Also makes writers take turns.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Faults contained in the windows there are now.
static STANDING: AtomicU64 = AtomicU64::new(0);

/// On a line of its own: every worker reads it, and nothing but a fault writes it.
#[repr(align(128))]
struct Epoch(AtomicU64);
/// Faults ever contained.
static EPOCH: Epoch = Epoch(AtomicU64::new(0));

/// Lost pages of one window that are replaced one by one.
const PAGES_EACH: u64 = 16;
/// Lost pages of all windows together that are replaced one by one. Each may cost two mappings more, and a process has
/// 65,530 of them by default: this and [`SLOTS`] stay well below, so that no guest can make a replacement fail.
const PAGES_ALL: u64 = 8192;

impl Slot {
    const fn free() -> Self {
        Slot {
            seq: AtomicU32::new(0),
            writable: AtomicU32::new(0),
            base: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            poison: AtomicU64::new(0),
        }
    }

    /// Writes the slot; the caller holds `FREE`.
    fn set(&self, entry: Entry) {
        let seq = self.seq.load(Ordering::Relaxed);
        self.seq.store(seq.wrapping_add(1), Ordering::Relaxed);
        // The odd number is seen before any of what follows.
        fence(Ordering::Release);
        self.base.store(entry.base, Ordering::Relaxed);
        self.len.store(entry.len, Ordering::Relaxed);
        self.page.store(entry.page, Ordering::Relaxed);
        self.writable.store(u32::from(entry.writable), Ordering::Relaxed);
        self.seq.store(seq.wrapping_add(2), Ordering::Release);
    }

    /// Reads the slot; `None` if it is free or was written meanwhile.
    fn get(&self) -> Option<Entry> {
        let seq = self.seq.load(Ordering::Acquire);
        let entry = Entry {
            base: self.base.load(Ordering::Relaxed),
            len: self.len.load(Ordering::Relaxed),
            page: self.page.load(Ordering::Relaxed),
            writable: self.writable.load(Ordering::Relaxed) != 0,
        };
        fence(Ordering::Acquire);
        let stable = seq & 1 == 0 && self.seq.load(Ordering::Relaxed) == seq;
        (stable && entry.len != 0).then_some(entry)
    }
}

/// A window's place in the table; given back when dropped, which must happen before the window is unmapped.
#[derive(Debug)]
pub(super) struct Registration {
    index: usize,
    slot: &'static Slot,
}

impl Registration {
    /// Makes a window known to the handler; `None` if the table is full.
    pub(super) fn new(entry: Entry) -> Option<Self> {
        if faults::fail(Step::WindowSlot) {
            return None;
        }
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let index = free.pop().unwrap_or(USED.load(Ordering::Relaxed));
        let slot = TABLE.get(index)?;
        // Nobody reads the count of a free slot, and no handler counts on one.
        slot.poison.store(0, Ordering::Relaxed);
        slot.set(entry);
        if index >= USED.load(Ordering::Relaxed) {
            USED.store(index + 1, Ordering::Release);
        }
        Some(Registration { index, slot })
    }

    /// Faults contained in this window so far; orders as [`poison_epoch`].
    #[inline]
    pub(super) fn poison_count(&self) -> u64 {
        fence(Ordering::Acquire);
        self.slot.poison.load(Ordering::Relaxed)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        self.slot.set(Entry { base: 0, len: 0, page: 0, writable: false });
        STANDING.fetch_sub(self.slot.poison.load(Ordering::Relaxed), Ordering::Relaxed);
        free.push(self.index);
    }
}

/// A window found by an address inside it.
pub(super) struct Found {
    slot: &'static Slot,
    /// The window.
    pub entry: Entry,
}

impl Found {
    /// Counts a fault, for the window and for the process. Called *before* the lost page is replaced: whoever reads
    /// a byte of the replacement and then the count finds the fault counted.
    ///
    /// Returns whether the page may be replaced alone; else the whole window is to be, which costs no mapping more.
    pub(super) fn count_poison(&self) -> bool {
        let in_window = self.slot.poison.fetch_add(1, Ordering::SeqCst);
        let in_all = STANDING.fetch_add(1, Ordering::SeqCst);
        EPOCH.0.fetch_add(1, Ordering::SeqCst);
        in_window < PAGES_EACH && in_all < PAGES_ALL
    }
}

/// The window that holds `address`. Takes no lock and does not allocate.
pub(super) fn find(address: usize) -> Option<Found> {
    let used = USED.load(Ordering::Acquire);
    TABLE.iter().take(used).find_map(|slot| {
        let entry = slot.get()?;
        (address.wrapping_sub(entry.base) < entry.len).then_some(Found { slot, entry })
    })
}

/// Whether the window that holds `address` has lost a page. The caller holds that window, if there is one. Orders as
/// [`poison_epoch`]. Looks through the table only while some window is poisoned.
pub(super) fn is_poisoned(address: usize) -> bool {
    fence(Ordering::Acquire);
    STANDING.load(Ordering::Relaxed) != 0
        && find(address).is_some_and(|found| found.slot.poison.load(Ordering::Relaxed) != 0)
}

/// How many faults of lost pages were contained in this process: cheap to compare before and after a burst, and only
/// if it moved is there reason to ask the windows.
///
/// Ordering: a *read* of guest memory that comes before this call in program order and got a byte of a replaced page
/// is counted in the result, whichever thread met the fault first. A *write* may in a race have gone to the
/// replacement uncounted; it is then as if it had been made just before the owner took the page away.
#[inline]
pub fn poison_epoch() -> u64 {
    // Orders the reads before the load; a compiler barrier on x86.
    fence(Ordering::Acquire);
    EPOCH.0.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests;
