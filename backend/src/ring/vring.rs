//! A split ring inside one burst: take, complete, publish.

use std::sync::atomic::{Ordering, fence};

use mdev_dma::GuestSlice;
use mdev_pin::Burst;

use super::chain::{Buffer, Chain, MAX_BURST, Source};
use super::layout::{AVAIL_F_NO_INTERRUPT, INDEX, USED_F_NO_NOTIFY, avail_entry, need_event, used_entry};
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
    mask: u16,
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
        ring.chains.clear();
        let (mask, next_avail) = (ring.size.wrapping_sub(1), ring.next_avail);
        let next_used = ring.next_used.unwrap_or(next_avail);
        Self { ring, burst, desc, avail, used, mask, next_avail, next_used }
    }

    /// The burst the ring is open in.
    #[inline(always)]
    pub fn burst(&self) -> &'r Burst<'b> {
        self.burst
    }

    /// How many chains wait.
    ///
    /// # Errors
    /// [`RingError::AvailJump`].
    #[inline]
    pub fn pending(&self) -> Result<u16, RingError> {
        let index = u16::from_le(self.avail.load_u16(INDEX, Ordering::Acquire).ok_or(LOST)?);
        let pending = index.wrapping_sub(self.next_avail);
        if pending > self.ring.size {
            return Err(RingError::AvailJump { next: self.next_avail, index, size: self.ring.size });
        }
        Ok(pending)
    }

    /// Adds up to `max` waiting chains to the burst and says how many came. Chains that are in the burst stay in it.
    ///
    /// # Errors
    /// What is wrong with the first of the waiting chains; those already in the burst can still be completed. A malformed
    /// chain behind good ones ends the burst, and is reported by the next.
    #[inline]
    pub fn take(&mut self, max: usize) -> Result<usize, RingError> {
        let room = MAX_BURST.saturating_sub(self.ring.chains.len());
        let count = usize::from(self.pending()?).min(max).min(room);
        let source = Source {
            burst: self.burst,
            table: self.desc,
            size: self.ring.size,
            indirect: self.ring.indirect,
        };
        let (avail, mask, next) = (self.avail, self.mask, self.next_avail);
        let heads = (0..count as u16)
            .map(|n| avail.read::<u16>(avail_entry(next.wrapping_add(n) & mask)).map(u16::from_le));
        let taken = self.ring.chains.take(&source, heads)?;
        self.next_avail = next.wrapping_add(taken as u16);
        Ok(taken)
    }

    /// Gives the last `count` chains of the burst back. They must not have been completed.
    pub fn untake(&mut self, count: usize) {
        let count = count.min(self.ring.chains.len());
        self.ring.chains.drop_last(count);
        self.next_avail = self.next_avail.wrapping_sub(count as u16);
    }

    /// Chains in the burst.
    #[inline(always)]
    pub fn taken(&self) -> usize {
        self.ring.chains.len()
    }

    /// Chain `index` of the burst.
    #[inline(always)]
    pub fn chain(&self, index: usize) -> Option<Chain> {
        self.ring.chains.get(index)
    }

    /// The buffers of a chain that the device reads.
    #[inline(always)]
    pub fn readable(&self, chain: &Chain) -> &[Buffer] {
        self.ring.chains.readable(chain)
    }

    /// The buffers of a chain that the device writes.
    #[inline(always)]
    pub fn writable(&self, chain: &Chain) -> &[Buffer] {
        self.ring.chains.writable(chain)
    }

    /// Writes the used entry of a chain; the driver sees it with [`publish`](Vring::publish). `len` is the number of
    /// bytes written into the chain, from its beginning.
    ///
    /// # Errors
    /// None in practice: the used ring was resolved with its full length.
    #[inline(always)]
    pub fn complete(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        let entry = u64::from(head) | (u64::from(len) << 32);
        self.used.write::<u64>(used_entry(self.next_used & self.mask), entry.to_le()).ok_or(LOST)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Publishes what was completed and makes what was taken final. True when the driver asks for a call.
    ///
    /// # Errors
    /// [`RingError::Poisoned`]: memory was lost in this burst. Nothing is published, nothing was taken.
    #[inline]
    pub fn publish(self) -> Result<bool, RingError> {
        if self.burst.poisoned() {
            return Err(RingError::Poisoned);
        }
        let (ring, next_used) = (self.ring, self.next_used);
        ring.next_avail = self.next_avail;
        if ring.next_used == Some(next_used) {
            return Ok(false);
        }
        ring.next_used = Some(next_used);
        self.used.store_u16(INDEX, next_used.to_le(), Ordering::Release).ok_or(LOST)?;
        // The index must be out before the driver's wish is read: it publishes its wish and looks at the index again.
        fence(Ordering::SeqCst);
        let signalled = ring.signalled.replace(next_used);
        if ring.event_idx {
            let event =
                u16::from_le(self.avail.load_u16(avail_entry(ring.size), Ordering::Relaxed).ok_or(LOST)?);
            // Before the first decision nobody knows what the driver has seen.
            Ok(signalled.is_none_or(|old| need_event(event, next_used, old)))
        } else {
            let flags = u16::from_le(self.avail.load_u16(0, Ordering::Relaxed).ok_or(LOST)?);
            Ok(flags & AVAIL_F_NO_INTERRUPT == 0)
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
            self.used.store_u16(0, 0, Ordering::Relaxed).ok_or(LOST)?;
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
        let flags = if self.ring.event_idx { 0 } else { USED_F_NO_NOTIFY };
        self.used.store_u16(0, flags.to_le(), Ordering::Relaxed).ok_or(LOST)
    }
}
