//! The packed ring (virtio 1.3, 2.8): take, write used descriptors, notify.
//!
//! Used descriptors overwrite available ones, so nothing is written before the burst is published, and then backwards in effect:
//! whoever sees the first one sees them all. A used descriptor stands at the first slot of the chains that were used, in
//! the order in which they were; how many slots a chain took is remembered under its buffer id while it is in flight.

use std::hint::cold_path;
use std::sync::atomic::{Ordering, fence};

use mdev_dma::{GuestSlice, Perm};
use mdev_pin::Burst;
use mdev_protocol::virtio::packed::{
    EVENT_FLAGS_OFFSET, EVENT_LEN, Position, RING_EVENT_FLAGS_DESC, RING_EVENT_FLAGS_DISABLE,
    RING_EVENT_FLAGS_ENABLE, desc_len, is_size, needs_event, used_flags,
};

use super::batch::Batch;
use super::chain::Chain;
use super::idle::Shape;
use super::log::{Again, PackedLog, before_store};
use super::packed_chain::{Descriptor, Slot, Source};
use super::place::{LOST, Parts, Places, Wanted};
use super::{Part, QueueState, RingError, RingLog};

/// How far a packed ring got.
pub(super) struct Packed {
    next_avail: Position,
    next_used: Position,
    /// A decision about a call was made before.
    signalled: bool,
    /// Slots of the chain in flight by buffer id; 0 for none.
    spans: Box<[u16]>,
    /// Where its chains in flight are recorded.
    pub(super) log: Option<Box<PackedLog>>,
    /// The log has been read.
    recovered: bool,
}

impl Packed {
    pub(super) fn new(size: u16, state: QueueState, log: Option<RingLog>) -> Result<Self, RingError> {
        if !is_size(size.into()) {
            return Err(RingError::BadPackedSize(size));
        }
        let place = |word| match Position::from_word(word) {
            at if at.slot < size => Ok(at),
            at => Err(RingError::BadPosition { slot: at.slot, size }),
        };
        let next_avail = place(state.next_avail)?;
        let next_used = state.next_used.map_or(Ok(next_avail), place)?;
        if next_used.distance(next_avail, size).is_none() {
            return Err(RingError::BadPosition { slot: next_used.slot, size });
        }
        let spans = vec![0; size.into()].into_boxed_slice();
        let log = log.map(|log| PackedLog::new(log, size).map(Box::new)).transpose()?;
        Ok(Self { next_avail, next_used, signalled: false, spans, log, recovered: false })
    }

    pub(super) fn state(&self) -> QueueState {
        QueueState::packed(self.next_avail, self.next_used)
    }

    /// What a burst took that was not published is not in flight.
    #[inline(always)]
    pub(super) fn forget(&mut self, batch: &Batch) {
        if batch.taken() != 0 {
            end_all(&mut self.spans, batch.last(batch.taken()));
        }
    }

    #[inline(always)]
    pub(super) fn open<'r>(
        &'r mut self,
        shape: Shape,
        places: &mut Places,
        burst: &'r Burst<'_>,
    ) -> Result<OpenPacked<'r>, RingError> {
        let parts = match places.recall(burst) {
            Some(parts) => parts,
            None => self.find(shape.size, places, burst)?,
        };
        let [desc, driver, device] = parts;
        let desc = desc.pairs().ok_or(LOST)?;
        let next_avail = self.next_avail;
        Ok(OpenPacked { ring: self, desc, driver, device, next_avail, again: 0 })
    }

    /// Finds the three parts in the present table, and for the first time, where the ring stands according to its log.
    #[cold]
    fn find<'s>(
        &mut self,
        size: u16,
        places: &mut Places,
        burst: &'s Burst<'_>,
    ) -> Result<Parts<'s>, RingError> {
        let parts = find(size, places, burst)?;
        let [desc, ..] = &parts;
        if let (Some(log), false) = (&mut self.log, self.recovered) {
            // Ring and log know better than a front-end whose back-end died.
            (self.next_used, self.next_avail) = log.recover(desc.pairs().ok_or(LOST)?, self.next_used)?;
            self.recovered = true;
        }
        Ok(parts)
    }
}

/// Finds the three parts in the present table.
#[cold]
fn find<'s>(size: u16, places: &mut Places, burst: &'s Burst<'_>) -> Result<Parts<'s>, RingError> {
    let write = Perm::READ | Perm::WRITE;
    places.find(
        burst,
        [
            Wanted { part: Part::Descriptors, len: desc_len(size), perm: write, align: 16 },
            Wanted { part: Part::DriverEvents, len: EVENT_LEN, perm: Perm::READ, align: 4 },
            Wanted { part: Part::DeviceEvents, len: EVENT_LEN, perm: write, align: 4 },
        ],
    )
}

/// A packed ring in one burst.
pub(super) struct OpenPacked<'r> {
    ring: &'r mut Packed,
    desc: &'r [Slot],
    driver: GuestSlice<'r>,
    device: GuestSlice<'r>,
    next_avail: Position,
    /// The first so many of the chains of the burst were taken before, and are taken again.
    again: usize,
}

impl OpenPacked<'_> {
    /// Chains that are recorded and were not taken again yet.
    #[inline(always)]
    fn to_take_again(&self) -> &[Again] {
        self.ring.log.as_ref().map_or(&[], |log| log.again(self.again))
    }

    /// Slots that no chain in flight has.
    #[inline(always)]
    fn free(&self, size: u16) -> u16 {
        size.wrapping_sub(self.ring.next_used.distance(self.next_avail, size).unwrap_or(size))
    }

    #[inline(always)]
    pub(super) fn pending(&self, size: u16) -> Result<u16, RingError> {
        if !self.to_take_again().is_empty() {
            return Ok(1);
        }
        let at = self.next_avail;
        let desc = Descriptor::load(self.desc.get(usize::from(at.slot)).ok_or(LOST)?);
        match desc.is_available(at.wrap) {
            false => Ok(0),
            true if self.free(size) == 0 => Err(RingError::Overrun { size }),
            true => Ok(1),
        }
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
        let source = Source { burst, ring: self.desc, size, indirect };
        if !self.to_take_again().is_empty() {
            return self.take_again(&source, batch, max, each);
        }
        let (mut at, mut free) = (self.next_avail, self.free(size));
        let spans = &mut *self.ring.spans;
        let (ids, scratch) = batch.fresh(max);
        let mut taken = 0usize;
        let mut outcome = Ok(());
        while let Some(places) = ids.get_mut(taken..).filter(|places| !places.is_empty()) {
            // What nearly all chains are, in a straight line up to the end of the ring.
            let straight = self.desc.get(at.slot.into()..).unwrap_or_default();
            let straight = straight.get(..free.into()).unwrap_or(straight);
            let mut single = 0u16;
            for (slot, place) in straight.iter().zip(&mut *places) {
                let desc = Descriptor::load(slot);
                let id = desc.id();
                let span = match spans.get_mut(usize::from(id)) {
                    Some(span) if *span == 0 && desc.is_single(at.wrap) => span,
                    _ => break,
                };
                let one = desc.buffer(slot);
                // A call for each form, so that it is compiled for what it gets.
                outcome = if desc.writes() {
                    each(Chain { head: id, readable: &[], writable: &[one] })
                } else {
                    each(Chain { head: id, readable: &[one], writable: &[] })
                };
                if outcome.is_err() {
                    break;
                }
                *span = 1;
                *place = id.to_le_bytes();
                single = single.wrapping_add(1);
            }
            at = at.advance(single, size);
            free = free.wrapping_sub(single);
            taken = taken.wrapping_add(single.into());
            if outcome.is_err() {
                break;
            }
            // What stopped it is read anew: the end of what waits, a chain of another form, or one that is wrong.
            let Some(place) = ids.get_mut(taken) else { break };
            let found = source.chain(at, free, scratch).and_then(|chain| {
                let Some((chain, slots)) = chain else { return Ok(None) };
                let span = enlist(spans, chain.head, size)?;
                each(chain)?;
                *span = slots;
                Ok(Some((chain.head, slots)))
            });
            match found {
                Ok(Some((id, slots))) => {
                    *place = id.to_le_bytes();
                    at = at.advance(slots, size);
                    free = free.wrapping_sub(slots);
                    taken = taken.wrapping_add(1);
                }
                Ok(None) => break,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        if taken == 0 {
            outcome?;
        }
        batch.take(taken);
        self.next_avail = at;
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
        let Packed { spans, log, .. } = &mut *self.ring;
        let recorded = log.as_ref().map_or(&[][..], |log| log.again(self.again));
        let (places, scratch) = batch.fresh(max);
        let mut taken = 0usize;
        let mut outcome = Ok(());
        for (chain, place) in recorded.iter().zip(places) {
            outcome = source.recorded(chain.id, &chain.descriptors, scratch).and_then(&mut each);
            let span = spans.get_mut(usize::from(chain.id));
            let (Ok(()), Some(span)) = (outcome, span) else { break };
            *span = chain.descriptors.len() as u16;
            *place = chain.id.to_le_bytes();
            taken = taken.wrapping_add(1);
        }
        if taken == 0 {
            outcome?;
        }
        batch.take(taken);
        self.again = self.again.wrapping_add(taken);
        Ok(taken)
    }

    /// Gives back the chains with these ids, the last of the `taken` chains of the burst.
    pub(super) fn untake(&mut self, size: u16, taken: usize, ids: &[[u8; 2]]) {
        let fresh = taken.saturating_sub(self.again).min(ids.len());
        let (again, fresh) = ids.split_at_checked(ids.len().saturating_sub(fresh)).unwrap_or_default();
        end_all(&mut self.ring.spans, again);
        self.again = self.again.saturating_sub(again.len());
        let slots = end_all(&mut self.ring.spans, fresh);
        self.next_avail = self.next_avail.retreat(slots, size);
    }

    #[inline(always)]
    pub(super) fn publish(self, shape: Shape, batch: &mut Batch) -> Result<bool, RingError> {
        let Shape { size, event_idx, .. } = shape;
        let Self { ring, desc, driver, next_avail, again, .. } = self;
        let from = ring.next_used;
        if let Some(log) = &mut ring.log {
            log.before(again, batch, desc, &mut ring.spans, [ring.next_avail, from])?;
        }
        ring.next_avail = next_avail;
        let spans = &mut *ring.spans;
        let (run, mut uses) = batch.uses();
        // With one entry for all of them the driver walks through its chains up to this one (2.8.9).
        let together =
            if run.is_empty() { None } else { uses.next().map(|used| (used, end_all(spans, run))) };
        let first = together.filter(|(_, slots)| *slots != 0);
        let mut each = uses.by_ref().map(|used| (used, end(spans, used.id())));
        let first = first.or_else(|| each.find(|(_, slots)| *slots != 0));
        let Some((first, mut passed)) = first else {
            drop(uses);
            batch.clear();
            return Ok(false);
        };
        let mut at = from.advance(passed, size);
        let mut lap = used_lap(at.wrap);
        for used in uses {
            let slots = end(spans, used.id());
            if slots == 0 {
                // Not in flight: it has been used before.
                continue;
            }
            store(desc, at.slot, used.packed() | lap, Ordering::Relaxed)?;
            passed = passed.wrapping_add(slots);
            at.slot = at.slot.wrapping_add(slots);
            if at.slot >= size {
                cold_path();
                at = Position { slot: at.slot.wrapping_sub(size), wrap: !at.wrap };
                lap = used_lap(at.wrap);
            }
        }
        batch.clear();
        ring.next_used = at;
        store(desc, from.slot, first.packed() | used_lap(from.wrap), Ordering::Release)?;
        if let Some(log) = &mut ring.log {
            log.after()?;
        }
        // The descriptors must be out before the driver's wish is read: it publishes its wish and looks at them again.
        fence(Ordering::SeqCst);
        let wish = u32::from_le(driver.load_u32(0, Ordering::Relaxed).ok_or(LOST)?);
        let (event, flags) = (Position::from_word(wish as u16), (wish >> 16) as u16 & 3);
        let signalled = std::mem::replace(&mut ring.signalled, true);
        Ok(match flags {
            RING_EVENT_FLAGS_DISABLE => false,
            // Before the first decision nobody knows what the driver has seen.
            RING_EVENT_FLAGS_DESC if event_idx && signalled => needs_event(event, at, passed, size),
            _ => true,
        })
    }

    /// Says that a kick is wanted with the next chain.
    pub(super) fn wish(&mut self, shape: Shape) -> Result<(), RingError> {
        let wish = match shape.event_idx {
            true => u32::from(self.next_avail.word()) | u32::from(RING_EVENT_FLAGS_DESC) << 16,
            false => u32::from(RING_EVENT_FLAGS_ENABLE) << 16,
        };
        self.device.store_u32(0, wish.to_le(), Ordering::Relaxed).ok_or(LOST)
    }

    pub(super) fn disarm(&mut self) -> Result<(), RingError> {
        let flags = RING_EVENT_FLAGS_DISABLE.to_le();
        self.device.store_u16(EVENT_FLAGS_OFFSET, flags, Ordering::Relaxed).ok_or(LOST)
    }
}

/// The place in the books of a chain that is not in flight yet.
#[inline(always)]
fn enlist(spans: &mut [u16], id: u16, size: u16) -> Result<&mut u16, RingError> {
    match spans.get_mut(usize::from(id)) {
        Some(span) if *span == 0 => Ok(span),
        Some(_) => Err(RingError::IdInFlight { id }),
        None => Err(RingError::IdOutOfRange { id, size }),
    }
}

/// Takes a chain off the books, and says how many slots it had: 0 if it is not in flight.
#[inline(always)]
fn end(spans: &mut [u16], id: u16) -> u16 {
    spans.get_mut(usize::from(id)).map_or(0, std::mem::take)
}

/// The same for many: how many slots they had together.
#[inline(always)]
fn end_all(spans: &mut [u16], ids: &[[u8; 2]]) -> u16 {
    ids.iter().fold(0, |slots, id| slots.wrapping_add(end(spans, u16::from_le_bytes(*id))))
}

/// The flags of a used descriptor in a lap of the ring.
#[inline(always)]
fn used_lap(wrap: bool) -> u64 {
    u64::from(used_flags(wrap)) << 48
}

#[inline(always)]
fn store(ring: &[Slot], slot: u16, word: u64, order: Ordering) -> Result<(), RingError> {
    let [_, place] = ring.get(usize::from(slot)).ok_or(LOST)?;
    before_store();
    place.store(word.to_le(), order);
    Ok(())
}
