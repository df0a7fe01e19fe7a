//! What can go wrong with a connection.

use std::error::Error as StdError;
use std::io;

use mdev_protocol::frame::{ReceiveError, SendError};
use thiserror::Error;

/// Why a connection is over. It is to be closed; nothing is wrong with its device.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The front-end has closed the connection, or died.
    #[error("the front-end closed the connection")]
    Closed,
    /// Nothing that follows on the stream can be believed.
    #[error(transparent)]
    Receive(Box<dyn StdError + Send + Sync>),
    /// A reply cannot be sent, and the front-end would wait for it.
    #[error(transparent)]
    Send(#[from] SendError),
    /// Somebody else has the device.
    #[error("the device has a client already")]
    Occupied,
    /// The kernel has given a VDUSE device up.
    #[error(
        "the kernel has given the device up, because a request was not answered in time or could not be: take it off the bus \
         (vdpa dev del), start its daemon again, and add it"
    )]
    Broken,
    /// The socket failed.
    #[error("the connection's socket failed: {0}")]
    Socket(#[from] io::Error),
}

impl<E: StdError + Send + Sync + 'static> From<ReceiveError<E>> for SessionError {
    fn from(error: ReceiveError<E>) -> Self {
        SessionError::Receive(Box::new(error))
    }
}
