//! Spaces to measure, a thread that is busy beside, and how figures are printed: median and range.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Windows};
use mdev_pin::{Access, IgnoreUnmap, Ioas};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

pub const PAGE: u64 = 4096;
/// Slices of each variant.
pub const SLICES: usize = 31;

pub fn file(pages: u64) -> Arc<BackingFile> {
    let fd = memfd_create("bench", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&fd, pages * PAGE).expect("ftruncate");
    BackingFile::new(fd, &FilePolicy::default()).expect("a memfd is accepted")
}

/// Where area `number` of [`space`] lies.
pub fn place(number: u64) -> IovaRange {
    IovaRange::with_len(Iova(2 * number * PAGE), PAGE).expect("range")
}

/// Area `number` of [`space`].
pub fn area(file: &Arc<BackingFile>, number: u64) -> Area {
    let extent = FileExtent { file: file.clone(), offset: number * PAGE };
    Area { range: place(number), extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None }
}

/// A space of `areas` areas of one page each in one file, with a gap of one page between them, and an access.
pub fn space(areas: u64) -> (Ioas, Access, Arc<BackingFile>) {
    let ioas = Ioas::new(Windows::new().expect("windows"));
    let file = file(areas);
    let all = (0..areas).map(|number| area(&file, number)).collect();
    ioas.replace_table(all, std::time::Duration::from_secs(60)).expect("map");
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas).expect("attach");
    (ioas, access, file)
}

pub fn heading() {
    println!("{:<58} {:>9} {:>9} {:>9}", "ns", "median", "min", "max");
    round_trip();
}

pub fn print(name: &str, samples: &mut [f64]) {
    samples.sort_by(f64::total_cmp);
    let (Some(min), Some(max)) = (samples.first(), samples.last()) else { return };
    println!("{name:<58} {:>9.2} {min:>9.2} {max:>9.2}", samples[samples.len() / 2]);
}

/// The way of a cache line to the other core and back: what figures of two threads depend on.
pub fn round_trip() {
    let line = AtomicU64::new(0);
    let rounds = 20_000;
    let mut samples = Vec::new();
    beside(
        |stop| {
            while !stop.load(Ordering::Relaxed) {
                let seen = line.load(Ordering::Acquire);
                if seen % 2 == 1 {
                    line.store(seen + 1, Ordering::Release);
                }
            }
        },
        || {
            for _ in 0..SLICES {
                let started = Instant::now();
                for _ in 0..rounds {
                    let odd = line.load(Ordering::Relaxed) + 1;
                    line.store(odd, Ordering::Release);
                    while line.load(Ordering::Acquire) == odd {
                        std::hint::spin_loop();
                    }
                }
                samples.push(started.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));
            }
        },
    );
    print("a cache line's round trip between two threads", &mut samples);
}

/// Runs `measured` while another thread is busy until it is told to stop, which it is however `measured` ends: a line that
/// cannot be printed must not leave it behind.
pub fn beside<R>(busy: impl FnOnce(&AtomicBool) + Send, measured: impl FnOnce() -> R) -> R {
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| busy(&stop));
        let _stop = Stop(&stop);
        black_box(measured())
    })
}
