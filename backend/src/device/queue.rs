//! A running vring: its ring, its way into guest memory, its counters, and what is wrong with it.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use mdev_dma::{Iova, Perm};
use mdev_pin::{Access, Lane, ParkState, Parked, ResolveError};

use super::{EventFd, QueueStats, Switch};
use crate::limit::LogLimit;
use crate::ring::{Ring, RingError, RingSetup};

/// How long a queue waits for a translation that is missing, before that is an error.
const PARK_LIMIT: Duration = if cfg!(test) { Duration::from_millis(30) } else { Duration::from_secs(1) };

/// The same where the front-end is asked for it. Its event loop answers when it gets there, and says so when it has nothing
/// to bring; so this is only for one that never answers.
const MISS_LIMIT: Duration = if cfg!(test) { Duration::from_millis(60) } else { Duration::from_secs(30) };

/// Told where a queue behind an IOMMU lacks a translation, and for what.
pub type Missed = Box<dyn Fn(Iova, Perm) + Send>;

static FAILURES: LogLimit = LogLimit::new(8, Duration::from_secs(10));

/// A way to tell a driver that its chains were used. Never waits, and cannot fail: who is gone needs no telling.
pub trait Call: Send + Sync {
    /// Tells the driver.
    fn call(&self);
}

impl Call for EventFd {
    fn call(&self) {
        self.signal();
    }
}

/// What a queue is started with.
#[derive(Clone)]
pub struct QueueSetup {
    /// The vring's index in its device.
    pub index: u16,
    /// Its ring.
    pub ring: RingSetup,
    /// The device's attachment to guest memory. The worker takes a lane of it.
    pub access: Access,
    /// Written by the driver when it adds chains; `None` where the front-end asked for polling.
    pub kick: Option<Arc<EventFd>>,
    /// Written by the device when it used chains.
    pub call: Option<Arc<dyn Call>>,
    /// Written by the device when the queue fails.
    pub err: Option<Arc<EventFd>>,
    /// Whether the vring is enabled; its session turns it at any time.
    pub switch: Switch,
}

/// Whether an error ends when the front-end brings the translation that it is asked for: one that was not there, or one that
/// permits more.
pub(crate) fn can_be_brought(error: RingError) -> bool {
    error.is_transient() || error == RingError::Memory(ResolveError::Permission)
}

/// Whether a queue may wait for what it lacks.
#[derive(Copy, Clone, Debug)]
pub(crate) struct Wait {
    /// It asks for translations.
    asks: bool,
    /// It has waited for as long as it may.
    late: bool,
}

impl Wait {
    /// Whether this error may end by waiting.
    pub(crate) fn is_worthwhile(self, error: RingError) -> bool {
        !self.late && if self.asks { can_be_brought(error) } else { error.is_transient() }
    }
}

/// A running vring on its worker.
pub struct Queue {
    /// The vring's index in its device.
    pub index: u16,
    /// Its ring.
    pub ring: Ring,
    /// Its way into guest memory.
    pub lane: Lane,
    /// Written when chains were used and the driver wants to know.
    pub call: Option<Arc<dyn Call>>,
    /// Written once when the queue fails.
    pub err: Option<Arc<EventFd>>,
    /// Written by the driver; the worker watches it.
    pub kick: Option<Arc<EventFd>>,
    /// Its counters.
    pub stats: Arc<QueueStats>,
    /// Whether the vring is enabled.
    pub switch: Switch,
    /// What is wrong for good. Such a queue is not looked at again.
    pub failed: Option<RingError>,
    /// What is missing for the moment.
    pub parked: Option<Parked>,
    /// Whether the driver knows that it need not kick.
    pub(crate) quiet: bool,
    /// Called when a parked queue should be looked at again.
    waker: Waker,
    /// Where to ask for translations.
    missed: Option<Missed>,
}

impl Queue {
    /// A queue that starts, on the thread that will run it. `waker` gets that thread out of its sleep.
    ///
    /// # Errors
    /// A ring size that cannot be. Whatever else is wrong shows when the queue is polled.
    pub fn start(setup: QueueSetup, stats: Arc<QueueStats>, waker: Waker) -> Result<Self, RingError> {
        let QueueSetup { index, ring, access, kick, call, err, switch } = setup;
        Ok(Self {
            index,
            ring: Ring::new(ring)?,
            lane: access.lane(),
            call,
            err,
            kick,
            stats,
            switch,
            failed: None,
            parked: None,
            quiet: false,
            waker,
            missed: None,
        })
    }

    /// The queue is behind an IOMMU: `missed` is called, once for each time it looks in vain, when it is parked.
    pub fn behind_iommu(self, missed: Missed) -> Self {
        Self { missed: Some(missed), ..self }
    }

    /// Whether it waits for a translation that was asked for, and has no reason to look again yet.
    pub(crate) fn is_awaited(&mut self) -> bool {
        self.asks() && self.parked.is_some() && !self.ready()
    }

    /// Whether it asks for translations.
    pub(crate) fn asks(&self) -> bool {
        self.missed.is_some()
    }

    /// The translation of this address that it waits for will not come: it looks once more, and fails.
    pub(crate) fn forsake(&mut self, iova: Iova) {
        if let Some(parked) = self.parked.as_mut().filter(|parked| parked.iova() == Some(iova)) {
            parked.end_by(Instant::now());
        }
    }

    /// Whether to look at the ring: it has not failed, and if it is parked there is a reason to look again.
    #[inline(always)]
    pub(crate) fn ready(&mut self) -> bool {
        (self.failed.is_none() & self.parked.is_none()) || self.ready_again()
    }

    #[cold]
    fn ready_again(&mut self) -> bool {
        match &self.parked {
            _ if self.failed.is_some() => false,
            None => true,
            Some(parked) => parked.state() != ParkState::Waiting,
        }
    }

    /// Takes note of what a burst ended with. A missing translation parks the queue until it is there, for at most one
    /// second; behind an IOMMU it is asked for, and waited for thirty seconds for each address. Everything else is latched:
    /// the queue is not looked at again until it is started anew.
    #[cold]
    pub fn trouble(&mut self, error: RingError) {
        if self.failed.is_some() {
            return;
        }
        if !(Wait { asks: self.asks(), late: false }).is_worthwhile(error) {
            return self.fail(error);
        }
        let now = Instant::now();
        if self.parked.as_ref().is_some_and(|parked| now >= parked.until()) {
            return self.fail(error);
        }
        let before = self.parked.take();
        if before.is_none() {
            self.stats.add_park();
        }
        let limit = if self.asks() { MISS_LIMIT } else { PARK_LIMIT };
        let Some(mut parked) = self.lane.park(now.checked_add(limit).unwrap_or(now), &self.waker) else {
            // It wants what no lookup missed, so that nothing would wake it.
            return self.fail(error);
        };
        if let Some(before) = before
            && (!self.asks() || before.iova() == parked.iova())
        {
            // Still the same wait: something else of the chain, or of the ring, is missing too.
            parked.end_by(before.until());
        }
        if let (Some(missed), Some(iova)) = (&self.missed, parked.iova())
            && parked.state() == ParkState::Waiting
        {
            missed(iova, parked.perm());
        }
        self.parked = Some(parked);
    }

    /// Whether it may still wait for what a chain lacks.
    pub(crate) fn wait(&self) -> Wait {
        match &self.parked {
            None => Wait { asks: self.asks(), late: false },
            Some(parked) => Wait { asks: self.asks(), late: Instant::now() >= parked.until() },
        }
    }

    /// Tells the driver of a queue that polls need no kicks, once.
    #[inline(always)]
    pub(crate) fn hush(&mut self) {
        if !self.quiet {
            self.hush_now();
        }
    }

    #[cold]
    fn hush_now(&mut self) {
        if !self.ready() {
            return;
        }
        let burst = self.lane.enter();
        // A ring that cannot be opened says so when it is polled.
        if let Ok(mut vring) = self.ring.begin(&burst)
            && vring.disarm().is_ok()
        {
            self.quiet = true;
        }
    }

    /// Asks the driver for a kick. True if there is work already.
    pub(crate) fn arm(&mut self) -> bool {
        if self.failed.is_some() {
            return false;
        }
        if self.parked.is_some() {
            // Woken since it was polled: whoever woke it may have been heard already, and will not come again.
            return self.ready();
        }
        let armed = {
            let burst = self.lane.enter();
            self.ring.begin(&burst).and_then(|mut vring| vring.arm())
        };
        self.quiet = false;
        armed.unwrap_or_else(|error| {
            self.trouble(error);
            false
        })
    }

    /// A burst went well: what was missing is there.
    #[inline(always)]
    pub(crate) fn healed(&mut self) {
        if self.parked.is_some() {
            self.parked = None;
        }
    }

    /// When a parked queue wants to be polled even though nobody has woken it.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.parked.as_ref().map(Parked::until)
    }

    /// Tells the driver that chains were used.
    #[inline]
    pub(crate) fn call(&self) {
        if let Some(call) = &self.call {
            call.call();
            self.stats.add_call();
        }
    }

    fn fail(&mut self, error: RingError) {
        self.failed = Some(error);
        self.parked = None;
        self.stats.add_error();
        if let Some(err) = &self.err {
            err.signal();
        }
        if let Some(left_out) = FAILURES.permit() {
            log::warn!("queue {} stopped until it is reset: {error}{left_out}", self.index);
        }
    }
}
