//! Two block devices on one worker: what a request that is held on one of them, with messages that wait for it, does to the
//! latencies of the other.
//!
//! `cargo bench -p mdevd --bench neighbour [-- MILLISECONDS]`. The worker polls on processor 0, the driver of the other device runs on processor 1,
//! one read at a time. Phases of three seconds take turns:
//!
//! - *alone*: nobody is there on the first device.
//! - *apart*: a request is held for all of the phase while memory is taken from its device (`REM_MEM_REG` waits), or a ring of it is
//!   stopped, or it is reset, and a second front-end adds and removes memory every 100 milliseconds, or as often as the
//!   argument says. But it is a device of another daemon: all of this costs the two processors the same as
//!   beside, and the worker nothing.
//! - *beside*: the same on the first device, which has the worker in common with the other one.
//!
//! What the worker has to do with it is the difference between the last two; what the machine has to do with it, that between the first two.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mdev_dma::Iova;
use mdev_protocol::vhost_user::{FrontendMessage, MemoryRegion, ProtocolFeatures};
use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;
use mdevd::daemon::{Daemon, DaemonError, Door, Kind, Model, Plan, Plans, Shared};
use mdevd::device::blk::{BlkConfig, BlkDevice};
use mdevd::driver::blk::{BlkQueue, BlkQueueOptions, Request};
use mdevd::driver::{FrontEnd, GuestMemory, MemoryOptions, Region, RingFds, RingOptions, SplitQueue};
use mdevd::perf::roundtrip;
use mdevd::store::held::{Delay, Held};
use mdevd::store::{Store, StoreKind};
use mdevd::worker::Mode;
use rustix::process::{Signal, getpid, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};
use tempfile::TempDir;

const PHASE: Duration = Duration::from_secs(3);
const PACE: Duration = Duration::from_millis(100);
const ANSWER: Duration = Duration::from_secs(20);
const SIZE: u64 = 1 << 20;
const BLOCK: u32 = 4096;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// The two devices.
struct Two {
    folder: PathBuf,
    held: Held,
}

impl Plans for Two {
    fn read(&mut self) -> Result<Vec<Plan>, Vec<String>> {
        let plan = |name: &str| Plan {
            name: name.to_owned(),
            door: Door::Listen { path: self.folder.join(name), mode: None },
            kind: Kind::Blk(BlkConfig {
                name: name.to_owned(),
                store: StoreKind::Null { size: SIZE },
                queues: 1,
                read_only: false,
                serial: None,
            }),
            workers: Vec::new(),
            sessions: Default::default(),
        };
        Ok(vec![plan("held"), plan("other")])
    }

    fn make(&mut self, plan: &Plan) -> Result<Model, String> {
        let Kind::Blk(config) = &plan.kind else { return Err("a block device is wanted".to_owned()) };
        let store = match plan.name.as_str() {
            "held" => Store::Held(self.held.clone()),
            _ => Store::open(&config.store).map_err(|error| error.to_string())?,
        };
        BlkDevice::on(config.clone(), store).map(Model::from).map_err(|error| error.to_string())
    }
}

/// A front-end with one ring.
struct Guest {
    memory: GuestMemory,
    queue: BlkQueue<SplitQueue>,
    fds: RingFds,
    front: FrontEnd,
}

impl Guest {
    fn connect(path: &Path) -> Outcome<Guest> {
        let mut memory = GuestMemory::new(MemoryOptions::default())?;
        let options = BlkQueueOptions { ring: RingOptions::plain(16), requests: 4, capacity: BLOCK };
        let queue = BlkQueue::new(&mut memory, options)?;
        let protocol = FrontEnd::usual_protocol() | ProtocolFeatures::STATUS | ProtocolFeatures::RESET_DEVICE;
        let mut front = FrontEnd::connect(path, ANSWER, VIRTIO_F_VERSION_1, 0, protocol)?;
        front.share(&memory)?;
        Ok(Guest { memory, queue, fds: RingFds::new()?, front })
    }

    fn start(&mut self) -> Outcome {
        Ok(self.front.start(0, &self.queue.queue, &self.fds, &self.memory)?)
    }

    fn read(&mut self) -> Outcome {
        self.queue.submit_one(Request::Read { sector: 0, len: BLOCK })?;
        if self.queue.publish() {
            self.fds.kick.signal();
        }
        Ok(())
    }
}

fn named(region: &Region) -> MemoryRegion {
    MemoryRegion {
        guest_addr: region.range.first().0,
        size: region.size(),
        user_addr: region.user.0,
        mmap_offset: region.extent.offset,
    }
}

/// What waits for the request that is held.
#[derive(Copy, Clone, Debug)]
enum Waits {
    Unmap,
    Stop,
    Reset,
}

/// Holds a request of the first device for a phase, and lets something wait for it.
fn disturb(path: &Path, held: &Held, waits: Waits) -> Outcome {
    let mut guest = Guest::connect(path)?;
    guest.start()?;
    guest.read()?;
    let begun = Instant::now();
    let id = loop {
        match held.pending().first() {
            Some(pending) => break pending.id,
            None if begun.elapsed() > ANSWER => return Err("the request is not taken".into()),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    held.delay(id, Delay::Until(begun + PHASE));
    match waits {
        Waits::Unmap => {
            let region = guest.memory.regions().first().map(named).ok_or("no memory")?;
            guest.front.client().remove_mem_region(region)?;
        }
        Waits::Stop => {
            guest.front.stop(0)?;
        }
        Waits::Reset => {
            guest.front.client().call(&FrontendMessage::ResetDevice, &[])?;
        }
    }
    if begun.elapsed() < PHASE { Err("nothing has waited for the request".into()) } else { Ok(()) }
}

/// Adds and removes memory on the first device, once in each `pace`, until it is told to end. How often.
fn churn(path: &Path, pace: Duration, over: &AtomicBool) -> Outcome<u32> {
    let mut guest = Guest::connect(path)?;
    let first = Iova(1 << 32);
    guest.memory.add_region(MemoryOptions { first, ..MemoryOptions::default() })?;
    let mut rounds = 0;
    while !over.load(Ordering::Relaxed) {
        let Guest { memory, front, .. } = &mut guest;
        let region = memory.regions().last().ok_or("no memory")?;
        front.client().add_mem_region(named(region), region.extent.file.as_fd())?;
        front.client().remove_mem_region(named(region))?;
        rounds += 1;
        std::thread::sleep(pace);
    }
    Ok(rounds)
}

/// Reads one block at a time for a phase.
fn measure(guest: &mut Guest) -> Outcome<Histogram<u64>> {
    let mut latencies = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
    let end = Instant::now() + PHASE;
    loop {
        let begun = Instant::now();
        if begun >= end {
            return Ok(latencies);
        }
        guest.read()?;
        while guest.queue.reap(1, |_, _| {})? == 0 {
            std::hint::spin_loop();
        }
        latencies.saturating_record(begun.elapsed().as_nanos() as u64);
    }
}

fn row(what: &str, phase: &str, latencies: &Histogram<u64>) {
    let at = |quantile: f64| latencies.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{what:<6} {phase:<7} {:>9} {:>8.2} {:>8.2} {:>8.2} {:>9.2} {:>9.1}",
        latencies.len(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(0.9999),
        latencies.max() as f64 / 1000.0
    );
}

/// Measures the other device while something waits for a request of the device at `path`.
fn disturbed(
    path: &Path,
    held: &Held,
    waits: Waits,
    pace: Duration,
    other: &mut Guest,
) -> Outcome<Histogram<u64>> {
    let over = Arc::new(AtomicBool::new(false));
    let churner: JoinHandle<Outcome<u32>> = {
        let (path, over) = (path.to_owned(), over.clone());
        std::thread::spawn(move || churn(&path, pace, &over))
    };
    let holder: JoinHandle<Outcome> = {
        let (path, held) = (path.to_owned(), held.clone());
        std::thread::spawn(move || disturb(&path, &held, waits))
    };
    let measured = measure(other);
    holder.join().map_err(|_| "the disturbance failed")??;
    over.store(true, Ordering::Relaxed);
    let rounds = churner.join().map_err(|_| "the unmaps failed")??;
    if rounds == 0 { Err("nothing was unmapped".into()) } else { measured }
}

/// A daemon of two devices, in a thread of its own.
struct Serving {
    folder: TempDir,
    held: Held,
    thread: JoinHandle<Result<(), DaemonError>>,
}

impl Serving {
    fn start(mode: Mode, worker: Option<usize>) -> Outcome<Serving> {
        let folder = tempfile::tempdir()?;
        let held = Held::new(vec![0; SIZE as usize]);
        let plans = Two { folder: folder.path().to_owned(), held: held.clone() };
        let shared = Shared { mode, workers: vec![worker], stats: None };
        let daemon = Daemon::of_plans(Box::new(plans), &shared)?;
        Ok(Serving { folder, held, thread: std::thread::spawn(move || daemon.run()) })
    }

    fn socket(&self, device: &str) -> PathBuf {
        self.folder.path().join(device)
    }
}

fn main() -> Outcome {
    // cargo passes options of its own.
    let pace =
        std::env::args().find_map(|argument| argument.parse().ok()).map_or(PACE, Duration::from_millis);
    let beside = Serving::start(Mode::Busy, Some(0))?;
    let apart = Serving::start(Mode::Event, None)?;

    let mut processor = CpuSet::new();
    processor.set(1);
    // Without a second processor the figures mean little, and are printed all the same.
    let _ = sched_setaffinity(None, &processor);
    let mut other = Guest::connect(&beside.socket("other"))?;
    other.start()?;
    println!("reads of the other device, latencies in us; memory comes and goes every {pace:?}\n");
    println!(
        "{:<6} {:<7} {:>9} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "waits", "phase", "reads", "p50", "p99", "p99.9", "p99.99", "max"
    );
    measure(&mut other)?;
    for _ in 0..3 {
        let trip = roundtrip::between(0, 1).map_or_else(|| "unknown".to_owned(), |ns| format!("{ns:.0} ns"));
        println!("cache-line round trip: {trip}");
        for waits in [Waits::Unmap, Waits::Stop, Waits::Reset] {
            let name = format!("{waits:?}").to_lowercase();
            row(&name, "alone", &measure(&mut other)?);
            for (phase, daemon) in [("apart", &apart), ("beside", &beside)] {
                let held = daemon.socket("held");
                row(&name, phase, &disturbed(&held, &daemon.held, waits, pace, &mut other)?);
            }
        }
    }
    kill_process(getpid(), Signal::TERM)?;
    for daemon in [beside, apart] {
        daemon.thread.join().map_err(|_| "a daemon failed")??;
    }
    Ok(())
}
