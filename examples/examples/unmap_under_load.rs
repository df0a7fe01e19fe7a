//! Unmapping while a worker is busy: the worker never waits, the unmapper waits for the end of one burst.
//!
//! A worker resolves and writes in one burst after another. The main thread unmaps the memory under it and
//! maps it again, many times over, and says how long that took. The worker finds a closed gate or a hole now
//! and then and goes on. After each unmap the owner puts a mark into the memory and checks that the worker
//! did not write over it.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Windows};
use mdev_pin::{Access, IgnoreUnmap, Ioas, Lane, ResolveError};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};

const SIZE: u64 = 1 << 20;
const ROUNDS: usize = 500;
const MARK: [u8; 8] = *b"reserved";

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    written: AtomicU64,
}

/// A data path: no lock, no count, no system call. Says how often it was refused.
fn work(mut lane: Lane, shared: &Shared) -> Result<u64, ResolveError> {
    let (mut written, mut refused) = (0, 0);
    while !shared.stop.load(Ordering::Relaxed) {
        let burst = lane.enter();
        for packet in 0..32 {
            match burst.slice(Iova(packet * 4096), MARK.len() as u32, Perm::WRITE) {
                Ok(memory) => {
                    memory.fill(0);
                    written += 1;
                }
                Err(ResolveError::Gated | ResolveError::Hole) => refused += 1,
                Err(error) => return Err(error),
            }
        }
        shared.written.store(written, Ordering::Relaxed);
    }
    Ok(refused)
}

fn main() -> Result<(), Box<dyn Error>> {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC)?;
    ftruncate(&fd, 2 * SIZE)?;
    let owner = fd.try_clone()?;
    let file = BackingFile::new(fd, &FilePolicy::default())?;
    let area = |iova, offset| -> Result<Area, Box<dyn Error>> {
        let extent = FileExtent { file: file.clone(), offset };
        let range = IovaRange::with_len(Iova(iova), SIZE)?;
        Ok(Area { range, extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None })
    };

    let ioas = Ioas::new(Windows::new()?);
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas)?;
    // The other half of the file stays, and with it the window that both are seen through: what comes and
    // goes below are areas, and no mapping of this process.
    ioas.map(area(1 << 30, SIZE)?)?;

    let shared = Shared::default();
    let mut times = Vec::with_capacity(ROUNDS);
    let refused = thread::scope(|scope| -> Result<u64, Box<dyn Error>> {
        let worker = scope.spawn(|| work(access.lane(), &shared));
        let outcome = (|| {
            while times.len() < ROUNDS && !worker.is_finished() {
                ioas.map(area(0, 0)?)?;
                let before = shared.written.load(Ordering::Relaxed);
                while shared.written.load(Ordering::Relaxed) == before && !worker.is_finished() {
                    thread::yield_now();
                }
                let begun = Instant::now();
                ioas.unmap(area(0, 0)?.range, Duration::from_secs(5))?;
                times.push(begun.elapsed());
                pwrite(&owner, &MARK, 0)?;
                thread::yield_now();
                let mut found = [0; MARK.len()];
                pread(&owner, &mut found, 0)?;
                assert_eq!(found, MARK, "the worker wrote to memory that was unmapped");
            }
            Ok(())
        })();
        shared.stop.store(true, Ordering::Relaxed);
        let refused = worker.join().map_err(|_| "the worker panicked")??;
        outcome.map(|()| refused)
    })?;

    times.sort();
    println!("writes: {}, refused: {refused}", shared.written.into_inner());
    println!("unmaps: {ROUNDS}, median {:?}, longest {:?}", times[ROUNDS / 2], times[ROUNDS - 1]);
    println!("windows mapped in all that time: {}", ioas.windows().mapped_total());
    Ok(())
}
