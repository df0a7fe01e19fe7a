//! Memory that is populated when it is announced, instead of at the first access of a worker (`--prefault`).
//!
//! A thread of each connection that wants it does the work, piece by piece: populating takes the kernel about half a
//! second for a gigabyte, and neither the control thread nor the front-end waits for it. The thread holds a window for
//! one piece at a time, so memory that is taken out of the table goes at most a piece later. Nothing here writes a byte of
//! guest memory: the kernel allocates pages and maps them.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mdev_dma::{Area, HostWindow, Windows};

use super::Session;
use crate::limit::LogLimit;

/// Bytes populated at once: one huge page of the usual size. 1 GiB pages are one piece each.
const PIECE: u64 = 2 << 20;

static FAILURES: LogLimit = LogLimit::new(10, Duration::from_secs(10));

/// The way to the thread; it ends when this is dropped.
pub(super) struct Prefault {
    windows: Arc<Windows>,
    jobs: Sender<Job>,
}

/// A part of a window.
struct Job {
    window: Weak<HostWindow>,
    offset: u64,
    len: u64,
}

impl Prefault {
    /// Starts the thread for the connection of this name.
    pub(super) fn start(windows: Arc<Windows>, name: String) -> io::Result<Self> {
        let (jobs, work) = mpsc::channel();
        std::thread::Builder::new().name("mdevd-prefault".to_owned()).spawn(move || run(&work, &name))?;
        Ok(Prefault { windows, jobs })
    }

    /// Has an area populated that is mapped.
    fn populate(&self, area: &Area) {
        // What cannot be found here cannot be found by a worker either, and it is the worker's error that counts.
        for segment in self.windows.segments(area).unwrap_or_default() {
            let len = u64::try_from(segment.range.size()).unwrap_or(u64::MAX);
            let _ =
                self.jobs.send(Job { window: Arc::downgrade(&segment.window), offset: segment.offset, len });
        }
    }
}

impl Session {
    /// Has those areas populated that were not there before. Behind an IOMMU nothing of them is mapped yet.
    pub(super) fn prefault(&mut self, before: &[Area], now: &[Area]) {
        let Some(prefault) = self.prefault.as_ref().filter(|_| self.iommu.is_none()) else { return };
        let known = |area: &Area| before.iter().any(|other| area.translates_like(other, area.range));
        now.iter().filter(|area| !known(area)).for_each(|area| prefault.populate(area));
    }
}

fn run(jobs: &Receiver<Job>, name: &str) {
    while let Ok(first) = jobs.recv() {
        let (began, mut bytes) = (Instant::now(), 0u64);
        for job in std::iter::once(first).chain(jobs.try_iter()) {
            match job.populate() {
                Ok(populated) => bytes = bytes.saturating_add(populated),
                Err(error) => {
                    if let Some(left_out) = FAILURES.permit() {
                        log::warn!(
                            "{name}: guest memory is not populated: {error}; is there enough memory, or are there \
                             enough huge pages? It is served all the same{left_out}"
                        );
                    }
                }
            }
        }
        log::info!("{name}: {} MiB of guest memory populated in {:.1?}", bytes >> 20, began.elapsed());
    }
}

impl Job {
    /// How many bytes it was: less than asked for where the window has gone meanwhile.
    fn populate(&self) -> io::Result<u64> {
        let mut done = 0;
        while done < self.len {
            let Some(window) = self.window.upgrade() else { return Ok(done) };
            let len = PIECE.min(self.len.saturating_sub(done));
            window.populate(self.offset.saturating_add(done), len)?;
            done = done.saturating_add(len);
        }
        Ok(done)
    }
}
