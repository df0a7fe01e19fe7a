//! What a packet costs the net engine when nothing crosses cores: driver and engine take turns on one thread, in bursts
//! of 32, with everything warm. The time is the engine's own count of busy time.
//!
//! Beside `mdevd perf net`, whose `ns/pkt` contains the way between two cores, this says how much of it is work. What is
//! left of the whole time is the driver's, who fills nothing and looks at nothing but headers.
//! `cargo bench -p mdevd --bench engine [-- --json FILE]`

mod guest;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use guest::Guest;
use mdev_pin::{Access, IgnoreUnmap};
use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;
use mdev_protocol::virtio::net::VIRTIO_NET_F_MRG_RXBUF;
use mdevd::device::net::{NetConfig, NetDevice};
use mdevd::device::{Device, Enabled, Engine, Queue, QueueSetup, QueueStats, Switch, VirtioDevice};
use mdevd::driver::MemoryOptions;
use mdevd::report::{Measurement, QueueLine, Report};

const BURST: u32 = 32;
/// Samples, and bursts in each.
const SAMPLES: usize = 20;
const BURSTS: u32 = 5_000;

/// An engine with both its queues, and their driver.
struct Rig {
    guest: Guest,
    engine: Box<dyn Engine>,
    stats: [Arc<QueueStats>; 2],
}

impl Rig {
    fn new(link: &str) -> Result<Self, Box<dyn Error>> {
        let guest = Guest::new(MemoryOptions::default(), Access::new(Arc::new(IgnoreUnmap)))?;
        let config =
            NetConfig { name: "bench".into(), queue_pairs: 1, mac: None, mtu: None, link: link.parse()? };
        let device = NetDevice::new(config)?;
        let mut engine = device.engine(0, VIRTIO_F_VERSION_1 | VIRTIO_NET_F_MRG_RXBUF);
        let stats = [0, 1].map(|index| device.queue_stats(index).unwrap_or_default());
        for (index, ring) in guest.rings() {
            let setup = QueueSetup {
                index,
                ring,
                access: guest.access.clone(),
                kick: None,
                call: None,
                err: None,
                switch: Switch::new(Enabled::Yes),
            };
            engine.start_queue(Queue::start(
                setup,
                stats[usize::from(index)].clone(),
                Waker::noop().clone(),
            )?);
        }
        Ok(Rig { guest, engine, stats })
    }

    /// One burst there and, if it does, back.
    fn turn(&mut self, bytes: u32) -> Result<(), Box<dyn Error>> {
        let Guest { rx, tx, .. } = &mut self.guest;
        tx.send(BURST, |_, _| bytes)?;
        tx.queue.publish();
        self.engine.poll();
        tx.reclaim(BURST, |_| ())?;
        rx.receive(BURST, |_, _| ())?;
        rx.queue.publish();
        Ok(())
    }

    fn counters(&self) -> QueueLine {
        self.stats.iter().map(|stats| QueueLine::from(&stats.counters())).sum()
    }
}

fn measure(name: &str, link: &str, bytes: u32) -> Result<[Measurement; 2], Box<dyn Error>> {
    let mut rig = Rig::new(link)?;
    let (mut engine, mut driver) = (Vec::with_capacity(SAMPLES), Vec::with_capacity(SAMPLES));
    let packets = f64::from(BURSTS) * f64::from(BURST);
    // The first sample warms up.
    for sample in 0..=SAMPLES {
        let before = rig.counters();
        let started = Instant::now();
        for _ in 0..BURSTS {
            rig.turn(bytes)?;
        }
        let whole = started.elapsed().as_nanos() as f64;
        let busy = (rig.counters() - before).busy_ns as f64;
        if sample > 0 {
            engine.push(busy / packets);
            driver.push((whole - busy) / packets);
        }
    }
    let result = |who: &str, samples| Measurement::new(format!("{who}/{name}/{bytes}"), "ns", samples);
    Ok([result("engine", engine), result("driver", driver)])
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip_while(|word| word != "--json").skip(1);
    let json = words.next().map(PathBuf::from);
    let mut report = Report::new("cargo bench -p mdevd --bench engine");
    println!("{:<10}{:>22}{:>22}   ns for each packet", "", "engine", "driver");
    for bytes in [64, 1518] {
        for (name, link) in [("to", "null"), ("from", "pktgen,size="), ("loop", "loopback")] {
            let link = if name == "from" { format!("{link}{bytes}") } else { link.to_owned() };
            let results = measure(name, &link, bytes)?;
            let shown = |at: &Measurement| format!("{:.1} ({:.1}-{:.1})", at.median, at.min, at.max);
            println!("{name:<5}{bytes:>5}{:>22}{:>22}", shown(&results[0]), shown(&results[1]));
            report.results.extend(results);
        }
    }
    if let Some(path) = json {
        report.write_to(&path)?;
    }
    Ok(())
}
