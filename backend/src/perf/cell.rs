//! One measurement: one direction, one size, one back-end.
use super::attached::Attached;
use super::drive::{Care, Counts, Direction};
use super::run::{Plan, RunError, Slice, drive, verify};
use super::shape::{Format, Shape};
use super::size::PacketSize;
use crate::driver::nvme::NvmeError;
use crate::driver::{DriverError, FrontEndError, MemoryError, PackedQueue, SplitQueue, Virtqueue};
use crate::report::CounterLine;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Packets that are looked at byte by byte before time is measured.
pub const VERIFIED: u64 = 100_000;
/// Slices that the measured time is cut into.
pub const SLICES: usize = 5;

/// What to measure.
#[derive(Clone, Debug)]
pub struct CellOptions {
    /// Which way the packets go.
    pub direction: Direction,
    /// Their sizes.
    pub size: PacketSize,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// What the rings look like.
    pub shape: Shape,
    /// Time of the whole cell; a tenth of it goes by before the measuring begins.
    pub duration: Duration,
    /// Processors of the driving threads; none: one thread wherever the scheduler puts it.
    pub cpus: Vec<usize>,
    /// Whether the back-end is known to make numbered packets ([`Direction::From`]); what comes from others is counted
    /// only. (What comes back in a loop is always checked.)
    pub numbered: bool,
}

/// Why a cell could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// The conversation failed.
    #[error(transparent)]
    FrontEnd(#[from] FrontEndError),
    /// The rings or their memory could not be made.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No descriptors.
    #[error("no event counters: {0}")]
    EventFd(#[source] io::Error),
    /// It is no block device that can be measured in this way.
    #[error(transparent)]
    Blk(#[from] super::blk::cell::BlkError),
    /// The controller cannot be driven.
    #[error(transparent)]
    Nvme(#[from] NvmeError),
    /// The run ended early.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct CellResult {
    /// The slices of the measured time.
    pub slices: Vec<Slice>,
    /// What the packets looked at before were like; `None` where they could not be looked at.
    pub verified: Option<Counts>,
    /// The device's counters at the beginning of the first slice and at the end of each, as far as it answered.
    pub counters: Vec<CounterLine>,
    /// Its counters after the rings were stopped.
    pub last: Option<CounterLine>,
    /// Whether the packets that came had numbers, so that a lost one was missed.
    pub numbered: bool,
    /// Packets the device used over the connection's whole life ([`Direction::To`]).
    pub completed: u64,
}

/// Measures one cell at the back-end that listens at `socket`. `counters` is asked on this thread after the warm-up and after each slice;
/// `progress` is told that a slice is over.
///
/// # Errors
/// [`CellError`]; a device that loses, swaps or changes packets is no error but a result.
pub fn measure(
    socket: &Path,
    options: &CellOptions,
    stop: &AtomicBool,
    counters: impl FnMut() -> Option<CounterLine>,
    progress: impl FnMut(),
) -> Result<CellResult, CellError> {
    match options.shape.format {
        Format::Split => measure_on::<SplitQueue>(socket, options, stop, counters, progress),
        Format::Packed => measure_on::<PackedQueue>(socket, options, stop, counters, progress),
    }
}

fn measure_on<Q: Virtqueue>(
    socket: &Path,
    options: &CellOptions,
    stop: &AtomicBool,
    mut counters: impl FnMut() -> Option<CounterLine>,
    mut progress: impl FnMut(),
) -> Result<CellResult, CellError> {
    let mut attached = Attached::<Q>::new(socket, options)?;
    let Attached { front_end, members, .. } = &mut attached;
    let alive = || !front_end.peer_is_gone();
    let numbered = options.numbered || options.direction == Direction::Loop;
    let mut result = CellResult { numbered, ..CellResult::default() };
    match options.direction {
        Direction::Loop => result.verified = Some(verify(members, VERIFIED, stop, alive)?),
        Direction::From if options.numbered => {
            result.verified = Some(verify(members, VERIFIED, stop, alive)?)
        }
        Direction::From => members.iter_mut().for_each(|member| member.pair.set_care(Care::None)),
        Direction::To => {}
    }
    let warm_up = options.duration / 10;
    let plan = Plan { warm_up, slice: (options.duration - warm_up) / SLICES as u32, slices: SLICES };
    let boundaries = &mut result.counters;
    let at_boundary = |boundary| {
        boundaries.extend(counters());
        if boundary > 0 {
            progress();
        }
    };
    result.slices = drive(members, &plan, &options.cpus, stop, at_boundary, alive)?;
    attached.stop()?;
    result.last = counters();
    result.completed = attached.members.iter().map(|member| member.pair.completed()).sum();
    Ok(result)
}
