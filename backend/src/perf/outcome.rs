//! What a cell's raw figures mean: measurements, and whether they may be believed.
use super::cell::CellResult;
use super::drive::{Counts, Direction};
use super::run::Slice;
use super::size::PacketSize;
use crate::report::{CounterLine, Measurement, Status};

/// One cell, judged.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which way the packets went.
    pub direction: Direction,
    /// Their sizes.
    pub size: PacketSize,
    /// Millions of packets a second.
    pub rate: Measurement,
    /// Thousands of millions of frame bits a second.
    pub throughput: Measurement,
    /// Nanoseconds of the device's core for each packet; skipped where the device gives no counters.
    pub device: Measurement,
    /// Packets lost while time was measured; skipped where nobody can tell.
    pub drops: Measurement,
    /// Latencies in microseconds: median, 99 %, 99.9 %.
    pub latency: [Measurement; 3],
    /// The part of the time that the front-end had its processor, from 0 to 1.
    pub share: Measurement,
    /// The cache line's round trip before and after, in nanoseconds.
    pub cache_line: Measurement,
    /// What is wrong with the packets; empty if nothing is.
    pub faults: Vec<String>,
}

/// The quantiles that are reported, and what they are called.
pub const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

/// What other programs may have of a processor before the figures are not the device's any more.
pub const DISTURBANCE: f64 = 0.05;

impl Outcome {
    /// Judges a cell.
    pub fn of(direction: Direction, size: PacketSize, cell: &CellResult, cache_line: &[f64]) -> Self {
        let name = |what: &str| format!("{direction}/{size}/{what}");
        let each = |value: &dyn Fn(&Slice) -> f64| cell.slices.iter().map(value).collect::<Vec<f64>>();
        let faults = faults(direction, cell);
        let status = if faults.is_empty() { Status::Ok } else { Status::Failed };
        let measured = |what: &str, unit: &str, samples: Vec<f64>| {
            let result = Measurement::new(name(what), unit, samples);
            if result.status == Status::Ok { result.with_status(status) } else { result }
        };
        let optional = |what: &str, unit: &str, samples: Vec<f64>| match samples.is_empty() {
            true => Measurement::without_value(name(what), unit, Status::Skipped),
            false => measured(what, unit, samples),
        };
        let latency = QUANTILES.map(|(what, share)| {
            let values = cell.slices.iter().filter_map(|slice| slice.counts.latencies.quantile_us(share));
            optional(&format!("latency-{what}"), "us", values.collect())
        });
        Outcome {
            direction,
            size,
            rate: measured("rate", "Mpps", each(&|slice| slice.counts.packets as f64 / slice.seconds / 1e6)),
            throughput: measured(
                "throughput",
                "Gbit/s",
                each(&|slice| slice.counts.bytes as f64 * 8.0 / slice.seconds / 1e9),
            ),
            device: optional("device-time", "ns", device_times(direction, &cell.counters)),
            drops: optional("drops", "packets", drops(direction, cell)),
            latency,
            share: optional("front-end-share", "ratio", each(&|slice| slice.share)),
            cache_line: optional("cache-line-round-trip", "ns", cache_line.to_vec()),
            faults,
        }
    }

    /// A cell that could not be measured.
    pub fn failed(direction: Direction, size: PacketSize) -> Self {
        let mut outcome = Outcome::of(direction, size, &CellResult::default(), &[]);
        outcome.faults = vec!["not measured".to_owned()];
        outcome
    }

    /// What is wrong with the packets, each with the cell's name.
    pub fn complaints(&self) -> impl Iterator<Item = String> {
        self.faults.iter().map(|fault| format!("{} {}: {fault}", self.direction, self.size))
    }

    /// All measurements, for the report.
    pub fn measurements(&self) -> impl Iterator<Item = &Measurement> {
        [&self.rate, &self.throughput, &self.device, &self.drops]
            .into_iter()
            .chain(&self.latency)
            .chain([&self.share, &self.cache_line])
    }
}

/// Nanoseconds of the device's core for each packet, slice by slice. A slice without packets has none.
fn device_times(direction: Direction, counters: &[CounterLine]) -> Vec<f64> {
    let time = |two: &[CounterLine]| {
        let [before, after] = two else { return None };
        let packets = match direction {
            Direction::From => after.receive().packets - before.receive().packets,
            Direction::To | Direction::Loop => after.transmit().packets - before.transmit().packets,
        };
        let busy = (after.total() - before.total()).busy_ns;
        (packets > 0).then(|| busy as f64 / packets as f64)
    };
    counters.windows(2).filter_map(time).collect()
}

/// Packets lost, slice by slice. What goes to the device is lost if the device has dropped it unread, which only its counters tell.
fn drops(direction: Direction, cell: &CellResult) -> Vec<f64> {
    match direction {
        Direction::To => cell
            .counters
            .windows(2)
            .filter_map(|two| match two {
                [before, after] => Some((after.total() - before.total()).drops as f64),
                _ => None,
            })
            .collect(),
        Direction::From | Direction::Loop if !cell.numbered => Vec::new(),
        Direction::From | Direction::Loop => {
            cell.slices.iter().map(|slice| slice.counts.lost as f64).collect()
        }
    }
}

fn faults(direction: Direction, cell: &CellResult) -> Vec<String> {
    let mut faults = Vec::new();
    if let Some(verified) = &cell.verified {
        faults.extend(wrong(verified, "before the measuring"));
    }
    let mut timed = Counts::default();
    cell.slices.iter().for_each(|slice| timed.merge(&slice.counts));
    // Losses under load are drops and a result; that what arrives is in order is not up to the load.
    timed.lost = 0;
    faults.extend(wrong(&timed, "while measuring"));
    if !cell.slices.is_empty() && timed.packets == 0 {
        faults.push("no packet arrived".to_owned());
    }
    if let Some(last) = &cell.last {
        let total = last.total();
        if total.errors > 0 {
            faults.push(format!("the device counted {} ring errors", total.errors));
        }
        let seen = last.transmit().packets.wrapping_add(last.transmit().drops);
        if direction == Direction::To && seen != cell.completed {
            faults.push(format!("the device used {} packets, but counted {seen}", cell.completed));
        }
    }
    faults
}

fn wrong(counts: &Counts, when: &str) -> Option<String> {
    let parts: Vec<String> = [
        (counts.lost, "lost"),
        (counts.misordered, "out of order or repeated"),
        (counts.corrupt, "with wrong bytes"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    (!parts.is_empty()).then(|| format!("{when}: of {} packets {}", counts.packets, parts.join(", ")))
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;
