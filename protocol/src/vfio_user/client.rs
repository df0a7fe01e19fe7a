//! A client that waits for its answers, for drivers and tests.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use smallvec::SmallVec;
use zerocopy::IntoBytes;

use super::{
    Capabilities, Command, Data, DmaLayout, DmaReadDone, DmaReply, DmaRequest, DmaWriteDone, Header,
    MessageError, Reply, Request, ToClient,
};
use crate::frame::{Connection, DoesNotFit, Fds, Frame, ReceiveError, Received, SendError};

mod calls;

/// Why a command failed. After [`ClientError::TimedOut`] and errors of the connection the client is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot connect to {path}: {error}; is a server listening there?")]
    Connect {
        /// The socket's path.
        path: String,
        /// What the kernel said.
        error: io::Error,
    },
    /// The command was not sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The reply was not received.
    #[error(transparent)]
    Receive(#[from] ReceiveError<MessageError>),
    /// A reply was malformed.
    #[error("a reply of the server is malformed: {0}")]
    Malformed(MessageError),
    /// The server closed the connection.
    #[error("the server closed the connection during {name}; look at its log")]
    Closed {
        /// Name of the command.
        name: &'static str,
    },
    /// No reply in time, or the server reads no more.
    #[error("the server has not answered {name} within {waited:?}")]
    TimedOut {
        /// Name of the command.
        name: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// The server answered that the command failed.
    #[error("the server refused {name}: {}", reason(*.errno))]
    Refused {
        /// Name of the command.
        name: &'static str,
        /// Why; 0 if it did not tell.
        errno: u32,
    },
    /// The reply does not fit what was asked, or nothing was asked.
    #[error("the server answered {name} with what was not asked: {reply:?}")]
    Unexpected {
        /// Name of the command.
        name: &'static str,
        /// What came.
        reply: Box<Reply>,
    },
    /// The command cannot be expressed.
    #[error(transparent)]
    DoesNotFit(#[from] DoesNotFit),
}

fn reason(errno: u32) -> String {
    match i32::try_from(errno) {
        Ok(0) | Err(_) => format!("errno {errno}; look at its log"),
        Ok(errno) => io::Error::from_raw_os_error(errno).to_string(),
    }
}

/// Memory that a client has lent without a file, for the server's `DMA_READ` and `DMA_WRITE`. It is asked while the
/// client waits for something else.
pub trait LentMemory {
    /// Fills `data` from `address` on, or says with which errno to refuse.
    fn read(&mut self, address: u64, data: &mut [u8]) -> Result<(), u32>;

    /// Writes `data` from `address` on, or says with which errno to refuse.
    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), u32>;
}

/// A command that has been sent and is to be answered.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    id: u16,
    command: Command,
}

impl Ticket {
    /// Which command it was.
    pub fn command(&self) -> Command {
        self.command
    }
}

/// The client's end of the main socket, and of a second one where the two have agreed on it. Any number of commands may be under way; waiting for a
/// reply takes at most as long as the client was told to.
pub struct Client {
    connection: Connection<ToClient>,
    /// Where the server's commands come, if not there.
    twin: Option<Connection<ToClient>>,
    /// Answers to the server's commands that wait for room: it may ask for more than a socket holds.
    backlog: VecDeque<Vec<u8>>,
    memory: Option<Box<dyn LentMemory + Send>>,
    next_id: u16,
    waiting: Vec<Ticket>,
    answered: Vec<(Ticket, Reply, Fds)>,
    server: Capabilities,
    timeout: Duration,
}

/// One of the two sockets.
#[derive(Copy, Clone)]
enum Socket {
    Main,
    Twin,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl Client {
    /// Connects to the server that listens at `path` and will wait `timeout` for each answer.
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self, ClientError> {
        let path = path.as_ref();
        let socket = UnixStream::connect(path)
            .map_err(|error| ClientError::Connect { path: path.display().to_string(), error })?;
        Ok(Self::new(socket, timeout))
    }

    /// A client over a connected socket.
    pub fn new(socket: impl Into<OwnedFd>, timeout: Duration) -> Self {
        Self {
            connection: Connection::new(socket),
            twin: None,
            backlog: VecDeque::new(),
            memory: None,
            next_id: 0,
            waiting: Vec::new(),
            answered: Vec::new(),
            server: Capabilities::default(),
            timeout,
        }
    }

    /// Serves the server's accesses to memory lent without a file from here on; they are refused with EFAULT before.
    pub fn lend(&mut self, memory: Box<dyn LentMemory + Send>) {
        self.memory = Some(memory);
    }

    /// What the server said in its `VERSION`; the defaults before.
    pub fn server(&self) -> &Capabilities {
        &self.server
    }

    /// How many commands are sent and not answered.
    pub fn under_way(&self) -> usize {
        self.waiting.len()
    }

    /// Sends a command and waits for its reply, which [`Reply::Failed`] never is: that is [`ClientError::Refused`].
    pub fn call(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Fds), ClientError> {
        let ticket = self.send(request, fds)?;
        self.await_reply(ticket)
    }

    /// Sends a command and does not wait; its reply is to be taken with [`Client::await_reply`].
    pub fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Ticket, ClientError> {
        let ticket = Ticket { id: self.free_id(), command: request.command() };
        self.transmit(request, ticket.id, false, fds)?;
        self.waiting.push(ticket);
        Ok(ticket)
    }

    /// Sends a command that is not answered.
    pub fn post(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        let id = self.free_id();
        self.transmit(request, id, true, fds)
    }

    /// Waits for the reply to `ticket`; those of others are kept for them.
    pub fn await_reply(&mut self, ticket: Ticket) -> Result<(Reply, Fds), ClientError> {
        let name = ticket.command.name();
        let since = Instant::now();
        loop {
            if let Some(at) = self.answered.iter().position(|(of, ..)| *of == ticket) {
                let (_, reply, fds) = self.answered.swap_remove(at);
                return match reply {
                    Reply::Failed(errno) => Err(ClientError::Refused { name, errno }),
                    reply => Ok((reply, fds)),
                };
            }
            let sent = self.connection.flush().map_err(SendError::Io)?;
            if !self.receive(name)? {
                let out = if sent { PollFlags::empty() } else { PollFlags::OUT };
                self.wait_for(PollFlags::IN | out, since, name)?;
            }
        }
    }

    /// Serves what the server asks for, and keeps replies, until nothing more has come.
    pub fn serve(&mut self) -> Result<(), ClientError> {
        self.connection.flush().map_err(SendError::Io)?;
        while self.receive("the server's commands")? {}
        Ok(())
    }

    /// A number that no command under way has.
    fn free_id(&mut self) -> u16 {
        let taken = |id: u16| {
            self.waiting.iter().any(|of| of.id == id) || self.answered.iter().any(|(of, ..)| of.id == id)
        };
        let mut id = self.next_id;
        // Sixteen bits of commands under way would be more than any socket holds.
        for _ in 0..=u16::MAX {
            if !taken(id) {
                break;
            }
            id = id.wrapping_add(1);
        }
        self.next_id = id.wrapping_add(1);
        id
    }

    fn transmit(
        &mut self,
        request: &Request,
        id: u16,
        no_reply: bool,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let since = Instant::now();
        let name = request.command().name();
        self.connection.send(&request.to_bytes(id, no_reply), fds)?;
        // A server that waits for us to read its replies must not wait forever.
        while !self.connection.flush().map_err(SendError::Io)? {
            if !self.receive(name)? {
                self.wait_for(PollFlags::IN | PollFlags::OUT, since, name)?;
            }
        }
        Ok(())
    }

    /// Takes one message from each socket, if one is there.
    fn receive(&mut self, name: &'static str) -> Result<bool, ClientError> {
        let commanded = self.receive_from(Socket::Twin, name)?;
        Ok(self.receive_from(Socket::Main, name)? || commanded)
    }

    fn socket(&mut self, which: Socket) -> Option<&mut Connection<ToClient>> {
        match which {
            Socket::Main => Some(&mut self.connection),
            Socket::Twin => self.twin.as_mut(),
        }
    }

    fn receive_from(&mut self, from: Socket, name: &'static str) -> Result<bool, ClientError> {
        self.flush_replies()?;
        let Some(socket) = self.socket(from) else { return Ok(false) };
        match socket.receive()? {
            Received::Message(Frame { header, message: ToClient::Reply(reply), fds }) => {
                self.keep(&header, reply, fds)?;
            }
            Received::Message(Frame { header, message: ToClient::Request(request), .. }) => {
                self.answer(&header, request)?;
            }
            Received::Rejected { header, error } if header.is_reply() => {
                return Err(ClientError::Malformed(error));
            }
            Received::Rejected { header, error } => {
                if header.wants_reply() {
                    self.reply(header.failure(error.errno()).as_bytes())?;
                }
            }
            Received::Closed => return Err(ClientError::Closed { name }),
            Received::WouldBlock => return Ok(false),
        }
        Ok(true)
    }

    fn keep(&mut self, header: &Header, reply: Reply, fds: Fds) -> Result<(), ClientError> {
        let asked = |of: &Ticket| of.id == header.id && of.command.id() == header.command;
        match self.waiting.iter().position(asked) {
            Some(at) => {
                let ticket = self.waiting.swap_remove(at);
                self.answered.push((ticket, reply, fds));
                Ok(())
            }
            None => {
                let name = Command::from_id(header.command).map_or("an unknown command", Command::name);
                Err(ClientError::Unexpected { name, reply: Box::new(reply) })
            }
        }
    }

    fn answer(&mut self, header: &Header, request: DmaRequest) -> Result<(), ClientError> {
        let memory = self.memory.as_deref_mut();
        let done = match &request {
            DmaRequest::DmaRead(read) => read_lent(memory, read.address, read.count).map(DmaReply::DmaRead),
            DmaRequest::DmaWrite(write) => memory
                .map_or(Err(fault()), |memory| memory.write(write.address, &write.data))
                .map(|()| DmaWriteDone::Told { address: write.address, count: write.data.len() as u64 })
                .map(DmaReply::DmaWrite),
        };
        if header.wants_reply() {
            let reply = done.unwrap_or_else(DmaReply::Failed);
            self.reply(&reply.to_bytes(header))?;
        }
        Ok(())
    }

    /// Answers where commands come from.
    fn reply(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.backlog.push_back(bytes.to_vec());
        self.flush_replies()
    }

    /// Sends answers as far as the socket takes them.
    fn flush_replies(&mut self) -> Result<(), ClientError> {
        let socket = self.twin.as_mut().unwrap_or(&mut self.connection);
        while socket.flush().map_err(SendError::Io)? {
            let Some(bytes) = self.backlog.pop_front() else { break };
            socket.send(&bytes, &[])?;
        }
        Ok(())
    }

    fn wait_for(&self, what: PollFlags, since: Instant, name: &'static str) -> Result<(), ClientError> {
        let left = self.timeout.saturating_sub(since.elapsed());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let main = PollFd::new(&self.connection, what);
        let twin = self.twin.as_ref().map(|twin| {
            let out = if twin.pending_output() > 0 { PollFlags::OUT } else { PollFlags::empty() };
            PollFd::new(twin, PollFlags::IN | out)
        });
        let mut sockets: SmallVec<[PollFd<'_>; 2]> = std::iter::once(main).chain(twin).collect();
        match poll(&mut sockets, Some(&timeout)) {
            Ok(0) => Err(ClientError::TimedOut { name, waited: self.timeout }),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(ReceiveError::Io(error.into()).into()),
        }
    }
}

fn read_lent(
    memory: Option<&mut (dyn LentMemory + Send + 'static)>,
    address: u64,
    count: u64,
) -> Result<DmaReadDone, u32> {
    let mut data = Data::zeroed(count as usize).map_err(|_| Errno::TOOBIG.raw_os_error().unsigned_abs())?;
    memory.ok_or_else(fault)?.read(address, &mut data)?;
    Ok(DmaReadDone { address, data, layout: DmaLayout::Specified })
}

/// What an access to memory that is not there is refused with.
fn fault() -> u32 {
    Errno::FAULT.raw_os_error().unsigned_abs()
}

#[cfg(test)]
mod tests;
