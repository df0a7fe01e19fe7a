//! File stores on pinned guest memory: in the page cache and past it, on a disk and on a memory file system.

mod bell;
mod limits;
mod locks;
mod random;
mod room;
mod transfer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use mdev_dma::{Iova, Perm};
use mdev_pin::{Access, IgnoreUnmap, Ioas, Pin};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tempfile::TempDir;

use super::super::{Completion, Operation, Pins, Request};
use super::{File, FileOptions, Port};
use crate::driver::{GuestMemory, MemoryOptions};
use crate::sys::EventFd;

const GUEST: u64 = 1 << 20;

/// A guest's memory and a device's access to it.
struct Guest {
    memory: GuestMemory,
    ioas: Ioas,
    access: Access,
}

impl Guest {
    fn new() -> Guest {
        let memory =
            GuestMemory::new(MemoryOptions { size: GUEST, first: Iova(0), huge_pages: false }).unwrap();
        let ioas = Ioas::new(memory.windows().clone());
        ioas.map(memory.regions()[0].area()).unwrap();
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).unwrap();
        Guest { memory, ioas, access }
    }

    fn pin(&self, at: u64, len: u32) -> Pin {
        let mut lane = self.access.lane();
        let burst = lane.enter();
        burst.pin(Iova(at), len, Perm::READ | Perm::WRITE).unwrap()
    }

    fn pins(&self, pieces: &[(u64, u32)]) -> Pins {
        let mut lane = self.access.lane();
        let burst = lane.enter();
        pieces.iter().map(|(at, len)| burst.pin(Iova(*at), *len, Perm::READ | Perm::WRITE).unwrap()).collect()
    }

    /// A transfer between the store and `len` bytes of the guest at `at`.
    fn request(&self, tag: u64, operation: Operation, offset: u64, at: u64, len: u32) -> Request {
        Request { tag, operation, offset, len: len.into(), memory: smallvec::smallvec![self.pin(at, len)] }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.slice(Iova(at), bytes.len() as u64).unwrap().copy_from(bytes);
    }

    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.slice(Iova(at), len as u64).unwrap().copy_to(&mut bytes);
        bytes
    }
}

/// What moves no bytes of the guest.
fn without_memory(tag: u64, operation: Operation, offset: u64, len: u64) -> Request {
    Request { tag, operation, offset, len, memory: Pins::new() }
}

/// An image, gone with its folder.
struct Image {
    _folder: TempDir,
    options: FileOptions,
}

impl Image {
    /// On the disk of this machine.
    fn on_disk(bytes: &[u8]) -> Image {
        Image::within(tempfile::tempdir().unwrap(), bytes)
    }

    /// On a memory file system.
    fn in_memory(bytes: &[u8]) -> Image {
        Image::within(tempfile::tempdir_in("/dev/shm").unwrap(), bytes)
    }

    fn within(folder: TempDir, bytes: &[u8]) -> Image {
        let path = folder.path().join("image");
        std::fs::write(&path, bytes).unwrap();
        Image { _folder: folder, options: FileOptions::new(path) }
    }

    fn direct(mut self) -> Image {
        self.options.direct = true;
        self
    }

    fn read_only(mut self) -> Image {
        self.options.read_only = true;
        self
    }

    fn path(&self) -> &PathBuf {
        &self.options.path
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    fn open(&self) -> (File, Port) {
        let file = File::open(&self.options).unwrap();
        let port = file.port(Arc::new(EventFd::new().unwrap())).unwrap();
        (file, port)
    }
}

/// A sector of each number, modulo 256.
fn sectors(count: usize) -> Vec<u8> {
    (0..count).flat_map(|number| [number as u8; 512]).collect()
}

/// Submits requests and waits for as many ends: each of a tag of its own.
fn run(port: &mut Port, requests: Vec<Request>) -> BTreeMap<u64, Result<u64, Errno>> {
    let count = requests.len();
    requests.into_iter().for_each(|request| port.submit(request));
    port.begin();
    ends(port, count)
}

/// Waits for so many ends as a worker does: asleep on the bell.
fn ends(port: &mut Port, count: usize) -> BTreeMap<u64, Result<u64, Errno>> {
    let mut found = Vec::new();
    port.take(&mut found);
    while found.len() < count {
        if !port.arm() {
            let bell = port.bell().clone();
            while poll(&mut [PollFd::new(&*bell, PollFlags::IN)], None) == Err(Errno::INTR) {}
        }
        port.disarm();
        port.take(&mut found);
    }
    let map: BTreeMap<_, _> = found.iter().map(|Completion { tag, result }| (*tag, *result)).collect();
    assert_eq!((found.len(), map.len()), (count, count), "each request ends once");
    map
}

/// Carries out one request.
fn end(port: &mut Port, request: Request) -> Result<u64, Errno> {
    let tag = request.tag;
    run(port, vec![request])[&tag]
}
