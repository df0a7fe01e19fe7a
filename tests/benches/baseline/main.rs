//! mdevd against the device that one writes today with `vhost-user-backend` and `virtio-queue`, packet by packet of 64
//! bytes, under the same front-end on the same two cores.
//!
//! The two take turns (A B A B ...), since what crosses cores drifts on shared machines: only neighbours are compared, and
//! the cache line's round trip stands beside each. Each turn is a new process and a new connection; both are verified
//! in the same way before they are timed.
//!
//! `cargo bench -p mdev-tests --bench baseline [-- --rounds N] [--duration TIME] [--json FILE]`
//!
//! The exit status is 0 if mdevd reaches at least [`GOAL`] times the baseline in every direction, 1 if not.
mod back_end;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use mdevd::perf::cell::{CellOptions, CellResult, measure};
use mdevd::perf::device::{DeviceOptions, DeviceProcess};
use mdevd::perf::drive::Direction;
use mdevd::perf::outcome::Outcome;
use mdevd::perf::roundtrip;
use mdevd::perf::shape::Shape;
use mdevd::perf::size::PacketSize;
use mdevd::report::{Measurement, Report, Status, median, online_cpus};

/// How many times the baseline's packets mdevd is to move.
const GOAL: f64 = 3.0;
const SIZE: PacketSize = PacketSize::Bytes(64);
const DIRECTIONS: [Direction; 3] = [Direction::To, Direction::From, Direction::Loop];

/// Compares mdevd with a device made of vhost-user-backend and virtio-queue
#[derive(Debug, Parser)]
struct Args {
    /// Pairs of measurements in each direction
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Time of each measurement
    #[arg(long, default_value = "1s", value_parser = mdevd::cli::parse_duration)]
    duration: Duration,
    /// Descriptors of each ring
    #[arg(long, default_value_t = 256)]
    ring_size: u16,
    /// Write the results as JSON to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Cargo says this
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the baseline at this socket
    #[arg(long, hide = true, requires = "direction")]
    serve: Option<PathBuf>,
    /// What the baseline does
    #[arg(long, hide = true)]
    direction: Option<Direction>,
    /// Where it does it
    #[arg(long, hide = true)]
    cpu: Option<usize>,
}

fn main() -> ExitCode {
    // The device under test is this very program too, started again as `baseline net ...`.
    if std::env::args().nth(1).is_some_and(|word| word == "net") {
        return mdevd::cli::main();
    }
    let args = Args::parse();
    let result = match (&args.serve, args.direction) {
        (Some(socket), Some(direction)) => {
            back_end::serve(socket, direction, SIZE.greatest().into(), args.cpu)
                .map(|()| true)
                .map_err(Into::into)
        }
        _ => compare(&args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("baseline: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The baseline's process, ended when dropped.
struct Baseline {
    child: Child,
    directory: tempfile::TempDir,
}

impl Baseline {
    fn start(direction: Direction, cpu: usize) -> Result<Self, Box<dyn Error>> {
        let directory = tempfile::tempdir()?;
        let child = Command::new(std::env::current_exe()?)
            .arg("--serve")
            .arg(directory.path().join("net.sock"))
            .args(["--direction", direction.name(), "--cpu", &cpu.to_string()])
            .spawn()?;
        let mut baseline = Baseline { child, directory };
        while !baseline.socket().exists() {
            if let Some(status) = baseline.child.try_wait()? {
                return Err(format!("the baseline's process has ended: {status}").into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(baseline)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("net.sock")
    }
}

impl Drop for Baseline {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The two processors of a run.
#[derive(Copy, Clone)]
struct Cores {
    device: usize,
    driver: usize,
}

impl Cores {
    fn options(self, direction: Direction, args: &Args) -> CellOptions {
        CellOptions {
            direction,
            size: SIZE,
            queue_pairs: 1,
            shape: Shape::plain(args.ring_size),
            duration: args.duration,
            cpus: vec![self.driver],
            numbered: false,
        }
    }

    /// Measures a back-end, with the cache line's round trip before and after.
    fn measure(
        self,
        direction: Direction,
        args: &Args,
        run: impl FnOnce(&CellOptions) -> Result<CellResult, Box<dyn Error>>,
    ) -> Result<Outcome, Box<dyn Error>> {
        let mut lines: Vec<f64> = roundtrip::between(self.device, self.driver).into_iter().collect();
        let result = run(&self.options(direction, args))?;
        lines.extend(roundtrip::between(self.device, self.driver));
        let outcome = Outcome::of(direction, SIZE, &result, &lines);
        match outcome.faults.first() {
            Some(fault) => Err(format!("{direction}: {fault}").into()),
            None => Ok(outcome),
        }
    }
}

fn mdevd_turn(cores: Cores, options: &CellOptions) -> Result<CellResult, Box<dyn Error>> {
    let mut device = DeviceProcess::start(&DeviceOptions {
        program: None,
        direction: options.direction,
        size: SIZE,
        queue_pairs: 1,
        cpus: vec![cores.device],
    })?;
    let socket = device.socket();
    run(&socket, options, || device.counters().ok())
}

fn baseline_turn(cores: Cores, options: &CellOptions) -> Result<CellResult, Box<dyn Error>> {
    let baseline = Baseline::start(options.direction, cores.device)?;
    run(&baseline.socket(), options, || None)
}

fn run(
    socket: &Path,
    options: &CellOptions,
    counters: impl FnMut() -> Option<mdevd::report::CounterLine>,
) -> Result<CellResult, Box<dyn Error>> {
    Ok(measure(socket, options, &AtomicBool::new(false), counters, || ())?)
}

fn compare(args: &Args) -> Result<bool, Box<dyn Error>> {
    let [device, driver, ..] = online_cpus()[..] else {
        return Err("two processors are needed, one for each side".into());
    };
    let cores = Cores { device, driver };
    let mut report = Report::new("cargo bench -p mdev-tests --bench baseline");
    println!(
        "{}, Linux {}, device on {device}, front-end on {driver}",
        report.machine.cpu, report.machine.kernel
    );
    println!(
        "64-byte packets, rings of {}, {:?} each, Mpps (cache line round trip)\n",
        args.ring_size, args.duration
    );
    println!("{:<6}{:>6}{:>22}{:>22}{:>8}", "", "round", "mdevd", "baseline", "ratio");
    let mut lines = Vec::new();
    let mut summary = Vec::new();
    for direction in DIRECTIONS {
        let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=args.rounds {
            let a = cores.measure(direction, args, |options| mdevd_turn(cores, options))?;
            let b = cores.measure(direction, args, |options| baseline_turn(cores, options))?;
            let ratio = a.rate.median / b.rate.median;
            println!("{:<6}{round:>6}{:>22}{:>22}{ratio:>8.2}", direction.name(), shown(&a), shown(&b));
            lines.extend(a.cache_line.samples.iter().chain(&b.cache_line.samples));
            ours.push(a.rate.median);
            theirs.push(b.rate.median);
            ratios.push(ratio);
        }
        let ratio = Measurement::new(format!("{direction}/{SIZE}/ratio"), "ratio", ratios);
        let reached = ratio.median >= GOAL;
        let judged = ratio.with_status(if reached { Status::Ok } else { Status::Failed });
        summary.push((
            Measurement::new(format!("mdevd/{direction}/{SIZE}/rate"), "Mpps", ours),
            Measurement::new(format!("baseline/{direction}/{SIZE}/rate"), "Mpps", theirs),
            judged,
        ));
    }
    println!("\nmedians (range):");
    for (direction, (ours, theirs, ratio)) in DIRECTIONS.iter().zip(&summary) {
        let verdict = if ratio.status == Status::Ok { "reached" } else { "NOT reached" };
        println!(
            "{:<6} mdevd {}  baseline {}  ratio {}  goal of {GOAL} {verdict}",
            direction.name(),
            range(ours),
            range(theirs),
            range(ratio),
        );
    }
    lines.sort_by(f64::total_cmp);
    report.machine.cacheline_round_trip_ns = (!lines.is_empty()).then(|| median(&lines));
    report.results = summary.into_iter().flat_map(|(ours, theirs, ratio)| [ours, theirs, ratio]).collect();
    if let Some(path) = &args.json {
        report.write_to(path)?;
    }
    Ok(!report.failed())
}

fn shown(outcome: &Outcome) -> String {
    format!("{:.2} ({:.0} ns)", outcome.rate.median, outcome.cache_line.median)
}

fn range(result: &Measurement) -> String {
    format!("{:.2} ({:.2}-{:.2})", result.median, result.min, result.max)
}
