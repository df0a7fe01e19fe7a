//! Which answers wait, and for what.

use std::time::{Duration, Instant};

use mdev_pin::{Change, IoasError};
use mdev_protocol::vduse::Answer;

use super::error::Refusal;
use super::requests::Outcome;
use super::rings::{Run, Vring};
use super::{Queues, Session};
use crate::session::ask_again;

/// How long the device may take of its own accord. With [`LAST_CHANCE`] and the time that it takes to be told, less than the
/// five seconds after which an answer must have left; the kernel would wait for thirty.
pub(super) const PATIENCE: Duration =
    if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(3) };
/// How long it may take after it was told to cancel what it has in flight.
const LAST_CHANCE: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(1) };

/// An answer that waits.
pub(super) struct Barrier {
    /// The request's number; none if nobody asked.
    id: Option<u32>,
    since: Instant,
    wait: Wait,
    then: Then,
    deadline: Instant,
    last_chance: bool,
}

/// What is waited for.
pub(super) enum Wait {
    /// A ring that was told to stop.
    Ring(u16),
    /// All rings that were told to stop.
    Rings,
    /// A change of the address space.
    Table(Change),
}

/// What follows.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// The driver has reset the device: nothing is left of what it said.
    Reset,
    /// The answer says how far a ring is.
    State(u16),
    /// The rings that may run do, and the answer is that it is done.
    Run,
    /// The answer is that it is done.
    Acknowledge,
}

impl Barrier {
    pub(super) fn new(id: Option<u32>, wait: Wait, then: Then) -> Self {
        let since = Instant::now();
        let deadline = since.checked_add(PATIENCE).unwrap_or(since);
        Barrier { id, since, wait, then, deadline, last_chance: false }
    }

    /// Whether the address space is being changed.
    pub(super) fn changes_table(&self) -> bool {
        matches!(self.wait, Wait::Table(_))
    }

    /// When to look again.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match self.wait {
            Wait::Table(_) => ask_again(self.since, now),
            Wait::Ring(_) | Wait::Rings => Some(self.deadline),
        }
    }

    fn poll(&mut self, vrings: &[Vring], now: Instant) -> Option<Result<(), Refusal>> {
        let stopping = |vring: &Vring| matches!(vring.run, Run::Stopping { .. });
        let released = match &mut self.wait {
            Wait::Ring(index) => !vrings.get(usize::from(*index)).is_some_and(stopping),
            Wait::Rings => !vrings.iter().any(stopping),
            Wait::Table(change) => {
                return change.poll().map(|done: Result<u64, IoasError>| Ok(done.map(drop)?));
            }
        };
        match released {
            true => Some(Ok(())),
            false if now >= self.deadline => Some(Err(Refusal::StillRunning(PATIENCE))),
            false => None,
        }
    }

    fn revoked(&self) -> bool {
        matches!(&self.wait, Wait::Table(change) if change.revoked())
    }
}

impl Session {
    /// Answers when what is waited for has happened.
    pub(super) fn hold(&mut self, id: Option<u32>, wait: Wait, then: Then) {
        self.barrier = Some(Barrier::new(id, wait, then));
    }

    /// Goes on with what waits, as far as it can.
    pub(super) fn advance(&mut self, queues: &mut dyn Queues) {
        while let Some(mut barrier) = self.barrier.take() {
            let Some(result) = barrier.poll(&self.vrings, Instant::now()) else {
                self.barrier = Some(barrier);
                return;
            };
            if barrier.revoked() {
                let name = &self.name;
                log::warn!(
                    "{name}: the device did not let go of memory within {PATIENCE:?}; it was taken away from it"
                );
            }
            let id = barrier.id;
            let outcome = match result {
                Ok(()) => self.resume(queues, id, barrier.then),
                Err(refusal) if !barrier.last_chance && refusal.is_late() => {
                    log::warn!("{}: {refusal}; its requests are cancelled", self.name);
                    match self.try_again(queues, barrier) {
                        Ok(barrier) => {
                            self.barrier = Some(barrier);
                            continue;
                        }
                        Err(refusal) => Err(refusal),
                    }
                }
                Err(refusal) => {
                    log::error!(
                        "{}: {refusal}; its queues are stopped until the driver resets it",
                        self.name
                    );
                    self.stop_rings(queues);
                    self.driver.failed = true;
                    Err(refusal)
                }
            };
            self.conclude(id, outcome);
        }
    }

    /// Cancels what is in flight: rings with a log leave it recorded there, and take it again when they run.
    fn try_again(&mut self, queues: &mut dyn Queues, barrier: Barrier) -> Result<Barrier, Refusal> {
        self.cancel_rings(queues);
        let Barrier { id, since, wait, then, .. } = barrier;
        let then = if then == Then::Acknowledge { Then::Run } else { then };
        let wait = match wait {
            Wait::Table(change) => {
                drop(change);
                Wait::Table(self.change_table(LAST_CHANCE)?)
            }
            rings => rings,
        };
        let now = Instant::now();
        let deadline = now.checked_add(LAST_CHANCE).unwrap_or(now);
        Ok(Barrier { id, since, wait, then, deadline, last_chance: true })
    }

    fn resume(&mut self, queues: &mut dyn Queues, id: Option<u32>, then: Then) -> Result<Outcome, Refusal> {
        match then {
            Then::Reset => {
                self.reset();
                let change = self.forget_memory()?;
                self.hold(id, Wait::Table(change), Then::Acknowledge);
                Ok(Outcome::Later)
            }
            Then::State(index) => {
                let answer = self.state(index)?;
                self.start_rings(queues);
                Ok(Outcome::Answer(answer))
            }
            Then::Run => {
                self.start_rings(queues);
                self.supply(queues);
                Ok(Outcome::Answer(Answer::Done))
            }
            Then::Acknowledge => {
                self.supply(queues);
                Ok(Outcome::Answer(Answer::Done))
            }
        }
    }
}
