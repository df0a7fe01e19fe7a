//! A Unix stream socket that speaks in messages.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use super::output::{Output, SendError};
use super::{Decoded, Decoder, Fds, Frame, Incoming, MAX_FDS};

/// What a socket had to offer.
#[derive(Debug)]
pub enum Received<M: Incoming> {
    /// A message.
    Message(Frame<M>),
    /// A malformed message. It has been taken from the stream whole and its descriptors are closed; the stream goes
    /// on.
    Rejected {
        /// Its header.
        header: M::Header,
        /// What is wrong with it.
        error: M::Error,
    },
    /// Nothing more for now.
    WouldBlock,
    /// The peer has closed the connection, between two messages.
    Closed,
}

/// Why a connection cannot be read any further. It is to be closed.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError<E: std::error::Error> {
    /// The stream cannot be followed.
    #[error("the peer sends what cannot be followed: {0}")]
    Stream(E),
    /// The peer closed the connection within a message.
    #[error("the peer closed the connection in the middle of a message")]
    Truncated,
    /// The socket failed.
    #[error("cannot receive from the peer: {0}")]
    Io(#[from] io::Error),
}

/// One end of a Unix stream socket that receives messages of one kind.
///
/// It never waits, whether or not the socket is in non-blocking mode. Dropping it closes the socket.
#[derive(Debug)]
pub struct Connection<M: Incoming> {
    socket: OwnedFd,
    decoder: Decoder<M>,
    output: Output,
}

impl<M: Incoming> AsFd for Connection<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<M: Incoming> Connection<M> {
    /// A connection over `socket`, at the start of both streams.
    pub fn new(socket: impl Into<OwnedFd>) -> Self {
        Self { socket: socket.into(), decoder: Decoder::new(), output: Output::default() }
    }

    /// Takes at most one message from the socket: call it until it says [`Received::WouldBlock`], or stop earlier
    /// to let the rest wait.
    ///
    /// # Errors
    ///
    /// The connection is of no more use.
    pub fn receive(&mut self) -> Result<Received<M>, ReceiveError<M::Error>> {
        loop {
            let space = self.decoder.space().map_err(ReceiveError::Stream)?;
            let (read, fds, fds_lost) = match read_piece(self.socket.as_fd(), space) {
                Ok(piece) => piece,
                Err(Errno::AGAIN) => return Ok(Received::WouldBlock),
                // A peer that closes without having read all we sent.
                Err(Errno::CONNRESET) => return Ok(Received::Closed),
                Err(error) => return Err(ReceiveError::Io(error.into())),
            };
            if read == 0 {
                let cut = self.decoder.mid_message();
                return if cut { Err(ReceiveError::Truncated) } else { Ok(Received::Closed) };
            }
            match self.decoder.advance(read, fds, fds_lost).map_err(ReceiveError::Stream)? {
                Some(Decoded::Message(frame)) => return Ok(Received::Message(frame)),
                Some(Decoded::Rejected { header, error }) => return Ok(Received::Rejected { header, error }),
                None => {}
            }
        }
    }

    /// Sends a whole message with its descriptors in one `sendmsg`. What the socket does not take is kept, with
    /// duplicates of the descriptors, and sent by [`Connection::flush`] before anything else.
    ///
    /// # Errors
    ///
    /// [`SendError::Full`] if [`MAX_PENDING_BYTES`](super::MAX_PENDING_BYTES) or
    /// [`MAX_PENDING_FDS`](super::MAX_PENDING_FDS) would be exceeded: nothing of the message was sent. A message that
    /// waits alone is taken whatever its length.
    pub fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SendError> {
        if fds.len() > M::MAX_FDS {
            return Err(SendError::TooManyFds(fds.len()));
        }
        self.output.send(self.socket.as_fd(), bytes, fds)
    }

    /// Sends what is kept, as far as the socket takes it; true if nothing is left. Call it when the socket becomes
    /// writable and [`Connection::pending_output`] is not 0.
    pub fn flush(&mut self) -> io::Result<bool> {
        self.output.flush(self.socket.as_fd())
    }

    /// Bytes that are kept because the peer does not read.
    pub fn pending_output(&self) -> usize {
        self.output.pending()
    }
}

/// One `recvmsg` into `space`: bytes read, the descriptors that came, and whether some were lost.
fn read_piece(socket: BorrowedFd<'_>, space: &mut [u8]) -> Result<(usize, Fds, bool), Errno> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(space)], &mut control, flags))?;
    let mut fds = Fds::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((received.bytes, fds, received.flags.contains(ReturnFlags::CTRUNC)))
}
