//! `mdevd perf`: what a device does under load.
//!
//! The process that runs `perf` is the front-end: it holds a guest's memory and drives the rings. The device is another
//! process, reached through a real vhost-user socket: this same program on cores of its own, started for each cell anew, or whatever
//! listens at a given path.
//!
//! # Objects
//!
//! - A *cell* is one direction and one packet size. [`cell::measure`] attaches to a back-end, looks at 10^5 packets byte
//!   by byte, then drives the rings for a time that is cut into slices, and detaches.
//! - [`drive::Pair`] is a queue pair under load, [`run::drive`] the threads that poll pairs.
//! - [`device::DeviceProcess`] is a device of our own; it answers questions for its counters.
//! - [`outcome::Outcome`] is a judged cell, [`table::table`] and [`crate::report::Report`] what is written of it.
//!
//! # Threads, blocking, failing
//!
//! Driving threads are pinned and do nothing but poll; they share with others only two flags and a channel that is used
//! once a slice. The main thread sleeps meanwhile, asks the device for its counters at the end of each slice, and looks
//! five times a second whether the device is alive. Everything that waits has a limit. A device that loses or changes packets is a
//! result with the status "failed"; one that dies ends the run with an error.
//!
//! # What it does not do
//!
//! Rates below the greatest, offloads, packed rings, devices other than network devices.
pub mod cell;
pub mod device;
pub mod drive;
pub mod frames;
pub mod latency;
pub mod outcome;
pub mod roundtrip;
pub mod run;
pub mod size;
pub mod table;

use crate::report::{Report, median, online_cpus};
use cell::{CellError, CellOptions, measure};
use device::{DeviceError, DeviceOptions, DeviceProcess};
use drive::Direction;
use indicatif::{ProgressBar, ProgressStyle};
use outcome::Outcome;
use run::RunError;
use size::PacketSize;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a device may take from closing its socket to having ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What `mdevd perf net` is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The command as it was typed, for the report.
    pub command: String,
    /// The back-end to drive; `None`: start devices of our own.
    pub socket: Option<PathBuf>,
    /// Packet sizes.
    pub sizes: Vec<PacketSize>,
    /// Directions.
    pub directions: Vec<Direction>,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// Descriptors of each ring.
    pub ring_size: u16,
    /// Time of each cell.
    pub duration: Duration,
    /// Where to write the report; `-` is standard output, which then holds nothing else.
    pub json: Option<PathBuf>,
}

/// Why `perf` failed.
#[derive(Debug, thiserror::Error)]
pub enum PerfError {
    /// A cell could not be measured.
    #[error("{direction} {size}: {source}")]
    Cell {
        /// Its direction.
        direction: Direction,
        /// Its size.
        size: PacketSize,
        /// Why.
        source: CellError,
    },
    /// The device could not be started, or died.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Results are not to be believed.
    #[error("{0} of the results are not to be believed: see the lines above")]
    Faults(usize),
    /// The report could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// Where.
        path: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Ctrl-C, or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

/// Which processors do what.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Layout {
    /// The workers of the device.
    device: Vec<usize>,
    /// The driving threads.
    driver: Vec<usize>,
}

impl Layout {
    /// As many processors on each side as there are pairs, and no more than half of all. With a single one nobody is pinned.
    fn of(cpus: &[usize], queue_pairs: u16) -> Self {
        let each = (cpus.len() / 2).min(queue_pairs.into());
        let (device, rest) = cpus.split_at(each);
        Layout { device: device.to_vec(), driver: rest.iter().take(each).copied().collect() }
    }

    /// The cache line's round trip between the first processor of each side.
    fn round_trip(&self) -> Option<f64> {
        roundtrip::between(*self.device.first()?, *self.driver.first()?)
    }
}

/// Measures all cells, writes the table to `out` and the report to where it belongs. `stop` ends it early.
///
/// # Errors
/// [`PerfError`]; what was measured before is written nonetheless.
pub fn run(options: &Options, stop: &AtomicBool, out: &mut dyn Write) -> Result<(), PerfError> {
    let layout = Layout::of(&online_cpus(), options.queue_pairs);
    let mut report = Report::new(options.command.clone());
    let quiet = options.json.as_ref().is_some_and(|path| path.as_os_str() == "-");
    let mut print = |text: String| {
        // A reader that is gone does not change what is measured.
        if !quiet {
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
    };
    print(introduction(options, &layout, &report));
    let (outcomes, mut result) = all_cells(options, &layout, stop);
    print(table::table(&outcomes));
    for outcome in &outcomes {
        for fault in &outcome.faults {
            print(format!("{} {}: {fault}\n", outcome.direction, outcome.size));
        }
        report.results.extend(outcome.measurements().cloned());
    }
    let mut lines: Vec<f64> =
        outcomes.iter().flat_map(|outcome| outcome.cache_line.samples.clone()).collect();
    lines.sort_by(f64::total_cmp);
    report.machine.cacheline_round_trip_ns = (!lines.is_empty()).then(|| median(&lines));
    if result.is_ok() && report.failed() {
        result = Err(PerfError::Faults(outcomes.iter().filter(|outcome| !outcome.faults.is_empty()).count()));
    }
    if let Some(path) = &options.json {
        let written = report.write_to(path);
        let path = path.display().to_string();
        result = result.and(written.map_err(|source| PerfError::Write { path, source }));
    }
    result
}

fn introduction(options: &Options, layout: &Layout, report: &Report) -> String {
    let list = |cpus: &[usize]| cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let machine = &report.machine;
    let place = match (&options.socket, layout.device.is_empty()) {
        (Some(path), true) => format!("back-end at {}, one processor for all", path.display()),
        (Some(path), false) => {
            format!("back-end at {}, front-end on processor {}", path.display(), list(&layout.driver))
        }
        (None, true) => "device and front-end share one processor: figures mean little".to_owned(),
        (None, false) => {
            format!("device on processor {}, front-end on {}", list(&layout.device), list(&layout.driver))
        }
    };
    format!(
        "mdevd {} ({}), {}, Linux {}\n{place}; {} queue pair{}, rings of {}, {} s each\n\n",
        report.version,
        report.commit,
        machine.cpu,
        machine.kernel,
        options.queue_pairs,
        if options.queue_pairs == 1 { "" } else { "s" },
        options.ring_size,
        options.duration.as_secs_f64(),
    )
}

/// Cell by cell, up to the first that cannot be measured, which is the last outcome.
fn all_cells(options: &Options, layout: &Layout, stop: &AtomicBool) -> (Vec<Outcome>, Result<(), PerfError>) {
    let cells: Vec<(Direction, PacketSize)> = options
        .directions
        .iter()
        .flat_map(|&direction| options.sizes.iter().map(move |&size| (direction, size)))
        .collect();
    let bar = ProgressBar::new((cells.len() * cell::SLICES) as u64);
    // A template that does not parse leaves the default one.
    if let Ok(style) = ProgressStyle::with_template("{msg:20} [{bar:40}] {elapsed} of about {duration}") {
        bar.set_style(style.progress_chars("=> "));
    }
    let mut outcomes = Vec::new();
    let mut result = Ok(());
    for (direction, size) in cells {
        bar.set_message(format!("{direction} {size}"));
        bar.tick();
        match one_cell(options, layout, direction, size, stop, &bar) {
            Ok(outcome) => outcomes.push(outcome),
            Err(error) => {
                outcomes.push(Outcome::failed(direction, size));
                result = Err(error);
                break;
            }
        }
    }
    bar.finish_and_clear();
    (outcomes, result)
}

fn one_cell(
    options: &Options,
    layout: &Layout,
    direction: Direction,
    size: PacketSize,
    stop: &AtomicBool,
    bar: &ProgressBar,
) -> Result<Outcome, PerfError> {
    let mut lines: Vec<f64> = layout.round_trip().into_iter().collect();
    let cell_options = CellOptions {
        direction,
        size,
        queue_pairs: options.queue_pairs,
        ring_size: options.ring_size,
        duration: options.duration,
        cpus: layout.driver.clone(),
        numbered: options.socket.is_none(),
    };
    let progress = || bar.inc(1);
    let measured = match &options.socket {
        Some(socket) => measure(socket, &cell_options, stop, || None, progress),
        None => {
            let mut device = DeviceProcess::start(&DeviceOptions {
                program: None,
                direction,
                size,
                queue_pairs: options.queue_pairs,
                cpus: layout.device.clone(),
            })?;
            let socket = device.socket();
            let measured = measure(&socket, &cell_options, stop, || device.counters().ok(), progress);
            // The device's own last words say more than that its socket closed.
            if measured.is_err()
                && !stop.load(Ordering::Relaxed)
                && let Some(error) = device.ended(LAST_WORDS)
            {
                return Err(error.into());
            }
            measured
        }
    };
    let measured = measured.map_err(|source| match source {
        _ if stop.load(Ordering::Relaxed) => PerfError::Interrupted,
        CellError::Run(RunError::Interrupted) => PerfError::Interrupted,
        source => PerfError::Cell { direction, size, source },
    })?;
    lines.extend(layout.round_trip());
    Ok(Outcome::of(direction, size, &measured, &lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_split_between_device_and_driver() {
        let layout = |cpus: &[usize], pairs| Layout::of(cpus, pairs);
        assert_eq!(layout(&[0, 1], 1), Layout { device: vec![0], driver: vec![1] });
        assert_eq!(layout(&[0, 1], 4), Layout { device: vec![0], driver: vec![1] });
        assert_eq!(layout(&[2, 3, 5, 7, 8], 4), Layout { device: vec![2, 3], driver: vec![5, 7] });
        assert_eq!(layout(&[0], 1), Layout { device: vec![], driver: vec![] });
        assert_eq!(layout(&[0], 1).round_trip(), None);
    }
}
