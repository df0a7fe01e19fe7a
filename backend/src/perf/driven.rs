//! What a driving thread polls: a pair, or a queue of another kind of device.
use super::drive::{Counts, Direction, Pair};
use super::run::RunError;
use crate::driver::{DriverError, RingFds, SplitQueue, Virtqueue};
use crate::sys::Kicks;
use std::time::Duration;

/// After this long without an arrival the device is taken for dead.
const STALL: Duration = Duration::from_secs(4);

/// What a driving thread polls.
pub trait Driven: Send {
    /// What is counted of it.
    type Counts: Counted;

    /// One poll, with the kicks it takes; how much arrived. Only if `send`, more is submitted.
    ///
    /// # Errors
    /// [`DriverError`]: the device broke the rules of a ring.
    fn poll(&mut self, send: bool) -> Result<u32, DriverError>;

    /// What was counted since the last time.
    fn take(&mut self) -> Self::Counts;

    /// Nothing has arrived for so long, more than [`GIVE_UP`](super::run::GIVE_UP). This is number `number` of all.
    ///
    /// # Errors
    /// [`RunError`], if that is too long or the device has given up.
    fn silent(&mut self, number: usize, since: Duration) -> Result<(), RunError>;
}

/// What is counted, to be added up.
pub trait Counted: Default + Send {
    /// Adds another's.
    fn merge(&mut self, other: &Self);
}

/// A pair with the counters by which its rings are kicked.
pub struct Member<Q = SplitQueue> {
    /// The pair.
    pub pair: Pair<Q>,
    /// Of the receive ring.
    pub rx: RingFds,
    /// Of the transmit ring.
    pub tx: RingFds,
}

impl<Q: Virtqueue> Driven for Member<Q> {
    type Counts = Counts;

    #[inline]
    fn poll(&mut self, send: bool) -> Result<u32, DriverError> {
        let polled = self.pair.poll(send)?;
        if polled.kick_rx {
            self.rx.kick.signal();
        }
        if polled.kick_tx {
            self.tx.kick.signal();
        }
        Ok(polled.packets)
    }

    fn take(&mut self) -> Counts {
        self.pair.take()
    }

    fn silent(&mut self, number: usize, since: Duration) -> Result<(), RunError> {
        if [&self.rx, &self.tx].into_iter().any(|fds| matches!(fds.err.drain(), Kicks::Some(_))) {
            return Err(RunError::RingFailed(number));
        }
        if self.pair.direction() == Direction::Loop {
            self.pair.give_up_in_flight();
        }
        if since > STALL { Err(RunError::Stalled(since)) } else { Ok(()) }
    }
}

impl Counted for Counts {
    fn merge(&mut self, other: &Self) {
        Counts::merge(self, other);
    }
}
