//! The end of one engine at a store.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use mdev_dma::GuestSlice;
use rustix::io::Errno;

use super::{Completion, Memory, Null, Operation, Request, file, held};
use crate::sys::EventFd;

/// The end of one engine.
pub enum Port {
    /// Requests are served in the burst in which they are found.
    Immediate(Immediate),
    /// Requests end later.
    Queued(Queued),
}

/// A store that needs no time.
pub enum Immediate {
    /// See [`super::null`].
    Null(Null),
    /// See [`super::memory`].
    Memory(Memory),
}

/// A store whose requests end later.
pub enum Queued {
    /// See [`super::file`].
    File(Box<file::Port>),
    /// See [`super::held`].
    Held(held::Port),
}

impl Immediate {
    /// Carries out an operation on `len` bytes of the store from `offset` on, if it moves or compares any those of `memory`, which are
    /// as many. The bytes have been found to lie in the store.
    ///
    /// # Errors
    /// What is wrong; any part of it may have been done.
    #[inline]
    pub fn serve(
        &mut self,
        operation: Operation,
        offset: u64,
        len: u64,
        memory: &[GuestSlice<'_>],
    ) -> Result<(), Errno> {
        match self {
            Immediate::Null(_) => Ok(()),
            Immediate::Memory(store) => store.serve(operation, offset, len, memory),
        }
    }
}

impl Queued {
    /// Takes over a request. At most [`MAX_IN_FLIGHT`](super::MAX_IN_FLIGHT) at a time.
    pub fn submit(&mut self, request: Request) {
        match self {
            Queued::File(port) => port.submit(request),
            Queued::Held(port) => port.submit(request),
        }
    }

    /// What was submitted is to begin now, if it has not.
    pub fn begin(&mut self) {
        match self {
            Queued::File(port) => port.begin(),
            Queued::Held(_) => {}
        }
    }

    /// Appends the completions that have come to `out`.
    pub fn take(&mut self, out: &mut Vec<Completion>) {
        match self {
            Queued::File(port) => port.take(out),
            Queued::Held(port) => port.take(out),
        }
    }

    /// Ends what is in flight with `ECANCELED`, where that is possible at once. The completions come as others do; what cannot be
    /// cancelled ends when it ends.
    pub fn cancel(&mut self) {
        match self {
            Queued::File(port) => port.cancel(),
            Queued::Held(port) => port.cancel(),
        }
    }

    /// The same for the request of this tag, if it is in flight.
    pub fn cancel_one(&mut self, tag: u64) {
        match self {
            Queued::File(port) => port.cancel_one(tag),
            Queued::Held(port) => port.cancel_one(tag),
        }
    }

    /// The bell is wanted from now on. True if there are completions to be taken already.
    pub fn arm(&mut self) -> bool {
        match self {
            Queued::File(port) => port.arm(),
            Queued::Held(_) => false,
        }
    }

    /// The bell is not needed: the worker looks.
    pub fn disarm(&mut self) {
        match self {
            Queued::File(port) => port.disarm(),
            Queued::Held(_) => {}
        }
    }

    /// When to [`take`](Queued::take) even though the bell is silent.
    pub fn next_deadline(&self) -> Option<Instant> {
        match self {
            Queued::File(_) => None,
            Queued::Held(port) => port.next_deadline(),
        }
    }

    /// Signalled when a request of this port has ended.
    pub fn bell(&self) -> Arc<dyn AsFd + Send + Sync> {
        let bell: &Arc<EventFd> = match self {
            Queued::File(port) => port.bell(),
            Queued::Held(port) => port.bell(),
        };
        bell.clone()
    }
}
