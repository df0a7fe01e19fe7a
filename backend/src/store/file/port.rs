//! The end of one engine at a file.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::super::{Completion, MAX_IN_FLIGHT, Operation, Request};
use super::Shared;
use super::job::{Job, Step};
use crate::sys::EventFd;
use crate::sys::uring::{Ended, Memory, Ring};

/// The end of one engine: for the thread that begins its first request. Dropping it cancels what is in flight and waits for
/// it, for up to a second.
pub struct Port {
    file: Arc<Shared>,
    /// Apart, because ports of other stores are small.
    ring: Box<Ring<Job>>,
    bell: Arc<EventFd>,
    /// What has ended and was not taken.
    ended: Vec<Completion>,
    armed: bool,
}

impl Port {
    pub(super) fn new(file: Arc<Shared>, bell: Arc<EventFd>) -> io::Result<Port> {
        let ring = Ring::new(MAX_IN_FLIGHT, file.files.clone(), file.shape.in_memory, &bell)?;
        Ok(Port { file, ring: Box::new(ring), bell, ended: Vec::new(), armed: false })
    }

    /// Takes over a request.
    pub fn submit(&mut self, request: Request) {
        let Request { tag, operation, offset, len, memory } = request;
        let memory = match operation {
            Operation::Read | Operation::Compare | Operation::Write { .. } => Memory::pinned(memory),
            Operation::Verify => Memory::nowhere(len),
            Operation::Flush | Operation::Discard | Operation::WriteZeroes { .. } => Memory::none(),
        };
        if let Some(result) = self.end_at_once(operation, offset, len, &memory) {
            drop(memory);
            return self.ended.push(Completion { tag, result });
        }
        match Job::new(&self.file, tag, operation, offset, len) {
            Some(job) => self.go_on(job, memory),
            None => self.ended.push(Completion { tag, result: Ok(len) }),
        }
    }

    /// Begins what was submitted, with one system call.
    pub fn begin(&mut self) {
        if self.ring.has_queued() {
            self.ring.enter();
        }
    }

    /// Appends the completions that have come to `out`. Makes a system call only for what has come, or goes on.
    #[inline]
    pub fn take(&mut self, out: &mut Vec<Completion>) {
        if !self.ring.is_idle() {
            self.reap();
        }
        if !self.ended.is_empty() {
            out.append(&mut self.ended);
        }
    }

    /// See [`Queued::cancel`](super::super::Queued::cancel).
    pub fn cancel(&mut self) {
        while let Some(job) = self.ring.withdraw() {
            self.ended.push(Completion { tag: job.tag, result: Err(Errno::CANCELED) });
        }
        if !self.ring.is_idle() {
            self.ring.owners_mut().for_each(|job| job.cancelled = true);
            self.ring.cancel();
        }
    }

    /// See [`Queued::cancel_one`](super::super::Queued::cancel_one).
    pub fn cancel_one(&mut self, tag: u64) {
        if let Some(job) = self.ring.withdraw_one(|job| job.tag == tag) {
            self.ended.push(Completion { tag: job.tag, result: Err(Errno::CANCELED) });
        } else {
            self.ring.cancel_one(|job| {
                job.cancelled |= job.tag == tag;
                job.tag == tag
            });
        }
    }

    /// See [`Queued::arm`](super::super::Queued::arm).
    pub fn arm(&mut self) -> bool {
        self.armed = true;
        self.ring.arm() || !self.ended.is_empty()
    }

    /// See [`Queued::disarm`](super::super::Queued::disarm).
    pub fn disarm(&mut self) {
        if self.armed {
            self.armed = false;
            self.ring.disarm();
            // What it told of is found by looking, from here on.
            self.bell.drain();
        }
    }

    /// Signalled when a request has ended, while armed.
    pub fn bell(&self) -> &Arc<EventFd> {
        &self.bell
    }

    fn reap(&mut self) {
        self.ring.look();
        while let Some(Ended { order, mut memory, owner: mut job, result }) = self.ring.reap() {
            match job.ended(&self.file, order, &mut memory, result) {
                Step::Again => self.go_on(job, memory),
                Step::End(result) => {
                    // The pins go first: who sees the completion may rely on that.
                    drop(memory);
                    self.ended.push(Completion { tag: job.tag, result });
                }
            }
        }
        self.begin();
    }

    fn go_on(&mut self, mut job: Job, mut memory: Memory) {
        let tag = job.tag;
        let refused = match job.order(&self.file, &mut memory) {
            Ok(order) => self.ring.push(order, memory, job).err().map(|_| Errno::BUSY),
            Err(errno) => Some(errno),
        };
        if let Some(errno) = refused {
            self.ended.push(Completion { tag, result: Err(errno) });
        }
    }

    /// How a request ends that needs no system call.
    fn end_at_once(
        &self,
        operation: Operation,
        offset: u64,
        len: u64,
        memory: &Memory,
    ) -> Option<Result<u64, Errno>> {
        if operation == Operation::Flush {
            return None;
        }
        if self.file.limits.read_only && operation.changes() {
            return Some(Err(Errno::ROFS));
        }
        if offset.checked_add(len).is_none_or(|end| end > self.file.size())
            || operation.moves() && len != memory.left() as u64
        {
            return Some(Err(Errno::INVAL));
        }
        (len == 0).then_some(Ok(0))
    }
}
