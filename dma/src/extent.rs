//! Where the bytes of an area are.

use crate::FileExtent;

/// The place of an area's first byte.
#[derive(Clone, Debug)]
pub enum Extent {
    /// In a file, which is mapped here.
    File(FileExtent),
}

impl Extent {
    /// The place in a file, if it is one.
    pub fn file(&self) -> Option<&FileExtent> {
        match self {
            Extent::File(extent) => Some(extent),
        }
    }

    /// The number by which the place is called where it is: for a file, the offset. Alignment is judged by it.
    pub fn start(&self) -> u64 {
        match self {
            Extent::File(extent) => extent.offset,
        }
    }

    /// Whether both start at the same byte.
    pub fn same_place(&self, other: &Extent) -> bool {
        match (self, other) {
            (Extent::File(mine), Extent::File(theirs)) => mine.same_place(theirs),
        }
    }

    /// The place `len` bytes further on; `None` if that wraps.
    pub fn checked_add(&self, len: u64) -> Option<Extent> {
        match self {
            Extent::File(extent) => extent.checked_add(len).map(Extent::File),
        }
    }
}

impl From<FileExtent> for Extent {
    fn from(extent: FileExtent) -> Self {
        Extent::File(extent)
    }
}
