//! Abort (section 5.1): of requests for events, and of commands that queues have in flight.
//!
//! The queue of a command is asked, and tells what came of it when the command has ended. A store that does not give a command up
//! within [`PATIENCE`] is not waited for: then the abort says that it was not aborted, and the command ends when it ends.

use std::time::{Duration, Instant};

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::status::Status;

use super::{Answer, Outcome, refused};
use crate::device::nvme::controller::{Controller, Host, SubmissionState};

/// Aborts that the host may have waiting.
pub(super) const MAX: usize = 4;
/// How long one waits for its command.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(1) };
/// The result of one whose command was not aborted.
const NOT_ABORTED: u32 = 1;

/// Those that wait.
#[derive(Debug, Default)]
pub(in super::super) struct Aborts {
    /// What the next one goes by.
    next: u64,
    waiting: Vec<Waiting>,
    /// Those that are decided, and their results; the host does not know yet.
    decided: Vec<(u16, u32)>,
}

#[derive(Copy, Clone, Debug)]
struct Waiting {
    number: u64,
    /// The identifier of the abort command.
    by: u16,
    /// The submission queue of the command that is to be aborted.
    qid: u16,
    until: Option<Instant>,
}

impl Aborts {
    /// One more: its number. `None`: there are too many.
    fn add(&mut self, by: u16, qid: u16) -> Option<u64> {
        if self.waiting.len() >= MAX {
            return None;
        }
        let number = self.next;
        self.next = number.wrapping_add(1);
        let until = Instant::now().checked_add(PATIENCE);
        self.waiting.push(Waiting { number, by, qid, until });
        Some(number)
    }

    fn decide(&mut self, aborted: bool, is_it: impl Fn(&Waiting) -> bool) {
        let Self { waiting, decided, .. } = self;
        let over = waiting.extract_if(.., |one| is_it(one));
        decided.extend(over.map(|one| (one.by, if aborted { 0 } else { NOT_ABORTED })));
    }

    /// A queue has told what came of an abort.
    pub(in super::super) fn told(&mut self, number: u64, aborted: bool) {
        self.decide(aborted, |one| one.number == number);
    }

    /// A queue has ended, and tells nothing more.
    pub(in super::super) fn queue_ended(&mut self, qid: u16) {
        self.decide(false, |one| one.qid == qid);
    }

    /// Gives up on those that have waited for long enough.
    pub(in super::super) fn expire(&mut self, now: Instant) {
        if !self.waiting.is_empty() {
            self.decide(false, |one| one.until.is_none_or(|until| until <= now));
        }
    }

    /// When to give up on one.
    pub(in super::super) fn deadline(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(|one| one.until).min()
    }

    /// Abort commands that are decided, and their results.
    pub(super) fn take_decided(&mut self) -> Vec<(u16, u32)> {
        std::mem::take(&mut self.decided)
    }
}

impl Controller {
    /// Aborts a command. Those of the admin queue have ended when this one begins, but for requests for events, for deletions of
    /// queues and for other aborts; of these only the first are aborted.
    pub(super) fn abort(&mut self, command: &Command, host: &mut dyn Host) -> Outcome {
        let (qid, cid) = (command.cdw10 as u16, (command.cdw10 >> 16) as u16);
        if qid == 0 {
            let result = if self.events.abort(cid) { 0 } else { NOT_ABORTED };
            return Ok(Answer::Now(result));
        }
        match self.submissions.get(&qid) {
            None => return refused(Status::INVALID_FIELD),
            Some(queue) if queue.state != SubmissionState::Running => return Ok(Answer::Now(NOT_ABORTED)),
            Some(_) => {}
        }
        let Some(number) = self.aborts.add(command.cid(), qid) else {
            return refused(Status::ABORT_LIMIT_EXCEEDED);
        };
        host.abort(qid, cid, number);
        Ok(Answer::Later)
    }
}
