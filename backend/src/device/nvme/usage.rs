//! What the commands of a queue have moved, for the health log.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of one submission queue. Only the worker that runs it writes them, so a relaxed load and store do.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Usage {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
}

/// The counters at one moment.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Commands that read: read, compare, verify.
    pub reads: u64,
    /// Bytes that they read.
    pub read_bytes: u64,
    /// Commands that write data.
    pub writes: u64,
    /// Bytes that they wrote.
    pub written_bytes: u64,
}

fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

impl Usage {
    /// Commands that read have ended well.
    #[inline]
    pub fn add_reads(&self, commands: u64, bytes: u64) {
        add(&self.reads, commands);
        add(&self.read_bytes, bytes);
    }

    /// Commands that write have ended well.
    #[inline]
    pub fn add_writes(&self, commands: u64, bytes: u64) {
        add(&self.writes, commands);
        add(&self.written_bytes, bytes);
    }

    /// The counters now.
    pub fn used(&self) -> Used {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Used {
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            written_bytes: get(&self.written_bytes),
        }
    }
}

impl Used {
    /// Both together.
    pub fn plus(self, other: Used) -> Used {
        Used {
            reads: self.reads.wrapping_add(other.reads),
            read_bytes: self.read_bytes.wrapping_add(other.read_bytes),
            writes: self.writes.wrapping_add(other.writes),
            written_bytes: self.written_bytes.wrapping_add(other.written_bytes),
        }
    }
}
