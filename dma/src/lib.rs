//! Where guest memory is: IOVA ranges, backing files, windows, guest slices.
//!
//! # What it is
//!
//! A device is told addresses by a guest. This crate answers where the bytes behind such an address are, without
//! anybody's virtual addresses: an IOVA lies in an area, an area is a place in a file, and the file is mapped into our
//! own address space. It is data structures and mappings; who may use them, and for how long, is decided elsewhere.
//!
//! # Objects
//!
//! - [`Iova`], [`IovaRange`]: device addresses; ranges are inclusive at both ends, and every sum is checked.
//! - [`BackingFile`], [`FileExtent`]: a memory file that was looked at before it was accepted, and a place in it.
//! - [`Area`]: a range of addresses, the place of its first byte ([`Extent`]), what the device may do there. It starts at any byte.
//! - [`Process`], [`ProcessExtent`]: memory by an address in another process, copied there and back by the kernel. It is
//!   gone when that process ends or executes another program.
//! - [`RemoteMemory`], [`RemoteExtent`], [`Reply`]: memory with a peer, reached by messages that somebody else sends.
//! - [`Windows`], [`HostWindow`], [`Segment`]: files mapped in chunks of 1 GiB and shared where it is proven that they
//!   are the same; only windows are aligned. There are so many of them in a process; a user with a share of its own
//!   ([`Windows::share`]) cannot take those that others need. A segment is the part of an area that lies in one window.
//! - [`Stitch`]: bytes that lie apart in windows, mapped a second time side by side, for what has to be one piece.
//! - [`Occupancy`]: the bytes of windows that one area uses, so that they can be revoked from it and from nobody else.
//! - [`IovaMap`]: an immutable sorted table, for areas and segments alike, changed by copying one leaf.
//! - [`GuestSlice`], [`SgList`]: bytes that a hostile guest changes while we look, alone and in lists.
//!
//! # When memory goes away
//!
//! The owner of a file can take its pages away at any time. The access that finds out does not fail: the SIGBUS it
//! raises is contained, it reads zeros, and the window is *poisoned*. Whoever used slices compares
//! [`poison_epoch`] afterwards and, if it moved, [`HostWindow::poison_count`] of the windows it touched. A poisoned
//! window is not handed out again; [`Windows::losses`] counts them. A hole punched into a file raises nothing: it reads as zeros.
//!
//! # When memory is taken back
//!
//! Whoever lends memory to a device may want it back from one that does not let go. [`Occupancy::revoke`] puts private
//! zeros under the slices of that device, if nobody else uses these pages. That is no poison: it is nobody's mistake but
//! the device's, and nobody's counts move. The window is not handed out again, so what is mapped later shows the file.
//!
//! # Locks, and what may block
//!
//! Mutexes, taken in this order: the table of a [`Windows`], then the free list of the process-wide table that the
//! signal handler reads; and the record of occupants of each window, of several in order of address, with none of the
//! others inside. All are taken only to map, unmap and revoke. [`Windows::segments`] blocks for `fstat` and `mmap`, [`Windows::stitch`] for `mmap`,
//! [`Process::read`] and [`Process::write`] for a copy by the kernel, which may wait for whoever serves the page faults
//! of that process, [`Occupancy::revoke`] for `mmap`, the last drop of a [`HostWindow`] or a [`Stitch`] for `munmap`, [`BackingFile::new`] for the system
//! calls that look at the file.
//! Nothing else makes a system call or blocks; a page fault in a slice does what the kernel needs to find the page,
//! which for accepted files is no stranger's business.
//!
//! # What never fails
//!
//! Looking up, copying and dropping. An access within a slice's bounds completes whatever the owner does.
//!
//! A thread that touches guest memory must not block SIGBUS.
//!
//! # What fails, and how that is tested
//!
//! Mapping an area, for reasons of the kernel, of a full table or of memory. An error undoes what was done before it.
//! [`faults`] makes each of these steps fail in tests; it compiles to nothing elsewhere. Memory for lists whose length
//! a peer chooses is asked for with [`try_push`]; what has a bound of its own (a leaf, a table entry) is not.
//!
//! # What it does not implement
//!
//! Counting of pins, waiting, permissions at the time of access (an area's permission is there to be checked), a dirty
//! log, and the messages by which a peer's memory is reached.

mod addr;
mod area;
mod extent;
pub mod faults;
mod file;
mod map;
mod memory;
mod occupancy;
mod process;
#[allow(unsafe_code)]
pub(crate) mod raw;
mod remote;
mod sg;
mod share;
mod stitch;
mod window;

#[cfg(test)]
mod tests;

pub use addr::{Iova, IovaRange, Perm, RangeError, UserAddr};
pub use area::Area;
pub use extent::Extent;
pub use file::{BackingFile, FileError, FileExtent, FileId, FileKind, FilePolicy};
pub use map::{Hint, IovaMap, MapError, Ranged};
pub use memory::{OutOfMemory, try_push, try_with_capacity};
pub use occupancy::{Occupancy, RevokeError};
pub use process::{Process, ProcessExtent, Unreachable};
pub use raw::{GuestSlice, poison_epoch};
pub use remote::{Answer, RemoteExtent, RemoteMemory, Reply};
pub use sg::SgList;
pub use stitch::{STITCH_PARTS, Stitch, StitchError};
pub use window::{CHUNK, HostWindow, Losses, Segment, WindowError, Windows};
