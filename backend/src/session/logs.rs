//! A buffer of logs in a file, in which rings record what they have in flight: one log beside the other.

use std::sync::Arc;

use mdev_dma::{Area, FileExtent, Iova, IovaRange, Perm, Windows};
use mdev_pin::{Access, AccessError, IgnoreUnmap, Ioas, IoasError, ResolveError};
use thiserror::Error;

use crate::ring::RingLog;

/// Why a buffer cannot be used.
#[derive(Debug, Error)]
#[error(transparent)]
pub(super) enum LogsError {
    /// Its file cannot be mapped.
    Ioas(#[from] IoasError),
    /// It cannot be reached.
    Access(#[from] AccessError),
}

/// A buffer for the logs of some rings.
pub(super) struct Logs {
    /// In a space of their own, which nobody changes; named by their offset in the buffer.
    access: Access,
    /// How many rings it has room for.
    rings: u16,
    /// From one ring's log to the next, in bytes.
    stride: u64,
    /// Descriptors that a ring may have.
    entries: u16,
}

impl Logs {
    /// The buffer that starts there and has the length of `range`, which starts at 0: for so many rings, of up to `entries` descriptors each. The file has them.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub(super) fn new(
        extent: FileExtent,
        range: IovaRange,
        rings: u16,
        stride: u64,
        entries: u16,
        windows: Arc<Windows>,
    ) -> Result<Logs, LogsError> {
        let ioas = Ioas::new(windows);
        ioas.map(Area { range, extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None })?;
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas)?;
        Ok(Logs { access, rings, stride, entries })
    }

    /// The log of a ring; none if the buffer is for fewer.
    ///
    /// # Errors
    /// The memory was lost.
    pub(super) fn of(&self, index: u16, packed: bool) -> Result<Option<RingLog>, ResolveError> {
        if index >= self.rings {
            return Ok(None);
        }
        let len = self.stride.min(RingLog::len_of(packed, self.entries) as u64);
        let at = Iova(u64::from(index).saturating_mul(self.stride));
        let mut lane = self.access.lane();
        let pin = lane.enter().pin(at, u32::try_from(len).unwrap_or(u32::MAX), Perm::READ | Perm::WRITE)?;
        Ok(Some(RingLog::new(pin, self.entries)))
    }

    /// Nothing of what is recorded is to be done any more.
    pub(super) fn forget(&self) {
        for index in 0..self.rings {
            // Where a log says that there is nothing in it is the same in both layouts.
            if let Ok(Some(log)) = self.of(index, false) {
                log.forget();
            }
        }
    }
}
