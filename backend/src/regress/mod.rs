//! `mdevd regress`: what happens to a device whose memory is taken away, replayed.
//!
//! The scenarios are those in which devices on somebody else's memory were seen to hang, to crash, or to write where
//! they must not. Each is one function; it is played for some rounds, and holds or fails. Nothing in it needs
//! privileges, a virtual machine or a network.
//!
//! # Objects
//!
//! - [`Scenario`]: its number, name and origin, the bound of its operations, and how it goes.
//! - [`Run`]: one scenario under way. [`play`] is the only way to run one: on a thread of its own, with a
//!   watchdog beside it, and a count of descriptors and mappings before and after.
//! - `Space`: a space, a device and its access, for the scenarios on memory.
//! - [`table::table`] and [`crate::report::Report`]: what is written of it.
//!
//! # Threads, locks, blocking, failing
//!
//! One scenario at a time in a process, under one lock. A scenario directs from one thread and has at most as many
//! spinning ones as there are processors. Everything that it waits for has a limit. If it hangs all the same, its
//! threads are left behind, it has failed, and the next one is played. Chance comes from one seed, so that what was
//! decided by it can be had again; what the scheduler did cannot.
//!
//! # What it does not do
//!
//! It does not measure rates, and its times are bounds, not figures. It waits for no bound that is meant to pass in
//! a minute: a callback that never returns.
mod absent;
mod callback;
mod charge;
mod close;
mod contents;
mod hosted;
mod isolation;
mod nvme;
mod owner;
mod parking;
mod random;
mod run;
mod scenario;
mod socket;
mod space;
pub mod table;
mod unmap;
mod vduse;

use crate::report::{Measurement, Report, Status};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

pub use run::{Run, Verdict, play};
pub use scenario::{Body, ELSEWHERE, Failure, Outcome, Scenario, Transport, scenarios};
pub use vduse::drive;

/// What `mdevd regress` is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The command as it was typed, for the report.
    pub command: String,
    /// Only scenarios with this in their name, or of this number.
    pub filter: Option<String>,
    /// How often the quickest scenarios are repeated; slower ones less often.
    pub rounds: u32,
    /// Where chance begins.
    pub seed: u32,
    /// What the scenarios act on.
    pub transport: Transport,
    /// Where to write the report; `-` is standard output, which then holds nothing else.
    pub json: Option<PathBuf>,
}

/// Why `regress` failed.
#[derive(Debug, thiserror::Error)]
pub enum RegressError {
    /// No scenario fits the filter.
    #[error("no scenario has {0:?} in its name, or this number; --list names them all")]
    Nothing(String),
    /// This host has not what the transport needs.
    #[error("nothing can be played on {transport} here: {what}")]
    Missing {
        /// Its name.
        transport: &'static str,
        /// What to do.
        what: String,
    },
    /// Scenarios failed.
    #[error("{0} of the scenarios failed: see the lines above")]
    Failed(usize),
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

/// The scenarios that the options ask for.
///
/// # Errors
/// [`RegressError::Nothing`].
pub fn chosen(options: &Options) -> Result<Vec<Scenario>, RegressError> {
    let all = scenarios(options.transport);
    let Some(filter) = &options.filter else { return Ok(all) };
    let fits = |scenario: &Scenario| scenario.name.contains(filter) || scenario.number.to_string() == *filter;
    let chosen: Vec<Scenario> = all.into_iter().filter(fits).collect();
    if chosen.is_empty() { Err(RegressError::Nothing(filter.clone())) } else { Ok(chosen) }
}

/// Plays the scenarios, writes the table to `out` and the report to where it belongs. `stop` ends it after the
/// scenario that is under way.
///
/// # Errors
/// [`RegressError`]; what was played before is written nonetheless. Nothing is where the transport has not what it needs.
pub fn run(options: &Options, stop: &AtomicBool, out: &mut dyn Write) -> Result<(), RegressError> {
    let scenarios = chosen(options)?;
    if let Some(what) = options.transport.missing() {
        return Err(RegressError::Missing { transport: options.transport.name(), what });
    }
    let mut report = Report::new(options.command.clone());
    let quiet = options.json.as_ref().is_some_and(|path| path.as_os_str() == "-");
    let mut print = |text: String| {
        // A reader that is gone does not change what holds.
        if !quiet {
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
    };
    let here = scenarios.iter().filter(|scenario| scenario.is_of_its_transport()).count();
    print(format!(
        "mdevd {} ({}), Linux {}\n{here} scenario{} on {}, {} rounds, seed {}\n\n",
        report.version,
        report.commit,
        report.machine.kernel,
        if here == 1 { "" } else { "s" },
        options.transport.name(),
        options.rounds,
        options.seed,
    ));
    let played = play_all(options, &scenarios, stop);
    print(table::table(&played));
    report.results = played.iter().map(|(scenario, verdict)| measured(options, scenario, verdict)).collect();
    let failed = played.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Failed(..))).count();
    let mut result = match failed {
        _ if played.len() < scenarios.len() => Err(RegressError::Interrupted),
        0 => Ok(()),
        failed => Err(RegressError::Failed(failed)),
    };
    if let Some(path) = &options.json {
        let written = report.write_to(path);
        let path = path.display().to_string();
        result = result.and(written.map_err(|source| RegressError::Write { path, source }));
    }
    result
}

fn play_all(options: &Options, scenarios: &[Scenario], stop: &AtomicBool) -> Vec<(Scenario, Verdict)> {
    let bar = ProgressBar::new(scenarios.len() as u64);
    // A template that does not parse leaves the default one.
    if let Ok(style) = ProgressStyle::with_template("{msg:30} [{bar:30}] {pos} of {len}, {elapsed}") {
        bar.set_style(style.progress_chars("=> "));
    }
    let mut played = Vec::new();
    for scenario in scenarios {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        bar.set_message(format!("{} {}", scenario.number, scenario.name));
        bar.tick();
        played.push((*scenario, play(scenario, options.rounds, options.seed.into())));
        bar.inc(1);
    }
    bar.finish_and_clear();
    played
}

/// The worst time of a scenario as a result: `memory/02-late-pin-race`.
fn measured(options: &Options, scenario: &Scenario, verdict: &Verdict) -> Measurement {
    let name = format!("{}/{:02}-{}", options.transport.name(), scenario.number, scenario.name);
    let milliseconds = |time: &std::time::Duration| [time.as_secs_f64() * 1e3];
    match verdict {
        Verdict::Ok(worst) => Measurement::new(name, "ms", milliseconds(worst)),
        Verdict::Failed(_, worst) => {
            Measurement::new(name, "ms", milliseconds(worst)).with_status(Status::Failed)
        }
        Verdict::Skipped(_) => Measurement::without_value(name, "ms", Status::Skipped),
    }
}
