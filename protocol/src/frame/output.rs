//! What is to be sent and the peer has not taken yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::MAX_FDS;

/// How many bytes wait for a peer that does not read, at most, unless they are one message.
pub const MAX_PENDING_BYTES: usize = 64 * 1024;
/// How many descriptors wait for a peer that does not read, at most.
pub const MAX_PENDING_FDS: usize = 64;

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The peer does not read.
    #[error("the peer does not read: {bytes} bytes and {fds} descriptors wait for it; close the connection")]
    Full {
        /// Bytes that wait.
        bytes: usize,
        /// Descriptors that wait.
        fds: usize,
    },
    /// No message of this kind has so many descriptors.
    #[error("{0} file descriptors are more than one message of this kind carries; send them in several")]
    TooManyFds(usize),
    /// The socket failed.
    #[error("cannot send to the peer: {0}")]
    Io(#[from] io::Error),
}

/// A message of which at least one byte is still to be sent. Descriptors go with its first byte.
#[derive(Debug)]
struct Waiting {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// Messages in the order in which they go out.
#[derive(Debug, Default)]
pub(super) struct Output {
    queue: VecDeque<Waiting>,
    bytes: usize,
    fds: usize,
}

impl Output {
    /// Bytes that wait.
    pub(super) fn pending(&self) -> usize {
        self.bytes
    }

    /// Sends `bytes` with `fds`, at most [`MAX_FDS`], or queues what the socket does not take at once.
    pub(super) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SendError> {
        let sent = if self.queue.is_empty() { transmit(socket, bytes, fds)? } else { 0 };
        let rest = bytes.get(sent..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(());
        }
        let fds = if sent == 0 { fds } else { &[] };
        let total = self.bytes.saturating_add(rest.len());
        let total_fds = self.fds.saturating_add(fds.len());
        // What has been begun must be finished, or the stream is broken: only whole messages are refused, and only
        // behind others, so that no message is too long to be sent at all.
        if sent == 0 && !self.queue.is_empty() && (total > MAX_PENDING_BYTES || total_fds > MAX_PENDING_FDS) {
            return Err(SendError::Full { bytes: self.bytes, fds: self.fds });
        }
        let fds = fds.iter().map(|fd| fd.try_clone_to_owned()).collect::<io::Result<Vec<_>>>()?;
        self.bytes = total;
        self.fds = total_fds;
        self.queue.push_back(Waiting { bytes: rest.to_vec(), sent: 0, fds });
        Ok(())
    }

    /// Sends what the socket takes; true if nothing waits any more.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        while let Some(front) = self.queue.front_mut() {
            let fds: Vec<_> = front.fds.iter().map(AsFd::as_fd).collect();
            let sent = transmit(socket, front.bytes.get(front.sent..).unwrap_or_default(), &fds)?;
            if sent == 0 {
                return Ok(false);
            }
            self.bytes = self.bytes.saturating_sub(sent);
            self.fds = self.fds.saturating_sub(front.fds.len());
            front.fds.clear();
            front.sent = front.sent.saturating_add(sent);
            if front.sent >= front.bytes.len() {
                self.queue.pop_front();
            }
        }
        Ok(true)
    }
}

/// One `sendmsg`; how many bytes it took, 0 if the socket is full.
fn transmit(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match retry_on_intr(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)) {
        Ok(sent) => Ok(sent),
        Err(Errno::AGAIN) => Ok(0),
        Err(error) => Err(error.into()),
    }
}
