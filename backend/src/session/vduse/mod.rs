//! The VDUSE session: what the host's own kernel has said about a device, which one of its drivers uses (virtio-vdpa) or lends
//! to a process (vhost-vdpa).
//!
//! # Objects
//!
//! | file | the question it answers |
//! |---|---|
//! | `kernel` | what is asked of the kernel beside its messages |
//! | `offer` | what a device is to the kernel |
//! | `requests` | which request does what, and who is answered |
//! | `rings` | how rings are set up, started and stopped |
//! | `memory` | what is behind an address |
//! | `bounce` | who supplies the bounce pages of a driver of the host |
//! | `barrier` | which answers wait, and for what |
//! | `records` | where requests in flight are recorded |
//! | [`model`] | what the kernel would do, for tests |
//!
//! There is no connection to lose: the kernel keeps the device, the rings' places and its table while nobody serves them, and
//! whoever opens the device's file next goes on. A session that finds a driver at work asks for all that, starts the rings, and
//! takes again what the log says was in flight.
//!
//! # Release barriers
//!
//! | request | its success says | and waits for |
//! |---|---|---|
//! | `UPDATE_IOTLB` | what the kernel's table does not show any more is out of reach | lanes to leave the bursts in which they could see it, then its pins |
//! | `SET_STATUS` 0 | no ring runs, and no memory of the driver's is in reach | the workers, then as above |
//! | `SUSPEND`, `SET_VQ_READY` 0 | the rings stand still | the workers |
//! | `GET_VQ_STATE` | the ring stood here; it goes on | its worker |
//!
//! Every answer leaves within five seconds, whatever a store does. A `SUSPEND` or `GET_VQ_STATE` fails after three, and the rings
//! go on when what they have in flight has ended: cancelling it would lose it for a driver that takes its rings elsewhere. For
//! the others, after three seconds memory is taken away from the device and its requests are cancelled, and it has one more.
//! What was cancelled is left recorded in the ring's log, and taken again when the ring runs. If something remains even then,
//! the request fails and the device stands still until a reset.
//!
//! # Locks
//!
//! None. A session belongs to the control thread. Workers interrupt the driver by themselves.
//!
//! # What may block
//!
//! The kernel's calls, for as long as they need: none waits for a driver.
//!
//! # What it does not implement
//!
//! A control queue, and with it several pairs of queues, groups and address spaces: the kernel allows none. A driver is not told of
//! a ring that has failed, because the kernel has no words for that.
mod barrier;
mod bounce;
mod error;
mod kernel;
mod memory;
pub mod model;
mod offer;
mod records;
mod requests;
mod rings;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mdev_dma::{FilePolicy, Iova, Perm, Windows};
use mdev_pin::{Access, Change, Ioas, Within};
use mdev_protocol::virtio::feature::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED};
use mdev_protocol::virtio::status::DRIVER_OK;

use crate::device::VirtioDevice;
use crate::limit::LogLimit;
use crate::ring::{QueueState, RingError};
use crate::session::access::access_of;
use crate::session::logs::Logs;
use crate::session::translations::IotlbCounters;
use crate::session::{POLL, Queues, SessionError, TURN};

use barrier::{Barrier, PATIENCE};
use bounce::Bounce;
use error::Refusal;
use memory::Domain;
use rings::Vring;

pub use kernel::Kernel;
pub use offer::{features, space};
pub use records::{Records, RecordsError};

/// The kernel's device. See the [module](self).
pub struct Session {
    conn: u64,
    name: String,
    kernel: Arc<dyn Kernel>,
    device: Arc<dyn VirtioDevice>,
    files: FilePolicy,
    driver: Driver,
    ioas: Ioas,
    access: Access,
    domain: Domain,
    bounce: Bounce,
    translations: Arc<IotlbCounters>,
    vrings: Vec<Vring>,
    /// Where rings record what they have in flight.
    logs: Option<Logs>,
    /// Stops so far, for tokens.
    stops: u32,
    barrier: Option<Barrier>,
    life: Life,
    fault: Option<SessionError>,
    log_limit: LogLimit,
}

/// What the driver has said.
#[derive(Default)]
struct Driver {
    status: u8,
    /// What it has acknowledged, once that is final.
    features: Option<u64>,
    suspended: bool,
    /// Something of it could not be obeyed: nothing runs until a reset.
    failed: bool,
    /// It may have been there before this session, which has seen no reset: where its rings stood nobody knows. A driver that
    /// has suspended the device cannot be told from none.
    inherited: bool,
}

impl Driver {
    /// Whether rings may run.
    fn runs(&self) -> bool {
        self.status & DRIVER_OK != 0 && !self.suspended && !self.failed
    }

    fn is_packed(&self) -> bool {
        self.features.is_some_and(|features| features & VIRTIO_F_RING_PACKED != 0)
    }
}

/// How far the end has come.
enum Life {
    /// Nobody has looked yet whether a driver is there.
    New,
    Open,
    /// Rings are being stopped.
    Stopping,
    /// The device is letting go of the memory.
    Detaching(Change),
    Closed,
}

impl Session {
    /// A session with the kernel about a device. `conn` is its number, which no connection has; `windows` is the daemon's.
    /// `records`: where its rings record what they have in flight, if they do.
    ///
    /// # Errors
    /// The records cannot be used.
    pub fn new(
        conn: u64,
        kernel: Arc<dyn Kernel>,
        device: Arc<dyn VirtioDevice>,
        windows: Arc<Windows>,
        files: FilePolicy,
        records: Option<&Records>,
    ) -> Result<Session, RecordsError> {
        let ioas = Ioas::new(windows.clone());
        let access = access_of(device.clone());
        access.attach(&ioas).map_err(|error| RecordsError::Attach(error.to_string()))?;
        let logs = records.map(|records| records.logs(device.as_ref(), windows)).transpose()?;
        let vrings = (0..device.queue_count()).map(|_| Vring::default()).collect();
        Ok(Session {
            conn,
            name: device.name().to_owned(),
            kernel,
            device,
            // The descriptors come from the kernel itself.
            files: FilePolicy { allow_vduse_domain: true, ..files },
            driver: Driver { inherited: true, ..Driver::default() },
            ioas,
            access,
            domain: Domain::default(),
            bounce: Bounce::default(),
            translations: Arc::default(),
            vrings,
            logs,
            stops: 0,
            barrier: None,
            life: Life::New,
            fault: None,
            log_limit: LogLimit::new(10, Duration::from_secs(10)),
        })
    }

    /// Counts its translations where others count theirs.
    pub fn counted_in(self, translations: Arc<IotlbCounters>) -> Self {
        Self { translations, ..self }
    }

    /// Gives the kernel memory for the bounce pages of its drivers.
    pub fn with_own_bounce(self) -> Self {
        Self { bounce: Bounce::Wanted, ..self }
    }

    fn is_open(&self) -> bool {
        matches!(self.life, Life::New | Life::Open)
    }

    /// Goes on where another process left off, if a driver is at work: only then does the kernel take this interrupt, which does
    /// no harm.
    fn go_on(&mut self) {
        if !matches!(self.life, Life::New) {
            return;
        }
        self.life = Life::Open;
        if self.kernel.interrupt_config().is_err() {
            return;
        }
        let features = self.kernel.driver_features().map_err(Refusal::from);
        let begun = features.and_then(|features| self.acceptable(features)).and_then(|features| {
            log::info!("{}: a driver is at work: goes on where the device was left", self.name);
            self.driver =
                Driver { status: DRIVER_OK, features: Some(features), inherited: true, ..Driver::default() };
            self.begin(None)
        });
        if let Err(refusal) = begun {
            log::error!("{}: cannot go on with the driver that is there: {refusal}", self.name);
            self.driver.failed = true;
        }
    }

    /// Checks what the driver has acknowledged.
    fn acceptable(&self, features: u64) -> Result<u64, Refusal> {
        let unknown = features & !offer::features(self.device.as_ref());
        if unknown != 0 {
            return Err(Refusal::NotOffered(unknown));
        }
        self.device.check_features(features & !offer::OF_TRANSPORT).map_err(Refusal::Device)?;
        // Memory is behind the kernel's table whether or not the driver has said that it knows.
        Ok(features | VIRTIO_F_ACCESS_PLATFORM)
    }

    /// The driver has reset the device, none of whose rings runs.
    fn reset(&mut self) {
        self.driver = Driver::default();
        self.vrings.iter_mut().for_each(Vring::reset);
        if let Some(logs) = &self.logs {
            logs.forget();
        }
        self.device.reset();
    }

    fn advance_close(&mut self) {
        if matches!(self.life, Life::Stopping) {
            if self.vrings.iter().any(Vring::is_stopping) {
                return;
            }
            self.life = match self.access.begin_detach(PATIENCE) {
                Ok(change) => Life::Detaching(change),
                Err(_) => Life::Closed,
            };
        }
        let Life::Detaching(change) = &mut self.life else { return };
        let Some(detached) = change.poll() else { return };
        self.life = Life::Closed;
        self.logs = None;
        // What the device has not let go of by now is taken away from it.
        let unmapped = self.ioas.unmap_all(Within::or_revoke(Duration::ZERO)).is_ok();
        let released = self.access.close(Duration::ZERO).is_ok() && unmapped;
        if let Err(error) = detached {
            log::warn!("{}: the device held on to its memory at its end: {error}", self.name);
        }
        log::debug!("{}: memory released: {released}", self.name);
    }
}

impl super::Session for Session {
    fn fd(&self) -> BorrowedFd<'_> {
        self.kernel.as_fd()
    }

    fn wants_read(&self) -> bool {
        self.fault.is_some() || (self.is_open() && self.barrier.is_none())
    }

    /// A response is never too much for the kernel.
    fn wants_write(&self) -> bool {
        false
    }

    fn readable(&mut self, queues: &mut dyn Queues) -> Result<(), SessionError> {
        self.go_on();
        if !self.wants_read() && self.is_broken() {
            return Err(SessionError::Broken);
        }
        for _ in 0..TURN {
            if let Some(fault) = self.fault.take() {
                return Err(fault);
            }
            if !self.wants_read() {
                break;
            }
            let Some(request) = self.take()? else { break };
            self.serve(queues, request);
            self.advance(queues);
        }
        self.fault.take().map_or(Ok(()), Err)
    }

    fn writable(&mut self, _queues: &mut dyn Queues) -> Result<(), SessionError> {
        Ok(())
    }

    fn tick(&mut self, queues: &mut dyn Queues, now: Instant) -> Option<Instant> {
        self.go_on();
        self.advance(queues);
        self.advance_close();
        match &self.life {
            Life::New | Life::Open => match &self.barrier {
                Some(barrier) => barrier.due(now),
                None => self.announce(now),
            },
            Life::Detaching(_) => now.checked_add(POLL),
            Life::Stopping | Life::Closed => None,
        }
    }

    fn queue_stopped(&mut self, queues: &mut dyn Queues, token: u64, state: QueueState) {
        self.ring_stopped(token, state);
        self.advance(queues);
        // A barrier may have ended without waiting for it.
        self.device_free(queues);
        self.advance_close();
    }

    fn queue_failed(&mut self, index: u16, _error: &RingError) {
        self.ring_failed(index);
    }

    fn queue_missed(&mut self, queues: &mut dyn Queues, index: u16, iova: Iova, perm: Perm) {
        self.missed(queues, index, iova, perm);
    }

    fn device_free(&mut self, queues: &mut dyn Queues) {
        if self.is_open() && self.barrier.is_none() {
            self.start_rings(queues);
        }
    }

    /// What is in flight is cancelled. With a log it is left to whoever serves the device next.
    fn close(&mut self, queues: &mut dyn Queues) {
        if !self.is_open() {
            return;
        }
        self.life = Life::Stopping;
        self.fault = None;
        self.barrier = None;
        self.cancel_rings(queues);
        self.advance_close();
    }

    fn is_closed(&self) -> bool {
        matches!(self.life, Life::Closed)
    }

    fn config_changed(&mut self, _queues: &mut dyn Queues) {
        if !self.is_open() {
            return;
        }
        let told = offer::space(self.device.as_ref())
            .map_err(Refusal::Device)
            .and_then(|space| Ok(self.kernel.set_config(0, &space)?));
        if let Err(refusal) = told {
            log::warn!("{}: the kernel does not take the new configuration: {refusal}", self.name);
        } else if self.driver.status & DRIVER_OK != 0 {
            // A suspended device says nothing; its driver reads the configuration when it goes on.
            let _ = self.kernel.interrupt_config();
        }
    }
}
