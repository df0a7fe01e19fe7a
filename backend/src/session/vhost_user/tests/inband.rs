//! Kicks, calls and failures as messages instead of eventfds.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use mdev_protocol::frame::{Connection, Received};
use mdev_protocol::vhost_user::{
    BackendMessage, FrontendMessage as M, ProtocolFeatures, VringFd, VringState,
};

use super::House;
use super::front::{Front, USER, eventfd, ring_at, state, with_fd};
use super::mock::Note;
use crate::ring::RingError;
use crate::session::Session as _;
use crate::sys::Kicks;

/// The front-end's end of the back-end channel.
struct Channel(Connection<BackendMessage>);

impl Channel {
    fn open(house: &mut House, front: &mut Front) -> Channel {
        let (ours, theirs) = UnixStream::pair().unwrap();
        front.done(house, M::SetBackendReqFd, &[theirs.as_fd()]);
        Channel(Connection::new(ours))
    }

    fn said(&mut self) -> Vec<BackendMessage> {
        let mut said = Vec::new();
        while let Received::Message(frame) = self.0.receive().unwrap() {
            said.push(frame.message);
        }
        said
    }
}

fn call(index: u32) -> BackendMessage {
    BackendMessage::VringCall(VringState { index, num: 0 })
}

fn err(index: u32) -> BackendMessage {
    BackendMessage::VringErr(VringState { index, num: 0 })
}

/// A ring that was described, and started by an in-band kick; nothing was said of eventfds.
fn start(house: &mut House, front: &mut Front, index: u32) {
    front.tell(house, M::SetVringNum(state(index, 256)));
    front.tell(house, M::SetVringBase(state(index, 0)));
    front.tell(house, M::SetVringAddr(ring_at(index, USER)));
    front.done(house, M::VringKick(state(index, 0)), &[]);
    front.done(house, M::SetVringEnable(state(index, 1)), &[]);
}

/// What a worker does when it has used buffers and the driver wants to know.
fn used(house: &House, index: u16) {
    house.queues.running[&index].call.as_ref().expect("it is called somehow").call();
}

#[test]
fn kick_by_message_starts_a_ring_and_reaches_its_worker() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    start(&mut house, &mut front, 0);
    assert!(house.queues.is_running(front.conn, 0));
    let kick = house.queues.running[&0].kick.clone().expect("the worker can be woken");
    assert_eq!(kick.drain(), Kicks::Some(1), "there may be work already");
    front.done(&mut house, M::VringKick(state(0, 0)), &[]);
    front.tell(&mut house, M::VringKick(state(0, 0)));
    assert_eq!(kick.drain(), Kicks::Some(2));

    assert_eq!(front.base(&mut house, 0), 0);
    assert!(!house.queues.is_running(front.conn, 0));
    front.tell(&mut house, M::VringKick(state(0, 0)));
    assert!(house.queues.is_running(front.conn, 0), "a kick starts a ring that was stopped");
}

#[test]
fn calls_are_messages_until_the_front_end_says_otherwise() {
    let mut house = House::new(4);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    let mut channel = Channel::open(&mut house, &mut front);
    start(&mut house, &mut front, 0);
    start(&mut house, &mut front, 3);
    for index in [3, 0, 3] {
        used(&house, index);
        assert!(house.session(1).notices().is_some());
        house.session(1).say_in_band();
        assert_eq!(channel.said(), [call(index.into())]);
    }
    house.session(1).say_in_band();
    assert_eq!(channel.said(), [], "each call is told once");

    let event = eventfd();
    front.done(&mut house, M::SetVringCall(with_fd(3)), &[event.as_fd()]);
    assert!(house.queues.take_notes().contains(&Note::Call { index: 3, some: true }));
    front.done(&mut house, M::SetVringCall(VringFd { index: 0, has_fd: false }), &[]);
    assert!(house.queues.take_notes().contains(&Note::Call { index: 0, some: false }), "it polls");
    house.session(1).say_in_band();
    assert_eq!(channel.said(), []);
}

#[test]
fn call_comes_before_the_reply_that_the_ring_has_stopped_and_none_after_it() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    let mut channel = Channel::open(&mut house, &mut front);
    start(&mut house, &mut front, 0);
    used(&house, 0);
    let event = house.queues.running[&0].call.clone().unwrap();
    front.base(&mut house, 0);
    assert_eq!(channel.said(), [call(0)]);
    event.call();
    house.session(1).say_in_band();
    assert_eq!(channel.said(), [], "a suspended device says nothing");
}

#[test]
fn failure_is_a_message_unless_there_is_an_eventfd_for_it() {
    let mut house = House::new(4);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    let mut channel = Channel::open(&mut house, &mut front);
    start(&mut house, &mut front, 0);
    let event = eventfd();
    front.done(&mut house, M::SetVringErr(with_fd(1)), &[event.as_fd()]);
    start(&mut house, &mut front, 1);
    for index in [0, 1] {
        house.session(1).queue_failed(index, &RingError::Poisoned);
    }
    assert_eq!(channel.said(), [err(0)]);
}

#[test]
fn without_the_feature_nothing_is_a_message() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(
        &mut house,
        super::super::OFFERED_PROTOCOL_FEATURES - ProtocolFeatures::INBAND_NOTIFICATIONS,
    );
    front.refused(&mut house, M::VringKick(state(0, 0)), &[]);
    assert!(house.session(1).notices().is_none());
}

#[test]
fn kicks_for_rings_that_do_not_exist_or_are_not_described_start_nothing() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    for index in [2, 255, 256, 0x1_0000, u32::MAX] {
        front.refused(&mut house, M::VringKick(state(index, 0)), &[]);
    }
    for _ in 0..1000 {
        front.tell(&mut house, M::VringKick(state(0, 0)));
    }
    assert!(house.queues.running.is_empty());
    assert_eq!(front.status(&mut house), 0);
    start(&mut house, &mut front, 0);
    assert!(house.queues.is_running(front.conn, 0));
    // A ring that was told to be polled is not woken by anybody.
    front.done(&mut house, M::SetVringKick(VringFd { index: 1, has_fd: false }), &[]);
    front.done(&mut house, M::VringKick(state(1, 0)), &[]);
}

#[test]
fn front_end_that_does_not_read_its_channel_is_told_once_when_it_does() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    let mut channel = Channel::open(&mut house, &mut front);
    start(&mut house, &mut front, 0);
    start(&mut house, &mut front, 1);
    for _ in 0..100_000 {
        used(&house, 0);
        house.session(1).say_in_band();
    }
    used(&house, 1);
    house.session(1).say_in_band();
    assert_eq!(front.status(&mut house), 0, "nobody else is held up");
    let mut said = Vec::new();
    while {
        let more = channel.said();
        said.extend_from_slice(&more);
        house.session(1).say_in_band();
        !more.is_empty()
    } {}
    assert!(said.len() < 100_000, "{}", said.len());
    assert!(said.contains(&call(1)), "the last call was lost");
    used(&house, 0);
    house.session(1).say_in_band();
    assert_eq!(channel.said(), [call(0)]);

    drop(channel);
    for _ in 0..3 {
        used(&house, 0);
        house.session(1).say_in_band();
    }
    assert_eq!(front.status(&mut house), 0);
}
