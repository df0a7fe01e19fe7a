//! `mdevd perf net --zero-loss`: the highest rate at which a back-end loses no frame, trial by trial.
use super::drive::Direction;
use super::ground::Ground;
use super::layout::Layout;
use super::search::{Search, SearchOptions, Trial, Verdict, search};
use super::size::PacketSize;
use super::table::{aligned, disturbance, value};
use super::trial::with_offers;
use super::{Findings, Options, PerfError};
use crate::report::html::{Bar, Figure};
use crate::report::{Measurement, Status};
use std::sync::atomic::AtomicBool;

/// A search begins so much above the greatest rate that was seen.
const HEADROOM: f64 = 1.1;

/// What was found in one cell.
struct Row {
    direction: Direction,
    size: PacketSize,
    found: Search,
    rate: Measurement,
    throughput: Measurement,
    lines: Vec<f64>,
    /// The least part of a trial's time that the front-end had its processor.
    share: f64,
    faults: Vec<String>,
}

/// Searches in all cells.
pub(super) fn run(
    options: &Options,
    how: &SearchOptions,
    layout: &Layout,
    stop: &AtomicBool,
) -> (Findings, Result<(), PerfError>) {
    let ground = Ground::new(options, layout, stop, options.directions.len() * options.sizes.len());
    let mut rows = Vec::new();
    let mut result = Ok(());
    for (direction, size) in ground.cells() {
        match one_cell(&ground, how, direction, size) {
            Ok(row) => rows.push(row),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
        ground.bar.inc(1);
    }
    ground.bar.finish_and_clear();
    (findings(&rows), result)
}

fn one_cell(
    ground: &Ground<'_>,
    how: &SearchOptions,
    direction: Direction,
    size: PacketSize,
) -> Result<Row, PerfError> {
    let at = ground.options.socket.as_deref();
    let mut lines: Vec<f64> = ground.layout.round_trip().into_iter().collect();
    let options = ground.cell(at, direction, size, how.trial);
    let (mut misordered, mut share) = (0, 1.0f64);
    ground.say(format!("{direction} {size} greatest rate"));
    let found = ground.with_back_end(at, direction, size, |socket, counters| {
        with_offers(socket, &options, ground.stop, counters, |back_end| {
            let highest = match how.highest {
                Some(rate) => rate,
                None => HEADROOM * back_end.greatest()?,
            };
            search(highest, how.resolution, |rate| {
                ground.say(format!("{direction} {size} {:.3} Mpps", rate / 1e6));
                let offered = back_end.offer(Some(rate), how.trial)?;
                misordered += offered.counts.misordered;
                share = share.min(offered.share);
                Ok(offered.trial)
            })
        })
    })?;
    lines.extend(ground.layout.round_trip());
    let faults = match misordered {
        0 => Vec::new(),
        count => vec![format!("{direction} {size}: {count} frames out of order or repeated")],
    };
    Ok(Row { share, ..Row::of(direction, size, found, lines, faults) })
}

impl Row {
    fn of(
        direction: Direction,
        size: PacketSize,
        found: Search,
        lines: Vec<f64>,
        faults: Vec<String>,
    ) -> Self {
        // The mean length of a long run of frames.
        let bits = (0..12).map(|number| f64::from(size.of(number))).sum::<f64>() / 12.0 * 8.0;
        let measured = |what: &str, unit: &str, scale: f64| {
            let name = format!("{direction}/{size}/{what}");
            let result = match found.best {
                Some(rate) => Measurement::new(name, unit, [rate * scale]),
                None => Measurement::without_value(name, unit, Status::Skipped),
            };
            if faults.is_empty() { result } else { result.with_status(Status::Failed) }
        };
        let rate = measured("zero-loss-rate", "Mpps", 1e-6);
        let throughput = measured("zero-loss-throughput", "Gbit/s", bits / 1e9);
        Row { direction, size, found, rate, throughput, lines, share: 1.0, faults }
    }

    /// The trials as results: each list in the order of the trials.
    fn trials(&self) -> [Measurement; 3] {
        let Row { direction, size, found, .. } = self;
        let each = |what: &str, unit: &str, value: &dyn Fn(&Trial) -> f64| {
            let samples = found.trials.iter().map(value);
            Measurement::new(format!("{direction}/{size}/trials-{what}"), unit, samples)
        };
        [
            each("wanted", "Mpps", &|trial| trial.wanted / 1e6),
            each("offered", "Mpps", &|trial| trial.offered / 1e6),
            each("lost", "packets", &|trial| trial.lost() as f64),
        ]
    }

    fn cache_line(&self) -> Measurement {
        let name = format!("{}/{}/cache-line-round-trip", self.direction, self.size);
        match self.lines.is_empty() {
            true => Measurement::without_value(name, "ns", Status::Skipped),
            false => Measurement::new(name, "ns", self.lines.iter().copied()),
        }
    }
}

fn findings(rows: &[Row]) -> Findings {
    let results = rows.iter().flat_map(|row| {
        let own = [row.rate.clone(), row.throughput.clone()];
        own.into_iter().chain(row.trials()).chain([row.cache_line()])
    });
    Findings {
        table: table(rows) + LEGEND + &disturbance(rows.iter().map(|row| row.share)),
        faults: rows.iter().flat_map(|row| row.faults.clone()).collect(),
        failed: rows.iter().filter(|row| !row.faults.is_empty()).count(),
        results: results.collect(),
        figures: vec![figure(rows)],
        lines: rows.iter().flat_map(|row| row.lines.clone()).collect(),
    }
}

const LEGEND: &str = "
Each line is a trial; the last of a cell is the highest rate that was offered
without a loss. refused: frames that found the ring full when they were due;
dropped: frames that the back-end took and did not deliver. line: round trip of a
cache line between the two cores in ns. More: mdevd perf net --help
";

fn figure(rows: &[Row]) -> Figure {
    Figure::Bars {
        title: "Highest rate without a loss".to_owned(),
        unit: "Mpps".to_owned(),
        series: vec!["zero loss".to_owned()],
        groups: rows
            .iter()
            .map(|row| (format!("{} {}", row.direction, row.size), vec![Bar::of(&row.rate)]))
            .collect(),
    }
}

fn table(rows: &[Row]) -> String {
    let heading =
        ["", "size", "wanted", "offered", "sent", "refused", "dropped", "loss", "Gbit/s", "line", ""];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    for row in rows {
        let place = [row.direction.to_string(), row.size.to_string()];
        for trial in &row.found.trials {
            let mut line = place.to_vec();
            line.extend([trial.wanted, trial.offered].map(|rate| format!("{:.3}", rate / 1e6)));
            line.extend([trial.sent, trial.refused, trial.dropped].map(|count| count.to_string()));
            line.push(format!("{:.4} %", 100.0 * trial.loss()));
            line.extend([String::new(), String::new()]);
            line.push(verdict(trial).to_owned());
            cells.push(line);
        }
        let mut line = place.to_vec();
        line.extend([String::new(), value(&row.rate, 3)]);
        line.extend((0..4).map(|_| String::new()));
        line.extend([value(&row.throughput, 2), value(&row.cache_line(), 0), conclusion(row)]);
        cells.push(line);
    }
    aligned(&cells)
}

fn verdict(trial: &Trial) -> &'static str {
    match trial.verdict() {
        Verdict::Passed => "passed",
        Verdict::Lost => "lost",
        Verdict::NotOffered => "not offered",
    }
}

fn conclusion(row: &Row) -> String {
    let words = match (&row.found, row.faults.is_empty()) {
        (_, false) => "FAILED",
        (Search { best: None, .. }, _) => "NO RATE",
        (Search { open: true, .. }, _) => "AT LEAST",
        _ => "ZERO LOSS",
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(trials: Vec<Trial>, best: Option<f64>, faults: Vec<String>) -> Row {
        let found = Search { trials, best, open: false };
        Row::of(Direction::Loop, PacketSize::Bytes(100), found, vec![61.0, 63.0], faults)
    }

    fn trial(wanted: f64, refused: u64) -> Trial {
        Trial { wanted, offered: wanted, sent: 1000 - refused, refused, dropped: 0 }
    }

    #[test]
    fn table_has_a_line_for_each_trial_and_one_for_what_was_found() {
        let row = row(vec![trial(4e6, 10), trial(2e6, 0)], Some(2e6), vec![]);
        let text = table(&[row]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["loop", "100", "4.000", "4.000", "990", "10", "0", "1.0000", "%", "lost"]);
        assert_eq!(lines[2].last(), Some(&"passed"));
        assert_eq!(lines[3], ["loop", "100", "2.000", "1.60", "62", "ZERO", "LOSS"]);
    }

    #[test]
    fn report_has_the_rate_and_every_trial() {
        let findings = findings(&[row(vec![trial(4e6, 10), trial(2e6, 0)], Some(2e6), vec![])]);
        let result = |name: &str| findings.results.iter().find(|result| result.name == name).unwrap();
        assert_eq!(result("loop/100/zero-loss-rate").median, 2.0);
        assert_eq!(result("loop/100/trials-wanted").samples, [4.0, 2.0]);
        assert_eq!(result("loop/100/trials-lost").samples, [10.0, 0.0]);
        assert_eq!(findings.failed, 0);
    }

    #[test]
    fn cell_without_a_rate_or_with_faults_says_so() {
        assert_eq!(conclusion(&row(vec![], None, vec![])), "NO RATE");
        let bad = row(vec![trial(1e6, 0)], Some(1e6), vec!["2 frames out of order".to_owned()]);
        assert_eq!((conclusion(&bad).as_str(), bad.rate.status), ("FAILED", Status::Failed));
    }
}
