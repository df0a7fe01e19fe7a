//! The aborts that a queue was asked for.
//!
//! A command that a store has is cancelled, and ends as others do: as aborted if the store could still give it up, and then nothing of it
//! touches guest memory any more; otherwise as it would have. The abort is decided when the host can see that end, so that it
//! never learns of an abort before the command is its own again (base specification, section 5.1).
//!
//! A command whose data are with the client ends at once where no store has it: what it waits for is given up. Once its data go
//! there it is not aborted, since what was sent cannot be called back.

use mdev_protocol::nvme::status::Status;
use smallvec::SmallVec;

use super::completion::Ended;
use super::engine::SubmissionEngine;
use crate::device::DropCause;

/// Aborts that wait for the end of their command, at most. The controller has fewer of them at a time, but gives up on some that
/// are still here.
const MAX: usize = 16;

/// An abort.
struct Abort {
    /// What it goes by at the controller.
    number: u64,
    stage: Stage,
}

#[derive(Copy, Clone, PartialEq, Eq)]
enum Stage {
    /// The request of its command, which a store has.
    Flying(u64),
    /// Its command has ended, as aborted or not, and the host may not know yet.
    Ended(bool),
    /// The same, and the completion is in the batch of this number, on its way to the client that keeps the queue.
    Sent(bool, u32),
    /// It is decided.
    Decided(bool),
}

/// All of them.
#[derive(Default)]
pub(super) struct Aborts(SmallVec<[Abort; 4]>);

impl Aborts {
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the command of this request is to be aborted.
    #[inline]
    pub(super) fn has(&self, tag: u64) -> bool {
        self.0.iter().any(|abort| abort.stage == Stage::Flying(tag))
    }

    /// An abort of a command that a store has. False: there are too many, and it is decided.
    pub(super) fn add(&mut self, number: u64, tag: u64) -> bool {
        let room = self.0.len() < MAX;
        let stage = if room { Stage::Flying(tag) } else { Stage::Decided(false) };
        self.0.push(Abort { number, stage });
        room
    }

    /// An abort of a command that has ended because of it.
    pub(super) fn add_ended(&mut self, number: u64) {
        self.0.push(Abort { number, stage: Stage::Ended(true) });
    }

    /// An abort of a command that is not here.
    pub(super) fn refuse(&mut self, number: u64) {
        self.0.push(Abort { number, stage: Stage::Decided(false) });
    }

    /// The command of a request has ended.
    #[cold]
    pub(super) fn ended(&mut self, tag: u64, status: Status) {
        let aborted = status.plain() == Status::ABORT_REQUESTED;
        for abort in self.0.iter_mut().filter(|abort| abort.stage == Stage::Flying(tag)) {
            abort.stage = Stage::Ended(aborted);
        }
    }

    /// Decides what can be: a poll is over. `posted`: the ends of all commands that have ended are, so that the host can see them, or
    /// will when the batch has arrived that is `on_its_way`. Batches before that have arrived.
    #[cold]
    pub(super) fn look(&mut self, posted: bool, on_its_way: Option<u32>) {
        for abort in &mut self.0 {
            abort.stage = match (abort.stage, on_its_way) {
                (Stage::Ended(aborted), Some(batch)) if posted => Stage::Sent(aborted, batch),
                (Stage::Ended(aborted), None) if posted => Stage::Decided(aborted),
                (Stage::Sent(aborted, batch), now) if now != Some(batch) => Stage::Decided(aborted),
                (stage, _) => stage,
            };
        }
    }

    /// Whether one is decided.
    #[inline]
    pub(super) fn has_decided(&self) -> bool {
        self.0.iter().any(|abort| matches!(abort.stage, Stage::Decided(_)))
    }

    /// One that is decided, once: its number, and whether its command was aborted.
    pub(super) fn take_decided(&mut self) -> Option<(u64, bool)> {
        let at = self.0.iter().position(|abort| matches!(abort.stage, Stage::Decided(_)))?;
        let Abort { number, stage } = self.0.remove(at);
        Some((number, stage == Stage::Decided(true)))
    }
}

impl SubmissionEngine {
    /// Aborts a command, if that can still be done. Whether it was is told by [`SubmissionEngine::news`] under this number.
    pub fn abort(&mut self, cid: u16, number: u64) {
        if let Some(tag) = self.flying.find(cid) {
            let again = self.aborts.has(tag);
            if self.aborts.add(number, tag) && !again {
                self.backends.cancel_one(tag);
            }
        } else if self.drop_under_way(cid) || self.remote.abort(cid) {
            self.stats().add_drops(DropCause::Cancelled, 1);
            self.tally.failed();
            self.ended.push(Ended::new(cid, Status::ABORT_REQUESTED));
            self.aborts.add_ended(number);
        } else {
            self.aborts.refuse(number);
        }
    }

    fn drop_under_way(&mut self, cid: u16) -> bool {
        self.under_way.take_if(|under_way| under_way.cid == cid).is_some()
    }
}
