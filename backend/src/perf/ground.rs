//! What all measurements of a run stand on: options, processors, the means to end early, and a back-end for each.
use super::cell::{CellError, CellOptions, CellResult, measure};
use super::device::{DeviceError, DeviceOptions, DeviceProcess};
use super::drive::Direction;
use super::layout::Layout;
use super::run::RunError;
use super::size::PacketSize;
use super::{Options, PerfError};
use crate::report::CounterLine;
use indicatif::{ProgressBar, ProgressStyle};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a device may take from closing its socket to having ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A bar on the terminal, of so many steps.
pub fn progress(steps: usize) -> ProgressBar {
    let bar = ProgressBar::new(steps as u64);
    // A template that does not parse leaves the default one.
    if let Ok(style) = ProgressStyle::with_template("{msg:20} [{bar:40}] {elapsed} of about {duration}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// Runs `work` on a device and ends it.
///
/// # Errors
/// The device died during the work; else the result is that of the work.
pub fn on_device<T>(
    mut device: DeviceProcess,
    stop: &AtomicBool,
    work: impl FnOnce(&Path, &mut dyn FnMut() -> Option<CounterLine>) -> Result<T, CellError>,
) -> Result<Result<T, CellError>, DeviceError> {
    let socket = device.socket();
    let done = work(&socket, &mut || device.counters().ok());
    // The device's own last words say more than that its socket closed.
    if done.is_err()
        && !stop.load(Ordering::Relaxed)
        && let Some(error) = device.ended(LAST_WORDS)
    {
        return Err(error);
    }
    Ok(done)
}

/// What a run stands on.
pub struct Ground<'r> {
    /// What was asked for.
    pub options: &'r Options,
    /// Which processors do what.
    pub layout: &'r Layout,
    /// Set when the run is to end.
    pub stop: &'r AtomicBool,
    /// How far it is.
    pub bar: ProgressBar,
}

impl<'r> Ground<'r> {
    /// A run that has `steps` steps.
    pub fn new(options: &'r Options, layout: &'r Layout, stop: &'r AtomicBool, steps: usize) -> Self {
        Ground { options, layout, stop, bar: progress(steps) }
    }

    /// The cells of the run, one behind the other.
    pub fn cells(&self) -> Vec<(Direction, PacketSize)> {
        let sizes = &self.options.sizes;
        self.options
            .directions
            .iter()
            .flat_map(|&direction| sizes.iter().map(move |&size| (direction, size)))
            .collect()
    }

    /// Says on the bar what is measured now.
    pub fn say(&self, what: String) {
        self.bar.set_message(what);
        self.bar.tick();
    }

    /// The options of one cell at the back-end `at`, or at a device of our own.
    pub fn cell(
        &self,
        at: Option<&Path>,
        direction: Direction,
        size: PacketSize,
        duration: Duration,
    ) -> CellOptions {
        CellOptions {
            direction,
            size,
            queue_pairs: self.options.queue_pairs,
            shape: self.options.shape,
            duration,
            cpus: self.layout.driver.clone(),
            numbered: at.is_none(),
        }
    }

    /// Runs `work` on the back-end that listens `at` this path, or on a device of our own that is started for it and ended
    /// after it.
    ///
    /// # Errors
    /// [`PerfError`]: there is no device, it died, or `work` failed.
    pub fn with_back_end<T>(
        &self,
        at: Option<&Path>,
        direction: Direction,
        size: PacketSize,
        work: impl FnOnce(&Path, &mut dyn FnMut() -> Option<CounterLine>) -> Result<T, CellError>,
    ) -> Result<T, PerfError> {
        let done = match at {
            Some(socket) => work(socket, &mut || None),
            None => {
                let device = DeviceProcess::start(&DeviceOptions {
                    program: None,
                    direction,
                    size,
                    queue_pairs: self.options.queue_pairs,
                    cpus: self.layout.device.clone(),
                })?;
                on_device(device, self.stop, work)?
            }
        };
        done.map_err(|source| match source {
            _ if self.stop.load(Ordering::Relaxed) => PerfError::Interrupted,
            CellError::Run(RunError::Interrupted) => PerfError::Interrupted,
            source => PerfError::Cell { direction, size, source },
        })
    }

    /// Measures one cell at the greatest rate.
    ///
    /// # Errors
    /// As [`Ground::with_back_end`].
    pub fn measure(
        &self,
        at: Option<&Path>,
        direction: Direction,
        size: PacketSize,
        duration: Duration,
        progress: impl FnMut(),
    ) -> Result<CellResult, PerfError> {
        let options = self.cell(at, direction, size, duration);
        self.with_back_end(at, direction, size, |socket, counters| {
            measure(socket, &options, self.stop, counters, progress)
        })
    }
}
