//! What a driver or a front-end can do to its own queue, and that nobody else notices.

use mdev_pin::ResolveError;

use super::super::fuzzing::fuzz_queue_pair;
use super::pair::{HEADER, MEMORY, OUT, Pair, frame};
use crate::device::fuzzing::tests::corpus_and_noise;
use crate::link::LinkKind;
use crate::ring::tests::guest::{BASE, INDIRECT, NEXT, WRITE, descriptor};
use crate::ring::{Direction, RingError};

/// Runs one attack on a queue of one guest beside a second guest on the same worker.
fn attack(queue: u16, link: LinkKind, wreck: impl FnOnce(&mut Pair), error: RingError) {
    let mut victim = Pair::new(LinkKind::Loopback, true);
    let mut wild = Pair::new(link, true);
    assert!(victim.still_turns());
    wreck(&mut wild);
    let before = wild.counters(queue).errors;
    for _ in 0..4 {
        wild.engine.poll();
        victim.engine.poll();
        assert!(victim.still_turns());
    }
    assert_eq!(wild.failed(queue), Some(error));
    assert!(wild.engine.needs_reset() && !victim.engine.needs_reset());
    assert!(wild.err_was_written(queue.into()) && !wild.err_was_written(usize::from(queue) ^ 1));
    assert_eq!(wild.counters(queue).errors, before + 1, "latched once");
    assert_eq!(wild.failed(queue ^ 1), None);
    assert!(!wild.engine.arm(), "a failed queue asks for nothing");
    // The other queue of the wild guest goes on, too.
    if queue == 0 {
        wild.send(&frame(64, 1));
        assert!(wild.run() > 0);
    }
    // Started anew it works again.
    let stopped = wild.engine.stop_queue(queue).unwrap();
    assert!(stopped.failed.is_some());
    assert!(!wild.engine.needs_reset());
}

fn attack_sender(wreck: impl FnOnce(&mut Pair), error: RingError) {
    attack(1, LinkKind::Loopback, wreck, error);
}

fn attack_receiver(wreck: impl FnOnce(&mut Pair), error: RingError) {
    attack(0, LinkKind::Pktgen { size: 64 }, wreck, error);
}

/// Publishes the chain at descriptor 0 for transmission.
fn publish(pair: &mut Pair) {
    pair.tx.offer(&pair.guest, 0);
    pair.tx.publish(&pair.guest);
}

#[test]
fn loop_of_descriptors_stops_one_queue() {
    let wreck = |pair: &mut Pair| {
        pair.tx.describe(&pair.guest, 0, OUT, 100, NEXT, 1);
        pair.tx.describe(&pair.guest, 1, OUT, 100, NEXT, 0);
        publish(pair);
    };
    attack_sender(wreck, RingError::Loop { size: 512 });
}

#[test]
fn head_and_next_out_of_range_stop_one_queue() {
    let head = |pair: &mut Pair| {
        pair.tx.offer(&pair.guest, 512);
        pair.tx.publish(&pair.guest);
    };
    attack_sender(head, RingError::HeadOutOfRange { head: 512, size: 512 });
    let next = |pair: &mut Pair| {
        pair.tx.describe(&pair.guest, 0, OUT, 100, NEXT, 40_000);
        publish(pair);
    };
    attack_sender(next, RingError::NextOutOfRange { next: 40_000, size: 512 });
}

#[test]
fn available_index_jump_stops_one_queue() {
    let wreck = |pair: &mut Pair| pair.guest.set_word(pair.tx.avail + 2, 65530u16.wrapping_add(513));
    attack_sender(wreck, RingError::AvailJump { next: 65530, index: 507, size: 512 });
    let wreck = |pair: &mut Pair| pair.guest.set_word(pair.rx.avail + 2, 0x8000);
    attack_receiver(wreck, RingError::AvailJump { next: 0, index: 0x8000, size: 512 });
}

#[test]
fn addresses_and_lengths_that_wrap_stop_one_queue() {
    let wreck = |pair: &mut Pair| {
        let place = pair.tx.desc;
        pair.guest.write(place, &descriptor(u64::MAX - 50, 100, 0, 0));
        publish(pair);
    };
    attack_sender(wreck, RingError::Memory(ResolveError::Overflow));
    let wreck = |pair: &mut Pair| {
        pair.tx.describe(&pair.guest, 0, OUT, u32::MAX, NEXT, 1);
        pair.tx.describe(&pair.guest, 1, OUT, 100, 0, 0);
        publish(pair);
    };
    attack_sender(wreck, RingError::LengthOverflow);
}

#[test]
fn bad_indirect_tables_stop_one_queue() {
    let odd = |pair: &mut Pair| {
        pair.tx.describe(&pair.guest, 0, OUT, 100, INDIRECT, 0);
        publish(pair);
    };
    attack_sender(odd, RingError::IndirectSize { len: 100 });
    let nested = |pair: &mut Pair| {
        pair.guest.write(OUT, &descriptor(BASE + OUT, 16, INDIRECT, 0));
        pair.tx.describe(&pair.guest, 0, OUT, 16, INDIRECT, 0);
        publish(pair);
    };
    attack_sender(nested, RingError::IndirectNested);
}

#[test]
fn buffers_of_the_wrong_direction_stop_one_queue() {
    let wreck = |pair: &mut Pair| {
        pair.tx.describe(&pair.guest, 0, OUT, 100, WRITE, 0);
        publish(pair);
    };
    attack_sender(wreck, RingError::WrongDirection(Direction::Read));
    let wreck = |pair: &mut Pair| pair.rx.give(&pair.guest, 0, OUT, 100, 0);
    attack_receiver(wreck, RingError::WrongDirection(Direction::Write));
}

#[test]
fn hole_parks_and_becomes_an_error_when_nothing_comes() {
    let mut pair = Pair::new(LinkKind::Loopback, false);
    assert!(pair.still_turns());
    pair.send_at(MEMORY, 100, &[]);
    assert_eq!(pair.run(), 0);
    assert!(pair.engine.next_deadline().is_some(), "the worker must look again by itself");
    assert!(!pair.engine.arm(), "a parked queue keeps no worker awake");
    assert_eq!((pair.counters(1).parks, pair.failed(1)), (1, None));
    assert_eq!(pair.sent(), 0, "a parked chain has not been taken");
    let began = std::time::Instant::now();
    while pair.failed(1).is_none() {
        assert!(began.elapsed().as_secs() < 60, "a queue is parked for a moment only");
        std::thread::sleep(std::time::Duration::from_millis(1));
        pair.engine.poll();
    }
    assert_eq!(pair.failed(1), Some(RingError::Memory(ResolveError::Hole)));
    assert!(pair.err_was_written(1));
    assert_eq!(pair.engine.next_deadline(), None);
}

#[test]
fn hole_in_the_memory_of_the_rings_heals_when_the_table_changes() {
    let mut pair = Pair::new(LinkKind::Loopback, false);
    assert!(pair.still_turns());
    pair.guest.unmap();
    pair.offer(1, 2048);
    pair.send(&frame(100, 1));
    pair.engine.poll();
    assert!(pair.engine.next_deadline().is_some());
    pair.guest.map();
    pair.run();
    assert_eq!(pair.received(), [(1, frame(100, 1))]);
    assert_eq!(pair.failed(1), None);
    assert_eq!(pair.engine.next_deadline(), None);
    assert_eq!(pair.sent(), 1);
    assert!(pair.still_turns());
}

#[test]
fn hole_that_was_filled_after_the_poll_is_work() {
    let mut pair = Pair::new(LinkKind::Loopback, false);
    assert!(pair.still_turns());
    pair.guest.unmap();
    pair.send(&frame(100, 1));
    pair.engine.poll();
    pair.guest.map();
    assert!(pair.engine.arm(), "whoever woke it may have been heard already");
}

#[test]
fn hole_behind_good_chains_keeps_them_going() {
    let mut pair = Pair::new(LinkKind::Null, false);
    pair.send(&frame(64, 1));
    pair.send_at(MEMORY, 100, &[]);
    assert_eq!(pair.engine.poll(), 1);
    assert_eq!(pair.engine.poll(), 0);
    assert_eq!(pair.sent(), 1);
    let stopped = pair.engine.stop_queue(1).unwrap();
    assert_eq!(stopped.ring.state().next_avail, 65531, "the parked chain was not taken");
}

#[test]
fn receiver_that_is_parked_or_broken_does_not_hold_the_sender() {
    let mut pair = Pair::new(LinkKind::Loopback, false);
    pair.rx.give(&pair.guest, 0, MEMORY, 2048, WRITE);
    pair.send(&frame(64, 1));
    assert_eq!(pair.engine.poll(), 1);
    assert_eq!(pair.counters(0).parks, 1);
    assert_eq!((pair.failed(0), pair.failed(1)), (None, None));

    let mut pair = Pair::new(LinkKind::Loopback, false);
    pair.rx.give(&pair.guest, 0, OUT, 0, WRITE);
    (0..3).for_each(|n| pair.send(&frame(64, n)));
    assert_eq!(pair.run(), 3);
    assert_eq!((pair.failed(0), pair.failed(1)), (Some(RingError::ZeroLength), None));
    assert_eq!(pair.counters(1).dropped(), 3);
    assert!(pair.err_was_written(0));
}

#[test]
fn broken_receiver_keeps_what_it_got_before() {
    let mut pair = Pair::new(LinkKind::Loopback, false);
    pair.offer(2, 2048);
    pair.rx.give(&pair.guest, 100, OUT, 0, WRITE);
    (0..3).for_each(|n| pair.send(&frame(64, n)));
    pair.run();
    assert_eq!(pair.received(), [(1, frame(64, 0)), (1, frame(64, 1))]);
    assert_eq!(pair.failed(0), Some(RingError::ZeroLength));
}

#[test]
fn file_that_shrinks_under_a_frame_stops_its_queue_and_publishes_nothing() {
    for link in [LinkKind::Null, LinkKind::Loopback] {
        let mut victim = Pair::new(LinkKind::Loopback, true);
        let mut wild = Pair::new(link, false);
        wild.offer(4, 2048);
        let last_page = MEMORY - 4096;
        wild.send_at(last_page, HEADER + 64, &[]);
        wild.shrink(last_page);
        wild.engine.poll();
        assert_eq!(wild.failed(1), Some(RingError::Poisoned));
        assert!(wild.err_was_written(1));
        assert_eq!(wild.sent(), 0);
        assert!(wild.received().is_empty());
        assert!(victim.still_turns());
    }
}

#[test]
fn file_that_shrinks_under_the_receiver_stops_the_receiver() {
    let mut victim = Pair::new(LinkKind::Loopback, true);
    let mut wild = Pair::new(LinkKind::Pktgen { size: 64 }, false);
    let last_page = MEMORY - 4096;
    wild.rx.give(&wild.guest, 0, last_page, 2048, WRITE);
    wild.shrink(last_page);
    wild.engine.poll();
    assert_eq!(wild.failed(0), Some(RingError::Poisoned));
    assert!(wild.received().is_empty());
    assert!(victim.still_turns());
}

#[test]
fn hole_punched_into_the_file_reads_as_zeros_and_harms_nobody() {
    let mut pair = Pair::new(LinkKind::Loopback, false);
    pair.offer(1, 2048);
    pair.send(&frame(64, 1));
    pair.punch(OUT, 4096);
    pair.run();
    assert_eq!(pair.received(), [(1, vec![0; 64])]);
    assert!(pair.still_turns());
}

#[test]
fn corpus_and_noise_end_in_errors_or_frames() {
    // Rings and tables are in the first bytes; small values hit flags, indices and lengths.
    corpus_and_noise("queue_pair", fuzz_queue_pair, |script, random| random(script.len().min(0x900)));
}
