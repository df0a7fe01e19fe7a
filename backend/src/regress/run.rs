//! One scenario under way: its rounds, its clock, and the watchdog beside it.
use super::random::Random;
use super::scenario::{Body, Outcome, Scenario};
use crate::report::online_cpus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often the watchdog looks, and how long traces of a scenario may take to be gone.
const LOOK: Duration = Duration::from_millis(20);
const SETTLE: Duration = Duration::from_secs(2);
/// An operation that has taken so many times its bound hangs.
const PATIENCE: u32 = 10;

/// Takes a lock; a thread that panicked with it fails its scenario by itself.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a scenario gets: how often, by which chance, and somebody who takes the time.
pub struct Run {
    rounds: u32,
    seed: u64,
    threads: usize,
    started: Instant,
    round: AtomicU64,
    /// When the thread that directs the scenario last got on, in nanoseconds since the start.
    alive: AtomicU64,
    worst: AtomicU64,
    step: Mutex<&'static str>,
}

impl Run {
    fn new(rounds: u32, seed: u64) -> Self {
        Run {
            rounds,
            seed,
            // The directing thread has a processor, and workers have the others.
            threads: online_cpus().len().saturating_sub(1).clamp(1, 8),
            started: Instant::now(),
            round: AtomicU64::new(0),
            alive: AtomicU64::new(0),
            worst: AtomicU64::new(0),
            step: Mutex::new("begin"),
        }
    }

    /// Threads that may spin beside the one that directs the scenario.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// One of `share` of the rounds, at least one, each with its own chance. For scenarios whose rounds take long,
    /// `share` is large.
    pub fn rounds(&self, share: u32) -> impl Iterator<Item = Random> + '_ {
        let rounds = self.rounds.checked_div(share).unwrap_or(1).max(1);
        (0..u64::from(rounds)).map(|round| {
            self.round.store(round, Ordering::Relaxed);
            self.beat();
            Random::of(self.seed, round)
        })
    }

    /// Does `what`, takes the time, and lets the watchdog know. On the thread that directs the scenario only.
    pub fn time<T>(&self, what: &'static str, work: impl FnOnce() -> T) -> T {
        *lock(&self.step) = what;
        self.beat();
        let begin = Instant::now();
        let result = work();
        self.note(begin.elapsed());
        self.beat();
        result
    }

    /// A time that an operation took, on any thread.
    pub fn note(&self, took: Duration) {
        self.worst.fetch_max(nanos(took), Ordering::Relaxed);
    }

    fn beat(&self) {
        self.alive.store(nanos(self.started.elapsed()), Ordering::Relaxed);
    }

    fn silent_for(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_nanos(self.alive.load(Ordering::Relaxed)))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What became of a scenario.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It holds; the longest time that an operation took.
    Ok(Duration),
    /// It does not: why, and the longest time that an operation took.
    Failed(String, Duration),
    /// It cannot be played here: what it needs.
    Skipped(&'static str),
}

/// One scenario at a time in a process: they measure time, and count what the process has open.
static STAGE: Mutex<()> = Mutex::new(());

/// Plays a scenario on a thread of its own, and returns even if that hangs. Nothing of it may be left then: neither
/// descriptors, nor mappings of memory files.
pub fn play(scenario: &Scenario, rounds: u32, seed: u64) -> Verdict {
    let body = match scenario.body {
        Body::Needs(what) => return Verdict::Skipped(what),
        Body::Play(body) => body,
    };
    let _alone = lock(&STAGE);
    let before = Traces::of_this_process();
    let run = Arc::new(Run::new(rounds, seed));
    let (done, result) = channel();
    let player = run.clone();
    let thread = std::thread::Builder::new().name("regress".to_owned()).spawn(move || {
        // Nobody listens any more once the watchdog has given it up.
        let _ = done.send(body(&player));
    });
    let ended = match thread {
        Ok(thread) => {
            let ended = watch(&run, scenario.bound, || result.recv_timeout(LOOK));
            // A thread that hangs is left behind; the process ends without it.
            if !matches!(ended, Err(Ended::Hangs)) && thread.join().is_err() {
                Err("a thread panicked; its message is above".to_owned())
            } else {
                ended.map_err(|hung| hung.text(&run))
            }
        }
        Err(error) => Err(format!("no thread: {error}")),
    };
    let worst = Duration::from_nanos(run.worst.load(Ordering::Relaxed));
    let ended = ended.and_then(|outcome| {
        outcome.map_err(|failure| format!("round {}: {failure}", run.round.load(Ordering::Relaxed)))
    });
    let judged = ended.and_then(|()| before.are_all_that_is_left()).and_then(|()| {
        if worst > scenario.bound.saturating_mul(PATIENCE) {
            return Err(format!("an operation took {worst:?}, more than {PATIENCE} times its bound"));
        }
        Ok(())
    });
    match judged {
        Ok(()) => Verdict::Ok(worst),
        Err(why) => Verdict::Failed(why, worst),
    }
}

enum Ended {
    Panicked,
    Hangs,
}

impl Ended {
    fn text(&self, run: &Run) -> String {
        match self {
            Ended::Panicked => "its thread ended without a result".to_owned(),
            Ended::Hangs => format!(
                "round {}: it hangs in the step {:?}",
                run.round.load(Ordering::Relaxed),
                *lock(&run.step)
            ),
        }
    }
}

fn watch(
    run: &Run,
    bound: Duration,
    mut result: impl FnMut() -> Result<Outcome, RecvTimeoutError>,
) -> Result<Outcome, Ended> {
    loop {
        match result() {
            Ok(outcome) => return Ok(outcome),
            Err(RecvTimeoutError::Disconnected) => return Err(Ended::Panicked),
            Err(RecvTimeoutError::Timeout) if run.silent_for() > bound.saturating_mul(PATIENCE) => {
                return Err(Ended::Hangs);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// What a process has open.
#[derive(Copy, Clone, Debug, PartialEq)]
struct Traces {
    descriptors: usize,
    windows: usize,
}

impl Traces {
    fn of_this_process() -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        Traces {
            descriptors: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            windows: maps.lines().filter(|line| line.contains("/memfd:")).count(),
        }
    }

    /// Waits for a moment: threads that have ended let go of what they had a little later.
    fn are_all_that_is_left(self) -> Result<(), String> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let now = Traces::of_this_process();
            if now.descriptors <= self.descriptors && now.windows <= self.windows {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "it leaves something behind: {} descriptors and {} windows before, {} and {} after",
                    self.descriptors, self.windows, now.descriptors, now.windows
                ));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
