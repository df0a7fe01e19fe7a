//! Where bytes go that a host does not want: those of the bit buckets in its SGLs (base specification, section 4.1.2.1).
//!
//! A store moves whole blocks, so that what is not wanted needs memory, too. It is our own, one piece for all commands of a device,
//! as long as the longest of them; it is written by everybody and read by nobody. Stores that take their time get it as a pin, in an address
//! space of its own, so that no host's unmap waits for it.

use std::io;
use std::sync::Arc;

use mdev_dma::{
    Area, BackingFile, FileExtent, FilePolicy, GuestSlice, Iova, IovaRange, Perm, Segment, Windows,
};
use mdev_pin::{Access, IgnoreUnmap, Ioas, Lane, Pin, ResolveError};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::command::MAX_TRANSFER;

/// See the [module](self).
pub(super) struct Bucket {
    memory: Segment,
    access: Access,
}

impl Bucket {
    /// An empty one: its pages come when something is thrown away.
    ///
    /// # Errors
    /// No descriptor, or no room for another mapping.
    pub(super) fn new() -> io::Result<Self> {
        let fd = memfd_create("mdevd-bucket", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, MAX_TRANSFER)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let file = BackingFile::new(fd, &FilePolicy::default()).map_err(io::Error::other)?;
        let range = IovaRange::with_len(Iova(0), MAX_TRANSFER).map_err(io::Error::other)?;
        let extent = FileExtent { file, offset: 0 }.into();
        let area = Area { range, extent, perm: Perm::READ | Perm::WRITE, log: None };
        let windows = Windows::new()?;
        let memory = windows.segments(&area).map_err(io::Error::other)?.pop();
        let memory = memory.ok_or_else(|| io::Error::other("an area has no segment"))?;
        let ioas = Ioas::new(windows);
        ioas.map(area).map_err(io::Error::other)?;
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).map_err(io::Error::other)?;
        Ok(Self { memory, access })
    }

    /// So many bytes of it. `None` if it has fewer.
    pub(super) fn slice(&self, len: u32) -> Option<GuestSlice<'_>> {
        self.memory.slice(Iova(0), len as usize)
    }

    /// A way to [`pin`] it, for an engine.
    pub(super) fn lane(&self) -> Lane {
        self.access.lane()
    }
}

/// So many bytes of the bucket that a lane belongs to.
///
/// # Errors
/// It has fewer.
pub(super) fn pin(lane: &mut Lane, len: u32) -> Result<Pin, ResolveError> {
    lane.enter().pin(Iova(0), len, Perm::WRITE)
}
