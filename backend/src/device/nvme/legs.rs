//! Bytes that a client keeps, on their way: fetched and sent in as many transfers as the areas make necessary.
//!
//! What lies in host memory in between is copied at once, so that the pieces of one command may lie in memory of both kinds. A transfer
//! that is not answered in time has failed; dropping it all cancels it.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use mdev_dma::{Iova, Perm, SgList};
use mdev_pin::{Access, AccessError, Burst, Move, ResolveError, Transfer, TransferState};
use rustix::io::Errno;

use super::{Shared, data};

/// How long a client may take to answer.
pub(super) const ANSWER: Duration =
    if cfg!(test) { Duration::from_millis(400) } else { Duration::from_secs(5) };

const PAGE: u64 = 4096;

/// Who waits for transfers. Time in which the function must not reach memory, so that nothing is sent, does not count.
#[derive(Clone)]
pub(super) struct Waiter {
    waker: Waker,
    shared: Arc<Shared>,
}

impl Waiter {
    /// `waker` is woken when a transfer has ended.
    pub(super) fn new(waker: &Waker, shared: &Arc<Shared>) -> Self {
        Waiter { waker: waker.clone(), shared: shared.clone() }
    }
}

/// Transfers that belong together.
#[derive(Default)]
pub(super) struct Legs {
    list: Vec<Leg>,
    /// Bytes that were asked for so far.
    len: u32,
    /// When those that are not answered have failed.
    until: Option<Instant>,
    /// How often the function had been paused when that was set.
    pauses: u32,
}

struct Leg {
    /// Where its bytes are among those of all.
    offset: u32,
    /// None of what was copied.
    transfer: Option<Transfer>,
    state: TransferState,
}

/// How far they are.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not all are answered.
    Pending,
    /// All have arrived.
    Done,
    /// One has failed.
    Failed(Errno),
}

impl Legs {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Begins to fetch `len` bytes from `at` on, behind those that were asked for before.
    ///
    /// # Errors
    /// Some of them are in no memory. What has begun goes on.
    pub(super) fn fetch(
        &mut self,
        access: &Access,
        burst: &Burst<'_>,
        at: Iova,
        len: u32,
    ) -> Result<(), ResolveError> {
        self.go(
            access,
            at,
            len,
            |at, offset, len| {
                let _ = offset;
                let mut bytes = vec![0; len as usize];
                data::read(burst, at, &mut bytes).map(|()| bytes)
            },
            |_, len| Move::Read(len.into()),
        )
    }

    /// Begins to send bytes to `at` and behind.
    ///
    /// # Errors
    /// As [`Legs::fetch`].
    pub(super) fn send(
        &mut self,
        access: &Access,
        burst: &Burst<'_>,
        at: Iova,
        bytes: &[u8],
    ) -> Result<(), ResolveError> {
        let len = u32::try_from(bytes.len()).map_err(|_| ResolveError::Overflow)?;
        let part = |from: u32, len: u32| {
            bytes.get(from as usize..).and_then(|rest| rest.get(..len as usize)).unwrap_or_default()
        };
        let base = self.len;
        self.go(
            access,
            at,
            len,
            |at, offset, len| write(burst, at, part(offset.wrapping_sub(base), len)).map(|()| Vec::new()),
            |offset, len| Move::Write(part(offset.wrapping_sub(base), len).to_vec()),
        )
    }

    /// Cuts the bytes until each piece is in one area, or in host memory.
    fn go(
        &mut self,
        access: &Access,
        mut at: Iova,
        len: u32,
        copy: impl Fn(Iova, u32, u32) -> Result<Vec<u8>, ResolveError>,
        what: impl Fn(u32, u32) -> Move,
    ) -> Result<(), ResolveError> {
        let mut left = len;
        let mut here = left;
        while left > 0 {
            let offset = self.len;
            let (transfer, state) = match access.transfer(at, what(offset, here)) {
                Ok(transfer) => (Some(transfer), TransferState::Pending),
                Err(AccessError::Resolve(ResolveError::Split)) => {
                    here = shorter(at, here).ok_or(ResolveError::Split)?;
                    continue;
                }
                Err(AccessError::NotRemote(_)) => match copy(at, offset, here) {
                    Ok(bytes) => (None, TransferState::Done(bytes)),
                    Err(ResolveError::Elsewhere) => {
                        here = shorter(at, here).ok_or(ResolveError::Elsewhere)?;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
                Err(AccessError::Resolve(error)) => return Err(error),
                Err(_) => return Err(ResolveError::Detached),
            };
            self.list.push(Leg { offset, transfer, state });
            self.len = self.len.saturating_add(here);
            left = left.saturating_sub(here);
            at = at.checked_add(here.into()).unwrap_or(at);
            // Neighbours are often of one size. To try all that is left for each of many small ones would copy it as often.
            here = left.min(here.saturating_mul(2));
        }
        Ok(())
    }

    /// How far they are. `waiter` is woken when that may have changed; not after [`Legs::until`].
    pub(super) fn look(&mut self, waiter: &Waiter) -> Progress {
        let mut progress = Progress::Done;
        for leg in &mut self.list {
            if leg.state == TransferState::Pending
                && let Some(transfer) = &mut leg.transfer
            {
                leg.state = transfer.poll(Some(&waiter.waker));
            }
            match &leg.state {
                TransferState::Pending => progress = Progress::Pending,
                TransferState::Done(_) => {}
                TransferState::Failed(errno) => return Progress::Failed(Errno::from_raw_os_error(*errno)),
                TransferState::Cancelled => return Progress::Failed(Errno::CANCELED),
            }
        }
        if progress == Progress::Pending {
            let now = Instant::now();
            let pauses = waiter.shared.pauses();
            if std::mem::replace(&mut self.pauses, pauses) != pauses {
                self.until = None;
            }
            let until = *self.until.get_or_insert_with(|| now.checked_add(ANSWER).unwrap_or(now));
            if now >= until {
                return Progress::Failed(Errno::TIMEDOUT);
            }
        }
        progress
    }

    /// When to look again even if nobody was woken.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// What was fetched: places and bytes. None is left.
    pub(super) fn take(&mut self) -> impl Iterator<Item = (u32, Vec<u8>)> {
        let Legs { list, .. } = std::mem::take(self);
        list.into_iter().map(|leg| match leg.state {
            TransferState::Done(bytes) => (leg.offset, bytes),
            _ => (leg.offset, Vec::new()),
        })
    }
}

/// A shorter piece from `at` on, which ends with a page: areas do. `None` if it lies in one.
fn shorter(at: Iova, len: u32) -> Option<u32> {
    let page = |address: u64| address.checked_div(PAGE).unwrap_or(0).saturating_mul(PAGE);
    let half = page(at.0.saturating_add(u64::from(len / 2))).saturating_sub(at.0);
    let end = page(at.0).saturating_add(PAGE).saturating_sub(at.0);
    let len_there = if half > 0 { half } else { end };
    u32::try_from(len_there).ok().filter(|shorter| *shorter < len)
}

/// Copies bytes to host memory that may lie in several pieces.
fn write(burst: &Burst<'_>, at: Iova, bytes: &[u8]) -> Result<(), ResolveError> {
    let len = u32::try_from(bytes.len()).map_err(|_| ResolveError::Overflow)?;
    let mut pieces = SgList::new();
    burst.sg(at, len, Perm::WRITE, &mut pieces)?;
    pieces.copy_from(0, bytes);
    let lost = pieces.iter().any(|piece| piece.poisoned());
    if lost { Err(ResolveError::Poisoned) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
