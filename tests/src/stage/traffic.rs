//! A guest with traffic on, on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::{Guest, GuestOptions, Stage, await_that};

/// Traffic until it is ended: every frame must come back, whole and in order.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    passed: Arc<AtomicU64>,
    thread: Option<JoinHandle<Guest>>,
}

impl Traffic {
    /// The victim of the attacks: a well-behaved guest on device 0, with frames under way already.
    pub fn of_victim(stage: &Stage) -> Traffic {
        let traffic = Traffic::of(Guest::start(stage, 0, GuestOptions::default()));
        traffic.must_go_on(100);
        traffic
    }

    /// Traffic of this guest.
    ///
    /// # Panics
    /// When there is no thread.
    pub fn of(mut guest: Guest) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let passed = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (stop.clone(), passed.clone());
        let thread = std::thread::Builder::new().name("traffic".into());
        let thread = thread.spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let before = guest.port.frames();
                guest.step(u64::MAX).expect("a device that keeps to the rules");
                if guest.port.frames() == before {
                    guest.wait();
                }
                count.store(guest.port.frames().1, Ordering::Relaxed);
            }
            guest.exchange(0);
            guest
        });
        Traffic { stop, passed, thread: Some(thread.expect("a thread")) }
    }

    /// Frames that have come back.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Waits until so many frames more have come back.
    ///
    /// # Panics
    /// When they do not, or something else came.
    pub fn must_go_on(&self, frames: u64) {
        let end = self.passed() + frames;
        await_that(&format!("{frames} frames of the victim"), || {
            let running = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
            assert!(running, "the victim's thread panicked; see above");
            self.passed() >= end
        });
    }

    /// Ends it when all frames that are under way have come back.
    ///
    /// # Panics
    /// When they do not, or something else came.
    pub fn end(mut self) -> Guest {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it ends once");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
