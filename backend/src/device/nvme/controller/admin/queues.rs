//! I/O queues: created, deleted, and their doorbells in the host's memory (sections 5.4 to 5.8).

use std::sync::Arc;

use mdev_dma::Iova;
use mdev_protocol::nvme::command::{Command, Completion};
use mdev_protocol::nvme::status::Status;

use super::memory::Way;
use super::{Answer, DONE, Outcome, refused};
use crate::device::nvme::completion::CompletionSetup;
use crate::device::nvme::controller::{Controller, Host, Submission, SubmissionState};
use crate::device::nvme::data::Fault;
use crate::device::nvme::{CompletionQueue, MAX_ENTRIES, Shadow, SubmissionSetup};

const PAGE: u64 = 4096;
/// Dword 11: the queue is physically contiguous.
const CONTIGUOUS: u32 = 1;
/// Dword 11 of a completion queue: it interrupts.
const INTERRUPTS: u32 = 1 << 1;

/// What dword 10 of both creations says.
struct Wanted {
    qid: u16,
    entries: u32,
    base: Iova,
}

impl Controller {
    /// What both creations have in common. `entry` is the size of an entry that the host has configured.
    fn wanted(&self, command: &Command, taken: bool, entry: usize, len: usize) -> Result<Wanted, Fault> {
        let (qid, entries) = (command.cdw10 as u16, (command.cdw10 >> 16).saturating_add(1));
        if qid == 0 || qid > self.features.queues() || taken {
            return refused(Status::INVALID_QUEUE_ID);
        }
        if !(2..=MAX_ENTRIES).contains(&entries) || entry != len {
            return refused(Status::INVALID_QUEUE_SIZE);
        }
        if command.cdw11 & CONTIGUOUS == 0 {
            return refused(Status::INVALID_FIELD);
        }
        let [base, _] = command.dptr;
        if base % PAGE != 0 {
            return refused(Status::PRP_OFFSET_INVALID);
        }
        Ok(Wanted { qid, entries, base: Iova(base) })
    }

    pub(super) fn create_completion(&mut self, command: &Command) -> Outcome {
        let taken = self.completions.contains_key(&(command.cdw10 as u16));
        let entry = 1 << self.registers.configuration.completion_entry();
        let Wanted { qid, entries, base } = self.wanted(command, taken, entry, Completion::LEN)?;
        let vector = (command.cdw11 >> 16) as u16;
        if vector >= self.vectors.count() {
            return refused(Status::INVALID_INTERRUPT_VECTOR);
        }
        self.doorbells.set_head(qid, 0);
        let setup = CompletionSetup {
            qid,
            base,
            entries,
            vector: (command.cdw11 & INTERRUPTS != 0).then_some(vector),
            doorbells: self.doorbells.clone(),
            vectors: self.vectors.clone(),
        };
        self.completions.insert(qid, Arc::new(CompletionQueue::new(setup)));
        DONE
    }

    pub(super) fn create_submission(&mut self, command: &Command, host: &mut dyn Host) -> Outcome {
        let taken = self.submissions.contains_key(&(command.cdw10 as u16));
        let entry = 1 << self.registers.configuration.submission_entry();
        let Wanted { qid, entries, base } = self.wanted(command, taken, entry, Command::LEN)?;
        let completion = (command.cdw11 >> 16) as u16;
        let Some(queue) = self.completions.get(&completion) else {
            return refused(Status::COMPLETION_QUEUE_INVALID);
        };
        self.doorbells.set_tail(qid, 0);
        let setup = SubmissionSetup {
            qid,
            base,
            entries,
            completion: queue.clone(),
            access: host.access().clone(),
            doorbells: self.doorbells.clone(),
            kick: None,
        };
        self.submissions
            .insert(qid, Submission { completion, range: setup.range(), state: SubmissionState::Running });
        host.keep_whole(self.queue_memory());
        host.start(setup);
        DONE
    }

    pub(super) fn delete_submission(&mut self, command: &Command, host: &mut dyn Host) -> Outcome {
        let qid = command.cdw10 as u16;
        match self.submissions.get_mut(&qid) {
            Some(submission) if submission.state == SubmissionState::Running => {
                submission.state = SubmissionState::Deleting(command.cid());
                host.stop(qid);
                Ok(Answer::Later)
            }
            _ => refused(Status::INVALID_QUEUE_ID),
        }
    }

    pub(super) fn delete_completion(&mut self, command: &Command) -> Outcome {
        let qid = command.cdw10 as u16;
        if !self.completions.contains_key(&qid) {
            return refused(Status::INVALID_QUEUE_ID);
        }
        if self.submissions.values().any(|submission| submission.completion == qid) {
            return refused(Status::INVALID_QUEUE_DELETION);
        }
        self.completions.remove(&qid);
        DONE
    }

    /// The host has memory that stands for the doorbells of its I/O queues.
    pub(super) fn use_doorbell_buffer(
        &mut self,
        way: &mut Way,
        command: &Command,
        host: &mut dyn Host,
    ) -> Outcome {
        let [doorbells, events] = command.dptr;
        if doorbells % PAGE != 0 || events % PAGE != 0 {
            return refused(Status::INVALID_FIELD);
        }
        let shadow = Shadow { doorbells: Iova(doorbells), events: Iova(events) };
        self.doorbells.begin_shadow(&way.enter(), shadow, self.pairs)?;
        // Whoever sleeps has to look there once, and to say when to touch the register next.
        self.submissions.keys().for_each(|qid| self.kick(*qid, host));
        DONE
    }
}
