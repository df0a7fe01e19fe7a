//! Counters as text: a table on request, a line of rates from time to time.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::device::{Device, DropCause, QueueCounters, QueueNames};
use crate::report::MemoryLine;
use crate::session::IotlbLine;

/// All queues' counters of a device as an aligned table. Of the causes of drops only those that occurred have a column.
pub(super) fn table(device: &dyn Device, names: QueueNames) -> String {
    let queues: Vec<_> = queues(device).collect();
    let causes: Vec<_> = DropCause::ALL
        .into_iter()
        .filter(|&cause| queues.iter().any(|(_, counters)| counters.drops_by(cause) != 0))
        .collect();

    let mut rows = vec![["queue", names.items, "bytes", "drops"].map(str::to_owned).to_vec()];
    if let Some(head) = rows.first_mut() {
        head.extend(causes.iter().map(|cause| cause.name().to_owned()));
        let always = ["starts", "parks", "kicks", "calls", "errors", "polls", "busy-ns"];
        head.extend(always.map(str::to_owned));
    }
    for (index, counters) in &queues {
        let mut row = vec![format!("{index} {}", names.queue(*index))];
        row.extend([counters.packets, counters.bytes, counters.dropped()].map(|count| count.to_string()));
        row.extend(causes.iter().map(|&cause| counters.drops_by(cause).to_string()));
        let QueueCounters { starts, parks, kicks, calls, errors, polls, busy_ns, .. } = *counters;
        let rest = [starts, parks, kicks, calls, errors, polls, busy_ns];
        row.extend(rest.map(|count| count.to_string()));
        rows.push(row);
    }
    format!("{}:\n{}", device.name(), aligned(&rows))
}

/// A line on the memory of all front-ends of the process.
pub(super) fn memory(memory: MemoryLine) -> String {
    let MemoryLine { windows, mapped, poisoned, revoked, faults } = memory;
    format!(
        "  memory: {windows} windows, {mapped} mapped, {poisoned} poisoned, {revoked} revoked, {faults} faults\n"
    )
}

/// A line on what front-ends of a device have translated for it; nothing where that has never been.
pub(super) fn iotlb(iotlb: IotlbLine) -> String {
    if iotlb == IotlbLine::default() {
        return String::new();
    }
    let IotlbLine { entries, misses, updates, invalidations, evictions } = iotlb;
    format!(
        "  iotlb: {entries} entries, {misses} misses, {updates} updates, {invalidations} invalidations, {evictions} \
         evictions\n"
    )
}

/// The first column to the left, all others to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width =
        |column| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let width = *width;
            // Writing to a string cannot fail.
            let _ =
                if column == 0 { write!(text, "  {cell:<width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.push('\n');
    }
    text
}

/// The counters as they stood when the last line of rates was written.
pub(super) struct Rates {
    at: Instant,
    last: Vec<Sum>,
}

/// One kind of queue, all its queues together.
#[derive(Copy, Clone, Default)]
struct Sum {
    packets: u64,
    bytes: u64,
    drops: u64,
}

impl Rates {
    pub(super) fn new(device: &dyn Device, names: QueueNames, now: Instant) -> Self {
        Rates { at: now, last: sums(device, names) }
    }

    /// What went through since the last line: `net0: receive 1.20 Mpps 0.61 Gbit/s, transmit ...`.
    pub(super) fn line(&mut self, device: &dyn Device, names: QueueNames, now: Instant) -> String {
        let passed = now.saturating_duration_since(self.at);
        let sums = sums(device, names);
        let mut parts = Vec::new();
        for ((sum, last), name) in sums.iter().zip(&self.last).zip(names.queues) {
            parts.push(rate(name, names, sum, last, passed));
        }
        *self = Rates { at: now, last: sums };
        format!("{}: {}", device.name(), parts.join(", "))
    }
}

fn rate(name: &str, names: QueueNames, now: &Sum, last: &Sum, passed: Duration) -> String {
    let seconds = passed.as_secs_f64().max(1e-9);
    let per_second = |now: u64, last: u64| now.wrapping_sub(last) as f64 / seconds;
    let unit = names.per_second;
    let items = per_second(now.packets, last.packets);
    let bytes = per_second(now.bytes, last.bytes);
    let drops = per_second(now.drops, last.drops);
    let bytes = if names.in_bits { scaled(bytes * 8.0, "bit/s") } else { scaled(bytes, "B/s") };
    let mut text = format!("{name} {} {bytes}", scaled(items, unit));
    if drops > 0.0 {
        let _ = write!(text, " ({} dropped)", scaled(drops, unit));
    }
    text
}

/// A rate with the prefix that leaves at most three digits before the point.
fn scaled(value: f64, unit: &str) -> String {
    let (value, prefix) = match value {
        giga if giga >= 1e9 => (giga / 1e9, "G"),
        mega if mega >= 1e6 => (mega / 1e6, "M"),
        kilo if kilo >= 1e3 => (kilo / 1e3, "k"),
        one => (one, ""),
    };
    format!("{value:.2} {prefix}{unit}")
}

fn sums(device: &dyn Device, names: QueueNames) -> Vec<Sum> {
    let mut sums = vec![Sum::default(); names.queues.len()];
    for (index, counters) in queues(device) {
        let Some(sum) = sums.get_mut(usize::from(index) % names.queues.len().max(1)) else { continue };
        sum.packets = sum.packets.wrapping_add(counters.packets);
        sum.bytes = sum.bytes.wrapping_add(counters.bytes);
        sum.drops = sum.drops.wrapping_add(counters.dropped());
    }
    sums
}

fn queues(device: &dyn Device) -> impl Iterator<Item = (u16, QueueCounters)> + '_ {
    (0..device.queue_count()).filter_map(|index| Some((index, device.queue_stats(index)?.counters())))
}

#[cfg(test)]
mod tests;
