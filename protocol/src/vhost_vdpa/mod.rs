//! vhost-vdpa: how a process drives a vDPA device of the kernel's, be it hardware or VDUSE.
//!
//! [`VhostVdpa`] is the front-end's end of `/dev/vhost-vdpa-N`. What vhost-user sends as messages are ioctls here; memory is
//! lent and taken back by messages ([`IotlbMessage`]) that are written to the same file. With VDUSE behind it, the other end
//! is [`vduse`](crate::vduse).
//!
//! The order of things: open (which resets the device), [`VhostVdpa::set_owner`], backend features, features and status as the
//! virtio specification says, memory, queues, `DRIVER_OK`.
//!
//! # Memory
//!
//! [`VhostVdpa::map`] lends a part of a file. The kernel wants an address of this process, finds the file that is mapped there
//! and keeps that; so the mapping lasts as long as the call, and no address is ever a part of this interface.
//!
//! # What may block, what never fails
//!
//! Each change of memory, of the status and of a queue, and the closing of the file, waits for the device, with VDUSE at most
//! as long as [`vduse::MESSAGE_TIMEOUT`](crate::vduse::MESSAGE_TIMEOUT) for each message that the kernel sends. Encoding never
//! fails.
//!
//! # What it does not implement
//!
//! Doorbells that are mapped, descriptor groups, the dirty log, misses of the IOTLB (no vDPA device asks), memory that is in no
//! file.
//!
//! Source: `linux/vhost.h` and `linux/vhost_types.h` of Linux 7.3, and `drivers/vhost/vdpa.c`.

mod error;
mod feature;
mod front;
#[cfg(test)]
pub(crate) mod golden;
mod iotlb;

pub use error::VdpaError;
pub use feature::BackendFeatures;
pub use front::{VdpaRing, VhostVdpa};
pub use iotlb::{IotlbChange, IotlbError, IotlbMessage, MESSAGE_LEN};

#[cfg(test)]
mod tests;
