//! What a client waits for a register and for memory: one message and its reply, between two processes' worth of threads.
//!
//! `cargo bench -p mdevd --bench control`. For each mode of the worker: a register that is read, a page that is mapped, and the same page
//! unmapped, ten thousand times in turns, by a client that sleeps until the reply is there; and the register once more by a client that looks
//! at its socket without sleeping. Where the worker polls it has processor 0 to itself, as far as the kernel sees to that.

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mdev_protocol::frame::{Connection, Received};
use mdev_protocol::vfio_user::{
    Capabilities, Client, DmaFlags, DmaMap, DmaUnmap, RegionRead, Request, ToClient, Version,
};
use mdevd::daemon::{CounterSocket, Daemon, Endpoint, Options};
use mdevd::device::nvme::{NamespaceConfig, NvmeConfig, NvmeDevice, QUEUE_NAMES};
use mdevd::driver::{GuestMemory, MemoryOptions};
use mdevd::perf::roundtrip;
use mdevd::worker::Mode;

const ROUNDS: u32 = 10_000;
const ANSWER: Duration = Duration::from_secs(10);
/// The register CSTS.
const CSTS: u64 = 0x1c;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

fn device() -> Outcome<NvmeDevice> {
    let namespaces = vec![NamespaceConfig::new(1, "null,size=1M".parse()?)];
    Ok(NvmeDevice::new(NvmeConfig { name: "control".to_owned(), namespaces, queues: 1, serial: None })?)
}

fn timed(times: &mut Histogram<u64>, what: impl FnOnce() -> Outcome) -> Outcome {
    let begun = Instant::now();
    what()?;
    times.saturating_record(begun.elapsed().as_nanos() as u64);
    Ok(())
}

/// Reads a register as often, without ever sleeping.
fn polled(mut link: Connection<ToClient>, times: &mut Histogram<u64>) -> Outcome {
    let capabilities = Capabilities::default();
    let hello = Request::Version(Version { major: 0, minor: 0, capabilities });
    link.send(&hello.to_bytes(0, false), &[])?;
    while !matches!(link.receive()?, Received::Message(_)) {}
    let read = Request::RegionRead(RegionRead { offset: CSTS, region: 0, count: 4 }).to_bytes(1, false);
    for _ in 0..ROUNDS {
        timed(times, || {
            link.send(&read, &[])?;
            while !matches!(link.receive()?, Received::Message(_)) {
                std::hint::spin_loop();
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn row(mode: Mode, what: &str, times: &Histogram<u64>) {
    let at = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1000.0;
    let name = format!("{mode:?}").to_lowercase();
    println!("{name:<9} {what:<26} {:>8.1} {:>8.1} {:>8.1}", at(0.5), at(0.9), at(0.99));
}

fn main() -> Outcome {
    match roundtrip::between(0, 1) {
        Some(trip) => println!("cache-line round trip: {trip:.0} ns\n"),
        None => println!("cache-line round trip: unknown\n"),
    }
    println!("{:<9} {:<26} {:>8} {:>8} {:>8}", "worker", "us until the reply", "p50", "p90", "p99");
    for mode in [Mode::Event, Mode::Adaptive, Mode::Busy] {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("nvme");
        let (counters, theirs) = UnixStream::pair()?;
        let options = Options {
            mode,
            cpus: vec![0],
            stats: None,
            queue_names: QUEUE_NAMES,
            sessions: Default::default(),
            counters: Some(CounterSocket::new(theirs.into())?),
        };
        let daemon = Daemon::new(device()?, Endpoint::bind(&path, None)?, options)?;
        let serving = std::thread::spawn(move || daemon.run());

        let histogram = || Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3);
        let (mut read, mut map, mut unmap, mut looked) =
            (histogram()?, histogram()?, histogram()?, histogram()?);
        {
            let memory = GuestMemory::new(MemoryOptions::default())?;
            let file = memory.regions().first().ok_or("no memory")?.extent.file.clone();
            let mut client = Client::connect(&path, ANSWER)?;
            client.negotiate(Capabilities::default())?;
            let (address, size) = (1 << 30, 4096);
            let flags = DmaFlags::READ | DmaFlags::WRITE;
            for _ in 0..ROUNDS {
                timed(&mut read, || Ok(client.region_read(0, CSTS, &mut [0; 4])?))?;
                let page = DmaMap { flags, offset: 0, address, size };
                timed(&mut map, || Ok(client.dma_map(page, Some(file.as_fd()))?))?;
                timed(&mut unmap, || Ok(client.dma_unmap(DmaUnmap::Range { address, size })?))?;
            }
        }
        polled(Connection::new(UnixStream::connect(&path)?), &mut looked)?;
        row(mode, "register", &read);
        row(mode, "map", &map);
        row(mode, "unmap", &unmap);
        row(mode, "register, client polls", &looked);
        drop(counters);
        serving.join().map_err(|_| "the daemon failed")??;
    }
    Ok(())
}
