//! What the bytes mean: vhost-user, vfio-user, VDUSE and vhost-vdpa, virtio, NVMe and PCI layouts, for both ends.
//!
//! This crate turns bytes and file descriptors into typed messages and back. It checks *shape* and never
//! *meaning*: that a memory table has as many descriptors as regions is decided here, whether its regions overlap
//! is not. What a peer sends is hostile until decoded; no input makes this crate panic, block or grow.
//!
//! # Objects
//!
//! - [`virtio`]: constants and layouts of the virtio specification (feature bits, device status, split rings, the
//!   network device).
//! - [`nvme`]: constants and layouts of NVM Express (queue entries, status codes, registers, identify structures, log
//!   pages), and [`pci`]: those of the configuration space of the function that it is.
//! - [`vhost_user`]: the messages of both channels as one table each, their payloads, the protocol features, and
//!   [`vhost_user::Client`], a blocking front-end.
//! - [`vfio_user`]: the commands and replies of both directions, and [`vfio_user::Client`], a client that waits.
//! - [`vduse`]: the files, messages and ioctls by which a device is one of the host kernel's, and [`vhost_vdpa`]: those by which
//!   such a device is driven.
//! - [`frame`]: framing. [`frame::Decoder`] takes bytes in any number of pieces, with descriptors, and yields
//!   messages without doing I/O; [`frame::Connection`] joins it to a Unix socket and a bounded output queue.
//! - [`fuzzing`]: every parser as a plain function of a byte slice.
//!
//! # Locks and blocking
//!
//! There are no locks and no threads. Only [`vhost_user::Client`] and [`vfio_user::Client`] wait, never longer than
//! their time-outs, and [`vhost_vdpa::VhostVdpa`], as long as the kernel waits for its device. A connection keeps at most
//! one partly received message with at most [`frame::MAX_FDS`] descriptors, and at most [`frame::MAX_PENDING_BYTES`] of
//! output that the peer has not read, or one message that is longer.
//!
//! # What never fails
//!
//! Encoding: types hold only what fits on the wire, their constructors check it.
//!
//! # What it does not implement
//!
//! Big-endian hosts (virtio values are little-endian, vhost-user's are native: they agree here and are used as
//! they are), the region layout of `XEN_MMAP`, the contents of crypto sessions and of the state of migrated vfio-user
//! devices (opaque bytes), adding a device to the vDPA bus (netlink).
//!
//! # Unsafe code
//!
//! Only `sys` has some: it makes ioctls, each bound to the type of its argument.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

#[cfg(not(target_endian = "little"))]
compile_error!("mdev-protocol reads virtio's little-endian values in place and needs a little-endian host");

pub mod frame;
pub mod fuzzing;
pub mod nvme;
pub mod pci;
mod sys;
pub mod vduse;
pub mod vfio_user;
pub mod vhost_user;
pub mod vhost_vdpa;
pub mod virtio;
