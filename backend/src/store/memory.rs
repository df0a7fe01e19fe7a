//! A store in memory of this process.
//!
//! Its bytes are a memory file, mapped through windows of its own. Requests are served by the thread that finds them: a
//! copy is all there is to do. Requests to the same bytes at the same time leave any mixture of them, as a disk may too;
//! that is why the bytes are reached as guest memory is, by copies that suppose nothing.
//!
//! A discard, and zeroes that may unmap, give whole pages back to the host.

use std::sync::Arc;

use mdev_dma::{
    Area, BackingFile, FileExtent, FilePolicy, GuestSlice, Iova, IovaRange, Perm, Segment, Windows,
};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::io::Errno;

use super::compare::is_same;
use super::{Limits, Operation, StoreError};

/// Bytes of one discard: a system call that takes about a millisecond.
const MAX_DISCARD: u64 = 16 << 20;

/// A store in memory. Cloning shares the bytes.
#[derive(Clone)]
pub struct Memory {
    shared: Arc<Shared>,
}

struct Shared {
    size: u64,
    file: Arc<BackingFile>,
    /// In the order of their bytes.
    segments: Vec<Segment>,
}

impl Memory {
    /// What every such store can do.
    pub const LIMITS: Limits = Limits {
        read_only: false,
        block: 512,
        physical_block: 4096,
        max_discard: MAX_DISCARD,
        max_zeroes: MAX_DISCARD,
    };

    /// A store of `size` zeros. Memory is taken when bytes are written.
    ///
    /// # Errors
    /// No such memory.
    pub fn new(size: u64) -> Result<Memory, StoreError> {
        let refused = |source: std::io::Error| StoreError::Memory { size, source };
        let file = memfd_create("mdevd-store", MemfdFlags::CLOEXEC).map_err(|errno| refused(errno.into()))?;
        ftruncate(&file, size).map_err(|errno| refused(errno.into()))?;
        let other = |error: String| refused(std::io::Error::other(error));
        let file =
            BackingFile::new(file, &FilePolicy::default()).map_err(|error| other(error.to_string()))?;
        let windows = Windows::new().map_err(refused)?;
        let range = IovaRange::with_len(Iova(0), size).map_err(|error| other(error.to_string()))?;
        let extent = FileExtent { file: file.clone(), offset: 0 };
        let area = Area { range, extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None };
        let segments = windows.segments(&area).map_err(|error| other(error.to_string()))?;
        Ok(Memory { shared: Arc::new(Shared { size, file, segments }) })
    }

    pub(super) fn size(&self) -> u64 {
        self.shared.size
    }

    /// See [`super::Immediate::serve`].
    #[inline]
    pub(super) fn serve(
        &self,
        operation: Operation,
        offset: u64,
        len: u64,
        memory: &[GuestSlice<'_>],
    ) -> Result<(), Errno> {
        match operation {
            Operation::Read => self.copy(offset, memory, |store, guest| store.copy_to_slice(guest)),
            Operation::Write { .. } => self.copy(offset, memory, |store, guest| guest.copy_to_slice(store)),
            Operation::Compare => {
                let same = |store: &GuestSlice<'_>, guest: &GuestSlice<'_>| {
                    if is_same(store, guest) { guest.len() } else { 0 }
                };
                self.copy(offset, memory, same).map_err(|errno| match errno {
                    // Less than all of a piece.
                    Errno::IO => Errno::ILSEQ,
                    other => other,
                })
            }
            Operation::Flush | Operation::Verify => Ok(()),
            Operation::Discard | Operation::WriteZeroes { unmap: true, .. } => self.punch(offset, len),
            Operation::WriteZeroes { unmap: false, .. } => self.fill(offset, len),
        }
    }

    /// Goes through the store's bytes from `offset` on beside those of the guest's memory.
    #[inline]
    fn copy(
        &self,
        mut offset: u64,
        memory: &[GuestSlice<'_>],
        each: impl Fn(&GuestSlice<'_>, &GuestSlice<'_>) -> usize,
    ) -> Result<(), Errno> {
        for guest in memory {
            let mut guest = *guest;
            while !guest.is_empty() {
                let store = self.piece(offset, guest.len()).ok_or(Errno::INVAL)?;
                let part = guest.subslice(0, store.len()).ok_or(Errno::INVAL)?;
                if each(&store, &part) != part.len() {
                    return Err(Errno::IO);
                }
                offset = offset.saturating_add(store.len() as u64);
                guest = guest
                    .subslice(store.len(), guest.len().saturating_sub(store.len()))
                    .ok_or(Errno::INVAL)?;
            }
        }
        Ok(())
    }

    fn fill(&self, mut offset: u64, mut len: u64) -> Result<(), Errno> {
        while len > 0 {
            let piece = self.piece(offset, len as usize).ok_or(Errno::INVAL)?;
            piece.fill(0);
            offset = offset.saturating_add(piece.len() as u64);
            len = len.saturating_sub(piece.len() as u64);
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<(), Errno> {
        if len == 0 {
            return Ok(());
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(self.shared.file.as_fd(), how, offset, len)
    }

    /// The bytes at `offset`, `len` of them or as many as are in one piece.
    #[inline]
    fn piece(&self, offset: u64, len: usize) -> Option<GuestSlice<'_>> {
        let segments = &self.shared.segments;
        let segment = segments.get(segments.partition_point(|segment| segment.range.last().0 < offset))?;
        let there = segment.range.last().0.checked_sub(offset)?.checked_add(1)?;
        segment.slice(Iova(offset), there.min(len as u64) as usize)
    }
}

#[cfg(test)]
mod tests;
