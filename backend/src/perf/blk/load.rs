//! One queue under load: which requests it submits, what it counts and checks of those that have ended.
use super::cell::BlkCellOptions;
use super::requests::{Done, Failed, Kicked, RequestQueue, Transfer};
use super::workload::{MIXED_READS, Rw, Workload};
use crate::driver::blk::BlkQueue;
use crate::driver::ledger::{Expected, Findings, Ledger};
use crate::driver::pattern::mix;
use crate::driver::{DriverError, RingFds, Virtqueue};
use crate::perf::latency::Latencies;
use crate::perf::run::{Counted, Driven, RunError};
use crate::sys::tsc;
use mdev_dma::GuestSlice;
use std::time::Duration;

/// Up to so many requests under way the latency of each is taken, beyond of one in [`SAMPLE`].
const EVERY: u16 = 4;
/// See [`EVERY`].
const SAMPLE: u32 = 16;
/// A device that ends nothing for so long is taken for dead. A disk may be slow.
const UNANSWERED: Duration = Duration::from_secs(30);

/// What was counted since the last time.
#[derive(Clone, Debug, Default)]
pub struct BlkCounts {
    /// Requests that have ended.
    pub requests: u64,
    /// Bytes of those that have ended well.
    pub bytes: u64,
    /// Requests that have failed.
    pub failed: u64,
    /// Latencies, of all or of some.
    pub latencies: Latencies,
}

impl Counted for BlkCounts {
    fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.failed += other.failed;
        self.latencies.merge(&other.latencies);
    }
}

/// What went wrong in a queue's whole life.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Requests that have failed.
    pub failed: u64,
    /// The status of the first of them.
    pub status: Option<Failed>,
    /// Damage that was found.
    pub findings: Findings,
}

impl Faults {
    /// Adds another queue's.
    pub fn merge(&mut self, other: &Faults) {
        self.failed += other.failed;
        self.status = self.status.or(other.status);
        self.findings.merge(&other.findings);
    }
}

/// Which blocks a queue uses.
#[derive(Copy, Clone, Debug)]
pub struct Place {
    /// Blocks of all queues.
    pub all: u64,
    /// The first of its own, which it goes through one after the other.
    pub first: u64,
    /// How many are its own.
    pub count: u64,
}

/// What a queue is doing.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Task {
    /// The workload, for as long as it is driven.
    Workload,
    /// Every own block once, written or read; this is the next.
    Once { write: bool, next: u64 },
}

/// One queue under load.
pub struct Load<R = Kicked> {
    queue: R,
    workload: Workload,
    burst: u32,
    place: Place,
    task: Task,
    /// Where a sequential workload is, from the first own block on.
    position: u64,
    random: u64,
    /// Requests until the next one that is timed, and from one to the next.
    until: u32,
    interval: u32,
    /// When the request of each tag was published, in ticks; 0: not timed.
    stamps: Vec<u64>,
    /// Tags of the burst that are timed; kept for its memory.
    timed: Vec<u16>,
    counts: BlkCounts,
    faults: Faults,
    check: Option<Check>,
}

/// What a tag's request is about, where that is checked.
#[derive(Clone, Debug)]
enum About {
    Nothing,
    Write { block: u64, generation: u64 },
    Read { block: u64, expected: Expected },
}

/// The means to check what is read.
struct Check {
    ledger: Ledger,
    /// By tag.
    under_way: Vec<About>,
    block: Vec<u8>,
}

impl<Q: Virtqueue> Load<Kicked<Q>> {
    /// A virtio queue that has not submitted anything.
    pub fn new(queue: BlkQueue<Q>, fds: RingFds, options: &BlkCellOptions, place: Place) -> Self {
        Self::on(Kicked { queue, fds }, options, place)
    }

    /// Its ring.
    pub fn ring(&self) -> &Q {
        &self.queue.queue.queue
    }

    /// The counters by which the ring is kicked.
    pub fn fds(&self) -> &RingFds {
        &self.queue.fds
    }
}

impl<R: RequestQueue> Load<R> {
    /// A queue that has not submitted anything.
    pub fn on(queue: R, options: &BlkCellOptions, place: Place) -> Self {
        let BlkCellOptions { workload, rings, verify, seed, .. } = options;
        let bytes = workload.size.bytes();
        let tags = usize::from(workload.depth);
        let random = mix(seed.wrapping_add(place.first)) | 1;
        // Neither zeros nor the same everywhere: stores may treat such blocks in their own way.
        for tag in 0..workload.depth {
            if let Some(data) = queue.data(tag) {
                let words = data.len() / size_of::<u64>();
                (0..words as u64).for_each(|word| {
                    let _ = data.write(word as usize * size_of::<u64>(), mix(u64::from(tag) << 32 | word));
                });
            }
        }
        let interval = if workload.depth <= EVERY { 1 } else { SAMPLE };
        Load {
            queue,
            workload: *workload,
            burst: rings.burst,
            place,
            task: Task::Workload,
            position: 0,
            random,
            until: interval,
            interval,
            stamps: vec![0; tags],
            timed: Vec::with_capacity(tags),
            counts: BlkCounts::default(),
            faults: Faults::default(),
            check: verify.then(|| Check {
                ledger: Ledger::new(*seed, bytes),
                under_way: vec![About::Nothing; tags],
                block: vec![0; bytes as usize],
            }),
        }
    }

    /// What went wrong so far.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// From now on it does its workload.
    pub fn work(&mut self) {
        self.task = Task::Workload;
    }

    /// From now on it writes, or reads, each of its blocks once.
    pub fn go_through(&mut self, write: bool) {
        self.task = Task::Once { write, next: 0 };
    }

    /// Whether nothing is under way, and if `send`, nothing is left to be submitted.
    pub fn is_done(&self, send: bool) -> bool {
        let left = matches!(self.task, Task::Once { next, .. } if next < self.place.count);
        self.queue.under_way() == 0 && !(send && left)
    }

    fn reap(&mut self) -> Result<u32, DriverError> {
        let Self { queue, burst, stamps, counts, faults, check, workload, .. } = self;
        let mut now = 0;
        let bytes = u64::from(workload.size.bytes());
        let mut failed = 0;
        let reaped = queue.reap(*burst, |done, data| {
            if let Some(stamp) = stamps.get_mut(usize::from(done.tag))
                && *stamp != 0
            {
                if now == 0 {
                    now = tsc::now();
                }
                counts.latencies.record_ns(tsc::to_ns(now.saturating_sub(*stamp)));
                *stamp = 0;
            }
            if let Some(status) = done.failed {
                failed += 1;
                faults.status.get_or_insert(status);
            }
            if let Some(check) = check {
                check.ended(done, data, &mut faults.findings);
            }
        })?;
        counts.requests += u64::from(reaped);
        counts.bytes += bytes * u64::from(reaped).saturating_sub(failed);
        counts.failed += failed;
        faults.failed += failed;
        Ok(reaped)
    }

    fn submit(&mut self) -> Result<(), DriverError> {
        let Self { queue, place, task, position, random, until, interval, workload, timed, check, .. } = self;
        let count = match task {
            Task::Workload => self.burst,
            Task::Once { next, .. } => {
                let left = place.count.saturating_sub(*next);
                u32::try_from(left).unwrap_or(u32::MAX).min(self.burst)
            }
        };
        timed.clear();
        let (rw, len, sectors) = (workload.rw, workload.size.bytes(), workload.size.sectors());
        let submitted = queue.submit(count, |tag, data| {
            *until -= 1;
            if *until == 0 {
                *until = *interval;
                timed.push(tag);
            }
            let (write, block) = match task {
                Task::Once { write, next } => {
                    *next += 1;
                    (*write, place.first + *next - 1)
                }
                Task::Workload if rw.is_sequential() => {
                    let block = place.first + *position;
                    *position = if *position + 1 < place.count { *position + 1 } else { 0 };
                    (rw == Rw::Write, block)
                }
                Task::Workload => {
                    *random ^= *random << 13;
                    *random ^= *random >> 7;
                    *random ^= *random << 17;
                    let write = match rw {
                        Rw::Mixed => ((*random & 0xffff) * 100) >> 16 >= MIXED_READS,
                        _ => rw == Rw::RandWrite,
                    };
                    // Each queue's blocks are its own where a ledger is kept of them.
                    let (first, count) = match check {
                        Some(_) => (place.first, place.count),
                        None => (0, place.all),
                    };
                    (write, first + ((u128::from(*random) * u128::from(count)) >> 64) as u64)
                }
            };
            if let Some(check) = check {
                check.begin(tag, write, block, data);
            }
            Transfer { write, sector: block * sectors, len }
        })?;
        if submitted == 0 {
            return Ok(());
        }
        let kick = queue.publish();
        if !timed.is_empty() {
            let now = tsc::now();
            for &tag in &*timed {
                if let Some(stamp) = self.stamps.get_mut(usize::from(tag)) {
                    *stamp = now;
                }
            }
        }
        if kick {
            self.queue.kick()?;
        }
        Ok(())
    }
}

impl<R: RequestQueue> Driven for Load<R> {
    type Counts = BlkCounts;

    #[inline]
    fn poll(&mut self, send: bool) -> Result<u32, DriverError> {
        let reaped = self.reap()?;
        if send && self.queue.idle() > 0 {
            self.submit()?;
        }
        Ok(reaped)
    }

    fn take(&mut self) -> BlkCounts {
        std::mem::take(&mut self.counts)
    }

    fn silent(&mut self, number: usize, since: Duration) -> Result<(), RunError> {
        if self.queue.is_given_up() {
            return Err(RunError::QueueFailed(number));
        }
        if since > UNANSWERED { Err(RunError::Unanswered(since)) } else { Ok(()) }
    }
}

impl Check {
    fn begin(&mut self, tag: u16, write: bool, block: u64, data: &GuestSlice<'_>) {
        let about = if write {
            let generation = self.ledger.begin(block);
            self.ledger.fill(block, generation, &mut self.block);
            data.copy_from(&self.block);
            About::Write { block, generation }
        } else {
            // What a read leaves as it was must not pass for what it has read.
            data.fill(0);
            About::Read { block, expected: self.ledger.expected(block) }
        };
        if let Some(place) = self.under_way.get_mut(usize::from(tag)) {
            *place = about;
        }
    }

    fn ended(&mut self, done: Done, data: &GuestSlice<'_>, findings: &mut Findings) {
        let Some(place) = self.under_way.get_mut(usize::from(done.tag)) else { return };
        let result = match std::mem::replace(place, About::Nothing) {
            About::Nothing => Ok(()),
            About::Write { block, generation } if done.is_ok() => self.ledger.acknowledge(block, generation),
            About::Write { block, generation } => self.ledger.give_up(block, generation),
            About::Read { block, expected } if done.is_ok() => {
                data.copy_to(&mut self.block);
                self.ledger.check_read(block, &expected, &self.block)
            }
            About::Read { .. } => Ok(()),
        };
        if let Err(finding) = result {
            findings.add(finding);
        }
    }
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
