//! `mdevd perf net --latency`: how long every frame takes, one at a time or at rates below the greatest.
use super::drive::Direction;
use super::ground::Ground;
use super::latency::Latencies;
use super::layout::Layout;
use super::search::Trial;
use super::size::PacketSize;
use super::table::{aligned, disturbance};
use super::trial::{Offered, with_offers};
use super::{Findings, Options, PerfError};
use crate::report::html::Figure;
use crate::report::{Measurement, Status};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::AtomicBool;

/// What the frames are like while their latency is taken.
#[derive(Copy, Clone, Debug, PartialEq)]
pub enum Load {
    /// One at a time.
    One,
    /// So many a second.
    Rate(f64),
}

/// Why a load was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("load '{0}': give frames a second from 1000 to 1G, such as 50k or 1.5M, or one")]
pub struct LoadError(String);

impl FromStr for Load {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        if text == "one" {
            return Ok(Load::One);
        }
        match parse_rate(text) {
            Some(rate) => Ok(Load::Rate(rate)),
            None => Err(LoadError(text.to_owned())),
        }
    }
}

impl fmt::Display for Load {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Load::One => out.pad("one"),
            Load::Rate(rate) if rate >= 1e6 => out.pad(&format!("{}M", rate / 1e6)),
            Load::Rate(rate) => out.pad(&format!("{}k", rate / 1e3)),
        }
    }
}

/// Frames a second from 1,000 to 10^9: a number, and k, M or G behind it.
pub fn parse_rate(text: &str) -> Option<f64> {
    let (number, scale) = match text.strip_suffix(['k', 'M', 'G']) {
        Some(number) if text.ends_with('k') => (number, 1e3),
        Some(number) if text.ends_with('M') => (number, 1e6),
        Some(number) => (number, 1e9),
        None => (text, 1.0),
    };
    let rate = number.parse::<f64>().ok()? * scale;
    (1e3..=1e9).contains(&rate).then_some(rate)
}

/// The shares of the frames whose latency is reported, and what they are called.
const SHARES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

struct Row {
    direction: Direction,
    size: PacketSize,
    load: Load,
    trial: Trial,
    latencies: Latencies,
    line: Option<f64>,
    share: f64,
    faults: Vec<String>,
}

/// Measures all cells under all loads.
pub(super) fn run(
    options: &Options,
    loads: &[Load],
    layout: &Layout,
    stop: &AtomicBool,
) -> (Findings, Result<(), PerfError>) {
    let steps = options.directions.len() * options.sizes.len() * loads.len();
    let ground = Ground::new(options, layout, stop, steps);
    let mut rows = Vec::new();
    let mut result = Ok(());
    for (direction, size) in ground.cells() {
        result = one_cell(&ground, loads, direction, size, &mut rows);
        if result.is_err() {
            break;
        }
    }
    ground.bar.finish_and_clear();
    (findings(&rows), result)
}

fn one_cell(
    ground: &Ground<'_>,
    loads: &[Load],
    direction: Direction,
    size: PacketSize,
    rows: &mut Vec<Row>,
) -> Result<(), PerfError> {
    let at = ground.options.socket.as_deref();
    let duration = ground.options.duration;
    let options = ground.cell(at, direction, size, duration);
    for &load in loads {
        ground.say(format!("{direction} {size} {load}"));
        let line = ground.layout.round_trip();
        let rate = match load {
            Load::One => None,
            Load::Rate(rate) => Some(rate),
        };
        let offered = ground.with_back_end(at, direction, size, |socket, counters| {
            with_offers(socket, &options, ground.stop, counters, |back_end| back_end.offer(rate, duration))
        })?;
        rows.push(Row::of(direction, size, load, offered, line));
        ground.bar.inc(1);
    }
    Ok(())
}

impl Row {
    fn of(direction: Direction, size: PacketSize, load: Load, offered: Offered, line: Option<f64>) -> Self {
        let Offered { trial, counts, share } = offered;
        let mut faults = Vec::new();
        if counts.misordered > 0 {
            let count = counts.misordered;
            faults.push(format!("{direction} {size} {load}: {count} frames out of order or repeated"));
        }
        if counts.latencies.count() == 0 {
            faults.push(format!("{direction} {size} {load}: no frame arrived"));
        }
        Row { direction, size, load, trial, latencies: counts.latencies, line, share, faults }
    }

    fn name(&self) -> String {
        format!("{} {} {}", self.direction, self.size, self.load)
    }

    fn extreme(&self, which: usize) -> Option<f64> {
        self.latencies.extremes_us().and_then(|both| both.get(which).copied())
    }

    fn results(&self) -> Vec<Measurement> {
        let Row { direction, size, load, trial, latencies, line, faults, .. } = self;
        let measured = |what: &str, unit: &str, value: Option<f64>| {
            let name = format!("{direction}/{size}/{load}/{what}");
            match value {
                None => Measurement::without_value(name, unit, Status::Skipped),
                Some(value) if faults.is_empty() => Measurement::new(name, unit, [value]),
                Some(value) => Measurement::new(name, unit, [value]).with_status(Status::Failed),
            }
        };
        let mut results = vec![
            measured("offered", "Mpps", Some(trial.offered / 1e6)),
            measured("lost", "packets", Some(trial.lost() as f64)),
            measured("latency-min", "us", self.extreme(0)),
        ];
        results.extend(
            SHARES.map(|(name, share)| {
                measured(&format!("latency-{name}"), "us", latencies.quantile_us(share))
            }),
        );
        results.push(measured("latency-max", "us", self.extreme(1)));
        results.push(measured("cache-line-round-trip", "ns", *line));
        results
    }
}

fn findings(rows: &[Row]) -> Findings {
    Findings {
        table: table(rows) + LEGEND + &disturbance(rows.iter().map(|row| row.share)),
        faults: rows.iter().flat_map(|row| row.faults.clone()).collect(),
        failed: rows.iter().filter(|row| !row.faults.is_empty()).count(),
        results: rows.iter().flat_map(Row::results).collect(),
        lines: rows.iter().filter_map(|row| row.line).collect(),
        figures: vec![curves(rows)],
    }
}

fn curves(rows: &[Row]) -> Figure {
    let mut marks = vec!["min".to_owned()];
    marks.extend(SHARES.map(|(name, _)| name.to_owned()));
    marks.push("max".to_owned());
    let series = rows.iter().map(|row| {
        let mut values = vec![row.extreme(0)];
        values.extend(SHARES.map(|(_, share)| row.latencies.quantile_us(share)));
        values.push(row.extreme(1));
        (row.name(), values)
    });
    Figure::Curves {
        title: "Latency by share of the frames".to_owned(),
        unit: "us".to_owned(),
        marks,
        series: series.collect(),
    }
}

const LEGEND: &str = "
Latencies in us, of every frame: to the device from publishing a frame to seeing
it used, in a loop from publishing it to seeing it back. lost: frames that found
no room when they were due, or did not come back. line: round trip of a cache line
between the two cores in ns. More: mdevd perf net --help
";

fn table(rows: &[Row]) -> String {
    let mut heading: Vec<String> = ["", "size", "load", "Mpps", "lost", "min"].map(str::to_owned).into();
    heading.extend(SHARES.map(|(name, _)| name.to_owned()));
    heading.extend(["max", "line", ""].map(str::to_owned));
    let mut cells = vec![heading];
    for row in rows {
        let shown = |value: Option<f64>, digits: usize| {
            value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let mut line = vec![
            row.direction.to_string(),
            row.size.to_string(),
            row.load.to_string(),
            format!("{:.3}", row.trial.offered / 1e6),
            row.trial.lost().to_string(),
            shown(row.extreme(0), 1),
        ];
        line.extend(SHARES.map(|(_, share)| shown(row.latencies.quantile_us(share), 1)));
        line.extend([shown(row.extreme(1), 1), shown(row.line, 0)]);
        line.push(if row.faults.is_empty() { "ok" } else { "FAILED" }.to_owned());
        cells.push(line);
    }
    aligned(&cells)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::drive::Counts;
    use std::time::Duration;

    fn row(latencies: &[u64]) -> Row {
        let mut counts = Counts::default();
        latencies.iter().for_each(|&micros| counts.latencies.record(Duration::from_micros(micros)));
        let trial = Trial { wanted: 1e6, offered: 1e6, sent: 100, refused: 2, dropped: 1 };
        Row::of(
            Direction::To,
            PacketSize::Bytes(64),
            Load::Rate(1e6),
            Offered { trial, counts, share: 1.0 },
            Some(60.0),
        )
    }

    #[test]
    fn loads_are_parsed_and_printed_back() {
        for text in ["one", "50k", "1.5M", "1M", "999k"] {
            assert_eq!(text.parse::<Load>().unwrap().to_string(), text);
        }
        assert_eq!("20000".parse(), Ok(Load::Rate(2e4)));
        for text in ["", "two", "0", "999", "2G", "-1M", "1MM", "NaN", "infM"] {
            let error = text.parse::<Load>().unwrap_err().to_string();
            assert!(error.contains("1.5M"), "{text}: {error}");
        }
    }

    #[test]
    fn row_shows_rate_losses_and_latencies() {
        let text = table(&[row(&[1, 2, 3])]);
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(&words[..8], ["to", "64", "1M", "1.000", "3", "1.0", "2.0", "3.0"]);
        assert_eq!(words.last(), Some(&"ok"));
    }

    #[test]
    fn row_without_an_arrival_is_failed_and_has_no_latency() {
        let empty = row(&[]);
        assert_eq!(empty.faults, ["to 64 1M: no frame arrived"]);
        assert!(table(&[empty]).contains("FAILED"));
    }

    #[test]
    fn report_names_each_latency_by_cell_load_and_share() {
        let results = row(&[5]).results();
        let result = results.iter().find(|result| result.name == "to/64/1M/latency-p99").unwrap();
        assert!((4.9..5.1).contains(&result.median));
        assert!(results.iter().all(|result| result.status == Status::Ok));
    }
}
