//! What can go wrong with one message.

use std::io;
use std::time::Duration;

use mdev_pin::IoasError;
use mdev_protocol::vhost_user::{MessageError, ProtocolFeatures};
use thiserror::Error;

use super::inflight::InflightError;
use super::memory::MemoryError;

/// Why one message was not obeyed. The session goes on.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("{0:?} was not negotiated by SET_PROTOCOL_FEATURES")]
    NotNegotiated(ProtocolFeatures),
    #[error("this device does not support it; the front-end should not use it unless it is offered")]
    Unsupported,
    #[error(
        "VIRTIO_F_ACCESS_PLATFORM needs a back-end channel to ask for translations: the front-end must negotiate \
         BACKEND_REQ, or its device go without the IOMMU (QEMU: iommu_platform=off)"
    )]
    NoChannel,
    #[error("VIRTIO_F_ACCESS_PLATFORM was not acknowledged: there is nothing to translate")]
    NoIommu,
    #[error(
        "the {size:#x} bytes at user address {user:#x} are not all in memory regions that permit it: the front-end \
         must announce memory before it translates to it"
    )]
    Untranslatable { user: u64, size: u64 },
    #[error("features {0:#x} were not offered")]
    NotOffered(u64),
    #[error("protocol features {0:?} were not offered")]
    ProtocolNotOffered(ProtocolFeatures),
    #[error("{0}")]
    Device(String),
    #[error("there is no ring {index}, the device has {count}")]
    NoSuchRing { index: u32, count: usize },
    #[error("ring {0} runs: stop it with GET_VRING_BASE first")]
    RingRuns(u32),
    #[error("{size} descriptors: the size must be a power of two up to {max}")]
    RingSize { size: u32, max: u16 },
    #[error("{size} descriptors: a packed ring has 1 to {max}")]
    PackedRingSize { size: u32, max: u16 },
    #[error("base {0:#x} exceeds 16 bits")]
    Base(u32),
    #[error("{0:#x} is neither 0 nor 1")]
    Enable(u32),
    #[error("an eventfd is wanted: {0}")]
    EventFd(io::Error),
    #[error("a connected stream socket is wanted: {0}")]
    Channel(io::Error),
    #[error("no file descriptor came with it")]
    NoFd,
    #[error("an MTU of {0} bytes is not possible")]
    Mtu(u64),
    #[error("device status {0:#x} exceeds 8 bits")]
    Status(u64),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error("the buffer for requests in flight: {0}")]
    Inflight(#[from] InflightError),
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
