//! Frames that go through whole, and frames that are dropped and counted.

use proptest::prelude::*;

use super::pair::{HEADER, MEMORY, OUT, Pair, frame};
use crate::device::{DropCause, Enabled};
use crate::link::{LinkKind, MAX_FRAME};

#[test]
fn null_takes_every_frame_and_counts_it() {
    let mut pair = Pair::new(LinkKind::Null, false);
    for len in [14, 64, 1514] {
        pair.send(&frame(len, 1));
    }
    assert_eq!(pair.run(), 3);
    assert_eq!(pair.sent(), 3);
    let counters = pair.counters(1);
    assert_eq!((counters.packets, counters.bytes, counters.dropped()), (3, 14 + 64 + 1514, 0));
    assert!(counters.polls >= 1 && counters.empty_polls >= 1);
    assert!(pair.was_called(1), "the driver wants to know");
}

#[test]
fn loopback_gives_frames_back_in_order() {
    for mergeable in [false, true] {
        let mut pair = Pair::new(LinkKind::Loopback, mergeable);
        let frames: Vec<_> = (0..40).map(|n| frame(60 + n, n as u8)).collect();
        for round in frames.chunks(8) {
            pair.offer(8, 2048);
            round.iter().for_each(|frame| pair.send(frame));
            pair.run();
            let expected: Vec<_> = round.iter().map(|frame| (1, frame.clone())).collect();
            assert_eq!(pair.received(), expected);
            assert_eq!(pair.sent(), 8);
        }
        assert_eq!(pair.counters(0).packets, 40);
        assert_eq!(pair.counters(0).bytes, pair.counters(1).bytes);
        assert!(pair.was_called(0) && pair.was_called(1));
    }
}

#[test]
fn long_frame_fills_as_many_chains_as_the_header_says() {
    let mut pair = Pair::new(LinkKind::Loopback, true);
    pair.offer(8, 1526);
    let sent = frame(9014, 3);
    pair.send(&sent);
    pair.run();
    assert_eq!(pair.received(), [(6, sent)]);
    assert!(pair.still_turns());
}

#[test]
fn frame_without_enough_chains_is_dropped_and_uses_none() {
    let mut pair = Pair::new(LinkKind::Loopback, true);
    pair.offer(5, 1526);
    pair.send(&frame(9014, 3));
    pair.send(&frame(1000, 4));
    pair.run();
    assert_eq!(pair.received(), [(1, frame(1000, 4))], "the chains are there for what fits");
    assert_eq!(pair.drops(DropCause::ReceiverFull), 1);
    assert_eq!(pair.sent(), 2);
}

#[test]
fn full_receiver_drops_and_counts() {
    let mut pair = Pair::new(LinkKind::Loopback, true);
    pair.offer(2, 2048);
    (0..8).for_each(|n| pair.send(&frame(64, n)));
    pair.run();
    assert_eq!(pair.received().len(), 2);
    assert_eq!(pair.sent(), 8);
    assert_eq!((pair.drops(DropCause::ReceiverFull), pair.counters(0).packets), (6, 2));
}

#[test]
fn chain_too_small_is_kept_for_a_frame_that_fits() {
    let mut pair = Pair::new(LinkKind::Loopback, false);
    pair.offer(1, HEADER + 100);
    pair.send(&frame(101, 1));
    pair.send(&frame(100, 2));
    pair.run();
    assert_eq!(pair.received(), [(1, frame(100, 2))]);
    assert_eq!(pair.drops(DropCause::ReceiverSmall), 1);
}

#[test]
fn receiver_that_is_stopped_or_disabled_gets_nothing() {
    let mut pair = Pair::stopped(LinkKind::Loopback, false);
    pair.start(1);
    pair.offer(4, 2048);
    pair.send(&frame(64, 1));
    assert_eq!(pair.run(), 1);
    pair.start(0);
    pair.engine.queue_mut(0).unwrap().switch.set(Enabled::No);
    pair.send(&frame(64, 2));
    assert_eq!(pair.run(), 1);
    assert_eq!(pair.drops(DropCause::NoReceiver), 2);
    assert!(pair.received().is_empty());
    pair.engine.queue_mut(0).unwrap().switch.set(Enabled::Yes);
    assert!(pair.still_turns());
}

#[test]
fn disabled_sender_is_drained_without_effect() {
    for link in [LinkKind::Null, LinkKind::Loopback, LinkKind::Pktgen { size: 64 }] {
        let mut pair = Pair::new(link, false);
        pair.engine.queue_mut(0).unwrap().switch.set(Enabled::No);
        pair.engine.queue_mut(1).unwrap().switch.set(Enabled::No);
        pair.offer(4, 2048);
        pair.send(&frame(64, 1));
        // Not even its address is looked at.
        pair.send_at(MEMORY * 4, 100, &[]);
        pair.run();
        assert_eq!(pair.sent(), 2);
        assert_eq!(pair.drops(DropCause::Disabled), 2);
        assert_eq!((pair.counters(1).packets, pair.counters(1).bytes), (2, 64 + 100 - 12));
        assert!(pair.received().is_empty());
    }
}

#[test]
fn sender_that_is_not_enabled_yet_loses_nothing() {
    for link in [LinkKind::Null, LinkKind::Loopback, LinkKind::Pktgen { size: 64 }] {
        let mut pair = Pair::new(link, false);
        pair.engine.queue_mut(1).unwrap().switch.set(Enabled::NotYet);
        pair.send(&frame(64, 1));
        pair.run();
        assert_eq!(pair.sent(), 0);
        assert!(!pair.engine.arm(), "what waits for a message is no reason to stay awake");
        pair.engine.disarm();
        pair.engine.queue_mut(1).unwrap().switch.set(Enabled::Yes);
        pair.run();
        assert_eq!(pair.sent(), 1);
        assert_eq!(pair.drops(DropCause::Disabled), 0);
    }
}

#[test]
fn frames_too_short_or_too_long_are_dropped_not_fatal() {
    let mut pair = Pair::new(LinkKind::Loopback, true);
    pair.offer(2, 2048);
    for len in [1, HEADER - 1, HEADER, HEADER + 13] {
        pair.send_at(OUT, len, &[]);
    }
    pair.send_at(OUT, HEADER + MAX_FRAME + 1, &[]);
    // Too many pieces for one frame.
    pair.tx.describe(&pair.guest, 500, 0x1_0000, 16 * 300, crate::ring::tests::guest::INDIRECT, 0);
    for entry in 0..300u16 {
        let flags = if entry < 299 { crate::ring::tests::guest::NEXT } else { 0 };
        let bytes = crate::ring::tests::guest::descriptor(0x10_0000 + OUT, 1, flags, entry + 1);
        pair.guest.write(0x1_0000 + 16 * u64::from(entry), &bytes);
    }
    pair.tx.offer(&pair.guest, 500);
    pair.tx.publish(&pair.guest);
    pair.run();
    assert_eq!(pair.sent(), 6);
    assert_eq!((pair.drops(DropCause::Short), pair.drops(DropCause::Oversize)), (4, 2));
    assert_eq!(pair.failed(1), None);
    assert!(pair.still_turns());
}

#[test]
fn largest_frame_goes_through() {
    let mut pair = Pair::new(LinkKind::Loopback, true);
    pair.offer(1, HEADER + MAX_FRAME);
    let sent = frame(MAX_FRAME, 9);
    pair.send_cut(&sent, &[30_000, 20_000]);
    pair.run();
    assert_eq!(pair.received(), [(1, sent)]);
}

#[test]
fn generator_fills_the_ring_with_numbered_frames() {
    for (mergeable, room, chains) in [(false, 2048, 1), (true, 2048, 1), (true, 700, 3)] {
        let mut pair = Pair::new(LinkKind::Pktgen { size: 1518 }, mergeable);
        pair.offer(48, room);
        pair.send(&frame(64, 1));
        pair.run();
        let frames = pair.received();
        assert_eq!(frames.len(), 48 / chains);
        for (number, (count, frame)) in frames.iter().enumerate() {
            assert_eq!((usize::from(*count), frame.len()), (chains, 1518));
            assert_eq!(u64::from_be_bytes(frame[42..50].try_into().unwrap()), number as u64);
            assert_eq!(frame[12..14], [8, 0]);
        }
        assert_eq!(pair.sent(), 1, "what the guest sends is counted and dropped");
        assert_eq!(pair.counters(0).packets as usize, 48 / chains);
    }
}

#[test]
fn generator_waits_for_chains_that_hold_its_frames() {
    let mut pair = Pair::new(LinkKind::Pktgen { size: 1518 }, false);
    pair.offer(1, 512);
    assert_eq!(pair.run(), 0);
    assert!(pair.received().is_empty());
    assert!(pair.counters(0).drops_by(DropCause::ReceiverSmall) >= 1);
}

#[test]
fn more_chains_than_a_burst_holds_are_taken_one_burst_after_the_other() {
    let mut pair = Pair::new(LinkKind::Loopback, true);
    for round in 0..6 {
        pair.begin_again();
        let frames: Vec<_> = (0..32).map(|n| frame(1200, round * 32 + n)).collect();
        pair.offer(32 * 11, 111);
        frames.iter().for_each(|frame| pair.send(frame));
        assert_eq!(pair.run(), 32);
        let received = pair.received();
        assert!(received.iter().all(|frame| frame.0 == 11));
        assert_eq!(received.into_iter().map(|frame| frame.1).collect::<Vec<_>>(), frames);
        assert_eq!(pair.sent(), 32);
    }
    assert_eq!(pair.counters(1).dropped(), 0);
}

fn cuts(len: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..=len, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// However driver and device cut their buffers, the bytes arrive, whole and in order.
    #[test]
    fn frames_survive_any_cutting(
        sent in prop::collection::vec((14usize..3000, any::<u8>(), cuts(400)), 1..6),
        rooms in prop::collection::vec((60usize..1500, cuts(200)), 12),
        border in prop_oneof![Just(None), (OUT..OUT + 0x4000).prop_map(Some)],
    ) {
        let mut pair = Pair::new(LinkKind::Loopback, true);
        if let Some(border) = border {
            pair.guest.map_in_two(border);
        }
        rooms.iter().for_each(|(len, cuts)| pair.offer_cut(*len, cuts));
        let room: usize = rooms.iter().map(|room| room.0).sum();
        let frames: Vec<_> = sent.iter().map(|(len, seed, _)| frame(*len, *seed)).collect();
        for (frame, (_, _, cuts)) in frames.iter().zip(&sent) {
            pair.send_cut(frame, cuts);
        }
        pair.run();
        prop_assert_eq!(pair.sent(), frames.len());
        let received: Vec<_> = pair.received().into_iter().map(|frame| frame.1).collect();
        // What arrived is what was sent, without those for which there was no room.
        let mut wanted = frames.iter();
        for frame in &received {
            prop_assert!(wanted.any(|sent| sent == frame));
        }
        let dropped = pair.drops(DropCause::ReceiverFull) as usize;
        prop_assert_eq!(received.len() + dropped, frames.len());
        let needed: usize = frames.iter().map(|frame| frame.len() + HEADER).sum();
        if dropped > 0 {
            prop_assert!(needed + 1500 * frames.len() > room, "dropped although there was room");
        }
    }
}
