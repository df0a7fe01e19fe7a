//! The unsafe part of the access layer: publication of tables, and slices that outlive a borrow.

pub(crate) mod kept;
pub(crate) mod piece;
pub(crate) mod pinned;
pub(crate) mod published;
#[cfg(feature = "vm-memory")]
mod rust_vmm;
pub(crate) mod snapshot;
#[cfg(all(test, loom))]
pub(crate) mod watched;
