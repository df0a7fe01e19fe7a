//! The virtio block device: queues of requests with a store behind them (virtio 1.3, 5.2).
//!
//! # Objects
//!
//! | file | the question it answers |
//! |---|---|
//! | `mod` | what is the device, whatever connection it is on |
//! | `config` | what does its configuration space say |
//! | `request` | what does a chain ask for |
//! | `engine` | how does a burst of chains become requests, and their ends used chains |
//! | `immediate`, `queued` | the same for stores that need no time, and for those that do |
//! | `gathered` | which chains does a burst have |
//! | `flying` | which chains are in flight |
//!
//! [`BlkDevice`] is the configuration, the store and the counters; each queue is a group of its own with an engine of its
//! own, and each engine has its own end at the store ([`crate::store::Port`]).
//!
//! # The life of a request
//!
//! A chain is read and checked in the burst in which it is found. A store that needs no time serves it there and then. For the others its memory is
//! pinned, the byte for its status too, and the store has the request before the burst ends: so a table change that has waited for the bursts finds
//! every pin. When the store has ended it, the status is written and the chain is used, in whatever order requests end. At most
//! [`MAX_IN_FLIGHT`](crate::store::MAX_IN_FLIGHT) requests of a queue are in flight; what is behind them waits in the ring.
//!
//! # What fails alone
//!
//! A request that makes no sense, reaches beyond the end, or whose store fails ends with a status of its own, counted by cause
//! ([`DropCause`](super::DropCause)) and logged at a bounded rate. So does one whose data lie where the guest has no memory: not before the queue
//! has waited for that memory for a while, since front-ends move it in two steps. Only a chain without a place for a header or a status, or a malformed ring, fails its queue.
//!
//! # Stops
//!
//! A queue that is stopped takes nothing more and is given back when none of its requests is in flight. Where nobody waits for
//! them they are cancelled: as failures, or, if the ring keeps a log, they stay in it for whoever goes on.
//!
//! # Locks, blocking
//!
//! None of its own; see the stores. Only the switch of the cache is shared between threads, as an atomic.
//!
//! # What it does not implement
//!
//! Secure erase, lifetime, zoned devices, legacy drivers, VIRTIO_F_IN_ORDER: requests end out of order.

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

mod config;
mod engine;
mod flying;
pub mod fuzzing;
mod gathered;
mod immediate;
mod queued;
mod request;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mdev_protocol::virtio::blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_LEN,
};
use mdev_protocol::virtio::feature::{
    VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use rustix::io::Errno;

use super::{Device, Engine, EventFd, QueueNames, QueueStats, VirtioDevice};
use crate::limit::LogLimit;
use crate::ring::MAX_RING_SIZE;
use crate::store::{Store, StoreError, StoreKind};
use engine::BlkEngine;

/// Queues a device may have: what the messages of vhost-user that bring descriptors can name.
pub const MAX_QUEUES: u16 = 256;

/// What its queues are called in counters.
pub const QUEUE_NAMES: QueueNames =
    QueueNames { queues: &["requests"], items: "requests", per_second: "IOPS", in_bits: false };

/// How a block device is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkConfig {
    /// Its name in logs and statistics.
    pub name: String,
    /// What is behind it.
    pub store: StoreKind,
    /// Queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// The guest may only read, whatever the store can do.
    pub read_only: bool,
    /// What the guest reads as its serial number, up to 20 bytes; otherwise the beginning of its name.
    pub serial: Option<String>,
}

/// A configuration that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum BlkConfigError {
    /// Too few or too many queues.
    #[error("a block device has 1 to {MAX_QUEUES} queues, not {0}")]
    Queues(u16),
    /// A serial number that does not fit.
    #[error("a serial number has up to {VIRTIO_BLK_ID_LEN} bytes of printable ASCII: {0:?}")]
    Serial(String),
    /// The store cannot be had.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store cannot be used by workers.
    #[error("the store cannot be used: {0}")]
    Port(io::Error),
    /// No descriptors left.
    #[error("a block device needs an eventfd for each queue: {0}; allow more open files (ulimit -n)")]
    Bell(io::Error),
}

impl BlkConfig {
    /// Whether such a device can be, as far as that can be told without its store.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), BlkConfigError> {
        if !(1..=MAX_QUEUES).contains(&self.queues) {
            return Err(BlkConfigError::Queues(self.queues));
        }
        match &self.serial {
            Some(serial) if serial.len() > VIRTIO_BLK_ID_LEN || !serial.bytes().all(printable) => {
                Err(BlkConfigError::Serial(serial.clone()))
            }
            _ => Ok(()),
        }
    }
}

fn printable(byte: u8) -> bool {
    byte.is_ascii_graphic() || byte == b' '
}

/// A virtio block device.
pub struct BlkDevice {
    config: BlkConfig,
    shared: Arc<Shared>,
    queues: Vec<(Arc<EventFd>, Arc<QueueStats>)>,
}

/// What a device's engines share.
struct Shared {
    store: Store,
    read_only: bool,
    /// The driver has not switched to write-through. Each request reads it once; the switch comes before the reply
    /// to the message that turns it.
    write_back: AtomicBool,
    id: [u8; VIRTIO_BLK_ID_LEN],
    name: String,
}

/// Requests that fail are the guest's to cause, where its store is too small or its front-end lies.
static FAILURES: LogLimit = LogLimit::new(10, Duration::from_secs(10));

impl Shared {
    /// A request has failed in the store.
    #[cold]
    fn complain(&self, what: impl std::fmt::Display, errno: Errno) {
        if let Some(left_out) = FAILURES.permit() {
            log::warn!("{}: {what} failed: {errno}{left_out}", self.name);
        }
    }
}

impl BlkDevice {
    /// A device as configured. Its store is open from now on, as long as it is.
    ///
    /// # Errors
    /// What is wrong with the configuration, or with its store.
    pub fn new(config: BlkConfig) -> Result<Self, BlkConfigError> {
        config.check()?;
        let store = Store::open(&config.store)?;
        Self::on(config, store)
    }

    /// A device on a store that is there already.
    ///
    /// # Errors
    /// As [`BlkDevice::new`].
    pub fn on(config: BlkConfig, store: Store) -> Result<Self, BlkConfigError> {
        config.check()?;
        let queue = |_| Ok((Arc::new(EventFd::new()?), Arc::default()));
        let queues: Vec<_> =
            (0..config.queues).map(queue).collect::<io::Result<_>>().map_err(BlkConfigError::Bell)?;
        if let Some((bell, _)) = queues.first() {
            // Here it is the operator who hears of it, on a worker it would be the guest.
            store.port(bell.clone()).map_err(BlkConfigError::Port)?;
        }
        let mut id = [0; VIRTIO_BLK_ID_LEN];
        let name = config.serial.as_deref().unwrap_or(&config.name);
        id.iter_mut()
            .zip(name.bytes().filter(|&byte| printable(byte)))
            .for_each(|(place, byte)| *place = byte);
        let read_only = config.read_only || store.limits().read_only;
        let (write_back, name) = (AtomicBool::new(true), config.name.clone());
        let shared = Arc::new(Shared { store, read_only, write_back, id, name });
        Ok(Self { config, shared, queues })
    }

    /// What is behind it.
    pub fn store(&self) -> &Store {
        &self.shared.store
    }
}

impl Device for BlkDevice {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn queue_count(&self) -> u16 {
        self.config.queues
    }

    fn gives_memory_to_kernel(&self) -> bool {
        self.shared.store.gives_memory_to_kernel()
    }

    fn holds_pins(&self) -> bool {
        self.shared.store.is_queued()
    }

    fn group(&self, queue: u16) -> u16 {
        queue
    }

    fn watched(&self) -> Option<BorrowedFd<'_>> {
        self.shared.store.watched()
    }

    fn look(&self) -> bool {
        self.shared.store.look()
    }

    fn queue_stats(&self, queue: u16) -> Option<Arc<QueueStats>> {
        self.queues.get(usize::from(queue)).map(|(_, stats)| stats.clone())
    }
}

impl VirtioDevice for BlkDevice {
    fn device_id(&self) -> u32 {
        mdev_protocol::virtio::blk::DEVICE_ID
    }

    fn tracks_in_flight(&self) -> bool {
        true
    }

    fn max_ring_size(&self) -> u16 {
        MAX_RING_SIZE
    }

    fn features(&self) -> u64 {
        let limits = self.shared.store.limits();
        let mut features = VIRTIO_F_VERSION_1
            | VIRTIO_RING_F_INDIRECT_DESC
            | VIRTIO_RING_F_EVENT_IDX
            | VIRTIO_F_RING_PACKED
            | VIRTIO_BLK_F_SIZE_MAX
            | VIRTIO_BLK_F_SEG_MAX
            | VIRTIO_BLK_F_BLK_SIZE
            | VIRTIO_BLK_F_TOPOLOGY
            | VIRTIO_BLK_F_FLUSH
            | VIRTIO_BLK_F_CONFIG_WCE;
        if self.config.queues > 1 {
            features |= VIRTIO_BLK_F_MQ;
        }
        if self.shared.read_only {
            return features | VIRTIO_BLK_F_RO;
        }
        if limits.max_discard > 0 {
            features |= VIRTIO_BLK_F_DISCARD;
        }
        if limits.max_zeroes > 0 {
            features |= VIRTIO_BLK_F_WRITE_ZEROES;
        }
        features
    }

    fn check_features(&self, acked: u64) -> Result<(), String> {
        if acked & VIRTIO_F_VERSION_1 == 0 {
            return Err(
                "the driver did not accept VIRTIO_F_VERSION_1: legacy drivers are not served (with QEMU, \
                 disable-legacy=on on the device shows whether the guest has a modern one)"
                    .to_owned(),
            );
        }
        Ok(())
    }

    fn config_len(&self) -> usize {
        config::LEN
    }

    fn config(&self, offset: u32, out: &mut [u8]) -> Result<(), String> {
        let Shared { store, write_back, .. } = &*self.shared;
        let space = config::space(store, self.config.queues, write_back.load(Ordering::Relaxed));
        config::read(&space, offset, out)
    }

    fn set_config(&self, offset: u32, data: &[u8]) -> Result<(), String> {
        let write_back = config::written(offset, data)?;
        self.shared.write_back.store(write_back, Ordering::Relaxed);
        Ok(())
    }

    fn engine(&self, group: u16, features: u64) -> Box<dyn Engine> {
        let bell = self.queues.get(usize::from(group)).map(|(bell, _)| bell.clone());
        Box::new(BlkEngine::new(self.shared.clone(), bell, features))
    }

    fn set_mtu(&self, _mtu: u16) -> Result<(), String> {
        Err("a block device has no MTU".to_owned())
    }

    fn rarp(&self, _mac: [u8; 6]) {}

    fn reset(&self) {
        self.shared.write_back.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
