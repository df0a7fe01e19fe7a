//! Pairs on a real tap interface, in a network that only the test's thread sees.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use mdev_protocol::virtio::net::{
    NetHeader, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_USO,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::pair::{HEADER, MEMORY, OUT, Pair, config};
use crate::device::net::header::{F_MRG_RXBUF, F_STATUS, F_VERSION_1};
use crate::device::net::{NetConfig, NetConfigError, NetDevice};
use crate::device::{Device, DropCause};
use crate::link::{LinkKind, TapError};
use crate::ring::RingError;
use crate::sys::tap::own_network;

const HOST: &str = "198.18.5.1:7";
const GUEST: &str = "198.18.5.2:9";
const OFFLOADS: u64 = VIRTIO_NET_F_CSUM
    | VIRTIO_NET_F_GUEST_CSUM
    | VIRTIO_NET_F_HOST_USO
    | VIRTIO_NET_F_GUEST_USO4
    | VIRTIO_NET_F_GUEST_USO6;

/// A thread with a network of its own, or the reason why there is none; in CI there has to be one.
fn network() -> bool {
    let has_ip = Command::new("ip").arg("-V").output().is_ok();
    let possible = has_ip && std::path::Path::new("/dev/net/tun").exists() && own_network();
    if !possible {
        let reason = "a tap interface needs root, /dev/net/tun and the program ip (package iproute2)";
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("skipped: {reason}");
    }
    possible
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

/// The sum of RFC 1071, word by word.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum = words.fold(0u32, |sum, word| (sum + word) % 0xffff);
    sum as u16
}

/// A datagram from the guest to the socket. Its checksum is that of the pseudo-header only, as offloading leaves it, or whole.
pub(super) fn datagram(payload: &[u8], whole: bool) -> Vec<u8> {
    let udp_len = 8 + payload.len() as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_len).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 5, 2, 198, 18, 5, 1]);
    let header_sum = (!sum(&ip)).to_be_bytes();
    ip[10..12].copy_from_slice(&header_sum);
    let mut udp = vec![0, 9, 0, 7];
    udp.extend(udp_len.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend([0, 17]);
    pseudo.extend(udp_len.to_be_bytes());
    let partial = sum(&pseudo);
    let all = !sum(&[pseudo, udp.clone()].concat());
    udp[6..8].copy_from_slice(&(if whole { all } else { partial }).to_be_bytes());
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend(ip);
    frame.extend(udp);
    frame
}

pub(super) const NEEDS_CSUM: NetHeader = NetHeader {
    flags: 1,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 34u16.to_le(),
    csum_offset: 6u16.to_le(),
    num_buffers: 0,
};

fn heard(socket: &UdpSocket) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 65_536];
    let len = socket.recv(&mut bytes).ok()?;
    bytes.truncate(len);
    Some(bytes)
}

#[test]
fn frames_go_both_ways_in_any_number_of_buffers() {
    if !network() {
        return;
    }
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
fn tap_wakes_its_worker_and_room_is_asked_for_only_when_it_is_missing() {
    if !network() {
        return;
    }
    let (mut pair, socket) = pair(0);
    let bell = pair.engine.bell().unwrap();
    let rings = || {
        let mut fds = [PollFd::new(&bell, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    };
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
fn checksum_is_left_to_the_other_side_only_if_both_agreed() {
    if !network() {
        return;
    }
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
fn without_offloads_the_host_sums_and_cuts_itself_and_the_guest_may_leave_nothing() {
    if !network() {
        return;
    }
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
fn datagrams_are_cut_by_whoever_comes_last() {
    if !network() {
        return;
    }
    let device = device(1);
    if device.features() & VIRTIO_NET_F_HOST_USO == 0 {
        return eprintln!("skipped: this kernel's tap cuts no datagrams");
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
fn frame_without_room_is_dropped_and_counted_and_the_next_one_fits() {
    if !network() {
        return;
    }
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
fn memory_that_is_lost_under_the_kernel_fails_the_queue_it_belongs_to() {
    if !network() {
        return;
    }
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
fn interface_that_goes_down_is_told_and_drops_what_is_sent() {
    if !network() {
        return;
    }
    let (mut pair, socket) = pair(0);
    let watched = |pair: &Pair| {
        let fd = pair.device.watched().unwrap();
        let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    };
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
fn guest_that_has_moved_here_is_announced_to_the_host() {
    if !network() {
        return;
    }
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
fn frames_come_to_the_pairs_that_run() {
    if !network() {
        return;
    }
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
fn interface_that_cannot_be_had_is_refused_in_clear_words() {
    if !network() {
        return;
    }
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
