//! Starting, stopping, sleeping.

use super::pair::{Pair, frame};
use crate::device::Enabled;
use crate::link::LinkKind;

#[test]
fn stopped_queue_goes_on_where_it_was() {
    let mut pair = Pair::new(LinkKind::Loopback, true);
    for _ in 0..5 {
        assert!(pair.still_turns());
        for index in [0, 1] {
            let queue = pair.engine.stop_queue(index).unwrap();
            let next = queue.ring.state().next_avail;
            let ring = if index == 0 { &mut pair.rx } else { &mut pair.tx };
            assert_eq!(next, ring.next, "everything that was given is used");
            ring.start = next;
            assert_eq!(ring.used_index(&pair.guest), next);
        }
        assert!(pair.engine.stop_queue(0).is_none());
        pair.send(&frame(64, 1));
        assert_eq!(pair.engine.poll(), 0, "nothing runs");
        pair.start(0);
        pair.start(1);
        pair.run();
        assert_eq!(pair.sent(), 1);
    }
}

#[test]
fn arming_finds_frames_that_wait_and_asks_for_kicks() {
    let mut pair = Pair::new(LinkKind::Null, false);
    pair.run();
    assert_eq!(pair.guest.word(pair.tx.used), 1, "a worker that polls wants no kicks");
    assert_eq!(pair.guest.word(pair.rx.used), 1);
    assert!(!pair.engine.arm());
    assert_eq!(pair.guest.word(pair.tx.used), 0);
    assert_eq!(pair.guest.word(pair.rx.used), 1, "receive buffers are no work for this link");
    pair.send(&frame(64, 1));
    assert!(pair.engine.arm());
    pair.engine.disarm();
    assert_eq!(pair.guest.word(pair.tx.used), 1);
}

#[test]
fn generator_is_woken_by_receive_buffers() {
    let mut pair = Pair::new(LinkKind::Pktgen { size: 64 }, false);
    pair.run();
    assert!(!pair.engine.arm());
    assert_eq!(pair.guest.word(pair.rx.used), 0);
    pair.offer(1, 2048);
    assert!(pair.engine.arm());
    pair.engine.queue_mut(0).unwrap().switch.set(Enabled::No);
    assert!(!pair.engine.arm(), "a disabled receive queue is no work");
}

#[test]
fn driver_that_wants_no_calls_gets_none() {
    let mut pair = Pair::new(LinkKind::Null, false);
    pair.guest.set_word(pair.tx.avail, 1);
    pair.send(&frame(64, 1));
    pair.run();
    assert!(!pair.was_called(1));
    assert_eq!(pair.counters(1).calls, 0);
    pair.guest.set_word(pair.tx.avail, 0);
    pair.send(&frame(64, 1));
    pair.run();
    assert!(pair.was_called(1));
    assert_eq!(pair.counters(1).calls, 1);
}

#[test]
fn frames_before_a_chain_that_cannot_be_filled_are_called_for() {
    for behind_iommu in [true, false] {
        let mut pair = Pair::stopped(LinkKind::Loopback, false);
        pair.start_with(0, behind_iommu);
        pair.start(1);
        pair.offer(1, 2048);
        pair.offer_nowhere(2048);
        pair.send(&frame(64, 1));
        pair.send(&frame(64, 2));
        assert_eq!(pair.engine.poll(), if behind_iommu { 1 } else { 2 }, "what may come is waited for");
        assert_eq!(pair.received().len(), 1);
        assert!(pair.was_called(0), "behind an IOMMU: {behind_iommu}");
    }
}
