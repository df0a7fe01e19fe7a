//! Memory of the controller's own, for data that a client keeps: stores work on it as they do on a guest's.
//!
//! It is a file of [`SIZE`] bytes behind an address space of its own, so that a store that takes its time holds it by pins like any other.
//! Each queue that needs some has one.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, GuestSlice, Iova, IovaRange, Perm, Windows};
use mdev_pin::{Access, IgnoreUnmap, Ioas, Lane, Pin};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create,
};

/// Bytes of one queue's: two of the longest transfers.
pub(super) const SIZE: u32 = 2 << 20;
/// Rooms are multiples of this, in bytes.
const UNIT: u32 = 512;

/// See the [module](self).
pub(super) struct Bounce {
    lane: Lane,
    rooms: Rooms,
    _access: Access,
    _ioas: Ioas,
}

/// Some bytes of it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Room {
    at: u32,
    len: u32,
}

impl Bounce {
    /// All of it free.
    ///
    /// # Errors
    /// No memory, no descriptor, or no room for another mapping.
    pub(super) fn new() -> io::Result<Self> {
        let fd = memfd_create("mdevd-bounce", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, SIZE.into())?;
        fallocate(&fd, FallocateFlags::empty(), 0, SIZE.into())?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let file = BackingFile::new(fd, &FilePolicy::default()).map_err(io::Error::other)?;
        let range = IovaRange::with_len(Iova(0), SIZE.into()).map_err(io::Error::other)?;
        let extent = FileExtent { file, offset: 0 };
        let area = Area { range, extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None };
        let ioas = Ioas::new(Windows::new()?);
        ioas.map(area).map_err(io::Error::other)?;
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).map_err(io::Error::other)?;
        Ok(Bounce { lane: access.lane(), rooms: Rooms::new(SIZE), _access: access, _ioas: ioas })
    }

    /// Takes `len` bytes, if they are free in one piece.
    pub(super) fn take(&mut self, len: u32) -> Option<Room> {
        Some(Room { at: self.rooms.take(len)?, len })
    }

    /// Gives them back.
    pub(super) fn give(&mut self, room: Room) {
        self.rooms.give(room.at, room.len);
    }

    /// Lets `with` see the first `len` bytes of a room. `None`: it has not so many, or the memory was lost.
    pub(super) fn with<T>(
        &mut self,
        room: Room,
        len: u32,
        with: impl FnOnce(&GuestSlice<'_>) -> T,
    ) -> Option<T> {
        let burst = self.lane.enter();
        let slice = burst.slice(Iova(room.at.into()), len.min(room.len), Perm::READ | Perm::WRITE).ok()?;
        let result = with(&slice);
        (len <= room.len && !slice.poisoned()).then_some(result)
    }

    /// Holds the first `len` bytes of a room for a store that takes its time.
    pub(super) fn pin(&mut self, room: Room, len: u32) -> Option<Pin> {
        let burst = self.lane.enter();
        burst.pin(Iova(room.at.into()), len.min(room.len), Perm::READ | Perm::WRITE).ok()
    }
}

/// What is free: first bytes and lengths, no two of which touch.
struct Rooms {
    free: BTreeMap<u32, u32>,
}

impl Rooms {
    fn new(len: u32) -> Self {
        Rooms { free: BTreeMap::from([(0, len)]) }
    }

    /// As many bytes as `len` needs, from the first place on that has them.
    fn take(&mut self, len: u32) -> Option<u32> {
        let len = len.max(1).checked_next_multiple_of(UNIT)?;
        let (&at, &there) = self.free.iter().find(|(_, there)| **there >= len)?;
        self.free.remove(&at);
        if there > len {
            self.free.insert(at.saturating_add(len), there.saturating_sub(len));
        }
        Some(at)
    }

    /// What was taken with this `len`.
    fn give(&mut self, mut at: u32, len: u32) {
        let mut len = len.max(1).next_multiple_of(UNIT);
        if let Some(behind) = self.free.remove(&at.saturating_add(len)) {
            len = len.saturating_add(behind);
        }
        if let Some((&before, &there)) = self.free.range(..at).next_back()
            && before.saturating_add(there) == at
        {
            self.free.remove(&before);
            (at, len) = (before, len.saturating_add(there));
        }
        self.free.insert(at, len);
    }
}

#[cfg(test)]
mod tests;
