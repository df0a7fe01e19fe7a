//! The kernel's side of a device, in memory: for tests, where there is no VDUSE.
//!
//! # What it is
//!
//! What Linux does with a device's file and with a driver's wishes, as far as either can see it: a driver acts on a [`Model`], a
//! session is given what [`Model::open`] returns. Messages go over a pair of sockets.
//!
//! # Objects
//!
//! - [`Model`]: the device. It outlives who serves it. Cloning shares it.
//! - [`Opened`]: its open file, which a session has ([`Kernel`](super::Kernel)). Of several only the last one counts: the
//!   others are of processes that were killed.
//! - [`Action`]: what a driver wants, if the device is asked about it. It takes effect when the device has answered, and not before: status,
//!   readiness and a suspension are as they were meanwhile. [`Action::SetMap`] alone shows at once.
//! - [`Entry`]: memory behind some IOVAs.
//!
//! # Locks
//!
//! One, around all that is known, for as long as one call takes.
//!
//! # What may block
//!
//! [`Model::carry_out`], until the device has answered or its time is over. Nothing else.
//!
//! # What it does not implement
//!
//! Several groups of queues and address spaces, supplied bounce pages, `ENOENT` for answers that nobody waits for (they are
//! [counted](Model::unheard)), and taking back a request that was sent and not read.
//!
//! Source: `drivers/vdpa/vdpa_user` of Linux 7.3.

mod opened;
mod state;
mod table;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mdev_protocol::vduse::{Answer, MESSAGE_LEN, MESSAGE_TIMEOUT, Request, RequestKind, VqState};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::sys::EventFd;

use state::{Message, State};

pub use opened::Opened;
pub use state::Place;
pub use table::Entry;

/// How often somebody who waits looks for an answer.
const LOOK: Duration = Duration::from_micros(100);

/// A device of the kernel. See the [module](self).
#[derive(Clone)]
pub struct Model {
    state: Arc<Mutex<State>>,
    timeout: Duration,
}

/// What a driver wants of the device.
#[derive(Clone, Debug)]
pub enum Action {
    /// It sets the device status, other than to 0.
    SetStatus(u8),
    /// It resets the device, which is reset whatever is answered.
    Reset,
    /// It enables or disables a queue. If that is refused the device is broken.
    SetReady {
        /// The queue.
        index: u16,
        /// Whether it is enabled.
        ready: bool,
    },
    /// It asks how far a queue is.
    State(u16),
    /// It maps something else, and nothing of what was before. If that is refused nothing is mapped.
    SetMap(Vec<Entry>),
    /// It wants all queues to stand still until a reset.
    Suspend,
    /// It gives a group of queues an address space.
    SetGroupAsid {
        /// The group.
        group: u32,
        /// The address space.
        asid: u32,
    },
}

/// What became of it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was not, or the device is broken.
    Failed,
    /// How far the queue is.
    State(VqState),
}

/// An action about which the device was asked.
#[derive(Debug)]
pub struct Asked {
    /// The request's number.
    pub id: u32,
    action: Action,
    since: Instant,
}

impl Asked {
    /// How long ago the device was asked.
    pub fn waited(&self) -> Duration {
        self.since.elapsed()
    }
}

impl Model {
    /// A device of so many queues with this configuration space. Nobody serves it.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(queues: u16, space: Vec<u8>) -> io::Result<Model> {
        let state = Arc::new(Mutex::new(State::new(queues, space)?));
        Ok(Model { state, timeout: MESSAGE_TIMEOUT })
    }

    /// One that waits so long for an answer.
    pub fn with_timeout(self, timeout: Duration) -> Model {
        Model { timeout, ..self }
    }

    /// Opens its file. Whoever had it open is dead to the kernel from now on. What was not answered is asked again, in the same
    /// order.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn open(&self) -> io::Result<Opened> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let generation = self.lock().open(ours);
        Ok(Opened::new(self.clone(), generation, theirs))
    }

    /// Asks the device about an action.
    pub fn begin(&self, action: Action) -> Asked {
        let mut state = self.lock();
        let kind = match &action {
            Action::SetStatus(status) => RequestKind::SetStatus(*status),
            Action::Reset => RequestKind::SetStatus(0),
            Action::SetReady { index, ready } => {
                RequestKind::SetVqReady { index: (*index).into(), ready: *ready }
            }
            Action::State(index) => RequestKind::GetVqState { index: (*index).into() },
            Action::SetMap(entries) => {
                state.table.set(entries.clone());
                RequestKind::UpdateIotlb { first: 0, last: u64::MAX, asid: 0 }
            }
            Action::Suspend => RequestKind::Suspend,
            Action::SetGroupAsid { group, asid } => {
                RequestKind::SetVqGroupAsid { group: *group, asid: *asid }
            }
        };
        let expected = state.expected(kind);
        let id = state.ask(|id| Message { bytes: Request { id, kind }.to_bytes(), expected, sent: false });
        Asked { id, action, since: Instant::now() }
    }

    /// What became of an action, which takes effect by this call; `None` if there is no answer yet. It is told once.
    pub fn outcome(&self, asked: &Asked) -> Option<Outcome> {
        let mut state = self.lock();
        state.exchange();
        let outcome = match state.take_answer(asked.id) {
            Some(Answer::Done) => Outcome::Done,
            Some(Answer::Failed) => Outcome::Failed,
            Some(Answer::VqState { state, .. }) => Outcome::State(state),
            None if state.is_broken() => Outcome::Failed,
            None => return None,
        };
        state.apply(&asked.action, outcome != Outcome::Failed);
        Some(outcome)
    }

    /// Does what a driver wants, waiting for the device. One that does not answer in time is broken.
    pub fn carry_out(&self, action: Action) -> Outcome {
        let asked = self.begin(action);
        loop {
            if let Some(outcome) = self.outcome(&asked) {
                return outcome;
            }
            if asked.waited() > self.timeout {
                self.break_device();
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Asks something that is not in the book: a message of this type, with these words behind its number. What is answered is told by
    /// [`Model::answer`].
    pub fn ask_raw(&self, kind: u32, words: &[u32]) -> u32 {
        let message = |id: u32| {
            let header = [kind, id, 0, 0, 0, 0];
            let mut bytes = [0; MESSAGE_LEN];
            for (place, word) in bytes.chunks_exact_mut(4).zip(header.iter().chain(words)) {
                place.copy_from_slice(&word.to_ne_bytes());
            }
            Message { bytes, expected: mdev_protocol::vduse::Expected::Done, sent: false }
        };
        self.lock().ask(message)
    }

    /// The answer to a request, once it is there; it is told once.
    pub fn answer(&self, id: u32) -> Option<Answer> {
        let mut state = self.lock();
        state.exchange();
        state.take_answer(id)
    }

    /// Whoever has asked was killed: an answer to it is heard by nobody. What was to be done is not.
    pub fn withdraw(&self, asked: &Asked) {
        self.lock().forget(asked.id);
    }

    /// Answers that nobody waited for.
    pub fn unheard(&self) -> u64 {
        let mut state = self.lock();
        state.exchange();
        state.unheard
    }

    /// Numbers of the requests without an answer.
    pub fn unanswered(&self) -> Vec<u32> {
        let mut state = self.lock();
        state.exchange();
        state.unanswered.keys().copied().collect()
    }

    /// Gives the device up, for ever.
    pub fn break_device(&self) {
        self.lock().break_device();
    }

    /// The device status, as drivers read it.
    pub fn status(&self) -> u8 {
        self.lock().status
    }

    /// Whether the device is suspended.
    pub fn is_suspended(&self) -> bool {
        self.lock().suspended
    }

    /// The driver acknowledges features.
    pub fn set_features(&self, features: u64) {
        self.lock().features = features;
    }

    /// The driver sets a queue up.
    pub fn place(&self, index: u16, place: Place) {
        if let Some(queue) = self.lock().queue_mut(index) {
            queue.place = place;
        }
    }

    /// Whether a queue is enabled.
    pub fn is_ready(&self, index: u16) -> bool {
        self.lock().queue_mut(index).is_some_and(|queue| queue.ready)
    }

    /// The driver kicks a queue.
    pub fn kick(&self, index: u16) {
        self.lock().kick(index);
    }

    /// Signalled when the device interrupts the driver for a queue.
    pub fn call(&self, index: u16) -> Option<Arc<EventFd>> {
        self.lock().queue_mut(index).map(|queue| queue.call.clone())
    }

    /// Interrupts of a queue so far that reached its driver.
    pub fn calls(&self, index: u16) -> u64 {
        self.lock().queue_mut(index).map_or(0, |queue| queue.calls)
    }

    /// How often the driver was told that the configuration space has changed.
    pub fn config_calls(&self) -> u64 {
        self.lock().config_calls
    }

    /// The configuration space, as drivers read it.
    pub fn space(&self) -> Vec<u8> {
        self.lock().space.clone()
    }

    /// Says whether there is a descriptor left for the memory that the session asks for.
    pub fn starve(&self, starve: bool) {
        self.lock().starved = starve;
    }

    /// What is mapped.
    pub fn entries(&self) -> BTreeMap<u64, Entry> {
        self.lock().table.entries().clone()
    }

    /// Maps memory of the kernel's own, which the device is not told. `false`: something is mapped there.
    pub fn map(&self, entry: Entry) -> bool {
        self.lock().table.insert(entry)
    }

    /// Unmaps memory of the kernel's own, which the device is not told: the entry that begins there.
    pub fn unmap(&self, first: u64) -> Option<Entry> {
        self.lock().table.remove(first)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
