//! UNSAFETY: a descriptor given to this process by its number (`--fd 3`), or made by a crate that returns numbers, has
//! no owner in Rust's terms yet; taking it over asserts that nobody else in the process closes or uses that number.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes over the descriptor `fd` that the parent process left open for this one, and closes it on exec.
///
/// To be called at most once for a number: by the one who reads the command line, before other descriptors are opened,
/// or by the one who has just made the descriptor.
///
/// # Errors
/// `EBADF` when it is not open.
pub fn inherit(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_SETFD takes no pointer; on a number that is not open it fails with EBADF.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (fcntl succeeded). It was opened by the parent, or by the caller just now, so no
    // value in this process owns it, and by this function's rule it is taken over once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
