//! Clients that read no replies, vanish, come in numbers, or send anything at all.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mdev_protocol::vfio_user::{Capabilities, Header, Request, Version};
use mdev_tests::random::Random;
use mdevd::sys::EventFd;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::framing::{Raw, errno};
use super::intruder::Intruder;
use super::maps::memfd;
use super::trial::Trial;

/// Sends messages until the socket takes no more, and says how many bytes that were.
fn flood(socket: &mut UnixStream, message: &[u8]) -> usize {
    socket.set_nonblocking(true).expect("sockets can");
    let many = message.repeat((1 << 16) / message.len() + 1);
    let (mut sent, mut idle) = (0, 0);
    // Replies find no room at some time: then nothing moves any more.
    while idle < 100 {
        match socket.write(&many[sent % message.len()..]) {
            Ok(bytes) => (sent, idle) = (sent + bytes, 0),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                idle += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    sent
}

fn message(command: u16, body: &[u8]) -> Vec<u8> {
    [Header::command(7, command, body.len(), false).as_bytes(), body].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[test]
fn clients_that_read_no_replies_hold_nobody() {
    let mut trial = Trial::begin("adaptive");
    let floods = [
        ("questions", message(4, &words(&[16, 0, 0, 0]))),
        ("refusals", message(99, &[])),
        ("reads of a byte", message(9, &words(&[0, 0, 0, 1]))),
        ("reads of a page", message(9, &words(&[0, 0, 7, 4096]))),
        ("unmaps", message(3, &words(&[24, 2, 0, 0, 0, 0]))),
        ("resets", message(13, &[])),
        ("writes of a register", message(10, &words(&[0x1000, 0, 0, 4, 1]))),
    ];
    for (what, message) in floods {
        trial.hit(&format!("a flood of {what}"), |house| {
            let mut raw = Raw::agreed(&house.target());
            let sent = flood(&mut raw.0, &message);
            assert!(sent > message.len(), "nothing was taken");
            // Should it think better of it, nothing was lost: one reply for each message that was whole.
            raw.0.set_nonblocking(false).expect("sockets can");
            let (whole, rest) = (sent / message.len(), sent % message.len());
            let mut reader = Raw(raw.0.try_clone().expect("a duplicate"));
            let replies = std::thread::spawn(move || (0..whole).for_each(|_| drop(reader.answer())));
            raw.send(&message[rest..], &[]);
            replies.join().expect("as many replies");
            let _ = raw.answer();
            if rest == 0 {
                // The last one was a whole message.
                raw.0.shutdown(Shutdown::Both).expect("it is open");
            } else {
                raw.must_work("after its flood");
            }
        });
        trial.hit(&format!("a flood of {what}, and gone"), |house| {
            for shut in [None, Some(Shutdown::Read), Some(Shutdown::Write), Some(Shutdown::Both)] {
                let mut raw = Raw::agreed(&house.target());
                flood(&mut raw.0, &message);
                if let Some(shut) = shut {
                    raw.0.shutdown(shut).expect("it is open");
                }
            }
        });
    }
    trial.hit("a flood before the version", |house| {
        let mut raw = Raw::connect(&house.target());
        flood(&mut raw.0, &message(4, &words(&[16, 0, 0, 0])));
    });
    trial.case("a flood of writes that are not answered", |intruder, _| {
        for number in 0..50_000u32 {
            let offset = 0x14 + u64::from(number % 3) * 0x10;
            let bytes = if number % 3 == 0 { 0 } else { number }.to_le_bytes();
            intruder.client.region_write_posted(0, offset, &bytes).expect("the connection stays");
        }
    });
    trial.end();
}

#[test]
fn other_clients_wait_for_their_turn_or_are_sent_away() {
    let mut trial = Trial::begin("adaptive");
    trial.case("fifty others", |intruder, house| {
        let mut others: Vec<Raw> = (0..50).map(|_| Raw::connect(&house.target())).collect();
        for other in &mut others {
            // Some speak at once, whoever is there.
            let version = Version { major: 0, minor: 0, capabilities: Capabilities::default() };
            let _ = other.0.write_all(&Request::Version(version).to_bytes(1, false));
        }
        intruder.must_work("beside fifty others");
        for other in &mut others {
            other.must_be_closed("the controller has a client");
        }
        intruder.must_work("when they are gone");
    });
    trial.hit("one after the other, without a pause", |house| {
        for _ in 0..100 {
            drop(Intruder::connect(&house.target()));
        }
    });
    trial.end();
}

/// What a client says until its controller works.
fn script() -> Vec<(Vec<u8>, Option<OwnedFd>)> {
    let version = Version { major: 0, minor: 0, capabilities: Capabilities::default() };
    let write = |offset: u32, value: &[u32]| {
        let mut body = words(&[offset, 0, 0, value.len() as u32 * 4]);
        body.extend(words(value));
        message(10, &body)
    };
    let map = words(&[32, 3, 0, 0, 0, 0, 0x10_0000, 0, 0x10_0000, 0]);
    let mut messages = vec![
        (Request::Version(version).to_bytes(1, false), None),
        (message(4, &words(&[16, 0, 0, 0])), None),
        (message(2, &map), Some(memfd(1 << 20))),
        (message(8, &words(&[20, 4 | 32, 2, 0, 1])), Some(event())),
        (write(0x24, &[0x3f_003f]), None),
        (write(0x28, &[0x10_0000, 0]), None),
        (write(0x30, &[0x10_1000, 0]), None),
        (write(0x14, &[super::intruder::ENABLED]), None),
    ];
    messages.extend((1..20).map(|tail| (write(0x1000, &[tail]), None)));
    messages.push((message(13, &[]), None));
    messages.push((message(3, &words(&[24, 2, 0, 0, 0, 0])), None));
    messages
}

fn event() -> OwnedFd {
    let event = EventFd::new().expect("an eventfd");
    event.as_fd().try_clone_to_owned().expect("a duplicate")
}

#[test]
fn clients_that_vanish_at_any_byte_leave_nothing_behind() {
    let mut trial = Trial::begin("adaptive");
    let mut random = Random::seeded("vanishing clients");
    for _ in 0..20 {
        trial.hit("ten clients that vanish", |house| {
            for _ in 0..10 {
                let mut raw = Raw::connect(&house.target());
                let script = script();
                let last = random.below(script.len() as u64) as usize;
                for (number, (bytes, fd)) in script.iter().enumerate().take(last + 1) {
                    let fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
                    let end = if number == last {
                        1 + random.below(bytes.len() as u64)
                    } else {
                        bytes.len() as u64
                    };
                    raw.send(&bytes[..end as usize], &fds);
                }
                if random.one_in(3) {
                    let _ = raw.0.shutdown(*random.of(&[Shutdown::Read, Shutdown::Write, Shutdown::Both]));
                }
            }
        });
    }
    trial.end();
}

#[test]
fn messages_at_random_harm_nobody() {
    let mut trial = Trial::begin("adaptive");
    let mut random = Random::seeded("messages at random, NVMe");
    let pool: Vec<OwnedFd> =
        vec![memfd(1 << 20), memfd(0), event(), event(), rustix::pipe::pipe().expect("a pipe").0];
    for round in 0..10 {
        trial.hit(&format!("two thousand messages, round {round}"), |house| {
            let mut sent = 0;
            while sent < 2000 {
                let raw = Raw::connect(&house.target());
                sent += anything(raw, &mut random, &pool);
            }
        });
    }
    trial.end();
}

/// A connection on which true messages come, some of them changed, until it ends. How many.
fn anything(mut raw: Raw, random: &mut Random, pool: &[OwnedFd]) -> u32 {
    // Replies are thrown away by somebody else.
    let mut reader = raw.0.try_clone().expect("a duplicate");
    let drain = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    let script = script();
    let mut sent = 0;
    for number in 0..150 {
        let (bytes, fd) =
            if number < script.len() && !random.one_in(20) { &script[number] } else { random.of(&script) };
        let mut bytes = bytes.clone();
        if random.one_in(3) && number >= 8 {
            let at = random.below(bytes.len() as u64) as usize;
            // Lengths are wrong elsewhere: this stream is to go on.
            if !(4..8).contains(&at) || random.one_in(20) {
                bytes[at] = random.number() as u8;
            }
        }
        let mut fds: Vec<_> = fd.iter().map(|fd| fd.as_fd()).collect();
        if random.one_in(16) {
            fds = (0..random.below(4)).map(|_| random.of(pool).as_fd()).collect();
        }
        if try_send(&mut raw, &bytes, &fds).is_err() {
            break;
        }
        sent += 1;
    }
    let _ = raw.0.shutdown(Shutdown::Both);
    let _ = drain.join();
    sent + 1
}

fn try_send(raw: &mut Raw, bytes: &[u8], fds: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), ()> {
    use std::io::IoSlice;
    use std::mem::MaybeUninit;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    match sendmsg(&raw.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
        Ok(sent) => raw.0.write_all(&bytes[sent..]).map_err(drop),
        Err(Errno::PIPE | Errno::CONNRESET) => Err(()),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_client_that_goes_on_after_an_error_is_served() {
    let mut trial = Trial::begin("adaptive");
    trial.hit("errors and true messages in turns", |house| {
        let mut raw = Raw::agreed(&house.target());
        for round in 0..500 {
            assert_eq!(raw.asks(200, &[0; 5]), errno(Errno::NOTSUP));
            raw.must_work(&format!("round {round}"));
        }
    });
    trial.end();
}
