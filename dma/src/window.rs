//! Windows: our own mappings of backing files, shared by all who use the same bytes.
//!
//! A window is one chunk of a file, from a multiple of [`CHUNK`] up to the next or to the end of the file. Areas are
//! byte ranges inside windows and cause no mapping of their own. Windows live as long as somebody holds them; the
//! table here only remembers which ones there are.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::occupancy::Occupants;
use crate::raw::{self, Mapping};
use crate::share::{Place, Share};
use crate::{
    Area, BackingFile, FileExtent, FileId, GuestSlice, Iova, IovaRange, OutOfMemory, Perm, Ranged, Stitch,
    try_push,
};

/// Length and alignment of a full window: large enough for few of them, small enough that a file that grows does not
/// cost much to map again, and a multiple of every page size in use.
pub const CHUNK: u64 = 1 << 30;

/// One chunk of a file in our address space. Unmapped when the last holder lets go.
#[derive(Debug)]
pub struct HostWindow {
    mapping: Mapping,
    file: Arc<BackingFile>,
    file_offset: u64,
    occupants: Occupants,
    place: Place,
}

impl HostWindow {
    pub(crate) fn is_writable(&self) -> bool {
        self.mapping.is_writable()
    }

    /// The `len` bytes at `offset` of the window; `None` if they do not lie within it.
    ///
    /// Bytes behind the end of the file may be part of a window. Touching them, or a page that was taken away, is
    /// contained and counted in [`HostWindow::poison_count`]. A window that was mapped for reading must not be
    /// written through: the processor refuses it and the process ends. Whoever hands out slices checks [`Area::perm`].
    #[inline]
    pub fn slice(&self, offset: u64, len: usize) -> Option<GuestSlice<'_>> {
        self.mapping.slice(usize::try_from(offset).ok()?, len)
    }

    /// Length in bytes, a multiple of the file's page size.
    #[inline]
    #[allow(clippy::len_without_is_empty, reason = "no window is empty")]
    pub fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// The file; the window keeps it open.
    pub fn file(&self) -> &Arc<BackingFile> {
        &self.file
    }

    /// Where in the file the window starts: a multiple of [`CHUNK`].
    pub fn file_offset(&self) -> u64 {
        self.file_offset
    }

    /// Whether a page was lost under this window. It stays so; a new window must be mapped.
    #[inline]
    pub fn poisoned(&self) -> bool {
        self.poison_count() != 0
    }

    /// How often a lost page was touched through this window. Every access that came before this call in program
    /// order and read something else than the file's bytes is counted.
    #[inline]
    pub fn poison_count(&self) -> u64 {
        self.mapping.poison_count()
    }

    /// Whether one of `len` bytes at `offset` was taken away by [`crate::Occupancy::revoke`]. It stays so.
    pub fn revoked(&self, offset: u64, len: u64) -> bool {
        len > 0 && self.occupants.is_revoked(offset, offset.saturating_add(len - 1))
    }

    /// Gives memory to the `len` bytes at `offset`, and to the rest of the file's pages they begin and end in, so that no
    /// access has to wait for it. Changes none of them. Takes as long as the kernel needs for it.
    ///
    /// # Errors
    ///
    /// `EFAULT` where the file has no such bytes any more or no huge page is left for them, `ENOMEM`, and `EINVAL` for
    /// bytes outside the window and on kernels before 5.14. Part of them may have memory then. No page is lost by it.
    pub fn populate(&self, offset: u64, len: u64) -> io::Result<()> {
        let outside = || io::Error::from_raw_os_error(libc::EINVAL);
        if len == 0 {
            return Ok(());
        }
        let last = offset.checked_add(len - 1).filter(|&last| last < self.len()).ok_or_else(outside)?;
        let (first, last) = self.whole_pages((offset, last));
        let first = usize::try_from(first).map_err(|_| outside())?;
        let last = usize::try_from(last).map_err(|_| outside())?;
        self.mapping.populate(first, last - first + 1)
    }

    pub(crate) fn occupants(&self) -> &Occupants {
        &self.occupants
    }

    /// The bytes, first and last, with the rest of the file's pages they begin and end in. Windows consist of whole
    /// pages, so they lie in the window if the bytes do.
    pub(crate) fn whole_pages(&self, (first, last): (u64, u64)) -> (u64, u64) {
        let page = self.file.page_size();
        (first - first % page, last - last % page + (page - 1))
    }

    /// Replaces whole pages, from the first byte to the last.
    pub(crate) fn take_away(&self, first: u64, last: u64) -> io::Result<()> {
        let beyond = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let offset = usize::try_from(first).map_err(beyond)?;
        let len = usize::try_from(last - first + 1).map_err(beyond)?;
        self.mapping.take_away(offset, len)
    }
}

impl Drop for HostWindow {
    fn drop(&mut self) {
        self.place.leave_faults(self.poison_count());
    }
}

/// A piece of an area that lies in one window: an area is cut at chunk boundaries.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The device addresses of the piece.
    pub range: IovaRange,
    /// The window it lies in.
    pub window: Arc<HostWindow>,
    /// Where in the window the first byte is.
    pub offset: u64,
}

impl Segment {
    /// The `len` bytes at `at`; `None` if they do not all lie in this segment.
    #[inline]
    pub fn slice(&self, at: Iova, len: usize) -> Option<GuestSlice<'_>> {
        let from = self.range.offset_of(at)?;
        // How far the last byte may lie behind the first.
        let room = self.range.last().0 - at.0;
        if (len as u64).saturating_sub(1) > room {
            return None;
        }
        self.window.slice(self.offset.checked_add(from)?, len)
    }
}

impl Ranged for Segment {
    #[inline]
    fn range(&self) -> IovaRange {
        self.range
    }
}

/// Windows that do not show their file everywhere, and what happened in all windows so far.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Windows mapped now that have lost a page. They go when the last area in them is unmapped.
    pub poisoned: usize,
    /// Windows mapped now of which pages were revoked. They go as well, when the last void pin is gone too.
    pub revoked: usize,
    /// Accesses to lost pages that were contained, ever.
    pub faults: u64,
}

/// What windows are shared by: the same chunk of what may be the same file, with the same protection.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    file: FileId,
    start: u64,
    writable: bool,
}

/// The windows there are. Several under one key: files that are not proven to be one, windows from before a file
/// grew, poisoned and revoked ones that are still held.
#[derive(Debug, Default)]
pub(crate) struct Known {
    pub(crate) stitches: Vec<Weak<Stitch>>,
    windows: HashMap<Key, Vec<Weak<HostWindow>>>,
    /// Entries in `windows`, dead ones included.
    entries: usize,
    /// At how many entries to look for dead ones.
    sweep_at: usize,
}

impl Known {
    /// Remembers a window, and now and then forgets those that are gone: often enough that at most half of the
    /// entries are dead ones, rarely enough that it costs nothing per window.
    fn remember(&mut self, key: Key, window: &Arc<HostWindow>) {
        if self.entries >= self.sweep_at {
            self.windows.retain(|_, windows| {
                windows.retain(|window| window.strong_count() > 0);
                !windows.is_empty()
            });
            self.entries = self.windows.values().map(Vec::len).sum();
            self.sweep_at = (2 * self.entries).max(64);
        }
        self.windows.entry(key).or_default().push(Arc::downgrade(window));
        self.entries += 1;
    }
}

/// All windows of a daemon, as one of their users has them.
#[derive(Debug)]
pub struct Windows {
    pub(crate) known: Arc<Mutex<Known>>,
    pub(crate) share: Share,
}

impl Windows {
    /// An empty table. The first one in a process installs the handler that contains SIGBUS; it stays for good.
    pub fn new() -> io::Result<Arc<Self>> {
        raw::contain_sigbus()?;
        Ok(Arc::new(Windows { known: Arc::default(), share: Share::whole(raw::SLOTS) }))
    }

    /// The same windows for one user among many: what others have mapped it finds here, but it may itself have no more windows mapped than
    /// there are places left. So none keeps all others from theirs.
    pub fn share(&self) -> Arc<Self> {
        Arc::new(Windows { known: Arc::clone(&self.known), share: self.share.part() })
    }

    /// Maps `area`: the segments that cover it without a gap, in order of address. Memory that is in no file has none.
    ///
    /// The area is checked against the descriptor it came with and against the size the file has now. Windows that
    /// exist are used where it is certain that they show the same file; one that has lost a page, or of which one was
    /// revoked, is not handed out again. Blocks for `fstat` and `mmap` only.
    pub fn segments(&self, area: &Area) -> Result<Vec<Segment>, WindowError> {
        let Some(FileExtent { file, offset }) = area.extent.file() else { return Ok(Vec::new()) };
        let offset = *offset;
        if area.perm.is_empty() {
            return Err(WindowError::NoPermission);
        }
        if !file.perm().contains(area.perm) {
            return Err(WindowError::Permission { wanted: area.perm, open: file.perm() });
        }
        let overflow = WindowError::Overflow { offset, range: area.range };
        let Ok(len) = u64::try_from(area.range.size()) else { return Err(overflow) };
        let Some(end) = offset.checked_add(len) else { return Err(overflow) };
        let size = file.size().map_err(WindowError::Size)?;
        if end > size {
            return Err(WindowError::BeyondEnd { offset, len, size });
        }

        let writable = area.perm.contains(Perm::WRITE);
        let mut segments = Vec::new();
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let start = at - at % CHUNK;
            let within = (start + (CHUNK - 1)).min(end - 1) - at + 1;
            let window = self.window(file, start, at - start + within, size, writable)?;
            let first = Iova(area.range.first().0 + done);
            let range = IovaRange::with_len(first, within)
                .map_err(|_| WindowError::Overflow { offset, range: area.range })?;
            try_push(&mut segments, Segment { range, window, offset: at - start })?;
            done += within;
        }
        Ok(segments)
    }

    pub(crate) fn place(&self) -> Result<Place, WindowError> {
        self.share.take().map_err(|held| WindowError::Share { held })
    }

    /// How many windows are mapped now, stitches among them.
    pub fn live(&self) -> usize {
        self.share.live()
    }

    /// How many windows were ever mapped, stitches among them.
    pub fn mapped_total(&self) -> u64 {
        self.share.mapped()
    }

    /// What was lost in its windows. Looks at every window, so it is for statistics.
    pub fn losses(&self) -> Losses {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut losses = Losses { faults: self.share.faults(), ..Losses::default() };
        for window in known.windows.values().flatten().filter_map(Weak::upgrade) {
            losses.poisoned += usize::from(window.poisoned());
            losses.revoked += usize::from(window.occupants.any_revoked());
            losses.faults += window.poison_count();
        }
        for stitch in known.stitches.iter().filter_map(Weak::upgrade) {
            losses.poisoned += usize::from(stitch.poisoned());
            losses.faults += stitch.poison_count();
        }
        losses
    }

    /// A window of `file` at `start` that has at least `need` bytes. `size` is the file's size.
    fn window(
        &self,
        file: &Arc<BackingFile>,
        start: u64,
        need: u64,
        size: u64,
        writable: bool,
    ) -> Result<Arc<HostWindow>, WindowError> {
        let key = Key { file: file.id(), start, writable };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |window: &Arc<HostWindow>| {
            window.len() >= need
                && !window.poisoned()
                && !window.occupants.any_revoked()
                && (Arc::ptr_eq(&window.file, file) || window.file.is_same_file(file))
        };
        let candidates = known.windows.get(&key).map(Vec::as_slice).unwrap_or_default();
        if let Some(window) = candidates.iter().filter_map(Weak::upgrade).find(fits) {
            return Ok(window);
        }

        // The whole chunk, or what the file has of it in whole pages. `size` is at most i64::MAX, so nothing wraps.
        let len = (size - start).min(CHUNK).next_multiple_of(file.page_size());
        let len = usize::try_from(len).map_err(|_| WindowError::Map(io::ErrorKind::OutOfMemory.into()))?;
        let place = self.place()?;
        #[cfg(not(miri))]
        let mapping = Mapping::of_file(file.as_fd(), start, len, file.page_size(), writable)?;
        #[cfg(miri)]
        let mapping = Mapping::of_heap(file.heap(), start, len, file.page_size(), writable)?;
        place.mapped();
        let window = Arc::new(HostWindow {
            mapping,
            file: Arc::clone(file),
            file_offset: start,
            occupants: Occupants::default(),
            place,
        });
        known.remember(key, &window);
        Ok(window)
    }
}

/// Why an area could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// The area allows neither reading nor writing (`EINVAL`).
    #[error("the area allows neither reading nor writing")]
    NoPermission,
    /// The descriptor was not opened for what the area allows (`EACCES`).
    #[error(
        "the area needs {wanted:?}, but its memory descriptor is open for {open:?} only; the front-end must open it for both"
    )]
    Permission {
        /// What the area allows.
        wanted: Perm,
        /// What the descriptor was opened for.
        open: Perm,
    },
    /// Offset plus length wraps (`EOVERFLOW`).
    #[error("the area {range} at file offset {offset:#x} wraps around the end of the file offsets")]
    Overflow {
        /// The area's file offset.
        offset: u64,
        /// The area's addresses.
        range: IovaRange,
    },
    /// The area ends behind the end of its file (`EINVAL`).
    #[error(
        "the area needs {len:#x} bytes at offset {offset:#x}, but its file has {size:#x} bytes; the front-end must size the \
         file before it is announced"
    )]
    BeyondEnd {
        /// Where in the file the area starts.
        offset: u64,
        /// The area's length in bytes.
        len: u64,
        /// The file's size in bytes.
        size: u64,
    },
    /// The size of the file could not be read.
    #[error("cannot read the size of the memory file: {0}")]
    Size(#[source] io::Error),
    /// The kernel refused the mapping.
    #[error(
        "cannot map the memory file: {0} (out of address space, mappings (vm.max_map_count) or huge pages, or the file is sealed against writing)"
    )]
    Map(#[source] io::Error),
    /// All slots of the containment table are in use (`ENOSPC`).
    #[error(
        "all {limit} windows are in use; let fewer connections share this daemon, or use fewer and larger memory files"
    )]
    TableFull {
        /// How many windows there can be.
        limit: usize,
    },
    /// This user has as many windows mapped as there are places left for others (`ENOSPC`).
    #[error(
        "this connection has {held} windows, and no more than that are left for all others; let it use fewer and larger memory files"
    )]
    Share {
        /// How many it has.
        held: usize,
    },
    /// No memory for the list of segments (`ENOMEM`).
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

impl From<raw::MapFailed> for WindowError {
    fn from(error: raw::MapFailed) -> Self {
        match error {
            raw::MapFailed::Kernel(e) => WindowError::Map(e),
            raw::MapFailed::TableFull => WindowError::TableFull { limit: raw::SLOTS },
        }
    }
}

impl WindowError {
    /// The error number to report to a peer.
    pub fn errno(&self) -> i32 {
        match self {
            WindowError::NoPermission | WindowError::BeyondEnd { .. } => libc::EINVAL,
            WindowError::Permission { .. } => libc::EACCES,
            WindowError::Overflow { .. } => libc::EOVERFLOW,
            WindowError::Size(e) | WindowError::Map(e) => e.raw_os_error().unwrap_or(libc::ENOMEM),
            WindowError::TableFull { .. } | WindowError::Share { .. } => libc::ENOSPC,
            WindowError::Memory(e) => e.errno(),
        }
    }
}

#[cfg(test)]
mod tests;
