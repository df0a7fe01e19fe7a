//! A run: its cells, and a back-end for each.
use super::cell::{BlkCellOptions, BlkCellResult, measure};
use super::outcome::BlkOutcome;
use super::table::{figures, nvme_table, table};
use super::workload::{Protocol, Workload};
use super::{BlkOptions, Target};
use crate::driver::pattern::mix;
use crate::perf::against::{Contest, Turn};
use crate::perf::cell::{CellError, SLICES};
use crate::perf::device::{DeviceProcess, workers};
use crate::perf::ground::{on_device, progress};
use crate::perf::layout::Layout;
use crate::perf::run::RunError;
use crate::perf::{Findings, PerfError};
use crate::store::StoreKind;
use indicatif::ProgressBar;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What a run stands on.
pub struct Bench<'r> {
    options: &'r BlkOptions,
    layout: &'r Layout,
    stop: &'r AtomicBool,
    /// How far it is.
    pub bar: ProgressBar,
    /// Another one for every measurement, so that what an earlier one has left is not taken for its own.
    seed: AtomicU64,
}

/// One cell: the number of a store, if stores are ours, and what is asked of it.
#[derive(Copy, Clone, Debug)]
pub struct BlkCell {
    store: Option<usize>,
    workload: Workload,
}

impl<'r> Bench<'r> {
    /// A run that has not begun.
    pub fn new(options: &'r BlkOptions, layout: &'r Layout, stop: &'r AtomicBool) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let seed = AtomicU64::new(mix(since.as_nanos() as u64 ^ u64::from(std::process::id()) << 32));
        let mut bench = Bench { options, layout, stop, bar: ProgressBar::hidden(), seed };
        let cells = bench.all_cells().len();
        let steps = match &options.against {
            Some(against) => cells * against.sockets.len() * against.pairs as usize * 2,
            None => cells * SLICES,
        };
        bench.bar = progress(steps);
        bench
    }

    fn all_cells(&self) -> Vec<BlkCell> {
        let stores: Vec<Option<usize>> = match &self.options.target {
            Target::Socket(_) => vec![None],
            Target::Own(stores) => (0..stores.len()).map(Some).collect(),
        };
        let of_store = |store| self.options.workloads().map(move |workload| BlkCell { store, workload });
        stores.into_iter().flat_map(of_store).collect()
    }

    /// What names a cell: the store, if there are several kinds of them, and the workload.
    fn name(&self, cell: BlkCell) -> Vec<String> {
        let Workload { rw, size, depth, protocol } = cell.workload;
        let store = cell.store.map(|number| self.store_name(number));
        let store = store.unwrap_or_else(|| "-".to_owned());
        vec![store, rw.to_string(), size.to_string(), depth.to_string(), protocol.to_string()]
    }

    /// The kind of a store, or all of it where there are two of a kind.
    fn store_name(&self, number: usize) -> String {
        let Target::Own(stores) = &self.options.target else { return String::new() };
        let kind = |store: &StoreKind| match store {
            StoreKind::Null { .. } => "null",
            StoreKind::Memory { .. } => "mem",
            StoreKind::File(_) => "file",
        };
        let Some(this) = stores.get(number) else { return String::new() };
        match stores.iter().filter(|store| kind(store) == kind(this)).count() {
            1 => kind(this).to_owned(),
            _ => this.to_string(),
        }
    }

    /// Cell by cell, up to the first that cannot be measured, which is the last outcome.
    pub fn run(&self) -> (Findings, Result<(), PerfError>) {
        let mut outcomes = Vec::new();
        let mut result = Ok(());
        for cell in self.all_cells() {
            let name = self.name(cell);
            self.bar.set_message(name.join(" "));
            self.bar.tick();
            let mut lines: Vec<f64> = self.layout.round_trip().into_iter().collect();
            let measured = self.measure(self.socket(), cell, self.options.duration, || self.bar.inc(1));
            lines.extend(self.layout.round_trip());
            match measured {
                Ok(measured) => {
                    outcomes.push(BlkOutcome::of(name, &measured, self.options.verify, &lines));
                }
                Err(error) => {
                    outcomes.push(BlkOutcome::failed(name));
                    result = Err(error);
                    break;
                }
            }
        }
        self.bar.finish_and_clear();
        let findings = Findings {
            table: if self.options.is_nvme() { nvme_table(&outcomes) } else { table(&outcomes) },
            faults: outcomes.iter().flat_map(BlkOutcome::complaints).collect(),
            failed: outcomes.iter().filter(|outcome| !outcome.faults.is_empty()).count(),
            results: outcomes.iter().flat_map(|outcome| outcome.measurements().cloned()).collect(),
            figures: figures(&outcomes),
            lines: outcomes.iter().flat_map(|outcome| outcome.cache_line.samples.clone()).collect(),
        };
        (findings, result)
    }

    fn socket(&self) -> Option<&Path> {
        match &self.options.target {
            Target::Socket(path) => Some(path),
            Target::Own(_) => None,
        }
    }

    /// Measures a cell at the back-end that listens `at` this path, or at a device of our own that is started for it and ended
    /// after it.
    fn measure(
        &self,
        at: Option<&Path>,
        cell: BlkCell,
        duration: Duration,
        progress: impl FnMut(),
    ) -> Result<BlkCellResult, PerfError> {
        let options = BlkCellOptions {
            workload: cell.workload,
            rings: self.options.rings,
            queues: self.options.queues,
            span: self.options.span,
            prefill: at.is_none() && matches!(self.store(cell), Some(StoreKind::Memory { .. })),
            verify: self.options.verify,
            seed: mix(self.seed.fetch_add(1, Ordering::Relaxed)),
            duration,
            cpus: self.layout.driver.clone(),
        };
        let done = match at {
            Some(socket) => measure(socket, &options, self.stop, || None, progress),
            None => {
                let name = match cell.workload.protocol {
                    Protocol::Virtio(_) => "blk.sock",
                    Protocol::Nvme { .. } => "nvme.sock",
                };
                let device = DeviceProcess::launch(None, name, |socket| self.arguments(socket, cell))?;
                on_device(device, self.stop, |socket, counters| {
                    measure(socket, &options, self.stop, counters, progress)
                })?
            }
        };
        done.map_err(|source| match source {
            _ if self.stop.load(Ordering::Relaxed) => PerfError::Interrupted,
            CellError::Run(RunError::Interrupted) => PerfError::Interrupted,
            source => PerfError::BlkCell { cell: self.name(cell).join(" "), source },
        })
    }

    /// The store of a device of our own.
    fn store(&self, cell: BlkCell) -> Option<&StoreKind> {
        match &self.options.target {
            Target::Own(stores) => stores.get(cell.store?),
            Target::Socket(_) => None,
        }
    }

    /// What a device of our own is told.
    fn arguments(&self, socket: &Path, cell: BlkCell) -> Vec<String> {
        let store = self.store(cell).map(StoreKind::to_string);
        let queues = self.options.queues.to_string();
        let (kind, has_store) = match cell.workload.protocol {
            Protocol::Virtio(_) => ("blk", "--store"),
            Protocol::Nvme { .. } => ("nvme", "--namespace"),
        };
        let mut arguments: Vec<String> = vec![kind.to_owned(), "--socket-path".to_owned()];
        arguments.push(socket.display().to_string());
        arguments.extend([has_store.to_owned(), store.unwrap_or_default(), "--queues".to_owned(), queues]);
        arguments.extend(workers(&self.layout.device));
        arguments
    }
}

impl Contest for Bench<'_> {
    type Cell = BlkCell;
    const RATE: (&'static str, usize) = ("kIOPS", 1);
    const COLUMNS: &'static [&'static str] = &["", "rw", "bs", "depth", "ring"];
    const HELP: &'static str = "mdevd perf blk --help";

    fn first(&self) -> Option<&Path> {
        self.socket()
    }

    fn cells(&self) -> Vec<BlkCell> {
        self.all_cells()
    }

    fn columns(&self, cell: BlkCell) -> Vec<String> {
        self.name(cell)
    }

    fn turn(&self, at: Option<&Path>, cell: BlkCell, pairs: u32) -> Result<Turn, PerfError> {
        let measured = self.measure(at, cell, self.options.duration / pairs.max(1), || ())?;
        let outcome = BlkOutcome::of(self.name(cell), &measured, self.options.verify, &[]);
        Ok(Turn {
            rate: outcome.rate.median,
            share: outcome.share.median,
            complaints: outcome.complaints().collect(),
        })
    }
}

/// A run of NVMe controllers: the same but for its words.
pub struct NvmeBench<'r>(pub Bench<'r>);

impl Contest for NvmeBench<'_> {
    type Cell = BlkCell;
    const RATE: (&'static str, usize) = ("kIOPS", 1);
    const COLUMNS: &'static [&'static str] = &["", "rw", "bs", "depth", "doorbells"];
    const HELP: &'static str = "mdevd perf nvme --help";

    fn first(&self) -> Option<&Path> {
        self.0.first()
    }

    fn cells(&self) -> Vec<BlkCell> {
        self.0.cells()
    }

    fn columns(&self, cell: BlkCell) -> Vec<String> {
        self.0.columns(cell)
    }

    fn turn(&self, at: Option<&Path>, cell: BlkCell, pairs: u32) -> Result<Turn, PerfError> {
        self.0.turn(at, cell, pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::nvme::{DoorbellWay, Pointers};
    use crate::perf::blk::workload::{Rings, Rw};
    use crate::perf::shape::Format;

    fn options(stores: &[&str]) -> BlkOptions {
        BlkOptions {
            command: String::new(),
            target: Target::Own(stores.iter().map(|store| store.parse().unwrap()).collect()),
            rw: vec![Rw::RandRead, Rw::Mixed],
            sizes: vec!["4k".parse().unwrap()],
            depths: vec![1, 32],
            protocols: [Format::Split, Format::Packed].map(Protocol::Virtio).to_vec(),
            rings: Rings { size: None, burst: 32, indirect: false, event_idx: false },
            queues: 2,
            span: None,
            verify: false,
            duration: Duration::from_secs(1),
            against: None,
            json: None,
            html: None,
        }
    }

    #[test]
    fn cells_are_named_by_store_and_workload_and_stores_of_a_kind_in_full() {
        let layout = Layout::of(&[0, 1], 2);
        let stop = AtomicBool::new(false);
        let both = options(&["null,size=1G", "mem,size=1M"]);
        let bench = Bench::new(&both, &layout, &stop);
        let cells = bench.all_cells();
        assert_eq!(cells.len(), 16);
        assert_eq!(bench.name(cells[0]), ["null", "randread", "4k", "1", "split"]);
        assert_eq!(bench.name(cells[15]), ["mem", "mixed", "4k", "32", "packed"]);
        let alike = options(&["mem,size=1M", "mem,size=2M"]);
        let bench = Bench::new(&alike, &layout, &stop);
        assert_eq!(bench.name(bench.all_cells()[8])[0], "mem,size=2097152");
    }

    #[test]
    fn device_is_told_its_store_queues_mode_and_processors() {
        let layout = Layout::of(&[0, 1], 2);
        let stop = AtomicBool::new(false);
        let options = options(&["mem,size=1M"]);
        let bench = Bench::new(&options, &layout, &stop);
        let text = bench.arguments(Path::new("/s"), bench.all_cells()[0]).join(" ");
        assert_eq!(text, "blk --socket-path /s --store mem,size=1048576 --queues 2 --mode busy --cpus 0");
        let nvme = Protocol::Nvme { doorbells: DoorbellWay::Mapped, data: Pointers::Prp };
        let options = BlkOptions { protocols: vec![nvme], ..options };
        let bench = Bench::new(&options, &layout, &stop);
        let cell = bench.all_cells()[0];
        assert_eq!(bench.name(cell), ["mem", "randread", "4k", "1", "mapped-prp"]);
        let text = bench.arguments(Path::new("/s"), cell).join(" ");
        assert_eq!(
            text,
            "nvme --socket-path /s --namespace mem,size=1048576 --queues 2 --mode busy --cpus 0"
        );
    }
}
