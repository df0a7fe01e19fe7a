//! The other side of the socket: a guest's memory, its virtqueue drivers, and the vhost-user front-end that hands
//! them to a device.
//!
//! `mdevd perf` drives devices with it, and tests use it as a driver that behaves well by default and badly on request.
//!
//! # Objects
//!
//! - [`GuestMemory`]: memory files of our own making, mapped through the same windows that a device uses, with an allocator that only
//!   grows.
//! - [`SplitQueue`]: the driver's side of a split virtqueue: chains are *prepared* once (descriptors written),
//!   *offered* any number of times, *published* in batches, and taken back *used*.
//!   [`PackedQueue`] is the same for packed virtqueues, [`Virtqueue`] what they have in common.
//!   [`RawRing`] and [`RawPacked`] write anything at all into the same rings.
//! - [`blk`]: request queues of a block device; [`pattern`] and [`ledger`] tell what was written from what should have been.
//! - [`net`]: receive and transmit queues of a network device on top of it; [`datagram`] makes frames for offloads.
//! - [`nvme`]: the same for NVMe controllers over vfio-user, where there are no virtqueues.
//! - [`FrontEnd`]: the vhost-user conversation: features, memory, rings, enable, stop.
//!   [`vdpa`] is the same for devices of the host's kernel, over vhost-vdpa.
//!
//! # Locks, blocking, failing
//!
//! There are no locks; every object belongs to one thread at a time and may be moved. Only [`FrontEnd`], [`vdpa::VdpaFrontEnd`] and
//! [`nvme::NvmeController`] block, on the device's replies, and never longer than its time-out. What the device writes is checked as strictly as a device checks its
//! driver: an index that jumps or an entry that names no outstanding chain is a [`DriverError`].
//!
//! # What it does not implement
//!
//! The control queue, an IOMMU between driver and device.
pub mod blk;
pub mod datagram;
mod error;
mod front_end;
pub mod ledger;
mod memory;
#[cfg(test)]
mod model_tests;
pub mod net;
pub mod nvme;
mod order;
mod packed;
pub mod pattern;
mod pieces;
mod raw;
mod split;
pub mod vdpa;
mod virtqueue;

pub use error::DriverError;
pub use front_end::{FrontEnd, FrontEndError, InFlightRecord, RingFds};
pub use memory::{GuestMemory, MemoryError, MemoryOptions, Part, Region};
pub use packed::PackedQueue;
pub use raw::{RawPacked, RawRing};
pub use split::SplitQueue;
pub use virtqueue::{Piece, RingAddresses, RingOptions, Used, Virtqueue};
