//! What the journal says, as a table.
use mdevd::perf::pairs::Comparison;
use mdevd::perf::table::{aligned, value};
use mdevd::report::{Measurement, median};

use super::{Cell, Entry, Journal};

/// The cells of a commit, a line each.
pub fn table(journal: &Journal, cells: &[Cell], commit: &str) -> String {
    let heading = [
        "",
        "",
        "bytes",
        "mdevd",
        "range",
        "DPDK",
        "range",
        "mdevd/DPDK",
        "range",
        "ceiling",
        "ns/pkt",
        "pairs",
        "dropped",
        "line",
    ];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for cell in cells {
        let name = cell.to_string();
        let Comparison { first, second, ratio, cache_line, kept, dropped } =
            Comparison::of(&name, ["mdevd", "dpdk"], &journal.pairs(cell, commit));
        let mut row: Vec<String> = name.split(' ').map(String::from).collect();
        for result in [&first, &second, &ratio] {
            row.extend([value(result, 2), range(result)]);
        }
        row.push(middle(journal.entries(cell, commit).filter_map(|entry| entry.ceiling)));
        let steady = |entry: &&Entry| entry.pairing().steady();
        row.push(middle(journal.entries(cell, commit).filter(steady).filter_map(|entry| entry.busy)));
        row.extend([kept.to_string(), dropped.to_string(), value(&cache_line, 0)]);
        rows.push(row);
    }
    aligned(&rows)
}

/// The median, or a dash where there is none.
fn middle(values: impl Iterator<Item = f64>) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    if values.is_empty() { "-".into() } else { format!("{:.1}", median(&values)) }
}

fn range(result: &Measurement) -> String {
    match result.samples.is_empty() {
        true => "-".into(),
        false => format!("{:.2}-{:.2}", result.min, result.max),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Direction;
    use super::*;

    #[test]
    fn table_has_a_line_for_each_cell_measured_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&folder.path().join("pairs.json")).unwrap();
        let cell = |size| Cell {
            layout: "packed".into(),
            size,
            direction: Direction::Loop,
            ring_size: 256,
            mergeable: true,
        };
        let entry = |mdevd, dpdk, lines: [f64; 3]| Entry {
            cell: cell(64),
            commit: "c".into(),
            mdevd,
            dpdk,
            lines: lines.to_vec(),
            busy: Some(mdevd / 2.0),
            ceiling: (mdevd < 30.0).then_some(25.0),
        };
        journal.keep(entry(20.0, 10.0, [60.0; 3])).unwrap();
        journal.keep(entry(99.0, 1.0, [60.0, 600.0, 60.0])).unwrap();
        let text = table(&journal, &[cell(64), cell(512)], "c");
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines[1],
            [
                "packed",
                "loop",
                "64",
                "20.00",
                "20.00-20.00",
                "10.00",
                "10.00-10.00",
                "2.00",
                "2.00-2.00",
                "25.0",
                "10.0",
                "1",
                "1",
                "60"
            ]
        );
        assert_eq!(&lines[2][..5], ["packed", "loop", "512", "-", "-"]);
    }
}
