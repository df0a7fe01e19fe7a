//! Negotiation, status, configuration.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use mdev_protocol::vhost_user::{
    BackendMessage, Config, FrontendMessage as M, FrontendReply as R, ProtocolFeatures as P,
};
use mdev_protocol::virtio::feature::VIRTIO_F_RING_RESET;
use mdev_protocol::virtio::status::{DEVICE_NEEDS_RESET, FEATURES_OK};
use rustix::net::RecvFlags;

use super::House;
use super::front::{FEATURES, Front, state};
use crate::session::OFFERED_PROTOCOL_FEATURES as OFFERED;

#[test]
fn features_without_version_1_are_refused_and_no_ring_starts() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    front.refused(&mut house, M::SetFeatures(FEATURES & !(1 << 32)), &[]);
    front.tell(&mut house, M::SetStatus(0x0b));
    assert_eq!(front.status(&mut house), 0x0b & !u64::from(FEATURES_OK));
    front.start(&mut house, 0, 0);
    assert!(house.queues.running.is_empty());
    assert_eq!(front.status(&mut house) & u64::from(DEVICE_NEEDS_RESET), u64::from(DEVICE_NEEDS_RESET));
    front.base(&mut house, 0);
    front.done(&mut house, M::SetFeatures(FEATURES), &[]);
    front.start(&mut house, 0, 0);
    assert!(house.queues.is_running(1, 0));
}

#[test]
fn what_was_not_offered_cannot_be_negotiated() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(&mut house, OFFERED);
    front.refused(&mut house, M::SetFeatures(FEATURES | 1 << 34), &[]);
    front.refused(&mut house, M::SetFeatures(FEATURES | 1 << 26), &[]);
    front.refused(&mut house, M::SetProtocolFeatures(OFFERED | P::INFLIGHT_SHMFD), &[]);
    front.refused(&mut house, M::SetProtocolFeatures(OFFERED | P::from_bits_retain(1 << 63)), &[]);
    // What was agreed before still holds.
    assert_eq!(front.ask(&mut house, M::GetStatus), R::GetStatus(0));
}

#[test]
fn reset_of_single_rings_is_offered_where_the_operator_wants_it() {
    for wanted in [false, true] {
        let mut house = House::new(2);
        house.options.ring_reset = wanted;
        let mut front = house.connect();
        let R::GetFeatures(offered) = front.ask(&mut house, M::GetFeatures) else { panic!("features") };
        assert_eq!(offered & VIRTIO_F_RING_RESET != 0, wanted);
        let features = FEATURES | VIRTIO_F_RING_RESET;
        front.negotiate(&mut house, OFFERED);
        match wanted {
            true => front.done(&mut house, M::SetFeatures(features), &[]),
            false => front.refused(&mut house, M::SetFeatures(features), &[]),
        }
    }
}

#[test]
fn messages_whose_feature_was_not_negotiated_are_refused() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(&mut house, P::REPLY_ACK);
    for message in [M::SendRarp(1), M::NetSetMtu(1500), M::ResetDevice, M::SetStatus(1)] {
        front.refused(&mut house, message, &[]);
    }
    let (_ours, theirs) = UnixStream::pair().unwrap();
    front.refused(&mut house, M::SetBackendReqFd, &[theirs.as_fd()]);
    assert!(matches!(front.ask(&mut house, M::GetFeatures), R::GetFeatures(_)));
}

#[test]
fn a_value_that_cannot_be_given_is_answered_without_payload() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(&mut house, OFFERED);
    // The reply of GET_CONFIG has a form for that.
    for (offset, len) in [(60, 1), (0, 61), (u32::MAX, 256)] {
        let piece = Config::new(offset, 0, vec![0; len]).unwrap();
        assert_eq!(front.ask(&mut house, M::GetConfig(piece)), R::GetConfig(None));
    }
    // The others must not look like a value: twelve bytes of header and nothing else.
    let mut raw = [0u8; 64];
    for message in [M::GetInflightFd(Default::default()), M::GetVringBase(state(2, 0)), M::CheckDeviceState] {
        front.send(&message, &[], true);
        house.pump();
        let (_, len) = rustix::net::recv(front.link.as_fd(), &mut raw, RecvFlags::DONTWAIT).unwrap();
        assert_eq!(len, 12, "{message:?}");
        assert_eq!(raw[0], message.request().id() as u8);
        assert_eq!(raw[8..12], [0; 4]);
    }
    assert_eq!(front.status(&mut house), 0);
}

#[test]
fn network_messages_reach_the_device() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(&mut house, OFFERED);
    front.done(&mut house, M::NetSetMtu(9000), &[]);
    assert_eq!(house.device.mtu.load(Ordering::Relaxed), 9000);
    front.refused(&mut house, M::NetSetMtu(67), &[]);
    front.refused(&mut house, M::NetSetMtu(65536), &[]);
    front.done(&mut house, M::SendRarp(u64::from_le_bytes([2, 3, 4, 5, 6, 7, 0xff, 0xff])), &[]);
    assert_eq!(house.device.announced.load(Ordering::Relaxed), 0x0203_0405_0607);
    front.refused(&mut house, M::SetConfig(Config::new(0, 0, vec![1]).unwrap()), &[]);
}

fn received(channel: &UnixStream) -> Vec<u8> {
    let mut raw = [0u8; 4096];
    match rustix::net::recv(channel, &mut raw, RecvFlags::DONTWAIT) {
        Ok((_, len)) => raw[..len].to_vec(),
        Err(_) => Vec::new(),
    }
}

#[test]
fn a_change_of_the_configuration_is_told_once_a_ring_runs() {
    let mut house = House::new(2);
    let mut front = house.connect();
    house.session(1).configuration_changed();
    let _file = front.settle(&mut house);
    let (ours, theirs) = UnixStream::pair().unwrap();
    front.done(&mut house, M::SetBackendReqFd, &[theirs.as_fd()]);
    assert!(received(&ours).is_empty(), "a suspended device says nothing");
    front.start(&mut house, 0, 0);
    let change = BackendMessage::ConfigChangeMsg.to_bytes(false);
    assert_eq!(received(&ours), change);
    house.session(1).configuration_changed();
    assert_eq!(received(&ours), change);
}

#[test]
fn a_front_end_that_does_not_read_the_back_end_channel_loses_messages_only() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    let (ours, theirs) = UnixStream::pair().unwrap();
    front.done(&mut house, M::SetBackendReqFd, &[theirs.as_fd()]);
    front.start(&mut house, 0, 0);
    for _ in 0..100_000 {
        house.session(1).configuration_changed();
    }
    assert_eq!(front.status(&mut house), 0);
    // And one that closes it.
    drop((ours, theirs));
    for _ in 0..3 {
        house.session(1).configuration_changed();
    }
    assert_eq!(front.status(&mut house), 0);
}

#[test]
fn a_back_end_channel_that_is_no_stream_socket_is_refused() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(&mut house, OFFERED);
    let (_datagram, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
    front.refused(&mut house, M::SetBackendReqFd, &[theirs.as_fd()]);
    let (_read, write) = rustix::pipe::pipe().unwrap();
    front.refused(&mut house, M::SetBackendReqFd, &[write.as_fd()]);
}

#[test]
fn the_whole_status_byte_is_kept_and_nothing_larger() {
    let mut house = House::new(2);
    let mut front: Front = house.connect();
    front.negotiate(&mut house, OFFERED);
    front.done(&mut house, M::SetStatus(0x8f), &[]);
    front.refused(&mut house, M::SetStatus(0x100), &[]);
    assert_eq!(front.status(&mut house), 0x8f);
}
