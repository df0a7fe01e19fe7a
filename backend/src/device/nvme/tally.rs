//! What commands have moved, until it is counted.

use super::{Shared, Usage};
use crate::device::QueueStats;
use crate::store::Operation;
use crate::sys::tsc;

/// What was not counted yet.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Commands that have ended.
    ended: u64,
    /// Commands that read and have ended well, and their bytes.
    reads: (u64, u64),
    /// The same of those that write data.
    writes: (u64, u64),
}

impl Tally {
    /// A command has ended well.
    #[inline(always)]
    pub(super) fn done(&mut self, operation: Operation, bytes: u64) {
        let (commands, sum) = match operation {
            Operation::Read | Operation::Compare | Operation::Verify => &mut self.reads,
            Operation::Write { .. } => &mut self.writes,
            Operation::Flush | Operation::Discard | Operation::WriteZeroes { .. } => return self.failed(),
        };
        *commands = commands.wrapping_add(1);
        *sum = sum.wrapping_add(bytes);
        self.ended = self.ended.wrapping_add(1);
    }

    /// A command has ended, and moved nothing.
    #[inline(always)]
    pub(super) fn failed(&mut self) {
        self.ended = self.ended.wrapping_add(1);
    }

    /// Bytes that were moved.
    #[inline(always)]
    pub(super) fn bytes(&self) -> u64 {
        self.reads.1.wrapping_add(self.writes.1)
    }

    /// Counts it, with a burst of queue `qid` that began at this tick. `taken`: it has found work, even if nothing has ended.
    #[inline(always)]
    pub(super) fn count(&mut self, shared: &Shared, qid: u16, stats: &QueueStats, began: u64, taken: bool) {
        if self.ended == 0 && !taken {
            stats.add_empty_poll();
            return;
        }
        stats.add_burst(self.ended, self.bytes(), tsc::now().wrapping_sub(began));
        let Tally { ended: _, reads, writes } = std::mem::take(self);
        if let Some(usage) = shared.usage(qid) {
            add(reads, |commands, bytes| Usage::add_reads(usage, commands, bytes));
            add(writes, |commands, bytes| Usage::add_writes(usage, commands, bytes));
        }
    }
}

#[inline(always)]
fn add((commands, bytes): (u64, u64), to: impl FnOnce(u64, u64)) {
    if commands > 0 {
        to(commands, bytes);
    }
}
