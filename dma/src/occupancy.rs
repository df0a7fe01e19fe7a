//! Who uses which pages of a window, and how pages are taken away from one user.
//!
//! Windows are shared: areas of several spaces, and of several connections, may lie in one. Whoever holds memory of a
//! window for longer than a moment holds an [`Occupancy`] for it. With that, memory can be taken back from somebody who
//! does not let go of it, without touching what others use: [`Occupancy::revoke`].
//!
//! Each window keeps the record of its own bytes under a lock of its own. A revocation takes the locks of all windows it
//! concerns, in order of their addresses, and holds them until the pages are replaced: so nobody can come to occupy a page
//! between the look at the record and its loss. Insertion and removal cost a walk down a tree, a revocation a look at
//! every occupant of its windows.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::{HostWindow, Segment, Stitch};

/// Bytes of a window, first and last.
type Bytes = (u64, u64);

fn overlap(a: Bytes, b: Bytes) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

/// The record of one window.
#[derive(Debug, Default)]
pub(crate) struct Occupants {
    record: Mutex<Record>,
    /// Some page was revoked. Set under the lock.
    lost: AtomicBool,
}

#[derive(Debug, Default)]
struct Record {
    /// The last byte, by the first one and the number of the occupancy, which occupies no byte twice.
    used: BTreeMap<(u64, u64), u64>,
    /// Whole pages that show no byte of the file any more.
    revoked: Vec<Bytes>,
    /// Whole pages that are mapped a second time, and where in the stitch they are.
    stitched: Vec<(Bytes, usize, Weak<Stitch>)>,
}

impl Record {
    fn is_revoked(&self, bytes: Bytes) -> bool {
        self.revoked.iter().any(|revoked| overlap(*revoked, bytes))
    }
}

impl Occupants {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any page was revoked: then nothing more is to be mapped through this window.
    pub(crate) fn any_revoked(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Notes that a stitch shows these whole pages, at `at` in its mapping. `false` if one of them was revoked.
    pub(crate) fn show(&self, pages: Bytes, at: usize, stitch: &Arc<Stitch>) -> bool {
        let mut record = self.lock();
        record.stitched.retain(|(_, _, stitch)| stitch.strong_count() > 0);
        record.stitched.push((pages, at, Arc::downgrade(stitch)));
        !record.is_revoked(pages)
    }

    /// Whether one of these bytes lies in a revoked page.
    pub(crate) fn is_revoked(&self, first: u64, last: u64) -> bool {
        self.any_revoked() && self.lock().is_revoked((first, last))
    }
}

/// The bytes of one user, in any number of windows. They are given back when it is dropped.
#[derive(Debug)]
pub struct Occupancy {
    /// Tells it from others; never used twice.
    number: u64,
    parts: Vec<(Arc<HostWindow>, Bytes)>,
}

impl Occupancy {
    /// Occupies the bytes of `segments`, which do not overlap; `None` if one of their pages was revoked since the
    /// segments were made: [`crate::Windows::segments`] then has other windows for them.
    pub fn of(segments: &[Segment]) -> Option<Occupancy> {
        let occupancy = Occupancy::within(segments);
        let lost =
            occupancy.parts.iter().any(|(window, bytes)| window.occupants().is_revoked(bytes.0, bytes.1));
        (!lost).then_some(occupancy)
    }

    /// As [`Occupancy::of`], for bytes that the caller occupies already: those are not revoked without his doing.
    pub fn within(segments: &[Segment]) -> Occupancy {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut parts = Vec::with_capacity(segments.len());
        for segment in segments {
            let length = u64::try_from(segment.range.size()).unwrap_or(u64::MAX);
            let bytes = (segment.offset, segment.offset.saturating_add(length.saturating_sub(1)));
            segment.window.occupants().lock().used.insert((bytes.0, number), bytes.1);
            parts.push((segment.window.clone(), bytes));
        }
        Occupancy { number, parts }
    }

    /// Gives the bytes back before it is dropped: they are not reached through any slice any more.
    pub fn vacate(&self) {
        for (window, bytes) in &self.parts {
            window.occupants().lock().used.remove(&(bytes.0, self.number));
        }
    }

    /// Takes the pages of all of these away: slices into them stay valid, but reach private zeros instead of the file, and
    /// so does whatever is accessed through them from here on, on every processor. Pages are those of the file, and what
    /// the occupancies share is theirs. What lies elsewhere in the windows is not touched, nor is it poisoned; but the
    /// windows are not handed out again.
    ///
    /// Who uses slices of a window without an occupancy is not asked.
    ///
    /// # Errors
    ///
    /// `Shared`: nothing was taken. `Map`: some pages may have been taken already, and it can be tried again.
    pub fn revoke<'o>(all: impl IntoIterator<Item = &'o Occupancy>) -> Result<(), RevokeError> {
        let mut numbers = Vec::new();
        // By address, so that two revocations lock in the same order.
        let mut going: BTreeMap<*const HostWindow, (&HostWindow, Vec<Bytes>)> = BTreeMap::new();
        for occupancy in all {
            numbers.push(occupancy.number);
            for (window, bytes) in &occupancy.parts {
                let entry = going.entry(Arc::as_ptr(window)).or_insert((window, Vec::new()));
                entry.1.push(window.whole_pages(*bytes));
            }
        }
        numbers.sort_unstable();
        // Those that somebody may let go of meanwhile are unmapped when the locks are free again.
        let mut stitches = Vec::new();
        let mut locked: Vec<_> = going
            .into_values()
            .map(|(window, pages)| (window, window.occupants().lock(), joined(pages)))
            .collect();
        for (window, record, pages) in &locked {
            let other = |number: &u64| numbers.binary_search(number).is_err();
            for ((first, _), last) in record.used.iter().filter(|((_, number), _)| other(number)) {
                if pages.iter().any(|pages| overlap(*pages, (*first, *last))) {
                    return Err(RevokeError::Shared { offset: window.file_offset().saturating_add(*first) });
                }
            }
        }
        for (window, record, pages) in &mut locked {
            for (first, last) in pages.drain(..) {
                // Before they are gone, as it may fail half way.
                if !record.revoked.contains(&(first, last)) {
                    record.revoked.push((first, last));
                }
                window.occupants().lost.store(true, Ordering::Release);
                window.take_away(first, last).map_err(RevokeError::Map)?;
                let shown = record.stitched.iter().filter(|(pages, ..)| overlap(*pages, (first, last)));
                for (pages, at, stitch) in shown {
                    let Some(stitch) = stitch.upgrade() else { continue };
                    let (from, to) = (first.max(pages.0), last.min(pages.1));
                    let at = at.saturating_add((from - pages.0) as usize);
                    let taken = stitch.take_away(at, to - from + 1);
                    stitches.push(stitch);
                    taken.map_err(RevokeError::Map)?;
                }
            }
        }
        Ok(())
    }
}

/// The same bytes as few ranges that do not touch.
fn joined(mut ranges: Vec<Bytes>) -> Vec<Bytes> {
    ranges.sort_unstable();
    let mut joined: Vec<Bytes> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.0 <= last.1.saturating_add(1) => last.1 = last.1.max(range.1),
            _ => joined.push(range),
        }
    }
    joined
}

impl Drop for Occupancy {
    fn drop(&mut self) {
        self.vacate();
    }
}

/// Why pages were not taken away.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// Somebody else uses one of the pages.
    #[error("the page at file offset {offset:#x} is used by another area too; unmap that one first")]
    Shared {
        /// Where in the file the other's bytes begin.
        offset: u64,
    },
    /// The kernel did not replace a page.
    #[error(
        "cannot replace pages of a window: {0} (out of mappings (vm.max_map_count), or too many pages were revoked)"
    )]
    Map(#[source] io::Error),
}

#[cfg(test)]
mod tests;
