//! A ring between bursts: where its parts are and how far it got.

use mdev_pin::Burst;
use mdev_protocol::virtio::split;

use super::batch::Batch;
use super::packed::Packed;
use super::place::Places;
use super::split::Split;
use super::vring::Open;
use super::{QueueState, RingError, RingSetup, Vring};

/// Entries a ring of either format may have (virtio 2.7, 2.8).
pub const MAX_RING_SIZE: u16 = split::MAX_SIZE;

/// A ring, device side (virtio 1.3, 2.7 and 2.8).
///
/// It keeps addresses and positions, and no pin on memory: [`Ring::begin`] finds the parts anew whenever the table
/// changed. A failed start, or memory that is missing for a while, changes nothing here.
pub struct Ring {
    shape: Shape,
    places: Places,
    batch: Batch,
    format: Format,
}

/// What was negotiated, once and for all.
#[derive(Copy, Clone)]
pub(super) struct Shape {
    pub(super) size: u16,
    pub(super) in_order: bool,
    pub(super) event_idx: bool,
    pub(super) indirect: bool,
}

/// How far it got, in its format.
enum Format {
    Split(Split),
    Packed(Packed),
}

impl Ring {
    /// A ring that has not been looked at yet.
    ///
    /// # Errors
    /// [`RingError::BadSize`], [`RingError::BadPosition`], and what is wrong with the log at first sight.
    pub fn new(setup: RingSetup) -> Result<Self, RingError> {
        let RingSetup { size, desc, avail, used, packed, in_order, event_idx, indirect, state, log } = setup;
        // One entry for many chains is a saving that a log does not allow.
        let in_order = in_order && log.is_none();
        Ok(Self {
            shape: Shape { size, in_order, event_idx, indirect },
            places: Places::new([desc, avail, used]),
            batch: Batch::new(if packed || log.is_some() { size.into() } else { 0 }),
            format: if packed {
                Format::Packed(Packed::new(size, state, log)?)
            } else {
                Format::Split(Split::new(size, state, log)?)
            },
        })
    }

    /// Begins where the used ring ends, whatever available index was told. Where chains are used in order the two are
    /// the same, unless whoever tells it does not know: a front-end whose back-end died can only guess. A packed ring has no
    /// such place, and begins where it was told.
    pub fn begin_at_used(&mut self) {
        if let Format::Split(split) = &mut self.format {
            split.at_used = true;
        }
    }

    /// Whether its chains in flight are recorded: a request whose chain is not completed is carried out again, by whoever serves
    /// the ring next. A request that was cancelled because the ring is stopped is to be left so.
    pub fn keeps_log(&self) -> bool {
        match &self.format {
            Format::Split(split) => split.log.is_some(),
            Format::Packed(packed) => packed.log.is_some(),
        }
    }

    /// How far the ring got.
    pub fn state(&self) -> QueueState {
        match &self.format {
            Format::Split(split) => split.state(),
            Format::Packed(packed) => packed.state(),
        }
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.shape.size
    }

    /// Opens the ring for one burst.
    ///
    /// # Errors
    /// A part that has no translation, the wrong permission or alignment, or overlaps another.
    #[inline]
    pub fn begin<'r, 'b>(&'r mut self, burst: &'r Burst<'b>) -> Result<Vring<'r, 'b>, RingError> {
        let Self { shape, places, batch, format } = self;
        let open = match format {
            Format::Split(split) => Open::Split(split.open(*shape, places, burst)?),
            Format::Packed(packed) => {
                packed.forget(batch);
                Open::Packed(packed.open(*shape, places, burst)?)
            }
        };
        batch.clear();
        Ok(Vring::new(*shape, batch, burst, open))
    }
}
