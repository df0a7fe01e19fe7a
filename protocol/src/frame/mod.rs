//! Framing: from a byte stream with file descriptors to messages and back, for any protocol whose messages are a
//! fixed header and a body whose length the header tells.
//!
//! # Objects
//!
//! [`Decoder`] holds at most one message that has not come whole, and does no I/O. [`Connection`] joins it to a Unix
//! stream socket: it reads one message a call and sends each message in one `sendmsg`, keeping what the peer does
//! not take.
//!
//! # Whose descriptors are they?
//!
//! Descriptors belong to the message whose header's first byte they came with. The kernel hands them out with the
//! first byte of the `sendmsg` that carried them, but one `recvmsg` may return earlier bytes before that one; so a
//! reader must never read past the end of a message. [`Decoder::space`] is cut accordingly.
//!
//! # What may block, what never fails
//!
//! Nothing blocks. Memory is bounded by one message, [`MAX_FDS`] descriptors, and [`MAX_PENDING_BYTES`] of output or
//! one message if that is longer.

mod connection;
mod decoder;
mod output;

use std::fmt::Debug;
use std::os::fd::OwnedFd;

use smallvec::SmallVec;
use zerocopy::FromBytes;

pub use connection::{Connection, ReceiveError, Received};
pub use decoder::{Decoded, Decoder, Frame};
pub use output::{MAX_PENDING_BYTES, MAX_PENDING_FDS, SendError};

/// The most descriptors a message of any protocol carries. What a kind of message may carry is told by
/// [`Incoming::MAX_FDS`].
pub const MAX_FDS: usize = 16;

/// The descriptors of one message, in order; closed when dropped.
pub type Fds = SmallVec<[OwnedFd; MAX_FDS]>;

/// A kind of message that can arrive on a stream.
pub trait Incoming: Sized {
    /// What precedes every message, as it lies on the wire.
    type Header: FromBytes + Copy + Debug;
    /// What can be wrong with a message.
    type Error: std::error::Error + Clone + From<FdError>;
    /// The most descriptors a message carries, in either direction of the stream; at most [`MAX_FDS`].
    const MAX_FDS: usize;

    /// How many bytes follow this header. An error means that the stream cannot be followed any further.
    fn body_len(header: &Self::Header) -> Result<usize, Self::Error>;

    /// The message with this header and this body, which has the length that the header tells, and these
    /// descriptors, of which those are left that belong to the message. An error concerns this message only.
    fn decode(header: &Self::Header, body: &[u8], fds: &mut Fds) -> Result<Self, Self::Error>;
}

/// What can be wrong with the descriptors of a message, whatever it says.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FdError {
    /// More descriptors came than any message has; the surplus was closed unseen.
    #[error("more file descriptors came with one message than any message of its kind takes")]
    TooMany,
    /// Descriptors came after the first byte of the header.
    #[error("file descriptors came in the middle of a message; send them with the first byte of its header")]
    Late,
}

/// A payload was to hold more than its message can.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} {what} do not fit in one message, which holds at most {max}; send them in several")]
pub struct DoesNotFit {
    /// What there is too much of.
    pub what: &'static str,
    /// How much was given.
    pub len: usize,
    /// How much fits.
    pub max: usize,
}

impl DoesNotFit {
    /// An error if `len` exceeds `max`.
    pub(crate) fn check(what: &'static str, len: usize, max: usize) -> Result<(), Self> {
        if len > max { Err(Self { what, len, max }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
