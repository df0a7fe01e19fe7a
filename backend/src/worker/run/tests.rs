//! Single rounds of a worker, without its thread: what one round visits, and what may come between its steps.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Sender};

use super::*;
use crate::worker::tests::toy::Toy;
use crate::worker::{EventSource, events};

/// A runner that the test drives, and the ends that keep it running.
struct Bench {
    runner: Runner,
    _commands: Sender<Command>,
    _events: EventSource,
}

impl Bench {
    /// One queue of each toy runs.
    fn of(toys: &[Arc<Toy>], mode: Mode) -> Bench {
        let (commands, receiver) = mpsc::channel();
        let (sink, source) = events().unwrap();
        let wake = Arc::new(EventFd::new().unwrap());
        let runner = Runner::new(mode, receiver, wake, sink).unwrap();
        let mut bench = Bench { runner, _commands: commands, _events: source };
        for (toy, key) in toys.iter().zip(0..) {
            bench.runner.start(toy.clone(), key, 0, toy.setup(0));
        }
        bench
    }

    /// The first of the toys has work without end, the others have come to rest.
    fn one_busy_among(toys: &[Arc<Toy>], mode: Mode) -> Bench {
        let mut bench = Bench::of(toys, mode);
        toys[0].rings[0].added.store(u64::MAX / 2, Ordering::Release);
        // All are polled so often; then a look that finds what their start left in the poll may wake them once more.
        bench.rounds(4 * IDLE_ROUNDS);
        assert_eq!(bench.runner.slots.resting_count(), toys.len() - 1);
        bench
    }

    fn rounds(&mut self, count: u32) {
        for _ in 0..count {
            assert!(self.runner.round(), "the busy one has work in every round");
        }
    }
}

fn polls(toys: &[Arc<Toy>]) -> u64 {
    toys.iter().map(|toy| toy.rings[0].polls.load(Ordering::Relaxed)).sum()
}

#[test]
fn a_round_visits_no_engine_that_rests_and_can_kick() {
    for mode in [Mode::Adaptive, Mode::Event] {
        let toys: Vec<_> = (0..64).map(|_| Toy::new()).collect();
        let mut bench = Bench::one_busy_among(&toys, mode);
        let before = [polls(&toys[..1]), polls(&toys[1..])];
        bench.rounds(2 * ROUNDS_PER_COUNT);
        let visits = [polls(&toys[..1]) - before[0], polls(&toys[1..]) - before[1]];
        assert_eq!(visits, [u64::from(2 * ROUNDS_PER_COUNT), 0], "{mode:?}");
    }
}

#[test]
fn while_nobody_has_work_all_are_visited() {
    for mode in [Mode::Busy, Mode::Adaptive, Mode::Event] {
        let toys: Vec<_> = (0..8).map(|_| Toy::new()).collect();
        let mut bench = Bench::of(&toys, mode);
        let rounds = 4 * IDLE_ROUNDS;
        for _ in 0..rounds {
            assert!(!bench.runner.round());
        }
        assert_eq!(polls(&toys), u64::from(rounds) * 8, "{mode:?}");
    }
}

#[test]
fn a_round_in_busy_mode_visits_one_engine_that_rests_in_every_fourth_round() {
    let toys: Vec<_> = (0..64).map(|_| Toy::new()).collect();
    let mut bench = Bench::one_busy_among(&toys, Mode::Busy);
    for _ in 0..4 {
        let before = polls(&toys[1..]);
        bench.rounds(63 * ROUNDS_PER_TURN);
        assert_eq!(polls(&toys[1..]) - before, 63);
    }
    let counted: Vec<_> = toys[1..].iter().map(|toy| toy.rings[0].polls.load(Ordering::Relaxed)).collect();
    let (least, most) = (counted.iter().min().unwrap(), counted.iter().max().unwrap());
    assert!(most - least <= 2, "each in its turn: {counted:?}");
}

#[test]
fn a_kick_between_the_look_and_the_count_of_kicks_wakes_its_engine_at_the_next_look() {
    for mode in [Mode::Adaptive, Mode::Event] {
        let toys = [Toy::new(), Toy::new(), Toy::new()];
        let mut bench = Bench::one_busy_among(&toys, mode);
        while !(bench.runner.rounds + 1).is_multiple_of(ROUNDS_PER_COUNT) {
            bench.rounds(1);
        }
        // The round that counts kicks looks first. The look wakes the one engine, and while it does the other's driver kicks.
        let (first, second) = (toys[1].rings[0].clone(), toys[2].rings[0].clone());
        let late = second.clone();
        *first.at_disarm.lock().unwrap() = Some(Box::new(move || late.add()));
        first.add();
        bench.rounds(1);
        assert!(!second.is_empty(), "it came too late for this look");
        bench.rounds(ROUNDS_PER_LOOK + 1);
        assert!(first.is_empty() && second.is_empty(), "{mode:?}: a kick was lost");
        assert_eq!(second.stats.counters().kicks, 1);
    }
}
