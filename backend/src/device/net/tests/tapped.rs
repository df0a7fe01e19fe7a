//! Pairs on a real tap interface, in a network that only the test's thread sees. Where such a thing can be is the lab's to find
//! out: its trial `net_unit_tests_on_a_tap` runs all of these.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use super::packets::{NEEDS_CSUM, datagram, sum};
use super::pair::{HEADER, MEMORY, OUT, Pair, config, is_readable};
use crate::device::net::header::{F_MRG_RXBUF, F_STATUS, F_VERSION_1};
use crate::device::net::{NetConfig, NetConfigError, NetDevice};
use crate::device::{Device, DropCause};
use crate::link::{LinkKind, TapError};
use crate::ring::RingError;
use crate::sys::tap::own_network;
use mdev_protocol::virtio::net::{
    NetHeader, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_USO,
};

const HOST: &str = "198.18.5.1:7";
const GUEST: &str = "198.18.5.2:9";
const OFFLOADS: u64 = VIRTIO_NET_F_CSUM
    | VIRTIO_NET_F_GUEST_CSUM
    | VIRTIO_NET_F_HOST_USO
    | VIRTIO_NET_F_GUEST_USO4
    | VIRTIO_NET_F_GUEST_USO6;

/// Gives the calling thread a network of its own.
fn network() {
    assert!(own_network(), "a network of its own needs root: the lab looks before it runs these tests");
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

fn tap(name: &str) -> LinkKind {
    LinkKind::Tap(name.parse().unwrap())
}

fn device(queue_pairs: u16) -> NetDevice {
    NetDevice::new(NetConfig { queue_pairs, ..config(tap("vm0")) }).unwrap()
}

/// A pair that runs on an interface that is up, and a socket at the other end.
fn pair(features: u64) -> (Pair, UdpSocket) {
    let device = device(1);
    device.queue_turned(0, F_VERSION_1 | features, true);
    let mut pair = Pair::of(device, F_VERSION_1 | features);
    // Else the host has things of its own to say.
    std::fs::write("/proc/sys/net/ipv6/conf/vm0/disable_ipv6", "1").unwrap();
    ip("addr add 198.18.5.1/24 dev vm0");
    ip("link set vm0 address 02:00:00:00:00:01 up");
    ip("neigh add 198.18.5.2 lladdr 02:00:00:00:00:02 dev vm0");
    pair.start(0);
    pair.start(1);
    let socket = UdpSocket::bind(HOST).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    (pair, socket)
}

fn heard(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 65_536];
    let len = socket.recv(&mut bytes).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

#[test]
#[ignore = "needs root, /dev/net/tun and iproute2: the lab runs it"]
fn frames_go_both_ways_in_any_number_of_buffers() {
    network();
    let (mut pair, socket) = pair(F_MRG_RXBUF);
    for cuts in [&[][..], &[12], &[5, 20, 30], &[1; 40]] {
        let payload = vec![cuts.len() as u8; 300];
        pair.send_with(NetHeader::default(), &datagram(&payload, true), cuts);
        pair.run();
        assert_eq!((pair.sent(), pair.counters(1).dropped()), (1, 0));
        assert_eq!(heard(&socket), Some(payload));
    }
    for (rooms, buffers) in [(1, 1), (8, 4)] {
        let payload = vec![7; 350];
        socket.send_to(&payload, GUEST).unwrap();
        assert!(pair.counters(0).packets < 2);
        (0..rooms).for_each(|_| pair.offer_cut(if rooms == 1 { 2048 } else { 128 }, &[30, 40]));
        pair.run();
        let received = pair.received();
        assert_eq!(received.len(), 1);
        assert_eq!((received[0].0, &received[0].1[42..]), (buffers, &payload[..]));
        assert!(pair.was_called(0));
    }
}

#[test]
#[ignore = "needs root, /dev/net/tun and iproute2: the lab runs it"]
fn tap_wakes_its_worker_and_room_is_asked_for_only_when_it_is_missing() {
    network();
    let (mut pair, socket) = pair(0);
    let bell = pair.engine.bell().unwrap();
    let rings = || is_readable(&bell);
    pair.offer(1, 2048);
    assert_eq!(pair.engine.poll(), 0);
    assert!(!pair.engine.arm() && !rings());
    assert_eq!(pair.guest.word(pair.rx.used), 1, "there is room, and no frame");
    pair.engine.disarm();
    socket.send_to(&[1; 30], GUEST).unwrap();
    socket.send_to(&[2; 30], GUEST).unwrap();
    assert!(rings());
    pair.run();
    assert_eq!(pair.received().len(), 1);
    assert!(!pair.engine.arm());
    assert_eq!(pair.guest.word(pair.rx.used), 0, "a frame waits for room");
    pair.offer(1, 2048);
    assert!(pair.engine.arm());
    pair.engine.disarm();
    pair.run();
    assert_eq!(pair.received().len(), 1);
}

#[test]
#[ignore = "needs root, /dev/net/tun and iproute2: the lab runs it"]
fn checksum_is_left_to_the_other_side_only_if_both_agreed() {
    network();
    let (mut pair, socket) = pair(OFFLOADS);
    pair.send_with(NEEDS_CSUM, &datagram(&[3; 100], false), &[12]);
    pair.send_with(NetHeader::default(), &datagram(&[4; 100], false), &[12]);
    pair.run();
    assert_eq!(heard(&socket), Some(vec![3; 100]));
    assert_eq!(heard(&socket), None, "its checksum is wrong and nobody was asked to make it right");
    pair.offer(2, 2048);
    socket.send_to(&[5; 100], GUEST).unwrap();
    pair.run();
    let received = pair.received_with();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].0, NetHeader { num_buffers: 1u16.to_le(), ..NEEDS_CSUM });
}

#[test]
#[ignore = "needs root, /dev/net/tun and iproute2: the lab runs it"]
fn without_offloads_the_host_sums_and_cuts_itself_and_the_guest_may_leave_nothing() {
    network();
    let (mut pair, socket) = pair(0);
    pair.send_with(NEEDS_CSUM, &datagram(&[3; 100], false), &[12]);
    pair.run();
    assert_eq!((pair.drops(DropCause::Header), heard(&socket)), (1, None));
    pair.offer(1, 2048);
    socket.send_to(&[5; 100], GUEST).unwrap();
    pair.run();
    let (_, frame) = pair.received().remove(0);
    let mut covered = frame[26..34].to_vec();
    covered.extend([0, 17, 0, 108]);
    covered.extend(&frame[34..]);
    assert_eq!(sum(&covered) % 0xffff, 0, "header and payload sum to nothing");
}

#[test]
#[ignore = "needs root, /dev/net/tun and iproute2: the lab runs it"]
fn datagrams_are_cut_by_whoever_comes_last() {
    network();
    let device = device(1);
    // A tap of Linux before 6.2 cuts none.
    if device.features() & VIRTIO_NET_F_HOST_USO == 0 {
        return assert_eq!(device.features() & (VIRTIO_NET_F_GUEST_USO4 | VIRTIO_NET_F_GUEST_USO6), 0);
    }
    drop(device);
    let (mut pair, socket) = pair(OFFLOADS | F_MRG_RXBUF);
    let header = NetHeader { gso_type: 5, hdr_len: 42u16.to_le(), gso_size: 1000u16.to_le(), ..NEEDS_CSUM };
    pair.send_with(header, &datagram(&[6; 2500], false), &[12]);
    pair.run();
    let lens: Vec<_> = (0..3).map(|_| heard(&socket).map(|datagram| datagram.len())).collect();
    assert_eq!(lens, [Some(1000), Some(1000), Some(500)]);
    assert_eq!(pair.counters(1).dropped(), 0);
}

#[test]
#[ignore = "needs root, /dev/net/tun and iproute2: the lab runs it"]
fn frame_without_room_is_dropped_and_counted_and_the_next_one_fits() {
    network();
    for (features, cause) in [(0, DropCause::ReceiverSmall), (F_MRG_RXBUF, DropCause::ReceiverFull)] {
        let (mut pair, socket) = pair(features);
        pair.offer(1, HEADER + 100);
        socket.send_to(&[1; 59], GUEST).unwrap();
        socket.send_to(&[2; 58], GUEST).unwrap();
        pair.run();
        assert_eq!(pair.received().len(), 1, "{cause}");
        assert_eq!(pair.counters(0).drops_by(cause), 1);
        drop(pair);
    }
}

#[test]
#[ignore = "needs root, /dev/net/tun and iproute2: the lab runs it"]
fn memory_that_is_lost_under_the_kernel_fails_the_queue_it_belongs_to() {
    network();
    for queue in [0, 1] {
        let (mut pair, socket) = pair(0);
        if queue == 0 {
            pair.offer_cut(2048, &[20, 500]);
            pair.shrink(OUT + 0x1000);
            socket.send_to(&[5; 1000], GUEST).unwrap();
        } else {
            pair.send_at(MEMORY - 4096, 1000, &[]);
            pair.shrink(MEMORY - 4096);
        }
        pair.run();
        assert_eq!(pair.failed(queue), Some(RingError::Poisoned), "queue {queue}");
        assert!(pair.err_was_written(queue.into()));
        drop(pair);
    }
}

#[test]
#[ignore = "needs root, /dev/net/tun and iproute2: the lab runs it"]
fn interface_that_goes_down_is_told_and_drops_what_is_sent() {
    network();
    let (mut pair, socket) = pair(0);
    let watched = |pair: &Pair| is_readable(&pair.device.watched().unwrap());
    let status = |pair: &Pair| {
        let mut status = [0; 2];
        pair.device.config(6, &mut status).unwrap();
        status[0]
    };
    assert!(watched(&pair) && pair.device.look(), "it was brought up after it was made");
    assert_eq!(status(&pair), 1);
    assert!(!watched(&pair) && pair.device.features() & F_STATUS != 0);
    ip("link set vm0 down");
    assert!(watched(&pair) && pair.device.look());
    assert_eq!(status(&pair), 0);
    pair.send_with(NetHeader::default(), &datagram(&[1; 100], true), &[]);
    pair.run();
    assert_eq!((pair.sent(), pair.drops(DropCause::LinkDown)), (1, 1));
    ip("link set vm0 up");
    assert!(pair.device.look());
    pair.send_with(NetHeader::default(), &datagram(&[2; 100], true), &[]);
    pair.run();
    assert_eq!(heard(&socket), Some(vec![2; 100]));
    ip("link del vm0");
    assert!(pair.device.look());
    assert_eq!(status(&pair), 0);
    pair.offer(1, 2048);
    pair.send_with(NetHeader::default(), &datagram(&[3; 100], true), &[]);
    pair.run();
    assert_eq!(pair.drops(DropCause::LinkDown), 2, "no interface, and no failure either");
    assert_eq!(pair.failed(0), None);
}

#[test]
#[ignore = "needs root, /dev/net/tun and iproute2: the lab runs it"]
fn guest_that_has_moved_here_is_announced_to_the_host() {
    network();
    let (pair, _socket) = pair(0);
    let received = || {
        let shown = Command::new("ip").args(["-s", "link", "show", "vm0"]).output().unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let row = shown.lines().skip_while(|line| !line.contains("RX:")).nth(1).unwrap().to_owned();
        row.split_whitespace().take(2).map(|word| word.parse::<u64>().unwrap()).collect::<Vec<_>>()
    };
    let before = received();
    pair.device.rarp([2, 0, 0, 0, 0, 2]);
    assert_eq!(received(), [before[0] + 60, before[1] + 1], "one frame of 60 bytes");
}

#[test]
#[ignore = "needs root, /dev/net/tun and iproute2: the lab runs it"]
fn frames_come_to_the_pairs_that_run() {
    network();
    let device = device(3);
    (0..6).for_each(|queue| device.queue_turned(queue, F_VERSION_1, queue == 4));
    let attached = || {
        let queues = Command::new("ip").args(["-d", "link", "show", "vm0"]).output().unwrap();
        String::from_utf8_lossy(&queues.stdout).into_owned()
    };
    assert!(attached().contains("numqueues 1"), "{}", attached());
    (0..6).for_each(|queue| device.queue_turned(queue, F_VERSION_1, true));
    assert!(attached().contains("numqueues 3"), "{}", attached());
    (0..6).for_each(|queue| device.queue_turned(queue, F_VERSION_1, false));
    assert!(attached().contains("numdisabled 3"), "{}", attached());
}

#[test]
#[ignore = "needs root, /dev/net/tun and iproute2: the lab runs it"]
fn interface_that_cannot_be_had_is_refused_in_clear_words() {
    network();
    let open = |name, queue_pairs| match NetDevice::new(NetConfig { queue_pairs, ..config(tap(name)) }) {
        Err(NetConfigError::Tap(error)) => Some(error),
        Ok(_) => None,
        Err(error) => panic!("{error}"),
    };
    let lo = "lo".parse().unwrap();
    assert_eq!(open("lo", 1), Some(TapError::Unfit { name: lo, multi_queue: false }));
    let held = device(1);
    let vm0 = "vm0".parse().unwrap();
    assert_eq!(open("vm0", 1), Some(TapError::InUse(vm0)));
    drop(held);
    ip("tuntap add dev vm0 mode tap vnet_hdr");
    assert_eq!(open("vm0", 1), None);
    let unfit = open("vm0", 2).unwrap();
    assert_eq!(unfit, TapError::Unfit { name: vm0, multi_queue: true });
    assert!(unfit.to_string().contains("multi_queue"), "{unfit}");
    ip("tuntap del dev vm0 mode tap");
    ip("tuntap add dev vm0 mode tap vnet_hdr multi_queue");
    assert_eq!((open("vm0", 2), open("vm0", 1)), (None, None), "it is there, and stays");
    let forbidden = TapError::Forbidden { name: vm0, multi_queue: true }.to_string();
    assert!(forbidden.contains("CAP_NET_ADMIN") && forbidden.contains("vnet_hdr multi_queue"), "{forbidden}");
}
