//! Counters of a queue: written by its worker, read by anybody.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::tsc;

/// What the queues of a kind of device, and what goes through them, are called in counters.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct QueueNames {
    /// Queue `i` is `queues[i % queues.len()]`.
    pub queues: &'static [&'static str],
    /// What is counted.
    pub items: &'static str,
    /// The unit of their rate.
    pub per_second: &'static str,
    /// Whether the rate of bytes is told in bits, as networks have it.
    pub in_bits: bool,
}

impl QueueNames {
    /// What queue `index` is called.
    pub fn queue(&self, index: u16) -> &'static str {
        let count = self.queues.len().max(1);
        self.queues.get(usize::from(index).wrapping_rem(count)).copied().unwrap_or("queue")
    }
}

/// Why a frame or request was dropped instead of being served.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum DropCause {
    /// The receiving queue is not running, or not enabled.
    NoReceiver,
    /// The receiving ring has no chain left.
    ReceiverFull,
    /// The receiver's chain is too small for the frame and must not be joined with others.
    ReceiverSmall,
    /// Shorter than its header and an Ethernet header.
    Short,
    /// Longer than the largest frame, or in too many pieces.
    Oversize,
    /// Discarded because its queue is disabled.
    Disabled,
    /// Its header asks for what was not negotiated, or points outside the frame.
    Header,
    /// The link has no room for it at the moment.
    LinkFull,
    /// The link is down, or gone.
    LinkDown,
    /// The link does not take such a frame.
    LinkRefused,
    /// A request whose data make no sense.
    Malformed,
    /// A request of a kind that was not offered.
    Unsupported,
    /// A request beyond the end of the store, or of its limits.
    OutOfRange,
    /// A request that would change what is read-only.
    ReadOnly,
    /// A request whose data lie where the guest has no memory.
    NoMemory,
    /// The store failed.
    StoreFailed,
    /// The store is full.
    NoSpace,
    /// Guest memory was lost under a request.
    MemoryLost,
    /// Nobody waited for the request any more.
    Cancelled,
}

impl DropCause {
    /// Every cause, in the order of [`QueueCounters::drops`].
    pub const ALL: [DropCause; 19] = [
        DropCause::NoReceiver,
        DropCause::ReceiverFull,
        DropCause::ReceiverSmall,
        DropCause::Short,
        DropCause::Oversize,
        DropCause::Disabled,
        DropCause::Header,
        DropCause::LinkFull,
        DropCause::LinkDown,
        DropCause::LinkRefused,
        DropCause::Malformed,
        DropCause::Unsupported,
        DropCause::OutOfRange,
        DropCause::ReadOnly,
        DropCause::NoMemory,
        DropCause::StoreFailed,
        DropCause::NoSpace,
        DropCause::MemoryLost,
        DropCause::Cancelled,
    ];

    /// A word for statistics lines.
    pub fn name(self) -> &'static str {
        match self {
            DropCause::NoReceiver => "no-receiver",
            DropCause::ReceiverFull => "receiver-full",
            DropCause::ReceiverSmall => "receiver-small",
            DropCause::Short => "short",
            DropCause::Oversize => "oversize",
            DropCause::Disabled => "disabled",
            DropCause::Header => "header",
            DropCause::LinkFull => "link-full",
            DropCause::LinkDown => "link-down",
            DropCause::LinkRefused => "link-refused",
            DropCause::Malformed => "malformed",
            DropCause::Unsupported => "unsupported",
            DropCause::OutOfRange => "out-of-range",
            DropCause::ReadOnly => "read-only",
            DropCause::NoMemory => "no-memory",
            DropCause::StoreFailed => "io-error",
            DropCause::NoSpace => "no-space",
            DropCause::MemoryLost => "memory-lost",
            DropCause::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for DropCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The counters of one queue. Only the worker that runs the queue writes them, so a relaxed load and store do; nothing is
/// written per packet.
#[derive(Debug)]
#[repr(align(128))]
pub struct QueueStats {
    packets: AtomicU64,
    bytes: AtomicU64,
    drops: [AtomicU64; DropCause::ALL.len()],
    starts: AtomicU64,
    parks: AtomicU64,
    kicks: AtomicU64,
    calls: AtomicU64,
    errors: AtomicU64,
    busy_ticks: AtomicU64,
    polls: AtomicU64,
    empty_polls: AtomicU64,
}

/// The counters at one moment.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Frames or requests that the queue took from the guest or gave to it; dropped ones that were taken are among them.
    pub packets: u64,
    /// Their bytes, virtio headers excluded.
    pub bytes: u64,
    /// What was dropped, by [`DropCause::ALL`].
    pub drops: [u64; DropCause::ALL.len()],
    /// How often the ring was started.
    pub starts: u64,
    /// How often a translation was missing.
    pub parks: u64,
    /// Kicks received.
    pub kicks: u64,
    /// Calls sent.
    pub calls: u64,
    /// Failures latched.
    pub errors: u64,
    /// Nanoseconds the worker spent in polls that found work.
    pub busy_ns: u64,
    /// Polls that found work.
    pub polls: u64,
    /// Polls that found none.
    pub empty_polls: u64,
}

impl QueueCounters {
    /// All drops together.
    pub fn dropped(&self) -> u64 {
        self.drops.iter().fold(0, |sum, &count| sum.wrapping_add(count))
    }

    /// The drops of one cause.
    pub fn drops_by(&self, cause: DropCause) -> u64 {
        self.drops.get(cause as usize).copied().unwrap_or_default()
    }
}

#[inline(always)]
fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
}

impl Default for QueueStats {
    fn default() -> Self {
        tsc::start();
        Self {
            packets: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            drops: Default::default(),
            starts: AtomicU64::new(0),
            parks: AtomicU64::new(0),
            kicks: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            busy_ticks: AtomicU64::new(0),
            polls: AtomicU64::new(0),
            empty_polls: AtomicU64::new(0),
        }
    }
}

impl QueueStats {
    /// The counters now. Not one instant: a burst may be counted in part.
    pub fn counters(&self) -> QueueCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        QueueCounters {
            packets: get(&self.packets),
            bytes: get(&self.bytes),
            drops: self.drops.each_ref().map(get),
            starts: get(&self.starts),
            parks: get(&self.parks),
            kicks: get(&self.kicks),
            calls: get(&self.calls),
            errors: get(&self.errors),
            busy_ns: tsc::to_ns(get(&self.busy_ticks)),
            polls: get(&self.polls),
            empty_polls: get(&self.empty_polls),
        }
    }

    /// Counts kicks; the worker drains the counter they arrive in.
    pub fn add_kicks(&self, count: u64) {
        add(&self.kicks, count);
    }

    pub(crate) fn add_start(&self) {
        add(&self.starts, 1);
    }

    pub(crate) fn add_park(&self) {
        add(&self.parks, 1);
    }

    pub(crate) fn add_call(&self) {
        add(&self.calls, 1);
    }

    pub(crate) fn add_error(&self) {
        add(&self.errors, 1);
    }

    /// Counts drops of one cause.
    pub(crate) fn add_drops(&self, cause: DropCause, count: u64) {
        if count != 0
            && let Some(counter) = self.drops.get(cause as usize)
        {
            add(counter, count);
        }
    }

    /// Counts one poll that found work and what it served.
    #[inline]
    pub(crate) fn add_burst(&self, packets: u64, bytes: u64, ticks: u64) {
        add(&self.packets, packets);
        add(&self.bytes, bytes);
        add(&self.busy_ticks, ticks);
        add(&self.polls, 1);
    }

    /// Counts one poll that found none.
    #[inline(always)]
    pub(crate) fn add_empty_poll(&self) {
        add(&self.empty_polls, 1);
    }
}
