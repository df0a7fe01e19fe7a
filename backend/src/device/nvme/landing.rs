//! What follows when stores have ended requests: the next step of a command, or its end.

use mdev_protocol::nvme::status::Status;
use rustix::io::Errno;

use super::backends::Backend;
use super::completion::Ended;
use super::engine::SubmissionEngine;
use super::flying::Flown;
use super::{Mishap, Namespace, queued};
use crate::device::DropCause;
use crate::store::{Completion, Operation};

impl SubmissionEngine {
    /// Takes the completions that have come.
    pub(super) fn collect(&mut self) {
        let Self { backends, completions, .. } = self;
        let mut swept = false;
        let mut submitted = false;
        let mut landed = std::mem::take(&mut self.landed);
        for backend in backends.iter_mut() {
            backend.take(completions);
            for Completion { tag, result } in completions.drain(..) {
                let Some(flown) = self.flying.get_mut(tag) else { continue };
                let given_up = self.cancelled || !self.aborts.is_empty() && self.aborts.has(tag);
                if result.is_ok() && !given_up && go_on(backend, flown, tag) {
                    submitted = true;
                } else {
                    landed.push((tag, backend.nsid, result));
                }
            }
            swept |= backend.in_flight == 0;
        }
        for (tag, nsid, result) in landed.drain(..) {
            submitted |= self.land(tag, nsid, result);
        }
        self.landed = landed;
        if submitted {
            self.backends.begin();
        }
        if swept {
            self.backends.sweep();
        }
    }

    /// The last request of a command on a namespace has ended. True if it goes on with another namespace.
    fn land(&mut self, tag: u64, nsid: u32, result: Result<u64, Errno>) -> bool {
        let mut result = result;
        let Some(flown) = self.flying.get_mut(tag) else { return false };
        if flown.everywhere && result.is_ok() {
            if self.cancelled || self.aborts.has(tag) {
                result = Err(Errno::CANCELED);
            } else {
                match self.backends.flush_after(nsid, tag) {
                    Ok(true) => return true,
                    Ok(false) => {}
                    Err(errno) => result = Err(errno),
                }
            }
        }
        let Some(flown) = self.flying.land(tag) else { return false };
        let status = match result {
            // What was given up between two steps is not all done.
            Ok(_) if flown.rest.as_ref().is_some_and(|rest| !rest.is_done()) => {
                self.tally.failed();
                aborted(self.cancelled)
            }
            Ok(bytes) => {
                self.tally.done(flown.operation, bytes);
                Status::SUCCESS
            }
            Err(errno) => self.crashed(&flown, nsid, errno),
        };
        if !self.aborts.is_empty() {
            self.aborts.ended(tag, status);
        }
        let ended = flown.remote.map_or(Some(status), |number| self.remote.stored(number, status));
        self.ended.extend(ended.map(|status| Ended::new(flown.cid, status)));
        false
    }

    #[cold]
    fn crashed(&mut self, flown: &Flown, nsid: u32, errno: Errno) -> Status {
        let Flown { cid, operation, offset, .. } = *flown;
        let (status, cause) = failure(operation, errno, self.cancelled);
        self.stats().add_drops(cause, 1);
        self.tally.failed();
        let qid = self.qid();
        if errno != Errno::CANCELED && errno != Errno::ILSEQ {
            self.shared.complain(format_args!("queue {qid}: {operation:?} at {offset}"), errno);
        }
        if errno != Errno::CANCELED {
            let block = offset.checked_div(Namespace::BLOCK).unwrap_or(0);
            self.shared.mishaps.record(Mishap { qid, cid, status, location: u16::MAX, block, nsid });
        }
        status
    }
}

/// The next step of a command whose last one went well. False if there is none.
fn go_on(backend: &mut Backend, flown: &mut Flown, tag: u64) -> bool {
    let limits = backend.namespace.store.limits();
    let Some(port) = backend.queued() else { return false };
    let more = queued::go_on(flown, tag, port, &limits);
    if more {
        backend.in_flight = backend.in_flight.saturating_add(1);
    }
    more
}

fn aborted(cancelled: bool) -> Status {
    if cancelled { Status::ABORTED_SQ_DELETION } else { Status::ABORT_REQUESTED }
}

/// How a command ends whose store has failed, and what that is counted as. `cancelled`: its queue is being deleted.
#[cold]
pub(super) fn failure(operation: Operation, errno: Errno, cancelled: bool) -> (Status, DropCause) {
    match errno {
        Errno::CANCELED => (aborted(cancelled), DropCause::Cancelled),
        Errno::ILSEQ if operation == Operation::Compare => (Status::COMPARE_FAILURE, DropCause::StoreFailed),
        Errno::NOSPC | Errno::DQUOT => (Status::CAPACITY_EXCEEDED, DropCause::NoSpace),
        Errno::FAULT => (Status::DATA_TRANSFER_ERROR, DropCause::MemoryLost),
        // The store has become shorter, or cannot be written to any more.
        Errno::INVAL => (Status::LBA_OUT_OF_RANGE.do_not_retry(), DropCause::OutOfRange),
        Errno::ROFS => (Status::WRITE_PROTECTED.do_not_retry(), DropCause::ReadOnly),
        _ => match operation {
            Operation::Read | Operation::Compare | Operation::Verify => {
                (Status::UNRECOVERED_READ_ERROR, DropCause::StoreFailed)
            }
            Operation::Flush => (Status::INTERNAL_ERROR, DropCause::StoreFailed),
            _ => (Status::WRITE_FAULT, DropCause::StoreFailed),
        },
    }
}
