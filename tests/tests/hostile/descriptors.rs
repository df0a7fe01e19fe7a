//! File descriptors that are missing, too many, of the wrong kind, closed, or in a state that makes them a trap.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use mdev_protocol::vhost_user::{FrontendMessage as M, FrontendReply as R, Header, MemoryTable, VringFd};
use mdev_tests::stage::{Guest, GuestOptions, Stage, Traffic};
use mdevd::driver::RingFds;
use mdevd::sys::EventFd;
use mdevd::worker::Mode;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use zerocopy::IntoBytes;

use super::files::{described, memfd};
use super::latched::{ATTACKED, Attacks, TX};

/// The most an eventfd's counter holds.
const FULL: u64 = u64::MAX - 1;

/// Sends a message as it is, and returns the acknowledgement or the reply.
fn ask(guest: &mut Guest, message: &M, fds: &[BorrowedFd<'_>]) -> R {
    let client = guest.front.client();
    client.send(message, fds, true).expect("the socket takes it");
    client.await_reply("a hostile message").expect("the stream goes on").message
}

fn must_be_refused(guest: &mut Guest, message: &M, fds: &[BorrowedFd<'_>]) {
    let reply = ask(guest, message, fds);
    assert_eq!(reply, R::Ack { request: message.request().id(), value: 1 }, "{message:?}");
}

/// Everything that is no eventfd but can be sent.
fn others() -> Vec<(&'static str, OwnedFd)> {
    let (one, other) = rustix::pipe::pipe().expect("a pipe");
    let (socket, _) = UnixStream::pair().expect("sockets");
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).expect("a timer");
    vec![
        ("a pipe's end to read", one),
        ("a pipe's end to write", other),
        ("a socket", socket.into()),
        ("a timer", timer),
        ("a memfd", memfd(4096)),
        ("a device", File::open("/dev/zero").expect("it is there").into()),
        ("a folder", File::open("/").expect("it is there").into()),
        (
            "a process",
            rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
                .expect("us"),
        ),
    ]
}

#[test]
fn what_is_no_eventfd_is_refused_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    for (what, other) in others() {
        let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
        let of = VringFd { index: TX as u8, has_fd: true };
        for message in [M::SetVringCall(of), M::SetVringErr(of), M::SetVringKick(of)] {
            must_be_refused(&mut guest, &message, &[other.as_fd()]);
            let line = attacks.stage.said("an eventfd is wanted");
            assert!(line.contains("is not an eventfd"), "{what}: {line}");
        }
        // A ring that runs goes on with what it had.
        guest.exchange(20);
        assert!(!guest.needs_reset(), "{what}");

        // One that was to be started with such a kick does not pretend to run.
        guest.front.stop(TX as u8).expect("it stops");
        must_be_refused(&mut guest, &M::SetVringKick(of), &[other.as_fd()]);
        assert!(guest.needs_reset(), "{what}");
        guest.must_err(TX);
        guest.start_anew();
        guest.exchange(20);
        assert!(!guest.needs_reset(), "{what}");
        attacks.leave(what, guest);
    }
    attacks.end();
}

#[test]
fn missing_and_surplus_descriptors_are_refused_and_closed_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let event = EventFd::new().expect("an eventfd");
    let memory = memfd(1 << 20);
    let with = |has_fd| VringFd { index: TX as u8, has_fd };
    let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    let region = described(&guest.memory.regions()[0]);
    let table = |count: usize| {
        let apart = |number: usize| {
            let by = (number as u64) << 20;
            let (guest_addr, user_addr) = ((1 << 40) + by, (1 << 44) + by);
            mdev_protocol::vhost_user::MemoryRegion { guest_addr, user_addr, size: 1 << 20, mmap_offset: 0 }
        };
        M::SetMemTable(MemoryTable::new((0..count).map(apart).collect()).expect("at most eight"))
    };
    let (the_event, the_memory) = (event, memory);
    let (event, memory) = (the_event.as_fd(), the_memory.as_fd());
    for (message, fds) in [
        (M::SetVringKick(with(true)), vec![]),
        (M::SetVringKick(with(true)), vec![event, event]),
        (M::SetVringKick(with(false)), vec![event]),
        (M::SetVringCall(with(true)), vec![]),
        (M::SetVringCall(with(false)), vec![event]),
        (M::SetVringErr(with(true)), vec![event; 8]),
        (M::AddMemReg(region), vec![]),
        (M::AddMemReg(region), vec![memory, memory]),
        (table(2), vec![]),
        (table(2), vec![memory]),
        (table(2), vec![memory; 3]),
        (table(8), vec![memory; 7]),
        (M::SetFeatures(0), vec![event]),
        (M::SetVringEnable(Default::default()), vec![event]),
        (M::SetBackendReqFd, vec![]),
        (M::SetBackendReqFd, vec![event, event]),
    ] {
        must_be_refused(&mut guest, &message, &fds);
        attacks.stage.said("file descriptors and");
        guest.exchange(5);
        // Refusals are logged at a bounded rate for each connection.
        attacks.leave("wrong numbers of descriptors", guest);
        guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    }
    attacks.leave("wrong numbers of descriptors", guest);
    drop((the_event, the_memory));
    attacks.end();
}

#[test]
fn more_descriptors_than_any_message_has_are_closed_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let event = EventFd::new().expect("an eventfd");
    // The kernel passes 253 at most.
    for count in [9, 64, 253] {
        let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
        let bytes = M::SetVringErr(VringFd { index: 0, has_fd: true }).to_bytes(true);
        send(&mut guest, &bytes, &vec![event.as_fd(); count]);
        let reply = guest.front.client().await_reply("a message with many descriptors");
        assert_eq!(reply.expect("the stream goes on").message, R::Ack { request: 14, value: 1 });
        attacks.stage.said("descriptors");
        guest.exchange(20);
        attacks.leave("more descriptors than any message has", guest);
    }
    drop(event);
    attacks.end();
}

/// Sends bytes and descriptors as no decent client does.
fn send(guest: &mut Guest, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    let client = guest.front.client();
    let sent = sendmsg(client.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::empty());
    assert_eq!(sent, Ok(bytes.len()));
}

#[test]
fn descriptors_in_the_middle_of_a_message_are_refused_and_closed() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let event = EventFd::new().expect("an eventfd");
    let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    let bytes = M::SetVringErr(VringFd { index: 0, has_fd: true }).to_bytes(true);
    send(&mut guest, &bytes[..Header::LEN + 3], &[]);
    send(&mut guest, &bytes[Header::LEN + 3..], &[event.as_fd()]);
    let reply = guest.front.client().await_reply("a torn message").expect("the stream goes on");
    assert_eq!(reply.message, R::Ack { request: 14, value: 1 });
    // What comes with bytes that are no message goes with them.
    send(&mut guest, Header::request(4711, 4, false).as_bytes(), &[event.as_fd()]);
    send(&mut guest, &[0; 4], &[event.as_fd()]);
    drop(event);
    guest.exchange(20);
    attacks.leave("descriptors in the middle", guest);
    attacks.end();
}

#[test]
fn a_front_end_that_closes_its_own_copies_takes_nothing_away() {
    let attacks = Attacks::begin(Mode::Event);
    let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    // The back-end has its own; without kicks from here a frame must be told of by the old ones.
    let kick = guest.fds[1].kick.as_fd().try_clone_to_owned().expect("a duplicate");
    let fresh = || RingFds::new().expect("eventfds");
    guest.fds = [fresh(), fresh()];
    guest.fds[1].kick = EventFd::from_fd(kick).expect("it is one");
    guest.exchange(100);
    attacks.leave("closed descriptors", guest);
    attacks.end();
}

#[test]
fn a_kick_that_is_always_readable_does_not_hold_the_worker() {
    for mode in [Mode::Adaptive, Mode::Event] {
        let attacks = Attacks::begin(mode);
        let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
        let semaphore = EventfdFlags::SEMAPHORE | EventfdFlags::CLOEXEC;
        let endless = eventfd(0, semaphore).expect("an eventfd");
        rustix::io::write(&endless, &FULL.to_ne_bytes()).expect("it takes that");
        for index in 0..2 {
            guest.front.client().set_vring_kick(index, Some(endless.as_fd())).expect("it is an eventfd");
        }
        attacks.victim.must_go_on(200);
        guest.fds[1].kick = EventFd::from_fd(endless).expect("it is an eventfd");
        guest.exchange(50);
        attacks.leave("an endless kick", guest);
        attacks.end();
    }
}

#[test]
fn a_storm_of_kicks_does_not_hold_the_worker() {
    let attacks = Attacks::begin(Mode::Event);
    let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let kick = &guest.fds[1].kick;
        let over = &over;
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                (0..100).for_each(|_| kick.signal());
                std::thread::yield_now();
            }
        });
        let _stop = StopOnDrop(over);
        attacks.victim.must_go_on(500);
    });
    guest.exchange(20);
    attacks.leave("a storm of kicks", guest);
    attacks.end();
}

struct StopOnDrop<'s>(&'s AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Fills the counter, so that one more signal does not fit.
fn fill(event: &EventFd) {
    event.drain();
    rustix::io::write(event, &FULL.to_ne_bytes()).expect("an empty counter takes that");
}

/// Makes everybody who writes to it wait, the device too: the flag belongs to the open file, which the front-end shares.
fn make_blocking(event: &EventFd) {
    let flags = fcntl_getfl(event).expect("it is open");
    fcntl_setfl(event, flags.difference(OFlags::NONBLOCK)).expect("flags can be changed");
}

#[test]
fn a_call_that_is_full_does_not_hold_the_worker() {
    let attacks = Attacks::begin(Mode::Adaptive);
    for blocking in [false, true] {
        for index in 0..2 {
            let mut guest = Guest::start(
                &attacks.stage,
                ATTACKED,
                GuestOptions { event_idx: false, ..Default::default() },
            );
            guest.exchange(20);
            let call = &guest.fds[index].call;
            if blocking {
                make_blocking(call);
            }
            fill(call);
            guest.port.rx.want_calls(true);
            guest.port.tx.want_calls(true);
            guest.port.send(20 + 20).expect("the ring is in order");
            guest.fds[1].kick.signal();
            guest.settle();
            attacks.victim.must_go_on(200);
            guest.exchange(20);
            attacks.leave("a call that is full", guest);
        }
    }
    attacks.end();
}

#[test]
fn an_err_that_is_full_does_not_hold_the_worker() {
    let attacks = Attacks::begin(Mode::Adaptive);
    for blocking in [false, true] {
        let guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
        let err = &guest.fds[usize::from(TX)].err;
        if blocking {
            make_blocking(err);
        }
        fill(err);
        super::latched::offer_head(&guest.port.tx, u16::MAX);
        guest.fds[1].kick.signal();
        let (index, _) = attacks.stage.failure(guest.conn);
        assert_eq!(index, TX);
        attacks.victim.must_go_on(200);
        attacks.leave("an err that is full", guest);
    }
    attacks.end();
}

#[test]
fn a_kick_that_waits_to_be_read_does_not_hold_the_worker() {
    let stage = Stage::of_two(Mode::Event);
    let victim = Traffic::of_victim(&stage);
    let mut guest = Guest::start(&stage, ATTACKED, GuestOptions::default());
    // Reading an empty one would wait.
    guest.fds.iter().for_each(|fds| make_blocking(&fds.kick));
    guest.exchange(100);
    victim.must_go_on(100);
    stage.leave(guest);
    stage.end(victim);
}
