//! A split ring inside one burst: take, complete, publish.

use std::sync::atomic::{Ordering, fence};

use mdev_dma::GuestSlice;
use mdev_pin::Burst;
use mdev_protocol::virtio::split::{
    FLAGS_OFFSET, IDX_OFFSET, VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY, avail_entry, needs_event,
    used_entry,
};

use super::chain::{Chain, Common, Source};
use super::split::LOST;
use super::{RingError, SplitRing};

/// A ring open for one burst.
///
/// The order is [`take`](Vring::take), look at the chains, perhaps [`untake`](Vring::untake) the tail,
/// [`complete`](Vring::complete) in any order, [`publish`](Vring::publish) once. Dropped without `publish`, nothing was
/// taken and the driver has seen nothing.
pub struct Vring<'r, 'b> {
    ring: &'r mut SplitRing,
    burst: &'r Burst<'b>,
    desc: GuestSlice<'r>,
    avail: GuestSlice<'r>,
    used: GuestSlice<'r>,
    next_avail: u16,
    next_used: u16,
}

impl<'r, 'b> Vring<'r, 'b> {
    #[inline(always)]
    pub(super) fn new(
        ring: &'r mut SplitRing,
        burst: &'r Burst<'b>,
        desc: GuestSlice<'r>,
        avail: GuestSlice<'r>,
        used: GuestSlice<'r>,
    ) -> Self {
        ring.batch.clear();
        let next_avail = ring.next_avail;
        let next_used = ring.next_used.unwrap_or(next_avail);
        Self { ring, burst, desc, avail, used, next_avail, next_used }
    }

    /// The burst the ring is open in.
    #[inline(always)]
    pub fn burst(&self) -> &'r Burst<'b> {
        self.burst
    }

    /// Entries of the ring.
    #[inline(always)]
    pub fn size(&self) -> u16 {
        self.ring.size
    }

    /// How many chains wait.
    ///
    /// # Errors
    /// [`RingError::AvailJump`]; [`RingError::Poisoned`] if it comes from memory that was lost.
    #[inline]
    pub fn pending(&self) -> Result<u16, RingError> {
        pending(&self.avail, self.next_avail, self.ring.size).map_err(|error| cause(self.burst, error))
    }

    /// Takes up to `max` of the waiting chains, each handed to `each` first, and says how many. A chain that `each` refuses,
    /// and all behind it, is not taken. Chains that are in the burst stay in it.
    ///
    /// # Errors
    /// What is wrong with the first of the waiting chains; those already in the burst can still be completed. Trouble
    /// behind good chains ends the burst, and is met again by the next.
    #[inline(always)]
    pub fn take(
        &mut self,
        max: usize,
        mut each: impl FnMut(Chain<'_>) -> Result<(), RingError>,
    ) -> Result<usize, RingError> {
        let SplitRing { size, indirect, batch, .. } = &mut *self.ring;
        let source = Source { burst: self.burst, table: self.desc, size: *size, indirect: *indirect };
        let waiting =
            pending(&self.avail, self.next_avail, *size).map_err(|error| cause(self.burst, error))?;
        let count = usize::from(waiting).min(max).min(batch.room());
        let (heads, scratch) = batch.fetch(&self.avail, *size, self.next_avail, count);
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
            outcome.map_err(|error| cause(self.burst, error))?;
        }
        batch.take(taken);
        self.next_avail = self.next_avail.wrapping_add(taken as u16);
        Ok(taken)
    }

    /// Gives the last `count` chains of the burst back. They must not have been completed.
    pub fn untake(&mut self, count: usize) {
        let count = count.min(self.ring.batch.taken());
        self.ring.batch.untake(count);
        self.next_avail = self.next_avail.wrapping_sub(count as u16);
    }

    /// Chains in the burst.
    #[inline(always)]
    pub fn taken(&self) -> usize {
        self.ring.batch.taken()
    }

    /// The head of chain `index` of the burst, in the order they were made available.
    #[inline(always)]
    pub fn head(&self, index: usize) -> Option<u16> {
        self.ring.batch.head(index)
    }

    /// Uses a chain, of this burst or an earlier one. `len` is the number of bytes written into it, from its beginning. The
    /// driver sees it with [`publish`](Vring::publish).
    ///
    /// # Errors
    /// None in practice: the used ring was resolved with its full length.
    #[inline(always)]
    pub fn complete(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        if self.ring.batch.complete(head, len) {
            return Ok(());
        }
        self.flush()?;
        self.ring.batch.complete(head, len);
        Ok(())
    }

    /// Uses every chain of the burst, in order, with nothing written into any: what a device does that only reads.
    ///
    /// # Errors
    /// As [`complete`](Vring::complete).
    #[inline]
    pub fn complete_all(&mut self) -> Result<(), RingError> {
        if self.ring.batch.complete_all() {
            return Ok(());
        }
        self.flush()?;
        self.ring.batch.complete_all();
        Ok(())
    }

    /// Writes the entries of what was completed, side by side.
    #[inline(always)]
    fn flush(&mut self) -> Result<(), RingError> {
        let SplitRing { size, batch, .. } = &mut *self.ring;
        let next = self.next_used;
        self.next_used = next.wrapping_add(batch.completed() as u16);
        batch.flush(&self.used, *size, next).ok_or(LOST)
    }

    /// Publishes what was completed and makes what was taken final. True when the driver asks for a call.
    ///
    /// # Errors
    /// [`RingError::Poisoned`]: memory was lost in this burst. Nothing is published, nothing was taken.
    #[inline]
    pub fn publish(mut self) -> Result<bool, RingError> {
        if self.burst.poisoned() {
            return Err(RingError::Poisoned);
        }
        self.flush()?;
        let (ring, next_used) = (self.ring, self.next_used);
        ring.next_avail = self.next_avail;
        if ring.next_used == Some(next_used) {
            return Ok(false);
        }
        ring.next_used = Some(next_used);
        self.used.store_u16(IDX_OFFSET, next_used.to_le(), Ordering::Release).ok_or(LOST)?;
        // The index must be out before the driver's wish is read: it publishes its wish and looks at the index again.
        fence(Ordering::SeqCst);
        let signalled = ring.signalled.replace(next_used);
        if ring.event_idx {
            let event =
                u16::from_le(self.avail.load_u16(avail_entry(ring.size), Ordering::Relaxed).ok_or(LOST)?);
            // Before the first decision nobody knows what the driver has seen.
            Ok(signalled.is_none_or(|old| needs_event(event, next_used, old)))
        } else {
            let flags = u16::from_le(self.avail.load_u16(FLAGS_OFFSET, Ordering::Relaxed).ok_or(LOST)?);
            Ok(flags & VIRTQ_AVAIL_F_NO_INTERRUPT == 0)
        }
    }

    /// Asks the driver for a kick with the next chain. True when chains wait already: look again instead of sleeping.
    ///
    /// # Errors
    /// As [`pending`](Vring::pending).
    pub fn arm(&mut self) -> Result<bool, RingError> {
        if self.ring.event_idx {
            let at = used_entry(self.ring.size);
            self.used.store_u16(at, self.next_avail.to_le(), Ordering::Relaxed).ok_or(LOST)?;
        } else {
            self.used.store_u16(FLAGS_OFFSET, 0, Ordering::Relaxed).ok_or(LOST)?;
        }
        // The wish must be out before the index is read: the driver publishes its index and looks at the wish.
        fence(Ordering::SeqCst);
        Ok(self.pending()? != 0)
    }

    /// Tells the driver that kicks are not needed. With event index there is nothing to say: an event in the past is
    /// passed once in 65536 chains.
    ///
    /// # Errors
    /// None in practice, as [`complete`](Vring::complete).
    pub fn disarm(&mut self) -> Result<(), RingError> {
        let flags = if self.ring.event_idx { 0 } else { VIRTQ_USED_F_NO_NOTIFY };
        self.used.store_u16(FLAGS_OFFSET, flags.to_le(), Ordering::Relaxed).ok_or(LOST)
    }
}

#[inline(always)]
fn pending(avail: &GuestSlice<'_>, next: u16, size: u16) -> Result<u16, RingError> {
    let index = u16::from_le(avail.load_u16(IDX_OFFSET, Ordering::Acquire).ok_or(LOST)?);
    let pending = index.wrapping_sub(next);
    if pending > size { Err(RingError::AvailJump { next, index, size }) } else { Ok(pending) }
}

/// What an error comes from: of memory that was lost in this burst nothing that was read means anything.
#[cold]
fn cause(burst: &Burst<'_>, error: RingError) -> RingError {
    if burst.poisoned() { RingError::Poisoned } else { error }
}
