//! What is promised of workers, on a device whose every step can be seen.

pub(crate) mod toy;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm};
use rustix::event::{PollFd, PollFlags};
use toy::Toy;

use super::*;
use crate::device::Enabled;
use crate::sys::Kicks;

const MODES: [Mode; 3] = [Mode::Busy, Mode::Adaptive, Mode::Event];
/// No test may take longer for one step, however loaded the machine is.
const WATCHDOG: Duration = Duration::from_secs(30);
const KEY: u64 = 7;

/// Tests run side by side in one process: each worker has a name of its own.
static NUMBER: AtomicU32 = AtomicU32::new(0);

struct Bench {
    worker: Worker,
    source: EventSource,
    pending: Vec<WorkerEvent>,
}

impl Bench {
    fn new(mode: Mode) -> Bench {
        let (sink, source) = events().unwrap();
        let name = format!("test-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let worker = Worker::spawn(&name, None, mode, sink).unwrap();
        Bench { worker, source, pending: Vec::new() }
    }

    fn start(&mut self, toy: &Arc<Toy>, key: u64, index: u16) {
        let setup = Box::new(toy.setup(index));
        let device = toy.clone();
        self.worker.send(Command::Start { token: 1, device, device_key: key, features: 0, setup });
        self.expect(|event| matches!(event, WorkerEvent::Started { token: 1 }));
    }

    fn stop(&mut self, key: u64, index: u16) -> (QueueState, bool) {
        self.worker.send(Command::Stop { token: 2, device_key: key, index });
        match self.expect(|event| matches!(event, WorkerEvent::Stopped { token: 2, .. })) {
            WorkerEvent::Stopped { state, clean, .. } => (state, clean),
            _ => unreachable!(),
        }
    }

    /// Whether the worker's thread sleeps in the kernel at this moment.
    fn sleeps(&self) -> bool {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let name = format!(" ({}) S ", self.worker.name());
        tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok())
            .any(|stat| stat.contains(&name))
    }

    /// The first event that is wanted; others are kept.
    fn expect(&mut self, wanted: impl Fn(&WorkerEvent) -> bool) -> WorkerEvent {
        let deadline = Instant::now() + WATCHDOG;
        loop {
            if let Some(at) = self.pending.iter().position(&wanted) {
                return self.pending.remove(at);
            }
            assert!(Instant::now() < deadline, "the worker does not answer");
            let mut ready = [PollFd::new(&self.source, PollFlags::IN)];
            let timeout = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            rustix::event::poll(&mut ready, Some(&timeout)).unwrap();
            self.pending.extend(self.source.take());
        }
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WATCHDOG;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn work_is_done_in_every_mode() {
    for mode in MODES {
        let toy = Toy::new();
        let mut bench = Bench::new(mode);
        bench.start(&toy, KEY, 0);
        for _ in 0..1000 {
            toy.rings[0].add();
        }
        until("all is taken", || toy.rings[0].is_empty());
        let (state, clean) = bench.stop(KEY, 0);
        assert_eq!((state.next_avail, clean), (100, true), "{mode:?}");
    }
}

#[test]
fn no_kick_is_lost_when_it_races_with_falling_asleep() {
    for mode in [Mode::Event, Mode::Adaptive] {
        let toy = Toy::new();
        let mut bench = Bench::new(mode);
        bench.start(&toy, KEY, 0);
        for round in 0u32..20_000 {
            toy.rings[0].add();
            until("the entry is taken", || toy.rings[0].is_empty());
            // Falls at all points of the way to sleep.
            for _ in 0..round % 512 {
                std::hint::spin_loop();
            }
            if round % 1000 == 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
        bench.stop(KEY, 0);
        let kicks = toy.rings[0].stats.counters().kicks;
        assert!((1..=20_000).contains(&kicks), "{mode:?}: {kicks} kicks");
    }
}

#[test]
fn an_idle_worker_sleeps_and_its_driver_is_asked_for_kicks() {
    for mode in [Mode::Adaptive, Mode::Event] {
        let toy = Toy::new();
        let mut bench = Bench::new(mode);
        bench.start(&toy, KEY, 0);
        toy.rings[0].add();
        until("the entry is taken", || toy.rings[0].is_empty());
        until("the worker sleeps", || bench.sleeps());
        assert!(toy.rings[0].wants_kicks(), "{mode:?}");
        bench.stop(KEY, 0);
    }
}

#[test]
fn a_worker_without_queues_sleeps_in_every_mode() {
    for mode in MODES {
        let toy = Toy::new();
        let mut bench = Bench::new(mode);
        until("it sleeps at first", || bench.sleeps());
        bench.start(&toy, KEY, 0);
        bench.stop(KEY, 0);
        until("it sleeps again", || bench.sleeps());
    }
}

#[test]
fn a_busy_worker_never_asks_for_kicks() {
    let toy = Toy::new();
    let mut bench = Bench::new(Mode::Busy);
    bench.start(&toy, KEY, 0);
    for _ in 0..1000 {
        assert!(!bench.sleeps());
    }
    toy.rings[0].add();
    until("the entry is taken", || toy.rings[0].is_empty());
    bench.stop(KEY, 0);
}

#[test]
fn a_queue_stops_and_starts_again_under_load() {
    for mode in MODES {
        let toy = Toy::new();
        let mut bench = Bench::new(mode);
        for _ in 0..200 {
            bench.start(&toy, KEY, 0);
            toy.rings[0].add();
            until("the entry is taken", || toy.rings[0].is_empty());
            bench.stop(KEY, 0);
            toy.rings[0].add();
            assert!(!toy.rings[0].is_empty(), "{mode:?}: a stopped queue is not served");
        }
    }
}

#[test]
fn stopping_what_does_not_run_is_answered() {
    let mut bench = Bench::new(Mode::Event);
    assert_eq!(bench.stop(KEY, 5), (QueueState::split(0), false));
}

#[test]
fn a_start_replaces_the_queue_that_runs() {
    let toy = Toy::new();
    let mut bench = Bench::new(Mode::Event);
    bench.start(&toy, KEY, 0);
    bench.start(&toy, KEY, 0);
    toy.rings[0].add();
    until("the entry is taken", || toy.rings[0].is_empty());
    assert!(bench.stop(KEY, 0).1);
    assert!(!bench.stop(KEY, 0).1, "it ran once");
}

#[test]
fn a_failed_queue_is_told_of_once_and_nobody_else_notices() {
    for mode in MODES {
        let (bad, good) = (Toy::new(), Toy::new());
        let mut bench = Bench::new(mode);
        bench.start(&bad, KEY, 0);
        bench.start(&bad, KEY, 1);
        bench.start(&good, KEY + 1, 0);
        bad.rings[0].malformed.store(true, Ordering::Relaxed);
        bad.rings[0].add();
        let failed = bench.expect(|event| matches!(event, WorkerEvent::Failed { .. }));
        assert!(matches!(failed, WorkerEvent::Failed { device_key: KEY, index: 0, .. }), "{failed:?}");
        for _ in 0..100 {
            // The neighbour in the same engine, and the other engine.
            bad.rings[1].add();
            good.rings[0].add();
            until("others are served", || bad.rings[1].is_empty() && good.rings[0].is_empty());
        }
        assert!(!bad.rings[0].is_empty());
        assert!(!bench.stop(KEY, 0).1, "its error is told at the stop");
        assert!(bench.stop(KEY, 1).1);
        assert!(bench.stop(KEY + 1, 0).1);
        assert!(bench.pending.is_empty(), "{:?}", bench.pending);
    }
}

#[test]
fn a_ring_that_cannot_be_made_fails_and_can_be_stopped() {
    let toy = Toy::new();
    let mut bench = Bench::new(Mode::Event);
    let mut setup = toy.setup(3);
    setup.ring.size = 100;
    let err = setup.err.clone().unwrap();
    let (device, setup) = (toy.clone(), Box::new(setup));
    bench.worker.send(Command::Start { token: 1, device, device_key: KEY, features: 0, setup });
    bench.expect(|event| matches!(event, WorkerEvent::Failed { device_key: KEY, index: 3, .. }));
    assert_eq!(err.drain(), Kicks::Some(1));
    let (state, clean) = bench.stop(KEY, 3);
    assert_eq!((state.next_avail, clean), (103, false));
}

#[test]
fn a_flooded_queue_starves_neither_its_neighbours_nor_commands() {
    for mode in MODES {
        let toy = Toy::new();
        let mut bench = Bench::new(mode);
        for index in [0, 1, 2] {
            bench.start(&toy, KEY, index);
        }
        toy.rings[0].added.store(1 << 60, Ordering::Release);
        toy.rings[0].add();
        for _ in 0..100 {
            toy.rings[1].add();
            toy.rings[2].add();
            until("neighbours are served", || toy.rings[1].is_empty() && toy.rings[2].is_empty());
        }
        assert!(bench.stop(KEY, 0).1, "{mode:?}");
        assert!(!toy.rings[0].is_empty());
    }
}

#[test]
fn a_disabled_queue_holds_its_work_until_it_is_enabled() {
    for mode in MODES {
        let toy = Toy::new();
        let mut bench = Bench::new(mode);
        toy.rings[0].switch.set(Enabled::NotYet);
        bench.start(&toy, KEY, 0);
        bench.start(&toy, KEY, 1);
        toy.rings[0].add();
        toy.rings[1].add();
        until("the other queue is served", || toy.rings[1].is_empty());
        assert!(!toy.rings[0].is_empty());
        toy.rings[0].switch.set(Enabled::Yes);
        bench.worker.send(Command::Look { device_key: KEY, index: 0 });
        until("the entry is taken", || toy.rings[0].is_empty());
    }
}

#[test]
fn the_err_eventfd_can_be_replaced_while_the_queue_runs() {
    let toy = Toy::new();
    let mut bench = Bench::new(Mode::Event);
    bench.start(&toy, KEY, 0);
    let err = Arc::new(EventFd::new().unwrap());
    bench.worker.send(Command::SetErr { device_key: KEY, index: 0, err: Some(err.clone()) });
    toy.rings[0].malformed.store(true, Ordering::Relaxed);
    toy.rings[0].kick.as_ref().unwrap().signal();
    bench.expect(|event| matches!(event, WorkerEvent::Failed { .. }));
    assert_eq!(err.drain(), Kicks::Some(1));
}

#[test]
fn a_call_that_replaces_another_is_made_at_once_as_the_last_one_may_not_have_been_heard() {
    let toy = Toy::new();
    let mut bench = Bench::new(Mode::Event);
    bench.start(&toy, KEY, 0);
    let call = Arc::new(EventFd::new().unwrap());
    bench.worker.send(Command::SetCall { device_key: KEY, index: 0, call: Some(call.clone()) });
    until("it is called", || call.drain() == Kicks::Some(1));
}

#[test]
fn a_ring_that_was_in_use_is_called_for_at_its_start_and_a_fresh_one_is_not() {
    let toy = Toy::new();
    let mut bench = Bench::new(Mode::Event);
    for (state, calls) in [(QueueState::split(0), 0), (QueueState::split(100), 1)] {
        let call = Arc::new(EventFd::new().unwrap());
        let mut setup = toy.setup(0);
        setup.ring.state = state;
        setup.call = Some(call.clone());
        let (device, setup) = (toy.clone(), Box::new(setup));
        bench.worker.send(Command::Start { token: 5, device, device_key: KEY, features: 0, setup });
        bench.expect(|event| matches!(event, WorkerEvent::Started { token: 5 }));
        bench.stop(KEY, 0);
        let heard = call.drain();
        assert_eq!(heard == Kicks::Some(1), calls == 1, "{state:?}: {heard:?}");
    }
}

#[test]
fn a_queue_without_a_kick_is_served_in_every_mode() {
    for mode in MODES {
        let toy = Toy::with_kicks(|_| None);
        let mut bench = Bench::new(mode);
        bench.start(&toy, KEY, 0);
        for _ in 0..20 {
            toy.rings[0].add();
            until("the entry is taken", || toy.rings[0].is_empty());
        }
        bench.stop(KEY, 0);
    }
}

#[test]
fn kicks_that_are_no_eventfds_neither_spin_the_worker_nor_stop_the_queue() {
    let (quiet, _writer) = rustix::pipe::pipe().unwrap();
    let (ended, writer) = rustix::pipe::pipe().unwrap();
    drop(writer);
    let (ready, writer) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&writer, &[0; 4096]).unwrap();
    let unwatchable = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
    for kick in [quiet, ended, ready, unwatchable] {
        let kick = Arc::new(EventFd::unchecked(kick).unwrap());
        let toy = Toy::with_kicks(|_| Some(kick.clone()));
        let mut bench = Bench::new(Mode::Event);
        bench.start(&toy, KEY, 0);
        for _ in 0..3 {
            toy.rings[0].added.fetch_add(1, Ordering::Release);
            // A kick that does nothing is not the worker's fault; a command makes it look.
            bench.worker.send(Command::Look { device_key: KEY, index: 0 });
            until("the entry is taken", || toy.rings[0].is_empty());
            until("the worker sleeps", || bench.sleeps());
        }
        bench.stop(KEY, 0);
    }
}

#[test]
fn a_kick_that_stays_signalled_wakes_the_worker_once() {
    let toy = Toy::new();
    let mut bench = Bench::new(Mode::Event);
    bench.start(&toy, KEY, 0);
    // A semaphore gives out one at a time and stays readable.
    let kick = rustix::event::eventfd(1 << 20, rustix::event::EventfdFlags::SEMAPHORE).unwrap();
    let mut setup = toy.setup(2);
    setup.kick = Some(Arc::new(EventFd::from_fd(kick).unwrap()));
    let (device, setup) = (toy.clone(), Box::new(setup));
    bench.worker.send(Command::Start { token: 9, device, device_key: KEY, features: 0, setup });
    bench.expect(|event| matches!(event, WorkerEvent::Started { token: 9 }));
    until("the worker sleeps", || bench.sleeps());
    bench.stop(KEY, 2);
    assert!(toy.rings[2].stats.counters().kicks < 10);
}

#[test]
fn a_parked_queue_is_looked_at_again_without_a_kick() {
    for mode in MODES {
        let toy = Toy::new();
        let mut bench = Bench::new(mode);
        *toy.rings[0].parked.lock().unwrap() = Some(Instant::now() + Duration::from_millis(20));
        toy.rings[0].added.store(1, Ordering::Release);
        bench.start(&toy, KEY, 0);
        until("the entry is taken", || toy.rings[0].is_empty());
    }
}

#[test]
fn the_mapping_that_a_parked_queue_misses_wakes_its_worker() {
    for mode in MODES {
        let toy = Toy::new();
        toy.rings[0].needs_memory.store(true, Ordering::Release);
        toy.rings[0].added.store(1, Ordering::Release);
        let mut bench = Bench::new(mode);
        bench.start(&toy, KEY, 0);
        until("the queue is parked", || toy.rings[0].stats.counters().parks == 1);
        if mode != Mode::Busy {
            until("the worker sleeps", || bench.sleeps());
        }
        // The toy names no time to look again: nothing but the mapping can wake it.
        let fd = rustix::fs::memfd_create("toy", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        let file = BackingFile::new(fd, &FilePolicy::default()).unwrap();
        let range = IovaRange::with_len(Iova(0), 4096).unwrap();
        let extent = FileExtent { file, offset: 0 }.into();
        toy.ioas.map(Area { range, extent, perm: Perm::READ, log: None }).unwrap();
        until("the entry is taken", || toy.rings[0].is_empty());
    }
}

#[test]
fn kicks_are_counted_up_to_the_stop_in_every_mode() {
    for mode in MODES {
        let toy = Toy::new();
        let mut bench = Bench::new(mode);
        bench.start(&toy, KEY, 0);
        for _ in 0..10 {
            toy.rings[0].kick.as_ref().unwrap().signal();
        }
        bench.stop(KEY, 0);
        assert_eq!(toy.rings[0].stats.counters().kicks, 10, "{mode:?}");
    }
}

#[test]
fn a_worker_that_panics_says_so() {
    let toy = Toy::new();
    let mut bench = Bench::new(Mode::Event);
    bench.start(&toy, KEY, 0);
    // The toy computes a burst from `added - taken`.
    toy.rings[0].taken.store(1, Ordering::Release);
    toy.rings[0].kick.as_ref().unwrap().signal();
    let name = bench.worker.name().to_owned();
    let died = bench.expect(|event| matches!(event, WorkerEvent::Died { .. }));
    assert!(matches!(died, WorkerEvent::Died { worker } if worker == name));
}

#[test]
fn a_processor_that_is_not_there_is_refused() {
    let (sink, _source) = events().unwrap();
    for cpu in [CpuSet::MAX_CPU - 1, usize::MAX] {
        let error = Worker::spawn("test-nowhere", Some(cpu), Mode::Event, sink.clone()).err().unwrap();
        assert!(error.to_string().contains(&format!("processor {cpu}")), "{error}");
    }
}

#[test]
fn a_stop_is_answered_when_the_requests_in_flight_have_ended_and_others_go_on_meanwhile() {
    for mode in MODES {
        let toy = Toy::new();
        let mut bench = Bench::new(mode);
        bench.start(&toy, KEY, 0);
        bench.start(&toy, KEY, 1);
        toy.rings[0].flying.store(1, Ordering::Release);
        bench.worker.send(Command::Stop { token: 9, device_key: KEY, index: 0 });
        for _ in 0..100 {
            toy.rings[1].add();
        }
        until("the other queue goes on", || toy.rings[1].is_empty());
        // Answered after the stop of the first was obeyed.
        bench.start(&toy, KEY, 2);
        toy.rings[0].add();
        toy.rings[1].add();
        until("the other queue goes on", || toy.rings[1].is_empty());
        assert!(!toy.rings[0].is_empty(), "nothing is taken from a queue that stops");
        assert!(bench.source.take().is_empty(), "{mode:?}: it was answered too early");
        if mode != Mode::Busy {
            until("the worker sleeps", || bench.sleeps());
        }
        toy.rings[0].flying.store(0, Ordering::Release);
        toy.bell.signal();
        let event = bench.expect(|event| matches!(event, WorkerEvent::Stopped { token: 9, .. }));
        assert!(matches!(event, WorkerEvent::Stopped { index: 0, clean: true, .. }), "{event:?}");
        bench.stop(KEY, 1);
    }
}

#[test]
fn a_cancel_ends_what_is_in_flight_of_a_queue_that_stops_and_of_no_other() {
    for mode in MODES {
        let toy = Toy::new();
        let mut bench = Bench::new(mode);
        for index in [0, 1] {
            bench.start(&toy, KEY, index);
            toy.rings[usize::from(index)].flying.store(1, Ordering::Release);
        }
        bench.worker.send(Command::Stop { token: 9, device_key: KEY, index: 0 });
        for index in [0, 1] {
            bench.worker.send(Command::Cancel { device_key: KEY, index });
        }
        bench.expect(|event| matches!(event, WorkerEvent::Stopped { token: 9, .. }));
        assert_eq!(toy.rings[1].flying.load(Ordering::Acquire), 1, "{mode:?}");
    }
}

#[test]
fn a_queue_that_is_started_anew_while_it_stops_answers_the_stop() {
    let toy = Toy::new();
    let mut bench = Bench::new(Mode::Event);
    bench.start(&toy, KEY, 0);
    toy.rings[0].flying.store(1, Ordering::Release);
    for token in [8, 9] {
        bench.worker.send(Command::Stop { token, device_key: KEY, index: 0 });
    }
    bench.start(&toy, KEY, 0);
    for wanted in [8, 9] {
        bench.expect(|event| matches!(event, WorkerEvent::Stopped { token, .. } if *token == wanted));
    }
    toy.rings[0].flying.store(0, Ordering::Release);
    toy.rings[0].add();
    until("it runs", || toy.rings[0].is_empty());
    bench.stop(KEY, 0);
}

/// How often the worker looks at a ring while it takes so much, or more, from one that is never empty; and how much.
fn polls_beside(busy: &toy::Ring, idle: &toy::Ring, entries: u64) -> (u64, u64) {
    let (polls, taken) = (idle.polls.load(Ordering::Relaxed), busy.taken.load(Ordering::Acquire));
    until("the busy one goes on", || busy.taken.load(Ordering::Acquire) > taken + entries);
    let entries = busy.taken.load(Ordering::Acquire) - taken;
    (idle.polls.load(Ordering::Relaxed) - polls, entries)
}

/// Many devices, of which the first has work without end.
fn one_busy_among(toys: &[Arc<Toy>], mode: Mode) -> Bench {
    let mut bench = Bench::new(mode);
    for (toy, key) in toys.iter().zip(KEY..) {
        bench.start(toy, key, 0);
    }
    toys[0].rings[0].added.store(u64::MAX / 2, Ordering::Release);
    toys[0].rings[0].add();
    bench
}

#[test]
fn idle_engines_rest_beside_a_busy_one_and_each_is_served_when_its_driver_kicks() {
    for mode in [Mode::Adaptive, Mode::Event] {
        let toys: Vec<_> = (0..40).map(|_| Toy::new()).collect();
        let mut bench = one_busy_among(&toys, mode);
        let (busy, idle) = (&toys[0].rings[0], &toys[1..]);
        for _ in 0..3 {
            for toy in idle {
                until("it is not polled any more", || polls_beside(busy, &toy.rings[0], 1000).0 == 0);
                assert!(toy.rings[0].wants_kicks(), "{mode:?}");
            }
            idle.iter().for_each(|toy| toy.rings[0].add());
            until("all are served", || idle.iter().all(|toy| toy.rings[0].is_empty()));
        }
        for (toy, key) in toys.iter().zip(KEY..) {
            toy.rings[0].add();
            assert!(bench.stop(key, 0).1);
        }
    }
}

#[test]
fn idle_engines_of_a_busy_worker_are_polled_in_turn_and_seldom() {
    let toys: Vec<_> = (0..40).map(|_| Toy::with_kicks(|_| None)).collect();
    let mut bench = one_busy_among(&toys, Mode::Busy);
    let (busy, idle) = (&toys[0].rings[0], &toys[1..]);
    for _ in 0..3 {
        for toy in idle {
            // A round takes at most four entries; so the idle one is polled in less than a twentieth of the rounds.
            until("it rests", || {
                let (polls, entries) = polls_beside(busy, &toy.rings[0], 8000);
                polls * 80 < entries
            });
        }
        idle.iter().for_each(|toy| toy.rings[0].add());
        until("all are served", || idle.iter().all(|toy| toy.rings[0].is_empty()));
    }
    for (_, key) in toys.iter().zip(KEY..) {
        assert!(bench.stop(key, 0).1);
    }
}

#[test]
fn resting_engines_that_nobody_can_wake_are_looked_at_beside_a_busy_one() {
    let toys = [Toy::new(), Toy::with_kicks(|_| None)];
    let _bench = one_busy_among(&toys, Mode::Adaptive);
    let (busy, blind) = (&toys[0].rings[0], &toys[1].rings[0]);
    for _ in 0..3 {
        until("it rests", || polls_beside(busy, blind, 1000).0 == 0);
        blind.add();
        until("it is served", || blind.is_empty());
    }
    *blind.parked.lock().unwrap() = Some(Instant::now() + Duration::from_millis(20));
    blind.add();
    until("its time is over", || blind.is_empty());
}
