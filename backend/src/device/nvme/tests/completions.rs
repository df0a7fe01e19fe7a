//! Completion queues: room, laps, several submission queues, interrupts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::nvm;
use mdev_protocol::nvme::status::Status;

use super::rig::{CQ, Options, Rig, read};
use crate::device::EventFd;
use crate::device::nvme::{QueueNews, Vectors};
use crate::store::Store;
use crate::sys::Kicks;

fn null(options: Options) -> Rig {
    Rig::on(Store::open(&"null,size=4M".parse().unwrap()).unwrap(), options)
}

fn flush(cid: u16) -> Command {
    Command::new(nvm::FLUSH, cid, 1)
}

#[test]
fn phase_turns_with_every_lap() {
    let mut rig = null(Options { completions: 5, entries: 7, ..Options::default() });
    for cid in 0..1000 {
        assert_eq!(rig.run(flush(cid)), Status::SUCCESS);
    }
}

#[test]
fn full_completion_queue_loses_nothing_and_takes_nothing_more() {
    let mut rig = null(Options { completions: 4, entries: 64, ..Options::default() });
    (0..60).for_each(|cid| rig.place(0, flush(cid)));
    rig.ring(0);
    assert_eq!(rig.poll(), 32 + 3);
    assert_eq!(rig.poll(), 0, "the host has not moved");
    assert!(!rig.queues[0].engine.arm(), "nothing to do until it does");
    assert!(rig.completion.take_awaited() && !rig.completion.take_awaited());
    let mut cids = Vec::new();
    for _ in 0..200 {
        cids.extend(rig.reap().iter().map(|one| one.cid));
        rig.poll();
    }
    assert_eq!(cids, (0..60).collect::<Vec<_>>());
}

#[test]
fn room_that_came_before_the_sleep_is_work() {
    let mut rig = null(Options { completions: 2, ..Options::default() });
    (0..2).for_each(|cid| rig.place(0, flush(cid)));
    rig.ring(0);
    rig.poll();
    assert_eq!(rig.reap().len(), 1);
    assert!(rig.queues[0].engine.arm());
    assert_eq!((rig.poll(), rig.reap().len()), (1, 1));
}

#[test]
fn several_submission_queues_end_in_one() {
    let mut rig = null(Options { queues: 3, completions: 16, ..Options::default() });
    let mut seen = [0u16; 3];
    for round in 0..200u16 {
        for queue in 0..3 {
            (0..3).for_each(|_| rig.place(queue, flush(round)));
            rig.ring(queue);
            rig.queues[queue].engine.poll();
        }
        for one in rig.reap() {
            assert_eq!(one.cid, round);
            seen[usize::from(one.sq_id) - 1] += 1;
            assert_eq!(u32::from(one.sq_head), rig.queues[usize::from(one.sq_id) - 1].tail);
        }
        assert_eq!(seen, [3 * (round + 1); 3]);
    }
}

#[test]
fn two_workers_share_one_and_lose_nothing() {
    const EACH: u16 = 20_000;
    let mut rig = null(Options { queues: 2, completions: 32, ..Options::default() });
    let engines: Vec<_> = (0..2).map(|_| rig.queues.remove(0)).collect();
    let parts: Vec<_> = engines.iter().map(|queue| queue.part.clone()).collect();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let threads: Vec<_> = engines
        .into_iter()
        .map(|mut queue| {
            let stop = stop.clone();
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    queue.engine.poll();
                    std::thread::yield_now();
                }
            })
        })
        .collect();
    let mut sent = [0u16; 2];
    let mut seen = [0u16; 2];
    while seen != [EACH; 2] {
        for queue in 0..2usize {
            while sent[queue] < EACH && sent[queue] - seen[queue] < 40 {
                let at = usize::from(sent[queue]) % 64 * 64;
                parts[queue].slice().unwrap().write(at, flush(sent[queue])).unwrap();
                sent[queue] += 1;
            }
            rig.doorbells.set_tail(queue as u16 + 1, u32::from(sent[queue]) % 64);
        }
        for one in rig.reap() {
            let queue = usize::from(one.sq_id) - 1;
            assert_eq!(one.cid, seen[queue], "in order, each once");
            seen[queue] += 1;
        }
        std::thread::yield_now();
    }
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn bad_tails_are_ignored_and_told_once() {
    let mut rig = null(Options::default());
    for bad in [64, 65, u32::MAX] {
        rig.doorbells.set_tail(1, bad);
        assert_eq!(rig.poll(), 0);
        let failure = rig.queues[0].engine.news();
        assert_eq!(failure, Some(QueueNews::InvalidDoorbell { qid: 1, head: false, value: bad }));
        assert!(!failure.unwrap().is_fatal());
        rig.poll();
        assert_eq!(rig.queues[0].engine.news(), None);
        assert!(!rig.queues[0].engine.arm());
        assert_eq!(rig.run(flush(1)), Status::SUCCESS);
    }
}

#[test]
fn bad_heads_are_ignored_and_told_once() {
    for bad in [1, 3, 4, u32::MAX] {
        let mut rig = null(Options { completions: 4, ..Options::default() });
        // Ahead of the tail, or out of range: read when the room is used up.
        rig.doorbells.set_head(CQ, bad);
        (0..5).for_each(|cid| rig.place(0, flush(cid)));
        rig.ring(0);
        rig.poll();
        let told = rig.queues[0].engine.news();
        assert_eq!(told, Some(QueueNews::InvalidDoorbell { qid: CQ, head: true, value: bad }));
        if bad > 3 {
            rig.poll();
            assert_eq!(rig.queues[0].engine.news(), None);
            assert!(!rig.queues[0].engine.arm());
        }
        assert_eq!(rig.reap().len(), 3);
        rig.poll();
        assert_eq!(rig.reap().len(), 2);
    }
}

#[test]
fn one_interrupt_for_a_burst() {
    let mut rig = null(Options { vector: Some(2), ..Options::default() });
    let event = Arc::new(EventFd::new().unwrap());
    rig.vectors.set_by_message(true);
    rig.vectors.set(2, Some(event.clone()));
    (0..20).for_each(|cid| rig.place(0, flush(cid)));
    rig.ring(0);
    rig.poll();
    rig.poll();
    assert_eq!((event.drain(), rig.counters().calls), (Kicks::Some(1), 1));
}

#[test]
fn masked_message_is_pending_until_it_can_be_told() {
    let vectors = Vectors::new(70);
    vectors.set_by_message(true);
    vectors.raise(69);
    vectors.raise(200);
    assert_eq!((vectors.pending(0), vectors.pending(1), vectors.pending(2)), (0, 1 << 5, 0));
    let event = Arc::new(EventFd::new().unwrap());
    vectors.set(69, Some(event.clone()));
    assert_eq!((event.drain(), vectors.pending(1)), (Kicks::Some(1), 0));
    vectors.set(69, None);
    vectors.raise(69);
    vectors.reset();
    assert_eq!(vectors.pending(1), 0);
}

#[test]
fn pin_is_a_level() {
    let vectors = Vectors::new(1);
    let event = Arc::new(EventFd::new().unwrap());
    vectors.set_pin(Some(event.clone()));
    assert_eq!(event.drain(), Kicks::None);
    vectors.mask(1);
    vectors.raise(0);
    assert!(vectors.is_asserted());
    assert_eq!(event.drain(), Kicks::None, "masked");
    vectors.unmask(1);
    assert_eq!(event.drain(), Kicks::Some(1));
    vectors.look_again();
    assert_eq!(event.drain(), Kicks::Some(1), "still asserted");
    vectors.lower();
    vectors.look_again();
    assert_eq!((event.drain(), vectors.is_asserted(), vectors.masked()), (Kicks::None, false, 0));
}

#[test]
fn entries_that_the_host_has_not_taken_are_seen() {
    let mut rig = null(Options::default());
    let at = rig.at(0);
    rig.offer(read(0, 1, at, 0));
    rig.poll();
    let mut lane = rig.access.lane();
    assert!(rig.completion.has_entries(&lane.enter()));
    assert_eq!(rig.completion.tail(), 1);
    rig.reap();
    assert!(!rig.completion.has_entries(&lane.enter()));
}
