//! The vhost-user session: what one front-end, on one connection, has said about its device.
//!
//! # Objects
//!
//! | file | the question it answers |
//! |---|---|
//! | `dispatch` | which message does what |
//! | `features` | features, ownership, status and reset |
//! | `table`, `memory` | which memory is there |
//! | `prefault` | who populates it |
//! | `rings`, `vring` | how rings are described, started and stopped |
//! | `iommu`, `iotlb` | what the front-end has translated, behind an IOMMU |
//! | `misses` | which translations are asked for, and when to give up |
//! | `config` | configuration space and the back-end channel |
//! | `inband` | kicks, calls and failures as messages |
//! | `inflight` | where requests in flight are recorded |
//! | `barrier` | which replies wait, and for what |
//! | `reply` | who is answered, and what a refusal looks like |
//!
//! A session owns its address space (`Ioas`), the device's attachment to it (`Access`), the table of regions, the
//! places of the rings and the descriptors for kick, call and err. They end with the connection. The device owns its
//! configuration; it outlives every connection and any number of them may be open: what arrives on one never touches
//! the rings of another. Rings that may not start yet because those of another connection run are remembered, and
//! started by [`device_free`](super::Session::device_free).
//!
//! # Release barriers
//!
//! | message | its success reply says | and waits for |
//! |---|---|---|
//! | `REM_MEM_REG`, `SET_MEM_TABLE`, `ADD_MEM_REG` | what is not in the table is out of reach | lanes to leave the bursts in which they could see it, then its pins; 30 s |
//! | `IOTLB_MSG` that invalidates or changes | what was translated is out of reach | as above |
//! | `GET_VRING_BASE` | every request of the ring is finished, or recorded (`inflight`); the base is final | the worker, as long as the I/O takes |
//! | `RESET_DEVICE`, `SET_STATUS` 0 | no ring of this connection runs | all its workers; 30 s |
//! | `SET_OWNER` | nothing of the session before is left | all its workers, then its whole memory; 30 s each |
//!
//! From the moment a barrier of the first or last row is answered nothing will touch that guest memory any more: no
//! table shows it, no burst that could have seen an older table reaches it, and no pin does.
//!
//! A barrier is kept as a value; while there is one, no further message of that connection is read (front-ends wait
//! for the reply anyway), and the end of the connection is noticed all the same, by its hang-up. Memory that the device
//! has not let go of at the deadline is taken away from it ([`mdev_pin::Past::Revoke`]), and that is success too. Where that
//! cannot be, because the kernel may be at work on it or because another connection has the same pages, and for rings,
//! the rings stop, the device cancels what it has in flight and asks for a reset, and gets one more second. Only if something
//! remains then, the message is answered with an error, and a line in the log says that the front-end may take no notice
//! of that.
//!
//! # Behind an IOMMU
//!
//! While `VIRTIO_F_ACCESS_PLATFORM` is acknowledged the address space shows translations instead of regions, and rings
//! keep the guest's addresses. Regions are what translations are derived from. A ring starts at once; a queue that lacks a
//! translation is parked, says so, and the session asks for it: no reply ever depends on an update. The
//! pages of a ring's part may be translated to any places: the address space is told to keep the parts of rings that run in
//! one piece. All translations are forgotten when no ring is started any more, because front-ends then stop telling which are void.
//!
//! # Locks
//!
//! None. A session belongs to the control thread.
//!
//! # What never fails
//!
//! A message that cannot be obeyed costs nothing but itself: it is answered as a refusal and logged, at a bounded
//! rate. Only a stream that has lost its frame, or a socket that fails, ends the connection. A front-end that does not
//! read its replies is not read from.
//!
//! # What it does not implement
//!
//! Dirty logging, postcopy, device state transfer; none of them is offered. The reset of a single ring is its
//! stop and its start, and is offered where the operator says so ([`SessionOptions::ring_reset`]). Of the requests of the back-end channel only misses ask for replies; access failures are not
//! told there, as no front-end listens to them.
mod barrier;
mod config;
mod dispatch;
mod error;
mod features;
mod inband;
mod inflight;
mod iommu;
mod iotlb;
mod memory;
mod misses;
mod prefault;
mod reply;
mod rings;
mod table;
mod vring;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mdev_dma::{Iova, Perm, Segment, Windows};
use mdev_pin::{Access, Change, Ioas, Within};
use mdev_protocol::frame::{Connection, Received};
use mdev_protocol::vhost_user::{BackendReply, FrontendMessage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};

use crate::device::VirtioDevice;
use crate::limit::LogLimit;
use crate::ring::{QueueState, RingError};
use crate::session::access::access_of;
use crate::session::logs::Logs;
use crate::session::translations::IotlbCounters;
use crate::session::{POLL, Queues, SessionError, SessionOptions, StartError, TURN};

use barrier::Barrier;
use features::Negotiated;
use inband::InBand;
use iommu::Iommu;
use memory::Regions;
use prefault::Prefault;
use reply::Asker;
use vring::{Run, Vring};

pub use features::{OFFERED as OFFERED_PROTOCOL_FEATURES, offered as offered_protocol_features};
pub use iotlb::MAX_ENTRIES as MAX_IOTLB_ENTRIES;
pub use memory::{MAX_SLOTS, MemoryError};

/// One connection of a front-end. See the [module](self).
pub struct Session {
    conn: u64,
    name: String,
    link: Connection<FrontendMessage>,
    /// Where requests to the front-end go.
    channel: Option<Connection<BackendReply>>,
    /// What is told by messages instead of eventfds.
    in_band: Option<InBand>,
    /// The configuration has changed and the front-end has not been told.
    change_unsaid: bool,
    device: Arc<dyn VirtioDevice>,
    options: SessionOptions,
    negotiated: Negotiated,
    /// The device status that the front-end has set.
    status: u8,
    /// The device as a whole is in trouble, beside what single rings know.
    needs_reset: bool,
    regions: Regions,
    prefault: Option<Prefault>,
    ioas: Ioas,
    access: Access,
    /// The device is behind an IOMMU: `ioas` shows what was translated.
    iommu: Option<Iommu>,
    translations: Arc<IotlbCounters>,
    vrings: Vec<Vring>,
    /// Where rings record what they have in flight.
    logs: Option<Logs>,
    /// Stops so far, for tokens.
    stops: u32,
    barrier: Option<Barrier>,
    life: Life,
    /// Why the connection is to be closed, if that came up where nobody could be told.
    fault: Option<SessionError>,
    log_limit: LogLimit,
}

/// How far the end has come.
enum Life {
    Open,
    /// Rings are being stopped.
    Stopping,
    /// The device is letting go of the memory.
    Detaching(Change),
    Closed,
}

impl Session {
    /// A session on a connection that was just made, with the usual options.
    ///
    /// `conn` is the connection's number, which no other has. `windows` is the daemon's.
    ///
    /// # Errors
    /// None that a fresh address space gives.
    pub fn new(
        conn: u64,
        socket: impl Into<OwnedFd>,
        device: Arc<dyn VirtioDevice>,
        windows: Arc<Windows>,
    ) -> io::Result<Session> {
        Self::with_options(conn, socket, device, windows, SessionOptions::default())
    }

    /// [`Session::new`] with other options.
    ///
    /// # Errors
    /// As there.
    pub fn with_options(
        conn: u64,
        socket: impl Into<OwnedFd>,
        device: Arc<dyn VirtioDevice>,
        windows: Arc<Windows>,
        options: SessionOptions,
    ) -> io::Result<Session> {
        let name = format!("{}: connection {conn}", device.name());
        let prefault = options.prefault.then(|| Prefault::start(windows.clone(), name)).transpose()?;
        let ioas = Ioas::new(windows);
        let access = access_of(device.clone());
        access.attach(&ioas).map_err(io::Error::other)?;
        let vrings = (0..device.queue_count()).map(|_| Vring::default()).collect();
        Ok(Session {
            conn,
            name: device.name().to_owned(),
            link: Connection::new(socket),
            channel: None,
            in_band: None,
            change_unsaid: false,
            device,
            options,
            negotiated: Negotiated::default(),
            status: 0,
            needs_reset: false,
            regions: Regions::default(),
            prefault,
            ioas,
            access,
            iommu: None,
            translations: Arc::default(),
            vrings,
            logs: None,
            stops: 0,
            barrier: None,
            life: Life::Open,
            fault: None,
            log_limit: LogLimit::new(10, Duration::from_secs(10)),
        })
    }

    /// Counts its translations where others count theirs.
    pub fn counted_in(self, translations: Arc<IotlbCounters>) -> Self {
        Self { translations, ..self }
    }
}

impl super::Session for Session {
    fn fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    fn wants_read(&self) -> bool {
        self.fault.is_some() || (self.is_open() && self.barrier.is_none() && self.link.pending_output() == 0)
    }

    fn wants_write(&self) -> bool {
        self.is_open() && self.link.pending_output() > 0
    }

    fn readable(&mut self, queues: &mut dyn Queues) -> Result<(), SessionError> {
        if !self.wants_read() && self.has_hung_up() {
            return Err(SessionError::Closed);
        }
        for _ in 0..TURN {
            if let Some(fault) = self.fault.take() {
                return Err(fault);
            }
            if !self.wants_read() {
                break;
            }
            match self.link.receive()? {
                Received::Message(frame) => self.serve(queues, frame),
                Received::Rejected { header, error } => {
                    self.conclude(Asker::new(header, None), Err(error.into()));
                }
                Received::WouldBlock => break,
                Received::Closed => return Err(SessionError::Closed),
            }
        }
        self.fault.take().map_or(Ok(()), Err)
    }

    fn writable(&mut self, _queues: &mut dyn Queues) -> Result<(), SessionError> {
        self.link.flush()?;
        Ok(())
    }

    fn tick(&mut self, queues: &mut dyn Queues, now: Instant) -> Option<Instant> {
        self.advance(queues);
        self.advance_close();
        match &self.life {
            Life::Open => {
                let answers = self.look_for_answers(queues, now);
                let barrier = self.barrier.as_ref().and_then(|barrier| barrier.due(now));
                answers.into_iter().chain(barrier).min()
            }
            Life::Detaching(_) => now.checked_add(POLL),
            Life::Stopping | Life::Closed => None,
        }
    }

    fn queue_stopped(&mut self, queues: &mut dyn Queues, token: u64, state: QueueState) {
        self.ring_stopped(queues, token, state);
        self.advance(queues);
        self.advance_close();
    }

    fn queue_failed(&mut self, index: u16, error: &RingError) {
        let Some(vring) = self.vrings.get_mut(usize::from(index)) else { return };
        if vring.run == Run::Running {
            vring.failed = true;
            if let Some(iommu) = &mut self.iommu {
                iommu.misses.forget(index);
            }
            log::debug!("{}: connection {}: ring {index} asks for a reset: {error}", self.name, self.conn);
            self.say_failure(index);
        }
    }

    fn device_free(&mut self, queues: &mut dyn Queues) {
        if self.is_open() {
            self.start_rings(queues);
        }
    }

    fn close(&mut self, queues: &mut dyn Queues) {
        if !self.is_open() {
            return;
        }
        self.life = Life::Stopping;
        self.fault = None;
        self.barrier = None;
        self.channel = None;
        self.in_band = None;
        let _ = shutdown(&self.link, Shutdown::Both);
        self.cancel_rings(queues);
        self.advance_close();
    }

    fn is_closed(&self) -> bool {
        matches!(self.life, Life::Closed)
    }

    fn config_changed(&mut self, _queues: &mut dyn Queues) {
        self.configuration_changed();
    }

    fn queue_missed(&mut self, queues: &mut dyn Queues, index: u16, iova: Iova, perm: Perm) {
        self.translation_missed(queues, index, iova, perm);
    }

    fn notices(&self) -> Option<BorrowedFd<'_>> {
        self.in_band.as_ref().map(|in_band| in_band.fd())
    }

    fn say_notices(&mut self, _queues: &mut dyn Queues) {
        self.say_in_band();
    }

    fn leaves_behind(&self) -> Vec<Segment> {
        self.stays_mapped()
    }
}

impl Session {
    fn is_open(&self) -> bool {
        matches!(self.life, Life::Open)
    }

    fn advance_close(&mut self) {
        if matches!(self.life, Life::Stopping) {
            if self.vrings.iter().any(|vring| matches!(vring.run, Run::Stopping { .. })) {
                return;
            }
            self.life = match self.access.begin_detach(self.options.barrier) {
                Ok(change) => Life::Detaching(change),
                Err(_) => Life::Closed,
            };
        }
        let Life::Detaching(change) = &mut self.life else { return };
        let Some(detached) = change.poll() else { return };
        self.life = Life::Closed;
        self.vrings.clear();
        self.logs = None;
        self.regions = Regions::default();
        self.iommu = None;
        // What the device has not let go of by now is taken away from it.
        let unmapped = self.ioas.replace_table(Vec::new(), Within::or_revoke(Duration::ZERO)).is_ok();
        let released = self.access.close(Duration::ZERO).is_ok() && unmapped;
        match detached {
            Err(error) if !unmapped => log::error!(
                "{}: connection {} is closed, but the device holds on to its memory: {error}",
                self.name,
                self.conn
            ),
            Err(_) => log::warn!(
                "{}: connection {} is closed; the device did not let go of its memory, which was taken away from it",
                self.name,
                self.conn
            ),
            Ok(_) => {}
        }
        log::debug!("{}: connection {}: memory released: {released}", self.name, self.conn);
    }

    /// Sends a reply. What goes wrong ends the connection at its next turn.
    fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        if let Err(error) = self.link.send(bytes, fds) {
            self.fault = Some(error.into());
            let _ = shutdown(&self.link, Shutdown::Both);
        }
    }

    fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.link, PollFlags::RDHUP)];
        let over = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        ready.is_ok() && fds.iter().any(|fd| fd.revents().intersects(over))
    }
}
