//! UNSAFETY: some calls name memory by its address in this process. What they take is the file that is mapped there, or its
//! pages, so a mapping is made for the length of the call and nothing ever reads or writes through it.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A part of a file that is mapped until this is dropped, for the kernel to find. Never accessed from here.
#[derive(Debug)]
pub(crate) struct Shown {
    base: *mut c_void,
    len: usize,
}

impl Shown {
    /// Maps `len` bytes of a file from `offset` on, both multiples of its page size, shared.
    ///
    /// # Errors
    /// What mmap(2) answers: `EINVAL` for no bytes or an offset within a page, `EACCES` for a file that is open for less,
    /// `ENOMEM`, `EOVERFLOW`.
    pub(crate) fn of_file(
        file: BorrowedFd<'_>,
        offset: u64,
        len: u64,
        writable: bool,
    ) -> Result<Self, Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::OVERFLOW)?;
        let access = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at an address that the kernel chooses disturbs no other memory.
        let base = unsafe { mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file, offset) }?;
        Ok(Self { base, len })
    }

    /// Where it is.
    pub(crate) fn address(&self) -> u64 {
        self.base.expose_provenance() as u64
    }

    /// Bytes of it.
    pub(crate) fn len(&self) -> u64 {
        self.len as u64
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours, whole, and nothing in this process points into it.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}
