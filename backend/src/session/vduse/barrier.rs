//! Which answers wait, and for what.

use std::time::{Duration, Instant};

use mdev_pin::{Change, IoasError};
use mdev_protocol::vduse::Answer;

use super::error::Refusal;
use super::requests::Outcome;
use super::rings::Vring;
use super::{Queues, Session};
use crate::session::ask_again;

/// How long the device may take of its own accord, from the request on. With [`LAST_CHANCE`] and the time that it takes to be
/// told, less than the five seconds after which an answer must have left; the kernel would wait for thirty.
pub(super) const PATIENCE: Duration =
    if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(3) };
/// How long it may take after it was told to cancel what it has in flight.
const LAST_CHANCE: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(1) };

/// An answer that waits.
pub(super) struct Barrier {
    /// The request's number; none if nobody asked.
    id: Option<u32>,
    /// When it was asked for.
    since: Instant,
    wait: Wait,
    then: Then,
    /// The device was told to cancel what it has in flight.
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
    /// Nothing runs any more, and the answer is that it is done.
    Suspend,
    /// The rings that may run do, and the answer is that it is done.
    Run,
}

impl Then {
    /// Whether what is in flight may be cancelled for it. Who asks how far a ring is, or that all stand still, takes that to
    /// another device, which knows nothing of what is recorded here.
    fn may_cancel(self) -> bool {
        matches!(self, Then::Reset | Then::Run)
    }
}

impl Barrier {
    pub(super) fn new(id: Option<u32>, wait: Wait, then: Then) -> Self {
        Barrier { id, since: Instant::now(), wait, then, last_chance: false }
    }

    /// When the device has to have let go.
    fn deadline(&self) -> Instant {
        let within = if self.last_chance { PATIENCE.saturating_add(LAST_CHANCE) } else { PATIENCE };
        self.since.checked_add(within).unwrap_or(self.since)
    }

    /// How long it still has.
    fn left(&self) -> Duration {
        self.deadline().saturating_duration_since(Instant::now())
    }

    /// Whether the address space is being changed.
    pub(super) fn changes_table(&self) -> bool {
        matches!(self.wait, Wait::Table(_))
    }

    /// When to look again.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match self.wait {
            Wait::Table(_) => ask_again(self.since, now),
            Wait::Ring(_) | Wait::Rings => Some(self.deadline()),
        }
    }

    fn poll(&mut self, vrings: &[Vring], now: Instant) -> Option<Result<(), Refusal>> {
        let late = now >= self.deadline();
        let released = match &mut self.wait {
            Wait::Ring(index) => !vrings.get(usize::from(*index)).is_some_and(Vring::is_stopping),
            Wait::Rings => !vrings.iter().any(Vring::is_stopping),
            Wait::Table(change) => {
                return change.poll().map(|done: Result<u64, IoasError>| Ok(done.map(drop)?));
            }
        };
        match released {
            true => Some(Ok(())),
            false if late => Some(Err(Refusal::StillRunning(self.since.elapsed()))),
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
                // A ring that is being stopped may wait for memory.
                self.supply(queues);
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
                Ok(()) => self.resume(queues, barrier),
                Err(refusal) if !barrier.then.may_cancel() => {
                    self.driver.suspended = false;
                    self.start_rings(queues);
                    Err(refusal)
                }
                Err(refusal) if !barrier.last_chance && refusal.is_late() => {
                    log::warn!("{}: {refusal}; its requests are cancelled", self.name);
                    match self.try_again(queues, barrier) {
                        Ok(barrier) => {
                            self.barrier = Some(barrier);
                            continue;
                        }
                        Err(refusal) => Err(self.give_up(queues, refusal)),
                    }
                }
                Err(refusal) => Err(self.give_up(queues, refusal)),
            };
            self.conclude(id, outcome);
        }
    }

    /// Something could not be obeyed: nothing runs any more.
    pub(super) fn give_up(&mut self, queues: &mut dyn Queues, refusal: Refusal) -> Refusal {
        log::error!("{}: {refusal}; its queues are stopped until the driver resets it", self.name);
        self.stop_rings(queues);
        self.driver.failed = true;
        refusal
    }

    /// Cancels what is in flight: rings with a log leave it recorded there, and take it again when they run.
    fn try_again(&mut self, queues: &mut dyn Queues, barrier: Barrier) -> Result<Barrier, Refusal> {
        let barrier = Barrier { last_chance: true, ..barrier };
        let wait = match barrier.wait {
            Wait::Ring(index) => {
                self.cancel_ring(queues, index);
                Wait::Ring(index)
            }
            Wait::Rings => {
                self.cancel_rings(queues);
                Wait::Rings
            }
            Wait::Table(change) => {
                self.cancel_rings(queues);
                drop(change);
                Wait::Table(self.change_table(LAST_CHANCE)?)
            }
        };
        Ok(Barrier { wait, ..barrier })
    }

    /// What was waited for has happened. Rings that stopped meanwhile, for whatever reason, run again if they may.
    fn resume(&mut self, queues: &mut dyn Queues, barrier: Barrier) -> Result<Outcome, Refusal> {
        match barrier.then {
            Then::Reset => {
                self.reset();
                let change = self.forget_memory(barrier.left())?;
                self.barrier = Some(Barrier { wait: Wait::Table(change), then: Then::Run, ..barrier });
                Ok(Outcome::Later)
            }
            Then::State(index) => {
                let answer = self.state(index);
                self.start_rings(queues);
                self.supply(queues);
                Ok(Outcome::Answer(answer?))
            }
            Then::Suspend | Then::Run => {
                self.start_rings(queues);
                self.supply(queues);
                Ok(Outcome::Answer(Answer::Done))
            }
        }
    }
}
