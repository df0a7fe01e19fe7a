//! Front-ends that do not keep to the protocol, or do not read.

use std::os::fd::AsFd;

use mdev_protocol::frame::MAX_PENDING_BYTES;
use mdev_protocol::vhost_user::{FrontendMessage as M, FrontendReply as R, Header, ProtocolFeatures as P};
use rustix::net::{Shutdown, shutdown};
use zerocopy::IntoBytes;

use super::House;
use super::front::Front;
use crate::session::Session as _;
use crate::session::{OFFERED_PROTOCOL_FEATURES as OFFERED, SessionError};

fn send_raw(front: &mut Front, header: Header, body: &[u8]) {
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(body);
    front.link.send(&bytes, &[]).unwrap();
}

#[test]
fn a_front_end_that_does_not_read_is_not_read_from_and_holds_nobody() {
    let mut house = House::new(2);
    let mut deaf = house.connect();
    deaf.negotiate(&mut house, OFFERED);
    let mut other = house.connect();
    let _file = other.settle(&mut house);
    other.start(&mut house, 0, 0);
    // As much as the sockets take.
    while deaf.link.pending_output() == 0 {
        deaf.send(&M::GetFeatures, &[], true);
        house.turn(deaf.conn);
    }
    house.pump();
    let session = house.session(deaf.conn);
    assert!(!session.wants_read() && session.wants_write());
    assert!(session.link.pending_output() < MAX_PENDING_BYTES / 2);
    assert_eq!(other.status(&mut house), 0);

    // It thinks better of it: nothing was lost.
    let mut answers: u32 = 0;
    let mut quiet = false;
    house.pump_until(|_| {
        let before = answers;
        while let Some(reply) = deaf.receive() {
            assert!(matches!(reply, R::GetFeatures(_)));
            answers += 1;
        }
        let flushed = deaf.link.flush().unwrap();
        let done = quiet && flushed && answers == before;
        quiet = flushed && answers == before;
        done
    });
    assert!(answers > 100);
    assert_eq!(deaf.status(&mut house), 0);

    // And one that goes away instead is noticed.
    while deaf.link.pending_output() == 0 {
        deaf.send(&M::GetFeatures, &[], true);
        house.turn(deaf.conn);
    }
    drop(deaf);
    house.pump();
    assert!(house.ended.contains_key(&1));
    assert!(house.queues.is_running(2, 0));
}

#[test]
fn messages_nobody_knows_are_passed_over() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(&mut house, OFFERED);
    for id in [0, 45, 4711, u32::MAX] {
        send_raw(&mut front, Header::request(id, 24, true), &[7; 24]);
        house.pump();
        let (header, body) = raw_reply(&front);
        assert_eq!((header.request, body), (id, 1u64.to_ne_bytes().to_vec()));
        send_raw(&mut front, Header::request(id, 0, false), &[]);
        assert_eq!(front.status(&mut house), 0);
    }
}

fn raw_reply(front: &Front) -> (Header, Vec<u8>) {
    use zerocopy::FromBytes;
    let mut raw = [0u8; 4096];
    let (_, len) = rustix::net::recv(front.link.as_fd(), &mut raw, rustix::net::RecvFlags::DONTWAIT).unwrap();
    (Header::read_from_bytes(&raw[..12]).unwrap(), raw[12..len].to_vec())
}

#[test]
fn bodies_of_the_wrong_length_are_refused_and_the_stream_goes_on() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(&mut house, OFFERED);
    for (id, len) in [(8, 7), (9, 41), (2, 0), (5, 9), (37, 39), (39, 16), (3, 8)] {
        send_raw(&mut front, Header::request(id, len, true), &vec![0; len as usize]);
        house.pump();
        assert_eq!(front.receive(), Some(R::Ack { request: id, value: 1 }), "message {id}");
    }
    assert_eq!(front.status(&mut house), 0);
}

#[test]
fn messages_of_features_nobody_offered_are_refused() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(&mut house, OFFERED);
    let ring = super::front::state(0, 0);
    for message in [M::SetVringEndian(ring), M::PostcopyListen, M::CloseCryptoSession(0)] {
        front.refused(&mut house, message, &[]);
    }
    front.refused(&mut house, M::SetLogFd, &[super::front::eventfd().as_fd()]);
}

#[test]
fn a_stream_that_lost_its_frame_ends_the_connection_and_its_rings_only() {
    let broken = [
        Header { request: 1, flags: 0, size: 0 },
        Header { request: 1, flags: 2, size: 0 },
        Header::reply(1, 8),
        Header::request(1, u32::MAX, true),
    ];
    for header in broken {
        let mut house = House::new(2);
        let mut other = house.connect();
        let mut front = house.connect();
        let _file = front.settle(&mut house);
        front.start(&mut house, 0, 0);
        send_raw(&mut front, header, &[]);
        house.pump();
        assert!(matches!(house.ended.get(&2), Some(SessionError::Receive(_))), "{header:?}");
        assert!(front.is_cut());
        assert!(house.queues.running.is_empty());
        assert!(matches!(other.ask(&mut house, M::GetFeatures), R::GetFeatures(_)));
    }
}

#[test]
fn a_connection_that_ends_in_the_middle_of_a_message_ends() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(&mut house, P::empty());
    front.link.send(&Header::request(5, 40, true).as_bytes()[..7], &[]).unwrap();
    house.pump();
    assert_eq!(house.sessions.len(), 1, "it waits for the rest");
    shutdown(front.link.as_fd(), Shutdown::Write).unwrap();
    house.pump();
    assert!(house.sessions.is_empty());
}
