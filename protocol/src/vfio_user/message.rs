//! What can arrive at either end: commands of the other, and its replies to ours.

use super::{Command, DmaReply, DmaRequest, Header, MessageError, Reply, Request};
use crate::frame::{Fds, Incoming, MAX_FDS};

/// What a server receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToServer {
    /// A command of the client.
    Request(Request),
    /// The client's reply to a command of the server.
    Reply(DmaReply),
}

/// What a client receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToClient {
    /// The server's reply to a command of the client.
    Reply(Reply),
    /// A command of the server.
    Request(DmaRequest),
}

impl Incoming for ToServer {
    type Header = Header;
    type Error = MessageError;
    const MAX_FDS: usize = MAX_FDS;

    fn body_len(header: &Header) -> Result<usize, MessageError> {
        header.body_len()
    }

    fn decode(header: &Header, body: &[u8], fds: &mut Fds) -> Result<Self, MessageError> {
        let command = command(header)?;
        match header.direction()? {
            false => Request::decode(command, body, fds.len()).map(Self::Request),
            true => DmaReply::decode(header, command, body, fds.len()).map(Self::Reply),
        }
    }
}

impl Incoming for ToClient {
    type Header = Header;
    type Error = MessageError;
    const MAX_FDS: usize = MAX_FDS;

    fn body_len(header: &Header) -> Result<usize, MessageError> {
        header.body_len()
    }

    fn decode(header: &Header, body: &[u8], fds: &mut Fds) -> Result<Self, MessageError> {
        let command = command(header)?;
        match header.direction()? {
            false => DmaRequest::decode(command, body, fds.len()).map(Self::Request),
            true => Reply::decode(header, command, body, fds.len()).map(Self::Reply),
        }
    }
}

fn command(header: &Header) -> Result<Command, MessageError> {
    Command::from_id(header.command).ok_or(MessageError::UnknownCommand { command: header.command })
}
