//! Files that hold guest memory, and places in them.
//!
//! A [`BackingFile`] is what a mapping holds on to: everything about guest memory is said as (file, offset), and
//! nothing depends on anybody's virtual addresses. A file is accepted when touching a page of it can make no
//! stranger wait: shmem (memfd, tmpfs) and hugetlbfs; others only with [`FilePolicy::allow_other_filesystems`]. The kernel's
//! own memory for a VDUSE device comes as a file too, which is accepted where [`FilePolicy::allow_vduse_domain`] says so.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};

use crate::Perm;
use crate::faults::{self, Step};
use crate::raw;

/// `f_type` of tmpfs and of memfds (linux/magic.h).
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// `f_type` of hugetlbfs and of memfds with huge pages (linux/magic.h).
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
/// `f_type` of files without a name (linux/magic.h).
const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;
/// What the kernel calls the memory of a VDUSE device (`vduse_domain_create`).
const VDUSE_DOMAIN: &[u8] = b"anon_inode:[vduse-domain]";

/// Which file it is: device and inode number. Enough to compare places within one table; sharing memory between
/// connections asks for more, see [`BackingFile::is_same_file`].
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
}

/// What kind of filesystem the file lives on.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A memfd, or a file on tmpfs.
    Shmem,
    /// Huge pages: a memfd with `MFD_HUGETLB`, or a file on hugetlbfs.
    Hugetlbfs,
    /// The kernel's memory for a VDUSE device (`[vduse-domain]`): bounce pages, then coherent memory. It has no size, and a
    /// page that the kernel has nothing at raises SIGBUS like one behind the end of another file.
    VduseDomain,
    /// Anything else; its page faults may wait for somebody else.
    Other,
}

/// Which files are accepted as guest memory.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct FilePolicy {
    /// Accept regular files on any filesystem. A page fault in such a file may then wait for a disk, a network or
    /// a FUSE server, and the worker that touches it waits too.
    pub allow_other_filesystems: bool,
    /// Accept the kernel's memory for a VDUSE device. Only for descriptors that the kernel has given out itself.
    pub allow_vduse_domain: bool,
}

/// An open file that holds guest memory, and what was found out about it when it arrived.
#[derive(Debug)]
pub struct BackingFile {
    fd: OwnedFd,
    id: FileId,
    birth: Option<(i64, u32)>,
    kind: FileKind,
    page_size: u64,
    perm: Perm,
    #[cfg(miri)]
    heap: raw::Heap,
}

#[cfg(miri)]
impl BackingFile {
    /// A file for Miri, which maps none: zeros in the heap, under a descriptor that stands for it.
    pub fn of_heap(len: usize) -> Option<Arc<Self>> {
        let fd = OwnedFd::from(std::fs::File::open("/dev/null").ok()?);
        let heap = raw::Heap::new(len)?;
        let id = FileId { dev: 0, ino: heap.at(0, 0)?.addr().get() as u64 };
        let perm = Perm::READ | Perm::WRITE;
        Some(Arc::new(BackingFile {
            fd,
            id,
            birth: None,
            kind: FileKind::Shmem,
            page_size: 4096,
            perm,
            heap,
        }))
    }

    pub(crate) fn heap(&self) -> &raw::Heap {
        &self.heap
    }
}

impl BackingFile {
    /// Takes over `fd` and checks it against `policy`.
    ///
    /// Fails for what is no regular file, for an `O_PATH` descriptor, for one that cannot be read (a mapping needs
    /// that even for writing) and for a filesystem that the policy does not allow.
    pub fn new(fd: OwnedFd, policy: &FilePolicy) -> Result<Arc<Self>, FileError> {
        let flags = inspect(|| rustix::fs::fcntl_getfl(&fd))?;
        if flags.contains(OFlags::PATH) {
            return Err(FileError::PathOnly);
        }
        let stat = inspect(|| rustix::fs::fstat(&fd))?;
        let fs = inspect(|| rustix::fs::fstatfs(&fd))?;
        // `f_type` is a signed word whose width depends on the machine; the magic numbers have 32 bits.
        let magic = fs.f_type as u64 & 0xffff_ffff;
        let domain = policy.allow_vduse_domain && magic == ANON_INODE_FS_MAGIC && is_vduse_domain(&fd);
        if !domain && FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(FileError::NotRegular { mode: stat.st_mode });
        }
        let perm = match flags & OFlags::RWMODE {
            OFlags::RDWR => Perm::READ | Perm::WRITE,
            OFlags::RDONLY => Perm::READ,
            _ => return Err(FileError::WriteOnly),
        };

        let kind = match magic {
            _ if domain => FileKind::VduseDomain,
            TMPFS_MAGIC => FileKind::Shmem,
            HUGETLBFS_MAGIC => FileKind::Hugetlbfs,
            _ if policy.allow_other_filesystems => FileKind::Other,
            _ => return Err(FileError::Filesystem { magic }),
        };
        let page_size = match kind {
            FileKind::Hugetlbfs => fs.f_bsize as u64,
            FileKind::Shmem | FileKind::VduseDomain | FileKind::Other => rustix::param::page_size() as u64,
        };
        if !page_size.is_power_of_two() {
            return Err(FileError::PageSize { page_size });
        }

        let id = FileId { dev: stat.st_dev, ino: stat.st_ino };
        Ok(Arc::new(BackingFile {
            birth: birth(&fd),
            fd,
            id,
            kind,
            page_size,
            perm,
            #[cfg(miri)]
            heap: raw::Heap::new(0).ok_or(FileError::PageSize { page_size })?,
        }))
    }

    /// Device and inode number.
    #[inline]
    pub fn id(&self) -> FileId {
        self.id
    }

    /// The filesystem's kind.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    /// The unit in which the file is mapped and in which a page of it may be lost, in bytes: a power of two.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// The file's size in bytes at this moment (one `fstat`). It may have shrunk when this returns. The memory of a VDUSE
    /// device goes on for ever.
    pub fn size(&self) -> io::Result<u64> {
        if faults::fail(Step::Size) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if self.kind == FileKind::VduseDomain {
            return Ok(i64::MAX as u64);
        }
        #[cfg(miri)]
        let size = self.heap.len();
        #[cfg(not(miri))]
        let size = rustix::fs::fstat(&self.fd)?.st_size;
        u64::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
    }

    /// What the descriptor that arrived was opened for.
    #[inline]
    pub fn perm(&self) -> Perm {
        self.perm
    }

    /// The descriptor.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether both name the same bytes, proven: a window of one may be handed to the holder of the other, who may
    /// be a different guest's owner.
    ///
    /// Proof is the same open file (`F_DUPFD_QUERY`, `kcmp`), or on shmem the same inode number *and* time of
    /// birth while both are held open. Inode numbers alone are not enough: hugetlbfs and small tmpfs mounts take
    /// them from 32-bit counters that any process can turn over by creating sockets or files, and hugetlbfs has
    /// no time of birth. A missing proof costs one mapping more, never correctness.
    pub fn is_same_file(&self, other: &BackingFile) -> bool {
        if self.id != other.id {
            return false;
        }
        let same_inode = self.kind == FileKind::Shmem && self.birth.is_some() && self.birth == other.birth;
        same_inode || raw::same_open_file(self.as_fd(), other.as_fd())
    }

    /// Whether both look like the same file: inode and time of birth, without a system call.
    fn looks_like(&self, other: &BackingFile) -> bool {
        self.id == other.id && self.birth == other.birth
    }
}

/// Whether the kernel calls a file without a name its memory for a VDUSE device. All such files share one inode.
fn is_vduse_domain(fd: &OwnedFd) -> bool {
    let name = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new());
    name.is_ok_and(|name| name.as_bytes() == VDUSE_DOMAIN)
}

/// When the inode was created, where the filesystem keeps that.
fn birth(fd: &OwnedFd) -> Option<(i64, u32)> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME).ok()?;
    let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    known.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}

fn inspect<T>(look: impl FnOnce() -> rustix::io::Result<T>) -> Result<T, FileError> {
    if faults::fail(Step::Inspect) {
        return Err(FileError::Inspect(io::Error::from_raw_os_error(libc::EIO)));
    }
    look().map_err(|errno| FileError::Inspect(errno.into()))
}

/// A place in a file: where an area, a ring or a buffer starts. Any byte may be the start.
#[derive(Clone, Debug)]
pub struct FileExtent {
    /// The file; the extent keeps it open.
    pub file: Arc<BackingFile>,
    /// Offset of the first byte.
    pub offset: u64,
}

impl FileExtent {
    /// Whether both start at the same byte of the same file.
    pub fn same_place(&self, other: &FileExtent) -> bool {
        self.offset == other.offset
            && (Arc::ptr_eq(&self.file, &other.file) || self.file.looks_like(&other.file))
    }

    /// The place `len` bytes further on; `None` if that wraps.
    pub fn checked_add(&self, len: u64) -> Option<FileExtent> {
        Some(FileExtent { file: Arc::clone(&self.file), offset: self.offset.checked_add(len)? })
    }
}

/// Why a descriptor was refused as guest memory.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The descriptor could not be examined.
    #[error("cannot examine the memory file: {0}")]
    Inspect(#[source] io::Error),
    /// An `O_PATH` descriptor: it names a file but does not open it (`EBADF`).
    #[error(
        "the memory descriptor was opened with O_PATH; the front-end must pass one opened for reading and writing"
    )]
    PathOnly,
    /// Not a regular file: a socket, a pipe, a device, a directory (`EINVAL`).
    #[error(
        "the memory descriptor is no regular file (mode {mode:#o}); give the guest shared memory, for QEMU: \
         -object memory-backend-memfd,share=on"
    )]
    NotRegular {
        /// `st_mode`.
        mode: u32,
    },
    /// Opened for writing only; no mapping is possible (`EACCES`).
    #[error(
        "the memory descriptor is open for writing only; the front-end must open it for reading and writing"
    )]
    WriteOnly,
    /// On a filesystem whose page faults may wait for a stranger (`EINVAL`).
    #[error(
        "the memory file is on a filesystem of type {magic:#x}, neither tmpfs nor hugetlbfs; use a memfd, /dev/shm \
         or huge pages for the guest's memory, or set allow_other_filesystems if its page faults can be trusted"
    )]
    Filesystem {
        /// `f_type` (linux/magic.h).
        magic: u64,
    },
    /// The filesystem reports a page size that is no power of two (`EINVAL`).
    #[error(
        "the memory file's filesystem reports a page size of {page_size} bytes, which is no power of two"
    )]
    PageSize {
        /// `f_bsize`.
        page_size: u64,
    },
}

impl FileError {
    /// The error number to report to a peer.
    pub fn errno(&self) -> i32 {
        match self {
            FileError::Inspect(e) => e.raw_os_error().unwrap_or(libc::EIO),
            FileError::PathOnly => libc::EBADF,
            FileError::WriteOnly => libc::EACCES,
            FileError::NotRegular { .. } | FileError::Filesystem { .. } | FileError::PageSize { .. } => {
                libc::EINVAL
            }
        }
    }
}

#[cfg(test)]
mod tests;
