//! What a command measured, as JSON and as a page.
//!
//! Every command that measures or judges writes one [`Report`], always of the same shape, so that one reader serves
//! them all: who measured (command, version, commit), where (machine), and a flat list of results. A result carries
//! the values of its intervals and what follows from them; it never carries a verdict without a value behind it, but
//! for the statuses that say there is none.
//!
//! No locks, no threads. Writing blocks on the file that it writes to; nothing else here blocks.
//! Not here: comparing two reports, keeping a history of them.
mod counters;
pub mod html;
mod machine;

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

pub use counters::{CounterLine, MemoryLine, QueueLine};
pub use machine::{Machine, online_cpus};

/// One command's run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The command as the user would type it, without the program's path: `mdevd perf net --size 64`.
    pub command: String,
    /// The version of mdevd.
    pub version: String,
    /// The commit it was built from, twelve hexadecimal digits, or `unknown` (built from an archive).
    pub commit: String,
    /// The machine it ran on.
    pub machine: Machine,
    /// What was measured, in the order in which it was.
    pub results: Vec<Measurement>,
}

/// One measured quantity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// What was measured, from the general to the particular, separated by slashes: `to/64/rate`.
    pub name: String,
    /// The unit of all values: `Mpps`, `Gbit/s`, `kIOPS`, `GB/s`, `ns`, `us`, `packets`, `requests`, `blocks`, `ratio`.
    pub unit: String,
    /// The median of the samples; 0 where there are none. Of an even number: the mean of the middle two.
    pub median: f64,
    /// The least sample; 0 where there are none.
    pub min: f64,
    /// The greatest sample; 0 where there are none.
    pub max: f64,
    /// One value for each interval or repetition.
    pub samples: Vec<f64>,
    /// Whether the values may be used.
    pub status: Status,
}

/// Whether a result's values may be used.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Measured, and every check that belongs to it passed.
    Ok,
    /// A check failed: the values, if any, say nothing.
    Failed,
    /// Not measured, since this machine or peer has no means to.
    Skipped,
}

impl Measurement {
    /// A measured quantity. Samples that are not finite are left out; without any sample the status is
    /// [`Status::Failed`].
    pub fn new(name: impl Into<String>, unit: &str, samples: impl IntoIterator<Item = f64>) -> Self {
        let samples: Vec<f64> = samples.into_iter().filter(|value| value.is_finite()).collect();
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let status = if samples.is_empty() { Status::Failed } else { Status::Ok };
        Measurement {
            name: name.into(),
            unit: unit.to_owned(),
            median: median(&sorted),
            min: sorted.first().copied().unwrap_or(0.0),
            max: sorted.last().copied().unwrap_or(0.0),
            samples,
            status,
        }
    }

    /// A quantity that could not be measured, or whose check failed before there was a value.
    pub fn without_value(name: impl Into<String>, unit: &str, status: Status) -> Self {
        let mut empty = Measurement::new(name, unit, []);
        empty.status = status;
        empty
    }

    /// The same values under another status.
    pub fn with_status(mut self, status: Status) -> Self {
        self.status = status;
        self
    }
}

/// The median of values in ascending order: the middle one, or the mean of the middle two; 0 of none.
pub fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (None, _) => 0.0,
        (Some(upper), 1) => *upper,
        (Some(upper), _) => (sorted.get(middle.wrapping_sub(1)).unwrap_or(upper) + upper) / 2.0,
    }
}

impl Report {
    /// An empty report of `command` on this machine, by the version and commit that is running.
    pub fn new(command: impl Into<String>) -> Self {
        Report {
            command: command.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: env!("MDEVD_COMMIT").to_owned(),
            machine: Machine::this(),
            results: Vec::new(),
        }
    }

    /// The result of this name.
    pub fn result(&self, name: &str) -> Option<&Measurement> {
        self.results.iter().find(|result| result.name == name)
    }

    /// Whether a result says [`Status::Failed`].
    pub fn failed(&self) -> bool {
        self.results.iter().any(|result| result.status == Status::Failed)
    }

    /// Writes the report as indented JSON with a line feed at its end.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut out, self)?;
        out.write_all(b"\n")?;
        out.flush()
    }

    /// Writes the report to `path`, replacing what is there; `-` is standard output.
    ///
    /// # Errors
    /// Those of creating and writing the file.
    pub fn write_to(&self, path: &Path) -> io::Result<()> {
        if path.as_os_str() == "-" {
            self.write(io::stdout().lock())
        } else {
            self.write(File::create(path)?)
        }
    }
}

#[cfg(test)]
mod tests;
