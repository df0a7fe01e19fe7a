//! A submission queue as a worker sees it: an engine that comes with its only queue.

use std::time::Instant;

use super::{QueueFailure, SubmissionEngine};
use crate::device::{Bell, Engine, Queue};

impl Engine for SubmissionEngine {
    fn quiesce(&mut self, _index: u16) -> bool {
        SubmissionEngine::quiesce(self)
    }

    fn cancel(&mut self, _index: u16) {
        SubmissionEngine::cancel(self);
    }

    fn stop_queue(&mut self, _index: u16) -> Option<Queue> {
        None
    }

    fn bell(&self) -> Option<Bell> {
        Some(SubmissionEngine::bell(self))
    }

    fn queue_mut(&mut self, _index: u16) -> Option<&mut Queue> {
        None
    }

    fn poll(&mut self) -> u32 {
        SubmissionEngine::poll(self)
    }

    fn arm(&mut self) -> bool {
        SubmissionEngine::arm(self)
    }

    fn disarm(&mut self) {
        SubmissionEngine::disarm(self);
    }

    fn needs_reset(&self) -> bool {
        self.has_failure()
    }

    fn fault(&mut self) -> Option<(u16, QueueFailure)> {
        let index = self.qid().checked_sub(1)?;
        Some((index, self.failure()?))
    }

    fn next_deadline(&self) -> Option<Instant> {
        SubmissionEngine::next_deadline(self)
    }
}
