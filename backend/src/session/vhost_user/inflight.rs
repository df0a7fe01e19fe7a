//! The buffer in which requests in flight are recorded, one log for each ring: made for the front-end, which keeps it
//! (`GET_INFLIGHT_FD`), and taken from it (`SET_INFLIGHT_FD`), from this connection, an earlier one or another host.
//!
//! The file is checked as files of guest memory are, and mapped like them, so that a front-end that truncates it does
//! no harm but to its own rings. What is in it is nobody's word: rings check it when they start ([`crate::ring::RingLog`]).
//!
//! What a ring with a log does not finish is not failed but left recorded: when the connection ends, and, where
//! `GET_VRING_BASE_INFLIGHT` was negotiated, when the ring is stopped. Whoever serves the ring next, on whatever connection
//! or host the front-end sends the buffer to, takes it again. `RESET_DEVICE` empties the logs, `SET_OWNER` forgets the buffer.
//! Both features are offered for devices that keep requests in flight, and for no others.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use mdev_dma::{BackingFile, FileError, FileExtent, FilePolicy, Iova, IovaRange, Windows};
use mdev_pin::ResolveError;
use mdev_protocol::frame::Fds;
use mdev_protocol::vhost_user::{FrontendReply, Inflight, ProtocolFeatures};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use thiserror::Error;

use super::error::Refusal;
use super::reply::Outcome;
use super::{Queues, Session};
use crate::ring::RingLog;
use crate::session::logs::{Logs, LogsError};

/// What is wrong with a buffer for requests in flight.
#[derive(Debug, Error)]
pub(super) enum InflightError {
    #[error("{told} queues are wanted, the device has {max}")]
    Queues { told: u16, max: u16 },
    #[error("queues of {told} descriptors are wanted, the device has queues of 1 to {max}")]
    QueueSize { told: u16, max: u16 },
    #[error("{told:#x} bytes have no room for the logs of its queues, which need {needed:#x}")]
    TooSmall { told: u64, needed: u64 },
    #[error("the logs of its queues do not begin at multiples of 8 bytes")]
    Misaligned,
    #[error(
        "it ends at byte {end:#x} of its file, which has only {file:#x}: make the file long enough first"
    )]
    BeyondFile { end: u64, file: u64 },
    #[error("offset and size of the buffer wrap")]
    Wraps,
    #[error(transparent)]
    File(#[from] FileError),
    #[error("no buffer can be made: {0}")]
    Make(io::Error),
    #[error("its file does not tell its length: {0}")]
    Length(io::Error),
    #[error(transparent)]
    Logs(#[from] LogsError),
}

/// The buffer that the front-end has handed over.
fn open(
    told: &Inflight,
    needed: u64,
    fd: OwnedFd,
    policy: &FilePolicy,
    windows: Arc<Windows>,
) -> Result<Logs, InflightError> {
    let Inflight { mmap_size, mmap_offset, num_queues, queue_size } = *told;
    let too_small = InflightError::TooSmall { told: mmap_size, needed };
    let Some(stride) = mmap_size.checked_div(num_queues.into()) else { return Err(too_small) };
    if mmap_size < needed || mmap_size == 0 {
        return Err(too_small);
    }
    if !mmap_offset.is_multiple_of(8) || num_queues > 1 && !stride.is_multiple_of(8) {
        return Err(InflightError::Misaligned);
    }
    let end = mmap_offset.checked_add(mmap_size).ok_or(InflightError::Wraps)?;
    let range = IovaRange::with_len(Iova(0), mmap_size).map_err(|_| InflightError::Wraps)?;
    let file = BackingFile::new(fd, policy)?;
    let length = file.size().map_err(InflightError::Length)?;
    if end > length {
        return Err(InflightError::BeyondFile { end, file: length });
    }
    let extent = FileExtent { file, offset: mmap_offset };
    Ok(Logs::new(extent, range, num_queues, stride, queue_size, windows)?)
}

impl Session {
    pub(super) fn get_inflight_fd(&self, told: Inflight) -> Result<Outcome, Refusal> {
        let mmap_size = self.needed(&told)?;
        let fd = sealed(mmap_size).map_err(InflightError::Make)?;
        let inflight = Inflight { mmap_size, mmap_offset: 0, ..told };
        Ok(Outcome::ReplyWith(FrontendReply::GetInflightFd(inflight), fd))
    }

    /// What rings record into from their next start on.
    pub(super) fn set_inflight_fd(&mut self, told: Inflight, fds: Fds) -> Result<Outcome, Refusal> {
        if let Some(running) = self.vrings.iter().position(|vring| !vring.is_idle()) {
            return Err(Refusal::RingRuns(running as u32));
        }
        let fd = fds.into_iter().next().ok_or(Refusal::NoFd)?;
        let needed = self.needed(&told)?;
        let windows = Arc::clone(self.ioas.windows());
        self.logs = Some(open(&told, needed, fd, &self.options.files, windows)?);
        Ok(Outcome::Done)
    }

    /// Bytes of the logs of so many queues.
    fn needed(&self, told: &Inflight) -> Result<u64, InflightError> {
        let (queues, size) = (self.device.queue_count(), self.device.max_ring_size());
        if !(1..=queues).contains(&told.num_queues) {
            return Err(InflightError::Queues { told: told.num_queues, max: queues });
        }
        if !(1..=size).contains(&told.queue_size) {
            return Err(InflightError::QueueSize { told: told.queue_size, max: size });
        }
        let log = RingLog::len_of(self.negotiated.is_packed(), told.queue_size) as u64;
        Ok(log.saturating_mul(told.num_queues.into()))
    }

    /// The log of a ring that starts, if it is to have one.
    ///
    /// # Errors
    /// The memory was lost.
    pub(super) fn log_of(&self, index: u16) -> Result<Option<RingLog>, ResolveError> {
        match &self.logs {
            Some(logs) => logs.of(index, self.negotiated.is_packed()),
            None => Ok(None),
        }
    }

    /// The device is reset: nothing of what is recorded is to be done any more.
    pub(super) fn forget_logs(&self) {
        if let Some(logs) = &self.logs {
            logs.forget();
        }
    }

    /// Where the front-end wants no ring to be waited for, a ring that is being stopped leaves what it has in flight to its
    /// log, as far as that can be cancelled.
    pub(super) fn suspend(&self, queues: &mut dyn Queues, index: u16) {
        let suspends = self.negotiated.protocol.contains(ProtocolFeatures::GET_VRING_BASE_INFLIGHT);
        let vring = self.vrings.get(usize::from(index));
        if suspends && vring.is_some_and(|vring| vring.is_stopping() && vring.keeps_log) {
            queues.cancel(self.conn, index);
        }
    }
}

/// A file of so many zeros whose size nobody can change.
fn sealed(size: u64) -> io::Result<OwnedFd> {
    let fd = memfd_create("vhost-inflight", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, size)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}
