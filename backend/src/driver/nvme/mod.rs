//! A driver of NVMe controllers that are reached over vfio-user: what a guest's kernel and its QEMU do together, in one place.
//!
//! # Objects
//!
//! - [`Function`]: the PCI function at the other end of the socket: its registers, the memory that it is lent, its page of
//!   doorbells.
//! - [`NvmeController`]: a controller that is enabled, with its admin queue: identify, features, creation and deletion of queues,
//!   doorbells in memory, resets. It owns the guest's memory.
//! - [`QueuePair`]: a submission queue and the completion queue that only it has. Commands are *pushed*, *rung* for in batches, and
//!   their completions *reaped* by polling the phase tag.
//! - [`NvmeQueue`]: requests on such a pair, with a buffer each: the same shape as a virtio [`BlkQueue`](super::blk::BlkQueue).
//! - [`Pointers`]: how commands say where their data is.
//!
//! Doorbells are written in one of three [ways](DoorbellWay): by a message each, in the page that the device lets its client map, or
//! in the guest's memory with the register as the exception (Doorbell Buffer Config).
//!
//! # Locks, blocking, failing
//!
//! The connection is shared by the controller and all doorbells that are messages, under a mutex that is held for one message. The
//! controller waits for answers, never longer than its time-out and the one that the device announces. Queues wait for nothing, but
//! that a doorbell that is a message waits for room in the socket. What the device writes is checked: a completion of what is not
//! under way is a [`DriverError`](super::DriverError).
//!
//! # What it does not implement
//!
//! Interrupts (completions are polled), several submission queues on one completion queue, asynchronous events, metadata, lists of
//! PRP entries that go on in a second page, and SGLs of more than one descriptor: a buffer is contiguous. Whoever needs those
//! pushes commands of its own.
//!
//! Source: NVM Express base specification 2.0 and NVM command set specification 1.0.

mod controller;
mod doorbell;
mod error;
mod function;
mod pair;
mod pointers;
mod queue;
#[cfg(test)]
mod tests;

pub use controller::NvmeController;
pub use doorbell::DoorbellWay;
pub use error::NvmeError;
pub use function::Function;
pub use pair::QueuePair;
pub use pointers::{MOST_DATA, Pointers};
pub use queue::{Ended, NvmeQueue, NvmeQueueOptions, NvmeRequest};
