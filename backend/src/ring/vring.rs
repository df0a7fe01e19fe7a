//! A ring inside one burst: take, complete, publish.

use std::sync::atomic::{Ordering, fence};

use mdev_pin::Burst;

use super::RingError;
use super::batch::Batch;
use super::chain::Chain;
use super::idle::Shape;
use super::packed::OpenPacked;
use super::split::OpenSplit;

/// A ring open for one burst.
///
/// The order is [`take`](Vring::take), look at the chains, perhaps [`untake`](Vring::untake) the tail,
/// [`complete`](Vring::complete) in any order, [`publish`](Vring::publish) once. Dropped without `publish`, nothing was
/// taken and the driver has seen nothing.
///
/// Engines see the same of both formats. Which one it is, is asked once for each of these steps and not for each chain.
pub struct Vring<'r, 'b> {
    shape: Shape,
    batch: &'r mut Batch,
    burst: &'r Burst<'b>,
    open: Open<'r>,
}

/// A ring of either format in one burst.
pub(super) enum Open<'r> {
    Split(OpenSplit<'r>),
    Packed(OpenPacked<'r>),
}

impl<'r, 'b> Vring<'r, 'b> {
    #[inline(always)]
    pub(super) fn new(shape: Shape, batch: &'r mut Batch, burst: &'r Burst<'b>, open: Open<'r>) -> Self {
        Self { shape, batch, burst, open }
    }

    /// The burst the ring is open in.
    #[inline(always)]
    pub fn burst(&self) -> &'r Burst<'b> {
        self.burst
    }

    /// Entries of the ring.
    #[inline(always)]
    pub fn size(&self) -> u16 {
        self.shape.size
    }

    /// How many chains wait. A packed ring does not tell more than whether one does: then this is 1.
    ///
    /// # Errors
    /// [`RingError::AvailJump`], [`RingError::Overrun`]; [`RingError::Poisoned`] if it comes from memory that was lost.
    #[inline]
    pub fn pending(&self) -> Result<u16, RingError> {
        match &self.open {
            Open::Split(split) => split.pending(self.shape.size),
            Open::Packed(packed) => packed.pending(self.shape.size),
        }
        .map_err(|error| cause(self.burst, error))
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
        each: impl FnMut(Chain<'_>) -> Result<(), RingError>,
    ) -> Result<usize, RingError> {
        let Self { shape, batch, burst, open } = self;
        match open {
            Open::Split(split) => split.take(burst, *shape, batch, max, each),
            Open::Packed(packed) => packed.take(burst, *shape, batch, max, each),
        }
        .map_err(|error| cause(burst, error))
    }

    /// Gives the last `count` chains of the burst back. They must not have been completed.
    pub fn untake(&mut self, count: usize) {
        let count = count.min(self.batch.taken());
        match &mut self.open {
            Open::Split(split) => split.untake(count, self.batch.taken()),
            Open::Packed(packed) => {
                packed.untake(self.shape.size, self.batch.taken(), self.batch.last(count))
            }
        }
        self.batch.untake(count);
    }

    /// Chains in the burst.
    #[inline(always)]
    pub fn taken(&self) -> usize {
        self.batch.taken()
    }

    /// The name of chain `index` of the burst ([`Chain::head`]), in the order they were made available.
    #[inline(always)]
    pub fn head(&self, index: usize) -> Option<u16> {
        self.batch.head(index)
    }

    /// Uses a chain, of this burst or an earlier one, once. `len` is the number of bytes written into it, from its beginning.
    /// The driver sees it with [`publish`](Vring::publish).
    ///
    /// # Errors
    /// None in practice: the used ring was resolved with its full length.
    #[inline(always)]
    pub fn complete(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        if self.batch.complete(head, len) {
            return Ok(());
        }
        self.flush()?;
        self.batch.complete(head, len);
        Ok(())
    }

    /// Uses every chain of the burst, in order, with nothing written into any: what a device does that only reads. A driver that
    /// counts on the order is told with one entry, which names the last chain (virtio 2.7.9, 2.8.9).
    ///
    /// # Errors
    /// As [`complete`](Vring::complete).
    #[inline]
    pub fn complete_all(&mut self) -> Result<(), RingError> {
        if self.batch.complete_all(self.shape.in_order) {
            return Ok(());
        }
        self.flush()?;
        self.batch.complete_all(self.shape.in_order);
        Ok(())
    }

    /// Makes room for notes of what was completed. Those of a packed ring always have it, because nothing of it may be
    /// overwritten before the burst is published; so have those of a ring with a log, where it is recorded first.
    #[cold]
    fn flush(&mut self) -> Result<(), RingError> {
        match &mut self.open {
            Open::Split(split) if !split.keeps_log() => split.flush(self.shape.size, self.batch),
            Open::Split(_) | Open::Packed(_) => Ok(()),
        }
    }

    /// Publishes what was completed and makes what was taken final. True when the driver asks for a call.
    ///
    /// # Errors
    /// [`RingError::Poisoned`]: memory was lost in this burst. Nothing is published, nothing was taken.
    #[inline]
    pub fn publish(self) -> Result<bool, RingError> {
        let Self { shape, batch, burst, open } = self;
        if burst.poisoned() {
            return Err(RingError::Poisoned);
        }
        match open {
            Open::Split(split) => split.publish(shape, batch),
            Open::Packed(packed) => packed.publish(shape, batch),
        }
    }

    /// Asks the driver for a kick with the next chain. True when chains wait already: look again instead of sleeping.
    ///
    /// # Errors
    /// As [`pending`](Vring::pending).
    pub fn arm(&mut self) -> Result<bool, RingError> {
        match &mut self.open {
            Open::Split(split) => split.wish(self.shape)?,
            Open::Packed(packed) => packed.wish(self.shape)?,
        }
        // The wish must be out before the ring is looked at: the driver makes a chain available and looks at the wish.
        fence(Ordering::SeqCst);
        Ok(self.pending()? != 0)
    }

    /// Tells the driver that kicks are not needed.
    ///
    /// # Errors
    /// None in practice, as [`complete`](Vring::complete).
    pub fn disarm(&mut self) -> Result<(), RingError> {
        match &mut self.open {
            Open::Split(split) => split.disarm(self.shape),
            Open::Packed(packed) => packed.disarm(),
        }
    }
}

/// What an error comes from: of memory that was lost in this burst nothing that was read means anything.
#[cold]
fn cause(burst: &Burst<'_>, error: RingError) -> RingError {
    if burst.poisoned() { RingError::Poisoned } else { error }
}
