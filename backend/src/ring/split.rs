//! The split ring (virtio 1.3, 2.7): take, write used entries, notify.

use std::sync::atomic::{Ordering, fence};

use mdev_dma::{GuestSlice, Perm};
use mdev_pin::Burst;
use mdev_protocol::virtio::split::{
    FLAGS_OFFSET, IDX_OFFSET, VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY, avail_entry, avail_len,
    desc_len, is_size, needs_event, used_entry, used_len,
};

use super::batch::Batch;
use super::chain::{Chain, Common, Source};
use super::idle::Shape;
use super::log::{SplitLog, before_store};
use super::place::{LOST, Parts, Places, Wanted};
use super::{Part, QueueState, RingError, RingLog};

/// How far a split ring got.
pub(super) struct Split {
    next_avail: u16,
    next_used: Option<u16>,
    /// Begin where the used ring ends.
    pub(super) at_used: bool,
    /// The used index at the last decision about a call. Nothing before the first.
    signalled: Option<u16>,
    /// Where its chains in flight are recorded.
    pub(super) log: Option<Box<SplitLog>>,
}

impl Split {
    pub(super) fn new(size: u16, state: QueueState, log: Option<RingLog>) -> Result<Self, RingError> {
        if !is_size(size.into()) {
            return Err(RingError::BadSize(size.into()));
        }
        let log = log.map(|log| SplitLog::new(log, size).map(Box::new)).transpose()?;
        Ok(Self { next_avail: state.next_avail, next_used: None, at_used: false, signalled: None, log })
    }

    pub(super) fn state(&self) -> QueueState {
        QueueState::split(self.next_avail)
    }

    #[inline(always)]
    pub(super) fn open<'r>(
        &'r mut self,
        shape: Shape,
        places: &mut Places,
        burst: &'r Burst<'_>,
    ) -> Result<OpenSplit<'r>, RingError> {
        let (parts, next_used) = match (places.recall(burst), self.next_used) {
            (Some(parts), Some(next_used)) => (parts, next_used),
            _ => self.find(shape, places, burst)?,
        };
        let [desc, avail, used] = parts;
        let next_avail = self.next_avail;
        Ok(OpenSplit { ring: self, desc, avail, used, next_avail, next_used, again: 0 })
    }

    /// Finds the three parts in the present table, and the used index.
    #[cold]
    fn find<'s>(
        &mut self,
        shape: Shape,
        places: &mut Places,
        burst: &'s Burst<'_>,
    ) -> Result<(Parts<'s>, u16), RingError> {
        let Shape { size, event_idx, .. } = shape;
        let write = Perm::READ | Perm::WRITE;
        let parts = places.find(
            burst,
            [
                Wanted { part: Part::Descriptors, len: desc_len(size), perm: Perm::READ, align: 16 },
                Wanted { part: Part::Available, len: avail_len(size, event_idx), perm: Perm::READ, align: 2 },
                Wanted { part: Part::Used, len: used_len(size, event_idx), perm: write, align: 4 },
            ],
        )?;
        let [_, _, used] = &parts;
        if let Some(next_used) = self.next_used {
            return Ok((parts, next_used));
        }
        // Where the driver and whoever served the ring before us left it; nobody else knows.
        let next_used = used.load_u16(IDX_OFFSET, Ordering::Acquire).map(u16::from_le).ok_or(LOST)?;
        if self.at_used {
            self.next_avail = next_used;
        }
        if let Some(log) = &mut self.log {
            // Ring and log know better than a front-end whose back-end died.
            self.next_avail = log.recover(next_used)?;
        }
        self.next_used = Some(next_used);
        Ok((parts, next_used))
    }
}

/// A split ring in one burst.
pub(super) struct OpenSplit<'r> {
    ring: &'r mut Split,
    desc: GuestSlice<'r>,
    avail: GuestSlice<'r>,
    used: GuestSlice<'r>,
    next_avail: u16,
    next_used: u16,
    /// The first so many of the chains of the burst were taken before, and are taken again.
    again: usize,
}

impl OpenSplit<'_> {
    #[inline(always)]
    pub(super) fn pending(&self, size: u16) -> Result<u16, RingError> {
        let waiting = self.waiting(size)?;
        Ok(waiting.saturating_add(self.to_take_again().len() as u16))
    }

    pub(super) fn keeps_log(&self) -> bool {
        self.ring.log.is_some()
    }

    /// Heads of chains that are recorded and were not taken again yet.
    #[inline(always)]
    fn to_take_again(&self) -> &[u16] {
        self.ring.log.as_ref().map_or(&[], |log| log.again(self.again))
    }

    /// Chains that wait in the available ring.
    #[inline(always)]
    fn waiting(&self, size: u16) -> Result<u16, RingError> {
        let index = u16::from_le(self.avail.load_u16(IDX_OFFSET, Ordering::Acquire).ok_or(LOST)?);
        let next = self.next_avail;
        let pending = index.wrapping_sub(next);
        if pending > size { Err(RingError::AvailJump { next, index, size }) } else { Ok(pending) }
    }

    #[inline(always)]
    pub(super) fn take(
        &mut self,
        burst: &Burst<'_>,
        shape: Shape,
        batch: &mut Batch,
        max: usize,
        mut each: impl FnMut(Chain<'_>) -> Result<(), RingError>,
    ) -> Result<usize, RingError> {
        let Shape { size, indirect, .. } = shape;
        let source = Source { burst, table: self.desc, size, indirect };
        if !self.to_take_again().is_empty() {
            return self.take_again(&source, batch, max, each);
        }
        let count = usize::from(self.waiting(size)?).min(max).min(batch.room());
        let (heads, scratch) = batch.fetch(&self.avail, size, self.next_avail, count);
        let mut taken = 0usize;
        let mut outcome = Ok(());
        for head in heads {
            let head = u16::from_le_bytes(*head);
            // A call for each form, so that it is compiled for what it gets.
            outcome = match source.common(head) {
                Some(Common::Readable(one)) => each(Chain { head, readable: &[one], writable: &[] }),
                Some(Common::Readable2(two)) => each(Chain { head, readable: &two, writable: &[] }),
                Some(Common::Writable(one)) => each(Chain { head, readable: &[], writable: &[one] }),
                None => break,
            };
            if outcome.is_err() {
                break;
            }
            taken = taken.wrapping_add(1);
        }
        if outcome.is_ok() {
            // A driver that uses chains of other forms does so again: the rest of the burst is read in the general way.
            for head in heads.get(taken..).unwrap_or_default() {
                outcome = source.chain(u16::from_le_bytes(*head), scratch).and_then(&mut each);
                if outcome.is_err() {
                    break;
                }
                taken = taken.wrapping_add(1);
            }
        }
        if taken == 0 {
            outcome?;
        }
        batch.take(taken);
        self.next_avail = self.next_avail.wrapping_add(taken as u16);
        Ok(taken)
    }

    /// Takes chains that were taken before.
    #[cold]
    fn take_again(
        &mut self,
        source: &Source<'_, '_>,
        batch: &mut Batch,
        max: usize,
        mut each: impl FnMut(Chain<'_>) -> Result<(), RingError>,
    ) -> Result<usize, RingError> {
        let (places, scratch) = batch.fresh(max);
        let mut taken = 0usize;
        let mut outcome = Ok(());
        for (head, place) in self.to_take_again().iter().zip(places) {
            outcome = source.chain(*head, scratch).and_then(&mut each);
            if outcome.is_err() {
                break;
            }
            *place = head.to_le_bytes();
            taken = taken.wrapping_add(1);
        }
        if taken == 0 {
            outcome?;
        }
        batch.take(taken);
        self.again = self.again.wrapping_add(taken);
        Ok(taken)
    }

    /// Gives back the last `count` of the `taken` chains of the burst.
    pub(super) fn untake(&mut self, count: usize, taken: usize) {
        let fresh = taken.saturating_sub(self.again).min(count);
        self.next_avail = self.next_avail.wrapping_sub(fresh as u16);
        self.again = self.again.saturating_sub(count.saturating_sub(fresh));
    }

    /// Writes the entries of what was completed, side by side.
    #[inline(always)]
    pub(super) fn flush(&mut self, size: u16, batch: &mut Batch) -> Result<(), RingError> {
        self.next_used = batch.flush(&self.used, size, self.next_used).ok_or(LOST)?;
        Ok(())
    }

    #[inline(always)]
    pub(super) fn publish(mut self, shape: Shape, batch: &mut Batch) -> Result<bool, RingError> {
        if let Some(log) = &mut self.ring.log {
            log.before(self.again, batch)?;
        }
        self.flush(shape.size, batch)?;
        let Self { ring, avail, used, next_avail, next_used, .. } = self;
        ring.next_avail = next_avail;
        if ring.next_used == Some(next_used) {
            return Ok(false);
        }
        ring.next_used = Some(next_used);
        before_store();
        used.store_u16(IDX_OFFSET, next_used.to_le(), Ordering::Release).ok_or(LOST)?;
        if let Some(log) = &mut ring.log {
            log.after(next_used)?;
        }
        // The index must be out before the driver's wish is read: it publishes its wish and looks at the index again.
        fence(Ordering::SeqCst);
        let signalled = ring.signalled.replace(next_used);
        if shape.event_idx {
            let event = u16::from_le(avail.load_u16(avail_entry(shape.size), Ordering::Relaxed).ok_or(LOST)?);
            // Before the first decision nobody knows what the driver has seen.
            Ok(signalled.is_none_or(|old| needs_event(event, next_used, old)))
        } else {
            let flags = u16::from_le(avail.load_u16(FLAGS_OFFSET, Ordering::Relaxed).ok_or(LOST)?);
            Ok(flags & VIRTQ_AVAIL_F_NO_INTERRUPT == 0)
        }
    }

    /// Says that a kick is wanted with the next chain.
    pub(super) fn wish(&mut self, shape: Shape) -> Result<(), RingError> {
        if shape.event_idx {
            let at = used_entry(shape.size);
            self.used.store_u16(at, self.next_avail.to_le(), Ordering::Relaxed).ok_or(LOST)
        } else {
            self.used.store_u16(FLAGS_OFFSET, 0, Ordering::Relaxed).ok_or(LOST)
        }
    }

    /// With event index there is nothing to say: an event in the past is passed once in 65536 chains.
    pub(super) fn disarm(&mut self, shape: Shape) -> Result<(), RingError> {
        let flags = if shape.event_idx { 0 } else { VIRTQ_USED_F_NO_NOTIFY };
        self.used.store_u16(FLAGS_OFFSET, flags.to_le(), Ordering::Relaxed).ok_or(LOST)
    }
}
