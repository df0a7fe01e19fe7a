//! The table at the end, and the figures of the page.
use super::outcome::BlkOutcome;
use crate::perf::table::{aligned, disturbance, value};
use crate::report::Measurement;
use crate::report::html::{Bar, Figure};

const HEADING: [&str; 17] = [
    "", "rw", "bs", "depth", "ring", "kIOPS", "min", "max", "GB/s", "ns/req", "p50", "p99", "p99.9", "max",
    "errors", "line", "status",
];

/// Which of them says what requests go through.
const THROUGH: usize = 4;

/// What the columns are; below the table.
const LEGEND: &str = "
ns/req: time of the device's core for each request; p50 to max: latency in us;
line: round trip of a cache line between the two cores in ns.
More: mdevd perf";

/// All outcomes of virtio devices as an aligned table and what its columns are.
pub fn table(outcomes: &[BlkOutcome]) -> String {
    printed(outcomes, "ring", "blk")
}

/// The same for NVMe controllers.
pub fn nvme_table(outcomes: &[BlkOutcome]) -> String {
    printed(outcomes, "doorbells", "nvme")
}

fn printed(outcomes: &[BlkOutcome], through: &str, command: &str) -> String {
    let mut heading = HEADING.map(str::to_owned).to_vec();
    heading.iter_mut().skip(THROUGH).take(1).for_each(|column| *column = through.to_owned());
    let mut rows = vec![heading];
    rows.extend(outcomes.iter().map(row));
    let shares = outcomes.iter().filter(|outcome| !outcome.share.samples.is_empty());
    let more = format!("{LEGEND} {command} --help\n");
    aligned(&rows) + &more + &disturbance(shares.map(|outcome| outcome.share.median))
}

fn row(outcome: &BlkOutcome) -> Vec<String> {
    let rate = &outcome.rate;
    let extreme = |value: f64| if rate.samples.is_empty() { "-".to_owned() } else { format!("{value:.1}") };
    let mut cells = outcome.name.clone();
    cells.extend([value(rate, 1), extreme(rate.min), extreme(rate.max)]);
    cells.extend([value(&outcome.throughput, 2), value(&outcome.device, 1)]);
    cells.extend(outcome.latency.iter().map(|quantile| value(quantile, 1)));
    cells.extend([value(&outcome.errors, 0), value(&outcome.cache_line, 0)]);
    cells.push(if outcome.faults.is_empty() { "ok" } else { "FAILED" }.to_owned());
    cells
}

/// Rates and latencies of all cells.
pub fn figures(outcomes: &[BlkOutcome]) -> Vec<Figure> {
    let name = |outcome: &BlkOutcome| outcome.name.join(" ");
    let median = |result: &Measurement| (!result.samples.is_empty()).then_some(result.median);
    vec![
        Figure::Bars {
            title: "Rate".to_owned(),
            unit: "kIOPS, median and range of slices".to_owned(),
            series: vec!["kIOPS".to_owned()],
            groups: outcomes.iter().map(|outcome| (name(outcome), vec![Bar::of(&outcome.rate)])).collect(),
        },
        Figure::Curves {
            title: "Latency".to_owned(),
            unit: "us".to_owned(),
            marks: ["p50", "p99", "p99.9", "max"].map(str::to_owned).to_vec(),
            series: outcomes
                .iter()
                .map(|outcome| (name(outcome), outcome.latency.iter().map(median).collect()))
                .collect(),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::blk::cell::BlkCellResult;
    use crate::perf::blk::load::BlkCounts;
    use crate::perf::run::Slice;

    #[test]
    fn table_has_a_line_for_each_cell_and_aligned_columns() {
        let name = || ["null", "randread", "4k", "128", "packed"].map(str::to_owned).to_vec();
        let counts = BlkCounts { requests: 5_000_000, ..Default::default() };
        let slices = vec![Slice { seconds: 1.0, share: 0.9, counts }; 2];
        let cell = BlkCellResult { slices, ..Default::default() };
        let outcomes = [BlkOutcome::of(name(), &cell, false, &[61.2]), BlkOutcome::failed(name())];
        let text = table(&outcomes);
        let lines: Vec<&str> = text.lines().collect();
        let at = lines[0].find(" kIOPS").unwrap() + " kIOPS".len();
        assert!(lines[1][..at].ends_with("  5000.0"), "{text}");
        assert!(lines[1].starts_with("null  randread  4k    128  packed"), "{text}");
        assert!(lines[1].ends_with("61      ok") && lines[2].ends_with("FAILED"), "{text}");
        assert!(text.contains("up to 10 % of a cell"));
        assert!(lines.iter().all(|line| line.len() <= 130));
        assert_eq!(figures(&outcomes).len(), 2);
    }
}
