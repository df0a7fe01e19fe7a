//! Devices on one bridge.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mdev_protocol::virtio::net::NetHeader;

use super::pair::{HEADER, MEMORY, Pair, config, frame, is_readable};
use crate::device::net::header::{F_MRG_RXBUF, F_VERSION_1};
use crate::device::net::{Bridges, MAX_PORTS, NetConfig, NetConfigError, NetDevice};
use crate::device::{DropCause, Enabled};
use crate::driver::datagram::{NEEDS_CSUM, datagram};
use crate::link::{LinkKind, OFFLOADS};
use crate::ring::RingError;

const EVERYBODY: [u8; 6] = [0xff; 6];

fn peer(name: &str) -> NetConfig {
    config(LinkKind::Peer(name.parse().unwrap()))
}

fn guest(bridges: &Bridges) -> Pair {
    guest_with(bridges, F_MRG_RXBUF)
}

fn guest_with(bridges: &Bridges, features: u64) -> Pair {
    let device = NetDevice::among(peer("lan"), bridges).unwrap();
    let mut pair = Pair::of(device, F_VERSION_1 | features);
    pair.start(0);
    pair.start(1);
    pair
}

fn three() -> [Pair; 3] {
    let bridges = Bridges::default();
    [0, 1, 2].map(|_| guest(&bridges))
}

/// The address of a guest.
fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, number]
}

fn to(destination: [u8; 6], source: u8, len: usize) -> Vec<u8> {
    let mut bytes = frame(len, source);
    bytes[..6].copy_from_slice(&destination);
    bytes[6..12].copy_from_slice(&mac(source));
    bytes
}

/// Everybody is heard once, so that everybody is known.
fn introduced() -> [Pair; 3] {
    let mut guests = three();
    for (number, pair) in guests.iter_mut().enumerate() {
        pair.send_plain(&to(EVERYBODY, number as u8, 64));
        pair.run();
        assert_eq!(pair.sent(), 1);
    }
    guests
}

#[test]
fn frame_for_a_stranger_goes_to_all_and_for_one_who_was_heard_to_that_one() {
    let mut guests = three();
    guests.iter_mut().for_each(|pair| pair.offer(4, 2048));
    let [a, b, c] = &mut guests;
    a.send_plain(&to(mac(1), 0, 100));
    a.run();
    assert_eq!((a.received().len(), b.received().len(), c.received().len()), (0, 1, 1));
    let answer = to(mac(0), 1, 200);
    b.send_plain(&answer);
    b.run();
    assert_eq!(a.received(), [(1, answer)]);
    assert_eq!(c.received().len(), 0);
    a.send_plain(&to(mac(1), 0, 300));
    a.send_plain(&to([1, 0, 0x5e, 0, 0, 1], 0, 300));
    a.run();
    assert_eq!((b.received().len(), c.received().len()), (2, 1));
    assert_eq!(a.counters(1).dropped() + b.counters(1).dropped(), 0);
    assert!(a.was_called(0) && b.was_called(0) && a.was_called(1));
}

#[test]
fn devices_on_another_bridge_or_on_none_hear_nothing() {
    let bridges = Bridges::default();
    let mut a = guest(&bridges);
    let other = NetDevice::among(peer("dmz"), &bridges).unwrap();
    let mut other = Pair::of(other, F_VERSION_1);
    let mut apart = guest(&Bridges::default());
    for pair in [&mut other, &mut apart] {
        pair.start(1);
        pair.offer(4, 2048);
    }
    other.start(0);
    a.send_plain(&to(EVERYBODY, 0, 64));
    a.run();
    assert_eq!((other.received().len(), apart.received().len()), (0, 0));
    assert_eq!((a.sent(), a.drops(DropCause::NoReceiver)), (1, 1));
}

#[test]
fn long_frames_fill_as_many_buffers_as_they_need() {
    let [mut a, mut b, _c] = introduced();
    b.offer(8, 1526);
    let sent = to(mac(1), 0, 9014);
    a.send_with(NetHeader::default(), &sent, &[12, 1000, 4000]);
    a.run();
    assert_eq!(b.received(), [(6, sent)]);
}

#[test]
fn receiver_that_is_full_stopped_or_disabled_holds_nobody() {
    let [mut a, mut b, mut c] = introduced();
    b.offer(2, 2048);
    c.offer(8, 2048);
    (0..4).for_each(|_| a.send_plain(&to(mac(1), 0, 64)));
    a.send_plain(&to(mac(2), 0, 64));
    a.run();
    assert_eq!((a.sent(), b.received().len(), c.received().len()), (5, 2, 1));
    assert_eq!(a.drops(DropCause::ReceiverFull), 2 + 2, "two of these, and the words of introduction");
    let queue = b.engine.stop_queue(0).unwrap();
    assert_eq!(queue.ring.state().next_avail, 2);
    a.send_plain(&to(mac(1), 0, 64));
    a.send_plain(&to(EVERYBODY, 0, 64));
    a.run();
    assert_eq!((a.sent(), c.received().len(), a.drops(DropCause::NoReceiver)), (2, 1, 1));
    c.engine.with_queue(0, &mut |queue| queue.switch.set(Enabled::No));
    a.send_plain(&to(mac(2), 0, 64));
    a.run();
    assert_eq!((a.sent(), c.received().len(), a.drops(DropCause::NoReceiver)), (1, 0, 2));
}

#[test]
fn small_buffer_is_kept_for_a_frame_that_fits() {
    let bridges = Bridges::default();
    let (mut a, mut b) = (guest(&bridges), guest_with(&bridges, 0));
    b.offer(1, HEADER + 100);
    a.send_plain(&to(mac(1), 0, 101));
    a.send_plain(&to(mac(1), 0, 100));
    a.run();
    assert_eq!((b.received().len(), a.drops(DropCause::ReceiverSmall)), (1, 1));
}

#[test]
fn lost_memory_is_blamed_on_its_owner_and_the_others_go_on() {
    let [mut a, mut b, mut c] = introduced();
    for pair in [&mut b, &mut c] {
        pair.offer(4, 2048);
    }
    b.shrink(0x8000);
    a.send_plain(&to(EVERYBODY, 0, 64));
    a.run();
    let failed = |pair: &mut Pair, index| {
        let mut failed = None;
        pair.engine.with_queue(index, &mut |queue| failed = queue.failed);
        failed
    };
    assert_eq!(failed(&mut b, 0), Some(RingError::Poisoned));
    assert!(b.engine.needs_reset() && b.err_was_written(0));
    assert_eq!((a.sent(), c.received().len(), a.engine.needs_reset()), (1, 1, false));
    a.send_at(MEMORY - 4096, HEADER + 64, &[]);
    a.shrink(MEMORY - 4096);
    a.run();
    assert_eq!(failed(&mut a, 1), Some(RingError::Poisoned));
    assert_eq!((c.received().len(), c.engine.needs_reset()), (0, false));
}

#[test]
fn frames_before_a_chain_that_cannot_be_filled_are_called_for() {
    let [mut a, mut b, _c] = introduced();
    b.was_called(0);
    b.offer(1, 2048);
    b.offer_nowhere(2048);
    (0..2).for_each(|_| a.send_plain(&to(mac(1), 0, 64)));
    a.run();
    assert_eq!((b.received().len(), a.sent()), (1, 2));
    assert!(b.was_called(0));
}

#[test]
fn receive_queue_that_is_malformed_fails_alone_and_is_reported() {
    let [mut a, mut b, mut c] = introduced();
    c.offer(4, 2048);
    b.guest.set_word(b.rx.avail + 2, 40_000);
    let bells = [b.engine.bell().unwrap(), c.engine.bell().unwrap()];
    let rung = || bells.each_ref().map(is_readable);
    assert_eq!(rung(), [false, false]);
    a.send_plain(&to(EVERYBODY, 0, 64));
    a.run();
    assert_eq!(rung(), [true, false], "its engine may rest, and is not asked for anything");
    assert!(b.engine.needs_reset() && !c.engine.needs_reset());
    assert_eq!((a.sent(), c.received().len()), (1, 1));
    assert!(b.engine.stop_queue(0).is_some_and(|queue| queue.failed.is_some()));
    assert!(!b.engine.needs_reset(), "it is gone");
}

#[test]
fn what_a_sender_leaves_undone_is_left_to_those_who_take_it_and_done_for_the_others() {
    let bridges = Bridges::default();
    let mut a = guest_with(&bridges, OFFLOADS);
    let (mut takes, mut plain) = (guest_with(&bridges, OFFLOADS | F_MRG_RXBUF), guest(&bridges));
    for pair in [&mut takes, &mut plain] {
        pair.offer(16, 2048);
    }
    let partial = datagram(&[3; 100], false);
    a.send_with(NEEDS_CSUM, &partial, &[12]);
    let large = datagram(&[6; 2500], false);
    let header = NetHeader { gso_type: 5, hdr_len: 42u16.to_le(), gso_size: 1000u16.to_le(), ..NEEDS_CSUM };
    a.send_with(header, &large, &[12, 30]);
    a.run();
    assert_eq!((a.sent(), a.counters(1).dropped()), (2, 0));
    let with = |buffers: u16, header| NetHeader { num_buffers: buffers.to_le(), ..header };
    assert_eq!(takes.received_with(), [(with(1, NEEDS_CSUM), partial), (with(2, header), large)]);
    let received = plain.received();
    assert_eq!(received[0], (1, datagram(&[3; 100], true)));
    assert_eq!(received[1], (1, datagram(&[6; 1000], true)));
    let lens: Vec<_> = received.iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(lens, [142, 1042, 1042, 542]);
}

#[test]
fn what_was_not_agreed_on_or_is_not_as_it_says_is_dropped_at_its_sender() {
    let bridges = Bridges::default();
    let (mut modest, mut liar) = (guest(&bridges), guest_with(&bridges, OFFLOADS));
    let mut takes = guest_with(&bridges, OFFLOADS);
    takes.offer(16, 2048);
    modest.send_with(NEEDS_CSUM, &datagram(&[3; 100], false), &[]);
    modest.run();
    let header = NetHeader { gso_type: 1, hdr_len: 42u16.to_le(), gso_size: 50u16.to_le(), ..NEEDS_CSUM };
    liar.send_with(header, &datagram(&[3; 200], false), &[]);
    liar.run();
    assert_eq!((modest.drops(DropCause::Header), takes.received().len()), (1, 0));
    assert!(liar.drops(DropCause::Header) >= 1 && liar.sent() == 1);
}

#[test]
fn port_of_a_device_that_is_gone_is_free_and_nobody_is_on_it() {
    let bridges = Bridges::default();
    let devices: Vec<_> = (0..MAX_PORTS).map(|_| NetDevice::among(peer("lan"), &bridges).unwrap()).collect();
    let full = NetDevice::among(peer("lan"), &bridges).err();
    assert_eq!(full, Some(NetConfigError::Peers("lan".parse().unwrap())));
    drop(devices);
    let (mut a, mut b) = (guest(&bridges), guest(&bridges));
    a.offer(4, 2048);
    b.send_plain(&to(EVERYBODY, 1, 64));
    b.run();
    assert_eq!(a.received().len(), 1);
    drop(b);
    a.send_plain(&to(mac(1), 0, 64));
    a.run();
    assert_eq!((a.sent(), a.drops(DropCause::NoReceiver)), (1, 1));
    let mut c = guest(&bridges);
    c.offer(4, 2048);
    a.send_plain(&to(mac(1), 0, 64));
    a.run();
    assert_eq!(c.received().len(), 1, "it has the port of the one that is gone");
}

/// Two threads send to one receiver, which is stopped and started again all the while: what was sent has arrived whole, or
/// was dropped and counted. This is what explores the one mutex on the path; the table's words are independent of each other.
#[test]
fn what_many_workers_send_to_one_receiver_arrives_whole_or_is_counted() {
    const EACH: usize = 16;
    const WANTED: u64 = 500;
    const BUFFER: usize = 256;
    let [mut a, mut b, mut c] = three();
    c.offer(400, BUFFER);
    let over = AtomicBool::new(false);
    let send = |pair: &mut Pair, number: u8| {
        let mut sent = 0;
        while !over.load(Ordering::Acquire) {
            pair.begin_again();
            (0..EACH).for_each(|_| pair.send_plain(&to(mac(9), number, 100)));
            pair.run();
            sent += pair.sent() as u64;
            std::thread::yield_now();
        }
        sent
    };
    let mut receive = || {
        let (mut arrived, mut offered) = ([0u64; 2], 400usize);
        let give_up = Instant::now() + Duration::from_secs(60);
        let mut step = 0u32;
        while arrived.iter().any(|count| *count < WANTED) && Instant::now() < give_up {
            step += 1;
            if step.is_multiple_of(8) {
                let queue = c.engine.stop_queue(0).unwrap();
                assert_eq!(queue.failed, None);
                c.rx.start = queue.ring.state().next_avail;
                c.start(0);
            }
            for (buffers, bytes) in c.received() {
                let source = usize::from(bytes[11]);
                assert_eq!((buffers, &bytes), (1, &to(mac(9), source as u8, 100)));
                arrived[source] += 1;
                c.offer(1, BUFFER);
                offered += 1;
                // Long before a place comes round again its frame has been looked at.
                if offered.is_multiple_of(1600) {
                    c.begin_again();
                }
            }
            std::thread::yield_now();
        }
        over.store(true, Ordering::Release);
        arrived
    };
    let (sent, arrived) = std::thread::scope(|scope| {
        let (one, two) = (scope.spawn(|| send(&mut a, 0)), scope.spawn(|| send(&mut b, 1)));
        let arrived = scope.spawn(&mut receive).join().unwrap();
        ([one.join().unwrap(), two.join().unwrap()], arrived)
    });
    assert!(arrived.iter().all(|count| *count >= WANTED), "{arrived:?} of {sent:?}");
    // A copy for each of the two others; of those for one that is stopped nobody takes note.
    for (pair, (arrived, sent)) in [&a, &b].into_iter().zip(arrived.into_iter().zip(sent)) {
        let counted = arrived + pair.counters(1).dropped();
        assert!((sent..=2 * sent).contains(&counted), "{sent} sent, {counted} arrived or dropped");
    }
}
