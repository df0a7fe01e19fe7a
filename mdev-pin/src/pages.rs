//! `pin_pages`, `unpin_pages` and `rw`: the face of an access for control paths.
//!
//! It stands on the same bursts and the same counts as the data path. The access owns one lane for it, which its
//! callers share under a mutex, and keeps what they pinned by exact range. A range is recorded before its burst ends;
//! so an unmap, whose callbacks come after the grace of that burst, finds every pin on record. Letting go takes only
//! the lock of the record, never the one of the lane, so that a callback does not wait for somebody's copy.
//!
//! Memory in another process, which lanes have no slices of, is reached here too: by copies. What is pinned of it is a
//! snapshot, taken when it is pinned; if it was pinned to write, it goes back when the last pin of its range goes. Pins of
//! different ranges do not see each other's writes before that.
//!
//! Unlike the data path this one asks the file for its size first: memory that was cut off fails with `EINVAL`, as
//! `memfd_pin_folios` does. What is cut off between that check and the end of the copy fails with `EFAULT`.

use std::{
    collections::{BTreeMap, btree_map},
    sync::{
        Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use mdev_dma::{HostWindow, Iova, IovaRange, Perm, RangeError, try_push};

use crate::{
    access::{Access, AccessCore},
    burst::Burst,
    error::{AccessError, ResolveError},
    limits::PAGE,
    parts::{Copied, Part},
    pin::Pin,
    sync::{Arc, Mutex, lock},
    sys::{
        piece::Found,
        published::{Published, Reader},
    },
    tally::Charged,
};

/// What an access keeps for its control paths.
pub struct Control {
    /// Before the lane, whose counters it refers to.
    held: Arc<Held>,
    /// Made by the first call.
    lane: Mutex<Option<Reader>>,
    holds: Holds,
}

/// What the device of an access may hold.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Pins that it takes in bursts.
    Pins,
    /// Pages.
    Pages,
    /// Nothing beyond a burst.
    Nothing,
}

/// Pins by exact range, first and last address. Only the last pin of a range may be other than void.
#[derive(Default)]
struct Held(Mutex<BTreeMap<(Iova, Iova), Vec<Entry>>>);

/// A range, and how often it was pinned.
struct Entry {
    count: u64,
    hold: std::sync::Arc<Hold>,
}

/// One pin with the parts of windows it lies in and what it is charged. They go first: an unmap that sees the pin gone
/// may count them.
struct Hold {
    memory: Vec<Window>,
    /// What of it is another process's.
    copied: Vec<Copied>,
    /// Somebody pinned it to write: what is copied goes back.
    written: AtomicBool,
    _charged: Vec<Charged>,
    pin: Pin,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.written.load(Ordering::Acquire) {
            self.copied.iter().for_each(Copied::write_back);
        }
    }
}

/// A part of a window.
struct Window {
    window: std::sync::Arc<HostWindow>,
    offset: u64,
    len: u64,
}

/// What [`Access::rw`] is to do, with the caller's end of it (the flags of `iommufd_access_rw`).
#[derive(Debug)]
pub enum Rw<'b> {
    /// Copy from the guest.
    Read(&'b mut [u8]),
    /// Copy to the guest.
    Write(&'b [u8]),
}

/// Pages that an access holds after [`Access::pin_pages`]. The access holds them, not this value: it shows them
/// for as long as they are pinned, and can be dropped at any time.
pub struct Pages {
    range: IovaRange,
    hold: Weak<Hold>,
    held: Arc<Held>,
}

impl Access {
    /// Pins `length` bytes at `iova`, which may span contiguous areas: all of them or none
    /// (`iommufd_access_pin_pages`). Each call wants one [`Access::unpin_pages`] of exactly this range. The same
    /// range pinned again is counted; another range is another pin, however it overlaps.
    ///
    /// A device that keeps a record of its own holds its lock over this call and the recording, and takes the same
    /// lock in [`crate::AccessOps::on_unmap`]; nothing here waits for an unmap.
    ///
    /// # Errors
    ///
    /// `NotPinning`, `Misaligned`, `Truncated`, `NoDirection` \[EINVAL\]; those of [`ResolveError`]: `Empty` and
    /// `Gated` \[EINVAL\], `Overflow` \[EOVERFLOW\], `Detached` and `Hole` \[ENOENT\], `Permission` \[EPERM\],
    /// `Poisoned` and `Unreachable` \[EFAULT\]; `Elsewhere` \[EINVAL\] for memory with a peer; `Charge` \[ENOMEM\] if pages that nobody has pinned yet are beyond the owner's limit.
    pub fn pin_pages(&self, iova: Iova, length: u64, perm: Perm) -> Result<Pages, AccessError> {
        let core = self.core();
        core.control.pin(core, iova, length, perm)
    }

    /// Undoes one [`Access::pin_pages`] of exactly this range (`iommufd_access_unpin_pages`). Works from a callback,
    /// while a detach or a replacement is under way and inside a burst. Waits for nobody, but that the last one of bytes in
    /// another process, pinned to write, lets the kernel copy them back.
    ///
    /// # Errors
    ///
    /// `NotPinned` \[EINVAL\] where Linux warns; `Empty`, `Overflow`.
    pub fn unpin_pages(&self, iova: Iova, length: u64) -> Result<(), AccessError> {
        self.core().control.held.unpin(checked(iova, length)?)
    }

    /// Copies between the guest's bytes at `iova` and a buffer of the caller (`iommufd_access_rw`), at any byte and
    /// over any number of contiguous areas. Not atomic over areas: on an error those before it are copied already.
    /// Holds nothing afterwards; an unmap waits for the copy, without a callback.
    ///
    /// # Errors
    ///
    /// As [`Access::pin_pages`], without `NotPinning` and `Misaligned`. After `Poisoned` what was read is not the
    /// guest's memory.
    pub fn rw(&self, iova: Iova, data: Rw<'_>) -> Result<(), AccessError> {
        let core = self.core();
        core.control.rw(&core.published, iova, data)
    }
}

impl Control {
    pub fn new(holds: Holds) -> Self {
        Control { held: Arc::default(), lane: Mutex::new(None), holds }
    }

    /// Whether its lanes may pin.
    pub fn pins_in_bursts(&self) -> bool {
        self.holds == Holds::Pins
    }

    /// What areas must be aligned to (`iommufd_access::iova_alignment`).
    pub fn alignment(&self) -> u64 {
        if self.holds == Holds::Pages { PAGE } else { 1 }
    }

    /// Does something in a burst of the lane that the access owns.
    pub fn in_burst<R>(&self, published: &Arc<Published>, work: impl FnOnce(&Burst<'_>) -> R) -> R {
        let mut lane = lock(&self.lane);
        work(&Burst::of(lane.get_or_insert_with(|| Published::reader(published, true))))
    }

    /// Unpins everything, when nobody is left who could.
    pub fn unpin_all(&self) {
        let held = std::mem::take(&mut *lock(&self.held.0));
        drop(held);
    }

    fn pin(&self, core: &AccessCore, iova: Iova, length: u64, perm: Perm) -> Result<Pages, AccessError> {
        if self.holds != Holds::Pages {
            return Err(AccessError::NotPinning);
        }
        if perm.is_empty() {
            return Err(AccessError::NoDirection);
        }
        let range = checked(iova, length)?;
        let mut lane = lock(&self.lane);
        let burst = Burst::of(lane.get_or_insert_with(|| Published::reader(&core.published, true)));
        // Alignment is looked at before permission (`iommufd_access_pin_pages`).
        burst.parts(range, |part, offset, len| {
            aligned(part, offset, len, range)?;
            if !part.perm().contains(perm) {
                return Err(ResolveError::Permission.into());
            }
            match part {
                Part::Here(found) => not_truncated(found, offset, len),
                Part::There(area) => Ok(area.in_process(offset).map(drop)?),
            }
        })?;
        let charged = core.charge(range)?;
        let (mut pinned, mut memory, mut copied) = (None, Vec::new(), Vec::new());
        burst.parts(range, |part, offset, len| match part {
            Part::Here(found) => {
                let at = found.piece().window_offset().wrapping_add(offset);
                try_push(&mut memory, Window { window: found.piece().window().clone(), offset: at, len })?;
                Ok(burst.inside().hold(&mut pinned, found, offset, len)?)
            }
            Part::There(area) => {
                let copy = area.snapshot(offset, len)?;
                burst.hold_snapshot(&mut pinned, area, &copy.snapshot)?;
                Ok(try_push(&mut copied, copy)?)
            }
        })?;
        let pin = pinned.map(Pin::new).ok_or(ResolveError::Empty)?;
        let hold = Hold { memory, copied, written: AtomicBool::new(false), _charged: charged, pin };
        // Recorded before the burst ends.
        let hold = self.held.record(range, hold, perm);
        drop(burst);
        Ok(Pages { range, hold, held: self.held.clone() })
    }

    fn rw(&self, published: &Arc<Published>, iova: Iova, data: Rw<'_>) -> Result<(), AccessError> {
        let (length, perm) = match &data {
            Rw::Read(to) => (to.len(), Perm::READ),
            Rw::Write(from) => (from.len(), Perm::WRITE),
        };
        let range = checked(iova, length as u64)?;
        let mut rest = data;
        let mut lane = lock(&self.lane);
        let burst = Burst::of(lane.get_or_insert_with(|| Published::reader(published, true)));
        burst.parts(range, |part, offset, len| {
            if !part.perm().contains(perm) {
                return Err(ResolveError::Permission.into());
            }
            let found = match part {
                Part::Here(found) => found,
                Part::There(area) => return area.copy(offset, len, &mut rest),
            };
            not_truncated(found, offset, len)?;
            let memory = found.memory(offset, len);
            match &mut rest {
                Rw::Read(to) => {
                    let copied = memory.copy_to(to);
                    *to = std::mem::take(to).get_mut(copied..).unwrap_or_default();
                }
                Rw::Write(from) => {
                    let copied = memory.copy_from(from);
                    *from = from.get(copied..).unwrap_or_default();
                }
            }
            Ok(())
        })?;
        if burst.poisoned() { Err(ResolveError::Poisoned.into()) } else { Ok(()) }
    }
}

impl Held {
    /// Counts a range. Pinned before, the new pin is dropped: the old one stands for both, unless it is void.
    fn record(&self, range: IovaRange, hold: Hold, perm: Perm) -> Weak<Hold> {
        let mut held = lock(&self.0);
        let entries = held.entry((range.first(), range.last())).or_default();
        if entries.last().is_none_or(|entry| entry.hold.is_void()) {
            entries.push(Entry { count: 0, hold: std::sync::Arc::new(hold) });
        }
        let Some(entry) = entries.last_mut() else { return Weak::new() };
        entry.count = entry.count.saturating_add(1);
        if perm.contains(Perm::WRITE) {
            entry.hold.written.store(true, Ordering::Release);
        }
        std::sync::Arc::downgrade(&entry.hold)
    }

    fn unpin(&self, range: IovaRange) -> Result<(), AccessError> {
        let mut held = lock(&self.0);
        let btree_map::Entry::Occupied(mut entry) = held.entry((range.first(), range.last())) else {
            return Err(AccessError::NotPinned(range));
        };
        // Void ones first: they are the older ones.
        let oldest = entry.get_mut().first_mut();
        let unused = oldest.is_some_and(|oldest| {
            oldest.count = oldest.count.saturating_sub(1);
            oldest.count == 0
        });
        let last = unused.then(|| entry.get_mut().remove(0));
        if entry.get().is_empty() {
            entry.remove();
        }
        // Without the lock: bytes of a process may have to go back, and that may take its time.
        drop(held);
        drop(last);
        Ok(())
    }
}

impl Hold {
    /// Whether some of its memory was revoked.
    fn is_void(&self) -> bool {
        self.memory.iter().any(|part| part.window.revoked(part.offset, part.len))
            || self.copied.iter().any(Copied::is_void)
    }
}

impl Pages {
    /// The range that was pinned.
    pub fn range(&self) -> IovaRange {
        self.range
    }

    /// Calls `touch` with the pinned memory, which stays pinned at least until it returns, even if it is unpinned
    /// meanwhile. It should return soon: an unmap waits for it.
    ///
    /// # Errors
    ///
    /// `NotPinned` if the range was unpinned before; `Poisoned` \[EFAULT\] if the memory lost a page: what was read
    /// is not the guest's, what was written is lost; `Revoked` \[EFAULT\] if it was taken away: the same.
    pub fn with<R>(&self, touch: impl FnOnce(&Pin) -> R) -> Result<R, AccessError> {
        let hold = self.hold.upgrade().ok_or(AccessError::NotPinned(self.range))?;
        let done = touch(&hold.pin);
        if hold.is_void() {
            return Err(AccessError::Revoked(self.range));
        }
        if hold.memory.iter().any(|part| part.window.poisoned()) {
            return Err(ResolveError::Poisoned.into());
        }
        Ok(done)
    }

    /// As [`Access::unpin_pages`] of its range, for a callback that has no [`Access`] at hand.
    pub fn unpin(self) -> Result<(), AccessError> {
        self.held.unpin(self.range)
    }
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").field("range", &self.range).finish()
    }
}

/// The range of a call, or why it is none. `IovaRange` alone would not tell an empty one from one that wraps.
pub fn checked(iova: Iova, length: u64) -> Result<IovaRange, AccessError> {
    IovaRange::with_len(iova, length).map_err(|error| match error {
        RangeError::Overflow { .. } => ResolveError::Overflow.into(),
        RangeError::Empty { .. } | RangeError::Inverted { .. } => ResolveError::Empty.into(),
    })
}

/// Pages are pinned whole, so a part must start on a page of its file, and end on one unless it is the last part
/// (`iopt_area_contig_is_aligned`).
fn aligned(part: Part<'_>, offset: u64, len: u64, range: IovaRange) -> Result<(), AccessError> {
    let first = part.start().wrapping_add(offset);
    let at = part.first().wrapping_add(offset);
    let is_last = at.wrapping_add(len.wrapping_sub(1)) == range.last().0;
    if first.is_multiple_of(PAGE) && (is_last || first.wrapping_add(len).is_multiple_of(PAGE)) {
        Ok(())
    } else {
        Err(AccessError::Misaligned(Iova(at)))
    }
}

/// The page of the last byte must start within the file as it is now (`memfd_pin_folios`).
fn not_truncated(found: Found<'_>, offset: u64, len: u64) -> Result<(), AccessError> {
    let piece = found.piece();
    let file = piece.window().file();
    let last = piece.file_bytes().0.wrapping_add(offset).wrapping_add(len.wrapping_sub(1));
    let page = last.wrapping_sub(last.checked_rem(file.page_size()).unwrap_or(0));
    match file.size() {
        Ok(size) if page < size => Ok(()),
        _ => Err(AccessError::Truncated(Iova(piece.first().wrapping_add(offset)))),
    }
}
