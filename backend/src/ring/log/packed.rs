//! The log of a packed ring.
//!
//! Behind the header are as many entries as the ring has slots at most. A chain of n slots takes n of them from a list of free
//! ones and its descriptors are copied there, because used descriptors overwrite the ring. The first entry of a chain carries
//! its mark, its counter, n, and where its last entry is.
//!
//! The header has each of its positions twice, as it is and as it was when it last was certain: the head of the free list, and
//! where the next used descriptor goes. Those in one word are stored with one store.
//!
//! Taking: the entries are filled in, the mark is set, and then *both* heads of the free list move behind them, which is
//! what records the chain: before that its entries are free, and marks of free entries mean nothing.
//!
//! Using a batch: the entries go back to the free list and its present head moves; then the present used position moves; then the
//! descriptors are written into the ring, that at the batch's first slot last; then the marks go; then the free list's old
//! head becomes the present one, and then the old used position.
//!
//! A chain that is taken and used in one burst need not be recorded where it is all that the burst takes and uses. Of
//! more than one, all but the first are overwritten before the batch is published, and only the log has them then.
//!
//! # Was the batch published?
//!
//! If the two used positions differ, something was under way, and the slot at the old one says how far it came. Until the batch
//! is published that slot is part of a chain in flight, and in this lap nothing was written there but by the driver, when it made
//! the chain available: used descriptors are written from that very slot on. So it shows *available in this lap*. The
//! driver believes nothing behind it, since it looks at used descriptors one after the other; the store to that slot publishes
//! all of the batch. From then on it shows *used in this lap*, or what the driver has made available there in the next
//! one; it cannot go further without us. So: available in this lap, not published; anything else, published.
//!
//! If it was not published, old positions hold. Slots behind the first may have been written, and would be taken for used
//! when the next batch, which need not be the same one, ends in front of them. They are made available again first, in the
//! ring only: who reads on at the recovered position never comes there, and the driver does not read what it has given away.
//! If it was published, the present positions hold, and what was used is in the free list.
//!
//! Recovery stores in such an order that its own end at any place leaves what it found, or what it was to leave: ring slots and
//! marks first, then the heads of the free list, then the used positions.

use std::sync::atomic::{Ordering, fence};

use mdev_protocol::virtio::packed::{
    Position, VIRTQ_DESC_F_AVAIL as AVAIL, VIRTQ_DESC_F_USED as USED, available_flags, is_used,
};

use super::super::RingError;
use super::super::batch::Batch;
use super::super::packed_chain::Slot;
use super::super::place::LOST;
use super::entries::{ADDR, Again, COUNTER, DESC, MARK, NEXT, NONE, Read, Recorded, at, chain, meet};
use super::{CURRENT, RingLog, VERSION, before_store, word_at};

/// The word of the header with the used positions: slots, now and before; wrap counters, now and before.
const USED_IDX: usize = 16;

/// The log of a packed ring that runs.
pub(in super::super) struct PackedLog {
    log: RingLog,
    size: u16,
    /// Where the list of free entries goes on behind each entry. It ends with what is no entry.
    next: Box<[u16]>,
    free_head: u16,
    /// Entries of the chains in flight that are recorded, by buffer id.
    chains: Box<[Recorded]>,
    /// The next counter.
    counter: u64,
    /// What is to be taken again, the first chain first, and how many of them have been.
    again: Vec<Again>,
    taken_again: usize,
    /// The chains of the batch that is being published: buffer id and slots.
    used: Vec<(u16, u16)>,
    /// The first entries of those that were recorded.
    freed: Vec<u16>,
    /// Where the batch that is being published ends.
    end: Position,
}

impl PackedLog {
    /// The log of a ring of `size`, which is read when the ring is found.
    ///
    /// # Errors
    /// A log that is no log, or of another ring.
    pub(in super::super) fn new(log: RingLog, size: u16) -> Result<Self, RingError> {
        let entries = if log.check(true, size)? { log.recorded_entries() } else { log.entries };
        Ok(Self {
            log,
            size,
            next: vec![NONE; entries.into()].into_boxed_slice(),
            free_head: NONE,
            chains: vec![Recorded::NOT; size.into()].into_boxed_slice(),
            counter: 0,
            again: Vec::new(),
            taken_again: 0,
            used: Vec::with_capacity(size.into()),
            freed: Vec::with_capacity(size.into()),
            end: Position::START,
        })
    }

    /// Reads what was recorded and completes or undoes what was under way. Says where the next used descriptor goes and what is
    /// to be taken next; `told` is where a ring begins that nothing was recorded of.
    ///
    /// # Errors
    /// [`RingError::LogCorrupt`], and as [`PackedLog::new`].
    #[cold]
    pub(in super::super) fn recover(
        &mut self,
        ring: &[Slot],
        told: Position,
    ) -> Result<(Position, Position), RingError> {
        if !self.log.check(true, self.size)? {
            self.begin(told)?;
            return Ok((told, told));
        }
        let copy = self.log.copy();
        self.log.intact()?;
        let header = word_at(&copy, VERSION)?;
        let (now_free, old_free) = ((header >> 32) as u16, (header >> 48) as u16);
        let [now, old] = positions(word_at(&copy, USED_IDX)?);
        if now.slot >= self.size || old.slot >= self.size {
            return Err(RingError::LogCorrupt);
        }
        let published = now != old && !is_available(ring, old)?;
        let (used, free) = if published { (now, now_free) } else { (old, old_free) };
        if now != old && !published {
            self.undo(ring, old, now)?;
        }

        let read = self.next.iter().zip(0u16..).map(|(_, index)| Read::of(&copy, index));
        let read = read.collect::<Result<Vec<Read>, RingError>>()?;
        let mut met = vec![false; read.len()];
        let mut index = free;
        while let Some(entry) = read.get(usize::from(index)) {
            meet(&mut met, index)?;
            if entry.marked {
                self.log.put_u16(at(index, MARK), 0)?;
            }
            index = entry.next;
        }
        let marked: Vec<u16> = read
            .iter()
            .zip(&met)
            .zip(0u16..)
            .filter(|((entry, free), _)| entry.marked && !**free)
            .map(|(_, index)| index)
            .collect();
        let mut slots = 0u16;
        for first in marked {
            let again = chain(&read, &mut met, first, self.size)?;
            slots = slots.checked_add(again.descriptors.len() as u16).ok_or(RingError::LogCorrupt)?;
            let place = self.chains.get_mut(usize::from(again.id)).ok_or(RingError::LogCorrupt)?;
            if place.first != NONE || slots > self.size {
                return Err(RingError::LogCorrupt);
            }
            *place = again.entries;
            self.again.push(again);
        }
        self.again.sort_by_key(|again| again.counter);
        self.counter = self.again.last().map_or(0, |again| again.counter.wrapping_add(1));
        self.next.iter_mut().zip(&read).for_each(|(next, entry)| *next = entry.next);
        self.free_head = free;
        self.put_free(free, free)?;
        self.put_used(used, used)?;
        Ok((used, used.advance(slots, self.size)))
    }

    /// Makes a new log.
    fn begin(&mut self, used: Position) -> Result<(), RingError> {
        for (next, index) in self.next.iter_mut().zip(0u16..) {
            *next = index.wrapping_add(1);
            self.log.put_u64(at(index, MARK), u64::from(*next) << 16)?;
        }
        self.free_head = 0;
        self.log.put_u64(super::FEATURES, 0)?;
        self.put_used(used, used)?;
        // With the version in the same word: from here on it is a log.
        self.put_free(0, 0)?;
        self.log.intact()
    }

    /// Makes available again what was written of a batch that was not published: all but its first slot.
    fn undo(&self, ring: &[Slot], from: Position, to: Position) -> Result<(), RingError> {
        let slots = from.distance(to, self.size).ok_or(RingError::LogCorrupt)?;
        for behind in 1..slots {
            let position = from.advance(behind, self.size);
            let [_, place] = ring.get(usize::from(position.slot)).ok_or(LOST)?;
            let word = u64::from_le(place.load(Ordering::Acquire));
            if is_used((word >> 48) as u16, position.wrap) {
                let cleared = word & !(u64::from(AVAIL | USED) << 48);
                before_store();
                let word = cleared | u64::from(available_flags(position.wrap)) << 48;
                place.store(word.to_le(), Ordering::Release);
            }
        }
        Ok(())
    }

    /// What is to be taken again, if the burst has taken `here` of it already.
    #[inline]
    pub(in super::super) fn again(&self, here: usize) -> &[Again] {
        self.again.get(self.taken_again.wrapping_add(here)..).unwrap_or_default()
    }

    /// A burst is about to be published, of whose chains the first `here` were taken again and the others begin at `taken` in the
    /// `ring`; `spans` has the slots of every chain in flight. Leaves out uses of chains that are not in flight. What is
    /// published goes to the ring from `from` on.
    ///
    /// # Errors
    /// [`RingError::LogLost`]; [`RingError::LogCorrupt`] if the log came without the entries that it must have.
    pub(in super::super) fn before(
        &mut self,
        here: usize,
        batch: &mut Batch,
        ring: &[Slot],
        spans: &mut [u16],
        [taken, from]: [Position; 2],
    ) -> Result<(), RingError> {
        self.log.intact()?;
        self.taken_again = self.taken_again.wrapping_add(here);
        self.used.clear();
        self.freed.clear();
        let mut slots = 0u16;
        batch.retain(|id| {
            let span = spans.get_mut(usize::from(id)).map_or(0, std::mem::take);
            if span != 0 {
                self.used.push((id, span));
                slots = slots.wrapping_add(span);
            }
            span != 0
        });
        let stays = |id: u16| spans.get(usize::from(id)).is_some_and(|span| *span != 0);
        // More than one used descriptor overwrites what a chain says before the batch is published.
        let record = self.used.len() > 1 || batch.ids(here).any(stays);
        for &(id, span) in &self.used {
            if let Some(place) = spans.get_mut(usize::from(id)) {
                *place = span;
            }
        }
        if record {
            let mut position = taken;
            for id in batch.ids(here) {
                let span = spans.get(usize::from(id)).copied().unwrap_or(0);
                self.record(ring, position, id, span)?;
                position = position.advance(span, self.size);
            }
        }
        if self.used.is_empty() {
            return Ok(());
        }
        let old_free = self.free_head;
        for &(id, _) in &self.used {
            let chain = self.chains.get_mut(usize::from(id));
            let chain = chain.map(|place| std::mem::replace(place, Recorded::NOT));
            let Some(Recorded { first, last }) = chain.filter(|chain| chain.first != NONE) else { continue };
            if let Some(next) = self.next.get_mut(usize::from(last)) {
                *next = self.free_head;
            }
            self.log.put_u16(at(last, NEXT), self.free_head)?;
            self.free_head = first;
            self.freed.push(first);
        }
        if !self.freed.is_empty() {
            self.put_free(self.free_head, old_free)?;
        }
        self.end = from.advance(slots, self.size);
        self.put_used(self.end, from)?;
        // What goes to the ring must not overtake it.
        fence(Ordering::Release);
        Ok(())
    }

    /// What was to be published has been.
    pub(in super::super) fn after(&mut self) -> Result<(), RingError> {
        for &first in &self.freed {
            self.log.put_u16(at(first, MARK), 0)?;
        }
        if !self.freed.is_empty() {
            self.put_free(self.free_head, self.free_head)?;
        }
        self.put_used(self.end, self.end)
    }

    /// Records a chain of so many slots.
    fn record(&mut self, ring: &[Slot], mut position: Position, id: u16, span: u16) -> Result<(), RingError> {
        let first = self.free_head;
        let (mut last, mut index) = (first, first);
        for left in (0..span).rev() {
            let next = *self.next.get(usize::from(index)).ok_or(RingError::LogCorrupt)?;
            let [address, word] = ring.get(usize::from(position.slot)).ok_or(LOST)?;
            let mut word = u64::from_le(word.load(Ordering::Relaxed));
            if left == 0 {
                // The name it was taken by, whatever is written there by now.
                word = word & !(0xffff << 32) | u64::from(id) << 32;
            }
            self.log.put_u64(at(index, DESC), word.rotate_left(32))?;
            self.log.put_u64(at(index, ADDR), u64::from_le(address.load(Ordering::Relaxed)))?;
            last = index;
            index = next;
            position = position.advance(1, self.size);
        }
        let next = *self.next.get(usize::from(first)).ok_or(RingError::LogCorrupt)?;
        self.log.put_u64(at(first, COUNTER), self.counter)?;
        let mark = 1 | u64::from(next) << 16 | u64::from(last) << 32 | u64::from(span) << 48;
        self.log.put_u64(at(first, MARK), mark)?;
        self.put_free(index, index)?;
        self.free_head = index;
        self.counter = self.counter.wrapping_add(1);
        if let Some(place) = self.chains.get_mut(usize::from(id)) {
            *place = Recorded { first, last };
        }
        Ok(())
    }

    fn put_free(&self, now: u16, old: u16) -> Result<(), RingError> {
        let entries = self.next.len() as u64;
        let word = u64::from(CURRENT) | entries << 16 | u64::from(now) << 32 | u64::from(old) << 48;
        self.log.put_u64(VERSION, word)
    }

    fn put_used(&self, now: Position, old: Position) -> Result<(), RingError> {
        let slots = u64::from(now.slot) | u64::from(old.slot) << 16;
        self.log.put_u64(USED_IDX, slots | u64::from(now.wrap) << 32 | u64::from(old.wrap) << 40)
    }
}

/// Whether a slot shows a descriptor that is available to who stands there.
fn is_available(ring: &[Slot], position: Position) -> Result<bool, RingError> {
    let [_, word] = ring.get(usize::from(position.slot)).ok_or(LOST)?;
    let flags = (u64::from_le(word.load(Ordering::Acquire)) >> 48) as u16;
    Ok(flags & (AVAIL | USED) == available_flags(position.wrap))
}

fn positions(word: u64) -> [Position; 2] {
    let position =
        |slot: u32, wrap: u32| Position { slot: (word >> slot) as u16, wrap: (word >> wrap) as u8 != 0 };
    [position(0, 32), position(16, 40)]
}
