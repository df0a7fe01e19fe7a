//! Messages on their way: each is one read(2) or write(2), whole.
//!
//! The daemon's two functions work on a [`Device`](super::Device), and the kernel's two are for models of it: on both ends of
//! a socket that keeps messages apart (`SOCK_SEQPACKET`) they do what the file does.

use std::os::fd::AsFd;

use rustix::io::{Errno, read, retry_on_intr, write};

use super::{Expected, MESSAGE_LEN, Request, RequestError, Response, ResponseError};

/// Why nothing was received.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError<E> {
    /// The message was malformed. It is gone, and the next can be read.
    #[error(transparent)]
    Malformed(E),
    /// The other end is gone. A device's file never ends.
    #[error("the other end of the VDUSE channel is gone")]
    Closed,
    /// The kernel said no.
    #[error("cannot read from the VDUSE channel: {0}")]
    Failed(Errno),
}

/// Why nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Nobody waits for this response: its request has been answered, or its asker was killed, or the device was given up. The
    /// next can be written.
    #[error("nobody waits for the answer to request {id} of VDUSE (any longer)")]
    NobodyWaits {
        /// The request's number.
        id: u32,
    },
    /// The kernel said no.
    #[error("cannot write to the VDUSE channel: {0}")]
    Failed(Errno),
}

/// The next request, `None` if there is none. Does not wait on a file that is non-blocking.
///
/// # Errors
/// [`ReadError`]; what is malformed is to be answered with [`RequestError::response`].
pub fn read_request(fd: impl AsFd) -> Result<Option<Request>, ReadError<RequestError>> {
    receive(fd, Request::decode)
}

/// The next response, `None` if there is none. Does not wait on a file that is non-blocking.
///
/// # Errors
/// [`ReadError`].
pub fn read_response(
    fd: impl AsFd,
    expected: Expected,
) -> Result<Option<Response>, ReadError<ResponseError>> {
    receive(fd, |bytes| Response::decode(bytes, expected))
}

/// Sends a request, as the kernel does.
///
/// # Errors
/// [`WriteError::Failed`].
pub fn write_request(fd: impl AsFd, request: &Request) -> Result<(), WriteError> {
    send(fd, &request.to_bytes()).map_err(WriteError::Failed)
}

/// Answers a request.
///
/// # Errors
/// [`WriteError`].
pub fn write_response(fd: impl AsFd, response: &Response) -> Result<(), WriteError> {
    send(fd, &response.to_bytes()).map_err(|errno| match errno {
        Errno::NOENT => WriteError::NobodyWaits { id: response.id },
        errno => WriteError::Failed(errno),
    })
}

fn receive<T, E>(
    fd: impl AsFd,
    decode: impl FnOnce(&[u8]) -> Result<T, E>,
) -> Result<Option<T>, ReadError<E>> {
    // A byte more than there is, so that a message that is too long shows.
    let mut bytes = [0; MESSAGE_LEN + 1];
    let len = match retry_on_intr(|| read(fd.as_fd(), &mut bytes[..])) {
        Ok(0) => return Err(ReadError::Closed),
        Ok(len) => len,
        Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(ReadError::Failed(errno)),
    };
    decode(bytes.get(..len).unwrap_or_default()).map(Some).map_err(ReadError::Malformed)
}

fn send(fd: impl AsFd, bytes: &[u8]) -> Result<(), Errno> {
    match retry_on_intr(|| write(fd.as_fd(), bytes))? {
        len if len == bytes.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}
