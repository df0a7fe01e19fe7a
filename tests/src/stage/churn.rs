//! A guest whose traffic goes on whatever becomes of it, while its front-end does something else.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mdevd::driver::{FrontEnd, GuestMemory, RingFds};

use super::{Guest, Port};

/// What a test may do with a guest whose rings are busy.
pub struct Busy<'g> {
    /// Its front-end.
    pub front: &'g mut FrontEnd,
    /// Its memory.
    pub memory: &'g GuestMemory,
    received: &'g AtomicU64,
}

impl Busy<'_> {
    /// Frames that have come back so far, whatever is in them.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Guest {
    /// Runs `act` while both rings are kept busy from another thread. Nobody looks at the frames, and a device that breaks the rules of the
    /// ring is forgiven: its guest may have broken them first.
    ///
    /// # Panics
    /// When `act` does.
    pub fn churn<T>(&mut self, act: impl FnOnce(&mut Busy<'_>) -> T) -> T {
        let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
        let Guest { front, memory, port, fds, .. } = self;
        std::thread::scope(|scope| {
            scope.spawn(|| keep_busy(port, fds, &stop, &received));
            let _stop = StopOnDrop(&stop);
            act(&mut Busy { front, memory, received: &received })
        })
    }

    /// [`Guest::churn`], except that the driver only offers these held chains of the transmit ring, again and again, and touches no buffer.
    ///
    /// # Panics
    /// When `act` does.
    pub fn churn_descriptors<T>(&mut self, heads: &[u16], act: impl FnOnce(&mut Busy<'_>) -> T) -> T {
        let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
        let Guest { front, memory, port, fds, .. } = self;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut idle = heads.to_vec();
                while !stop.load(Ordering::Relaxed) {
                    offer_again(port, &mut idle);
                    fds[1].kick.signal();
                    let before = port.frames().1;
                    let _ = port.receive_anything();
                    received.fetch_add(port.frames().1 - before, Ordering::Relaxed);
                    std::thread::yield_now();
                }
            });
            let _stop = StopOnDrop(&stop);
            act(&mut Busy { front, memory, received: &received })
        })
    }

    /// Waits until the device has used every frame that was sent, and takes what has come.
    ///
    /// # Panics
    /// When the device breaks the rules of the rings.
    pub fn settle(&mut self) {
        super::await_that("every frame that was sent is used", || {
            self.port.receive_anything().expect("a device that keeps to the rules");
            self.port.tx.ready().expect("a device that keeps to the rules") == self.port.tx.outstanding()
        });
        // Received before the last one was used.
        self.port.receive_anything().expect("a device that keeps to the rules");
        self.port.forgive();
    }
}

struct StopOnDrop<'s>(&'s AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn keep_busy(port: &mut Port, fds: &[RingFds; 2], stop: &AtomicBool, received: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        port.forgive();
        let before = port.frames().1;
        if port.send(u64::MAX).unwrap_or(true) {
            fds[1].kick.signal();
        }
        if port.receive_anything().unwrap_or(true) {
            fds[0].kick.signal();
        }
        received.fetch_add(port.frames().1 - before, Ordering::Relaxed);
        std::thread::yield_now();
    }
}

fn offer_again(port: &mut Port, idle: &mut Vec<u16>) {
    for _ in 0..port.tx.ready().unwrap_or(0) {
        idle.extend(port.tx.pop().map(|used| used.head));
    }
    for head in idle.drain(..) {
        let _ = port.tx.offer(head);
    }
    port.tx.publish();
}
