//! Where the bytes of an area are.

use crate::{FileExtent, ProcessExtent, RemoteExtent};

/// The place of an area's first byte.
#[derive(Clone, Debug)]
pub enum Extent {
    /// In a file, which is mapped here: the way for memory that devices work on.
    File(FileExtent),
    /// At an address in another process; copied there and back by the kernel. Goes with the process.
    Process(ProcessExtent),
    /// With a peer, by messages.
    Remote(RemoteExtent),
}

impl Extent {
    /// The place in a file, if it is one.
    pub fn file(&self) -> Option<&FileExtent> {
        match self {
            Extent::File(extent) => Some(extent),
            Extent::Process(_) | Extent::Remote(_) => None,
        }
    }

    /// The number by which the place is called where it is: the offset in a file, else the address. Alignment is judged
    /// by it.
    pub fn start(&self) -> u64 {
        match self {
            Extent::File(extent) => extent.offset,
            Extent::Process(extent) => extent.address.0,
            Extent::Remote(extent) => extent.address,
        }
    }

    /// Whether both start at the same byte.
    pub fn same_place(&self, other: &Extent) -> bool {
        match (self, other) {
            (Extent::File(mine), Extent::File(theirs)) => mine.same_place(theirs),
            (Extent::Process(mine), Extent::Process(theirs)) => mine.same_place(theirs),
            (Extent::Remote(mine), Extent::Remote(theirs)) => mine.same_place(theirs),
            _ => false,
        }
    }

    /// The place `len` bytes further on; `None` if that wraps.
    pub fn checked_add(&self, len: u64) -> Option<Extent> {
        match self {
            Extent::File(extent) => extent.checked_add(len).map(Extent::File),
            Extent::Process(extent) => extent.checked_add(len).map(Extent::Process),
            Extent::Remote(extent) => extent.checked_add(len).map(Extent::Remote),
        }
    }
}

impl From<FileExtent> for Extent {
    fn from(extent: FileExtent) -> Self {
        Extent::File(extent)
    }
}

impl From<ProcessExtent> for Extent {
    fn from(extent: ProcessExtent) -> Self {
        Extent::Process(extent)
    }
}

impl From<RemoteExtent> for Extent {
    fn from(extent: RemoteExtent) -> Self {
        Extent::Remote(extent)
    }
}
