//! The regions of guest memory a connection has told of.
//!
//! A region is a key and a place: guest physical address, size and the front-end's virtual address name it in
//! messages; file and offset say where its bytes are. Every change makes a new list and leaves the old one as it is,
//! so that a change which is refused has changed nothing. The list is what the front-end wants; the address space
//! follows it by [`mdev_pin::Ioas::begin_replace`].

use std::os::fd::OwnedFd;
use std::sync::Arc;

use mdev_dma::{Area, BackingFile, FileError, FileExtent, FileKind, FilePolicy, Iova, IovaRange, Perm};
use mdev_protocol::vhost_user::MemoryRegion;
use thiserror::Error;

use super::iotlb::Entry;

/// How many regions a connection may have at a time. QEMU uses at most 512, and takes a DIMM only while there is
/// room: this number is the one way to refuse memory that its guest respects.
pub const MAX_SLOTS: usize = 512;

/// What is wrong with a memory region.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// A region of no bytes.
    #[error("the region at guest address {0:#x} is empty")]
    Empty(u64),
    /// An address or an offset plus the size exceeds 64 bits.
    #[error("the region at guest address {gpa:#x} with {size:#x} bytes wraps around in its {space}")]
    Wraps {
        /// Its guest physical address.
        gpa: u64,
        /// Its size, in bytes.
        size: u64,
        /// Which of its three ranges.
        space: &'static str,
    },
    /// Two regions share addresses.
    #[error(
        "the region at guest address {new:#x} overlaps the one at {existing:#x} in {space}: the front-end must \
         remove that one first"
    )]
    Overlap {
        /// Guest physical address of the region that came.
        new: u64,
        /// Guest physical address of the region in its way.
        existing: u64,
        /// Which of its ranges.
        space: &'static str,
    },
    /// The file ends before the region does.
    #[error(
        "the region at guest address {gpa:#x} ends at byte {end:#x} of its file, which has only {file:#x}: the \
         front-end must make the file long enough first"
    )]
    BeyondFile {
        /// Its guest physical address.
        gpa: u64,
        /// First byte of the file behind it.
        end: u64,
        /// Length of the file, in bytes.
        file: u64,
    },
    /// The file is none that guest memory may lie in.
    #[error("the region at guest address {gpa:#x}: {source}")]
    File {
        /// Its guest physical address.
        gpa: u64,
        /// What is wrong with the file.
        source: FileError,
    },
    /// The file's length is not to be had.
    #[error("the region at guest address {gpa:#x}: its file does not tell its length: {source}")]
    Length {
        /// Its guest physical address.
        gpa: u64,
        /// What fstat(2) answered.
        source: std::io::Error,
    },
    /// A region that is not there was to be removed.
    #[error("there is no region at guest address {gpa:#x} with {size:#x} bytes and this user address")]
    NotFound {
        /// The guest physical address.
        gpa: u64,
        /// The size, in bytes.
        size: u64,
    },
    /// One region too many.
    #[error(
        "{MAX_SLOTS} regions are there already: the front-end must not exceed what GET_MAX_MEM_SLOTS said"
    )]
    Full,
}

/// How the front-end names addresses of guest memory outside of the rings.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Keys {
    /// By its own virtual addresses.
    #[default]
    User,
    /// By guest physical ones (`GPA_ADDRESSES`); the user addresses in regions mean nothing.
    Guest,
}

/// A region.
#[derive(Clone)]
pub struct Region {
    range: IovaRange,
    wire: MemoryRegion,
    file: Arc<BackingFile>,
    /// It was announced in a session before the present one and gives way to whatever overlaps it.
    former: bool,
}

/// The regions of a connection.
#[derive(Clone, Default)]
pub struct Regions {
    list: Vec<Region>,
}

/// What becomes of a region that was announced.
pub enum Added {
    /// It is there already, in the same file: nothing is to be done.
    AlreadyThere,
    /// The table that has it.
    Table(Regions),
}

impl Regions {
    /// Whether there is no memory at all.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// A whole new table. Files that this one holds are held on to, not opened twice.
    pub fn replaced(
        &self,
        table: &[MemoryRegion],
        fds: impl IntoIterator<Item = OwnedFd>,
        keys: Keys,
        policy: &FilePolicy,
    ) -> Result<Regions, MemoryError> {
        let mut regions = Regions::default();
        for (wire, fd) in table.iter().zip(fds) {
            let known = self.list.iter().chain(&regions.list);
            let region = Region::new(*wire, fd, policy, known)?;
            regions.make_room(&region, keys)?;
            regions.list.push(region);
        }
        Ok(regions)
    }

    /// This table and one region more. The same region in the same file again is no overlap: the front-end starts
    /// over on this connection.
    pub fn with(
        &self,
        wire: &MemoryRegion,
        fd: OwnedFd,
        keys: Keys,
        policy: &FilePolicy,
    ) -> Result<Added, MemoryError> {
        let region = Region::new(*wire, fd, policy, self.list.iter())?;
        if self.list.iter().any(|there| there.is_named(wire, keys) && there.same_memory(&region)) {
            return Ok(Added::AlreadyThere);
        }
        let mut regions = self.clone();
        regions.make_room(&region, keys)?;
        regions.list.push(region);
        Ok(Added::Table(regions))
    }

    /// This table without the region of that name.
    pub fn without(&self, wire: &MemoryRegion, keys: Keys) -> Result<Regions, MemoryError> {
        let mut list = self.list.clone();
        match list.iter().position(|region| region.is_named(wire, keys)) {
            Some(at) => list.remove(at),
            None => return Err(MemoryError::NotFound { gpa: wire.guest_addr, size: wire.size }),
        };
        Ok(Regions { list })
    }

    /// Notes that a region which is there was announced again. Where the front-end `starts_over`, the others are a
    /// former session's until they are announced again too.
    pub fn renew(&mut self, wire: &MemoryRegion, keys: Keys, starts_over: bool) {
        let starts_over =
            starts_over && !self.list.iter().any(|there| there.former && there.is_named(wire, keys));
        for region in &mut self.list {
            if region.is_named(wire, keys) {
                region.former = false;
            } else if starts_over {
                region.former = true;
            }
        }
    }

    /// The areas of the address space.
    pub fn areas(&self) -> Vec<Area> {
        self.list.iter().map(Region::area).collect()
    }

    /// Where the byte at `address` lies.
    pub fn extent(&self, address: u64, keys: Keys) -> Option<FileExtent> {
        self.list.iter().find_map(|region| region.extent(address, keys))
    }

    /// What `range` is with the bytes from `address` on behind it, one entry for each region they lie in, as far as those
    /// permit it. `None` if a byte is in no region, or is not permitted at all.
    pub fn derive(&self, range: IovaRange, address: u64, perm: Perm, keys: Keys) -> Option<Vec<Entry>> {
        let mut entries = Vec::new();
        let (mut first, mut user) = (range.first(), address);
        loop {
            let region = self.list.iter().find(|region| region.offset_of(user, keys).is_some())?;
            let left = region.wire.size.checked_sub(region.offset_of(user, keys)?)?;
            let beyond = range.last().0.checked_sub(first.0)?;
            let take = left.min(beyond.saturating_add(1));
            let perm = region.perm() & perm;
            if perm.is_empty() {
                return None;
            }
            let range_here = IovaRange::with_len(first, take).ok()?;
            let extent = region.extent(user, keys)?;
            let area = Area { range: range_here, extent: extent.into(), perm, log: None };
            entries.push(Entry { area, user });
            if take > beyond {
                return Some(entries);
            }
            first = first.checked_add(take)?;
            user = user.checked_add(take)?;
        }
    }

    /// First and last address of the regions that `other` does not have like this.
    pub fn changed(&self, other: &Regions, keys: Keys) -> Vec<(u64, u64)> {
        let alike = |region: &Region| {
            other.list.iter().any(|there| there.is_named(&region.wire, keys) && there.same_memory(region))
        };
        self.list.iter().filter(|region| !alike(region)).map(|region| addresses(&region.wire, keys)).collect()
    }

    /// Whether `len` bytes from `extent` lie in one region.
    pub fn maps(&self, extent: &FileExtent, len: u64) -> bool {
        self.list.iter().any(|region| {
            let Some(into) = extent.offset.checked_sub(region.wire.mmap_offset) else { return false };
            region.file.id() == extent.file.id()
                && into.checked_add(len).is_some_and(|end| end <= region.wire.size)
        })
    }

    /// Sees to it that `region` fits: drops what a former session left in its way.
    fn make_room(&mut self, region: &Region, keys: Keys) -> Result<(), MemoryError> {
        let overlap = |there: &Region| there.overlaps(region, keys);
        self.list.retain(|there| !(there.former && overlap(there).is_some()));
        if let Some((there, space)) = self.list.iter().find_map(|there| Some((there, overlap(there)?))) {
            let existing = there.wire.guest_addr;
            return Err(MemoryError::Overlap { new: region.wire.guest_addr, existing, space });
        }
        if self.list.len() >= MAX_SLOTS {
            return Err(MemoryError::Full);
        }
        Ok(())
    }
}

impl Region {
    fn new<'r>(
        wire: MemoryRegion,
        fd: OwnedFd,
        policy: &FilePolicy,
        known: impl Iterator<Item = &'r Region>,
    ) -> Result<Self, MemoryError> {
        let MemoryRegion { guest_addr: gpa, size, user_addr, mmap_offset } = wire;
        let wraps = |space| MemoryError::Wraps { gpa, size, space };
        let Some(beyond_first) = size.checked_sub(1) else { return Err(MemoryError::Empty(gpa)) };
        let range = IovaRange::with_len(Iova(gpa), size).map_err(|_| wraps("guest physical addresses"))?;
        user_addr.checked_add(beyond_first).ok_or_else(|| wraps("user addresses"))?;
        let end = mmap_offset.checked_add(size).ok_or_else(|| wraps("file offsets"))?;

        let file = BackingFile::new(fd, policy).map_err(|source| MemoryError::File { gpa, source })?;
        let length = file.size().map_err(|source| MemoryError::Length { gpa, source })?;
        if end > length {
            return Err(MemoryError::BeyondFile { gpa, end, file: length });
        }
        Ok(Self { range, wire, file: shared(file, known), former: false })
    }

    fn area(&self) -> Area {
        Area { range: self.range, extent: self.start().into(), perm: self.perm(), log: None }
    }

    fn start(&self) -> FileExtent {
        FileExtent { file: Arc::clone(&self.file), offset: self.wire.mmap_offset }
    }

    /// What the descriptor that came allows, which is never more than it was opened for.
    fn perm(&self) -> Perm {
        self.file.perm() & (Perm::READ | Perm::WRITE)
    }

    /// The specification ignores the offset when it identifies a region.
    fn is_named(&self, wire: &MemoryRegion, keys: Keys) -> bool {
        self.wire.guest_addr == wire.guest_addr
            && self.wire.size == wire.size
            && (keys == Keys::Guest || self.wire.user_addr == wire.user_addr)
    }

    fn same_memory(&self, other: &Region) -> bool {
        self.start().same_place(&other.start()) && self.perm() == other.perm()
    }

    fn overlaps(&self, other: &Region, keys: Keys) -> Option<&'static str> {
        if self.range.intersection(other.range).is_some() {
            return Some("guest physical addresses");
        }
        let (a, b) = (&self.wire, &other.wire);
        let apart = |x: &MemoryRegion, y: &MemoryRegion| {
            y.user_addr.checked_sub(x.user_addr).is_some_and(|distance| distance >= x.size)
        };
        (keys == Keys::User && !apart(a, b) && !apart(b, a)).then_some("user addresses")
    }

    /// How far an address lies in it.
    fn offset_of(&self, address: u64, keys: Keys) -> Option<u64> {
        address.checked_sub(addresses(&self.wire, keys).0).filter(|into| *into < self.wire.size)
    }

    fn extent(&self, address: u64, keys: Keys) -> Option<FileExtent> {
        let into = self.offset_of(address, keys)?;
        let offset = self.wire.mmap_offset.checked_add(into)?;
        Some(FileExtent { file: Arc::clone(&self.file), offset })
    }
}

/// First and last address of a region, as messages name addresses.
pub fn addresses(wire: &MemoryRegion, keys: Keys) -> (u64, u64) {
    let first = match keys {
        Keys::User => wire.user_addr,
        Keys::Guest => wire.guest_addr,
    };
    (first, first.saturating_add(wire.size.saturating_sub(1)))
}

/// `file`, or a descriptor of the same file that is held already, so that 512 regions of one file cost one. An inode
/// that is held open keeps its number; only memory file systems are trusted to number honestly.
fn shared<'r>(file: Arc<BackingFile>, mut known: impl Iterator<Item = &'r Region>) -> Arc<BackingFile> {
    let same = |there: &Arc<BackingFile>| {
        matches!(file.kind(), FileKind::Shmem | FileKind::Hugetlbfs)
            && there.id() == file.id()
            && there.perm() == file.perm()
    };
    match known.find(|region| same(&region.file)) {
        Some(region) => Arc::clone(&region.file),
        None => file,
    }
}

#[cfg(test)]
mod tests;
