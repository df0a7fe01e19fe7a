//! UNSAFETY: locks of open file descriptions are set and looked at with fcntl(2) on a `struct flock`, which no safe wrapper
//! offers.
//!
//! Such a lock belongs to the open file, whoever has descriptors of it, and goes with the last of them. I/O that the
//! kernel has under way counts as one.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Puts a shared lock on a byte.
///
/// # Errors
/// `EAGAIN` or `EACCES` while somebody has an exclusive one; what the file system answers if it has no locks.
pub(crate) fn share(fd: BorrowedFd<'_>, byte: u64) -> Result<(), Errno> {
    call(fd, libc::F_OFD_SETLK, libc::F_RDLCK, byte).map(drop)
}

/// Takes our lock off a byte.
///
/// # Errors
/// None that a correct program sees.
pub(crate) fn unlock(fd: BorrowedFd<'_>, byte: u64) -> Result<(), Errno> {
    call(fd, libc::F_OFD_SETLK, libc::F_UNLCK, byte).map(drop)
}

/// Whether another open file has any lock on a byte.
///
/// # Errors
/// As for [`share`].
pub(crate) fn is_locked_by_others(fd: BorrowedFd<'_>, byte: u64) -> Result<bool, Errno> {
    call(fd, libc::F_OFD_GETLK, libc::F_WRLCK, byte).map(|found| found != libc::F_UNLCK)
}

/// The type of lock that is found there afterwards, as far as the command says.
fn call(fd: BorrowedFd<'_>, command: i32, kind: i32, byte: u64) -> Result<i32, Errno> {
    let start = libc::off_t::try_from(byte).map_err(|_| Errno::INVAL)?;
    // The process number has to be zero.
    let mut lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    };
    // SAFETY: these commands read and write a `struct flock`, and `lock` is one that lives.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), command, &raw mut lock) };
    if done < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(lock.l_type.into())
}
