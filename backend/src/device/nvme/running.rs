//! A submission queue as a worker sees it: an engine that comes with its only queue.

use std::time::Instant;

use super::{QueueNews, SubmissionEngine};
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

    fn abort(&mut self, _index: u16, cid: u16, number: u64) {
        SubmissionEngine::abort(self, cid, number);
    }

    fn needs_reset(&self) -> bool {
        self.has_news()
    }

    fn news(&mut self) -> Option<(u16, QueueNews)> {
        let index = self.qid().checked_sub(1)?;
        Some((index, SubmissionEngine::news(self)?))
    }

    fn next_deadline(&self) -> Option<Instant> {
        SubmissionEngine::next_deadline(self)
    }
}
