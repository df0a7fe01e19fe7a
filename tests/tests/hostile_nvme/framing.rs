//! Messages that are none, or come in ways in which none should.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use mdev_protocol::vfio_user::{Capabilities, Header, Request, Version};
use mdev_tests::stage::WATCHDOG;
use mdevd::sys::EventFd;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use zerocopy::{FromBytes, IntoBytes};

use super::maps::memfd;
use super::trial::Trial;

/// What was answered: a body, or an errno.
pub type Answer = Result<Vec<u8>, u32>;

/// The answer that is this error.
pub fn errno(errno: Errno) -> Answer {
    Err(errno.raw_os_error().unsigned_abs())
}

/// A connection without a client's manners.
pub struct Raw(pub UnixStream);

impl Raw {
    pub fn connect(path: &Path) -> Raw {
        let socket = UnixStream::connect(path).expect("somebody listens");
        socket.set_read_timeout(Some(WATCHDOG)).expect("a watchdog");
        Raw(socket)
    }

    /// One that has agreed on a version.
    pub fn agreed(path: &Path) -> Raw {
        let mut raw = Raw::connect(path);
        let version = Version { major: 0, minor: 0, capabilities: Capabilities::default() };
        raw.0.write_all(&Request::Version(version).to_bytes(0, false)).expect("room");
        raw.answer().expect("a version");
        raw
    }

    /// Sends bytes, with these descriptors beside the first of them.
    pub fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        let sent = sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).expect("room");
        self.0.write_all(&bytes[sent..]).expect("room");
    }

    /// Sends a command and waits for its answer.
    pub fn asks(&mut self, command: u16, body: &[u8]) -> Answer {
        self.asks_with(command, body, &[])
    }

    pub fn asks_with(&mut self, command: u16, body: &[u8], fds: &[BorrowedFd<'_>]) -> Answer {
        let header = Header::command(7, command, body.len(), false);
        self.send(&[header.as_bytes(), body].concat(), fds);
        self.answer()
    }

    pub fn answer(&mut self) -> Answer {
        let mut header = [0; Header::LEN];
        self.0.read_exact(&mut header).expect("an answer");
        let header = Header::read_from_bytes(&header).expect("a header");
        let mut body = vec![0; header.size as usize - Header::LEN];
        self.0.read_exact(&mut body).expect("the whole answer");
        if header.is_failure() { Err(header.error) } else { Ok(body) }
    }

    /// Waits until the other end closes the connection; answers that come before are left out.
    pub fn must_be_closed(&mut self, what: &str) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{what}: the connection is there still: {error}"),
        }
    }

    /// It is served as before.
    pub fn must_work(&mut self, what: &str) {
        // How many regions and interrupts there are.
        let answer = self.asks(4, &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answer.map(|body| body.len()), Ok(16), "{what}");
    }
}

#[test]
fn streams_that_make_no_sense_are_closed() {
    let mut trial = Trial::begin("adaptive");
    for size in [0u32, 1, 15, (1 << 20) + 33, 1 << 21, 1 << 31, u32::MAX] {
        for agreed in [false, true] {
            trial.hit(&format!("a message of {size} bytes, agreed: {agreed}"), |house| {
                let mut raw =
                    if agreed { Raw::agreed(&house.target()) } else { Raw::connect(&house.target()) };
                let header = Header { id: 1, command: 4, size, flags: 0, error: 0 };
                raw.send(header.as_bytes(), &[]);
                raw.must_be_closed("a length that cannot be");
            });
        }
    }
    trial.end();
}

/// Commands of clients, and a body that each of them takes.
fn bodies() -> Vec<(u16, Vec<u8>)> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    vec![
        (2, words(&[32, 3, 0, 0, 0, 0x100, 0, 0x10_0000])),
        (3, words(&[24, 2, 0, 0, 0, 0])),
        (4, words(&[16, 0, 0, 0])),
        (5, words(&[32, 0, 0, 0, 0, 0, 0, 0])),
        (6, words(&[16, 0, 0, 0])),
        (7, words(&[16, 0, 0, 0])),
        (8, words(&[20, 1 | 32, 2, 0, 0])),
        (9, words(&[0, 0, 0, 4])),
        (10, words(&[0x28, 0, 0, 4, 0])),
        (13, Vec::new()),
    ]
}

#[test]
fn messages_that_make_no_sense_are_refused_and_the_next_is_served() {
    let mut trial = Trial::begin("adaptive");
    trial.hit("unknown commands", |house| {
        let mut raw = Raw::agreed(&house.target());
        for command in [0, 14, 20, 99, 255, 256, 0x8000, u16::MAX] {
            for len in [0, 1, 4096] {
                assert_eq!(raw.asks(command, &vec![0xff; len]), errno(Errno::NOTSUP), "{command}");
            }
        }
        raw.must_work("after unknown commands");
    });
    trial.hit("commands of servers", |house| {
        let mut raw = Raw::agreed(&house.target());
        for command in [11, 12] {
            assert_eq!(raw.asks(command, &[0; 16]), errno(Errno::INVAL));
        }
        raw.must_work("after commands of servers");
    });
    trial.hit("bodies that are too short or too long", |house| {
        let mut raw = Raw::agreed(&house.target());
        for (command, body) in bodies() {
            for len in 0..body.len() {
                let answer = raw.asks(command, &body[..len]);
                assert_eq!(answer, errno(Errno::INVAL), "{len} bytes of command {command}");
            }
            // Structures may have grown by a little since.
            for more in [25, 1000, (1 << 20) - 64] {
                let longer = [body.as_slice(), &vec![0; more]].concat();
                let answer = raw.asks(command, &longer);
                assert!(answer.is_err(), "{} bytes of command {command}: {answer:?}", longer.len());
            }
        }
        raw.must_work("after odd bodies");
    });
    trial.hit("bodies of rubbish", |house| {
        let mut raw = Raw::agreed(&house.target());
        for (command, body) in bodies() {
            // The reset has none, and the first question asks for as much as there is.
            if !body.is_empty() && command != 4 {
                let answer = raw.asks(command, &vec![0xff; body.len()]);
                assert!(answer.is_err(), "command {command}: {answer:?}");
            }
        }
        raw.must_work("after rubbish");
    });
    trial.hit("neither commands nor answers", |house| {
        let mut raw = Raw::agreed(&house.target());
        for flags in (1..16).chain([0x11, 0x21, u32::MAX, 1 << 31 | 1]) {
            let header = Header { id: 1, command: 4, size: 32, flags, error: 5 };
            raw.send(&[header.as_bytes(), &[0xff; 16]].concat(), &[]);
        }
        // None of them is answered, and none is obeyed.
        raw.must_work("after messages of no type");
    });
    trial.hit("commands whose flags are more than there are", |house| {
        let mut raw = Raw::agreed(&house.target());
        for flags in [1 << 6, 1 << 31, 0xffff_ffc0, 0x20] {
            let header = Header { id: 1, command: 4, size: 32, flags, error: 5 };
            raw.send(&[header.as_bytes(), &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat(), &[]);
            let _ = raw.answer();
        }
        raw.must_work("after more flags");
    });
    trial.hit("nothing wants an answer", |house| {
        let mut raw = Raw::agreed(&house.target());
        for (command, body) in bodies() {
            for body in [body.as_slice(), &[0xff; 3]] {
                let header = Header::command(1, command, body.len(), true);
                raw.send(&[header.as_bytes(), body].concat(), &[]);
            }
        }
        raw.must_work("after commands that are not answered");
    });
    trial.end();
}

#[test]
fn the_first_message_is_a_version_and_no_other_is() {
    let mut trial = Trial::begin("adaptive");
    trial.hit("something before the version", |house| {
        let mut raw = Raw::connect(&house.target());
        for (command, body) in bodies() {
            assert_eq!(raw.asks(command, &body), errno(Errno::INVAL), "{command}");
        }
        assert!(raw.asks(1, &[0, 0, 0, 0]).is_ok());
        assert_eq!(raw.asks(1, &[0, 0, 0, 0]), errno(Errno::INVAL), "twice");
        raw.must_work("after its version");
    });
    let deep = format!("{}{}", "{\"capabilities\":".repeat(250), "[".repeat(90));
    let long = format!("{{\"capabilities\": {{\"x\": \"{}\"}}}}", "y".repeat(5000));
    for text in [
        "{",
        "[]",
        "null",
        "{\"capabilities\": 1}",
        "{\"capabilities\": {\"max_msg_fds\": -1}}",
        "{\"capabilities\": {\"max_msg_fds\": 1e999}}",
        "{\"capabilities\": {\"pgsizes\": 0}}",
        "{\"capabilities\": {\"max_data_xfer_size\": \"much\"}}",
        "{\"capabilities\": {\"write_multiple\": 7}}",
        "{\"capabilities\": {\"twin_socket\": {\"fd_index\": 4000000000}}}",
        "{\"capabilities\": {\"migration\": {\"pgsize\": 0}}}",
        "\u{fffd}\u{1}",
        &deep,
        &long,
    ] {
        let shown: String = text.chars().take(40).collect();
        trial.hit(&format!("a version that says {shown}"), |house| {
            let mut raw = Raw::connect(&house.target());
            let body = [&[0, 0, 0, 0], text.as_bytes()].concat();
            assert_eq!(raw.asks(1, &body), errno(Errno::INVAL));
            assert!(raw.asks(1, &[0, 0, 0, 0]).is_ok(), "another try");
            raw.must_work("after another try");
        });
    }
    for major in [1u16, 2, u16::MAX] {
        trial.hit(&format!("version {major}"), |house| {
            let mut raw = Raw::connect(&house.target());
            let [low, high] = major.to_ne_bytes();
            assert_eq!(raw.asks(1, &[low, high, 0, 0]), errno(Errno::INVAL));
        });
    }
    trial.end();
}

#[test]
fn descriptors_where_none_belong_are_closed_and_refused() {
    let mut trial = Trial::begin("adaptive");
    let (event, memory) = (EventFd::new().expect("an eventfd"), memfd(1 << 20));
    for count in [1, 2, 16, 17, 64] {
        trial.hit(&format!("{count} descriptors with any message"), |house| {
            let mut raw = Raw::agreed(&house.target());
            let fds = vec![event.as_fd(); count];
            for (command, body) in bodies().into_iter().filter(|(command, _)| *command != 2) {
                assert_eq!(raw.asks_with(command, &body, &fds), errno(Errno::INVAL), "command {command}");
            }
            if count > 1 {
                let fds = vec![memory.as_fd(); count];
                let (command, map) = &bodies()[0];
                assert_eq!(raw.asks_with(*command, map, &fds), errno(Errno::INVAL));
            }
            raw.must_work("after descriptors that do not belong");
        });
    }
    trial.hit("descriptors that come late", |house| {
        let mut raw = Raw::agreed(&house.target());
        let (command, map) = &bodies()[0];
        let header = Header::command(7, *command, map.len(), false);
        for at in [1, 15, 16, 20, 47] {
            let bytes = [header.as_bytes(), map].concat();
            raw.send(&bytes[..at], &[]);
            raw.send(&bytes[at..], &[memory.as_fd()]);
            assert_eq!(raw.answer(), errno(Errno::INVAL), "with byte {at}");
        }
        raw.must_work("after descriptors that came late");
    });
    trial.hit("descriptors with each byte of a message", |house| {
        let mut raw = Raw::agreed(&house.target());
        for (command, body) in bodies() {
            let header = Header::command(7, command, body.len(), false);
            for byte in [header.as_bytes(), &body].concat() {
                raw.send(&[byte], &[event.as_fd(), memory.as_fd()]);
            }
            assert_eq!(raw.answer(), errno(Errno::INVAL));
        }
    });
    trial.hit("descriptors, and then nothing", |house| {
        for _ in 0..50 {
            let mut raw = Raw::agreed(&house.target());
            raw.send(&[1], &[memory.as_fd(); 16]);
        }
    });
    trial.end();
}

#[test]
fn messages_in_pieces_are_put_together() {
    let mut trial = Trial::begin("adaptive");
    trial.hit("a byte at a time", |house| {
        let mut raw = Raw::agreed(&house.target());
        for (command, body) in bodies() {
            let header = Header::command(7, command, body.len(), false);
            for byte in [header.as_bytes(), &body].concat() {
                raw.send(&[byte], &[]);
            }
            assert!(raw.answer().is_ok(), "command {command}");
        }
    });
    trial.hit("many at once", |house| {
        let mut raw = Raw::agreed(&house.target());
        let mut all = Vec::new();
        for _ in 0..100 {
            for (command, body) in bodies() {
                all.extend_from_slice(Header::command(7, command, body.len(), false).as_bytes());
                all.extend_from_slice(&body);
            }
        }
        let mut reader = Raw(raw.0.try_clone().expect("a duplicate"));
        let sender = std::thread::spawn(move || raw.send(&all, &[]));
        for _ in 0..100 * bodies().len() {
            assert!(reader.answer().is_ok());
        }
        sender.join().expect("it is sent");
    });
    trial.hit("a message that never ends", |house| {
        let mut raw = Raw::agreed(&house.target());
        let header = Header::command(7, 10, 1 << 20, false);
        raw.send(header.as_bytes(), &[]);
        raw.send(&vec![0; 1000], &[]);
    });
    trial.end();
}
