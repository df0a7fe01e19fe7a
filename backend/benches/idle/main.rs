//! What idle devices cost a busy one on the same worker.
//!
//! One worker, one device whose driver sends 64-byte frames as fast as they are taken, and beside it none, 1, 10, 100 and
//! 1000 devices that have their rings started and nothing in them, each with a guest memory of its own. The numbers
//! take turns in each round, so that a machine that drifts moves all of them; the greatest rate and its share are beside the
//! medians. Then, what the idle ones alone take of a processor; how a busy device fares on a worker that would sleep, beside one
//! that never does, in turns; and the first packet after a sleep, beside what it takes to wake a thread that does nothing but wait
//! for its eventfd, in turns. `cargo bench -p mdevd --bench idle`

#[path = "../guest/mod.rs"]
mod guest;
mod wake;

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest::{Guest, RING};
use mdev_pin::{Access, IgnoreUnmap};
use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;
use mdev_protocol::virtio::net::VIRTIO_NET_F_MRG_RXBUF;
use mdevd::device::net::{NetConfig, NetDevice};
use mdevd::device::{Device, Enabled, EventFd, QueueSetup, Switch};
use mdevd::driver::MemoryOptions;
use mdevd::worker::{Command, EventSource, Mode, Worker, WorkerEvent, events};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

const COUNTS: [usize; 5] = [0, 1, 10, 100, 1000];
const ROUNDS: usize = 5;
/// Of an adaptive and a busy worker.
const PAIRS: usize = 15;
/// Idle devices have come to rest after so long; then it is measured for as long as this.
const SETTLE: Duration = Duration::from_millis(1000);
const MEASURE: Duration = Duration::from_millis(250);

/// A guest with its device.
struct Tenant {
    device: Arc<NetDevice>,
    guest: Guest,
    kicks: [Arc<EventFd>; 2],
}

impl Tenant {
    fn new(size: u64) -> Result<Tenant, Box<dyn Error>> {
        let options = MemoryOptions { size, ..Default::default() };
        let guest = Guest::new(options, Access::without_pins(Arc::new(IgnoreUnmap)))?;
        let link = "null".parse()?;
        let config = NetConfig { name: "bench".into(), queue_pairs: 1, mac: None, mtu: None, link };
        let kicks = [Arc::new(EventFd::new()?), Arc::new(EventFd::new()?)];
        let device = Arc::new(NetDevice::new(config)?);
        Ok(Tenant { device, guest, kicks })
    }

    fn start(&self, worker: &Worker, device_key: u64) {
        for (index, ring) in self.guest.rings() {
            let setup = QueueSetup {
                index,
                ring,
                access: self.guest.access.clone(),
                kick: Some(self.kicks[usize::from(index)].clone()),
                call: None,
                err: None,
                switch: Switch::new(Enabled::Yes),
            };
            let (device, features) = (self.device.clone(), VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF);
            let setup = Box::new(setup);
            worker.send(Command::Start { token: 0, device, device_key, features, setup });
        }
    }

    fn sent(&self) -> u64 {
        self.device.queue_stats(1).map_or(0, |stats| stats.counters().packets)
    }

    /// Sends for so long, and kicks all the time, as a driver does that is not told to be quiet.
    fn send_for(&mut self, time: Duration) -> Result<(), Box<dyn Error>> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            for _ in 0..64 {
                self.guest.tx.reclaim(u32::from(RING), |_| ())?;
                self.guest.tx.send(32, |_, _| 64)?;
                self.guest.tx.queue.publish();
            }
            self.kicks[1].signal();
        }
        Ok(())
    }
}

/// Millions of packets a second of a busy device beside the first of the idle ones.
fn measure(mode: Mode, idle: &[Tenant]) -> Result<f64, Box<dyn Error>> {
    let (sink, source) = events()?;
    let last = std::thread::available_parallelism()?.get() - 1;
    let worker = Worker::spawn("bench", Some(last), mode, sink)?;
    for (guest, key) in idle.iter().zip(1..) {
        guest.start(&worker, key);
    }
    let mut busy = Tenant::new(16 << 20)?;
    busy.start(&worker, 0);
    started(&source, 2 * (idle.len() + 1));
    busy.send_for(SETTLE)?;
    let (before, began) = (busy.sent(), Instant::now());
    busy.send_for(MEASURE)?;
    let rate = (busy.sent() - before) as f64 / began.elapsed().as_secs_f64() / 1e6;
    drop(worker);
    Ok(rate)
}

/// The share of a processor that idle devices take on an adaptive worker where nobody has work.
fn alone(idle: &[Tenant]) -> Result<f64, Box<dyn Error>> {
    let (sink, source) = events()?;
    let worker = Worker::spawn("bench", None, Mode::Adaptive, sink)?;
    for (guest, key) in idle.iter().zip(1..) {
        guest.start(&worker, key);
    }
    started(&source, 2 * idle.len());
    std::thread::sleep(SETTLE);
    let used = || Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default();
    let (before, began) = (used(), Instant::now());
    std::thread::sleep(4 * MEASURE);
    let share = (used() - before).as_secs_f64() / began.elapsed().as_secs_f64();
    drop(worker);
    Ok(share)
}

fn started(source: &EventSource, mut count: usize) {
    while count > 0 {
        count -= source.take().iter().filter(|event| matches!(event, WorkerEvent::Started { .. })).count();
        std::thread::yield_now();
    }
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// The median, and where nine of ten are.
fn spread(samples: &mut [f64], unit: &str) -> String {
    let median = median(samples);
    let at = |part: usize| samples.get(samples.len() * part / 20).copied().unwrap_or(median);
    format!("{median:.1} {unit} (5 to 95 %: {:.1} to {:.1}, of {})", at(1), at(19), samples.len())
}

fn greatest(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(0.0, f64::max)
}

fn main() -> Result<(), Box<dyn Error>> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    let idle = (0..1000).map(|_| Tenant::new(2 << 20)).collect::<Result<Vec<_>, _>>()?;
    println!("{:<10}{:>8}{:>18}{:>26}", "mode", "idle", "Mpps (greatest)", "of the rate alone");
    for (name, mode) in [("adaptive", Mode::Adaptive), ("busy", Mode::Busy)] {
        let mut rates = vec![Vec::new(); COUNTS.len()];
        for _ in 0..ROUNDS {
            for (count, rates) in COUNTS.iter().zip(&mut rates) {
                rates.push(measure(mode, &idle[..*count])?);
            }
        }
        let alone = rates[0].clone();
        for (count, rates) in COUNTS.iter().zip(&mut rates) {
            let mut shares: Vec<f64> = rates.iter().zip(&alone).map(|(rate, alone)| rate / alone).collect();
            let (rate, share) = (median(rates), 100.0 * median(&mut shares));
            let (most, of_most) = (greatest(rates), 100.0 * greatest(rates) / greatest(&alone));
            println!("{name:<10}{count:>8}{rate:>10.2} ({most:.2}){share:>17.1}% ({of_most:.1}%)");
        }
    }
    println!("\n{:<10}{:>8}{:>18}", "mode", "idle", "of a processor");
    for count in COUNTS {
        println!("{:<10}{count:>8}{:>17.3}%", "adaptive", 100.0 * alone(&idle[..count])?);
    }
    let mut shares = Vec::new();
    for _ in 0..PAIRS {
        shares.push(100.0 * measure(Mode::Adaptive, &[])? / measure(Mode::Busy, &[])?);
    }
    println!("\nadaptive by busy under load: {}", spread(&mut shares, "%"));
    wake::compare()
}
