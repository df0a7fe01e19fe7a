//! Notifications by messages, through the daemon: that they carry traffic, and what can be done to it by them.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use mdev_protocol::frame::{Connection, Received};
use mdev_protocol::vhost_user::{BackendMessage, Client, FrontendMessage as M, VringState};
use mdev_tests::stage::{Guest, GuestOptions, Traffic, WATCHDOG};

use super::daemon::House;

/// The front-end's end of the back-end channel.
struct Channel(Connection<BackendMessage>);

impl Channel {
    fn open(guest: &mut Guest) -> Channel {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        guest.front.client().set_backend_req_fd(theirs.as_fd()).expect("the channel is taken");
        Channel(Connection::new(ours))
    }

    /// What has come.
    fn said(&mut self) -> Vec<BackendMessage> {
        let mut said = Vec::new();
        while let Ok(Received::Message(frame)) = self.0.receive() {
            said.push(frame.message);
        }
        said
    }
}

/// A guest whose rings run and which has no eventfds for them.
fn guest(house: &House) -> (Guest, Channel) {
    let mut guest = Guest::over(house.connect(), GuestOptions::default());
    let channel = Channel::open(&mut guest);
    guest.share();
    for (index, queue) in [(0u8, &guest.port.rx), (1, &guest.port.tx)] {
        guest.front.start_in_band(index, queue, &guest.memory).expect("the ring starts");
    }
    (guest, channel)
}

/// Sends what there is room for, up to the frame of number `end`, and takes what has come back; kicks by message.
fn turn(guest: &mut Guest, end: u64) {
    if guest.port.send(end).expect("a device that keeps to the rules") {
        guest.front.kick_in_band(1).expect("a kick");
    }
    if guest.port.receive().expect("a device that keeps to the rules") {
        guest.front.kick_in_band(0).expect("a kick");
    }
    guest.port.rx.want_calls(true);
}

/// Sends so many frames and takes them back; waits for calls by message only. How many of them came.
fn exchange(guest: &mut Guest, channel: &mut Channel, frames: u64) -> usize {
    let end = guest.port.frames().0 + frames;
    let deadline = Instant::now() + WATCHDOG;
    let mut calls = 0;
    while guest.port.frames().1 < end {
        assert!(Instant::now() < deadline, "of {end} frames came {}", guest.port.frames().1);
        turn(guest, end);
        while guest.port.rx.ready().is_ok_and(|ready| ready == 0) && guest.port.frames().1 < end {
            let said = channel.said();
            assert!(said.iter().all(|message| matches!(message, BackendMessage::VringCall(_))), "{said:?}");
            calls += said.len();
            if !said.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "nobody calls");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
    calls
}

#[test]
fn frames_pass_when_kicks_and_calls_are_messages() {
    let house = House::open();
    let (mut guest, mut channel) = guest(&house);
    assert!(exchange(&mut guest, &mut channel, 2000) > 0, "no call came");
    for index in 0..2 {
        guest.front.stop(index).expect("it stops");
    }
    channel.said();
    drop((guest, channel));
    let victim = Traffic::of(house.guest());
    victim.must_go_on(50);
    house.close(victim);
}

#[test]
fn kicks_for_rings_that_are_not_there_and_floods_of_them_disturb_nobody() {
    let house = House::open();
    let victim = Traffic::of(house.guest());
    victim.must_go_on(50);
    let mut client = Client::new(house.connect(), WATCHDOG);
    client.set_protocol_features(mdevd::session::OFFERED_PROTOCOL_FEATURES).expect("what is offered");
    for round in 0..20_000u32 {
        let state = VringState { index: round.wrapping_mul(0x9e37_79b9) >> (round % 32), num: round };
        let kicked = client.call(&M::VringKick(state), &[]);
        assert_eq!(kicked.is_ok(), state.index < 2, "{state:?}");
        if round % 1000 == 0 {
            victim.must_go_on(10);
        }
    }
    drop(client);
    house.close(victim);
}

#[test]
fn calls_that_nobody_reads_hold_neither_the_guest_nor_anybody_else_up() {
    let house = House::open();
    let (mut guest, channel) = guest(&house);
    guest.port.rx.want_calls(true);
    let deadline = Instant::now() + WATCHDOG;
    let end = guest.port.frames().0 + 20_000;
    while guest.port.frames().1 < end {
        assert!(Instant::now() < deadline, "of {end} frames came {}", guest.port.frames().1);
        turn(&mut guest, end);
    }
    drop((guest, channel));
    let victim = Traffic::of(house.guest());
    victim.must_go_on(50);
    house.close(victim);
}
