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

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tempfile::TempDir;

use super::super::tests::Guest;
use super::super::{Completion, Operation, Pins, Request};
use super::{File, FileOptions, Port};
use crate::sys::EventFd;

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
