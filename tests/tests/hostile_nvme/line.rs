//! The socket of a client that lends memory without a descriptor, past the client's manners: what the device asks is seen one by one, and
//! answered with anything, or not at all.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::register::{CSTS, csts};
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::{
    Command as Message, Data, DmaFlags, DmaLayout, DmaMap, DmaReadDone, DmaReply, DmaUnmap, DmaWriteDone,
    Header, RegionRead, Request,
};
use mdev_tests::stage::{WATCHDOG, await_that};
use zerocopy::{FromBytes, IntoBytes};

use super::intruder::{BAR0, Intruder, PAGE, transfer};

/// Where the client has memory that it lends without a descriptor.
pub const LENT_AT: u64 = 1 << 41;
pub const LENT: u64 = 4 << 20;
/// What a true answer is filled with.
pub const TRUE: u8 = 0x5a;
/// QEMU takes a connection for dead whose replies take longer.
pub const REPLY: Duration = Duration::from_secs(5);
/// How a command ends whose client lies.
pub const LOST: Status = Status::DATA_TRANSFER_ERROR;
/// The number of the client's own commands on the line.
const OWN: u16 = 0xbeef;

/// A command of the device.
pub struct Asked {
    pub header: Header,
    pub address: u64,
    pub count: u64,
    /// What it writes, behind address and count.
    pub data: Vec<u8>,
}

impl Asked {
    pub fn reads(&self) -> bool {
        self.header.command == Message::DmaRead.id()
    }

    /// What a client answers that does as it should, and whose memory is full of a byte.
    pub fn filled(&self, byte: u8) -> Vec<u8> {
        let Asked { address, count, .. } = *self;
        self.reply(&if self.reads() { read(address, count, byte) } else { written(address, count) })
    }

    pub fn truth(&self) -> Vec<u8> {
        self.filled(TRUE)
    }

    /// The bytes of an answer, true or not.
    pub fn reply(&self, reply: &DmaReply) -> Vec<u8> {
        reply.to_bytes(&self.header)
    }

    /// An answer with this body, whatever it is.
    pub fn raw(&self, header: Header, body: &[u8]) -> Vec<u8> {
        let header = Header { size: (Header::LEN + body.len()) as u32, ..header };
        [header.as_bytes(), body].concat()
    }
}

/// The answer to a read, as the specification has it.
pub fn read(address: u64, count: u64, byte: u8) -> DmaReply {
    let data = Data::new(&vec![byte; count as usize]).expect("it fits");
    DmaReply::DmaRead(DmaReadDone { address, data, layout: DmaLayout::Specified })
}

pub fn written(address: u64, count: u64) -> DmaReply {
    DmaReply::DmaWrite(DmaWriteDone::Told { address, count })
}

/// See the [module](self).
pub struct Line {
    socket: UnixStream,
    /// Commands of the device that came while something else was waited for.
    kept: VecDeque<Asked>,
}

impl Line {
    /// That of an intruder, who says nothing where an answer is waited for while this is used.
    pub fn of(intruder: &Intruder) -> Line {
        let socket = intruder.client.as_fd().try_clone_to_owned().expect("a duplicate");
        // Not to wait is good for the client, too, which never does in a call.
        Line::on(socket.into())
    }

    pub fn on(socket: UnixStream) -> Line {
        socket.set_nonblocking(true).expect("sockets can");
        Line { socket, kept: VecDeque::new() }
    }

    pub fn say(&mut self, mut bytes: &[u8]) {
        let deadline = Instant::now() + WATCHDOG;
        while !bytes.is_empty() {
            match self.socket.write(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            assert!(Instant::now() < deadline, "nobody reads");
        }
    }

    /// Reads so many bytes. False if none come, for now.
    fn hear(&mut self, bytes: &mut [u8]) -> bool {
        let deadline = Instant::now() + WATCHDOG;
        let mut done = 0;
        while done < bytes.len() {
            match self.socket.read(&mut bytes[done..]) {
                Ok(0) => panic!("the connection is closed"),
                Ok(more) => done += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock && done == 0 => return false,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            }
            assert!(Instant::now() < deadline, "a message that does not end");
        }
        true
    }

    /// The next message, if one is there.
    fn message(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut header = [0; Header::LEN];
        if !self.hear(&mut header) {
            return None;
        }
        let header = Header::read_from_bytes(&header).expect("a header");
        let mut body = vec![0; header.size as usize - Header::LEN];
        await_that("the rest of a message", || self.hear(&mut body));
        Some((header, body))
    }

    /// The next command of the device, if there is one. Replies to what was no command are left out.
    pub fn asked(&mut self) -> Option<Asked> {
        while self.kept.is_empty() {
            let (header, body) = self.message()?;
            if !header.is_reply() {
                self.keep(header, body);
            }
        }
        self.kept.pop_front()
    }

    fn keep(&mut self, header: Header, body: Vec<u8>) {
        let word = |at: usize| u64::from_ne_bytes(body[at..at + 8].try_into().expect("eight bytes"));
        self.kept.push_back(Asked { header, address: word(0), count: word(8), data: body[16..].to_vec() });
    }

    pub fn await_asked(&mut self) -> Asked {
        let mut asked = None;
        await_that("a command of the device", || {
            asked = self.asked();
            asked.is_some()
        });
        asked.expect("it has come")
    }

    /// Has a command of the client served, and answers nothing meanwhile. In time, or the test has failed.
    pub fn call(&mut self, request: &Request) -> Vec<u8> {
        let began = Instant::now();
        self.say(&request.to_bytes(OWN, false));
        let mut answer = None;
        await_that("a reply", || {
            while let Some((header, body)) = self.message() {
                if header.is_reply() && header.id == OWN {
                    assert!(!header.is_failure(), "{request:?} was refused: {}", header.error);
                    answer = Some(body);
                } else if !header.is_reply() {
                    self.keep(header, body);
                }
            }
            answer.is_some()
        });
        assert!(began.elapsed() < REPLY, "{request:?} took {:?}", began.elapsed());
        answer.expect("it has come")
    }

    pub fn unmap(&mut self) {
        self.call(&Request::DmaUnmap(DmaUnmap::Range { address: LENT_AT, size: LENT }));
    }

    /// Whether the controller says that only a reset helps.
    pub fn is_fatal(&mut self) -> bool {
        let body =
            self.call(&Request::RegionRead(RegionRead { offset: CSTS.into(), region: BAR0, count: 4 }));
        u32::from_le_bytes(body[16..].try_into().expect("a register")) & csts::FATAL != 0
    }
}

/// Lends memory without a descriptor, in maps of so many bytes.
pub fn lend_in(intruder: &mut Intruder, piece: u64) -> Line {
    let flags = DmaFlags::READ | DmaFlags::WRITE;
    for address in (LENT_AT..LENT_AT + LENT).step_by(piece as usize) {
        let map = DmaMap { flags, offset: 0, address, size: piece };
        intruder.client.dma_map(map, None).expect("memory can be lent without a descriptor");
    }
    Line::of(intruder)
}

/// The same in one.
pub fn lend(intruder: &mut Intruder) -> Line {
    lend_in(intruder, LENT)
}

/// A page from there or to there.
pub fn page(opcode: u8) -> Command {
    page_of(opcode, 0)
}

/// The same of another page, which is that of the namespace, too.
pub fn page_of(opcode: u8, number: u32) -> Command {
    let at = LENT_AT + u64::from(number) * PAGE;
    Command { cdw10: number * 8, ..transfer(opcode, [at, 0], 8) }
}

/// So many pages on a queue.
pub fn load(intruder: &mut Intruder, ring: usize, opcode: u8, nsid: u32, count: u32) {
    for number in 0..count {
        intruder.submit(ring, Command { nsid, ..page_of(opcode, number) });
    }
}

/// Answers truthfully until a command has ended.
pub fn ends(intruder: &mut Intruder, line: &mut Line) -> Status {
    let mut ended = Vec::new();
    await_that("the end of a command", || {
        while let Some(asked) = line.asked() {
            line.say(&asked.truth());
        }
        ended.extend(intruder.reap(0));
        !ended.is_empty()
    });
    assert_eq!(ended.len(), 1, "it ends once");
    ended[0].status()
}

/// The client tells the truth: all works, and what was written is what it said.
pub fn must_work(intruder: &mut Intruder, line: &mut Line, what: &str) {
    use mdev_protocol::nvme::opcode::nvm::{COMPARE, READ, WRITE};
    for opcode in [WRITE, READ, COMPARE] {
        intruder.submit(0, page(opcode));
        assert!(ends(intruder, line).is_success(), "{what}: the truth helps");
    }
    assert_eq!(stored(intruder, 0), TRUE, "{what}");
}

/// The byte that a page of the namespace in memory is full of.
pub fn stored(intruder: &mut Intruder, number: u32) -> u8 {
    use mdev_protocol::nvme::opcode::nvm::READ;
    let command = Command { dptr: [intruder.data.at.0, 0], ..page_of(READ, number) };
    assert!(intruder.io(0, command).status().is_success());
    let mut bytes = [0; PAGE as usize];
    intruder.data.range(0, PAGE).expect("room").copy_to(&mut bytes);
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "page {number} is of several");
    bytes[0]
}
