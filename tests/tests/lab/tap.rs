//! A device's two rings on a real tap interface, without a guest.

use mdev_protocol::virtio::net::{
    NetHeader, VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS,
};
use mdev_tests::lab::{Lab, Skip, Trial};
use mdev_tests::steady::{BURST, BURSTS, Cost, in_each_layout};
use mdevd::device::net::NetConfigError;
use mdevd::device::{Device, DropCause, VirtioDevice};
use mdevd::driver::datagram::{NEEDS_CSUM, datagram, sum};
use mdevd::link::TapError;
use mdevd::ring::RingError;

use crate::tap_pair::{GUEST, Pair, bring_up, device, ip, is_readable, network};

const OFFLOADS: u64 = VIRTIO_NET_F_CSUM
    | VIRTIO_NET_F_GUEST_CSUM
    | VIRTIO_NET_F_HOST_USO
    | VIRTIO_NET_F_GUEST_USO4
    | VIRTIO_NET_F_GUEST_USO6;
const PLAIN: NetHeader = NetHeader { flags: 0, csum_start: 0, csum_offset: 0, ..NEEDS_CSUM };

pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, body: fn()| {
        Trial::new(name, move |_: &Lab| -> Result<(), Skip> {
            network()?;
            body();
            Ok(())
        })
    };
    vec![
        trial("tap_frames_go_both_ways_in_any_number_of_buffers", any_number_of_buffers),
        trial("tap_wakes_its_worker_and_asks_for_room_only_when_it_is_missing", wake_ups),
        trial("tap_checksum_is_left_to_the_other_side_only_if_both_agreed", checksums),
        trial("tap_without_offloads_has_the_host_sum_and_cut_itself", without_offloads),
        trial("tap_datagrams_are_cut_by_whoever_comes_last", segmentation),
        trial("tap_frame_without_room_is_dropped_and_counted_and_the_next_one_fits", without_room),
        trial("tap_memory_that_is_lost_under_the_kernel_fails_the_queue_it_belongs_to", lost_memory),
        trial("tap_that_goes_down_is_told_and_drops_what_is_sent", down),
        trial("tap_guest_that_has_moved_here_is_announced_to_the_host", announced),
        trial("tap_frames_come_to_the_pairs_that_run", pairs_that_run),
        trial("tap_that_cannot_be_had_is_refused_in_clear_words", refused),
        trial("tap_burst_makes_one_system_call_a_frame_and_allocates_nothing", burst),
    ]
}

fn any_number_of_buffers() {
    let mut pair = Pair::new(VIRTIO_NET_F_MRG_RXBUF);
    for cuts in [&[][..], &[12], &[5, 20, 30], &[1; 40]] {
        let payload = vec![cuts.len() as u8; 300];
        pair.send(PLAIN, &datagram(&payload, true), cuts);
        pair.run();
        assert_eq!((pair.sent(), pair.counters(1).dropped()), (1, 0));
        assert_eq!(pair.heard(), Some(payload));
    }
    for (rooms, len, buffers) in [(1, 2048, 1), (8, 128, 4)] {
        let payload = vec![7; 350];
        pair.socket.send_to(&payload, GUEST).expect("it is sent");
        (0..rooms).for_each(|_| pair.offer(len, &[30, 40]));
        pair.run();
        let received = pair.received();
        let [(header, frame)] = &received[..] else { panic!("{received:?}") };
        assert_eq!((u16::from_le(header.num_buffers), &frame[42..]), (buffers, &payload[..]));
        assert!(pair.was_called());
    }
}

fn wake_ups() {
    let mut pair = Pair::new(0);
    let bell = pair.engine.bell().expect("a tap rings");
    pair.offer(2048, &[]);
    assert_eq!(pair.engine.poll(), 0);
    assert!(!pair.engine.arm() && !is_readable(&bell));
    assert!(pair.wants_no_kick(), "there is room, and no frame");
    pair.engine.disarm();
    for byte in [1, 2] {
        pair.socket.send_to(&[byte; 30], GUEST).expect("it is sent");
    }
    assert!(is_readable(&bell));
    pair.run();
    assert_eq!(pair.received().len(), 1);
    assert!(!pair.engine.arm());
    assert!(!pair.wants_no_kick(), "a frame waits for room");
    pair.offer(2048, &[]);
    assert!(pair.engine.arm());
    pair.engine.disarm();
    pair.run();
    assert_eq!(pair.received().len(), 1);
}

fn checksums() {
    let mut pair = Pair::new(OFFLOADS);
    pair.send(NEEDS_CSUM, &datagram(&[3; 100], false), &[12]);
    pair.send(PLAIN, &datagram(&[4; 100], false), &[12]);
    pair.run();
    assert_eq!(pair.heard(), Some(vec![3; 100]));
    assert_eq!(pair.heard(), None, "its checksum is wrong and nobody was asked to make it right");
    pair.offer(2048, &[]);
    pair.socket.send_to(&[5; 100], GUEST).expect("it is sent");
    pair.run();
    let received = pair.received();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].0, NetHeader { num_buffers: 1u16.to_le(), ..NEEDS_CSUM });
}

fn without_offloads() {
    let mut pair = Pair::new(0);
    pair.send(NEEDS_CSUM, &datagram(&[3; 100], false), &[12]);
    pair.run();
    assert_eq!((pair.drops(DropCause::Header), pair.heard()), (1, None));
    pair.offer(2048, &[]);
    pair.socket.send_to(&[5; 100], GUEST).expect("it is sent");
    pair.run();
    let received = pair.received();
    let [(header, frame)] = &received[..] else { panic!("{received:?}") };
    assert_eq!(*header, NetHeader { num_buffers: 1u16.to_le(), ..PLAIN });
    let pseudo = [&frame[26..34], &[0, 17], &frame[38..40], &frame[34..]].concat();
    assert_eq!(sum(&pseudo) % 0xffff, 0, "pseudo-header, header and payload sum to nothing");
}

fn segmentation() {
    let offered = device("vm0", 1).expect("a device").features();
    // A tap of Linux before 6.2 cuts none.
    if offered & VIRTIO_NET_F_HOST_USO == 0 {
        return assert_eq!(offered & (VIRTIO_NET_F_GUEST_USO4 | VIRTIO_NET_F_GUEST_USO6), 0);
    }
    let mut pair = Pair::new(OFFLOADS | VIRTIO_NET_F_MRG_RXBUF);
    let header = NetHeader { gso_type: 5, hdr_len: 42u16.to_le(), gso_size: 1000u16.to_le(), ..NEEDS_CSUM };
    pair.send(header, &datagram(&[6; 2500], false), &[12]);
    pair.run();
    let lens: Vec<_> = (0..3).map(|_| pair.heard().map(|datagram| datagram.len())).collect();
    assert_eq!(lens, [Some(1000), Some(1000), Some(500)]);
    assert_eq!(pair.counters(1).dropped(), 0);
}

fn without_room() {
    for (features, cause) in
        [(0, DropCause::ReceiverSmall), (VIRTIO_NET_F_MRG_RXBUF, DropCause::ReceiverFull)]
    {
        let mut pair = Pair::new(features);
        // A header and 100 bytes, of which 42 are the datagram's own headers.
        pair.offer(112, &[]);
        for len in [59, 58] {
            pair.socket.send_to(&[1; 59][..len], GUEST).expect("it is sent");
        }
        pair.run();
        assert_eq!(pair.received().len(), 1, "{cause}");
        assert_eq!(pair.counters(0).drops_by(cause), 1);
    }
}

fn lost_memory() {
    for queue in [0, 1] {
        let mut pair = Pair::new(0);
        pair.skip_a_page(queue);
        if queue == 0 {
            pair.offer(2048, &[20, 500]);
            pair.lose_buffers(queue);
            pair.socket.send_to(&[5; 1000], GUEST).expect("it is sent");
        } else {
            pair.send(PLAIN, &[0; 1000], &[]);
            pair.lose_buffers(queue);
        }
        pair.run();
        assert_eq!(pair.failed(queue), Some(RingError::Poisoned), "queue {queue}");
    }
}

fn down() {
    let mut pair = Pair::new(0);
    let watched = |pair: &Pair| is_readable(&pair.device.watched().expect("an interface is watched"));
    let is_up = |pair: &Pair| {
        let mut status = [0; 2];
        pair.device.config(6, &mut status).expect("the link's state");
        status[0] == 1
    };
    assert!(watched(&pair) && pair.device.look(), "it was brought up after it was made");
    assert!(is_up(&pair));
    assert!(!watched(&pair) && pair.device.features() & VIRTIO_NET_F_STATUS != 0);
    ip("link set vm0 down");
    assert!(watched(&pair) && pair.device.look());
    assert!(!is_up(&pair));
    pair.send(PLAIN, &datagram(&[1; 100], true), &[]);
    pair.run();
    assert_eq!((pair.sent(), pair.drops(DropCause::LinkDown)), (1, 1));
    ip("link set vm0 up");
    assert!(pair.device.look());
    pair.send(PLAIN, &datagram(&[2; 100], true), &[]);
    pair.run();
    assert_eq!(pair.heard(), Some(vec![2; 100]));
    ip("link del vm0");
    assert!(pair.device.look());
    assert!(!is_up(&pair));
    pair.offer(2048, &[]);
    pair.send(PLAIN, &datagram(&[3; 100], true), &[]);
    pair.run();
    assert_eq!(pair.drops(DropCause::LinkDown), 2, "no interface, and no failure either");
    assert_eq!(pair.failed(0), None);
}

fn announced() {
    let pair = Pair::new(0);
    let received = || -> Vec<u64> {
        let shown = ip("-s link show vm0");
        let row = shown.lines().skip_while(|line| !line.contains("RX:")).nth(1).expect("two lines of RX");
        row.split_whitespace().take(2).map(|word| word.parse().expect("a number")).collect()
    };
    let before = received();
    pair.device.rarp([2, 0, 0, 0, 0, 2]);
    assert_eq!(received(), [before[0] + 60, before[1] + 1], "one frame of 60 bytes");
}

fn pairs_that_run() {
    let device = device("vm0", 3).expect("a device");
    let turn =
        |runs: fn(u16) -> bool| (0..6).for_each(|queue| device.queue_turned(queue, 1 << 32, runs(queue)));
    for (runs, shown) in [
        ((|queue| queue == 4) as fn(u16) -> bool, "numqueues 1"),
        (|_| true, "numqueues 3"),
        (|_| false, "numdisabled 3"),
    ] {
        turn(runs);
        let attached = ip("-d link show vm0");
        assert!(attached.contains(shown), "{attached}");
    }
}

fn refused() {
    let open = |name, queue_pairs| match device(name, queue_pairs) {
        Err(NetConfigError::Tap(error)) => Some(error),
        Ok(_) => None,
        Err(error) => panic!("{error}"),
    };
    let lo = "lo".parse().expect("a name");
    assert_eq!(open("lo", 1), Some(TapError::Unfit { name: lo, multi_queue: false }));
    let held = device("vm0", 1).expect("a device");
    let vm0 = "vm0".parse().expect("a name");
    assert_eq!(open("vm0", 1), Some(TapError::InUse(vm0)));
    drop(held);
    ip("tuntap add dev vm0 mode tap vnet_hdr");
    assert_eq!(open("vm0", 1), None);
    let unfit = open("vm0", 2).expect("it has one queue");
    assert_eq!(unfit, TapError::Unfit { name: vm0, multi_queue: true });
    assert!(unfit.to_string().contains("multi_queue"), "{unfit}");
    ip("tuntap del dev vm0 mode tap");
    ip("tuntap add dev vm0 mode tap vnet_hdr multi_queue");
    assert_eq!((open("vm0", 2), open("vm0", 1)), (None, None), "it is there, and stays");
    let forbidden = TapError::Forbidden { name: vm0, multi_queue: true }.to_string();
    assert!(forbidden.contains("CAP_NET_ADMIN") && forbidden.contains("vnet_hdr multi_queue"), "{forbidden}");
}

fn burst() {
    let check = |what: &str, cost: Cost| {
        println!("{what}: {cost:?}");
        assert!(cost.packets >= u64::from(BURST * BURSTS) / 2, "{what}: {cost:?}");
        assert_eq!(cost.allocations, 0, "{what}: {cost:?}");
        let calls = cost.calls.expect("the kernel reports system calls to root");
        // The kernel takes one frame at a time from a tap's writer; and each burst asks once whether there is one to read.
        assert!(calls <= cost.packets + 2 * u64::from(BURSTS), "{what}: {cost:?}");
    };
    in_each_layout("tap=vm0", bring_up, check);
}
