//! A store in a file or block device, through io_uring.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Completion, Limits, Request, StoreError};
use crate::sys::EventFd;

/// Which file, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// The file.
    pub path: PathBuf,
    /// Past the page cache.
    pub direct: bool,
    /// Only to be read.
    pub read_only: bool,
}

impl FileOptions {
    /// The file at `path`, through the page cache.
    pub fn new(path: PathBuf) -> Self {
        FileOptions { path, direct: false, read_only: false }
    }
}

/// A store in a file.
pub struct File {}

/// The end of one engine.
pub struct Port {
    bell: Arc<EventFd>,
}

impl File {
    pub(super) fn open(_options: &FileOptions) -> Result<File, StoreError> {
        unimplemented!()
    }
    pub(super) fn size(&self) -> u64 {
        0
    }
    pub(super) fn limits(&self) -> Limits {
        super::Null::LIMITS
    }
    pub(super) fn port(&self, bell: Arc<EventFd>) -> io::Result<Port> {
        Ok(Port { bell })
    }
    pub(super) fn watched(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    pub(super) fn look(&self) -> bool {
        false
    }
}

impl Port {
    pub(super) fn submit(&mut self, _request: Request) {}
    pub(super) fn begin(&mut self) {}
    pub(super) fn take(&mut self, _out: &mut Vec<Completion>) {}
    pub(super) fn cancel(&mut self) {}
    pub(super) fn arm(&mut self) -> bool {
        false
    }
    pub(super) fn disarm(&mut self) {}
    pub(super) fn bell(&self) -> &Arc<EventFd> {
        &self.bell
    }
}
