//! A hundred thousand messages at random: noise, true messages at the wrong time, and true messages with something changed.

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use mdev_protocol::vhost_user::Header;
use mdev_tests::random::Random;
use mdev_tests::stage::{Guest, GuestOptions, Port};
use mdevd::driver::{GuestMemory, MemoryOptions, RingFds, RingOptions};
use mdevd::worker::Mode;
use rustix::fs::ftruncate;
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use zerocopy::IntoBytes;

use super::files::memfd;
use super::latched::{ATTACKED, Attacks, Door};
use super::leaving::{SIZE, sequence};

const MESSAGES: u32 = 100_000;

/// Numbers that are wrong in most places, and right in some.
const WORDS: [u64; 20] = [
    0,
    1,
    2,
    3,
    15,
    64,
    127,
    128,
    255,
    256,
    4096,
    0x7fff,
    0xffff,
    1 << 20,
    1 << 30,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    u64::MAX - 4095,
    u64::MAX,
];

/// A front-end that means no good, and what it has to send.
struct Attacker<'s> {
    door: &'s dyn Door,
    random: Random,
    memory: GuestMemory,
    port: Port,
    fds: [RingFds; 2],
    /// Files and other things that may come with any message.
    pool: Vec<OwnedFd>,
    link: Option<(u64, UnixStream)>,
    sent: u32,
    endings: u32,
}

impl<'s> Attacker<'s> {
    fn new(door: &'s dyn Door) -> Self {
        let (memory, port) = memory_and_port();
        let eventfd =
            || mdevd::sys::EventFd::new().expect("an eventfd").as_fd().try_clone_to_owned().expect("a copy");
        let (one, other) = rustix::pipe::pipe().expect("a pipe");
        let (socket, _) = UnixStream::pair().expect("sockets");
        let pool = vec![
            memfd(1 << 20),
            memfd(1 << 20),
            memfd(0),
            eventfd(),
            eventfd(),
            eventfd(),
            one,
            other,
            socket.into(),
        ];
        let fds = [RingFds::new().expect("eventfds"), RingFds::new().expect("eventfds")];
        let random = Random::seeded("random messages");
        Attacker { door, random, memory, port, fds, pool, link: None, sent: 0, endings: 0 }
    }

    /// One connection, until it ends or has said enough.
    fn connection(&mut self) {
        let (conn, socket) = self.door.enter();
        socket.set_nonblocking(true).expect("sockets can");
        self.link = Some((conn, socket));
        let (memory, port, fds) = (&self.memory, &self.port, &self.fds);
        let script: Vec<(Vec<u8>, Vec<OwnedFd>)> = sequence(memory, port, fds)
            .into_iter()
            .map(|(message, fds)| (message.to_bytes(false), fds.into_iter().map(copy).collect()))
            .collect();
        // Most get as far as running rings before anything is wrong.
        let right = if self.random.one_in(4) {
            self.random.below(script.len() as u64)
        } else {
            script.len() as u64 - 4
        };
        for (bytes, fds) in script.iter().take(right as usize) {
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            self.send(bytes, &fds);
        }
        let last = self.sent + 50 + self.random.below(500) as u32;
        while self.sent < last && self.link.is_some() {
            match self.random.below(100) {
                0..40 => self.changed(&script),
                40..60 => self.again(&script),
                60..90 => self.noise(),
                90..98 => self.disturb(),
                _ => self.break_stream(),
            }
        }
        self.leave();
    }

    /// A true message of the sequence with something changed.
    fn changed(&mut self, script: &[(Vec<u8>, Vec<OwnedFd>)]) {
        let (bytes, fds) = self.random.of(script);
        let mut bytes = bytes.clone();
        for _ in 0..=self.random.below(2) {
            let body = bytes.len() - Header::LEN;
            match self.random.below(3) {
                0 if body > 0 => {
                    let at = Header::LEN + self.random.below(body as u64) as usize;
                    bytes[at] ^= 1 << self.random.below(8);
                }
                1 if body >= 8 => {
                    let at = Header::LEN + 8 * self.random.below(body as u64 / 8) as usize;
                    let word = *self.random.of(&WORDS);
                    bytes[at..at + 8].copy_from_slice(&word.to_ne_bytes());
                }
                _ => {
                    let len = body as u64 + 4 - self.random.below(9).min(body as u64 + 4);
                    bytes.resize(Header::LEN + len as usize, 0x5a);
                    bytes[8..12].copy_from_slice(&(len as u32).to_ne_bytes());
                }
            }
        }
        bytes[4] |= (self.random.below(2) << 3) as u8;
        let fds: Vec<_> = if self.random.one_in(3) {
            self.any_fds()
        } else {
            fds.iter().map(|fd| copy(fd.as_fd())).collect()
        };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.send(&bytes, &fds);
    }

    /// A true message at a time that is not its own.
    fn again(&mut self, script: &[(Vec<u8>, Vec<OwnedFd>)]) {
        let (bytes, fds) = self.random.of(script);
        let mut bytes = bytes.clone();
        bytes[4] |= (self.random.below(2) << 3) as u8;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.send(&bytes, &fds);
    }

    /// A header that can be followed, any request, any body, any descriptors.
    fn noise(&mut self) {
        let id =
            if self.random.one_in(20) { self.random.number() as u32 } else { self.random.below(50) as u32 };
        let size = if self.random.one_in(20) { self.random.below(2057) } else { 8 * self.random.below(6) };
        let mut bytes = Header::request(id, size as u32, self.random.one_in(2)).as_bytes().to_vec();
        let mut body = vec![0; size as usize];
        if self.random.one_in(2) {
            self.random.fill(&mut body);
        } else {
            for word in body.chunks_exact_mut(8) {
                word.copy_from_slice(&self.random.of(&WORDS).to_ne_bytes());
            }
        }
        bytes.extend(body);
        let fds = if self.random.one_in(2) { self.any_fds() } else { Vec::new() };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.send(&bytes, &fds);
    }

    /// What is no message: the rings, the memory and the eventfds.
    fn disturb(&mut self) {
        match self.random.below(6) {
            0 => {
                self.port.forgive();
                let _ = self.port.send(u64::MAX);
                let _ = self.port.receive_anything();
            }
            1 => {
                let region = &self.memory.regions()[0];
                let (first, size) = (region.range.first().0, region.size());
                let at = first + self.random.below(size - 8);
                let word = self.random.number();
                let place = self.memory.slice(mdev_dma::Iova(at), 8).expect("it is in memory");
                place.write(0, word).expect("it fits");
            }
            2 => {
                let ring = if self.random.one_in(2) { &self.port.rx } else { &self.port.tx };
                let place = self.random.below(SIZE.into()) as u16;
                let mut desc = ring.raw().desc(place);
                desc.flags ^= 1 << self.random.below(4);
                desc.next = self.random.number() as u16;
                ring.raw().set_desc(place, desc);
            }
            3 if self.random.one_in(10) => {
                let file = &self.memory.regions()[0].extent.file;
                ftruncate(file.as_fd(), 0).expect("nothing forbids it");
                // Both have lost their pages for good.
                (self.memory, self.port) = memory_and_port();
            }
            _ => {}
        }
        self.fds.iter().for_each(|fds| fds.kick.signal());
    }

    /// A header after which nothing can be believed.
    fn break_stream(&mut self) {
        if !self.random.one_in(5) {
            return;
        }
        let good = Header::request(self.random.below(50) as u32, 0, true);
        let bad = *self.random.of(&[
            Header { flags: 0, ..good },
            Header { flags: 2, ..good },
            Header { flags: 5, ..good },
            Header { size: 2057, ..good },
            Header { size: u32::MAX, ..good },
        ]);
        self.send(bad.as_bytes(), &[]);
    }

    /// Up to eight descriptors of any kind.
    fn any_fds(&mut self) -> Vec<OwnedFd> {
        (0..self.random.below(9)).map(|_| copy(self.random.of(&self.pool).as_fd())).collect()
    }

    /// Sends bytes and descriptors, reading replies where that makes room; the connection may be over.
    fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        self.sent += 1;
        let Some((_, socket)) = &mut self.link else { return };
        let mut rest = bytes;
        let mut fds = fds;
        let mut over = false;
        mdev_tests::stage::await_that("the back-end reads, or the connection is over", || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
            match sendmsg(&*socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL) {
                Ok(bytes) => {
                    rest = &rest[bytes..];
                    fds = &[];
                }
                Err(Errno::AGAIN | Errno::TOOMANYREFS) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => over = true,
                Err(error) => panic!("{error}"),
            }
            let mut replies = [0; 4096];
            while socket.read(&mut replies).is_ok_and(|bytes| bytes == replies.len()) {}
            rest.is_empty() || over
        });
        if over {
            self.leave();
        }
    }

    /// Ends the connection: nothing of it is left.
    fn leave(&mut self) {
        let Some((conn, socket)) = self.link.take() else { return };
        drop(socket);
        self.endings += 1;
        self.door.left(conn);
    }
}

fn copy(fd: BorrowedFd<'_>) -> OwnedFd {
    fd.try_clone_to_owned().expect("a duplicate")
}

fn memory_and_port() -> (GuestMemory, Port) {
    let mut memory = GuestMemory::new(MemoryOptions { size: 1 << 20, ..Default::default() }).expect("memory");
    let ring = RingOptions { event_idx: true, ..RingOptions::plain(SIZE) };
    let port = Port::new(&mut memory, ring).expect("room");
    (memory, port)
}

/// Sends so many messages, and says on how many connections; `look` is called now and then.
pub fn send_random(door: &dyn Door, messages: u32, mut look: impl FnMut()) -> u32 {
    let mut attacker = Attacker::new(door);
    while attacker.sent < messages {
        attacker.connection();
        if attacker.endings.is_multiple_of(16) {
            look();
        }
        // What a scribbled ring says about its descriptors stays: others are taken now and then.
        if attacker.endings.is_multiple_of(4) {
            (attacker.memory, attacker.port) = memory_and_port();
        }
    }
    attacker.endings
}

#[test]
fn a_hundred_thousand_random_messages_disturb_nobody_and_leave_nothing_behind() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let before = attacks.victim.passed();
    let connections = send_random(&attacks.stage, MESSAGES, || attacks.victim.must_go_on(10));
    assert!(connections > 50 && attacks.victim.passed() > before + 100);

    // The device serves whoever comes next.
    let served = attacks.stage.counters(ATTACKED, 1).packets;
    println!("{served} frames served on {connections} connections");
    assert!(served > 0, "no ring ever ran");
    let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    guest.exchange(100);
    attacks.leave("after all that", guest);
    attacks.end();
}
