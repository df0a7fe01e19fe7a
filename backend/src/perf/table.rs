//! The table at the end.
use super::outcome::{DISTURBANCE, Outcome, QUANTILES};
use crate::report::{Measurement, Status};
use std::fmt::Write;

const GAP: &str = "  ";

/// What the columns are; below the table.
const LEGEND: &str = "
ns/pkt: time of the device's core for each packet; p50 to p99.9: latency in us
with full rings; line: round trip of a cache line between the two cores in ns.
More: mdevd perf net --help
";

/// All outcomes as an aligned table and what its columns are.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut rows = vec![heading()];
    rows.extend(outcomes.iter().map(row));
    aligned(&rows) + LEGEND + &warning(outcomes)
}

/// Rows of equal length as columns: the first to the left, the others to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Writing into a string does not fail.
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "{GAP}{cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A word on what else ran here, if that was enough to spoil the figures.
fn warning(outcomes: &[Outcome]) -> String {
    disturbance(
        outcomes.iter().filter_map(|outcome| outcome.share.samples.first().map(|_| outcome.share.median)),
    )
}

/// The same of the parts of the time, from 0 to 1, that the front-end had its processor.
pub fn disturbance(shares: impl Iterator<Item = f64>) -> String {
    let others = shares.map(|share| 1.0 - share).fold(0.0, f64::max);
    if others <= DISTURBANCE {
        return String::new();
    }
    let percent = 100.0 * others;
    format!(
        "\nOther programs had the front-end's processor for up to {percent:.0} % of a cell:\nmeasure again on a machine that does nothing else.\n"
    )
}

fn heading() -> Vec<String> {
    let mut cells: Vec<String> =
        ["", "size", "Mpps", "min", "max", "Gbit/s", "ns/pkt", "drops"].map(str::to_owned).into();
    cells.extend(QUANTILES.map(|(name, _)| name.to_owned()));
    cells.extend(["line", "status"].map(str::to_owned));
    cells
}

fn row(outcome: &Outcome) -> Vec<String> {
    let rate = &outcome.rate;
    let extreme = |value: f64| if rate.samples.is_empty() { "-".to_owned() } else { format!("{value:.2}") };
    let drops = match outcome.drops.samples.as_slice() {
        [] => "-".to_owned(),
        samples => format!("{:.0}", samples.iter().sum::<f64>()),
    };
    let mut cells = vec![
        outcome.direction.name().to_owned(),
        outcome.size.to_string(),
        value(rate, 2),
        extreme(rate.min),
        extreme(rate.max),
        value(&outcome.throughput, 2),
        value(&outcome.device, 1),
        drops,
    ];
    cells.extend(outcome.latency.iter().map(|quantile| value(quantile, 1)));
    cells.push(value(&outcome.cache_line, 0));
    cells.push(if outcome.faults.is_empty() { "ok" } else { "FAILED" }.to_owned());
    cells
}

/// The median, or a dash where there is none.
pub fn value(result: &Measurement, digits: usize) -> String {
    match result.status {
        Status::Skipped => "-".to_owned(),
        _ if result.samples.is_empty() => "-".to_owned(),
        _ => format!("{:.digits$}", result.median),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::cell::CellResult;
    use crate::perf::drive::{Counts, Direction};
    use crate::perf::run::Slice;
    use crate::perf::size::PacketSize;

    #[test]
    fn table_has_a_line_for_each_cell_and_aligned_columns() {
        let counts = Counts { packets: 5_000_000, bytes: 320_000_000, lost: 2, ..Counts::default() };
        let cell = CellResult {
            slices: vec![Slice { seconds: 1.0, share: 1.0, counts }; 2],
            numbered: true,
            ..CellResult::default()
        };
        let outcomes = [
            Outcome::of(Direction::Loop, PacketSize::Bytes(64), &cell, &[61.2]),
            Outcome::failed(Direction::To, PacketSize::Imix),
        ];
        let text = table(&outcomes);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3 + LEGEND.lines().count());
        let at = lines[0].find("Mpps").unwrap();
        assert_eq!(&lines[1][at..at + 4], "5.00");
        assert!(lines[1].contains(" 4 ") && lines[1].ends_with("ok"));
        assert!(lines[2].starts_with("to ") && lines[2].ends_with("FAILED"));
        assert!(lines.iter().all(|line| line.len() <= 90));
    }

    #[test]
    fn table_says_when_other_programs_had_the_processor() {
        let slice = |share| Slice { seconds: 1.0, share, counts: Counts::default() };
        let outcome = |share| {
            let cell = CellResult { slices: vec![slice(share); 3], ..CellResult::default() };
            Outcome::of(Direction::To, PacketSize::Bytes(64), &cell, &[61.2])
        };
        assert!(table(&[outcome(0.99), outcome(0.6)]).contains("up to 40 % of a cell"));
        assert!(table(&[outcome(0.99)]).ends_with(LEGEND));
    }
}
