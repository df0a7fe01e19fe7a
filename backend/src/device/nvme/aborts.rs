//! The aborts that a queue was asked for.
//!
//! A command that a store has is cancelled, and ends as others do: as aborted if the store could still give it up, and then nothing of it
//! touches guest memory any more; otherwise as it would have. The abort is decided when the host can see that end, so that it
//! never learns of an abort before the command is its own again (base specification, section 5.1).

use mdev_protocol::nvme::status::Status;
use smallvec::SmallVec;

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

    /// The host can see the ends of all commands that have ended.
    #[cold]
    pub(super) fn posted(&mut self) {
        for abort in &mut self.0 {
            if let Stage::Ended(aborted) = abort.stage {
                abort.stage = Stage::Decided(aborted);
            }
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
