//! One device of the process: its rings, its endpoint, its connections' options.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::device::{Device, QueueNames};
use crate::session::{IotlbCounters, Queues, SessionOptions};
use crate::sys::{Interest, Poll};

use super::DaemonError;
use super::dialer::Dialer;
use super::endpoint::{Endpoint, Listener};
use super::kept::Kept;
use super::kernel_device::{KernelDevice, KernelDeviceError};
use super::key::Key;
use super::model::Model;
use super::plan::Plan;
use super::pool::Pool;
use super::rings::Rings;
use super::roll::Beginning;
use super::stats::Rates;

/// How long accepting pauses when it failed.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A device that is served.
pub(super) struct Served {
    pub(super) rings: Rings,
    pub(super) model: Model,
    /// What it was made from, if it was made from a plan.
    pub(super) plan: Option<Plan>,
    pub(super) sessions: SessionOptions,
    pub(super) names: QueueNames,
    pub(super) rates: Rates,
    /// What front-ends have translated for it.
    pub(super) translations: Arc<IotlbCounters>,
    /// What the last front-end has left.
    pub(super) kept: Kept,
    /// The kernel's device, if it is one of those.
    pub(super) kernel: Option<KernelDevice>,
    entrance: Entrance,
}

/// Where its front-ends come from, now.
enum Entrance {
    Listening {
        listener: Listener,
        /// Accepting failed: when to try again.
        again: Option<Instant>,
    },
    Dialing(Dialer),
    /// From the kernel, which is there as long as its device is.
    Kernel,
    /// From nowhere: it has its only connection, or is being left.
    Shut,
}

impl Served {
    /// A device that goes by `id`, and the connection that it comes with if there is one.
    ///
    /// # Errors
    /// The endpoint cannot be watched, or the kernel's device not be served.
    pub(super) fn open(
        id: u64,
        beginning: Beginning,
        pool: &Arc<Pool>,
        poll: &Poll,
    ) -> Result<(Served, Option<OwnedFd>), DaemonError> {
        let watching = || DaemonError::system("watch descriptors");
        let mut kernel = None;
        let Beginning { model, endpoint, workers, sessions, names, plan } = beginning;
        let rings = Rings::new(model.device(), id, pool.clone(), workers);
        let (entrance, connected) = match endpoint {
            Endpoint::Listening(listener) => {
                poll.add(&listener, Key::Listener(id).number(), Interest::READ).map_err(watching())?;
                (Entrance::Listening { listener, again: None }, None)
            }
            Endpoint::Dialing(dialer) => (Entrance::Dialing(dialer), None),
            Endpoint::Connected(socket) => (Entrance::Shut, Some(socket)),
            Endpoint::Kernel(door) => {
                let device = model.virtio().ok_or(KernelDeviceError::Kind)?;
                kernel = Some(door.open(device.as_ref())?);
                (Entrance::Kernel, None)
            }
        };
        if let Some(outside) = rings.device().watched() {
            poll.add(outside, Key::Outside(id).number(), Interest::READ).map_err(watching())?;
        }
        let rates = Rates::new(rings.device().as_ref(), names, Instant::now());
        let (translations, kept) = (Arc::default(), Kept::default());
        let served =
            Served { rings, model, plan, sessions, names, rates, translations, kept, kernel, entrance };
        Ok((served, connected))
    }

    pub(super) fn device(&self) -> &Arc<dyn Device> {
        self.rings.device()
    }

    pub(super) fn name(&self) -> &str {
        self.rings.device().name()
    }

    /// Nobody comes any more.
    pub(super) fn shut(&mut self, poll: &Poll) {
        if let Entrance::Listening { listener, .. } = &self.entrance {
            poll.remove(listener);
        }
        if let Some(outside) = self.device().watched() {
            poll.remove(outside);
        }
        self.entrance = Entrance::Shut;
        self.kept.let_go();
    }

    /// Whether nobody can come any more.
    pub(super) fn is_shut(&self) -> bool {
        matches!(self.entrance, Entrance::Shut)
    }

    /// The next front-end that waits at the listening socket.
    ///
    /// # Errors
    /// What accepting answers.
    pub(super) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match &self.entrance {
            Entrance::Listening { listener, .. } => listener.accept(),
            Entrance::Dialing(_) | Entrance::Kernel | Entrance::Shut => Ok(None),
        }
    }

    /// Nothing can be accepted now, and the listener would be ready all the time: it is left alone for a moment.
    pub(super) fn pause(&mut self, id: u64, poll: &Poll) {
        if let Entrance::Listening { listener, again } = &mut self.entrance {
            let _ = poll.change(listener, Key::Listener(id).number(), Interest::empty());
            *again = Instant::now().checked_add(ACCEPT_PAUSE);
        }
    }

    /// When it has something to do for a front-end to come.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match &self.entrance {
            Entrance::Listening { again, .. } => *again,
            Entrance::Dialing(dialer) => dialer.due(now),
            Entrance::Kernel | Entrance::Shut => None,
        }
    }

    /// Does what is due: listens again, or calls on the front-end, which may give a connection.
    pub(super) fn on_time(&mut self, id: u64, poll: &Poll, now: Instant) -> Option<OwnedFd> {
        if self.due(now).is_none_or(|at| at > now) {
            return None;
        }
        match &mut self.entrance {
            Entrance::Listening { listener, again } => {
                *again = None;
                let _ = poll.change(listener, Key::Listener(id).number(), Interest::READ);
                None
            }
            Entrance::Dialing(dialer) => dialer.dial(self.rings.device().name(), now),
            Entrance::Kernel | Entrance::Shut => None,
        }
    }

    /// The connection to the front-end that was called on, if we are the ones who call.
    pub(super) fn dialer(&mut self) -> Option<&mut Dialer> {
        match &mut self.entrance {
            Entrance::Dialing(dialer) => Some(dialer),
            Entrance::Listening { .. } | Entrance::Kernel | Entrance::Shut => None,
        }
    }
}
