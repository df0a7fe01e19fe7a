//! What can go wrong with a controller, but for its I/O queues.

use std::time::Duration;

use mdev_dma::{FileError, RangeError, WindowError};
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::ClientError;

use crate::driver::{DriverError, MemoryError};

/// Why a controller cannot be driven.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// The conversation failed.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The other end is something else.
    #[error("the server offers no PCI function with NVMe registers; is it mdevd nvme or a target like it?")]
    NotNvme,
    /// No memory for a queue or a page.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its admin queue is broken.
    #[error("the admin queue: {0}")]
    Driver(#[from] DriverError),
    /// The doorbells' file was refused.
    #[error("the file of the doorbells cannot be used: {0}")]
    File(#[from] FileError),
    /// The doorbells could not be mapped.
    #[error("the doorbells cannot be mapped: {0}")]
    Window(#[from] WindowError),
    /// The doorbells lie where nothing can.
    #[error("the doorbells are out of range: {0}")]
    Range(#[from] RangeError),
    /// The device has no doorbells to be mapped.
    #[error(
        "the device does not let its doorbells be mapped: start it with --mode busy, or use trapped doorbells"
    )]
    NotMappable,
    /// The device takes no doorbells from memory.
    #[error("the controller has no Doorbell Buffer Config: use trapped or mapped doorbells")]
    NoShadow,
    /// The device knows no SGLs.
    #[error("the controller takes no SGLs: use PRP entries")]
    NoSgl,
    /// The controller's doorbells or pages are not where this driver has them.
    #[error(
        "the controller needs a doorbell stride of {stride} and pages of {page} bytes: this driver has 4 and 4096"
    )]
    Layout {
        /// Bytes from one doorbell to the next.
        stride: u32,
        /// Bytes of its smallest page.
        page: u64,
    },
    /// A register does not become what it should.
    #[error("the controller is not {what} within {waited:?} (CSTS {csts:#x})")]
    NotReady {
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
        /// The status register.
        csts: u32,
    },
    /// It has given up.
    #[error("the controller reports a fatal status; look at the device's log")]
    Fatal,
    /// A command was refused.
    #[error("{command} failed with {status:?}")]
    Refused {
        /// Its name.
        command: &'static str,
        /// Why.
        status: Status,
    },
    /// A command was not answered.
    #[error("no completion of {command} within {waited:?}")]
    Silent {
        /// Its name.
        command: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// There are no such queues.
    #[error(
        "queue {qid} of {entries} entries: the controller has queues of 2 to {greatest} entries, with numbers from 1"
    )]
    Entries {
        /// The number that was asked for.
        qid: u16,
        /// The size that was asked for.
        entries: u32,
        /// Entries that a queue has at most.
        greatest: u32,
    },
    /// Requests do not fit a queue or a command.
    #[error(
        "{requests} requests of {capacity} bytes do not fit: a queue of {entries} entries takes one less, a command at most 1 MiB in whole blocks of {block}"
    )]
    Requests {
        /// Requests at a time.
        requests: u16,
        /// Bytes of each.
        capacity: u32,
        /// Entries of the queue.
        entries: u32,
        /// Bytes of a block.
        block: u32,
    },
}
