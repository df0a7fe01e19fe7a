//! A guest's memory: memory files at guest addresses.
use mdev_dma::{
    Area, BackingFile, FileError, FileExtent, FilePolicy, GuestSlice, HostWindow, Iova, IovaRange, Perm,
    RangeError, UserAddr, WindowError, Windows,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::io;
use std::sync::Arc;

/// Added to a guest address to make the user address that is told to the back-end, which must treat it as a key only;
/// it is no address of this process.
const USER_OFFSET: u64 = 0x7e00_0000_0000;
/// One file must fit into one window, so that every part of it has one slice.
const GREATEST: u64 = 1 << 30;
const HUGE: u64 = 2 << 20;

/// What memory to make.
#[derive(Copy, Clone, Debug)]
pub struct MemoryOptions {
    /// Bytes of the region, rounded up to whole pages; at most 1 GiB.
    pub size: u64,
    /// Where the guest sees its first byte.
    pub first: Iova,
    /// 2 MiB huge pages; there must be enough free ones (`/proc/sys/vm/nr_hugepages`).
    pub huge_pages: bool,
}

impl Default for MemoryOptions {
    /// 16 MiB of small pages at guest address 1 MiB.
    fn default() -> Self {
        MemoryOptions { size: 16 << 20, first: Iova(1 << 20), huge_pages: false }
    }
}

/// Why there is no memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is zero or more than one window holds.
    #[error("a memory region has from 1 byte to 1 GiB, not {0} bytes")]
    Size(u64),
    /// No memory file of this size; with huge pages: too few are free.
    #[error("no memory file of {size} bytes: {source}{}", if *.huge { "; are enough huge pages free (/proc/sys/vm/nr_hugepages)?" } else { "" })]
    File {
        /// Bytes that were wanted.
        size: u64,
        /// Whether of huge pages.
        huge: bool,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The memory file was refused.
    #[error("the memory file cannot be used: {0}")]
    Backing(#[from] FileError),
    /// The guest addresses are out of range.
    #[error("the guest addresses are out of range: {0}")]
    Range(#[from] RangeError),
    /// The file could not be mapped.
    #[error("the memory file cannot be mapped: {0}")]
    Window(#[from] WindowError),
    /// The region is full.
    #[error("no {0} bytes left in the guest's memory")]
    Full(u64),
}

/// One region: bytes of one file at consecutive guest addresses.
#[derive(Clone)]
pub struct Region {
    /// The guest addresses.
    pub range: IovaRange,
    /// The key that the back-end knows the first byte by.
    pub user: UserAddr,
    /// Where the region starts in its file.
    pub extent: FileExtent,
    window: Arc<HostWindow>,
    /// Of the first byte, in the window.
    offset: u64,
}

impl Region {
    /// Bytes of the region.
    pub fn size(&self) -> u64 {
        // A region has at most 1 GiB.
        self.range.size() as u64
    }

    /// As an address space of this process maps it, for a device to read and write.
    pub fn area(&self) -> Area {
        area(self.range, &self.extent)
    }
}

fn area(range: IovaRange, extent: &FileExtent) -> Area {
    Area { range, extent: extent.clone().into(), perm: Perm::READ | Perm::WRITE, log: None }
}

/// An allocated part of the memory: its guest address and the means to reach it.
#[derive(Clone)]
pub struct Part {
    /// The guest address of the first byte.
    pub at: Iova,
    /// Bytes.
    pub len: u64,
    window: Arc<HostWindow>,
    offset: u64,
}

impl Part {
    /// The whole part.
    #[inline]
    pub fn slice(&self) -> Option<GuestSlice<'_>> {
        self.window.slice(self.offset, self.len as usize)
    }

    /// `len` bytes from `offset` on; `None` if they are not all in the part.
    #[inline]
    pub fn range(&self, offset: u64, len: u64) -> Option<GuestSlice<'_>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        self.window.slice(self.offset.checked_add(offset)?, len as usize)
    }
}

/// The memory of one guest, freed when the last part, window and device that knows it is gone.
pub struct GuestMemory {
    windows: Arc<Windows>,
    regions: Vec<Region>,
    /// Bytes of the last region that are allocated.
    allocated: u64,
}

impl GuestMemory {
    /// Memory of one region.
    ///
    /// # Errors
    /// [`MemoryError`]: the size is out of range, or the kernel has no such memory.
    pub fn new(options: MemoryOptions) -> Result<Self, MemoryError> {
        let windows = Windows::new().map_err(|source| MemoryError::File {
            size: options.size,
            huge: options.huge_pages,
            source,
        })?;
        Self::with_windows(windows, options)
    }

    /// The same with windows that are already there (one process that is driver and device has one set of them).
    ///
    /// # Errors
    /// As [`GuestMemory::new`].
    pub fn with_windows(windows: Arc<Windows>, options: MemoryOptions) -> Result<Self, MemoryError> {
        let mut memory = GuestMemory { windows, regions: Vec::new(), allocated: 0 };
        memory.add_region(options)?;
        Ok(memory)
    }

    /// Adds a region of a file of its own; later allocations come from it. It is up to the caller that regions do not overlap.
    ///
    /// # Errors
    /// As [`GuestMemory::new`].
    pub fn add_region(&mut self, options: MemoryOptions) -> Result<(), MemoryError> {
        let page = if options.huge_pages { HUGE } else { rustix::param::page_size() as u64 };
        let size = match options.size.checked_next_multiple_of(page) {
            Some(size) if size > 0 && size <= GREATEST => size,
            _ => return Err(MemoryError::Size(options.size)),
        };
        let refused = |source: rustix::io::Errno| MemoryError::File {
            size,
            huge: options.huge_pages,
            source: source.into(),
        };
        let flags =
            if options.huge_pages { MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB } else { MemfdFlags::empty() };
        let fd = memfd_create("guest-memory", flags | MemfdFlags::CLOEXEC).map_err(refused)?;
        ftruncate(&fd, size).map_err(refused)?;
        if options.huge_pages {
            // Taken now: a huge page that is missing later would be a fault in the middle of a run.
            rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::empty(), 0, size).map_err(refused)?;
        }
        let extent = FileExtent { file: BackingFile::new(fd, &FilePolicy::default())?, offset: 0 };
        let range = IovaRange::with_len(options.first, size)?;
        // A file of at most one chunk, from its first byte on, is one segment.
        let segments = self.windows.segments(&area(range, &extent))?;
        let segment = segments.into_iter().next().ok_or(MemoryError::Size(size))?;
        self.regions.push(Region {
            range,
            user: UserAddr(options.first.0.wrapping_add(USER_OFFSET)),
            extent,
            window: segment.window,
            offset: segment.offset,
        });
        self.allocated = 0;
        Ok(())
    }

    /// The regions, in the order in which they were added.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The windows that the memory is mapped through.
    pub fn windows(&self) -> &Arc<Windows> {
        &self.windows
    }

    /// Takes `len` bytes of the last region at a multiple of `align` (a power of two). Nothing is ever given back.
    ///
    /// # Errors
    /// [`MemoryError::Full`]: the region has not as many left.
    pub fn allocate(&mut self, len: u64, align: u64) -> Result<Part, MemoryError> {
        let full = MemoryError::Full(len);
        let Some(region) = self.regions.last() else { return Err(full) };
        let first = region.range.first();
        let start = first.0.checked_add(self.allocated).and_then(|next| next.checked_next_multiple_of(align));
        let Some((start, end)) =
            start.and_then(|start| Some((start - first.0, (start - first.0).checked_add(len)?)))
        else {
            return Err(full);
        };
        if end > region.size() {
            return Err(full);
        }
        self.allocated = end;
        Ok(Part {
            at: Iova(first.0 + start),
            len,
            window: region.window.clone(),
            offset: region.offset + start,
        })
    }

    /// `len` bytes at guest address `at`; `None` if they are not all in one region.
    pub fn slice(&self, at: Iova, len: u64) -> Option<GuestSlice<'_>> {
        let wanted = IovaRange::with_len(at, len).ok()?;
        let region = self.regions.iter().find(|region| region.range.contains_range(wanted))?;
        region.window.slice(region.offset.checked_add(at.0 - region.range.first().0)?, len as usize)
    }

    /// The key by which a vhost-user back-end knows guest address `at`.
    pub fn user(&self, at: Iova) -> Option<UserAddr> {
        let region = self.regions.iter().find(|region| region.range.contains(at))?;
        Some(UserAddr(region.user.0 + (at.0 - region.range.first().0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_aligned_disjoint_and_end_with_full() {
        let mut memory = GuestMemory::new(MemoryOptions { size: 8192, ..Default::default() }).unwrap();
        let first = memory.allocate(10, 64).unwrap();
        let second = memory.allocate(100, 4096).unwrap();
        assert_eq!(first.at, Iova(1 << 20));
        assert_eq!(second.at, Iova((1 << 20) + 4096));
        first.slice().unwrap().fill(1);
        second.slice().unwrap().fill(2);
        assert_eq!(memory.slice(first.at, 10).unwrap().read::<u8>(9), Some(1));
        assert_eq!(memory.slice(second.at, 1).unwrap().read::<u8>(0), Some(2));
        assert!(matches!(memory.allocate(4096, 1), Err(MemoryError::Full(4096))));
        assert!(memory.allocate(3996, 1).is_ok());
    }

    #[test]
    fn part_range_outside_the_part_is_none() {
        let mut memory = GuestMemory::new(MemoryOptions { size: 4096, ..Default::default() }).unwrap();
        let part = memory.allocate(100, 1).unwrap();
        assert!(part.range(0, 100).is_some() && part.range(99, 1).is_some());
        assert!(part.range(99, 2).is_none() && part.range(u64::MAX, 2).is_none());
    }

    #[test]
    fn user_addresses_and_slices_exist_inside_regions_only() {
        let mut memory = GuestMemory::new(MemoryOptions { size: 4096, ..Default::default() }).unwrap();
        memory.add_region(MemoryOptions { size: 4096, first: Iova(1 << 32), huge_pages: false }).unwrap();
        let last = Iova((1 << 32) + 4095);
        assert_eq!(memory.user(last), Some(UserAddr(USER_OFFSET + last.0)));
        assert_eq!(memory.user(Iova(last.0 + 1)), None);
        assert!(memory.slice(last, 1).is_some() && memory.slice(last, 2).is_none());
        assert_eq!(memory.allocate(1, 1).unwrap().at, Iova(1 << 32));
        assert_eq!(memory.regions().len(), 2);
    }

    #[test]
    fn region_of_no_or_too_many_bytes_is_refused() {
        for size in [0, GREATEST + 1, u64::MAX] {
            let options = MemoryOptions { size, ..Default::default() };
            assert!(matches!(GuestMemory::new(options), Err(MemoryError::Size(_))));
        }
    }
}
