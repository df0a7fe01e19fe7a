//! Stores: the bytes behind a storage device.
//!
//! # What it is
//!
//! A device turns each chain of its ring into an [`Operation`] on a store and the guest memory that belongs to it. A store
//! knows nothing of rings and guests, and a device nothing of files. Any kind of storage device can have any store.
//!
//! # Objects
//!
//! - [`StoreKind`]: what an operator writes: `null,size=1G`, `file=PATH,direct=on`. [`Store`]: the store itself, which lives as long as
//!   its device and is shared by its workers. [`Limits`]: what it can do.
//! - [`Port`]: the end of one engine. [`Immediate`] ports serve a request before they return, in the burst in which its chain
//!   was found, on slices of that burst; [`Queued`] ones take it over as a [`Request`], and its [`Completion`] with the same tag
//!   is found later.
//! - [`Request`]: owns the [`Pin`]s on the memory it moves bytes to or from. They are taken in the burst in which the
//!   chain was found, and the store has the request before that burst ends; so an unmap that has waited for the
//!   bursts finds every pin.
//! - [`Completion`]: how it ended. Its pins are gone by the time it can be taken.
//!
//! | store | port | bytes |
//! |---|---|---|
//! | [`null`] | immediate | none: reads leave the guest's memory as it is, writes are forgotten |
//! | [`memory`] | immediate | memory of this process |
//! | [`mod@file`] | queued | a file or block device, through io_uring |
//! | [`held`] | queued | memory, and every request ends when somebody says so: for tests |
//!
//! # What a store promises
//!
//! Every request that is submitted ends once, in any order: as a success that has moved all its bytes, or as an error.
//! Nothing of the request touches guest memory after its pins are gone. Submitting and taking do not wait for a
//! request. A completion signals the bell of the worker that submitted the request, unless the port was told that its
//! worker looks ([`Queued::disarm`]).
//!
//! # What may block, what fails
//!
//! Each store says so itself. A request that names bytes beyond the end of the store fails with `EINVAL`, one whose guest
//! memory was lost meanwhile (a file that shrank) with `EFAULT`: its pins know ([`Pin::poisoned`]).
//!
//! # What it does not implement
//!
//! The order of requests to the same bytes: a driver that needs an order waits for completions.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

mod compare;
pub mod file;
pub mod held;
mod kind;
pub mod memory;
pub mod null;
mod port;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use mdev_dma::Perm;
use mdev_pin::Pin;
use rustix::io::Errno;
use smallvec::SmallVec;

use crate::sys::EventFd;

pub(crate) use compare::is_equal;
pub use file::{File, FileOptions};
pub use kind::{StoreError, StoreKind, parse_size};
pub use memory::Memory;
pub use null::Null;
pub use port::{Immediate, Port, Queued};

/// Requests that one port has at a time.
pub const MAX_IN_FLIGHT: usize = 256;
/// Bytes of a sector: what all offsets and lengths are multiples of.
pub const SECTOR: u64 = 512;

/// What is done with bytes of a store.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// From the store to guest memory.
    Read,
    /// Nothing is moved: it fails with `EILSEQ` if the bytes are not those of guest memory.
    Compare,
    /// Nothing is moved: it fails if the bytes cannot be read.
    Verify,
    /// From guest memory to the store.
    Write {
        /// It ends when the bytes outlive a loss of power (FUA).
        durable: bool,
    },
    /// All writes that have ended outlive a loss of power.
    Flush,
    /// The bytes are not needed any more; what is read there next is undefined.
    Discard,
    /// The bytes become zeros.
    WriteZeroes {
        /// Their room may be given back.
        unmap: bool,
        /// It ends when they outlive a loss of power.
        durable: bool,
    },
}

impl Operation {
    /// A write that need not be durable.
    pub const WRITE: Operation = Operation::Write { durable: false };

    /// Whether it changes the store.
    pub fn changes(self) -> bool {
        !matches!(self, Operation::Read | Operation::Compare | Operation::Verify | Operation::Flush)
    }

    /// Whether it needs guest memory.
    pub fn moves(self) -> bool {
        matches!(self, Operation::Read | Operation::Compare | Operation::Write { .. })
    }

    /// What it does to guest memory, where it needs some.
    pub fn memory(self) -> Perm {
        if self == Operation::Read { Perm::WRITE } else { Perm::READ }
    }
}

/// Pins on the memory of a request, in the order of its bytes.
pub type Pins = SmallVec<[Pin; 2]>;

/// An operation that a store is to carry out in its own time.
#[derive(Debug)]
pub struct Request {
    /// Chosen by the device; comes back in the completion.
    pub tag: u64,
    /// What.
    pub operation: Operation,
    /// The first byte of the store.
    pub offset: u64,
    /// Bytes of the store. Where the operation needs guest memory, also those of the memory.
    pub len: u64,
    /// The guest memory of reads, comparisons and writes, in order.
    pub memory: Pins,
}

/// The end of a request.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// From the request.
    pub tag: u64,
    /// Bytes, which are all of the request; or why it failed, and then guest memory and store may hold any part of it.
    pub result: Result<u64, Errno>,
}

/// What a store can do. Does not change while it is open.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nothing can be written.
    pub read_only: bool,
    /// The smallest unit that is served without a detour, in bytes: a power of two, at least [`SECTOR`].
    pub block: u32,
    /// The unit that is written at once at best, in bytes: a power of two, at least `block`.
    pub physical_block: u32,
    /// Bytes of one discard, at most; 0 if it cannot discard.
    pub max_discard: u64,
    /// Bytes of one [`Operation::WriteZeroes`], at most; 0 if it cannot.
    pub max_zeroes: u64,
}

/// The bytes behind a device.
pub enum Store {
    /// No bytes at all.
    Null(Null),
    /// Memory of this process.
    Memory(Memory),
    /// A file or block device.
    File(File),
    /// Ends requests when it is told to.
    Held(held::Held),
}

impl Store {
    /// Makes or opens a store.
    ///
    /// # Errors
    /// What the operator has to change.
    pub fn open(kind: &StoreKind) -> Result<Store, StoreError> {
        Ok(match kind {
            StoreKind::Null { size } => Store::Null(Null::new(*size)),
            StoreKind::Memory { size } => Store::Memory(Memory::new(*size)?),
            StoreKind::File(options) => Store::File(File::open(options)?),
        })
    }

    /// Bytes, at present.
    pub fn size(&self) -> u64 {
        match self {
            Store::Null(null) => null.size(),
            Store::Memory(memory) => memory.size(),
            Store::File(file) => file.size(),
            Store::Held(held) => held.size(),
        }
    }

    /// What it can do.
    pub fn limits(&self) -> Limits {
        match self {
            Store::Null(_) => Null::LIMITS,
            Store::Memory(_) => Memory::LIMITS,
            Store::File(file) => file.limits(),
            Store::Held(_) => held::LIMITS,
        }
    }

    /// The end of an engine, whose completions signal `bell`. To be called, and used, by the thread that runs the engine.
    ///
    /// # Errors
    /// What the kernel refuses; the text says what to do.
    pub fn port(&self, bell: Arc<EventFd>) -> io::Result<Port> {
        Ok(match self {
            Store::Null(null) => Port::Immediate(Immediate::Null(null.clone())),
            Store::Memory(memory) => Port::Immediate(Immediate::Memory(memory.clone())),
            Store::File(file) => Port::Queued(Queued::File(Box::new(file.port(bell)?))),
            Store::Held(held) => Port::Queued(Queued::Held(held.open(bell))),
        })
    }

    /// Whether its requests end later, so that they hold guest memory.
    pub fn is_queued(&self) -> bool {
        matches!(self, Store::File(_) | Store::Held(_))
    }

    /// Whether the kernel works on guest memory in requests that cannot always be cancelled at once.
    pub fn gives_memory_to_kernel(&self) -> bool {
        matches!(self, Store::File(_))
    }

    /// Becomes readable when the size may have changed, which [`Store::look`] then takes note of.
    pub fn watched(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Store::File(file) => file.watched(),
            Store::Null(_) | Store::Memory(_) | Store::Held(_) => None,
        }
    }

    /// Looks at the size. Whether it has changed.
    pub fn look(&self) -> bool {
        match self {
            Store::File(file) => file.look(),
            Store::Null(_) | Store::Memory(_) | Store::Held(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
