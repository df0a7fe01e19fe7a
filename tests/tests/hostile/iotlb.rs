//! Front-ends of guests behind an IOMMU that translate what cannot be, take everything back at any time, translate without an end, or
//! answer what nobody has asked.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use mdev_dma::Iova;
use mdev_pin::ResolveError;
use mdev_protocol::frame::{Connection, Received};
use mdev_protocol::vhost_user::{
    BackendMessage, BackendReply, BackendRequest, FrontendMessage as M, FrontendReply, Header, Iotlb,
    IotlbPerm,
};
use mdev_tests::random::Random;
use mdev_tests::stage::{Busy, Guest, GuestOptions, await_that};
use mdevd::ring::RingError;
use mdevd::session::MAX_IOTLB_ENTRIES;
use mdevd::worker::Mode;

use super::latched::{ATTACKED, Attacks, RX};

const BEHIND: GuestOptions =
    GuestOptions { size: 128, event_idx: true, indirect: true, apart: false, translated: true };
const RW: IotlbPerm = IotlbPerm::all();
const PAGE: u64 = 4096;
/// Addresses that no guest has memory at.
const FAR: u64 = 1 << 40;
/// Bytes of an acknowledgement.
const ACK: usize = Header::LEN + 8;
/// Questions that may be unanswered at a time.
const MAX_ASKED: u64 = 256;

/// A front-end's end of the back-end channel.
struct Channel(Connection<BackendMessage>);

impl Channel {
    fn of(guest: &mut Guest) -> Channel {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        guest.front.client().set_backend_req_fd(theirs.as_fd()).expect("a connected stream");
        Channel(Connection::new(ours))
    }

    /// The next question.
    fn asked(&mut self) -> Option<(u64, IotlbPerm)> {
        match self.0.receive().expect("the device keeps to the protocol") {
            Received::Message(frame) => match frame.message {
                BackendMessage::IotlbMsg(Iotlb::Miss { iova, perm }) => Some((iova, perm)),
                other => panic!("instead of a miss: {other:?}"),
            },
            Received::WouldBlock => None,
            other => panic!("{other:?}"),
        }
    }

    /// Says that a question is dealt with. False when that finds no room.
    fn answer(&mut self, value: u64) -> bool {
        let ack = BackendReply::Ack { request: BackendRequest::IotlbMsg.id(), value };
        self.0.send(&ack.to_bytes(), &[]).is_ok() && self.0.flush().is_ok_and(|sent| sent)
    }
}

fn update(iova: u64, size: u64, user_addr: u64, perm: IotlbPerm) -> M {
    M::IotlbMsg(Iotlb::Update { iova, size, user_addr, perm })
}

fn invalidate(iova: u64, size: u64) -> M {
    M::IotlbMsg(Iotlb::Invalidate { iova, size })
}

/// A guest whose rings run, and all of whose memory is translated: every address means itself.
fn behind_iommu(attacks: &Attacks, options: GuestOptions) -> (Guest, Channel) {
    let mut guest = Guest::connect(&attacks.stage, ATTACKED, options);
    let channel = Channel::of(&mut guest);
    guest.share();
    guest.start_rings();
    for (at, size) in regions(&guest) {
        guest.front.client().call(&update(at, size, at, RW), &[]).expect("it is in a region");
    }
    guest.exchange(20);
    (guest, channel)
}

/// First addresses and bytes of the guest's regions.
fn regions(guest: &Guest) -> Vec<(u64, u64)> {
    guest.memory.regions().iter().map(|region| (region.range.first().0, region.size())).collect()
}

/// The same message as a front-end writes it that does not look at what it says.
fn written(words: [u64; 3], perm: u8, kind: u8) -> Vec<u8> {
    let id = M::IotlbMsg(Iotlb::Invalidate { iova: 0, size: 0 }).request().id();
    let mut bytes = Vec::new();
    let header = Header::request(id, 32, true);
    for word in [header.request, header.flags, header.size] {
        bytes.extend(word.to_ne_bytes());
    }
    words.iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
    bytes.extend([perm, kind, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// Sends one message, and says whether it was obeyed.
fn obeyed(guest: &mut Guest, message: &[u8]) -> bool {
    socket(guest).write_all(message).expect("the back-end reads");
    let reply = guest.front.client().await_reply("IOTLB_MSG").expect("an acknowledgement");
    matches!(reply.message, FrontendReply::Ack { value: 0, .. })
}

fn socket(guest: &mut Guest) -> UnixStream {
    let copy = guest.front.client().as_fd().try_clone_to_owned().expect("a duplicate");
    UnixStream::from(copy)
}

/// Sends messages one after another, waiting for no reply, and says how many were refused. `look` is called now and then.
fn flood(guest: &mut Guest, messages: impl Iterator<Item = Vec<u8>>, mut look: impl FnMut()) -> u64 {
    let (mut writer, mut reader) = (socket(guest), socket(guest));
    let (sent, count) = std::sync::mpsc::channel::<usize>();
    let replies = std::thread::spawn(move || {
        let mut refused = 0;
        let mut reply = [0; ACK];
        for some in count {
            for _ in 0..some {
                reader.read_exact(&mut reply).expect("every message is acknowledged");
                refused += u64::from(reply[Header::LEN..] != [0; 8]);
            }
        }
        refused
    });
    let mut messages = messages.peekable();
    while messages.peek().is_some() {
        let some: Vec<Vec<u8>> = messages.by_ref().take(500).collect();
        // The reader is told first: the back-end reads only while its replies are read.
        sent.send(some.len()).expect("it listens");
        writer.write_all(&some.concat()).expect("the back-end reads");
        look();
    }
    drop(sent);
    replies.join().expect("every message is acknowledged")
}

/// The guest works as before, and when it has gone nothing of it is left.
fn end_well(attacks: Attacks, what: &str, mut guest: Guest, channel: Channel) {
    assert!(!guest.needs_reset());
    guest.settle();
    guest.exchange(50);
    attacks.leave(what, guest);
    assert_eq!(attacks.stage.translations().entries, 0);
    drop(channel);
    attacks.end();
}

#[test]
fn translations_that_cannot_be_are_refused_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let (mut guest, channel) = behind_iommu(&attacks, BEHIND);
    let (at, size) = regions(&guest)[0];
    let end = at + size;
    let before = attacks.stage.translations().entries;
    for (what, words, perm, kind) in [
        ("no byte", [FAR, 0, at], 3, 2),
        ("addresses that wrap", [u64::MAX - PAGE, 2 * PAGE, at], 3, 2),
        ("all addresses but the last", [0, u64::MAX, 0], 3, 2),
        ("user addresses that wrap", [FAR, 2 * PAGE, u64::MAX - PAGE], 3, 2),
        ("memory that is not there", [FAR, PAGE, FAR], 3, 2),
        ("memory behind a region", [FAR, PAGE, end], 3, 2),
        ("memory that ends behind a region", [FAR, 2 * PAGE, end - PAGE], 3, 2),
        ("one byte too many", [FAR, size + 1, at], 3, 2),
        ("no permission", [FAR, PAGE, at], 0, 2),
        ("a permission that nobody knows", [FAR, PAGE, at], 4, 2),
        ("every permission", [FAR, PAGE, at], 0xff, 2),
        ("no kind", [FAR, PAGE, at], 3, 0),
        ("a miss", [FAR, PAGE, at], 3, 1),
        ("an access that failed", [FAR, PAGE, at], 3, 4),
        ("a batch", [FAR, PAGE, at], 3, 5),
        ("a kind that nobody knows", [FAR, PAGE, at], 3, 0xff),
    ] {
        assert!(!obeyed(&mut guest, &written(words, perm, kind)), "{what} was obeyed");
        guest.exchange(5);
        attacks.victim.must_go_on(10);
    }
    assert_eq!(attacks.stage.translations().entries, before);
    assert!(!guest.needs_reset());
    attacks.leave("translations that cannot be", guest);
    drop(channel);
    attacks.end();
}

/// Takes translations back by this message, waits until the device asks for some, and gives them back.
fn take_back(attacks: &Attacks, busy: &mut Busy<'_>, iova: u64, size: u64) {
    let asked = attacks.stage.translations().misses;
    busy.front.client().call(&invalidate(iova, size), &[]).expect("there is nothing to refuse");
    await_that("the device asks for what it lacks", || attacks.stage.translations().misses > asked);
    for region in busy.memory.regions() {
        let (at, size) = (region.range.first().0, region.size());
        busy.front.client().call(&update(at, size, at, RW), &[]).expect("it is in a region");
    }
    let before = busy.received();
    await_that("traffic", || busy.received() > before + 50);
}

#[test]
fn everything_taken_back_under_traffic_is_asked_for_and_used_again() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let (mut guest, mut channel) = behind_iommu(&attacks, BEHIND);
    guest.churn(|busy| {
        for (iova, size) in [(0, u64::MAX), (0, 0), (u64::MAX, 1 << 63), (5, u64::MAX)].repeat(5) {
            // What begins at the last address takes nothing back of this guest.
            if iova == u64::MAX {
                busy.front.client().call(&invalidate(iova, size), &[]).expect("nothing to refuse");
            } else {
                take_back(&attacks, busy, iova, size);
            }
            attacks.victim.must_go_on(10);
            while channel.asked().is_some() {
                channel.answer(0);
            }
        }
    });
    assert!(!attacks.stage.has_failed(guest.conn));
    end_well(attacks, "everything taken back", guest, channel);
}

#[test]
fn a_flood_of_invalidations_and_updates_over_each_other_holds_nobody() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let (mut guest, channel) = behind_iommu(&attacks, BEHIND);
    let (at, size) = regions(&guest)[0];
    let mut random = Random::seeded("translations over each other");
    let perms = [IotlbPerm::READ, IotlbPerm::WRITE, RW];
    let messages = (0..20_000).map(|_| {
        // Among few pages, so that most touch some that are there; and none of those that the rings use.
        let (first, last) = (random.below(64), random.below(64));
        let (iova, len) = (FAR + first.min(last) * PAGE + random.below(7), 1 + random.below(9 * PAGE));
        let user = at + random.below(size - 16 * PAGE);
        let message = match random.below(4) {
            0 => invalidate(iova, len),
            1 => invalidate(iova, *random.of(&[0, 1, PAGE, 1 << 20])),
            _ => update(iova, len, user, *random.of(&perms)),
        };
        message.to_bytes(true)
    });
    // What begins there and has no length reaches to the end of all addresses, which is far behind the guest's memory.
    let refused = flood(&mut guest, messages, || attacks.victim.must_go_on(5));
    assert_eq!(refused, 0);
    end_well(attacks, "a flood", guest, channel);
}

/// Bytes of memory that this process has in use.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").expect("/proc is there");
    let pages = status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("a number") * PAGE
}

#[test]
fn translations_without_an_end_push_each_other_out_of_bounded_memory() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let (mut guest, channel) = behind_iommu(&attacks, BEHIND);
    let (at, size) = regions(&guest)[0];
    // One page after another, so that no two can be one.
    let message = |number: u64| {
        update(FAR + 2 * PAGE * number, PAGE, at + PAGE * (number % (size / PAGE)), RW).to_bytes(true)
    };
    let limit = MAX_IOTLB_ENTRIES as u64;
    let (fill, many) = (limit + limit / 8, 1_000_000);
    assert_eq!(flood(&mut guest, (0..fill).map(message), || attacks.victim.must_go_on(1)), 0);
    let full = resident();
    let refused = flood(&mut guest, (fill..many).map(message), || {
        assert!(attacks.stage.translations().entries <= limit);
        attacks.victim.must_go_on(1);
    });
    assert_eq!(refused, 0);
    let grown = resident().saturating_sub(full);
    assert!(grown < 32 << 20, "{grown} bytes more for translations that had to go");
    let line = attacks.stage.translations();
    assert!(line.entries <= limit && line.entries + line.evictions >= many, "{line:?}");

    // Its own were the oldest; what it needs is asked for, and pushes out others.
    guest.churn(|busy| take_back(&attacks, busy, FAR + PAGE, 1));
    end_well(attacks, "translations without an end", guest, channel);
}

#[test]
fn memory_that_is_translated_to_be_read_is_never_written() {
    let attacks = Attacks::begin(Mode::Adaptive);
    for mode in 0..2 {
        let (mut guest, mut channel) = behind_iommu(&attacks, GuestOptions { apart: true, ..BEHIND });
        guest.settle();
        let (at, size) = regions(&guest)[1];
        let call = |guest: &mut Guest, message| guest.front.client().call(&message, &[]).expect("a region");
        call(&mut guest, invalidate(at, size));
        while channel.asked().is_some() {
            channel.answer(0);
        }
        if mode == 0 {
            call(&mut guest, update(at, size, at, IotlbPerm::READ));
        } else {
            // Changed while it is there.
            call(&mut guest, update(at, size, at, RW));
            call(&mut guest, update(at, size, at, IotlbPerm::READ));
        }
        guest.port.send(guest.port.frames().0 + 1).expect("the ring is in order");
        // What the driver has there: older frames, and the one that is to replace one of them.
        let mut sent = vec![0; size as usize];
        guest.memory.slice(Iova(at), size).expect("it is the driver's").copy_to(&mut sent);
        guest.fds[1].kick.signal();
        let mut asked = None;
        await_that("the device asks whether it may write", || {
            asked = channel.asked().or(asked);
            asked.is_some_and(|(_, perm)| perm.contains(IotlbPerm::WRITE))
        });
        attacks.victim.must_go_on(20);
        assert!(!attacks.stage.has_failed(guest.conn), "it was not told that it may not");
        channel.answer(1);
        let denied = RingError::Memory(ResolveError::Permission);
        attacks.must_fail("memory to be read", &mut guest, RX, denied);
        let mut now = vec![0; sent.len()];
        guest.memory.slice(Iova(at), size).expect("it is the driver's").copy_to(&mut now);
        assert!(now == sent, "the device wrote there");
        attacks.leave("memory to be read", guest);
    }
    attacks.end();
}

#[test]
fn answers_to_what_nobody_asked_harm_nobody_else() {
    let attacks = Attacks::begin(Mode::Adaptive);
    for value in [0, 1] {
        let (mut guest, mut channel) = behind_iommu(&attacks, BEHIND);
        let mut unasked = 0;
        while unasked < 20_000 && channel.answer(value) {
            unasked += 1;
        }
        attacks.victim.must_go_on(50);
        guest.exchange(20);
        assert!(!guest.needs_reset(), "nothing was missing");
        // From here on its own questions are answered before they are asked: it may fail for want of a translation that comes too late.
        let conn = guest.conn;
        guest.churn(|busy| {
            let before = attacks.stage.translations().misses;
            busy.front.client().call(&invalidate(0, 0), &[]).expect("nothing to refuse");
            await_that("a question", || attacks.stage.translations().misses > before);
            attacks.victim.must_go_on(50);
            for region in busy.memory.regions() {
                let (at, size) = (region.range.first().0, region.size());
                busy.front.client().call(&update(at, size, at, RW), &[]).expect("it is in a region");
            }
            attacks.victim.must_go_on(50);
        });
        while attacks.stage.has_failed(conn) {
            assert_eq!(attacks.stage.failure(conn).1, RingError::Memory(ResolveError::Hole));
        }
        drop(channel);
        let _channel = Channel::of(&mut guest);
        guest.start_anew();
        for (at, size) in regions(&guest) {
            guest.front.client().call(&update(at, size, at, RW), &[]).expect("it is in a region");
        }
        guest.exchange(50);
        attacks.leave("answers to nothing", guest);
    }
    attacks.end();
}

#[test]
fn a_front_end_that_answers_no_question_is_not_asked_without_an_end() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let (mut guest, mut channel) = behind_iommu(&attacks, BEHIND);
    let asked = || attacks.stage.translations().misses;
    guest.churn(|busy| {
        let (at, size) = {
            let region = &busy.memory.regions()[0];
            (region.range.first().0, region.size())
        };
        for round in 0..2 * MAX_ASKED {
            let before = asked();
            busy.front.client().call(&invalidate(0, 0), &[]).expect("nothing to refuse");
            if before < MAX_ASKED {
                await_that("a question", || asked() > before || asked() == MAX_ASKED);
            }
            busy.front.client().call(&update(at, size, at, RW), &[]).expect("it is in a region");
            if round % 16 == 0 {
                let before = busy.received();
                await_that("traffic without an answer", || busy.received() > before + 5);
                attacks.victim.must_go_on(5);
            }
        }
    });
    assert!(asked() <= MAX_ASKED, "{} questions without an answer", asked());
    let mut heard = 0;
    while channel.asked().is_some() {
        assert!(channel.answer(0));
        heard += 1;
    }
    assert!(heard > 0 && heard <= MAX_ASKED, "{heard} questions");
    // It is asked again, and all is well.
    guest.settle();
    guest.churn(|busy| take_back(&attacks, busy, 0, 0));
    assert!(!attacks.stage.has_failed(guest.conn));
    end_well(attacks, "no answers", guest, channel);
}
