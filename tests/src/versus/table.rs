//! What the journal says, as a table.
use mdevd::perf::pairs::{Comparison, Pairing};
use mdevd::perf::table::{aligned, value};
use mdevd::report::{Measurement, median};

use super::{Cell, Entry, Journal, State};

/// The cells of a commit, a line for each state that has steady pairs.
pub fn table(journal: &Journal, cells: &[Cell], commit: &str) -> String {
    let heading = [
        "",
        "",
        "bytes",
        "state",
        "mdevd",
        "range",
        "DPDK",
        "range",
        "mdevd/DPDK",
        "range",
        "ceiling",
        "ns/pkt",
        "pairs",
        "line",
    ];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for cell in cells {
        let rows_before = rows.len();
        rows.extend(State::ALL.into_iter().filter_map(|state| row(journal, cell, commit, state)));
        if rows.len() == rows_before {
            rows.push(named(cell, "-"));
        }
    }
    aligned(&rows)
}

/// What a cell is called, and a state.
fn named(cell: &Cell, state: &str) -> Vec<String> {
    format!("{cell} {state}").split(' ').map(String::from).collect()
}

/// A cell in one state; `None` without steady pairs.
fn row(journal: &Journal, cell: &Cell, commit: &str, state: State) -> Option<Vec<String>> {
    let entries: Vec<&Entry> = journal.counted(cell, commit, Some(state)).collect();
    if entries.is_empty() {
        return None;
    }
    let pairs: Vec<Pairing> = entries.iter().map(|entry| entry.pairing()).collect();
    let Comparison { first, second, ratio, cache_line, kept, .. } =
        Comparison::of(&cell.to_string(), ["mdevd", "dpdk"], &pairs);
    let mut row = named(cell, state.name());
    for result in [&first, &second, &ratio] {
        row.extend([value(result, 2), range(result)]);
    }
    row.push(middle(entries.iter().filter_map(|entry| entry.ceiling)));
    row.push(middle(entries.iter().filter_map(|entry| entry.busy)));
    row.extend([kept.to_string(), value(&cache_line, 0)]);
    Some(row)
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
    fn table_has_a_line_for_each_state_of_a_cell_and_for_cells_that_were_not_measured() {
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
        journal.keep(entry(40.0, 10.0, [600.0; 3])).unwrap();
        let text = table(&journal, &[cell(64), cell(512)], "c");
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines[1],
            [
                "packed",
                "loop",
                "64",
                "near",
                "20.00",
                "20.00-20.00",
                "10.00",
                "10.00-10.00",
                "2.00",
                "2.00-2.00",
                "25.0",
                "10.0",
                "1",
                "60"
            ]
        );
        assert_eq!(lines[2][3..6], ["far", "40.00", "40.00-40.00"]);
        assert_eq!(lines[3], ["packed", "loop", "512", "-"]);
    }
}
