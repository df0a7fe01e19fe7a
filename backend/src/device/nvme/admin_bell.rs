//! The admin queue's doorbells where the client maps them: nobody traps a write, so a worker looks.
//!
//! The admin queue itself is served by the control thread. This engine has no queue; it signals an eventfd when one of the two doorbells
//! has another value than it saw last, whatever the value is.

use std::sync::Arc;
use std::time::Instant;

use super::Doorbells;
use crate::device::{Engine, EventFd, Queue};

/// Looks at the doorbells of the admin queue.
pub struct AdminBell {
    doorbells: Arc<Doorbells>,
    rung: Arc<EventFd>,
    seen: (u32, u32),
}

impl AdminBell {
    /// An engine that signals `rung`.
    pub fn new(doorbells: Arc<Doorbells>, rung: Arc<EventFd>) -> Self {
        Self { doorbells, rung, seen: (0, 0) }
    }

    fn look(&self) -> (u32, u32) {
        (self.doorbells.tail(0), self.doorbells.head(0))
    }
}

impl Engine for AdminBell {
    fn stop_queue(&mut self, _index: u16) -> Option<Queue> {
        None
    }

    fn queue_mut(&mut self, _index: u16) -> Option<&mut Queue> {
        None
    }

    fn poll(&mut self) -> u32 {
        let now = self.look();
        if now == self.seen {
            return 0;
        }
        self.seen = now;
        self.rung.signal();
        1
    }

    fn arm(&mut self) -> bool {
        // Nothing would wake it: it is for workers that never sleep.
        self.look() != self.seen
    }

    fn disarm(&mut self) {}

    fn needs_reset(&self) -> bool {
        false
    }

    fn next_deadline(&self) -> Option<Instant> {
        None
    }
}
