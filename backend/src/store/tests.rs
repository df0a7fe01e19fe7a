//! What tests of queued stores have in common.

use std::sync::Arc;

use mdev_dma::{Iova, Perm};
use mdev_pin::{Access, IgnoreUnmap, Ioas};

use super::{Operation, Pins, Request};
use crate::driver::{GuestMemory, MemoryOptions};

/// A guest's memory and a device's access to it.
pub struct Guest {
    pub memory: GuestMemory,
    pub ioas: Ioas,
    access: Access,
}

impl Guest {
    /// One with a megabyte.
    pub fn new() -> Guest {
        Guest::of(1 << 20)
    }

    /// One with so many bytes, from address 0 on.
    pub fn of(size: u64) -> Guest {
        let memory = GuestMemory::new(MemoryOptions { size, first: Iova(0), huge_pages: false }).unwrap();
        let ioas = Ioas::new(memory.windows().clone());
        ioas.map(memory.regions()[0].area()).unwrap();
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).unwrap();
        Guest { memory, ioas, access }
    }

    pub fn pins(&self, pieces: &[(u64, u32)]) -> Pins {
        let mut lane = self.access.lane();
        let burst = lane.enter();
        pieces.iter().map(|(at, len)| burst.pin(Iova(*at), *len, Perm::READ | Perm::WRITE).unwrap()).collect()
    }

    /// A transfer between the store and `len` bytes of the guest at `at`.
    pub fn request(&self, tag: u64, operation: Operation, offset: u64, at: u64, len: u32) -> Request {
        Request { tag, operation, offset, len: len.into(), memory: self.pins(&[(at, len)]) }
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.slice(Iova(at), bytes.len() as u64).unwrap().copy_from(bytes);
    }

    pub fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.slice(Iova(at), len as u64).unwrap().copy_to(&mut bytes);
        bytes
    }
}
