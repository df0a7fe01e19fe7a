//! UNSAFETY: mapping files into our address space and taking them out again.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use super::GuestSlice;
use super::table::{Entry, Registration};
use crate::faults::{self, Step};

/// A shared mapping of a part of a file, known to the SIGBUS handler.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    /// Parts that [`Mapping::take_away`] has replaced.
    taken: AtomicU64,
    /// Parts that it was made of, if it was [`Mapping::stitched`].
    stitched: u64,
    // Only `None` while being dropped: the handler must forget the addresses before they can mean something else.
    registered: Option<Registration>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is reached through `GuestSlice` only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// Parts taken away from the mappings there are now.
static TAKEN: AtomicU64 = AtomicU64::new(0);
/// How many there may be. As with the pages that [`super::table`] replaces, each may cost two mappings more, and what
/// the signal handler needs must remain.
const TAKEN_MAX: u64 = 8192;

/// Parts of the stitched mappings there are now. Each is a mapping of its own.
static STITCHED: AtomicU64 = AtomicU64::new(0);
/// How many there may be, for the same reason.
const STITCHED_MAX: u64 = 8192;

/// What a stitched mapping shows: `len` bytes of a file from `offset` on, both multiples of its page size.
#[cfg_attr(miri, allow(dead_code))]
pub(crate) struct Shown<'f> {
    pub(crate) fd: BorrowedFd<'f>,
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

/// Why a file was not mapped.
#[derive(Debug)]
pub(crate) enum MapFailed {
    /// The kernel said no.
    Kernel(io::Error),
    /// The table of windows is full.
    TableFull,
}

impl Mapping {
    /// Maps `len` bytes of a file from `offset` on, both multiples of `page`, the file's page size.
    ///
    /// Not inherited by a child and not in a core dump: it is somebody else's memory. Huge pages are not reserved:
    /// a window covers more than is used of it, and the pool belongs to the owner of the file.
    #[cfg_attr(miri, allow(dead_code))]
    pub(crate) fn of_file(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        page: u64,
        writable: bool,
    ) -> Result<Self, MapFailed> {
        let too_large = || MapFailed::Kernel(io::Error::from_raw_os_error(libc::EOVERFLOW));
        let offset = libc::off_t::try_from(offset).map_err(|_| too_large())?;
        let page = usize::try_from(page).map_err(|_| too_large())?;
        let protection = protection(writable);
        let no_memory = || Err(MapFailed::Kernel(io::Error::from_raw_os_error(libc::ENOMEM)));
        if faults::fail(Step::Map) {
            return no_memory();
        }
        // SAFETY: a new mapping at an address the kernel chooses disturbs no other memory; the descriptor is open.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(MapFailed::Kernel(io::Error::last_os_error()));
        }
        let base = NonNull::new(base.cast()).ok_or_else(too_large)?;
        // From here on the mapping is undone by Drop.
        let mapping =
            Mapping { base, len, writable, taken: AtomicU64::new(0), stitched: 0, registered: None };
        mapping.made_known(page)
    }

    /// Maps parts of files side by side, in this order. They have the same page size.
    #[cfg(not(miri))]
    pub(crate) fn stitched(parts: &[Shown<'_>], page: u64, writable: bool) -> Result<Self, MapFailed> {
        let failed = |code| MapFailed::Kernel(io::Error::from_raw_os_error(code));
        let page = usize::try_from(page).map_err(|_| failed(libc::EOVERFLOW))?;
        let len = parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.len));
        let len = len.filter(|len| *len > 0).ok_or_else(|| failed(libc::EINVAL))?;
        // So much that a multiple of the page size lies in it with all parts behind.
        let room = len.checked_add(page).ok_or_else(|| failed(libc::EOVERFLOW))?;
        if faults::fail(Step::Map) {
            return Err(failed(libc::ENOMEM));
        }
        // SAFETY: a new mapping at an address the kernel chooses disturbs no other memory.
        let reserved = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                room,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if reserved == libc::MAP_FAILED {
            return Err(MapFailed::Kernel(io::Error::last_os_error()));
        }
        let skip = reserved.addr().next_multiple_of(page) - reserved.addr();
        let start = reserved.wrapping_byte_add(skip).cast::<u8>();
        for (from, bytes) in [(reserved.cast::<u8>(), skip), (start.wrapping_add(len), room - len - skip)] {
            if bytes > 0 {
                // SAFETY: a part of the reservation just made, before or behind the bytes that are kept; nobody knows it.
                unsafe { libc::munmap(from.cast(), bytes) };
            }
        }
        let base = NonNull::new(start).ok_or_else(|| failed(libc::ENOMEM))?;
        let stitched = parts.len() as u64;
        let standing = STITCHED.fetch_add(stitched, Ordering::Relaxed);
        // From here on both are undone by Drop.
        let mapping = Mapping { base, len, writable, taken: AtomicU64::new(0), stitched, registered: None };
        if standing.saturating_add(stitched) > STITCHED_MAX {
            return Err(failed(libc::ENOMEM));
        }
        let mut at = 0;
        for part in parts {
            let offset = libc::off_t::try_from(part.offset).map_err(|_| failed(libc::EOVERFLOW))?;
            if faults::fail(Step::Map) {
                return Err(failed(libc::ENOMEM));
            }
            // SAFETY: `at + part.len` is at most `len`, the sum of all: the range lies in the reservation, which is ours and
            // of which no slice was handed out.
            let placed = unsafe {
                libc::mmap(
                    base.as_ptr().wrapping_add(at).cast(),
                    part.len,
                    protection(writable),
                    libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED,
                    part.fd.as_raw_fd(),
                    offset,
                )
            };
            if placed == libc::MAP_FAILED {
                return Err(MapFailed::Kernel(io::Error::last_os_error()));
            }
            at += part.len;
        }
        mapping.made_known(page)
    }

    /// A heap cannot be shown twice.
    #[cfg(miri)]
    pub(crate) fn stitched(_: &[Shown<'_>], _: u64, _: bool) -> Result<Self, MapFailed> {
        Err(MapFailed::Kernel(io::Error::from_raw_os_error(libc::ENOSYS)))
    }

    /// Keeps it from children and core dumps, and makes it known to the SIGBUS handler.
    #[cfg_attr(miri, allow(dead_code))]
    fn made_known(mut self, page: usize) -> Result<Self, MapFailed> {
        let Mapping { base, len, writable, .. } = self;
        for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
            if faults::fail(Step::Advise) {
                return Err(MapFailed::Kernel(io::Error::from_raw_os_error(libc::ENOMEM)));
            }
            // SAFETY: the range is the mapping just made; neither advice changes its bytes.
            if unsafe { libc::madvise(base.as_ptr().cast(), len, advice) } != 0 {
                return Err(MapFailed::Kernel(io::Error::last_os_error()));
            }
        }
        let entry = Entry { base: base.as_ptr().expose_provenance(), len, page, writable };
        self.registered = Some(Registration::new(entry).ok_or(MapFailed::TableFull)?);
        Ok(self)
    }

    /// The same of a file that is a piece of heap, which must outlive the mapping.
    #[cfg(miri)]
    pub(crate) fn of_heap(
        heap: &super::Heap,
        offset: u64,
        len: usize,
        page: u64,
        writable: bool,
    ) -> Result<Self, MapFailed> {
        let beyond = || MapFailed::Kernel(io::Error::from_raw_os_error(libc::EINVAL));
        let offset = usize::try_from(offset).map_err(|_| beyond())?;
        let page = usize::try_from(page).map_err(|_| beyond())?;
        let base = heap.at(offset, len).ok_or_else(beyond)?;
        let entry = Entry { base: base.as_ptr().expose_provenance(), len, page, writable };
        let registered = Some(Registration::new(entry).ok_or(MapFailed::TableFull)?);
        Ok(Mapping { base, len, writable, taken: AtomicU64::new(0), stitched: 0, registered })
    }

    /// Whether it may be written through.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Length in bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The `len` bytes at `offset`, if they lie in the mapping.
    #[inline]
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Option<GuestSlice<'_>> {
        // SAFETY: the mapping stands for as long as `self` is borrowed, its faults are contained, and memory of it
        // is given out as guest slices only.
        let whole = unsafe { GuestSlice::of_mapping(self.base, self.len) };
        whole.subslice(offset, len)
    }

    /// Puts private zeros in the place of `len` bytes from `offset` on, both multiples of the file's page size. When it
    /// returns, no access through this mapping reaches these bytes of the file, on any processor; slices stay valid.
    ///
    /// # Errors
    ///
    /// What `mmap` says; `ENOMEM` also if the mappings of this process are already in too many pieces; `EINVAL` for a
    /// part that is none.
    pub(crate) fn take_away(&self, offset: usize, len: usize) -> io::Result<()> {
        if len == 0 || offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if faults::fail(Step::TakeAway) {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        if TAKEN.fetch_add(1, Ordering::Relaxed) >= TAKEN_MAX {
            TAKEN.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        // Given back when the mapping goes, also if what follows fails: it may have been split all the same.
        self.taken.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the range lies in this mapping, by the comparison above, and `self` keeps that alive.
        if unsafe { overlay(self.base.as_ptr().addr() + offset, len, self.writable) } {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Has the kernel give memory to `len` bytes from `offset` on, both multiples of the file's page size, and map it
    /// here. Changes no byte, and raises no SIGBUS.
    ///
    /// # Errors
    ///
    /// What `madvise` says: `EFAULT` where the file has no such bytes or no huge page is left, `ENOMEM`, `EINVAL` also on
    /// kernels before 5.14.
    #[cfg_attr(miri, allow(dead_code))]
    pub(crate) fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let advice = if self.writable { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
        let at = self.base.as_ptr().wrapping_add(offset).cast();
        loop {
            // SAFETY: the range lies in this mapping, by the comparison above, and `self` keeps that alive; this advice
            // changes no byte of it.
            if unsafe { libc::madvise(at, len, advice) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) {
                return Err(error);
            }
        }
    }

    /// Faults contained in this mapping.
    #[inline]
    pub(crate) fn poison_count(&self) -> u64 {
        self.registered.as_ref().map_or(0, Registration::poison_count)
    }
}

/// The protection of a mapping; writing implies reading on every machine this runs on.
pub(super) fn protection(writable: bool) -> libc::c_int {
    if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ }
}

/// Replaces bytes of a mapping by zeros that belong to nobody. May be called in a signal handler.
///
/// # Safety
///
/// `start` and `len` are multiples of the page size and lie in a [`Mapping`] that stays for the time of the call. So no
/// memory but the mapping's is replaced; slices into it stay valid, as they promise nothing about the bytes.
pub(super) unsafe fn overlay(start: usize, len: usize, writable: bool) -> bool {
    // SAFETY: the caller's promise.
    let at = unsafe {
        libc::mmap(
            std::ptr::with_exposed_provenance_mut(start),
            len,
            protection(writable),
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    at != libc::MAP_FAILED
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.registered = None;
        TAKEN.fetch_sub(self.taken.load(Ordering::Relaxed), Ordering::Relaxed);
        STITCHED.fetch_sub(self.stitched, Ordering::Relaxed);
        if cfg!(miri) {
            // The heap belongs to the file.
            return;
        }
        // SAFETY: the range is ours since it was made, and every slice of it borrowed `self`.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert_eq!(result, 0, "munmap of a whole mapping does not fail");
    }
}
