//! A front-end that waits for its answers, for drivers and tests.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::{
    Config, DoesNotFit, FrontendMessage, FrontendReply, Inflight, MemoryRegion, MemoryTable, MessageError,
    ProtocolFeatures, VringAddr, VringFd, VringState,
};
use crate::frame::{Connection, Frame, ReceiveError, Received, SendError};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot connect to {path}: {error}; is a back-end listening there?")]
    Connect {
        /// The socket's path.
        path: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// The request was not sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The reply was not received.
    #[error(transparent)]
    Receive(#[from] ReceiveError<MessageError>),
    /// The reply was malformed.
    #[error("the reply to {name} is malformed: {error}")]
    Malformed {
        /// Name of the request.
        name: &'static str,
        /// What is wrong with the reply.
        error: MessageError,
    },
    /// The back-end closed the connection.
    #[error("the back-end closed the connection instead of answering {name}; look at its log")]
    Closed {
        /// Name of the request.
        name: &'static str,
    },
    /// No reply in time.
    #[error("the back-end has not answered {name} within {waited:?}")]
    TimedOut {
        /// Name of the request.
        name: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// The back-end answered that the request failed.
    #[error("the back-end refused {name} with {value}; look at its log")]
    Refused {
        /// Name of the request.
        name: &'static str,
        /// The non-zero acknowledgement.
        value: u64,
    },
    /// The reply belongs to something else.
    #[error("the reply to {name} was {reply:?}")]
    Unexpected {
        /// Name of the request.
        name: &'static str,
        /// What came.
        reply: Box<FrontendReply>,
    },
    /// The request cannot be expressed.
    #[error(transparent)]
    DoesNotFit(#[from] DoesNotFit),
}

/// The front-end's end of the main channel. One request is under way at a time; each waits for its reply, if one is
/// due, at most as long as the client was told to.
#[derive(Debug)]
pub struct Client {
    connection: Connection<FrontendReply>,
    negotiated: ProtocolFeatures,
    timeout: Duration,
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl Client {
    /// Connects to the back-end that listens at `path` and will wait `timeout` for each answer.
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self, ClientError> {
        let path = path.as_ref();
        let socket = UnixStream::connect(path)
            .map_err(|error| ClientError::Connect { path: path.display().to_string(), error })?;
        Ok(Self::new(socket, timeout))
    }

    /// A client over a connected socket.
    pub fn new(socket: impl Into<OwnedFd>, timeout: Duration) -> Self {
        Self { connection: Connection::new(socket), negotiated: ProtocolFeatures::empty(), timeout }
    }

    /// The protocol features set with [`Client::set_protocol_features`].
    pub fn negotiated(&self) -> ProtocolFeatures {
        self.negotiated
    }

    /// Sends a request and waits for its reply if one is due. An acknowledgement is asked for whenever `REPLY_ACK` is
    /// negotiated, so that `None` is returned only without it; a non-zero one is [`ClientError::Refused`].
    pub fn call(
        &mut self,
        message: &FrontendMessage,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Option<Frame<FrontendReply>>, ClientError> {
        let row = message.request().row();
        let need_reply = self.negotiated.contains(ProtocolFeatures::REPLY_ACK);
        self.send(message, fds, need_reply)?;
        if !row.reply_due(need_reply, self.negotiated) {
            return Ok(None);
        }
        let frame = self.await_reply(row.name)?;
        match frame.message {
            ref reply if reply.request_id() != row.id => Err(unexpected(row.name, frame)),
            FrontendReply::Ack { value, .. } if value != 0 => {
                Err(ClientError::Refused { name: row.name, value })
            }
            _ => Ok(Some(frame)),
        }
    }

    /// Sends a request and waits for nothing. A reply that is due is to be taken with [`Client::await_reply`].
    pub fn send(
        &mut self,
        message: &FrontendMessage,
        fds: &[BorrowedFd<'_>],
        need_reply: bool,
    ) -> Result<(), ClientError> {
        let since = Instant::now();
        self.connection.send(&message.to_bytes(need_reply), fds)?;
        let name = message.request().name();
        while !self.connection.flush().map_err(SendError::Io)? {
            self.wait_for(PollFlags::OUT, since, name)?;
        }
        Ok(())
    }

    /// Waits for the next reply, whatever it answers. `name` is what errors call the request.
    pub fn await_reply(&mut self, name: &'static str) -> Result<Frame<FrontendReply>, ClientError> {
        let since = Instant::now();
        loop {
            match self.connection.receive()? {
                Received::Message(frame) => return Ok(frame),
                Received::Rejected { error, .. } => {
                    return Err(ClientError::Malformed { name, error });
                }
                Received::Closed => return Err(ClientError::Closed { name }),
                Received::WouldBlock => self.wait_for(PollFlags::IN, since, name)?,
            }
        }
    }

    fn wait_for(&self, what: PollFlags, since: Instant, name: &'static str) -> Result<(), ClientError> {
        let left = self.timeout.saturating_sub(since.elapsed());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.connection, what)], Some(&timeout)) {
            Ok(0) => Err(ClientError::TimedOut { name, waited: self.timeout }),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(ReceiveError::Io(error.into()).into()),
        }
    }
}

fn unexpected(name: &'static str, frame: Frame<FrontendReply>) -> ClientError {
    ClientError::Unexpected { name, reply: Box::new(frame.message) }
}

/// Requests whose reply is a payload of their own.
macro_rules! asks {
    ($($(#[$doc:meta])* $method:ident($($arg:ident: $type:ty),*) -> $result:ty = $message:expr, $Reply:ident;)*) => {
        /// Requests that are answered with a value.
        impl Client {$(
            $(#[$doc])*
            pub fn $method(&mut self $(, $arg: $type)*) -> Result<$result, ClientError> {
                let message = $message;
                let name = message.request().name();
                match self.call(&message, &[])? {
                    Some(Frame { message: FrontendReply::$Reply(value), .. }) => Ok(value),
                    Some(frame) => Err(unexpected(name, frame)),
                    None => Err(ClientError::Closed { name }),
                }
            }
        )*}
    };
}

asks! {
    /// The virtio features that the device offers.
    features() -> u64 = FrontendMessage::GetFeatures, GetFeatures;
    /// The protocol features that the back-end offers.
    protocol_features() -> ProtocolFeatures = FrontendMessage::GetProtocolFeatures, GetProtocolFeatures;
    /// How many queues the device has.
    queue_num() -> u64 = FrontendMessage::GetQueueNum, GetQueueNum;
    /// How many memory regions the back-end can hold.
    max_mem_slots() -> u64 = FrontendMessage::GetMaxMemSlots, GetMaxMemSlots;
    /// The device status.
    status() -> u64 = FrontendMessage::GetStatus, GetStatus;
    /// A piece of configuration space as long as `piece`; `None` if it cannot be read.
    config(piece: Config) -> Option<Config> = FrontendMessage::GetConfig(piece), GetConfig;
    /// Stops a vring; its base is the reply's `num`.
    vring_base(index: u32) -> VringState = FrontendMessage::GetVringBase(VringState { index, num: 0 }), GetVringBase;
}

/// Requests that are answered by an acknowledgement at most.
macro_rules! tells {
    ($($(#[$doc:meta])* $method:ident($($arg:ident: $type:ty),*) = $message:expr;)*) => {
        /// Requests that are answered with success or failure, under `REPLY_ACK`.
        impl Client {$(
            $(#[$doc])*
            pub fn $method(&mut self $(, $arg: $type)*) -> Result<(), ClientError> {
                self.call(&$message, &[]).map(drop)
            }
        )*}
    };
}

tells! {
    /// Sets the virtio features that both ends use.
    set_features(features: u64) = FrontendMessage::SetFeatures(features);
    /// Starts a session.
    set_owner() = FrontendMessage::SetOwner;
    /// Sets the number of descriptors of a vring.
    set_vring_num(index: u32, num: u32) = FrontendMessage::SetVringNum(VringState { index, num });
    /// Says where a vring lies.
    set_vring_addr(addr: VringAddr) = FrontendMessage::SetVringAddr(addr);
    /// Sets the available index at which a vring starts.
    set_vring_base(index: u32, num: u32) = FrontendMessage::SetVringBase(VringState { index, num });
    /// Enables or disables a vring.
    set_vring_enable(index: u32, enable: bool)
        = FrontendMessage::SetVringEnable(VringState { index, num: enable.into() });
    /// Sets the device status; 0 resets.
    set_status(status: u64) = FrontendMessage::SetStatus(status);
    /// Changes a piece of configuration space.
    set_config(piece: Config) = FrontendMessage::SetConfig(piece);
    /// Sets the MTU that the guest sees.
    set_mtu(mtu: u16) = FrontendMessage::NetSetMtu(mtu.into());
    /// Resets the device.
    reset_device() = FrontendMessage::ResetDevice;
    /// Takes a region of guest memory away.
    remove_mem_region(region: MemoryRegion) = FrontendMessage::RemMemReg(region);
}

/// Requests that carry descriptors, and those that change the client.
impl Client {
    /// Sets the protocol features that both ends use. From `REPLY_ACK` on, every request is acknowledged.
    pub fn set_protocol_features(&mut self, features: ProtocolFeatures) -> Result<(), ClientError> {
        self.call(&FrontendMessage::SetProtocolFeatures(features), &[])?;
        self.negotiated = features;
        Ok(())
    }

    /// Replaces guest memory by these regions of these files.
    pub fn set_mem_table(&mut self, regions: &[(MemoryRegion, BorrowedFd<'_>)]) -> Result<(), ClientError> {
        let table = MemoryTable::new(regions.iter().map(|(region, _)| *region).collect())?;
        let fds: Vec<_> = regions.iter().map(|(_, fd)| *fd).collect();
        self.call(&FrontendMessage::SetMemTable(table), &fds).map(drop)
    }

    /// Adds a region of guest memory.
    pub fn add_mem_region(&mut self, region: MemoryRegion, file: BorrowedFd<'_>) -> Result<(), ClientError> {
        self.call(&FrontendMessage::AddMemReg(region), &[file]).map(drop)
    }

    /// Sets the eventfd by which a vring is kicked, which starts it; without one the ring is polled.
    pub fn set_vring_kick(&mut self, index: u8, eventfd: Option<BorrowedFd<'_>>) -> Result<(), ClientError> {
        self.tell_vring(FrontendMessage::SetVringKick, index, eventfd)
    }

    /// Sets the eventfd by which a vring announces used buffers; without one it announces none.
    pub fn set_vring_call(&mut self, index: u8, eventfd: Option<BorrowedFd<'_>>) -> Result<(), ClientError> {
        self.tell_vring(FrontendMessage::SetVringCall, index, eventfd)
    }

    /// Sets the eventfd by which a vring announces that it has failed.
    pub fn set_vring_err(&mut self, index: u8, eventfd: Option<BorrowedFd<'_>>) -> Result<(), ClientError> {
        self.tell_vring(FrontendMessage::SetVringErr, index, eventfd)
    }

    /// Hands the back-end the socket on which it may send requests.
    pub fn set_backend_req_fd(&mut self, socket: BorrowedFd<'_>) -> Result<(), ClientError> {
        self.call(&FrontendMessage::SetBackendReqFd, &[socket]).map(drop)
    }

    /// Has the back-end make a buffer in which it records the requests in flight of so many queues of that size, and keeps it
    /// for [`Client::set_inflight_fd`], on this connection or another.
    pub fn inflight_fd(
        &mut self,
        num_queues: u16,
        queue_size: u16,
    ) -> Result<(Inflight, OwnedFd), ClientError> {
        let message =
            FrontendMessage::GetInflightFd(Inflight { num_queues, queue_size, ..Inflight::default() });
        let name = message.request().name();
        let Some(frame) = self.call(&message, &[])? else { return Err(ClientError::Closed { name }) };
        let Frame { message: FrontendReply::GetInflightFd(inflight), fds, .. } = frame else {
            return Err(unexpected(name, frame));
        };
        match fds.into_iter().next() {
            Some(fd) => Ok((inflight, fd)),
            None => {
                Err(ClientError::Unexpected { name, reply: Box::new(FrontendReply::GetInflightFd(inflight)) })
            }
        }
    }

    /// Hands over a buffer in which requests in flight are recorded, and perhaps some are that are still to be done.
    pub fn set_inflight_fd(&mut self, inflight: Inflight, file: BorrowedFd<'_>) -> Result<(), ClientError> {
        self.call(&FrontendMessage::SetInflightFd(inflight), &[file]).map(drop)
    }

    fn tell_vring(
        &mut self,
        message: fn(VringFd) -> FrontendMessage,
        index: u8,
        eventfd: Option<BorrowedFd<'_>>,
    ) -> Result<(), ClientError> {
        let vring = VringFd { index, has_fd: eventfd.is_some() };
        self.call(&message(vring), eventfd.as_slice()).map(drop)
    }
}

#[cfg(test)]
mod tests;
