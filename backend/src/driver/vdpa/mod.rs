//! Devices of the host's kernel, as a process drives them: vhost-vdpa.
//!
//! # Objects
//!
//! - [`BusDevice`]: a VDUSE device on the vDPA bus, and the file through which vhost-vdpa lends it.
//! - [`VdpaFrontEnd`]: what [`FrontEnd`](super::FrontEnd) is for vhost-user: features, memory, rings, `DRIVER_OK`, stop. The
//!   drivers and the memory are the same.
//!
//! # Memory is lent in batches
//!
//! For a change outside a batch the kernel waits for the device while it holds the lock of this process's mappings. A device that
//! is a thread of this process, or that this process waits for in a page fault, could not map what it is told of. In a batch
//! the kernel waits when it has let go of that lock, so that every change that lends memory is a batch here.
//!
//! # What may block, what fails
//!
//! Whatever the device is told waits for its answer: changes of memory, of the status and of queues, and dropping the front-end,
//! which resets the device. With VDUSE that is bounded by the kernel (30 seconds a message). The kernel does not say whether the
//! device has taken a change of memory by which nothing was lent.
//!
//! # What it does not implement
//!
//! Several groups and address spaces, doorbells that are mapped, resuming a device that was suspended: VDUSE has none.
mod bus;
mod front_end;

pub use bus::{BusDevice, BusError};
pub use front_end::{MemoryChange, VdpaFrontEnd, VdpaFrontEndError};
