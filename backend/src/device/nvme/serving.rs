//! A burst of commands.

use std::sync::Arc;

use mdev_dma::GuestSlice;
use mdev_pin::{Burst, Lane, ResolveError};
use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::data::DatasetRange;
use mdev_protocol::nvme::status::Status;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::backends::{Backend, Backends};
use super::command::{Asked, Refused, check_flags, deallocation, flushes_all, parse};
use super::completion::{CompletionQueue, Ended, Posted};
use super::data::{self, Fault, Piece};
use super::flying::{Flown, Flying};
use super::immediate::{self, Memory};
use super::landing::failure;
use super::queued;
use super::reach::Patience;
use super::remote::Remote;
use super::steps::{Span, Steps};
use super::submission::{SubmissionQueue, Waiting};
use super::tally::Tally;
use super::{Mishap, Namespace, Shared};
use crate::device::QueueStats;
use crate::store::{Operation, Port};
use crate::sys::tsc;

/// Commands of one burst.
pub(super) const BURST: u32 = 32;

/// Bytes after which a burst ends: the other engines of the worker have their turn.
pub(super) const ENOUGH: u64 = 1 << 20;

/// Ranges of a dataset management command.
pub(super) const MAX_RANGES: usize = 256;

/// A command of which some steps are done.
pub(super) struct UnderWay {
    pub(super) cid: u16,
    nsid: u32,
    steps: Steps,
}

/// What a burst came to.
#[derive(Debug, Default)]
pub(super) struct Served {
    /// Commands that were taken.
    pub(super) taken: u32,
    /// Completions that the host can see.
    pub(super) posted: u32,
    /// The completion queue has no room for the others.
    pub(super) full: bool,
    pub(super) bad_tail: Option<u32>,
    pub(super) bad_head: Option<u32>,
}

/// Why a command is not taken now.
pub(super) enum Stop {
    /// Its data are in no memory.
    Lacks(ResolveError),
    /// As many as may be are in flight.
    Full,
}

/// The parts of an engine in a burst.
pub(super) struct Serving<'e> {
    pub(super) shared: &'e Shared,
    pub(super) queue: &'e mut SubmissionQueue,
    pub(super) completion: &'e Arc<CompletionQueue>,
    pub(super) backends: &'e mut Backends,
    pub(super) flying: &'e mut Flying,
    /// The way to the device's bucket.
    pub(super) bucket: &'e mut Lane,
    pub(super) under_way: &'e mut Option<UnderWay>,
    pub(super) ended: &'e mut Vec<Ended>,
    pub(super) pieces: &'e mut Vec<Piece>,
    pub(super) stats: &'e QueueStats,
    pub(super) patience: Patience,
    pub(super) write_through: bool,
    pub(super) takes: bool,
    pub(super) tally: &'e mut Tally,
    pub(super) remote: &'e mut Remote,
    /// A store was given something.
    pub(super) submitted: bool,
}

impl<'e> Serving<'e> {
    /// Posts what has ended, takes commands, and posts what has ended of them.
    ///
    /// # Errors
    /// Memory that is not there, or was lost. What was taken before has ended or is in flight.
    pub(super) fn run(&mut self, burst: &Burst<'_>, served: &mut Served) -> Result<(), ResolveError> {
        let began = tsc::now();
        if self.completion.is_sending() {
            self.completion.settle(burst, &self.remote.access, &self.remote.waiter)?;
        }
        self.post(burst, served)?;
        if self.under_way.is_some() {
            self.go_on();
            served.taken = 1;
        }
        if !self.remote.is_empty() {
            self.travel(burst);
        }
        let outcome = if self.takes && self.ended.is_empty() && self.under_way.is_none() {
            self.take(burst, served)
        } else {
            Ok(())
        };
        // What was taken before something went wrong is told all the same.
        let posted = if outcome == Err(ResolveError::Poisoned) { Ok(()) } else { self.post(burst, served) };
        self.tally.count(self.shared, self.queue.qid(), self.stats, began, served.taken > 0);
        outcome.and(posted)
    }

    /// Posts what has ended, as far as there is room.
    #[inline(always)]
    fn post(&mut self, burst: &Burst<'_>, served: &mut Served) -> Result<(), ResolveError> {
        if self.ended.is_empty() {
            return Ok(());
        }
        let (qid, head) = (self.queue.qid(), self.queue.head());
        let posted = match self.completion.post(burst, qid, head, self.ended) {
            Err(ResolveError::Elsewhere) => {
                self.completion.send(burst, &self.remote.access, (qid, head), self.ended)
            }
            posted => posted,
        };
        let Posted { count, bad_head, full } = posted?;
        served.posted = served.posted.wrapping_add(count as u32);
        served.full = full;
        served.bad_head = served.bad_head.or(bad_head);
        if count == self.ended.len() {
            self.ended.clear();
        } else {
            self.ended.drain(..count);
        }
        Ok(())
    }

    /// Takes commands.
    ///
    /// # Errors
    /// What the first of them lacks: nothing was taken.
    #[inline(always)]
    fn take(&mut self, burst: &Burst<'_>, served: &mut Served) -> Result<(), ResolveError> {
        let Waiting { count, bad_tail } = self.queue.waiting(burst)?;
        served.bad_tail = bad_tail;
        if count == 0 {
            return Ok(());
        }
        let count = count.min(BURST);
        let place = match self.queue.place(burst) {
            Err(ResolveError::Elsewhere) => return self.take_remote(burst, count, served),
            place => place?,
        };
        self.queue.prefetch(&place, count);
        let mut memory = Memory::new();
        let mut taken = 0u32;
        let mut outcome = Ok(());
        while taken < count && self.under_way.is_none() && self.tally.bytes() < ENOUGH {
            let Some(command) = self.queue.command(&place, taken) else { break };
            match self.one(burst, &command, &mut memory) {
                Ok(()) => taken = taken.wrapping_add(1),
                Err(Stop::Full) => break,
                Err(Stop::Lacks(error)) => {
                    // Those before it end first; it is met again.
                    outcome = if taken == 0 { Err(error) } else { Ok(()) };
                    break;
                }
            }
        }
        self.queue.advance(taken);
        served.taken = served.taken.wrapping_add(taken);
        // Then nobody knows what was read for commands.
        if burst.poisoned() && place.poisoned() { Err(ResolveError::Poisoned) } else { outcome }
    }

    /// One command.
    #[inline(always)]
    pub(super) fn one<'s>(
        &mut self,
        burst: &'s Burst<'_>,
        command: &Command,
        memory: &mut Memory<'s>,
    ) -> Result<(), Stop>
    where
        'e: 's,
    {
        let cid = command.cid();
        let Some(backend) = self.backends.find(command.nsid) else { return self.nowhere(command) };
        let asked = match parse(command, &backend.namespace, self.write_through) {
            Ok(asked) => asked,
            Err(refused) => {
                self.refuse(command, refused);
                return Ok(());
            }
        };
        let (operation, offset, len) = match asked {
            Asked::Transfer { operation, offset, len } => (operation, offset, len),
            Asked::Change(steps) => return self.change(command, steps),
            Asked::Deallocate { len } => return self.deallocate(burst, command, len),
        };
        let to_host = operation == Operation::Read;
        if let Err(fault) = data::locate(burst, command, len, to_host, self.pieces) {
            return self.fault(command, fault);
        }
        let span = Span { offset, len: len.into() };
        let bucket = &self.shared.bucket;
        let outcome = match &mut backend.port {
            Some(Port::Immediate(port)) => {
                match immediate::resolve(burst, bucket, self.pieces, operation, memory) {
                    Ok(()) => {
                        let outcome = port.serve(operation, offset, span.len, memory);
                        // A page that was lost under it concerns nobody else.
                        let lost = burst.poisoned() && memory.iter().any(GuestSlice::poisoned);
                        if lost { Err(Errno::FAULT) } else { outcome }
                    }
                    Err(error) => return self.fault(command, error.into()),
                }
            }
            Some(Port::Queued(_)) if self.flying.is_full() => return Err(Stop::Full),
            Some(Port::Queued(port)) => match queued::pin(burst, self.bucket, self.pieces, operation) {
                Ok(pins) => {
                    queued::transfer(self.flying, port, cid, operation, span, pins, None);
                    backend.in_flight = backend.in_flight.saturating_add(1);
                    self.submitted = true;
                    return Ok(());
                }
                Err(error) => return self.fault(command, error.into()),
            },
            None => Err(Errno::NODEV),
        };
        self.end(cid, command.nsid, operation, span, outcome);
        Ok(())
    }

    /// A store that needs no time has carried a command out, or has failed.
    #[inline(always)]
    fn end(&mut self, cid: u16, nsid: u32, operation: Operation, span: Span, outcome: Result<(), Errno>) {
        let status = self.outcome(cid, nsid, operation, span, outcome);
        self.ended.push(Ended::new(cid, status));
    }

    /// How such a command ends. It is counted.
    #[inline(always)]
    pub(super) fn outcome(
        &mut self,
        cid: u16,
        nsid: u32,
        operation: Operation,
        Span { offset, len }: Span,
        outcome: Result<(), Errno>,
    ) -> Status {
        match outcome {
            Ok(()) => {
                self.tally.done(operation, len);
                Status::SUCCESS
            }
            Err(errno) => self.failed(cid, nsid, operation, offset, errno),
        }
    }

    #[cold]
    fn failed(&mut self, cid: u16, nsid: u32, operation: Operation, offset: u64, errno: Errno) -> Status {
        let (status, cause) = failure(operation, errno, false);
        self.stats.add_drops(cause, 1);
        self.tally.failed();
        if errno != Errno::ILSEQ && errno != Errno::CANCELED {
            let qid = self.queue.qid();
            self.shared.complain(format_args!("queue {qid}: {operation:?} at {offset}"), errno);
        }
        self.record(cid, nsid, offset.checked_div(Namespace::BLOCK).unwrap_or(0), status);
        status
    }

    fn record(&self, cid: u16, nsid: u32, block: u64, status: Status) {
        let qid = self.queue.qid();
        self.shared.mishaps.record(Mishap { qid, cid, status, location: u16::MAX, block, nsid });
    }

    #[cold]
    pub(super) fn refuse(&mut self, command: &Command, Refused { status, cause }: Refused) {
        self.stats.add_drops(cause, 1);
        self.tally.failed();
        self.record(command.cid(), command.nsid, command.cdw10_11(), status);
        self.ended.push(Ended::new(command.cid(), status));
    }

    /// The data of a command are nowhere: it fails, or is to wait.
    #[cold]
    fn fault(&mut self, command: &Command, fault: Fault) -> Result<(), Stop> {
        let refused = match fault {
            Fault::Refused(status) => Refused::pointers(status),
            Fault::Memory(ResolveError::Elsewhere) => return self.depart(command),
            Fault::Memory(error) if self.patience.is_worthwhile(error) => return Err(Stop::Lacks(error)),
            Fault::Memory(ResolveError::Poisoned) => Refused::MEMORY_LOST,
            Fault::Memory(_) => Refused::NO_MEMORY,
        };
        self.refuse(command, refused);
        Ok(())
    }

    /// A command for no single namespace: all are flushed, or it fails.
    #[cold]
    fn nowhere(&mut self, command: &Command) -> Result<(), Stop> {
        let refused = if !flushes_all(command) {
            Some(Refused::no_namespace(command))
        } else {
            check_flags(command).err()
        };
        if let Some(refused) = refused {
            self.refuse(command, refused);
            return Ok(());
        }
        let (cid, operation) = (command.cid(), Operation::Flush);
        let flown = Flown { cid, operation, offset: 0, rest: None, everywhere: true, remote: None };
        let Some(tag) = self.flying.add(flown) else { return Err(Stop::Full) };
        let begun = self.backends.flush_after(0, tag);
        if begun == Ok(true) {
            self.submitted = true;
        } else {
            self.flying.land(tag);
            self.end(cid, command.nsid, operation, Span::NONE, begun.map(drop));
        }
        Ok(())
    }

    /// A command that moves no data.
    #[cold]
    pub(super) fn change(&mut self, command: &Command, steps: Steps) -> Result<(), Stop> {
        let (cid, nsid) = (command.cid(), command.nsid);
        if steps.is_done() {
            self.end(cid, nsid, steps.operation, Span::NONE, Ok(()));
            return Ok(());
        }
        let Some(backend) = self.backends.find(nsid) else { return Ok(()) };
        let Backend { namespace, port, in_flight, .. } = backend;
        match port {
            Some(Port::Immediate(_)) => {
                *self.under_way = Some(UnderWay { cid, nsid, steps });
                self.go_on();
            }
            Some(Port::Queued(_)) if self.flying.is_full() => return Err(Stop::Full),
            Some(Port::Queued(port)) => {
                queued::change(self.flying, port, cid, steps, &namespace.store.limits());
                *in_flight = in_flight.saturating_add(1);
                self.submitted = true;
            }
            None => self.end(cid, nsid, steps.operation, Span::NONE, Err(Errno::NODEV)),
        }
        Ok(())
    }

    /// One step more of what is under way.
    #[cold]
    fn go_on(&mut self) {
        let Some(UnderWay { cid, nsid, mut steps }) = self.under_way.take() else { return };
        let port = self.backends.find(nsid).and_then(|backend| backend.port.as_mut());
        let done = match port {
            Some(Port::Immediate(port)) => immediate::step(port, &mut steps),
            // Detached meanwhile.
            Some(Port::Queued(_)) | None => Err(Errno::CANCELED),
        };
        match done {
            Ok(()) if !steps.is_done() => *self.under_way = Some(UnderWay { cid, nsid, steps }),
            done => self.end(cid, nsid, steps.operation, Span::NONE, done),
        }
    }

    /// Reads the ranges of a dataset management command, and has them deallocated.
    #[cold]
    fn deallocate(&mut self, burst: &Burst<'_>, command: &Command, len: u32) -> Result<(), Stop> {
        let mut ranges = [DatasetRange::default(); MAX_RANGES];
        let bytes = ranges.as_mut_bytes().get_mut(..len as usize).unwrap_or_default();
        if let Err(fault) = self.gather(burst, command, bytes) {
            return self.fault(command, fault);
        }
        let Some(backend) = self.backends.find(command.nsid) else { return Ok(()) };
        let count = (len as usize).checked_div(DatasetRange::LEN).unwrap_or(0);
        match deallocation(ranges.get(..count).unwrap_or_default(), &backend.namespace) {
            Ok(steps) => self.change(command, steps),
            Err(refused) => {
                self.refuse(command, refused);
                Ok(())
            }
        }
    }

    /// Copies the data of a command that is not about blocks.
    fn gather(&mut self, burst: &Burst<'_>, command: &Command, out: &mut [u8]) -> Result<(), Fault> {
        data::locate(burst, command, out.len() as u32, false, self.pieces)?;
        let mut rest = out;
        for piece in self.pieces.iter() {
            let (here, behind) = rest.split_at_mut_checked(piece.len as usize).unwrap_or_default();
            data::read(burst, piece.at, here)?;
            rest = behind;
        }
        Ok(())
    }
}
