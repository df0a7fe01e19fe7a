//! The plain run: each cell at the greatest rate that both sides reach together.
use super::cell::SLICES;
use super::drive::Direction;
use super::ground::Ground;
use super::layout::Layout;
use super::outcome::Outcome;
use super::size::PacketSize;
use super::table::table;
use super::{Findings, Options, PerfError};
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
        lines: outcomes.iter().flat_map(|outcome| outcome.cache_line.samples.clone()).collect(),
    }
}
