//! `mdevd perf blk` and `mdevd perf nvme`: what a block device or an NVMe controller does under load.
//!
//! As for network devices, the process that runs this is the guest, and the device is another process behind a real vhost-user
//! or vfio-user socket: this same program on cores of its own, started for each cell anew, or whatever listens at a given path.
//!
//! # Objects
//!
//! - A *cell* is one store, one [`Workload`] and the [`Rings`] it goes through. [`cell::measure`] attaches to a back-end, drives its
//!   queues for a time that is cut into slices, verifies if it was asked to, and detaches.
//! - [`load::Load`] is a queue under load: it submits requests, takes back those that have ended, times some of them. What it needs of
//!   a queue is a [`requests::RequestQueue`], which virtqueues and NVMe queues are; [`attached::Attached`] is a device with all its
//!   queues.
//! - A [`Ledger`](crate::driver::ledger::Ledger) for each queue knows what a read must find, if that is verified.
//! - `bench::Bench` is the run: its cells, and a back-end for each. [`outcome::BlkOutcome`] is a judged cell,
//!   [`table::table`] what is printed of it.
//!
//! Threads, and what waits for what, are those of [`super::run`](mod@super::run). Requests that fail and blocks that are damaged are results with
//! the status "failed"; a device that dies ends the run with an error.
//!
//! # What it does not do
//!
//! Latencies at a rate below the greatest; discards and zeroes under load.
pub mod attached;
mod bench;
pub mod cell;
pub mod load;
mod nvme;
pub mod outcome;
pub mod requests;
pub mod table;
pub mod workload;

use super::against::{Against, compete};
use super::layout::Layout;
use super::{PerfError, Written, whereabouts};
use crate::report::{Report, online_cpus};
use crate::store::StoreKind;
use bench::{Bench, NvmeBench};
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use workload::{BlockSize, Protocol, Rings, Rw, Workload};

/// What `mdevd perf blk` or `mdevd perf nvme` is to do.
#[derive(Clone, Debug)]
pub struct BlkOptions {
    /// The command as it was typed, for the report.
    pub command: String,
    /// What is measured.
    pub target: Target,
    /// Which requests.
    pub rw: Vec<Rw>,
    /// Of how many bytes.
    pub sizes: Vec<BlockSize>,
    /// How many at a time, in each queue.
    pub depths: Vec<u16>,
    /// What requests go through: of one kind of device.
    pub protocols: Vec<Protocol>,
    /// What the rings look like besides.
    pub rings: Rings,
    /// Queues.
    pub queues: u16,
    /// Bytes of the device that are used, from its beginning; `None`: all.
    pub span: Option<u64>,
    /// Whether every write is found again and every read looked at.
    pub verify: bool,
    /// Time of each cell, and of each back-end in it.
    pub duration: Duration,
    /// Whom to compare with.
    pub against: Option<Against>,
    /// Where to write the report; `-` is standard output, which then holds nothing else.
    pub json: Option<PathBuf>,
    /// Where to write the report as a page for people.
    pub html: Option<PathBuf>,
}

/// Which device is measured.
#[derive(Clone, Debug)]
pub enum Target {
    /// The back-end that listens here.
    Socket(PathBuf),
    /// Devices of our own, with these stores one after the other.
    Own(Vec<StoreKind>),
}

impl Target {
    /// What a command line says: a socket, or else these stores, or else the usual ones.
    pub fn of(
        socket: Option<&PathBuf>,
        stores: &[StoreKind],
        usual: impl FnOnce() -> Vec<StoreKind>,
    ) -> Self {
        match socket {
            Some(path) => Target::Socket(path.clone()),
            None if stores.is_empty() => Target::Own(usual()),
            None => Target::Own(stores.to_vec()),
        }
    }

    /// Whether there may be data that nobody wants to lose.
    pub fn has_data(&self) -> bool {
        match self {
            Target::Socket(_) => true,
            Target::Own(stores) => stores.iter().any(|store| matches!(store, StoreKind::File(_))),
        }
    }

    /// Whether its stores keep what is to be verified.
    ///
    /// # Errors
    /// What is wrong with them, for the operator.
    pub fn suits(&self, verify: bool) -> Result<(), String> {
        let keeps_nothing = |store: &StoreKind| matches!(store, StoreKind::Null { .. });
        match self {
            Target::Own(stores) if verify && stores.iter().any(keeps_nothing) => {
                Err("a store null keeps nothing: --verify is for mem and file".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl BlkOptions {
    /// Whether it is NVMe controllers that are measured.
    pub fn is_nvme(&self) -> bool {
        self.protocols.iter().any(|protocol| matches!(protocol, Protocol::Nvme { .. }))
    }

    /// The workloads of each store, one behind the other.
    pub fn workloads(&self) -> impl Iterator<Item = Workload> {
        let each = move |&rw: &Rw| {
            self.sizes.iter().flat_map(move |&size| {
                self.depths.iter().flat_map(move |&depth| {
                    self.protocols.iter().map(move |&protocol| Workload { rw, size, depth, protocol })
                })
            })
        };
        self.rw.iter().flat_map(each)
    }
}

/// Measures all cells, writes the table to `out` and the report to where it belongs. `stop` ends it early.
///
/// # Errors
/// [`PerfError`]; what was measured before is written nonetheless.
pub fn run(options: &BlkOptions, stop: &AtomicBool, out: &mut dyn Write) -> Result<(), PerfError> {
    let layout = Layout::of(&online_cpus(), options.queues);
    let report = Report::new(options.command.clone());
    let socket = match &options.target {
        Target::Socket(path) => Some(path.as_path()),
        Target::Own(_) => None,
    };
    let introduction = format!(
        "{}; {} queue{}, {}, {} s each{}\n\n",
        whereabouts(socket, &layout, &report),
        options.queues,
        if options.queues == 1 { "" } else { "s" },
        if options.is_nvme() {
            format!("bursts of {}", options.rings.burst)
        } else {
            options.rings.to_string()
        },
        options.duration.as_secs_f64(),
        if options.verify { ", verified" } else { "" },
    );
    let written = Written { json: options.json.as_deref(), html: options.html.as_deref() };
    written.around(report, introduction, out, || {
        let bench = Bench::new(options, &layout, stop);
        match &options.against {
            Some(against) if options.is_nvme() => {
                let bench = NvmeBench(bench);
                compete(&bench, against, &layout, &bench.0.bar)
            }
            Some(against) => compete(&bench, against, &layout, &bench.bar),
            None => bench.run(),
        }
    })
}
