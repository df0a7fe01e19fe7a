//! The NVMe controller: a PCI function with submission and completion queues, and namespaces with stores behind them (NVM
//! Express base specification 2.0, NVM command set specification 1.0).
//!
//! # Objects
//!
//! | file | the question it answers |
//! |---|---|
//! | `mod` | what is the device, whatever connection it is on |
//! | `namespace` | which stores does a host see, under which numbers and names |
//! | `usage`, `mishaps` | what do queues count and record for the logs of the controller |
//! | `doorbells` | how far did the host get in its queues |
//! | `vectors` | how is it interrupted |
//! | `completion` | how does it learn what has ended |
//! | `submission` | where are its commands |
//! | `engine`, `serving` | how does a burst of commands become requests, and their ends completions |
//! | `command` | what does a command ask for |
//! | `data`, `bucket` | where are its data, and where do those go that nobody wants |
//! | `immediate`, `queued` | how is it carried out by stores that need no time, and by those that do |
//! | `backends`, `flying`, `steps` | which stores does a queue use, what is in flight, what is left of a long command |
//! | `landing`, `aborts` | what follows when a store has ended a request, and what does the host want to be ended |
//! | `reach` | what does a queue lack, and what is wrong with it |
//! | `remote`, `travel`, `bounce`, `legs` | how is a command carried out whose data are with a client, in what memory, by which transfers |
//! | `tally` | what has a burst moved |
//! | `controller` | what does the host read and write: registers, configuration space, admin commands |
//!
//! [`NvmeDevice`] is what outlives connections: the configuration, the namespaces and the counters. What a connection has is a
//! [`Controller`], which lives on the control thread, and for each submission queue an engine on a worker.
//!
//! # What engines and controller share
//!
//! [`Shared`], read-only but for atomics and for the list of attached namespaces, which has a generation: an engine
//! compares it once per burst and takes the lock of the list only when it has changed.
//!
//! # What it does not implement
//!
//! Metadata and protection information, zoned namespaces, key values, reservations, several controllers of one subsystem,
//! controller memory buffers, formatting, sanitizing, self-tests, firmware updates.

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

mod aborts;
mod admin_bell;
mod backends;
mod bounce;
mod bucket;
mod command;
mod completion;
mod controller;
mod data;
mod doorbells;
mod engine;
mod flying;
pub mod fuzzing;
mod immediate;
mod landing;
mod legs;
mod mishaps;
mod namespace;
mod queued;
mod reach;
mod remote;
mod running;
mod serving;
mod steps;
mod submission;
mod tally;
mod travel;
mod usage;
mod vectors;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use super::{Device, EventFd, QueueNames, QueueStats};
use crate::limit::LogLimit;
use crate::store::StoreError;
use crate::sys::{Interest, Poll};

use bucket::Bucket;

pub use admin_bell::AdminBell;
pub use completion::{CompletionQueue, CompletionSetup, Ended, Posted};
pub use controller::{
    BAR0_LEN, BAR4_LEN, COMMANDS_AT_ONCE, Controller, Host, PENDING_OFFSET, fuzz_controller,
};
pub use doorbells::{Doorbells, Shadow};
pub use engine::SubmissionEngine;
pub use mishaps::{Mishap, Mishaps};
pub use namespace::{
    Attached, MAX_NAMESPACES, Namespace, NamespaceConfig, NamespaceError, Namespaces, derived_id,
};
pub use reach::QueueNews;
pub use submission::SubmissionSetup;
pub use usage::{Usage, Used};
pub use vectors::Vectors;

/// Pairs of I/O queues that a controller may have.
pub const MAX_QUEUES: u16 = 128;
/// Pairs of I/O queues of a controller of which nobody says how many.
pub const DEFAULT_QUEUES: u16 = 8;
/// Entries of an I/O queue, at most.
pub const MAX_ENTRIES: u32 = 4096;
/// Bytes of a serial number.
pub const SERIAL_LEN: usize = 20;

/// What its queues are called in counters.
pub const QUEUE_NAMES: QueueNames =
    QueueNames { queues: &["submissions"], items: "commands", per_second: "IOPS", in_bits: false };

/// How an NVMe controller is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeConfig {
    /// Its name in logs and statistics. The name of the subsystem is derived from it and from the serial number, and hosts refuse
    /// two subsystems of the same name.
    pub name: String,
    /// The namespaces it has from the start.
    pub namespaces: Vec<NamespaceConfig>,
    /// Pairs of I/O queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// What the host reads as its serial number, up to [`SERIAL_LEN`] bytes; otherwise the beginning of its name.
    pub serial: Option<String>,
}

/// A configuration that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum NvmeConfigError {
    /// Too few or too many queues.
    #[error("an NVMe controller has 1 to {MAX_QUEUES} pairs of I/O queues, not {0}")]
    Queues(u16),
    /// A serial number that does not fit.
    #[error("a serial number has 1 to {SERIAL_LEN} bytes of printable ASCII: {0:?}")]
    Serial(String),
    /// A namespace cannot be.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The store of a namespace cannot be had.
    #[error("namespace {nsid}: {source}")]
    Store {
        /// Which.
        nsid: u32,
        /// Why.
        source: StoreError,
    },
    /// The store of a namespace cannot be used by workers.
    #[error("namespace {nsid}: the store cannot be used: {source}")]
    Port {
        /// Which.
        nsid: u32,
        /// Why.
        source: io::Error,
    },
    /// No descriptors left, or no memory.
    #[error("an NVMe controller needs a little memory of its own: {0}; allow more open files (ulimit -n)")]
    Bucket(io::Error),
    /// No descriptors left.
    #[error("an NVMe controller needs an eventfd for each queue: {0}; allow more open files (ulimit -n)")]
    Bell(io::Error),
}

impl NvmeConfig {
    /// Whether such a controller can be, as far as that can be told without its stores.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), NvmeConfigError> {
        if !(1..=MAX_QUEUES).contains(&self.queues) {
            return Err(NvmeConfigError::Queues(self.queues));
        }
        match &self.serial {
            Some(serial)
                if serial.is_empty() || serial.len() > SERIAL_LEN || !serial.bytes().all(printable) =>
            {
                return Err(NvmeConfigError::Serial(serial.clone()));
            }
            _ => {}
        }
        for (index, namespace) in self.namespaces.iter().enumerate() {
            namespace.check()?;
            if self.namespaces.iter().take(index).any(|other| other.nsid == namespace.nsid) {
                return Err(NamespaceError::Taken(namespace.nsid).into());
            }
        }
        Ok(())
    }
}

fn printable(byte: u8) -> bool {
    byte.is_ascii_graphic() || byte == b' '
}

/// What the controller and the engines of a device share.
pub struct Shared {
    /// The device's name in logs.
    pub name: String,
    /// The serial number that hosts read.
    pub serial: String,
    /// What the subsystem is known by: 16 bytes derived from name and serial number.
    pub uuid: [u8; 16],
    /// The namespaces.
    pub namespaces: Namespaces,
    /// The host has not disabled the volatile write cache (feature 06h). Each write reads it once.
    pub write_back: AtomicBool,
    /// The function must not reach memory, since its host has taken that back (the bus initiator bit of the PCI command register).
    paused: AtomicBool,
    /// How often that has ended.
    pauses: AtomicU32,
    /// Takes what hosts do not want.
    bucket: Bucket,
    /// A shutdown has the stores flushed.
    flushing: AtomicBool,
    /// What commands moved, by the identifier of their submission queue; the first, of the admin queue, stays empty.
    usage: Vec<Usage>,
    /// Commands that failed, for the error information log.
    pub mishaps: Mishaps,
}

/// Commands that fail are the host's to cause, where its store is too small.
static FAILURES: LogLimit = LogLimit::new(10, Duration::from_secs(10));

impl Shared {
    fn is_write_through(&self) -> bool {
        !self.write_back.load(Ordering::Relaxed)
    }

    /// A command has failed in its store.
    #[cold]
    fn complain(&self, what: impl std::fmt::Display, errno: Errno) {
        if let Some(left_out) = FAILURES.permit() {
            log::warn!("{}: {what} failed: {errno}{left_out}", self.name);
        }
    }

    /// Where the engine of a submission queue counts.
    pub fn usage(&self, qid: u16) -> Option<&Usage> {
        self.usage.get(usize::from(qid))
    }

    /// What all queues have counted.
    pub fn used(&self) -> Used {
        self.usage.iter().fold(Used::default(), |sum, usage| sum.plus(usage.used()))
    }
}

/// What survives a connection: configuration, namespaces, counters.
pub struct NvmeDevice {
    config: NvmeConfig,
    shared: Arc<Shared>,
    /// Tells when a store may have changed its size.
    watch: Poll,
    /// A connection is the client of the controller.
    occupied: Arc<AtomicBool>,
    queues: Vec<(Arc<EventFd>, Arc<QueueStats>)>,
}

impl NvmeDevice {
    /// A device as configured. The stores are open from now on, as long as their namespaces are there.
    ///
    /// # Errors
    /// What is wrong with the configuration, or with a store.
    pub fn new(config: NvmeConfig) -> Result<Self, NvmeConfigError> {
        config.check()?;
        let namespaces =
            config.namespaces.iter().map(|one| Ok((Namespace::open(&config.name, one)?, one.attached)));
        let namespaces = namespaces.collect::<Result<Vec<_>, NvmeConfigError>>()?;
        Self::with_namespaces(config, namespaces)
    }

    /// The same with namespaces that are there already, and whether they are attached; those of the configuration are left
    /// out.
    ///
    /// # Errors
    /// As [`NvmeDevice::new`].
    pub fn with_namespaces(
        config: NvmeConfig,
        namespaces: Vec<(Namespace, bool)>,
    ) -> Result<Self, NvmeConfigError> {
        config.check()?;
        let queue = |_| Ok((Arc::new(EventFd::new()?), Arc::default()));
        let queues: Vec<_> =
            (0..config.queues).map(queue).collect::<io::Result<_>>().map_err(NvmeConfigError::Bell)?;
        if let Some((bell, _)) = queues.first() {
            // Here it is the operator who hears of it, on a worker it would be the host.
            for (namespace, _) in &namespaces {
                let refused = |source| NvmeConfigError::Port { nsid: namespace.nsid, source };
                namespace.store.port(bell.clone()).map_err(refused)?;
            }
        }
        let watch = Poll::new().map_err(NvmeConfigError::Bell)?;
        for (namespace, _) in &namespaces {
            if let Some(watched) = namespace.store.watched() {
                let key = namespace.nsid.into();
                watch.add(watched, key, Interest::READ).map_err(NvmeConfigError::Bell)?;
            }
        }
        let name = config.name.clone();
        let serial = config.serial.clone().unwrap_or_else(|| {
            name.chars().filter(|one| u8::try_from(*one).is_ok_and(printable)).take(SERIAL_LEN).collect()
        });
        let shared = Arc::new(Shared {
            uuid: derived_id(&[name.as_bytes(), serial.as_bytes()]),
            name,
            serial,
            namespaces: Namespaces::new(namespaces)?,
            write_back: AtomicBool::new(true),
            paused: AtomicBool::new(false),
            pauses: AtomicU32::new(0),
            bucket: Bucket::new().map_err(NvmeConfigError::Bucket)?,
            flushing: AtomicBool::new(false),
            usage: (0..=config.queues).map(|_| Usage::default()).collect(),
            mishaps: Mishaps::default(),
        });
        Ok(Self { config, shared, watch, occupied: Arc::default(), queues })
    }

    /// As it was made.
    pub fn config(&self) -> &NvmeConfig {
        &self.config
    }

    /// What its controller and its engines need.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The counters of an I/O submission queue, by its identifier (from 1 on). They live as long as the device.
    pub fn submission_stats(&self, qid: u16) -> Option<&Arc<QueueStats>> {
        self.queues.get(usize::from(qid.checked_sub(1)?)).map(|(_, stats)| stats)
    }

    /// Makes the caller its client, as long as it holds what it gets; `None` if somebody else is.
    pub fn take_seat(&self) -> Option<Seat> {
        let free = self.occupied.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        free.then(|| Seat(self.occupied.clone()))
    }

    /// What the engine of an I/O submission queue is woken by, by its identifier (from 1 on).
    pub fn bell(&self, qid: u16) -> Option<&Arc<EventFd>> {
        self.queues.get(usize::from(qid.checked_sub(1)?)).map(|(bell, _)| bell)
    }
}

/// The word that its holder is the client of a controller.
#[derive(Debug)]
pub struct Seat(Arc<AtomicBool>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Its queues are the I/O submission queues; their index is one less than their identifier.
impl Device for NvmeDevice {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn queue_count(&self) -> u16 {
        self.config.queues
    }

    fn group(&self, queue: u16) -> u16 {
        queue
    }

    fn gives_memory_to_kernel(&self) -> bool {
        self.shared.namespaces.all().iter().any(|(one, _)| one.store.gives_memory_to_kernel())
    }

    fn holds_pins(&self) -> bool {
        true
    }

    fn watched(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn look(&self) -> bool {
        // Each namespace is looked at: none of them may be left out.
        self.shared.namespaces.all().iter().filter(|(one, _)| one.store.look()).count() > 0
    }

    fn queue_stats(&self, queue: u16) -> Option<Arc<QueueStats>> {
        self.queues.get(usize::from(queue)).map(|(_, stats)| stats.clone())
    }
}

#[cfg(test)]
mod tests;
