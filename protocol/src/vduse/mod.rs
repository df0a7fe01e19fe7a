//! VDUSE: how a device that this process emulates becomes a vDPA device of the host's own kernel.
//!
//! There is no socket. A device is made through `/dev/vduse/control` ([`Control`]) and served through `/dev/vduse/NAME`
//! ([`Device`]), from which requests of the kernel are read and to which their responses are written:
//!
//! | | reads | writes |
//! |---|---|---|
//! | daemon | [`Request`] | [`Response`] |
//! | kernel | [`Response`] | [`Request`] |
//!
//! Everything else the daemon asks or tells with ioctls, which are methods of the two files. Each request is to be answered
//! under its number, in any order, within [`MESSAGE_TIMEOUT`] unless the operator has changed that: the kernel gives a device
//! up that is late, and only destroying and creating it brings it back ([`DeviceError::Broken`]). What cannot be decoded is
//! answered with [`RequestError::response`]: it failed.
//!
//! The device is put on the vDPA bus by `vdpa dev add name NAME mgmtdev vduse`, which is for the operator to do, and taken
//! off by `vdpa dev del NAME`. From then on a driver of the host (virtio-vdpa) or another process (through vhost-vdpa, see
//! [`vhost_vdpa`](crate::vhost_vdpa)) uses it.
//!
//! # Memory
//!
//! Neither the kernel nor a guest passes addresses of anybody's memory. For an IOVA the daemon is given a file and an offset
//! ([`Device::iotlb_file`]), or told that there is nothing. When that changes it hears [`RequestKind::UpdateIotlb`], and what
//! it had before is out of date from the moment that it answers.
//!
//! # Versions
//!
//! Version 1 of the interface ([`API_VERSION`]) has groups of queues and address spaces; version 0 has
//! one of each. Messages are the same in both: what version 0 does not have is zero there. Requests that a daemon must have
//! asked for are named by [`VduseFeatures`].
//!
//! # What may block, what never fails
//!
//! No call here waits for a driver. Files are opened non-blocking, and [`read_request`] says that there is none. Encoding
//! never fails. Decoding takes the same time whatever the message says.
//!
//! # What it does not implement
//!
//! Processes of 32 bits, whose structures are laid out differently. Adding the device to the bus (netlink). The size of the
//! bounce buffer and the time-out, which are files of sysfs.
//!
//! Source: `linux/vduse.h`, `Documentation/userspace-api/vduse.rst` and `drivers/vdpa/vdpa_user` of Linux 7.3.

mod channel;
mod config;
mod control;
mod device;
mod error;
#[cfg(test)]
pub(crate) mod golden;
mod name;
mod request;
mod response;
mod state;

use std::time::Duration;

pub use channel::{ReadError, WriteError, read_request, read_response, write_request, write_response};
pub use config::{ConfigError, DeviceConfig, DeviceKind, Groups};
pub use control::{Control, VduseFeatures};
pub use device::{Device, IotlbFile, IotlbInfo, VqInfo, VqSetup};
pub use error::{ControlError, DeviceError};
pub use name::{DeviceName, NameError};
pub use request::{Request, RequestError, RequestKind};
pub use response::{Answer, Expected, Response, ResponseError};
pub use state::VqState;

/// The file that devices are made through.
pub const CONTROL_PATH: &str = "/dev/vduse/control";
/// The folder in which a device's file has the device's name.
pub const DEVICE_FOLDER: &str = "/dev/vduse";
/// The newest version of the interface that is spoken here.
pub const API_VERSION: u64 = 1;
/// The most queues of a device.
pub const MAX_QUEUES: u32 = 0xffff;
/// The most groups of queues of a device.
pub const MAX_GROUPS: u32 = 0xffff;
/// The most address spaces of a device.
pub const MAX_ADDRESS_SPACES: u32 = 0xffff;
/// The most bytes of a device's configuration space: a page of the kernel's, and no kernel has smaller ones.
pub const MAX_CONFIG: usize = 4096;
/// Bytes of a request, and of a response.
pub const MESSAGE_LEN: usize = 152;
/// How long the kernel waits for a response before it gives the device up (`msg_timeout` in sysfs, in seconds; 0 waits for
/// ever).
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of the bounce buffers of a device's address spaces together, through which drivers of the host reach it
/// (`bounce_size` in sysfs, before the device is on the bus).
pub const BOUNCE_SIZE: u64 = 64 << 20;
/// The fewest bytes that [`BOUNCE_SIZE`] can be changed to.
pub const MIN_BOUNCE_SIZE: u64 = 1 << 20;
/// The most bytes that [`BOUNCE_SIZE`] can be changed to.
pub const MAX_BOUNCE_SIZE: u64 = 1 << 30;

#[cfg(test)]
mod tests;
