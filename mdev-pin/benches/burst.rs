//! What protection costs: ns per descriptor of a burst of 32 that resolves and reads 8 bytes, beside the same loop
//! without any protection; lookups over many areas; pins; and how long a grace period takes beside a busy worker.
//!
//! The variants run interleaved, slice by slice, so that the drift of a shared machine reaches all of them alike.
//! Printed are the median and the range over the slices. `cargo bench -p mdev-pin`.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, GuestSlice, Iova, IovaRange, Perm, Windows};
use mdev_pin::{Access, IgnoreUnmap, Ioas, Lane};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const PAGE: u64 = 4096;
const BURST: u64 = 32;
const SLICES: usize = 31;
/// Bursts of one slice of one variant.
const ROUNDS: u32 = 4_000;

fn main() {
    // `cargo test --benches` and `cargo bench` both pass flags; none matters here.
    println!("{:<52} {:>8} {:>8} {:>8}", "ns", "median", "min", "max");
    protection();
    lookups();
    pins();
    grace();
}

fn file(pages: u64) -> Arc<BackingFile> {
    let fd = memfd_create("bench", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&fd, pages * PAGE).expect("ftruncate");
    BackingFile::new(fd, &FilePolicy::default()).expect("a memfd is accepted")
}

/// A space of `areas` areas of one page each, with a gap of one page between them, and an access.
fn space(areas: u64) -> (Ioas, Access) {
    let ioas = Ioas::new(Windows::new().expect("windows"));
    let file = file(areas);
    for number in 0..areas {
        let range = IovaRange::with_len(Iova(2 * number * PAGE), PAGE).expect("range");
        let extent = FileExtent { file: file.clone(), offset: number * PAGE };
        ioas.map(Area { range, extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None })
            .expect("map");
    }
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas).expect("attach");
    (ioas, access)
}

/// Runs each variant once per slice, in turn, and prints ns per item.
fn interleave(items: u64, variants: &mut [(&str, &mut dyn FnMut())]) {
    let mut samples = vec![Vec::new(); variants.len()];
    for _ in 0..SLICES {
        for ((_, run), samples) in variants.iter_mut().zip(&mut samples) {
            let started = Instant::now();
            run();
            samples.push(started.elapsed().as_secs_f64() * 1e9 / items as f64);
        }
    }
    for ((name, _), samples) in variants.iter().zip(&mut samples) {
        print(name, samples);
    }
}

fn print(name: &str, samples: &mut [f64]) {
    samples.sort_by(f64::total_cmp);
    let (Some(min), Some(max)) = (samples.first(), samples.last()) else { return };
    println!("{name:<52} {:>8.2} {min:>8.2} {max:>8.2}", samples[samples.len() / 2]);
}

/// Addresses of one burst, spread over a page; opaque to the optimiser.
fn addresses(first: u64) -> [u64; BURST as usize] {
    black_box(std::array::from_fn(|n| first + (n as u64 * 104) % 4000))
}

#[inline(always)]
fn protected(lane: &mut Lane, at: &[u64]) -> u64 {
    let burst = lane.enter();
    let read = |at: &u64| burst.slice(Iova(*at), 8, Perm::READ).ok().and_then(|slice| slice.read::<u64>(0));
    at.iter().filter_map(read).fold(0, u64::wrapping_add)
}

#[inline(always)]
fn unprotected(memory: &GuestSlice<'_>, first: u64, at: &[u64]) -> u64 {
    let read = |at: &u64| memory.subslice(usize::try_from(at.wrapping_sub(first)).ok()?, 8)?.read::<u64>(0);
    at.iter().filter_map(read).fold(0, u64::wrapping_add)
}

fn protection() {
    let (_ioas, access) = space(2);
    let windows = Windows::new().expect("windows");
    let plain = file(1);
    let range = IovaRange::with_len(Iova(0), PAGE).expect("range");
    let extent = FileExtent { file: plain, offset: 0 };
    let segments = windows
        .segments(&Area { range, extent: extent.into(), perm: Perm::READ, log: None })
        .expect("one segment");
    let memory = segments[0].window.slice(0, PAGE as usize).expect("memory");
    let mut lane = access.lane();
    let items = u64::from(ROUNDS) * BURST;
    let at = addresses(0);
    interleave(
        items,
        &mut [
            ("descriptor, no protection, 1 thread", &mut || {
                for _ in 0..ROUNDS {
                    black_box(unprotected(&memory, black_box(0), black_box(&at)));
                }
            }),
            ("descriptor, in a burst, 1 thread", &mut || {
                for _ in 0..ROUNDS {
                    black_box(protected(&mut lane, black_box(&at)));
                }
            }),
        ],
    );
    for (name, other) in [("same area", 0), ("another area", 2 * PAGE)] {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut lane = access.lane();
                let at = addresses(other);
                while !stop.load(Ordering::Relaxed) {
                    black_box(protected(&mut lane, black_box(&at)));
                }
            });
            let name = format!("descriptor, in a burst, 2 threads, {name}");
            interleave(
                items,
                &mut [(&name, &mut || {
                    for _ in 0..ROUNDS {
                        black_box(protected(&mut lane, black_box(&at)));
                    }
                })],
            );
            stop.store(true, Ordering::Relaxed);
        });
    }
}

fn lookups() {
    for areas in [1, 8, 64, 512] {
        let (_ioas, access) = space(areas);
        let mut lane = access.lane();
        let local: Vec<[u64; BURST as usize]> =
            (0..64).map(|n| addresses(2 * PAGE * (n * 7919 % areas))).collect();
        let random: Vec<u64> = (0..2048u64).map(|n| 2 * PAGE * (n.wrapping_mul(40_503) % areas)).collect();
        let local_name = format!("lookup, burst-local, {areas} areas");
        let random_name = format!("lookup, random, {areas} areas");
        let mut other = access.lane();
        let rounds = 64 * 64;
        interleave(
            rounds * BURST,
            &mut [
                (&local_name, &mut || {
                    for round in 0..rounds as usize {
                        black_box(protected(&mut lane, black_box(&local[round % 64])));
                    }
                }),
                (&random_name, &mut || {
                    for round in 0..rounds as usize {
                        let at = round * BURST as usize % random.len();
                        black_box(protected(&mut other, black_box(&random[at..at + BURST as usize])));
                    }
                }),
            ],
        );
    }
}

fn pins() {
    let (_ioas, access) = space(8);
    let mut lane = access.lane();
    let items = u64::from(ROUNDS) * BURST;
    interleave(
        items,
        &mut [("pin and drop, in bursts of 32", &mut || {
            for _ in 0..ROUNDS {
                let burst = lane.enter();
                for at in 0..BURST {
                    black_box(burst.pin(Iova(black_box(at * 8)), 64, Perm::WRITE).ok());
                }
            }
        })],
    );
}

/// Map and unmap of an area beside a worker that is busy in bursts on another one.
fn grace() {
    let (ioas, access) = space(2);
    let stop = AtomicBool::new(false);
    let spare = file(1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut lane = access.lane();
            let at = addresses(0);
            while !stop.load(Ordering::Relaxed) {
                black_box(protected(&mut lane, black_box(&at)));
            }
        });
        let range = IovaRange::with_len(Iova(64 * PAGE), PAGE).expect("range");
        let area = || Area {
            range,
            extent: FileExtent { file: spare.clone(), offset: 0 }.into(),
            perm: Perm::READ,
            log: None,
        };
        // Another mapping of the same page, so that the unmap below measures no munmap.
        let windows = ioas.windows().clone();
        let _kept = windows.segments(&area()).expect("segments");
        let mut samples = Vec::new();
        for _ in 0..2_000 {
            ioas.map(area()).expect("map");
            let started = Instant::now();
            ioas.unmap(range, Duration::from_secs(1)).expect("unmap");
            samples.push(started.elapsed().as_secs_f64() * 1e9);
        }
        print("unmap without pins beside a busy worker", &mut samples);
        stop.store(true, Ordering::Relaxed);
    });
}
