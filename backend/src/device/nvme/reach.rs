//! A queue's way into guest memory: what it lacks for the moment, and what is wrong with it for good.
//!
//! Front-ends take memory away and bring it back in two steps, while the queues of a firmware are live. A queue or the data
//! of a command that is not there *parks* the queue: it is looked at again when the address is mapped, or after a second at the latest. Then
//! a command fails by itself, and a queue whose own entries are not there fails as a whole.

use std::task::Waker;
use std::time::{Duration, Instant};

use mdev_pin::{Access, Lane, ParkState, Parked, ResolveError};

use crate::device::QueueStats;
use crate::limit::LogLimit;

/// How long a queue waits for memory that is missing.
const LIMIT: Duration = if cfg!(test) { Duration::from_millis(30) } else { Duration::from_secs(1) };

static FAILURES: LogLimit = LogLimit::new(8, Duration::from_secs(10));

/// What a queue has to tell of.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueNews {
    /// The memory of its entries, or of its completion queue's, is not there. It runs no more.
    #[error("its memory cannot be used: {0}")]
    Memory(ResolveError),
    /// A doorbell was set to something that cannot be, and was ignored. The queue goes on.
    #[error("doorbell {} of queue {qid} was set to {value}, which cannot be", if *.head { "head" } else { "tail" })]
    InvalidDoorbell {
        /// The queue: a completion queue, if it is a head.
        qid: u16,
        /// It is a head of a completion queue, not a tail of a submission queue.
        head: bool,
        /// What was written.
        value: u32,
    },
    /// An abort that the queue was asked for is decided.
    #[error("abort {number} is decided: {aborted}")]
    Abort {
        /// The number of the abort.
        number: u64,
        /// Its command has ended as aborted.
        aborted: bool,
    },
}

impl QueueNews {
    /// Whether the queue runs no more.
    pub fn is_fatal(self) -> bool {
        matches!(self, QueueNews::Memory(_))
    }
}

/// Whether this may heal by itself: an address that has no translation now.
fn is_transient(error: ResolveError) -> bool {
    matches!(error, ResolveError::Hole | ResolveError::Gated | ResolveError::Detached)
}

/// See the [module](self).
pub(super) struct Reach {
    pub(super) lane: Lane,
    waker: Waker,
    parked: Option<Parked>,
    failed: bool,
    /// What nobody has asked for yet.
    untold: Option<QueueNews>,
}

/// Whether a command may wait for its data.
#[derive(Copy, Clone, Debug)]
pub(super) struct Patience {
    late: bool,
}

impl Patience {
    /// Whether this error may end by waiting.
    pub(super) fn is_worthwhile(self, error: ResolveError) -> bool {
        !self.late && is_transient(error)
    }
}

impl Reach {
    pub(super) fn new(access: &Access, waker: Waker) -> Self {
        Self { lane: access.lane(), waker, parked: None, failed: false, untold: None }
    }

    /// Whether to look at the queue: it has not failed, and if it is parked there is a reason to look again.
    #[inline(always)]
    pub(super) fn is_ready(&self) -> bool {
        !self.failed && self.parked.as_ref().is_none_or(|parked| parked.state() != ParkState::Waiting)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// When a parked queue wants to be looked at even though nobody has woken it.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.parked.as_ref().map(Parked::until)
    }

    pub(super) fn is_parked(&self) -> bool {
        self.parked.is_some()
    }

    /// Whether a command may wait for its data.
    #[inline(always)]
    pub(super) fn patience(&self) -> Patience {
        let late = self.parked.as_ref().is_some_and(|parked| Instant::now() >= parked.until());
        Patience { late }
    }

    /// The wait is over.
    pub(super) fn forsake(&mut self) {
        if let Some(parked) = &mut self.parked {
            parked.end_by(Instant::now());
        }
    }

    /// A burst went well: what was missing is there.
    #[inline(always)]
    pub(super) fn healed(&mut self) {
        if self.parked.is_some() {
            self.parked = None;
        }
    }

    /// Takes note of what a burst has missed: parks the queue, or fails it.
    #[cold]
    pub(super) fn lacks(&mut self, error: ResolveError, stats: &QueueStats) {
        if self.failed {
            return;
        }
        let now = Instant::now();
        let before = self.parked.take();
        if !is_transient(error) || before.as_ref().is_some_and(|parked| now >= parked.until()) {
            return self.fail(error, stats);
        }
        let until = now.checked_add(LIMIT).unwrap_or(now);
        let Some(mut parked) = self.lane.park(until, &self.waker) else {
            // It wants what no lookup missed, so that nothing would wake it.
            return self.fail(error, stats);
        };
        match before {
            // Still the same wait: something else is missing too.
            Some(before) => parked.end_by(before.until()),
            None => stats.add_park(),
        }
        self.parked = Some(parked);
    }

    /// Something is to be told of.
    #[cold]
    pub(super) fn tell(&mut self, news: QueueNews) {
        // What is fatal is told before what is not.
        if self.untold.is_none_or(|untold| !untold.is_fatal()) {
            self.untold = Some(news);
        }
    }

    /// Whether there is something that nobody has asked for yet.
    #[inline(always)]
    pub(super) fn has_untold(&self) -> bool {
        self.untold.is_some()
    }

    /// What nobody has asked for yet.
    #[inline(always)]
    pub(super) fn take_news(&mut self) -> Option<QueueNews> {
        if self.untold.is_some() { self.untold.take() } else { None }
    }

    fn fail(&mut self, error: ResolveError, stats: &QueueStats) {
        self.failed = true;
        self.parked = None;
        self.tell(QueueNews::Memory(error));
        stats.add_error();
        if let Some(left_out) = FAILURES.permit() {
            log::warn!("an NVMe queue stopped until its controller is reset: {error}{left_out}");
        }
    }
}
