//! UNSAFETY: two system calls that compare descriptors and have no safe wrapper.
//!
//! Whether two descriptors refer to the same open file.

use std::os::fd::{AsRawFd, BorrowedFd};

/// `fcntl` command since Linux 6.10 (uapi/linux/fcntl.h: `F_LINUX_SPECIFIC_BASE + 3`): 1 if both are the same open file.
const F_DUPFD_QUERY: libc::c_int = 1027;
/// `kcmp(2)`: compare open files; needs a kernel with CONFIG_KCMP.
const KCMP_FILE: libc::c_long = 0;

/// Whether both descriptors refer to the same open file. `false` if the kernel cannot say.
pub(crate) fn same_open_file(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    let (a, b) = (a.as_raw_fd(), b.as_raw_fd());
    // SAFETY: F_DUPFD_QUERY takes a descriptor number and changes nothing; both descriptors are open while borrowed.
    match unsafe { libc::fcntl(a, F_DUPFD_QUERY, b) } {
        0 => return false,
        1 => return true,
        _ => {}
    }
    let me = libc::c_long::from(std::process::id() as libc::pid_t);
    // SAFETY: kcmp takes five numbers, reads no memory of ours and changes nothing.
    let order = unsafe {
        libc::syscall(libc::SYS_kcmp, me, me, KCMP_FILE, libc::c_long::from(a), libc::c_long::from(b))
    };
    order == 0
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::same_open_file;

    #[test]
    fn a_duplicate_is_the_same_open_file_and_a_second_file_is_not() {
        let one = memfd_create("one", MemfdFlags::CLOEXEC).unwrap();
        let two = memfd_create("two", MemfdFlags::CLOEXEC).unwrap();
        let copy = one.try_clone().unwrap();
        assert!(same_open_file(one.as_fd(), copy.as_fd()));
        assert!(!same_open_file(one.as_fd(), two.as_fd()));
    }

    #[test]
    fn the_same_inode_opened_twice_is_not_the_same_open_file() {
        let dir = std::fs::File::open("/").unwrap();
        let again = std::fs::File::open("/").unwrap();
        assert!(!same_open_file(dir.as_fd(), again.as_fd()));
    }
}
