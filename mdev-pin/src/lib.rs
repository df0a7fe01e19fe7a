//! Who may touch guest memory, and for how long.
//!
//! # What it is
//!
//! The userspace counterpart of the part of Linux's iommufd that deals with software devices: address spaces
//! ([`Ioas`]), a device's attachment to one ([`Access`]), and the holds a device may have on guest pages. An IOVA is
//! resolved to an offset in a file that the area itself references, never through the address space of whoever
//! mapped it; so nothing here ever waits for the owner of the memory to make something valid.
//!
//! That is the way of memory that devices work on. Two others are there for what has no file: bytes at an address in
//! the owner's process, for [`Access::rw`] and [`Access::pin_pages`] only and for as long as that process keeps them; and
//! bytes that a peer keeps, by messages. Lanes resolve neither (`EINVAL`).
//!
//! # Objects
//!
//! * [`Ioas`]: the areas of one guest, and the table published from them. Control operations only.
//! * [`Access`]: one device's attachment. It has its own published pointer to the table, so that closing or gating
//!   one device changes no result for another.
//! * [`Lane`]: a reader's side of an access, one per queue on its worker. [`Lane::enter`] opens a [`Burst`].
//! * [`Stretch`]: bytes that a device wants in one piece ([`Ioas::keep_whole`]), whatever the areas are cut into: a part of
//!   a ring. Tables have a stitch for each that needs one.
//! * [`Burst`]: one poll of one queue. Inside it IOVAs resolve to [`mdev_dma::GuestSlice`]s without any count; it
//!   never blocks and must not outlive the poll.
//! * [`Pin`]: an owned hold for I/O that outlives the burst, counted on the lane that took it.
//! * [`Parked`]: a queue that waits for a translation which is not there, while its thread goes on. Woken when the
//!   place is mapped, or the access detached, closed or replaced; nobody else is.
//! * [`Pages`]: what [`Access::pin_pages`] shows of memory that the access itself holds, until
//!   [`Access::unpin_pages`]. The face for control paths, with [`Access::rw`]: the checks and codes of Linux, over
//!   the same bursts and counts.
//! * [`Transfer`]: bytes that a peer keeps, fetched or sent by messages ([`Access::transfer`]). Whatever takes the bytes
//!   away cancels it, and never waits for the peer.
//! * [`Account`]: whose limit counts what devices hold. A page is charged once, however many pins and copies there are:
//!   page by page where [`Access::pin_pages`] pins, area by area while an access that pins in bursts
//!   ([`Access::new`]) is attached, and never for one that holds nothing ([`Access::without_pins`]).
//!   [`change_process`] moves what is charged from one account to another, and nothing else.
//! * [`Change`]: an unmap, a replacement of the table or a detach under way. It is polled, never waited for by a
//!   session; [`Change::wait`] is for callers that have nothing else to do.
//!
//! # Unmap, in the order that makes it safe
//!
//! Publish a table in which the area is *gated* (lookups answer `EINVAL`); wait until every lane has left the burst
//! in which it may have seen the old table (grace); notify every access once; wait until the pins on the area are
//! gone (drain); publish the table without the area; wait for the lanes again; drop the old tables and with them
//! the area's references to its file. Grace and drain share one deadline. Past it the change fails with `EDEADLOCK`:
//! the area stays mapped and stays gated, no memory is released, and a later unmap may succeed.
//!
//! # Past the deadline
//!
//! A caller that cannot wait for a device begins its change with [`Within::or_revoke`]. Past the deadline the devices that
//! hold something are asked whether the kernel is done with it ([`AccessOps::cancel`]); then the pages that no other area
//! uses, of any space that shares the window, are replaced by private zeros under the slices of whoever did not let go.
//! The change succeeds: no lane and no pin reaches the guest's memory. Where a page is shared, or the kernel is not done,
//! it fails as above.
//!
//! Pins on a revoked area are *void*, not gone. Their slot is not used again and what they point to stays mapped until the
//! last of them is dropped. Nobody waits for them but an attachment of their access to another space. A pin on a slot that
//! other areas share, because they were cut out of one, counts as live: nobody can tell where it lies.
//!
//! # Locks and their order
//!
//! `AccessCore::attachment`, then `Ioas::state` (of several spaces in the order of their creation), then
//! `Published::void`, then `Published::shards`. The tallies of what is charged come after the states, several in the
//! order of their addresses, and an account after its tallies; nothing is taken under an account. The records of who
//! occupies which window, of several windows in the order of their addresses, are leaves. `AccessCore::callbacks`, the
//! waiters and the transfers of an access, and the allocator of slots are leaves; wakers of parked queues are called under
//! the mutex of a space, and must not come back. None is held across grace, notification or drain. Lanes take none of
//! them. Stitches are mapped under the state of their space, when a table is published that needs new ones.
//!
//! The lane that an access owns for its control paths has a mutex, held by a call of `pin_pages`, `rw` or `transfer` only
//! while it pins, copies or sends. Inside it `pin_pages` takes `AccessCore::attachment` and what comes after it, to charge;
//! and the record of pinned ranges, which takes only records of windows. `unpin_pages` takes only the record, and when it
//! has let go of it, tallies and, for bytes that go back to another process, the slot that they are counted on.
//!
//! # What may block
//!
//! [`Change::wait`] and what is built on it ([`Ioas::unmap`], [`Ioas::replace_table`], [`Access::detach`],
//! [`Access::replace`], [`Access::close`]), each up to the deadline its caller gave. A control operation called by a
//! thread that is inside a burst is refused with `EDEADLK`, because it would wait for itself.
//!
//! [`Access::rw`] and [`Access::pin_pages`] of bytes in another process, and the unpinning of those that go back there,
//! wait for whoever serves the page faults of that process. Nothing else waits for an owner.
//!
//! # What never fails
//!
//! Leaving a burst, dropping a pin, and resolving bytes whose translation a [`Ioas::replace_table`] leaves as it is.
//!
//! # rust-vmm
//!
//! With the feature `vm-memory` a burst is a `vm_memory::GuestMemory`, for `virtio-queue` and device code written for it.
//!
//! # What it does not implement
//!
//! Revocation of what an access holds when it is detached, closed or taken over to another space: the areas stay mapped
//! for others, so there is nothing to take away.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod access;
mod account;
mod allocate;
mod attachment;
mod burst;
mod change;
mod change_process;
mod copy;
mod error;
#[cfg(all(any(test, feature = "fuzzing"), not(loom)))]
pub mod fuzzing;
mod invalidate;
mod ioas;
mod lane;
mod limits;
mod members;
mod pages;
mod parked;
mod parts;
mod pin;
mod ranges;
mod replace;
mod revoke;
mod search;
mod shard;
mod slot;
mod sync;
#[allow(unsafe_code)]
pub(crate) mod sys;
mod table;
mod tally;
mod transfer;
mod view;
mod whole;

#[cfg(all(test, not(loom), not(miri)))]
mod tests;

#[cfg(all(test, miri))]
#[path = "tests/interpreted.rs"]
mod interpreted;

#[cfg(all(test, loom))]
#[path = "tests/models.rs"]
mod models;

pub use access::{Access, AccessOps, IgnoreUnmap};
pub use account::{Account, OverLimit};
pub use allocate::Place;
pub use burst::Burst;
pub use change::Change;
pub use change_process::change_process;
pub use error::{AccessError, IoasError, ResolveError};
pub use ioas::Ioas;
pub use lane::Lane;
pub use limits::RangeOwner;
pub use pages::{Pages, Rw};
pub use parked::{ParkState, Parked};
pub use pin::Pin;
pub use ranges::IovaRanges;
pub use revoke::{Past, Within};
pub use sys::kept::KeptSlice;
pub use transfer::{Move, Transfer, TransferState};
pub use whole::{MAX_STITCHED, Stretch};
