//! Stitches: bytes that lie apart in files, side by side in our own address space.
//!
//! A ring is read through one slice for each of its parts. Where the pages of a part do not follow each other in a window,
//! because an IOMMU scatters them or because a chunk ends in between, they are mapped a second time, in the right order, at
//! addresses reserved for them. Pages are those of the file: each part but the first begins with one, and each but the last
//! ends with one.
//!
//! What holds for a window holds here: a page that is lost is contained, counted, and poisons the stitch; pages that are
//! revoked from the windows ([`crate::Occupancy::revoke`]) are taken away from every stitch that shows them in the same
//! step. Whoever uses a stitch occupies its bytes in the windows.

use std::sync::{Arc, PoisonError};

use crate::raw::{Mapping, Shown};
use crate::share::Place;
use crate::{GuestSlice, HostWindow, OutOfMemory, Segment, WindowError, Windows, try_push};

/// Parts that one stitch may have: as many pages as the largest part of a ring can touch, and some.
pub const STITCH_PARTS: usize = 132;

/// Whole pages of a window, and where in the stitch they are.
#[derive(Debug)]
struct Part {
    window: Arc<HostWindow>,
    /// First and last byte in the window.
    pages: (u64, u64),
    at: usize,
}

/// Bytes that lie apart in windows, mapped a second time side by side. Unmapped when the last holder lets go.
#[derive(Debug)]
pub struct Stitch {
    mapping: Mapping,
    parts: Vec<Part>,
    /// Where in the mapping the first of its bytes is.
    first: u64,
    len: u64,
    place: Place,
}

/// Bytes of a window: its segments, joined where they continue each other.
struct Run<'s> {
    window: &'s Arc<HostWindow>,
    /// First and last byte.
    bytes: (u64, u64),
}

/// The runs of segments that follow each other.
fn runs(segments: &[Segment]) -> Result<Vec<Run<'_>>, StitchError> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    for Segment { range, window, offset } in segments {
        let size = u64::try_from(range.size()).map_err(|_| StitchError::TooMany)?;
        let last = offset.checked_add(size - 1).ok_or(StitchError::TooMany)?;
        let full = runs.len() >= STITCH_PARTS;
        match runs.last_mut() {
            Some(run) if Arc::ptr_eq(run.window, window) && run.bytes.1.checked_add(1) == Some(*offset) => {
                run.bytes.1 = last;
            }
            _ if full => return Err(StitchError::TooMany),
            _ => try_push(&mut runs, Run { window, bytes: (*offset, last) })?,
        }
    }
    Ok(runs)
}

impl Stitch {
    /// The `len` bytes at `offset`; `None` if they do not lie within it. As with windows, whoever hands out slices checks
    /// what is permitted: it may be written through only if every window in it may.
    pub fn slice(&self, offset: u64, len: usize) -> Option<GuestSlice<'_>> {
        if offset.checked_add(len as u64)? > self.len {
            return None;
        }
        self.mapping.slice(usize::try_from(self.first.checked_add(offset)?).ok()?, len)
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "no stitch is empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Mapped parts: what it costs of the kernel's mappings.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Whether a page was lost under it. It stays so; a new one must be made.
    pub fn poisoned(&self) -> bool {
        self.poison_count() != 0
    }

    /// How often a lost page was touched through it, as [`HostWindow::poison_count`] says it of a window.
    pub fn poison_count(&self) -> u64 {
        self.mapping.poison_count()
    }

    /// Whether it shows these bytes, in this order and in these windows, and nothing else.
    pub fn shows(&self, segments: &[Segment]) -> bool {
        let Ok(runs) = runs(segments) else { return false };
        let first = runs.first().map(|run| run.bytes.0 - run.window.whole_pages(run.bytes).0);
        let len = runs.iter().map(|run| run.bytes.1 - run.bytes.0 + 1).sum::<u64>();
        let alike = |(run, part): (&Run<'_>, &Part)| {
            Arc::ptr_eq(run.window, &part.window) && run.window.whole_pages(run.bytes) == part.pages
        };
        first == Some(self.first)
            && len == self.len
            && runs.len() == self.parts.len()
            && runs.iter().zip(&self.parts).all(alike)
    }

    /// Takes whole pages of a part away, as [`HostWindow`] does.
    pub(crate) fn take_away(&self, at: usize, len: u64) -> std::io::Result<()> {
        let len = usize::try_from(len).map_err(|_| std::io::Error::from_raw_os_error(libc::EINVAL))?;
        self.mapping.take_away(at, len)
    }
}

impl Drop for Stitch {
    fn drop(&mut self) {
        self.place.leave_faults(self.poison_count());
    }
}

impl Windows {
    /// Maps the bytes of `segments` side by side, in this order. Their windows were got from here, and the caller occupies
    /// the bytes. Blocks for `mmap` only.
    ///
    /// # Errors
    ///
    /// [`StitchError`].
    pub fn stitch(&self, segments: &[Segment]) -> Result<Arc<Stitch>, StitchError> {
        let runs = runs(segments)?;
        let (Some(begin), Some(end)) = (runs.first(), runs.last()) else { return Err(StitchError::Apart) };
        let page = begin.window.file().page_size();
        let whole: Vec<(u64, u64)> = runs.iter().map(|run| run.window.whole_pages(run.bytes)).collect();
        for (run, pages) in runs.iter().zip(&whole) {
            let joins_before = std::ptr::eq(run, begin) || run.bytes.0 == pages.0;
            let joins_behind = std::ptr::eq(run, end) || run.bytes.1 == pages.1;
            if run.window.file().page_size() != page || !joins_before || !joins_behind {
                return Err(StitchError::Apart);
            }
        }
        let mut shown = Vec::with_capacity(runs.len());
        let mut parts = Vec::with_capacity(runs.len());
        let mut at = 0usize;
        for (run, pages) in runs.iter().zip(&whole) {
            let len = usize::try_from(pages.1 - pages.0 + 1).map_err(|_| StitchError::TooMany)?;
            let offset = run.window.file_offset() + pages.0;
            shown.push(Shown { fd: run.window.file().as_fd(), offset, len });
            parts.push(Part { window: Arc::clone(run.window), pages: *pages, at });
            at = at.checked_add(len).ok_or(StitchError::TooMany)?;
        }
        let writable = runs.iter().all(|run| run.window.is_writable());
        let place = self.place()?;
        let mapping = Mapping::stitched(&shown, page, writable).map_err(WindowError::from)?;
        let len = runs.iter().map(|run| run.bytes.1 - run.bytes.0 + 1).sum();
        let first = begin.bytes.0 - whole.first().map_or(begin.bytes.0, |pages| pages.0);
        place.mapped();
        let stitch = Arc::new(Stitch { mapping, parts, first, len, place });
        for part in &stitch.parts {
            // Whoever revokes these pages from here on finds the stitch; before, the record says so.
            if !part.window.occupants().show(part.pages, part.at, &stitch) {
                return Err(StitchError::Revoked);
            }
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.stitches.retain(|stitch| stitch.strong_count() > 0);
        known.stitches.push(Arc::downgrade(&stitch));
        Ok(stitch)
    }
}

/// Why bytes were not put side by side.
#[derive(Debug, thiserror::Error)]
pub enum StitchError {
    /// They meet within a page, or lie in files with pages of different sizes.
    #[error("the bytes do not meet where pages of their files end")]
    Apart,
    /// There are too many of them.
    #[error("the bytes lie in more than {STITCH_PARTS} places")]
    TooMany,
    /// A page of them was revoked meanwhile.
    #[error("a page of the bytes was revoked meanwhile")]
    Revoked,
    /// The kernel refused it, or too much is stitched already.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// No memory for the list of parts.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

#[cfg(test)]
mod tests;
