//! The plain run: each cell at the greatest rate that both sides reach together.
use super::cell::SLICES;
use super::drive::Direction;
use super::ground::Ground;
use super::layout::Layout;
use super::outcome::{Outcome, QUANTILES};
use super::size::PacketSize;
use super::table::table;
use super::{Findings, Options, PerfError};
use crate::report::html::{Bar, Figure};
use std::sync::atomic::AtomicBool;

/// Cell by cell, up to the first that cannot be measured, which is the last outcome.
pub(super) fn run(
    options: &Options,
    layout: &Layout,
    stop: &AtomicBool,
) -> (Findings, Result<(), PerfError>) {
    let ground = Ground::new(options, layout, stop, options.directions.len() * options.sizes.len() * SLICES);
    let mut outcomes = Vec::new();
    let mut result = Ok(());
    for (direction, size) in ground.cells() {
        ground.say(format!("{direction} {size}"));
        match one_cell(&ground, direction, size) {
            Ok(outcome) => outcomes.push(outcome),
            Err(error) => {
                outcomes.push(Outcome::failed(direction, size));
                result = Err(error);
                break;
            }
        }
    }
    ground.bar.finish_and_clear();
    (findings(&outcomes), result)
}

fn one_cell(ground: &Ground<'_>, direction: Direction, size: PacketSize) -> Result<Outcome, PerfError> {
    let Options { socket, duration, .. } = ground.options;
    let mut lines: Vec<f64> = ground.layout.round_trip().into_iter().collect();
    let cell = ground.measure(socket.as_deref(), direction, size, *duration, || ground.bar.inc(1))?;
    lines.extend(ground.layout.round_trip());
    Ok(Outcome::of(direction, size, &cell, &lines))
}

fn findings(outcomes: &[Outcome]) -> Findings {
    Findings {
        table: table(outcomes),
        faults: outcomes.iter().flat_map(Outcome::complaints).collect(),
        failed: outcomes.iter().filter(|outcome| !outcome.faults.is_empty()).count(),
        results: outcomes.iter().flat_map(|outcome| outcome.measurements().cloned()).collect(),
        figures: vec![rates(outcomes), latencies(outcomes)],
        lines: outcomes.iter().flat_map(|outcome| outcome.cache_line.samples.clone()).collect(),
    }
}

/// Rate by size, directions beside each other.
fn rates(outcomes: &[Outcome]) -> Figure {
    let mut directions: Vec<Direction> = Vec::new();
    let mut sizes: Vec<PacketSize> = Vec::new();
    for outcome in outcomes {
        if !directions.contains(&outcome.direction) {
            directions.push(outcome.direction);
        }
        if !sizes.contains(&outcome.size) {
            sizes.push(outcome.size);
        }
    }
    let bar = |size: PacketSize, direction: Direction| {
        let cell = outcomes.iter().find(|outcome| (outcome.size, outcome.direction) == (size, direction))?;
        Bar::of(&cell.rate)
    };
    let group = |&size: &PacketSize| {
        (size.to_string(), directions.iter().map(|&direction| bar(size, direction)).collect())
    };
    Figure::Bars {
        title: "Rate by frame size".to_owned(),
        unit: "Mpps, median and range of slices".to_owned(),
        series: directions.iter().map(Direction::to_string).collect(),
        groups: sizes.iter().map(group).collect(),
    }
}

/// Latency quantiles of each cell.
fn latencies(outcomes: &[Outcome]) -> Figure {
    let value = |result: &crate::report::Measurement| (!result.samples.is_empty()).then_some(result.median);
    let one = |outcome: &Outcome| {
        (format!("{} {}", outcome.direction, outcome.size), outcome.latency.iter().map(value).collect())
    };
    Figure::Curves {
        title: "Latency with full rings".to_owned(),
        unit: "us".to_owned(),
        marks: QUANTILES.map(|(name, _)| name.to_owned()).to_vec(),
        series: outcomes.iter().map(one).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perf::cell::CellResult;
    use crate::perf::drive::Counts;
    use crate::perf::run::Slice;

    #[test]
    fn figure_has_a_group_for_each_size_and_a_bar_for_each_direction() {
        let counts = Counts { packets: 5_000_000, ..Counts::default() };
        let slices = vec![Slice { seconds: 1.0, share: 1.0, counts }; 2];
        let cell = CellResult { slices, ..CellResult::default() };
        let size = PacketSize::Bytes(64);
        let outcomes = [
            Outcome::of(Direction::To, size, &cell, &[]),
            Outcome::of(Direction::To, PacketSize::Imix, &cell, &[]),
            Outcome::failed(Direction::Loop, size),
        ];
        let Figure::Bars { series, groups, .. } = rates(&outcomes) else { panic!("no bars") };
        assert_eq!(series, ["to", "loop"]);
        let five = Some(Bar { median: 5.0, range: [5.0, 5.0] });
        assert_eq!(groups, [("64".to_owned(), vec![five, None]), ("imix".to_owned(), vec![five, None])]);
        assert_eq!(findings(&outcomes).figures.len(), 2);
    }
}
