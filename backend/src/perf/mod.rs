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
//! - [`shape::Shape`] is how the rings look and are used; [`ground::Ground`] what all measurements of a run stand on.
//! - [`trial`] offers frames at rates below the greatest, paced by [`pace::Pace`]: [`search`] halves the way to the highest rate
//!   without a loss, [`delays`] takes every frame's latency.
//! - [`against`] measures several back-ends in turns, [`pairs::Comparison`] is what may be concluded from that.
//! - [`drive::Pair`] is a queue pair under load, [`driven::Driven`] whatever a thread polls, [`run::drive`] the threads that poll pairs.
//! - [`device::DeviceProcess`] is a device of our own; it answers questions for its counters.
//! - [`blk`] does the same for block devices and NVMe controllers, with requests instead of packets.
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
//! Offloads, devices other than network and block devices.
pub mod against;
pub mod attached;
pub mod blk;
pub mod cell;
pub mod delays;
pub mod device;
pub mod drive;
pub mod driven;
pub mod frames;
mod greatest;
pub mod ground;
pub mod latency;
pub mod layout;
pub mod outcome;
pub mod pace;
pub mod pairs;
pub mod pause;
pub mod roundtrip;
pub mod run;
pub mod search;
pub mod shape;
pub mod size;
pub mod table;
pub mod trial;
mod zero_loss;

use crate::report::html::{self, Figure};
use crate::report::{Measurement, Report, median, online_cpus};
use against::Against;
use cell::CellError;
use delays::Load;
use device::DeviceError;
use drive::Direction;
use layout::Layout;
use pause::PauseError;
use search::SearchOptions;
use shape::Shape;
use size::PacketSize;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

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
    /// What the rings look like.
    pub shape: Shape,
    /// Time of each cell, and of each back-end in it.
    pub duration: Duration,
    /// What to find out.
    pub mode: Mode,
    /// Where to write the report; `-` is standard output, which then holds nothing else.
    pub json: Option<PathBuf>,
    /// Where to write the report as a page for people.
    pub html: Option<PathBuf>,
}

/// What to find out about a back-end.
#[derive(Clone, Debug)]
pub enum Mode {
    /// The greatest rate.
    Greatest,
    /// How it compares with others.
    Against(Against),
    /// The highest rate without a loss.
    ZeroLoss(SearchOptions),
    /// How long a frame takes, under each of these loads.
    Latency(Vec<Load>),
}

/// What a run has found, in whatever mode.
#[derive(Clone, Debug, Default)]
struct Findings {
    /// What is printed of it.
    table: String,
    /// What is wrong with the packets, a line each.
    faults: Vec<String>,
    /// How many rows of the table that spoils.
    failed: usize,
    /// What is reported of it.
    results: Vec<Measurement>,
    /// Round trips of a cache line.
    lines: Vec<f64>,
    /// What is drawn of it.
    figures: Vec<Figure>,
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
    /// The same of a block device.
    #[error("{cell}: {source}")]
    BlkCell {
        /// The cell.
        cell: String,
        /// Why.
        source: CellError,
    },
    /// The device could not be started, or died.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Other back-ends cannot be stopped.
    #[error(transparent)]
    Pause(#[from] PauseError),
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

/// Measures all cells, writes the table to `out` and the report to where it belongs. `stop` ends it early.
///
/// # Errors
/// [`PerfError`]; what was measured before is written nonetheless.
pub fn run(options: &Options, stop: &AtomicBool, out: &mut dyn Write) -> Result<(), PerfError> {
    let layout = Layout::of(&online_cpus(), options.queue_pairs);
    let report = Report::new(options.command.clone());
    let introduction = introduction(options, &layout, &report);
    let written = Written { json: options.json.as_deref(), html: options.html.as_deref() };
    written.around(report, introduction, out, || match &options.mode {
        Mode::Greatest => greatest::run(options, &layout, stop),
        Mode::Against(others) => against::run(options, others, &layout, stop),
        Mode::ZeroLoss(how) => zero_loss::run(options, how, &layout, stop),
        Mode::Latency(loads) => delays::run(options, loads, &layout, stop),
    })
}

/// Where a report is written to.
struct Written<'r> {
    json: Option<&'r Path>,
    html: Option<&'r Path>,
}

impl Written<'_> {
    /// Prints what is measured, measures, prints what was found, and writes the report.
    fn around(
        &self,
        mut report: Report,
        introduction: String,
        out: &mut dyn Write,
        measure: impl FnOnce() -> (Findings, Result<(), PerfError>),
    ) -> Result<(), PerfError> {
        let quiet = self.json.is_some_and(|path| path.as_os_str() == "-");
        let mut print = |text: &str| {
            // A reader that is gone does not change what is measured.
            if !quiet {
                let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            }
        };
        print(&introduction);
        let (findings, mut result) = measure();
        let faults = findings.faults.iter().map(|fault| format!("{fault}\n"));
        let table = std::iter::once(findings.table).chain(faults).collect::<String>();
        print(&table);
        report.results = findings.results;
        let mut lines = findings.lines;
        lines.sort_by(f64::total_cmp);
        report.machine.cacheline_round_trip_ns = (!lines.is_empty()).then(|| median(&lines));
        if result.is_ok() && (findings.failed > 0 || report.failed()) {
            result = Err(PerfError::Faults(findings.failed.max(1)));
        }
        let refused = |path: &Path| {
            let path = path.display().to_string();
            move |source| PerfError::Write { path, source }
        };
        if let Some(path) = self.json {
            result = result.and(report.write_to(path).map_err(refused(path)));
        }
        if let Some(path) = self.html {
            let page = html::page(&report, &(introduction + &table), &findings.figures);
            result = result.and(fs::write(path, page).map_err(refused(path)));
        }
        result
    }
}

fn introduction(options: &Options, layout: &Layout, report: &Report) -> String {
    format!(
        "{}; {} queue pair{}, {}, {} s each\n\n",
        whereabouts(options.socket.as_deref(), layout, report),
        options.queue_pairs,
        if options.queue_pairs == 1 { "" } else { "s" },
        options.shape,
        options.duration.as_secs_f64(),
    )
}

/// Who measures what, and on which processors.
fn whereabouts(socket: Option<&Path>, layout: &Layout, report: &Report) -> String {
    let list = |cpus: &[usize]| cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let machine = &report.machine;
    let place = match (socket, layout.device.is_empty()) {
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
        "mdevd {} ({}), {}, Linux {}\n{place}",
        report.version, report.commit, machine.cpu, machine.kernel
    )
}
