//! Run inside the lab's guest, on a whole disk.
//!
//! - `guest-blocks verify DEVICE JOBS`: each job writes its share of the disk's blocks, in pieces of many sizes, reads them back and compares,
//!   again and again until there is a file `/tmp/rest`. A line twice a second says how much was verified, and the longest time
//!   that passed without a request that ended; the last line says how long the longest request took.
//! - `guest-blocks flush DEVICE`: writes block after block, flushes each, and then says `flushed: N`: so many are on the disk.
//! - `guest-blocks zero DEVICE` and `guest-blocks unmap DEVICE`: has the disk write zeroes all over itself, and give the space back or not.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};

/// Not the library of this crate: a guest that boots in seconds has no room for it.
#[path = "../blocks.rs"]
mod blocks;

use blocks::{BLOCK, check, fill};

/// Whoever makes it ends the verification.
const REST: &str = "/tmp/rest";
/// Blocks of the disk that are used at most, so that each is written many times.
const MOST: u64 = 4096;
/// Blocks of the longest request.
const LONGEST: u64 = 16;
/// How often something is said.
const PERIOD: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["verify", device, jobs] => verify(device, jobs.parse().unwrap_or(1)),
        ["flush", device] => flush(device),
        // What the kernel makes requests to write zeroes of: block/fops.c, blkdev_fallocate.
        ["zero", device] => zero(device, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE),
        ["unmap", device] => zero(device, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE),
        _ => Err(io::Error::other(
            "usage: guest-blocks verify DEVICE JOBS | flush DEVICE | zero DEVICE | unmap DEVICE",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("blocks: failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A buffer that begins where direct I/O wants it.
struct Buffer(Vec<u8>);

impl Buffer {
    fn new() -> Buffer {
        Buffer(vec![0; (LONGEST as usize + 1) * BLOCK])
    }

    fn blocks(&mut self, count: u64) -> &mut [u8] {
        let first = self.0.as_ptr().align_offset(BLOCK);
        &mut self.0[first..first + count as usize * BLOCK]
    }
}

/// What all jobs have done.
struct Progress {
    verified: AtomicU64,
    /// When a request ended last, and the longest time between two of them, since it was said last.
    ended: Mutex<(Instant, Duration)>,
    /// Milliseconds of the longest request.
    longest: AtomicU64,
}

impl Progress {
    /// A request has ended that began then.
    fn ended(&self, begun: Instant) {
        let mut ended = self.ended.lock().expect("nobody panics");
        let now = Instant::now();
        self.longest.fetch_max((now - begun).as_millis() as u64, Ordering::Relaxed);
        *ended = (now, ended.1.max(now - ended.0));
    }

    fn gap(&self) -> Duration {
        let mut ended = self.ended.lock().expect("nobody panics");
        std::mem::take(&mut ended.1)
    }
}

fn verify(device: &str, jobs: u64) -> io::Result<()> {
    // O_DIRECT: what comes back is the disk's and not the page cache's.
    let disk = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(device)?;
    let share = (size(&disk)? / BLOCK as u64).min(MOST) / jobs.max(1);
    let progress = Progress {
        verified: AtomicU64::new(0),
        ended: Mutex::new((Instant::now(), Duration::ZERO)),
        longest: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        let (disk, progress) = (&disk, &progress);
        let jobs: Vec<_> =
            (0..jobs).map(|job| scope.spawn(move || one_job(disk, job * share, share, progress))).collect();
        let mut before = 0;
        while jobs.iter().all(|job| !job.is_finished()) {
            std::thread::sleep(PERIOD);
            let verified = progress.verified.load(Ordering::Relaxed);
            if verified > before {
                println!("blocks: {verified} verified, gap {} ms", progress.gap().as_millis());
            }
            before = verified;
        }
        jobs.into_iter().try_for_each(|job| job.join().expect("it does not panic"))
    })?;
    let (verified, longest) = (progress.verified.into_inner(), progress.longest.into_inner());
    println!("blocks: all {verified} verified, longest request {longest} ms");
    Ok(())
}

/// Write, read and compare a share of the disk until it is enough.
fn one_job(disk: &File, first: u64, share: u64, progress: &Progress) -> io::Result<()> {
    let mut buffer = Buffer::new();
    let mut number = 0;
    loop {
        number += 1;
        for reading in [false, true] {
            let mut at = 0;
            while at < share {
                if Path::new(REST).exists() {
                    return Ok(());
                }
                let count = (1 + (at * 7 + number * 5) % LONGEST).min(share - at);
                let index = first + at;
                let blocks = buffer.blocks(count);
                if !reading {
                    each(blocks, index, |block, index| fill(block, index, number));
                }
                let begun = Instant::now();
                if reading {
                    disk.read_exact_at(blocks, index * BLOCK as u64)?;
                } else {
                    disk.write_all_at(blocks, index * BLOCK as u64)?;
                }
                progress.ended(begun);
                if reading {
                    let mut wrong = None;
                    each(blocks, index, |block, index| {
                        wrong = wrong.take().or(check(block, index, number).err())
                    });
                    wrong.map_or(Ok(()), |wrong| Err(io::Error::other(wrong)))?;
                    progress.verified.fetch_add(count, Ordering::Relaxed);
                }
                at += count;
            }
        }
    }
}

fn each(blocks: &mut [u8], first: u64, mut with: impl FnMut(&mut [u8], u64)) {
    blocks.chunks_mut(BLOCK).zip(first..).for_each(|(block, index)| with(block, index));
}

fn flush(device: &str) -> io::Result<()> {
    let disk = OpenOptions::new().write(true).open(device)?;
    let mut block = vec![0; BLOCK];
    for index in 0..size(&disk)? / BLOCK as u64 {
        fill(&mut block, index, 1);
        disk.write_all_at(&block, index * BLOCK as u64)?;
        disk.sync_data()?;
        println!("flushed: {}", index + 1);
    }
    Ok(())
}

fn zero(device: &str, how: FallocateFlags) -> io::Result<()> {
    let disk = OpenOptions::new().write(true).open(device)?;
    Ok(fallocate(&disk, how, 0, size(&disk)?)?)
}

/// Bytes of a disk.
fn size(mut disk: &File) -> io::Result<u64> {
    disk.seek(SeekFrom::End(0))
}
