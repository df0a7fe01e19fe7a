use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::*;
use crate::device::VirtioDevice;
use crate::worker::tests::toy::Toy;
use crate::worker::{EventSource, Mode, Worker, WorkerEvent, events};

const ONE: u64 = 1;
const TWO: u64 = 2;

fn virtio(toy: &Arc<Toy>) -> Arc<dyn VirtioDevice> {
    toy.clone()
}

fn rings(toy: &Arc<Toy>, workers: usize) -> (Rings, EventSource) {
    let (sink, source) = events().unwrap();
    let spawn = |_| Worker::spawn("test-rings", None, Mode::Event, sink.clone()).unwrap();
    let pool = Arc::new(Pool::new((0..workers).map(spawn).collect()));
    (Rings::new(toy.clone(), 0, pool, Vec::new()), source)
}

/// Waits for a stop to be answered and takes note of it.
fn stopped(rings: &mut Rings, source: &EventSource, token: u64) -> Option<u64> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        for event in source.take() {
            if matches!(event, WorkerEvent::Stopped { token: ended, .. } if ended == token) {
                return rings.stopped(token);
            }
        }
        assert!(Instant::now() < deadline, "the worker does not answer");
        std::thread::yield_now();
    }
}

#[test]
fn rings_run_on_one_connection_at_a_time() {
    let toy = Toy::new();
    let (mut rings, source) = rings(&toy, 1);
    rings.start(ONE, &virtio(&toy), 0, toy.setup(0)).unwrap();
    rings.start(ONE, &virtio(&toy), 0, toy.setup(1)).unwrap();
    assert_eq!(rings.start(TWO, &virtio(&toy), 0, toy.setup(2)), Err(StartError::OtherConnection));
    assert!(rings.busy_elsewhere(TWO) && !rings.busy_elsewhere(ONE));
    assert!(!rings.stop(TWO, 0, 70), "not its ring");

    assert!(rings.stop(ONE, 0, 71));
    assert!(!rings.stop(ONE, 0, 72), "it is being stopped");
    assert_eq!(stopped(&mut rings, &source, 71), Some(ONE));
    assert!(!rings.take_freed(), "another ring still runs");
    assert!(rings.stop(ONE, 1, 73));
    assert_eq!(
        rings.start(TWO, &virtio(&toy), 0, toy.setup(2)),
        Err(StartError::OtherConnection),
        "until it has stopped"
    );
    assert_eq!(stopped(&mut rings, &source, 73), Some(ONE));

    assert!(rings.take_freed());
    assert!(!rings.take_freed());
    rings.start(TWO, &virtio(&toy), 0, toy.setup(2)).unwrap();
    assert_eq!(rings.owner(), Some(TWO));
}

#[test]
fn a_group_stays_together_and_groups_spread_over_the_workers() {
    let toy = Toy::new();
    let (mut rings, _source) = rings(&toy, 3);
    for index in [0, 2, 4, 6, 1, 3, 5, 7] {
        rings.start(ONE, &virtio(&toy), 0, toy.setup(index)).unwrap();
    }
    for group in 0..4 {
        assert_eq!(rings.running[&(2 * group)], rings.running[&(2 * group + 1)], "group {group}");
    }
    for worker in 0..3 {
        let load = rings.running.values().filter(|&&other| other == worker).count();
        assert!((2..=4).contains(&load), "worker {worker} has {load}");
    }
}

#[test]
fn devices_spread_over_the_workers_unless_they_are_put_on_some() {
    let toys: Vec<_> = (0..4).map(|_| Toy::new()).collect();
    let (rings, source) = rings(&toys[0], 3);
    let pool = rings.pool.clone();
    let mut bound = Rings::new(toys[1].clone(), 1, pool.clone(), vec![1]);
    for index in 0..8 {
        bound.start(ONE, &virtio(&toys[1]), 0, toys[1].setup(index)).unwrap();
    }
    assert!(bound.running.values().all(|&worker| worker == 1));
    let mut free: Vec<_> =
        (2..4).map(|key| Rings::new(toys[key].clone(), key as u64, pool.clone(), Vec::new())).collect();
    for (rings, toy) in free.iter_mut().zip(&toys[2..]) {
        rings.start(ONE, &virtio(toy), 0, toy.setup(0)).unwrap();
    }
    let workers: Vec<usize> = free.iter().map(|rings| rings.running[&0]).collect();
    assert_eq!(workers, [0, 2], "those with the fewest rings of all devices");

    for index in 0..8 {
        assert!(bound.stop(ONE, index, index.into()));
        stopped(&mut bound, &source, index.into());
    }
    assert_eq!(pool.least_loaded(&[]), 1, "stopped rings are not counted");
}

#[test]
fn a_ring_that_starts_again_before_it_has_stopped_keeps_its_worker() {
    let toy = Toy::new();
    let (mut rings, source) = rings(&toy, 2);
    rings.start(ONE, &virtio(&toy), 0, toy.setup(0)).unwrap();
    let worker = rings.running[&0];
    rings.start(ONE, &virtio(&toy), 0, toy.setup(2)).unwrap();
    assert!(rings.stop(ONE, 0, 1));
    rings.start(ONE, &virtio(&toy), 0, toy.setup(0)).unwrap();
    assert_eq!(rings.running[&0], worker);
    stopped(&mut rings, &source, 1);
    toy.rings[0].add();
    toy.rings[0].kick.as_ref().unwrap().signal();
    let deadline = Instant::now() + Duration::from_secs(30);
    while toy.rings[0].taken.load(Ordering::Acquire) == 0 {
        assert!(Instant::now() < deadline, "it does not run");
        std::thread::yield_now();
    }
}
