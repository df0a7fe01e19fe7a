//! The only unsafe code of this crate: mappings, the SIGBUS handler, and access to memory that others write.

mod copy;
mod cpu;
#[cfg(miri)]
mod heap;
mod identity;
mod mapping;
mod sigbus;
mod slice;
mod table;
mod words;

#[cfg(miri)]
pub(crate) use heap::Heap;
pub(crate) use identity::same_open_file;
pub(crate) use mapping::{MapFailed, Mapping, Shown};
pub(crate) use sigbus::contain_sigbus;
pub use slice::GuestSlice;
pub(crate) use table::SLOTS;
pub use table::poison_epoch;
