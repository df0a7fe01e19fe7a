//! Release barriers: replies that wait until the device has let go.
//!
//! A barrier is what is left to do of a message, kept as a value. While there is one the session takes no further
//! message of its connection, so replies leave in the order of their requests. It is looked at when a queue has
//! stopped and at every tick.

use std::time::{Duration, Instant};

use mdev_pin::{Change, IoasError, Within};
use mdev_protocol::vhost_user::{FrontendReply, VringState};

use super::error::Refusal;
use super::reply::{Asker, Outcome};
use super::vring::{Run, Vring, base_of, state_of};
use super::{Queues, Session};
use crate::session::ask_again;

/// How long a device gets at most for what it has cancelled.
const LAST_CHANCE: Duration = Duration::from_secs(1);

/// A message whose reply has to wait.
pub(super) struct Barrier {
    asker: Asker,
    since: Instant,
    wait: Wait,
    then: Then,
    /// When to give up waiting for rings. Changes of the address space know their own deadline.
    deadline: Option<Instant>,
    /// The deadline has passed once: the device has been told to cancel what it has in flight.
    last_chance: bool,
}

/// What a barrier waits for.
pub(super) enum Wait {
    /// This ring has no request in flight.
    Ring(u16),
    /// No ring has a request in flight.
    Rings,
    /// What is no longer in the table is out of reach, and so are its pins.
    Table(Change),
}

/// What is done then.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Tell where the ring stopped (`GET_VRING_BASE`).
    Base(u16),
    /// Forget errors, and with `device` also what the device was told (`SET_STATUS` 0, `RESET_DEVICE`).
    Reset {
        /// Whether the device as a whole is meant.
        device: bool,
    },
    /// Drop the memory and all that was told of the rings (`SET_OWNER`).
    StartOver,
    /// Start the rings that waited for memory (`SET_MEM_TABLE`, `ADD_MEM_REG`, `REM_MEM_REG`).
    Resume,
    /// Go on with new features (`SET_FEATURES`).
    Featured,
    /// Show what an update says (`IOTLB_MSG`).
    Translate,
    /// Nothing: the release was all (`IOTLB_MSG`).
    Acknowledge,
}

impl Session {
    /// Makes the message that is being served wait.
    pub(super) fn hold(&mut self, asker: Asker, wait: Wait, then: Then) {
        let since = Instant::now();
        let deadline = match wait {
            Wait::Rings => since.checked_add(self.options.barrier),
            Wait::Ring(_) | Wait::Table(_) => None,
        };
        self.barrier = Some(Barrier { asker, since, wait, then, deadline, last_chance: false });
    }

    /// Goes on with what waited, as far as it can.
    pub(super) fn advance(&mut self, queues: &mut dyn Queues) {
        while let Some(mut barrier) = self.barrier.take() {
            let within = self.options.barrier;
            let Some(result) = barrier.poll(&self.vrings, within) else {
                self.barrier = Some(barrier);
                return;
            };
            if barrier.revoked() {
                log::warn!(
                    "{}: the device did not let go of memory within {within:?}; it was taken away from the device",
                    self.name
                );
            }
            let outcome = match result {
                Ok(()) => self.resume(queues, barrier.asker, barrier.then),
                Err(refusal) if !barrier.last_chance && refusal.is_late() => {
                    match self.try_again(queues, barrier, &refusal) {
                        Ok(barrier) => {
                            self.barrier = Some(barrier);
                            continue;
                        }
                        Err((asker, refusal)) => {
                            self.give_up(queues, &refusal);
                            self.conclude(asker, Err(refusal));
                            continue;
                        }
                    }
                }
                Err(refusal) => {
                    self.give_up(queues, &refusal);
                    Err(refusal)
                }
            };
            self.conclude(barrier.asker, outcome);
        }
    }

    fn resume(&mut self, queues: &mut dyn Queues, asker: Asker, then: Then) -> Result<Outcome, Refusal> {
        if matches!(then, Then::Base(_) | Then::Reset { .. })
            && let Some(change) = self.forget_when_suspended()?
        {
            self.hold(asker, Wait::Table(change), then);
            return Ok(Outcome::Later);
        }
        match then {
            Then::Base(index) => {
                let base = self.vrings.get(usize::from(index)).and_then(|vring| vring.base);
                let num = base_of(state_of(base, self.negotiated.is_packed()));
                let state = VringState { index: u32::from(index), num };
                Ok(Outcome::Reply(FrontendReply::GetVringBase(state)))
            }
            Then::Reset { device } => {
                self.reset(queues, device);
                Ok(Outcome::Done)
            }
            Then::StartOver => self.start_over(asker),
            Then::Resume => {
                self.start_rings(queues);
                Ok(Outcome::Done)
            }
            Then::Featured => Ok(self.go_on_with_features(queues)),
            Then::Translate => self.translate(),
            Then::Acknowledge => Ok(Outcome::Done),
        }
    }

    /// The device did not let go in time. It is stopped, and cancels what it has in flight; then it gets a little more time.
    ///
    /// # Errors
    /// Who is to be told what, when the address space cannot be changed once more.
    fn try_again(
        &mut self,
        queues: &mut dyn Queues,
        barrier: Barrier,
        late: &Refusal,
    ) -> Result<Barrier, (Asker, Refusal)> {
        log::warn!("{}: {late}; its requests are cancelled, and it asks for a reset", self.name);
        self.needs_reset = true;
        self.cancel_rings(queues);
        let within = LAST_CHANCE.min(self.options.barrier.saturating_mul(8));
        let Barrier { asker, since, wait, then, .. } = barrier;
        let wait = match wait {
            Wait::Table(change) => {
                drop(change);
                Wait::Table(self.change_again(within).map_err(|error| (asker, error.into()))?)
            }
            rings => rings,
        };
        let deadline = match wait {
            Wait::Table(_) => None,
            Wait::Ring(_) | Wait::Rings => Instant::now().checked_add(within),
        };
        Ok(Barrier { asker, since, wait, then, deadline, last_chance: true })
    }

    /// Begins a change anew that has failed because the device was late: what is wanted is known.
    fn change_again(&self, within: Duration) -> Result<Change, IoasError> {
        let within = Within::or_revoke(within);
        match self.iommu {
            Some(_) => self.ioas.begin_invalidate(&self.stuck(), within),
            None => self.ioas.begin_replace(self.regions.areas(), within),
        }
    }

    /// The device did not let go in time. The front-end is told, but some take no notice of it.
    fn give_up(&mut self, queues: &mut dyn Queues, refusal: &Refusal) {
        self.needs_reset = true;
        self.stop_rings(queues);
        log::error!(
            "{}: {refusal}; its queues are stopped and it asks for a reset. The front-end was told, but QEMU \
             prints this error at most and goes on as if the memory were free",
            self.name
        );
    }
}

impl Barrier {
    /// Whether the device has lost memory by it that it had not let go of.
    fn revoked(&self) -> bool {
        matches!(&self.wait, Wait::Table(change) if change.revoked())
    }

    /// When it wants to be looked at again.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match self.wait {
            Wait::Table(_) => ask_again(self.since, now),
            Wait::Ring(_) | Wait::Rings => self.deadline,
        }
    }

    fn poll(&mut self, vrings: &[Vring], within: Duration) -> Option<Result<(), Refusal>> {
        let stopping = |vring: &Vring| matches!(vring.run, Run::Stopping { .. });
        let released = match &mut self.wait {
            Wait::Ring(index) => !vrings.get(usize::from(*index)).is_some_and(stopping),
            Wait::Rings => !vrings.iter().any(stopping),
            Wait::Table(change) => {
                return change.poll().map(|done: Result<u64, IoasError>| match done {
                    Ok(_) => Ok(()),
                    Err(error) => Err(error.into()),
                });
            }
        };
        match self.deadline {
            _ if released => Some(Ok(())),
            Some(deadline) if Instant::now() >= deadline => Some(Err(Refusal::StillRunning(within))),
            _ => None,
        }
    }
}
