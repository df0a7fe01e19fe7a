//! Clients that lend memory without a descriptor, and lie about it, do not answer, answer twice, or leave in the middle.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::admin::ABORT;
use mdev_protocol::nvme::opcode::nvm::{COMPARE, READ, WRITE};
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::{
    Command as Message, Data, DmaFlags, DmaLayout, DmaMap, DmaReadDone, DmaReply, DmaUnmap, DmaWriteDone,
    Header,
};
use mdev_tests::random::Random;
use mdev_tests::stage::{WATCHDOG, await_that};
use zerocopy::{FromBytes, IntoBytes};

use super::house::{IN_FILE, IN_MEMORY};
use super::intruder::{ENTRIES, Intruder, PAGE, transfer};
use super::trial::Trial;

/// Where the client has memory that it lends without a descriptor.
const LENT_AT: u64 = 1 << 41;
const LENT: u64 = 4 << 20;
/// Messages that a device may send without an answer.
const MOST: usize = 64;
/// Longer than the device waits for an answer.
const LATE: Duration = Duration::from_secs(12);
/// QEMU takes a connection for dead whose replies take longer.
const REPLY: Duration = Duration::from_secs(5);
const LOST: Status = Status::DATA_TRANSFER_ERROR;

/// A command of the device.
struct Asked {
    header: Header,
    address: u64,
    count: u64,
}

impl Asked {
    fn reads(&self) -> bool {
        self.header.command == Message::DmaRead.id()
    }

    /// What a client answers that does as it should.
    fn truth(&self) -> DmaReply {
        let Asked { address, count, .. } = *self;
        if !self.reads() {
            return DmaReply::DmaWrite(DmaWriteDone::Told { address, count });
        }
        read(address, count)
    }

    /// The bytes of an answer, true or not.
    fn reply(&self, reply: &DmaReply) -> Vec<u8> {
        reply.to_bytes(&self.header)
    }
}

fn read(address: u64, count: u64) -> DmaReply {
    let data = Data::new(&vec![0x5a; count as usize]).expect("it fits");
    DmaReply::DmaRead(DmaReadDone { address, data, layout: DmaLayout::Specified })
}

/// The intruder's socket, past its manners.
struct Line(UnixStream);

impl Line {
    fn of(intruder: &Intruder) -> Line {
        let socket = intruder.client.as_fd().try_clone_to_owned().expect("a duplicate");
        Line(UnixStream::from(socket))
    }

    fn say(&mut self, mut bytes: &[u8]) {
        let deadline = Instant::now() + WATCHDOG;
        while !bytes.is_empty() {
            match self.0.write(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}"),
            }
            assert!(Instant::now() < deadline, "nobody reads");
        }
    }

    /// Reads so many bytes. False if none come, for now.
    fn hear(&mut self, bytes: &mut [u8]) -> bool {
        let deadline = Instant::now() + WATCHDOG;
        let mut done = 0;
        while done < bytes.len() {
            match self.0.read(&mut bytes[done..]) {
                Ok(0) => panic!("the connection is closed"),
                Ok(more) => done += more,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && done == 0 => return false,
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}"),
            }
            assert!(Instant::now() < deadline, "a message that does not end");
        }
        true
    }

    /// The next command of the device, if there is one.
    fn asked(&mut self) -> Option<Asked> {
        let mut header = [0; Header::LEN];
        if !self.hear(&mut header) {
            return None;
        }
        let header = Header::read_from_bytes(&header).expect("a header");
        let mut body = vec![0; header.size as usize - Header::LEN];
        await_that("the rest of a message", || self.hear(&mut body));
        let word = |at: usize| u64::from_ne_bytes(body[at..at + 8].try_into().expect("eight bytes"));
        Some(Asked { header, address: word(0), count: word(8) })
    }

    fn await_asked(&mut self) -> Asked {
        let mut asked = None;
        await_that("a command of the device", || {
            asked = self.asked();
            asked.is_some()
        });
        asked.expect("it has come")
    }
}

/// Lends memory without a descriptor.
fn lend(intruder: &mut Intruder) -> Line {
    let flags = DmaFlags::READ | DmaFlags::WRITE;
    let map = DmaMap { flags, offset: 0, address: LENT_AT, size: LENT };
    intruder.client.dma_map(map, None).expect("memory can be lent without a descriptor");
    Line::of(intruder)
}

/// A page from there or to there.
fn page(opcode: u8) -> Command {
    transfer(opcode, [LENT_AT, 0], 8)
}

/// Answers truthfully until a command has ended.
fn ends(intruder: &mut Intruder, line: &mut Line) -> Status {
    let mut ended = Vec::new();
    await_that("the end of a command", || {
        while let Some(asked) = line.asked() {
            line.say(&asked.reply(&asked.truth()));
        }
        ended.extend(intruder.reap(0));
        !ended.is_empty()
    });
    ended[0].status()
}

#[test]
fn lies_fail_their_command_and_nothing_else() {
    type Lie = fn(&Asked) -> Vec<u8>;
    let lies: [(&str, Lie); 9] = [
        ("an error", |asked| asked.reply(&DmaReply::Failed(14))),
        ("an error that is none", |asked| asked.reply(&DmaReply::Failed(0))),
        ("an error that is no errno", |asked| asked.reply(&DmaReply::Failed(u32::MAX))),
        ("another address", |asked| asked.reply(&read(asked.address ^ 4096, asked.count))),
        ("too little", |asked| asked.reply(&read(asked.address, asked.count - 1))),
        ("too much", |asked| asked.reply(&read(asked.address, asked.count + 1))),
        ("a whole megabyte", |asked| asked.reply(&read(asked.address, 1 << 20))),
        ("nothing", |asked| asked.header.reply(0).as_bytes().to_vec()),
        ("the answer to something else", |asked| {
            let header = Header { command: Message::DmaWrite.id(), ..asked.header };
            let done = DmaWriteDone::Told { address: asked.address, count: asked.count };
            DmaReply::DmaWrite(done).to_bytes(&header)
        }),
    ];
    for mode in ["adaptive", "busy"] {
        let mut trial = Trial::begin(mode);
        for (what, lie) in lies {
            trial.case(what, |intruder, _| {
                let mut line = lend(intruder);
                for (opcode, nsid) in [(WRITE, IN_MEMORY), (COMPARE, IN_FILE)] {
                    intruder.submit(0, Command { nsid, ..page(opcode) });
                    let asked = line.await_asked();
                    assert!(asked.reads() && asked.address == LENT_AT);
                    line.say(&lie(&asked));
                    assert_eq!(ends(intruder, &mut line).plain(), LOST, "{what}");
                }
                for opcode in [WRITE, READ, COMPARE] {
                    intruder.submit(0, page(opcode));
                    assert!(ends(intruder, &mut line).is_success(), "{what}: the truth helps");
                }
            });
        }
        trial.end();
    }
}

#[test]
fn counts_that_do_not_fit_their_message_fail_the_command() {
    let mut trial = Trial::begin("adaptive");
    for (count, bytes) in [(4096u64, 0usize), (u64::MAX, 4096), (0, 4096), (4097, 4096), (1 << 32, 4096)] {
        trial.case(&format!("{count} bytes that are {bytes}"), |intruder, _| {
            let mut line = lend(intruder);
            intruder.submit(0, page(WRITE));
            let asked = line.await_asked();
            let body =
                [asked.address.to_ne_bytes().as_slice(), &count.to_ne_bytes(), &vec![1; bytes]].concat();
            let header = Header { size: (Header::LEN + body.len()) as u32, ..asked.header.reply(0) };
            line.say(&[header.as_bytes(), &body].concat());
            assert_eq!(ends(intruder, &mut line).plain(), LOST);
        });
    }
    trial.end();
}

#[test]
fn second_answers_and_answers_to_nothing_are_left_out() {
    let mut trial = Trial::begin("adaptive");
    trial.case("answers that come twice", |intruder, _| {
        let mut line = lend(intruder);
        for opcode in [WRITE, READ, COMPARE] {
            intruder.submit(0, page(opcode));
            let asked = line.await_asked();
            let reply = asked.reply(&asked.truth());
            line.say(&reply.repeat(50));
            assert!(ends(intruder, &mut line).is_success());
            assert!(intruder.reap(0).is_empty(), "it ends once");
        }
    });
    let mut random = Random::seeded("lenders");
    trial.case("2000 answers to nothing", |intruder, _| {
        let mut line = lend(intruder);
        for _ in 0..2000 {
            let command = *random.of(&[Message::DmaRead, Message::DmaWrite]);
            let mut body = vec![0; random.below(64) as usize];
            random.fill(&mut body);
            let header = Header::command(random.number() as u16, command.id(), body.len(), false).reply(0);
            let header = Header { size: (Header::LEN + body.len()) as u32, ..header };
            line.say(&[header.as_bytes(), &body].concat());
        }
        intruder.submit(0, page(WRITE));
        assert!(ends(intruder, &mut line).is_success());
    });
    trial.end();
}

/// As many commands as the queue has room for.
fn load(intruder: &mut Intruder, opcode: u8, nsid: u32) -> usize {
    let count = ENTRIES - 1;
    for number in 0..count {
        let at = LENT_AT + u64::from(number) * PAGE;
        intruder.submit(0, Command { nsid, ..transfer(opcode, [at, 0], 8) });
    }
    count as usize
}

#[test]
fn client_that_never_answers_loses_its_commands_and_is_not_asked_for_ever() {
    let mut trial = Trial::begin("adaptive");
    for (opcode, nsid) in [(WRITE, IN_MEMORY), (READ, IN_MEMORY), (READ, IN_FILE)] {
        trial.case(&format!("no answer, opcode {opcode}, namespace {nsid}"), |intruder, _| {
            let mut line = lend(intruder);
            // The device knows how the client answers.
            intruder.submit(0, page(WRITE));
            assert!(ends(intruder, &mut line).is_success());
            let count = load(intruder, opcode, nsid);
            let (began, mut ended, mut asked) = (Instant::now(), Vec::new(), 0);
            while ended.len() < count {
                asked += std::iter::from_fn(|| line.asked()).count();
                ended.extend(intruder.reap(0));
                assert!(began.elapsed() < LATE, "only {} commands have ended", ended.len());
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(ended.iter().all(|ended| ended.status().plain() == LOST));
            assert!(asked <= MOST, "{asked} messages without an answer");
        });
    }
    trial.case("no answer, and an abort", |intruder, _| {
        let mut line = lend(intruder);
        let began = Instant::now();
        let cid = intruder.submit(0, page(WRITE));
        let asked = line.await_asked();
        let abort = Command { cdw10: u32::from(cid) << 16 | 1, ..Command::new(ABORT, 0, 0) };
        assert_eq!(intruder.admin(abort).dw0, 0, "it is aborted");
        let ended = intruder.await_io(0, 1);
        assert_eq!((ended[0].cid, ended[0].status().plain()), (cid, Status::ABORT_REQUESTED));
        assert!(began.elapsed() < REPLY);
        line.say(&asked.reply(&asked.truth()));
        intruder.submit(0, page(WRITE));
        assert!(ends(intruder, &mut line).is_success(), "the answer was late");
    });
    trial.case("no answer, and an unmap", |intruder, _| {
        let mut line = lend(intruder);
        load(intruder, READ, IN_MEMORY);
        line.await_asked();
        let began = Instant::now();
        let range = DmaUnmap::Range { address: LENT_AT, size: LENT };
        intruder.client.dma_unmap(range).expect("memory can be taken back at any time");
        assert!(began.elapsed() < REPLY);
    });
    trial.case("no answer, and a reset", |intruder, _| {
        drop(lend(intruder));
        load(intruder, WRITE, IN_FILE);
        std::thread::sleep(Duration::from_millis(5));
        let began = Instant::now();
        intruder.client.reset().expect("a reset");
        assert!(began.elapsed() < REPLY, "{:?}", began.elapsed());
    });
    trial.end();
}

#[test]
fn queues_whose_client_never_answers_are_a_fatal_status() {
    let mut trial = Trial::begin("adaptive");
    trial.case("queues without an answer", |intruder, _| {
        drop(lend(intruder));
        assert!(intruder.create_completion(2, ENTRIES, LENT_AT).is_success());
        assert!(intruder.create_submission(2, ENTRIES, LENT_AT + PAGE, 2).is_success());
        intruder.bell(2, false, 5);
        intruder.must_be_fatal("queues without an answer");
    });
    trial.end();
}

#[test]
fn client_that_leaves_in_the_middle_leaves_nothing_behind() {
    let mut trial = Trial::begin("adaptive");
    trial.hit("30 clients that leave", |house| {
        for round in 0..30 {
            let mut intruder = Intruder::at_work(&house.target(), 1);
            let mut line = lend(&mut intruder);
            let (opcode, nsid) = [(WRITE, IN_FILE), (READ, IN_FILE), (READ, IN_MEMORY)][round % 3];
            load(&mut intruder, opcode, nsid);
            for _ in 0..round % 4 {
                let asked = line.await_asked();
                let reply = asked.reply(&asked.truth());
                // The last of them in the middle of a message.
                line.say(&reply[..reply.len() - round % 2]);
                if round % 2 == 1 {
                    break;
                }
            }
        }
    });
    trial.end();
}
