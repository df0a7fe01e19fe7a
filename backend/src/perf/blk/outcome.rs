//! What a cell's raw figures mean: measurements, and whether they may be believed.
use super::cell::BlkCellResult;
use super::load::BlkCounts;
use super::requests::Failed;
use crate::driver::blk::UNANSWERED;
use crate::driver::ledger::{Damage, Findings};
use crate::perf::outcome::QUANTILES;
use crate::perf::run::Slice;
use crate::report::{CounterLine, Measurement, Status};

/// All kinds of damage.
const DAMAGES: [Damage; 4] = [Damage::Lost, Damage::Doubled, Damage::Torn, Damage::Misplaced];

/// One cell, judged.
#[derive(Clone, Debug)]
pub struct BlkOutcome {
    /// What names it: store, requests, block size, depth, format of the rings or way of the doorbells.
    pub name: Vec<String>,
    /// Thousands of requests a second.
    pub rate: Measurement,
    /// Thousands of millions of bytes a second.
    pub throughput: Measurement,
    /// Nanoseconds of the device's core for each request; skipped where the device gives no counters.
    pub device: Measurement,
    /// Latencies in microseconds: median, 99 %, 99.9 %, the greatest.
    pub latency: [Measurement; 4],
    /// Requests that failed.
    pub errors: Measurement,
    /// Blocks that are damaged, by kind; none if that was not looked at.
    pub damages: Vec<Measurement>,
    /// The part of the time that the front-end had its processor, from 0 to 1.
    pub share: Measurement,
    /// The cache line's round trip before and after, in nanoseconds.
    pub cache_line: Measurement,
    /// What is wrong; empty if nothing is.
    pub faults: Vec<String>,
}

impl BlkOutcome {
    /// Judges a cell. `verified`: damage was looked for.
    pub fn of(name: Vec<String>, cell: &BlkCellResult, verified: bool, cache_line: &[f64]) -> Self {
        let path = name.iter().filter(|part| *part != "-").cloned().collect::<Vec<_>>().join("/");
        let called = |what: &str| format!("{path}/{what}");
        let each =
            |value: &dyn Fn(&Slice<BlkCounts>) -> f64| cell.slices.iter().map(value).collect::<Vec<f64>>();
        let faults = faults(cell);
        let status = if faults.is_empty() { Status::Ok } else { Status::Failed };
        let measured = |what: &str, unit: &str, samples: Vec<f64>| {
            let result = Measurement::new(called(what), unit, samples);
            if result.status == Status::Ok { result.with_status(status) } else { result }
        };
        let optional = |what: &str, unit: &str, samples: Vec<f64>| match samples.is_empty() {
            true => Measurement::without_value(called(what), unit, Status::Skipped),
            false => measured(what, unit, samples),
        };
        let [p50, p99, p999] = QUANTILES.map(|(what, share)| {
            let values = cell.slices.iter().filter_map(|slice| slice.counts.latencies.quantile_us(share));
            optional(&format!("latency-{what}"), "us", values.collect())
        });
        let greatest = cell
            .slices
            .iter()
            .filter_map(|slice| slice.counts.latencies.extremes_us())
            .map(|[_, greatest]| greatest)
            .reduce(f64::max);
        let findings = &cell.faults.findings;
        let damages = |damage: &Damage| {
            let count = findings.count(*damage) as f64;
            measured(&damage.to_string().to_lowercase(), "blocks", vec![count])
        };
        BlkOutcome {
            rate: measured(
                "rate",
                "kIOPS",
                each(&|slice| slice.counts.requests as f64 / slice.seconds / 1e3),
            ),
            throughput: measured(
                "throughput",
                "GB/s",
                each(&|slice| slice.counts.bytes as f64 / slice.seconds / 1e9),
            ),
            device: optional("device-time", "ns", device_times(cell)),
            latency: [p50, p99, p999, optional("latency-max", "us", greatest.into_iter().collect())],
            errors: measured("errors", "requests", vec![cell.faults.failed as f64]),
            damages: if verified { DAMAGES.iter().map(damages).collect() } else { Vec::new() },
            share: optional("front-end-share", "ratio", each(&|slice| slice.share)),
            cache_line: optional("cache-line-round-trip", "ns", cache_line.to_vec()),
            faults,
            name,
        }
    }

    /// A cell that could not be measured.
    pub fn failed(name: Vec<String>) -> Self {
        let mut outcome = BlkOutcome::of(name, &BlkCellResult::default(), false, &[]);
        outcome.faults = vec!["not measured".to_owned()];
        outcome
    }

    /// What is wrong, each with the cell's name.
    pub fn complaints(&self) -> impl Iterator<Item = String> {
        self.faults.iter().map(|fault| format!("{}: {fault}", self.name.join(" ")))
    }

    /// All measurements, for the report.
    pub fn measurements(&self) -> impl Iterator<Item = &Measurement> {
        [&self.rate, &self.throughput, &self.device]
            .into_iter()
            .chain(&self.latency)
            .chain([&self.errors])
            .chain(&self.damages)
            .chain([&self.share, &self.cache_line])
    }
}

/// Nanoseconds of the device's core for each request, slice by slice.
fn device_times(cell: &BlkCellResult) -> Vec<f64> {
    let time = |two: &[CounterLine]| {
        let [before, after] = two else { return None };
        let line = after.total() - before.total();
        (line.packets > 0).then(|| line.busy_ns as f64 / line.packets as f64)
    };
    cell.counters.windows(2).filter_map(time).collect()
}

fn faults(cell: &BlkCellResult) -> Vec<String> {
    let mut faults = Vec::new();
    if cell.faults.failed > 0 {
        let status = cell.faults.status.unwrap_or(Failed::Virtio(UNANSWERED));
        let failed = cell.faults.failed;
        faults
            .push(format!("{failed} requests failed, the first with: {status}; look at the back-end's log"));
    }
    faults.extend(damage(&cell.faults.findings));
    if !cell.slices.is_empty() && cell.slices.iter().all(|slice| slice.counts.requests == 0) {
        faults.push("no request ended".to_owned());
    }
    if let Some(errors) = cell.last.as_ref().map(|last| last.total().errors).filter(|errors| *errors > 0) {
        faults.push(format!("the device counted {errors} ring errors"));
    }
    faults
}

/// The kinds of damage in numbers, and the first findings.
fn damage(findings: &Findings) -> Vec<String> {
    let counts: Vec<String> = DAMAGES
        .iter()
        .filter(|damage| findings.count(**damage) > 0)
        .map(|damage| format!("{} {damage}", findings.count(*damage)))
        .collect();
    let told = findings.first().iter().map(ToString::to_string);
    match counts.is_empty() {
        true => Vec::new(),
        false => std::iter::once(format!("damage: {}", counts.join(", "))).chain(told).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::ledger::Finding;
    use crate::report::QueueLine;
    use mdev_protocol::virtio::blk::VIRTIO_BLK_S_IOERR;

    fn name() -> Vec<String> {
        ["mem", "randread", "4k", "32", "split"].map(str::to_owned).into()
    }

    fn cell() -> BlkCellResult {
        let counts = || {
            let mut counts = BlkCounts { requests: 2_000_000, bytes: 8_192_000_000, ..Default::default() };
            counts.latencies.record_ns(7_000);
            counts
        };
        BlkCellResult {
            slices: (0..3).map(|_| Slice { seconds: 2.0, share: 1.0, counts: counts() }).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn figures_are_of_the_slices_and_names_of_the_cell() {
        let mut cell = cell();
        let line = |packets| CounterLine {
            queues: vec![QueueLine { packets, busy_ns: 90 * packets, ..Default::default() }],
            ..Default::default()
        };
        cell.counters = [0, 1_000, 2_500].map(line).into();
        let outcome = BlkOutcome::of(name(), &cell, true, &[60.0]);
        assert_eq!(outcome.rate.name, "mem/randread/4k/32/split/rate");
        assert_eq!((outcome.rate.median, outcome.throughput.median), (1000.0, 4.096));
        assert_eq!(outcome.device.samples, [90.0, 90.0]);
        assert!(outcome.faults.is_empty() && outcome.measurements().all(|each| each.status == Status::Ok));
        assert_eq!(outcome.damages.len(), 4);
    }

    #[test]
    fn requests_that_fail_spoil_the_cell_and_the_first_status_is_told() {
        let mut cell = cell();
        cell.faults.failed = 3;
        cell.faults.status = Some(Failed::Virtio(VIRTIO_BLK_S_IOERR));
        let outcome = BlkOutcome::of(name(), &cell, false, &[]);
        assert_eq!((outcome.rate.status, outcome.errors.median), (Status::Failed, 3.0));
        let complaint = outcome.complaints().next().unwrap();
        assert!(
            complaint
                .starts_with("mem randread 4k 32 split: 3 requests failed, the first with: an I/O error")
        );
    }

    #[test]
    fn damage_is_counted_by_kind_and_told_with_sector_and_generations() {
        let mut cell = cell();
        for (damage, block) in [(Damage::Torn, 2), (Damage::Lost, 1), (Damage::Torn, 3)] {
            let what = "generation 4 is there, and only 7 may be there".to_owned();
            cell.faults.findings.add(Finding { damage, block, sector: 8 * block, what });
        }
        let outcome = BlkOutcome::of(name(), &cell, true, &[]);
        assert_eq!(outcome.faults[0], "damage: 1 LOST, 2 TORN");
        assert!(outcome.faults[1].starts_with("TORN: sector 16 (block 2): generation 4"));
        let counts: Vec<f64> = outcome.damages.iter().map(|each| each.median).collect();
        assert_eq!(counts, [1.0, 0.0, 2.0, 0.0]);
        assert!(outcome.damages.iter().all(|each| each.status == Status::Failed));
    }
}
