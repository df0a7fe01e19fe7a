//! Guest memory for the tests of all files.

use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Segment, Windows};

/// A memfd of `len` bytes.
pub(crate) fn memory(len: u64) -> Arc<BackingFile> {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, len).unwrap();
    BackingFile::new(fd, &FilePolicy::default()).unwrap()
}

/// `len` bytes at `iova`, from `offset` in `file` on, for reading and writing.
pub(crate) fn area(file: &Arc<BackingFile>, iova: u64, offset: u64, len: u64) -> Area {
    let range = IovaRange::with_len(Iova(iova), len).unwrap();
    let extent = FileExtent { file: Arc::clone(file), offset };
    Area { range, extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None }
}

/// Fresh memory of `len` bytes at address 0, at most one chunk.
pub(crate) fn segment(len: u64) -> Segment {
    let segments = Windows::new().unwrap().segments(&area(&memory(len), 0, 0, len)).unwrap();
    segments.into_iter().next().unwrap()
}

/// Sets the size of a file.
pub(crate) fn resize(file: &BackingFile, len: u64) {
    ftruncate(file.as_fd(), len).unwrap();
}
