//! Transfers: bytes that a peer keeps ([`mdev_dma::RemoteMemory`]), fetched and sent by messages.
//!
//! A transfer is entered in the record of its access inside a burst, and its message is sent in that burst. So an
//! unmap, whose notification comes after the grace of the burst, finds it on record, and nothing is sent for bytes that
//! have left. Whatever takes the bytes away, be it an unmap, a replacement, a detach or a close, never waits for the peer: it
//! cancels the transfers on them before their device is told. An answer that comes later finds its transfer ended and is
//! dropped; one that comes first ends it. A message that waits for its turn is not sent when its transfer has been cancelled
//! ([`Reply::is_wanted`]). The record and the end of a transfer are leaves among the locks.
//!
//! A write whose message was sent before it was cancelled may still be done by the peer, whose memory it is: messages
//! reach it in order, that of the unmap's success included.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::Waker,
};

use mdev_dma::{Answer, Extent, Iova, IovaRange, Perm, Ranged, Reply};

use crate::{
    access::Access,
    error::{AccessError, ResolveError},
    pages::checked,
};

/// What a transfer is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Fetch so many bytes from the peer.
    Read(u64),
    /// Send these bytes to the peer.
    Write(Vec<u8>),
}

/// How far a transfer has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferState {
    /// The peer has not answered.
    Pending,
    /// It has: the bytes that were read, once, and none of a write.
    Done(Vec<u8>),
    /// It refused, with this error number; or it answered nothing, or too much or too little \[EIO\].
    Failed(i32),
    /// The bytes left the space, or the access did, before it answered.
    Cancelled,
}

/// A transfer under way. Dropping it cancels it.
#[must_use = "a transfer that is dropped is cancelled"]
pub struct Transfer {
    end: Arc<End>,
    number: u64,
    record: Weak<Record>,
}

/// What is to be known of a transfer when it has ended.
struct End {
    range: IovaRange,
    /// How many bytes the answer must have.
    length: usize,
    state: Mutex<(TransferState, Option<Waker>)>,
}

/// The transfers of an access that the peer has not answered.
#[derive(Default)]
pub struct Transfers(Arc<Record>);

#[derive(Default)]
struct Record(Mutex<Under>);

#[derive(Default)]
struct Under {
    next: u64,
    way: BTreeMap<u64, Arc<End>>,
}

impl Access {
    /// Begins to fetch or send bytes at `iova` that a peer keeps; they lie in one area. Works for every kind of access,
    /// and pins nothing.
    ///
    /// # Errors
    ///
    /// `NotRemote` \[EINVAL\] for memory that is reached otherwise; those of [`ResolveError`]: `Empty`, `Gated` and
    /// `Split` (more than one area) \[EINVAL\], `Overflow` \[EOVERFLOW\], `Detached` and `Hole` \[ENOENT\], `Permission`
    /// \[EPERM\].
    pub fn transfer(&self, iova: Iova, what: Move) -> Result<Transfer, AccessError> {
        let core = self.core();
        let (length, perm) = match &what {
            Move::Read(length) => (*length, Perm::READ),
            Move::Write(bytes) => (bytes.len() as u64, Perm::WRITE),
        };
        let range = checked(iova, length)?;
        core.control.in_burst(&core.published, |burst| {
            let area = match burst.found_at(iova) {
                Ok(_) => return Err(AccessError::NotRemote(iova)),
                Err(ResolveError::Elsewhere) => burst.elsewhere_at(iova).ok_or(ResolveError::Hole)?,
                Err(error) => return Err(error.into()),
            };
            let Extent::Remote(extent) = &area.extent else { return Err(AccessError::NotRemote(iova)) };
            if !area.perm.contains(perm) {
                return Err(ResolveError::Permission.into());
            }
            if range.last() > area.range().last() {
                return Err(ResolveError::Split.into());
            }
            let skipped = iova.0.wrapping_sub(area.range().first().0);
            let place = extent.checked_add(skipped).ok_or(ResolveError::Overflow)?;
            let wanted = if perm == Perm::READ { length } else { 0 };
            let wanted = usize::try_from(wanted).map_err(|_| ResolveError::Overflow)?;
            let (transfer, reply) = core.transfers.begin(range, wanted);
            match what {
                Move::Read(_) => place.memory.read(place.address, wanted, reply),
                Move::Write(bytes) => place.memory.write(place.address, bytes, reply),
            }
            Ok(transfer)
        })
    }
}

impl Transfers {
    fn begin(&self, range: IovaRange, length: usize) -> (Transfer, Reply) {
        let end = Arc::new(End { range, length, state: Mutex::new((TransferState::Pending, None)) });
        let record = Arc::downgrade(&self.0);
        let mut under = self.0.lock();
        let number = under.next;
        under.next = number.wrapping_add(1);
        under.way.insert(number, end.clone());
        drop(under);
        let transfer = Transfer { end: end.clone(), number, record: record.clone() };
        let asked = end.clone();
        let finish = move |answer| {
            if let Some(record) = record.upgrade() {
                record.lock().way.remove(&number);
            }
            end.end(end.judge(answer));
        };
        let reply = Reply::while_wanted(finish, move || asked.lock().0 == TransferState::Pending);
        (transfer, reply)
    }

    /// Ends those that a byte of `range` belongs to, without the peer.
    pub fn cancel(&self, range: IovaRange) {
        let gone: Vec<Arc<End>> = {
            let mut under = self.0.lock();
            let (gone, stay) = std::mem::take(&mut under.way)
                .into_iter()
                .partition(|(_, end)| end.range.intersection(range).is_some());
            under.way = stay;
            let gone: BTreeMap<u64, Arc<End>> = gone;
            gone.into_values().collect()
        };
        gone.iter().for_each(|end| end.end(TransferState::Cancelled));
    }
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, Under> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl End {
    /// An answer is believed if it has the length that was asked for.
    fn judge(&self, answer: Answer) -> TransferState {
        match answer {
            Ok(bytes) if bytes.len() == self.length => TransferState::Done(bytes),
            Ok(_) => TransferState::Failed(crate::error::EIO),
            Err(errno) => TransferState::Failed(errno),
        }
    }

    /// The first end counts.
    fn end(&self, how: TransferState) {
        let mut state = self.lock();
        if state.0 == TransferState::Pending {
            state.0 = how;
            let waker = state.1.take();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, (TransferState, Option<Waker>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transfer {
    /// The IOVAs that it concerns.
    pub fn range(&self) -> IovaRange {
        self.end.range
    }

    /// How far it is. If it is under way, `waker` is woken at its end, in place of one that was given before: by the
    /// thread that brings the answer or takes the bytes away, which must not be made to wait.
    pub fn poll(&mut self, waker: Option<&Waker>) -> TransferState {
        let mut state = self.end.lock();
        match &mut state.0 {
            TransferState::Pending => {
                if let Some(waker) = waker {
                    state.1 = Some(waker.clone());
                }
                TransferState::Pending
            }
            TransferState::Done(bytes) => TransferState::Done(std::mem::take(bytes)),
            ended => ended.clone(),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(record) = self.record.upgrade() {
            record.lock().way.remove(&self.number);
        }
        // Nobody is left to be woken.
        self.end.lock().1 = None;
        self.end.end(TransferState::Cancelled);
    }
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer").field("range", &self.end.range).finish_non_exhaustive()
    }
}
