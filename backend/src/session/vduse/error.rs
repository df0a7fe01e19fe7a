//! What can go wrong with one request of the kernel.

use std::time::Duration;

use mdev_pin::IoasError;
use mdev_protocol::vduse::DeviceError;
use thiserror::Error;

/// Why one request failed. The session goes on.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    #[error("there is no ring {index}, the device has {count}")]
    NoSuchRing { index: u32, count: usize },
    #[error("there is neither a group {group} of queues nor an address space {asid}: everything is in 0")]
    NoSuchGroup { group: u32, asid: u32 },
    #[error("the driver acknowledged features {0:#x}, which were not offered")]
    NotOffered(u64),
    #[error("{0}")]
    Device(String),
    #[error("how far ring {0} is was known to the process that served it before, and is not any more")]
    Forgotten(u16),
    #[error(transparent)]
    Kernel(#[from] DeviceError),
    #[error(transparent)]
    Ioas(#[from] IoasError),
    #[error("the device still has requests in flight after {0:?}")]
    StillRunning(Duration),
}

impl Refusal {
    /// Whether the device has not let go in time.
    pub(super) fn is_late(&self) -> bool {
        matches!(self, Refusal::Ioas(IoasError::Deadlock(_)) | Refusal::StillRunning(_))
    }
}
