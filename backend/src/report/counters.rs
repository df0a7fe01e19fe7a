//! Counters of a running device, as a line of JSON: what `perf` asks the device's process for.
use crate::device::{Device, QueueCounters};
use crate::session::IotlbLine;
use mdev_dma::Windows;
use serde::{Deserialize, Serialize};
use std::iter::Sum;
use std::ops::{Add, Sub};

/// The counters of one queue, or of several added up; all since the device's start.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueLine {
    /// Packets that went through.
    pub packets: u64,
    /// Their bytes, virtio headers excluded.
    pub bytes: u64,
    /// Packets that were dropped, for whatever cause.
    pub drops: u64,
    /// How often the ring was started.
    #[serde(default)]
    pub starts: u64,
    /// How often a translation was missing.
    pub parks: u64,
    /// Kicks that came.
    pub kicks: u64,
    /// Calls that were sent.
    pub calls: u64,
    /// Failures of the ring.
    pub errors: u64,
    /// Nanoseconds that the worker spent in polls that found work.
    pub busy_ns: u64,
    /// Polls that found work.
    pub polls: u64,
    /// Polls that found none.
    pub empty_polls: u64,
}

/// How the process has guest memory mapped. A window is up to 1 GiB of a file, shared by all who use it.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryLine {
    /// Windows that are mapped.
    pub windows: u64,
    /// How many were ever mapped.
    #[serde(default)]
    pub mapped: u64,
    /// Of these, those that have lost a page of their file: what lies in them fails until it is mapped anew.
    pub poisoned: u64,
    /// Of these, those of which pages were taken away from a device that did not let go of them.
    pub revoked: u64,
    /// Accesses to lost pages, ever.
    pub faults: u64,
}

impl MemoryLine {
    /// What there is now.
    pub fn of(windows: &Windows) -> Self {
        let losses = windows.losses();
        MemoryLine {
            windows: windows.live() as u64,
            mapped: windows.mapped_total(),
            poisoned: losses.poisoned as u64,
            revoked: losses.revoked as u64,
            faults: losses.faults,
        }
    }
}

/// The counters of all queues of a device, and of its memory, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterLine {
    /// One for each queue, by its index.
    pub queues: Vec<QueueLine>,
    /// The memory of all its front-ends.
    #[serde(default)]
    pub memory: MemoryLine,
    /// The translations of those behind an IOMMU.
    #[serde(default)]
    pub iotlb: IotlbLine,
}

impl CounterLine {
    /// The counters of a device now, whose front-ends' memory is mapped through `windows`, and none of them behind an IOMMU.
    pub fn of(device: &dyn Device, windows: &Windows) -> Self {
        let counters = |index| device.queue_stats(index).map(|stats| stats.counters()).unwrap_or_default();
        CounterLine {
            queues: (0..device.queue_count()).map(|index| QueueLine::from(&counters(index))).collect(),
            memory: MemoryLine::of(windows),
            iotlb: IotlbLine::default(),
        }
    }

    /// One line of JSON with its line feed.
    ///
    /// # Errors
    /// None that is known: all fields are numbers.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self).map(|text| text + "\n")
    }

    /// The receive queues (even indices) added up.
    pub fn receive(&self) -> QueueLine {
        self.queues.iter().step_by(2).copied().sum()
    }

    /// The transmit queues (odd indices) added up.
    pub fn transmit(&self) -> QueueLine {
        self.queues.iter().skip(1).step_by(2).copied().sum()
    }

    /// All queues added up.
    pub fn total(&self) -> QueueLine {
        self.queues.iter().copied().sum()
    }
}

impl From<&QueueCounters> for QueueLine {
    fn from(counters: &QueueCounters) -> Self {
        QueueLine {
            packets: counters.packets,
            bytes: counters.bytes,
            drops: counters.dropped(),
            starts: counters.starts,
            parks: counters.parks,
            kicks: counters.kicks,
            calls: counters.calls,
            errors: counters.errors,
            busy_ns: counters.busy_ns,
            polls: counters.polls,
            empty_polls: counters.empty_polls,
        }
    }
}

impl QueueLine {
    fn combine(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        QueueLine {
            packets: with(self.packets, other.packets),
            bytes: with(self.bytes, other.bytes),
            drops: with(self.drops, other.drops),
            starts: with(self.starts, other.starts),
            parks: with(self.parks, other.parks),
            kicks: with(self.kicks, other.kicks),
            calls: with(self.calls, other.calls),
            errors: with(self.errors, other.errors),
            busy_ns: with(self.busy_ns, other.busy_ns),
            polls: with(self.polls, other.polls),
            empty_polls: with(self.empty_polls, other.empty_polls),
        }
    }
}

impl Add for QueueLine {
    type Output = QueueLine;

    fn add(self, other: Self) -> Self {
        self.combine(other, u64::wrapping_add)
    }
}

impl Sub for QueueLine {
    type Output = QueueLine;

    fn sub(self, earlier: Self) -> Self {
        self.combine(earlier, u64::wrapping_sub)
    }
}

impl Sum for QueueLine {
    fn sum<I: Iterator<Item = Self>>(lines: I) -> Self {
        lines.fold(QueueLine::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(packets: u64) -> QueueLine {
        QueueLine { packets, busy_ns: 10 * packets, ..QueueLine::default() }
    }

    #[test]
    fn line_is_one_line_and_is_read_back() {
        let memory = MemoryLine { windows: 3, mapped: 4, poisoned: 1, revoked: 0, faults: 7 };
        let iotlb = IotlbLine { entries: 5, ..IotlbLine::default() };
        let line = CounterLine { queues: vec![line(1), line(2)], memory, iotlb };
        let text = line.to_json().unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.ends_with('\n'));
        assert_eq!(serde_json::from_str::<CounterLine>(&text).unwrap(), line);
        let short: CounterLine = serde_json::from_str(r#"{"queues":[]}"#).unwrap();
        assert_eq!(short.memory, MemoryLine::default(), "a device that does not tell of its memory");
    }

    #[test]
    fn sums_keep_receive_and_transmit_apart() {
        let line =
            CounterLine { queues: vec![line(1), line(20), line(300), line(4000)], ..CounterLine::default() };
        assert_eq!((line.receive().packets, line.transmit().packets), (301, 4020));
        assert_eq!(line.total().busy_ns, 43_210);
        assert_eq!((line.total() - line.receive()).packets, 4020);
    }
}
