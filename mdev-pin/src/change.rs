//! An unmap, a replacement or a detach under way: the stages that all of them go through, driven by polling.

use mdev_dma::IovaRange;

use crate::{
    error::IoasError,
    ioas::Ioas,
    revoke::{Past, Within},
    sync::{Backoff, Deadline},
    sys::published::Retired,
};

/// Areas that one poll takes away at most: some milliseconds. Whoever polls has others to serve.
pub(crate) const AT_ONCE: u32 = 1024;

/// What differs between the changes. A change may go through the stages several times (an unmap of many areas).
pub trait Work: Send {
    /// Publishes tables that gate what is to go, and returns the ones replaced; `None` when nothing is left to do.
    fn begin(&mut self, ioas: &Ioas) -> Option<Result<Vec<Retired>, IoasError>>;
    /// Tells the devices. Called once per round, without locks, after no lane can resolve the gated bytes.
    fn notify(&mut self, ioas: &Ioas);
    /// Whether no pin on the gated bytes is out.
    fn drained(&self, ioas: &Ioas) -> bool;
    /// Publishes tables without the gated bytes, and returns the ones replaced.
    fn finish(&mut self, ioas: &Ioas) -> Vec<Retired>;
    /// Past the deadline, voids all holds on the gated bytes; `late` are tables that showed them open and that a lane may
    /// still be reading. After `true` follows `finish`, after `false` `fail`.
    fn revoke(&mut self, _ioas: &Ioas, _late: &[Retired]) -> bool {
        false
    }
    /// Gives up past the deadline: what is gated stays gated and mapped. Says where.
    fn fail(&mut self, ioas: &Ioas) -> IovaRange;
    /// All stages are over, whatever the outcome.
    fn ended(&mut self, _ioas: &Ioas) {}
    /// Bytes that have left the space.
    fn bytes(&self) -> u64 {
        0
    }
}

enum Stage {
    Begin,
    /// Lanes may be in a burst in which the bytes were not gated.
    Grace(Vec<Retired>),
    /// Pins may be out.
    Drain,
    /// Lanes may be in a burst that reads the gated tables, which still hold the files.
    Free(Vec<Retired>),
    Ended,
}

/// A change of an address space that waits for lanes and pins. The bytes that go are gated from the moment it
/// exists. Dropping it before it has ended gives it up, as its deadline would.
#[must_use = "a change that is dropped is given up; poll it or wait for it"]
pub struct Change {
    ioas: Ioas,
    deadline: Deadline,
    past: Past,
    stage: Stage,
    work: Box<dyn Work>,
    outcome: Option<Result<u64, IoasError>>,
    revoked: bool,
}

impl Change {
    pub(crate) fn begin(ioas: Ioas, within: Within, work: Box<dyn Work>) -> Change {
        let (deadline, past) = (Deadline::within(within.time), within.past);
        let mut change =
            Change { ioas, deadline, past, stage: Stage::Begin, work, outcome: None, revoked: false };
        change.advance();
        change
    }

    /// Goes as far as it can without waiting, but not through more than a thousand areas. `Some` once, when it has ended: the bytes that left the space, or
    /// [`IoasError::Deadlock`].
    pub fn poll(&mut self) -> Option<Result<u64, IoasError>> {
        self.advance();
        self.outcome.take()
    }

    /// Waits for the end, at most until the deadline it was begun with.
    pub fn wait(mut self) -> Result<u64, IoasError> {
        let mut backoff = Backoff::default();
        loop {
            if let Some(outcome) = self.poll() {
                return outcome;
            }
            if matches!(self.stage, Stage::Ended) {
                // Its outcome was taken by an earlier poll.
                return Ok(self.work.bytes());
            }
            backoff.pause();
        }
    }

    /// Whether holds on some of the bytes were revoked, because its deadline passed.
    pub fn revoked(&self) -> bool {
        self.revoked
    }

    fn advance(&mut self) {
        let mut rounds: u32 = 0;
        while rounds < AT_ONCE && self.step() {
            rounds = rounds.saturating_add(matches!(self.stage, Stage::Begin).into());
        }
    }

    /// One stage; `false` if it has to be waited for, or all is over.
    fn step(&mut self) -> bool {
        match &mut self.stage {
            Stage::Begin => match self.work.begin(&self.ioas) {
                Some(Ok(retired)) => self.stage = Stage::Grace(retired),
                Some(Err(error)) => self.end(Err(error)),
                None => self.end(Ok(self.work.bytes())),
            },
            Stage::Grace(retired) => {
                retired.retain_mut(|table| !table.poll());
                if !retired.is_empty() {
                    return self.wait_or_give_up();
                }
                self.work.notify(&self.ioas);
                self.stage = Stage::Drain;
            }
            Stage::Drain => {
                if !self.work.drained(&self.ioas) {
                    return self.wait_or_give_up();
                }
                self.stage = Stage::Free(self.work.finish(&self.ioas));
            }
            Stage::Free(retired) => {
                retired.retain_mut(|table| !table.poll());
                if !retired.is_empty() {
                    if !self.deadline.passed() {
                        return false;
                    }
                    // The bytes are gone for everybody; only the release of the tables is late.
                    self.ioas.adopt(std::mem::take(retired));
                }
                self.stage = Stage::Begin;
            }
            Stage::Ended => return false,
        }
        !matches!(self.stage, Stage::Ended)
    }

    fn wait_or_give_up(&mut self) -> bool {
        if !self.deadline.passed() {
            return false;
        }
        if self.past == Past::Revoke && self.revoke() {
            return true;
        }
        self.give_up();
        false
    }

    fn revoke(&mut self) -> bool {
        let late = match std::mem::replace(&mut self.stage, Stage::Drain) {
            Stage::Grace(late) => {
                // Nobody was told yet.
                self.work.notify(&self.ioas);
                late
            }
            _ => Vec::new(),
        };
        let revoked = self.work.revoke(&self.ioas, &late);
        self.ioas.adopt(late);
        self.revoked |= revoked;
        if revoked {
            self.stage = Stage::Free(self.work.finish(&self.ioas));
        }
        revoked
    }

    fn give_up(&mut self) {
        let range = self.work.fail(&self.ioas);
        self.end(Err(IoasError::Deadlock(range)));
    }

    fn end(&mut self, outcome: Result<u64, IoasError>) {
        let left = match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Grace(retired) | Stage::Free(retired) => retired,
            Stage::Begin | Stage::Drain | Stage::Ended => Vec::new(),
        };
        self.ioas.adopt(left);
        self.work.ended(&self.ioas);
        self.outcome = Some(outcome);
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        match self.stage {
            Stage::Ended => {}
            Stage::Grace(_) | Stage::Drain => self.give_up(),
            Stage::Begin | Stage::Free(_) => self.end(Ok(self.work.bytes())),
        }
    }
}
