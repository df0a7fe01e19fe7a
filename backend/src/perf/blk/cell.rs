//! One measurement: one workload, one back-end.
use super::attached::{Attached, Front};
use super::load::{BlkCounts, Faults, Load};
use super::requests::{Kicked, RequestQueue};
use super::workload::{BlockSize, Protocol, Rings, Workload};
use crate::driver::ledger::{Damage, Finding};
use crate::driver::{DriverError, PackedQueue, SplitQueue};
use crate::perf::cell::{CellError, SLICES};
use crate::perf::run::{Driven, Plan, RunError, Slice, complete, drive};
use crate::perf::shape::Format;
use crate::report::CounterLine;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// What to measure.
#[derive(Clone, Debug)]
pub struct BlkCellOptions {
    /// The requests.
    pub workload: Workload,
    /// How the rings look.
    pub rings: Rings,
    /// Queues.
    pub queues: u16,
    /// Bytes of the device that are used, from its beginning; `None`: all.
    pub span: Option<u64>,
    /// Every block is written once before time is measured, so that the store's memory is there.
    pub prefill: bool,
    /// Every write is found again, and every read is looked at.
    pub verify: bool,
    /// Tells this run's sectors from those of others, and begins its random numbers.
    pub seed: u64,
    /// Time of the whole cell; a tenth of it goes by before the measuring begins.
    pub duration: Duration,
    /// Processors of the driving threads; none: one thread wherever the scheduler puts it.
    pub cpus: Vec<usize>,
}

impl BlkCellOptions {
    /// How many blocks of a device of so many bytes are used.
    ///
    /// # Errors
    /// [`BlkError::TooSmall`].
    pub fn blocks(&self, bytes: u64) -> Result<u64, BlkError> {
        let size = self.workload.size;
        let used = self.span.map_or(bytes, |span| span.min(bytes));
        let blocks = used / u64::from(size.bytes());
        // Requests under way at a time are to different blocks, as long as these are verified.
        if blocks < u64::from(self.queues) {
            return Err(BlkError::TooSmall { bytes: used, size, queues: self.queues });
        }
        Ok(blocks)
    }
}

/// What is wrong with a block device.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// It cannot be written.
    #[error("the device is read-only: use --rw randread or read, without --verify (which writes first)")]
    ReadOnly,
    /// It has too few queues.
    #[error("the device has {offered} queues, {wanted} are needed; ask for fewer (--queues)")]
    Queues {
        /// Queues of the device.
        offered: u64,
        /// Queues that are needed.
        wanted: u64,
    },
    /// It does not say how large it is.
    #[error("the device does not tell its capacity (GET_CONFIG): is it a block device?")]
    NoConfiguration,
    /// There are fewer blocks than queues.
    #[error("{bytes} bytes of the device are not even a block of {size} for each of {queues} queues")]
    TooSmall {
        /// Bytes that are used.
        bytes: u64,
        /// Of each block.
        size: BlockSize,
        /// Queues.
        queues: u16,
    },
    /// It has none.
    #[error("the controller has no active namespace")]
    NoNamespace,
    /// Its blocks are none that are known here.
    #[error("the namespace has blocks with metadata, or of an odd size: format it anew")]
    Format,
    /// Its commands are shorter.
    #[error("the controller moves at most {greatest} bytes with a command: --bs {size} is more")]
    Transfer {
        /// Of each request.
        size: BlockSize,
        /// Bytes of a command's data at most.
        greatest: u64,
    },
    /// Its logical blocks are larger.
    #[error("the device has blocks of {logical} bytes: --bs {size} is no multiple of that")]
    BlockSize {
        /// Of each request.
        size: BlockSize,
        /// Of the device.
        logical: u32,
    },
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct BlkCellResult {
    /// The slices of the measured time.
    pub slices: Vec<Slice<BlkCounts>>,
    /// What went wrong from the first request to the last, of those before and after that time too.
    pub faults: Faults,
    /// The device's counters at the beginning of the first slice and at the end of each, as far as it answered.
    pub counters: Vec<CounterLine>,
    /// Its counters after the rings were stopped.
    pub last: Option<CounterLine>,
}

/// Measures one cell at the back-end that listens at `socket`. `counters` is asked on this thread after the warm-up and after each slice;
/// `progress` is told that a slice is over.
///
/// # Errors
/// [`CellError`]; requests that fail and blocks that are damaged are no error but a result.
pub fn measure(
    socket: &Path,
    options: &BlkCellOptions,
    stop: &AtomicBool,
    counters: impl FnMut() -> Option<CounterLine>,
    progress: impl FnMut(),
) -> Result<BlkCellResult, CellError> {
    match options.workload.protocol {
        Protocol::Virtio(Format::Split) => {
            let attached = Attached::<_, Kicked<SplitQueue>>::virtio(socket, options)?;
            measure_on(attached, options, stop, counters, progress)
        }
        Protocol::Virtio(Format::Packed) => {
            let attached = Attached::<_, Kicked<PackedQueue>>::virtio(socket, options)?;
            measure_on(attached, options, stop, counters, progress)
        }
        Protocol::Nvme { doorbells, data } => {
            let attached = Attached::nvme(socket, options, doorbells, data)?;
            measure_on(attached, options, stop, counters, progress)
        }
    }
}

fn measure_on<F: Front, R: RequestQueue>(
    mut attached: Attached<F, R>,
    options: &BlkCellOptions,
    stop: &AtomicBool,
    mut counters: impl FnMut() -> Option<CounterLine>,
    progress: impl FnMut(),
) -> Result<BlkCellResult, CellError> {
    let mut result = BlkCellResult::default();
    let done = timed(&mut attached, options, stop, &mut result, &mut counters, progress);
    attached.loads.iter().for_each(|load| result.faults.merge(load.faults()));
    match done {
        // The ring is of no use any more, and what it says is what was to be found out.
        Err(RunError::Driver(
            error @ (DriverError::UsedTwice(_)
            | DriverError::UsedIndexJump { .. }
            | DriverError::NotUnderWay(_)),
        )) if options.verify => {
            let what = error.to_string();
            let finding = Finding { damage: Damage::Doubled, block: 0, sector: 0, what };
            result.faults.findings.add(finding);
            return Ok(result);
        }
        done => done?,
    }
    attached.stop()?;
    result.last = counters();
    Ok(result)
}

/// All that is done while the rings run.
fn timed<F: Front, R: RequestQueue>(
    attached: &mut Attached<F, R>,
    options: &BlkCellOptions,
    stop: &AtomicBool,
    result: &mut BlkCellResult,
    mut counters: impl FnMut() -> Option<CounterLine>,
    mut progress: impl FnMut(),
) -> Result<(), RunError> {
    let Attached { front, loads, .. } = attached;
    let alive = || !front.is_gone();
    let through = |loads: &mut Vec<Load<R>>, write: bool| {
        loads.iter_mut().for_each(|load| load.go_through(write));
        complete(loads, true, stop, alive, |load| load.is_done(true))
    };
    if options.prefill || options.verify && !options.workload.rw.writes() {
        through(loads, true)?;
    }
    // What was counted till now is of no slice.
    loads.iter_mut().for_each(|load| drop(load.take()));
    loads.iter_mut().for_each(Load::work);
    let warm_up = options.duration / 10;
    let plan = Plan { warm_up, slice: (options.duration - warm_up) / SLICES as u32, slices: SLICES };
    let boundaries = &mut result.counters;
    let at_boundary = |boundary| {
        boundaries.extend(counters());
        if boundary > 0 {
            progress();
        }
    };
    result.slices = drive(loads, &plan, &options.cpus, stop, at_boundary, alive)?;
    complete(loads, false, stop, alive, |load| load.is_done(false))?;
    if options.verify {
        through(loads, false)?;
    }
    Ok(())
}
