//! Two devices on one worker: what a request that is held on one of them, with messages that wait for it, does to the
//! latencies of the other.
//!
//! `cargo bench -p mdevd --bench neighbour [-- nvme] [-- MILLISECONDS]`: block devices over vhost-user, or NVMe controllers over vfio-user.
//! The worker polls on processor 0, the driver of the other device runs on processor 1, one read at a time. Phases of three seconds take
//! turns:
//!
//! - *alone*: nobody is there on the first device.
//! - *apart*: a request is held, and what [`blk`] or [`nvme`] says is done to its device, some of it every 100 milliseconds, or as often
//!   as the argument says. But it is a device of another daemon: all of this costs the two processors the same as
//!   beside, and the worker nothing.
//! - *beside*: the same on the first device, which has the worker in common with the other one.
//!
//! What the worker has to do with it is the difference between the last two; what the machine has to do with it, that between the first two.

mod blk;
mod nvme;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mdevd::daemon::{Daemon, DaemonError, Door, Kind, Model, Plan, Plans, Shared};
use mdevd::perf::roundtrip;
use mdevd::store::held::{Delay, Held};
use mdevd::worker::Mode;
use rustix::process::{Signal, getpid, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use tempfile::TempDir;

const PHASE: Duration = Duration::from_secs(3);
const PACE: Duration = Duration::from_millis(100);
const ANSWER: Duration = Duration::from_secs(20);
const SIZE: u64 = 1 << 20;
const BLOCK: u32 = 4096;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// A kind of devices, and what can be done to them.
trait Scene: Sized {
    /// What is done to the device whose request is held, one thing in each phase.
    const DONE: [&str; 3];

    /// The device of this name. The one called `held` has such a store.
    fn kind(name: &str) -> Kind;

    /// The device as planned.
    fn make(plan: &Plan, held: &Held) -> Result<Model, String>;

    /// A driver of the device at this path.
    fn connect(path: &Path) -> Outcome<Self>;

    /// Reads a block, and waits for it without a pause.
    fn read(&mut self) -> Outcome;

    /// Does one of [`Scene::DONE`] to the device at this path for a phase, with a request held. How often what is done at this pace was
    /// done.
    fn disturb(path: &Path, held: &Held, done: &str, pace: Duration) -> Outcome<u32>;
}

/// The two devices.
struct Two {
    folder: PathBuf,
    held: Held,
    kind: fn(&str) -> Kind,
    make: fn(&Plan, &Held) -> Result<Model, String>,
}

impl Plans for Two {
    fn read(&mut self) -> Result<Vec<Plan>, Vec<String>> {
        let plan = |name: &str| Plan {
            name: name.to_owned(),
            door: Door::Listen { path: self.folder.join(name), mode: None },
            kind: (self.kind)(name),
            workers: Vec::new(),
            sessions: Default::default(),
        };
        Ok(vec![plan("held"), plan("other")])
    }

    fn make(&mut self, plan: &Plan) -> Result<Model, String> {
        (self.make)(plan, &self.held)
    }
}

/// Waits until a request is held, and has it end when the phase does, which begins now.
fn hold(held: &Held) -> Outcome<Instant> {
    let begun = Instant::now();
    loop {
        match held.pending().first() {
            Some(pending) => {
                held.delay(pending.id, Delay::Until(begun + PHASE));
                return Ok(begun);
            }
            None if begun.elapsed() > ANSWER => return Err("the request is not taken".into()),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Reads one block at a time for a phase.
fn measure<S: Scene>(driver: &mut S) -> Outcome<Histogram<u64>> {
    let mut latencies = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
    let end = Instant::now() + PHASE;
    loop {
        let begun = Instant::now();
        if begun >= end {
            return Ok(latencies);
        }
        driver.read()?;
        latencies.saturating_record(begun.elapsed().as_nanos() as u64);
    }
}

fn row(what: &str, phase: &str, latencies: &Histogram<u64>) {
    let at = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{what:<6} {phase:<7} {:>9} {:>8.2} {:>8.2} {:>8.2} {:>9.2} {:>9.1}",
        latencies.len(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(0.9999),
        latencies.max() as f64 / 1000.0
    );
}

/// Measures the other device while something is done to the device at `path`.
fn disturbed<S: Scene>(
    path: &Path,
    held: &Held,
    done: &'static str,
    pace: Duration,
    other: &mut S,
) -> Outcome<Histogram<u64>> {
    let disturbance: JoinHandle<Outcome<u32>> = {
        let (path, held) = (path.to_owned(), held.clone());
        std::thread::spawn(move || S::disturb(&path, &held, done, pace))
    };
    let measured = measure(other);
    let rounds = disturbance.join().map_err(|_| "the disturbance failed")??;
    if rounds == 0 { Err("nothing was done".into()) } else { measured }
}

/// A daemon of two devices, in a thread of its own.
struct Serving {
    folder: TempDir,
    held: Held,
    thread: JoinHandle<Result<(), DaemonError>>,
}

impl Serving {
    fn start<S: Scene>(mode: Mode, worker: Option<usize>) -> Outcome<Serving> {
        let folder = tempfile::tempdir()?;
        let held = Held::new(vec![0; SIZE as usize]);
        let plans =
            Two { folder: folder.path().to_owned(), held: held.clone(), kind: S::kind, make: S::make };
        let shared = Shared { mode, workers: vec![worker], stats: None };
        let daemon = Daemon::of_plans(Box::new(plans), &shared)?;
        Ok(Serving { folder, held, thread: std::thread::spawn(move || daemon.run()) })
    }

    fn socket(&self, device: &str) -> PathBuf {
        self.folder.path().join(device)
    }
}

fn run<S: Scene>(pace: Duration) -> Outcome {
    let beside = Serving::start::<S>(Mode::Busy, Some(0))?;
    let apart = Serving::start::<S>(Mode::Event, None)?;

    let mut processor = CpuSet::new();
    processor.set(1);
    // Without a second processor the figures mean little, and are printed all the same.
    let _ = sched_setaffinity(None, &processor);
    let mut other = S::connect(&beside.socket("other"))?;
    println!("reads of the other device, latencies in us; what comes and goes does so every {pace:?}\n");
    println!(
        "{:<6} {:<7} {:>9} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "done", "phase", "reads", "p50", "p99", "p99.9", "p99.99", "max"
    );
    measure(&mut other)?;
    for _ in 0..3 {
        let trip = roundtrip::between(0, 1).map_or_else(|| "unknown".to_owned(), |ns| format!("{ns:.0} ns"));
        println!("cache-line round trip: {trip}");
        for done in S::DONE {
            row(done, "alone", &measure(&mut other)?);
            for (phase, daemon) in [("apart", &apart), ("beside", &beside)] {
                let held = daemon.socket("held");
                row(done, phase, &disturbed(&held, &daemon.held, done, pace, &mut other)?);
            }
        }
    }
    kill_process(getpid(), Signal::TERM)?;
    for daemon in [beside, apart] {
        daemon.thread.join().map_err(|_| "a daemon failed")??;
    }
    Ok(())
}

fn main() -> Outcome {
    // cargo passes options of its own.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let pace =
        arguments.iter().find_map(|argument| argument.parse().ok()).map_or(PACE, Duration::from_millis);
    if arguments.iter().any(|argument| argument == "nvme") {
        run::<nvme::Host>(pace)
    } else {
        run::<blk::Guest>(pace)
    }
}
