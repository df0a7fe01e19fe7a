//! The server's commands: on which socket they go, and who hears the answers.
//!
//! They go where the client's come, unless the two have agreed on a second socket. Either way a command is sent only when nothing waits for
//! room in its socket, so that the replies to the client always find room behind it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mdev_protocol::frame::{Connection, Frame, Received};
use mdev_protocol::vfio_user::{DmaReply, Header, Reply, ToServer};
use rustix::net::{Shutdown, shutdown};

use super::error::Refusal;
use super::function::Function;
use super::wire::Wire;
use super::{Queues, Session, SessionError, TURN};
use crate::sys::{Interest, Poll, Readiness};

/// One of the two sockets.
#[derive(Copy, Clone, PartialEq, Eq)]
pub(super) enum Socket {
    /// Of the client's commands.
    Main,
    /// Of the server's, where the two have agreed on that.
    Twin,
}

/// What wakes the control thread: the client has written the admin queue's doorbells, engines want to be sent for, there is
/// something on the second socket.
const RUNG: u64 = 0;
const ASKED: u64 = 1;
const TWIN: u64 = 2;

/// Watches what there is from the beginning.
pub(super) fn watch(function: &Function, wire: &Wire) -> io::Result<Poll> {
    let watch = Poll::new()?;
    watch.add(wire.outbox().bell(), ASKED, Interest::READ)?;
    if let Some(rung) = function.rung() {
        watch.add(rung, RUNG, Interest::READ)?;
    }
    Ok(watch)
}

impl Session {
    /// The client's end of a second socket, from now on the way of the server's commands. `None`, with a line in the log, if there cannot
    /// be one: then they go the way of the client's.
    pub(super) fn open_twin(&mut self) -> Option<OwnedFd> {
        let pair = UnixStream::pair().and_then(|(ours, theirs)| {
            self.watch.add(&ours, TWIN, Interest::READ)?;
            Ok((ours, theirs))
        });
        match pair {
            Ok((ours, theirs)) => {
                self.twin = Some(Connection::new(ours));
                Some(theirs.into())
            }
            Err(error) => {
                log::warn!("{}: no second socket for a client that wants one: {error}", self.name);
                None
            }
        }
    }

    /// Does what the control thread was woken for.
    pub(super) fn look_around(&mut self, queues: &mut dyn Queues) {
        let mut ready = Vec::new();
        // Only a wrong descriptor is an error.
        let _ = self.watch.wait(Some(Duration::ZERO), &mut ready);
        for (key, readiness) in ready {
            match key {
                RUNG => self.function.admin_rung(&self.access, self.conn, queues),
                TWIN => self.serve_twin(queues, readiness),
                _ => {
                    self.wire.outbox().bell().drain();
                }
            }
        }
        self.send_commands();
    }

    fn serve_twin(&mut self, queues: &mut dyn Queues, readiness: Readiness) {
        for _ in 0..TURN {
            let Some(twin) = &mut self.twin else { return };
            if readiness.writable && twin.flush().is_err() {
                return self.lose_twin(SessionError::Closed);
            }
            match twin.receive() {
                Ok(Received::Message(Frame { header, message: ToServer::Reply(reply), .. })) => {
                    self.hear(queues, &header, reply, Socket::Twin);
                }
                Ok(Received::Message(Frame { header, message: ToServer::Request(_), .. })) => {
                    self.complain(&header, &Refusal::WrongSocket);
                    let failed = Reply::Failed(Refusal::WrongSocket.errno());
                    if header.wants_reply() && !self.send_to_twin(&failed.to_bytes(&header)) {
                        return;
                    }
                }
                Ok(Received::Rejected { header, error }) => {
                    self.complain(&header, &error);
                    // The client's commands have numbers of their own: such a one answers nothing.
                    if header.is_reply() {
                        self.hear_garbled(queues, &header, Socket::Twin);
                    }
                    let failed = Reply::Failed(error.errno());
                    if header.wants_reply() && !self.send_to_twin(&failed.to_bytes(&header)) {
                        return;
                    }
                }
                Ok(Received::WouldBlock) => break,
                Ok(Received::Closed) => return self.lose_twin(SessionError::Closed),
                Err(error) => return self.lose_twin(error.into()),
            }
        }
    }

    /// Without it the memory of the client is out of reach: the connection ends at its next turn.
    fn lose_twin(&mut self, error: SessionError) {
        if let Some(twin) = self.twin.take() {
            self.watch.remove(&twin);
        }
        self.fault.get_or_insert(error);
        let _ = shutdown(&self.link, Shutdown::Both);
    }

    /// False if the second socket is of no more use.
    fn send_to_twin(&mut self, bytes: &[u8]) -> bool {
        let Some(twin) = &mut self.twin else { return false };
        match twin.send(bytes, &[]) {
            Ok(()) => true,
            Err(error) => {
                self.lose_twin(error.into());
                false
            }
        }
    }

    /// Sends what the client is to be asked, as far as the socket takes it. Nothing while the function must not reach memory, nor while
    /// it is being reset: its queues are told to end, and may not have heard of it.
    pub(super) fn send_commands(&mut self) {
        let paused = self.device.shared().is_paused() || self.reset.is_some();
        while !paused
            && self.fault.is_none()
            && self.twin.as_ref().unwrap_or(&self.link).pending_output() == 0
        {
            let Some(bytes) = self.wire.next_message() else { break };
            if self.twin.is_some() {
                self.send_to_twin(&bytes);
            } else {
                self.send(&bytes, &[]);
            }
        }
        if let Some(twin) = &self.twin {
            let mut interest = Interest::READ;
            interest.set(Interest::WRITE, twin.pending_output() > 0);
            let _ = self.watch.change(twin, TWIN, interest);
        }
    }

    /// The client has answered.
    pub(super) fn hear(&mut self, queues: &mut dyn Queues, header: &Header, reply: DmaReply, socket: Socket) {
        if (socket == Socket::Twin) != self.twin.is_some() {
            return self.complain(header, &Refusal::WrongSocket);
        }
        if let Err(stray) = self.wire.answered(header, reply) {
            self.complain(header, &stray);
        }
        self.heard(queues);
    }

    /// The client has answered something that cannot be read.
    pub(super) fn hear_garbled(&mut self, queues: &mut dyn Queues, header: &Header, socket: Socket) {
        // That it is of no use has been told.
        if (socket == Socket::Twin) == self.twin.is_some() && self.wire.garbled(header).is_ok() {
            self.heard(queues);
        }
    }

    fn heard(&mut self, queues: &mut dyn Queues) {
        self.function.heard(&self.access, self.conn, queues);
        self.send_commands();
    }

    /// Nothing is asked of the client any more.
    pub(super) fn close_commands(&mut self) {
        self.wire.close();
        if let Some(twin) = self.twin.take() {
            self.watch.remove(twin.as_fd());
        }
    }
}
