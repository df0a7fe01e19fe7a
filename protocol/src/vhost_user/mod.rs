//! vhost-user: how a front-end (QEMU, DPDK's virtio-user) hands virtqueues to a back-end over a Unix socket.
//!
//! There are two channels. On the main one the front-end sends [`FrontendMessage`]s and the back-end
//! [`FrontendReply`]s; on the back-end channel, which the front-end may open with `SET_BACKEND_REQ_FD`, the
//! back-end sends [`BackendMessage`]s and the front-end [`BackendReply`]s. So each end of each socket receives one
//! kind of message only:
//!
//! | | receives | sends |
//! |---|---|---|
//! | back-end, main channel | `Connection<FrontendMessage>` | `FrontendReply` |
//! | front-end, main channel | `Connection<FrontendReply>` | `FrontendMessage` |
//! | front-end, back-end channel | `Connection<BackendMessage>` | `BackendReply` |
//! | back-end, back-end channel | `Connection<BackendReply>` | `BackendMessage` |
//!
//! The rows of both channels ([`Row`]) say of each request its number, payload, descriptors, reply, and the
//! protocol features that make it legal.
//!
//! Source: "Vhost-user Protocol" as shipped with QEMU 11.1.

mod backend;
mod client;
mod feature;
mod frontend;
#[cfg(test)]
pub(crate) mod golden;
mod header;
mod iotlb;
mod list;
mod payload;
mod table;

use zerocopy::IntoBytes;

use crate::frame::FdError;

pub use crate::frame::DoesNotFit;
pub use backend::{BackendMessage, BackendReply, BackendRequest};
pub use client::{Client, ClientError};
pub use feature::ProtocolFeatures;
pub use frontend::{FrontendMessage, FrontendReply, FrontendRequest};
pub use header::{Header, MAX_BODY};
pub use iotlb::{Iotlb, IotlbPerm};
pub use list::{
    Config, CryptoSession, MAX_CONFIG, MAX_CRYPTO, MAX_REGIONS, MemoryRegion, MemoryTable, SHMEM_REGIONS,
    ShmemConfig,
};
pub use payload::{
    DeviceState, Empty, Inflight, LogBase, SharedObject, ShmemMap, Size, VringAddr, VringArea, VringFd,
    VringState,
};
pub use table::{FdRule, ReplyRule, Row};

/// What can be wrong with a message. [`MessageError::ends_stream`] tells the errors after which nothing that
/// follows can be believed from those that concern one message only.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The header's version is not 1.
    #[error("message {request} has flags {flags:#x}: only version 1 is spoken here; close the connection")]
    Version {
        /// The header's request.
        request: u32,
        /// The header's flags.
        flags: u32,
    },
    /// A reply came where only requests are expected.
    #[error("message {request} is marked as a reply where a request belongs; close the connection")]
    ReplyAsRequest {
        /// The header's request.
        request: u32,
    },
    /// A request came where only replies are expected.
    #[error("message {request} is not marked as a reply where a reply belongs; close the connection")]
    RequestAsReply {
        /// The header's request.
        request: u32,
    },
    /// The header announces more than any message has.
    #[error("message {request} announces {size} bytes, more than any has ({max}); close the connection")]
    TooLong {
        /// The header's request.
        request: u32,
        /// The announced length, in bytes.
        size: u32,
        /// The longest there is, in bytes.
        max: usize,
    },
    /// No message has this number.
    #[error("message {request} is unknown")]
    UnknownRequest {
        /// The header's request.
        request: u32,
    },
    /// The payload is too short or too long for its message.
    #[error("{name} has {size} bytes of payload instead of {min} to {max}")]
    Size {
        /// Name of the request.
        name: &'static str,
        /// Bytes that came.
        size: usize,
        /// Fewest bytes it has.
        min: u32,
        /// Most bytes it has.
        max: u32,
    },
    /// The payload contradicts itself.
    #[error("the payload of {name} {problem}")]
    Body {
        /// Name of the request.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Fewer descriptors came than the message needs.
    #[error("{name} came with {got} file descriptors and needs {min}")]
    MissingFds {
        /// Name of the request.
        name: &'static str,
        /// How many came.
        got: usize,
        /// How many it needs.
        min: usize,
    },
    /// More descriptors came than the message takes; they are closed.
    #[error("{name} came with {got} file descriptors and takes {max}")]
    SurplusFds {
        /// Name of the request.
        name: &'static str,
        /// How many came.
        got: usize,
        /// How many it takes.
        max: usize,
    },
    /// The descriptors did not come as they should; they are closed.
    #[error(transparent)]
    Fds(#[from] FdError),
}

impl MessageError {
    /// Whether the stream has lost its meaning and the connection is to be closed. Otherwise the message has been
    /// taken from the stream whole, its descriptors are closed, and the next message can be read; a request that
    /// asked for a reply can be answered with a non-zero acknowledgement.
    pub fn ends_stream(&self) -> bool {
        matches!(
            self,
            Self::Version { .. }
                | Self::ReplyAsRequest { .. }
                | Self::RequestAsReply { .. }
                | Self::TooLong { .. }
        )
    }
}

/// A header and its body, ready to be sent in one go.
fn with_header(header: Header, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(Header::LEN.saturating_add(body.len()));
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests;
