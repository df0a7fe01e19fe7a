//! Memory of a front-end that has left in order, kept mapped for a moment: it may come back with the same.
//!
//! A QEMU that executes its successor (`cpr-exec`) closes its connection and opens another some ten milliseconds later,
//! with the same files. While their windows are there, announcing them again maps nothing, and the pages that the device
//! has touched need no faults. Nothing can reach the memory meanwhile: no address space shows it.
//!
//! Only what is announced by a front-end that has stopped its rings is kept: one that was killed comes back with other
//! memory. Huge pages are not kept, because there are few, and somebody may wait for them; mapping them again costs little.

use std::time::{Duration, Instant};

use mdev_dma::Segment;

/// How long to wait for somebody to come: half of the time in which a device has let go of all memory.
const COME: Duration = Duration::from_millis(500);

/// How long whoever has come may take to start a ring.
const START: Duration = Duration::from_secs(10);

/// What the last front-end of a device has left.
#[derive(Debug, Default)]
pub(super) struct Kept {
    segments: Vec<Segment>,
    until: Option<Instant>,
}

impl Kept {
    /// Somebody has left `segments`. What was kept before goes: so much at a time, however fast front-ends come and go.
    pub(super) fn keep(&mut self, segments: Vec<Segment>, now: Instant) {
        self.until = if segments.is_empty() { None } else { now.checked_add(COME) };
        self.segments = segments;
    }

    /// Somebody has come, and may announce what is kept.
    pub(super) fn somebody_came(&mut self, now: Instant) {
        if self.until.is_some() {
            self.until = now.checked_add(START);
        }
    }

    /// When it goes.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Lets go of it, if its time has come.
    pub(super) fn on_time(&mut self, now: Instant) {
        if self.until.is_some_and(|until| until <= now) {
            self.let_go();
        }
    }

    /// Lets go of it now: a ring runs, whose memory somebody else holds, or nobody can come.
    pub(super) fn let_go(&mut self) {
        *self = Kept::default();
    }
}

#[cfg(test)]
mod tests;
