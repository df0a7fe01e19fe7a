//! The driver's side of a packed virtqueue (virtio 1.3, section 2.8).
use super::error::DriverError;
use super::memory::{GuestMemory, Part};
use super::order::Order;
use super::raw::RawPacked;
use super::split::{INDIRECT_LEN, INDIRECT_PIECES, LINES};
use super::virtqueue::{Piece, RingAddresses, RingOptions, Used, Virtqueue};
use mdev_dma::{GuestSlice, Iova};
use mdev_protocol::virtio::packed::{
    DESC_ALIGN, DESC_LEN, Desc, EVENT_LEN, LEN_OFFSET, Position, RING_EVENT_FLAGS_DESC,
    RING_EVENT_FLAGS_DISABLE, RING_EVENT_FLAGS_ENABLE, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE, available_flags, desc_len, is_size, is_used, needs_event,
};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

/// Where a chain is.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum Holder {
    /// There is no such chain.
    #[default]
    Nobody,
    Driver,
    Device,
}

/// One chain, known by its buffer id.
#[derive(Clone, Debug, Default)]
struct Chain {
    holder: Holder,
    pieces: SmallVec<[Piece; 3]>,
    /// Slots that it takes in the ring.
    slots: u16,
    /// Bytes that the device may write.
    writable: u32,
}

/// The driver's side of one packed ring.
///
/// The life of a chain is that of [`SplitQueue`](super::SplitQueue)'s; its head is its buffer id. Descriptors are written when a
/// chain is offered, since using it destroys them. What the device sees of a batch before [`publish`](Virtqueue::publish) is
/// nothing: the first descriptor's flags are written last.
pub struct PackedQueue {
    ring: Part,
    driver_event: Part,
    device_event: Part,
    /// One indirect table for each id, if the ring has them.
    tables: Option<Part>,
    options: RingOptions,
    chains: Vec<Chain>,
    free_ids: Vec<u16>,
    /// Slots that no prepared chain will need.
    free: u16,
    outstanding: u16,
    avail: Position,
    used: Position,
    /// The first descriptor that was offered since the last publication: its slot, and its last eight bytes.
    held_back: Option<(u16, u64)>,
    /// Slots that were filled since then.
    filled: u16,
    /// Used chains that were read but not taken yet.
    found: VecDeque<Used>,
    order: Option<Order>,
}

impl PackedQueue {
    /// The ring's memory, to be written with anything at all.
    pub fn raw(&self) -> RawPacked<'_> {
        RawPacked::new(&self.ring, &self.driver_event, &self.device_event, self.options.size)
    }

    /// Whose turn it is next: where the driver makes descriptors available, and where it expects used ones.
    pub fn positions(&self) -> (Position, Position) {
        (self.avail, self.used)
    }

    fn held(&self, head: u16) -> Result<&Chain, DriverError> {
        match self.chains.get(usize::from(head)) {
            Some(chain) if chain.holder == Holder::Driver => Ok(chain),
            _ => Err(DriverError::NotHeld(head)),
        }
    }

    fn table_at(&self, head: u16) -> Option<(Iova, GuestSlice<'_>)> {
        let tables = self.tables.as_ref()?;
        let offset = u64::from(head) * INDIRECT_LEN;
        Some((tables.at.checked_add(offset)?, tables.range(offset, INDIRECT_LEN)?))
    }

    /// Writes one descriptor at the driver's position, or all of it but its last eight bytes if it is the first of a batch.
    #[inline]
    fn put(&mut self, addr: u64, len: u32, id: u16, flags: u16) {
        let Position { slot, wrap } = self.avail;
        let word = tail(len, id, flags | available_flags(wrap));
        if let Some(ring) = self.ring.slice() {
            let at = desc_len(slot);
            let _ = ring.store_u64(at, addr.to_le(), Ordering::Relaxed);
            if self.held_back.is_some() {
                let _ = ring.store_u64(at + LEN_OFFSET, word.to_le(), Ordering::Relaxed);
            } else {
                self.held_back = Some((slot, word));
            }
        }
        self.avail = self.avail.advance(1, self.options.size);
        self.filled += 1;
    }

    /// Reads the next used descriptor, if there is one, and what it stands for into `found`.
    #[inline]
    fn look(&mut self) -> Result<bool, DriverError> {
        let at = desc_len(self.used.slot) + LEN_OFFSET;
        let word = self.ring.slice().and_then(|ring| ring.load_u64(at, Ordering::Acquire));
        let word = u64::from_le(word.unwrap_or(0));
        let (len, id, flags) = (word as u32, (word >> 32) as u16, (word >> 48) as u16);
        if !is_used(flags, self.used.wrap) {
            return Ok(false);
        }
        let foreign = DriverError::UsedTwice(id.into());
        let capacity = match self.chains.get(usize::from(id)) {
            Some(chain) if chain.holder == Holder::Device => chain.writable,
            _ => return Err(foreign),
        };
        // Without the flag nothing was written and the length means nothing.
        let len = if flags & VIRTQ_DESC_F_WRITE != 0 { len } else { 0 };
        if len > capacity {
            return Err(DriverError::UsedLength { len, capacity });
        }
        match &mut self.order {
            None => self.came_back(id, Some(len)),
            Some(order) => {
                let chains = order.spans(id).ok_or(foreign)?;
                order.begin(chains, len);
                while let Some((head, len)) = self.order.as_mut().and_then(Order::take) {
                    self.came_back(head, len);
                }
            }
        }
        Ok(true)
    }

    /// The device has used the chain; `len` is unknown for all but the last of a batch, which were used completely.
    #[inline]
    fn came_back(&mut self, head: u16, len: Option<u32>) {
        if let Some(chain) = self.chains.get_mut(usize::from(head)) {
            // The driver has it when it is taken; until then it is nobody's to offer.
            chain.holder = Holder::Nobody;
            self.used = self.used.advance(chain.slots, self.options.size);
            self.outstanding -= 1;
            self.found.push_back(Used { head, len: len.unwrap_or(chain.writable) });
        }
    }
}

/// The last eight bytes of a descriptor.
#[inline(always)]
fn tail(len: u32, id: u16, flags: u16) -> u64 {
    u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48
}

/// Writes an indirect table.
fn write_table(table: &GuestSlice<'_>, pieces: &[Piece]) {
    for (place, piece) in pieces.iter().enumerate() {
        let desc = Desc { addr: piece.at.0, len: piece.len, id: 0, flags: flags_of(piece) };
        let _ = table.write(place * DESC_LEN, desc);
    }
}

fn flags_of(piece: &Piece) -> u16 {
    if piece.device_writes { VIRTQ_DESC_F_WRITE } else { 0 }
}

fn writable(pieces: &[Piece]) -> u32 {
    pieces.iter().filter(|piece| piece.device_writes).fold(0, |sum: u32, piece| sum.saturating_add(piece.len))
}

impl Virtqueue for PackedQueue {
    fn new(memory: &mut GuestMemory, options: RingOptions) -> Result<Self, DriverError> {
        let size = options.size;
        if !is_size(size.into()) {
            return Err(DriverError::Size(size));
        }
        let mut part = |len: usize, align: u64| memory.allocate(len as u64, align.max(LINES));
        let mut queue = PackedQueue {
            ring: part(desc_len(size), DESC_ALIGN)?,
            driver_event: part(EVENT_LEN, LINES)?,
            device_event: part(EVENT_LEN, LINES)?,
            tables: options
                .indirect
                .then(|| part(usize::from(size) * INDIRECT_LEN as usize, DESC_ALIGN))
                .transpose()?,
            options,
            chains: vec![Chain::default(); size.into()],
            free_ids: (0..size).rev().collect(),
            free: size,
            outstanding: 0,
            avail: Position::START,
            used: Position::START,
            held_back: None,
            filled: 0,
            found: VecDeque::with_capacity(size.into()),
            order: options.in_order.then(Order::default),
        };
        queue.want_calls(false);
        Ok(queue)
    }

    fn options(&self) -> RingOptions {
        self.options
    }

    fn addresses(&self) -> RingAddresses {
        RingAddresses { desc: self.ring.at, avail: self.driver_event.at, used: self.device_event.at }
    }

    fn outstanding(&self) -> u16 {
        self.outstanding + self.found.len() as u16
    }

    fn next_head(&self) -> Option<u16> {
        self.free_ids.last().copied().filter(|_| self.free > 0)
    }

    fn prepare(&mut self, pieces: &[Piece]) -> Result<u16, DriverError> {
        let indirect = self.tables.is_some() && pieces.len() > 1;
        let needed = if indirect { 1 } else { pieces.len() };
        let none = DriverError::NoDescriptors { pieces: pieces.len(), free: self.free.into() };
        if pieces.is_empty() || needed > self.free.into() || (indirect && pieces.len() > INDIRECT_PIECES) {
            return Err(none);
        }
        let Some(head) = self.free_ids.pop() else { return Err(none) };
        if indirect && let Some((_, table)) = self.table_at(head) {
            write_table(&table, pieces);
        }
        if let Some(chain) = self.chains.get_mut(usize::from(head)) {
            *chain = Chain {
                holder: Holder::Driver,
                pieces: SmallVec::from_slice(pieces),
                slots: needed as u16,
                writable: writable(pieces),
            };
        }
        self.free -= needed as u16;
        Ok(head)
    }

    #[inline]
    fn rewrite(&mut self, head: u16, pieces: &[Piece]) -> Result<u16, DriverError> {
        let Chain { pieces: before, .. } = self.held(head)?;
        let count = before.len();
        if pieces.len() != count {
            self.release(head)?;
            return self.prepare(pieces);
        }
        if self.tables.is_some()
            && count > 1
            && let Some((_, table)) = self.table_at(head)
        {
            write_table(&table, pieces);
        }
        if let Some(chain) = self.chains.get_mut(usize::from(head)) {
            chain.pieces = SmallVec::from_slice(pieces);
            chain.writable = writable(pieces);
        }
        Ok(head)
    }

    #[inline]
    fn pieces(&self, head: u16) -> usize {
        self.chains.get(usize::from(head)).map_or(0, |chain| chain.pieces.len())
    }

    #[inline]
    fn resize_last(&mut self, head: u16, len: u32) -> Result<(), DriverError> {
        let pieces = self.held(head)?.pieces.len();
        if self.tables.is_some()
            && pieces > 1
            && let Some((_, table)) = self.table_at(head)
        {
            let _ = table.write((pieces - 1) * DESC_LEN + LEN_OFFSET, len.to_le());
        }
        if let Some(chain) = self.chains.get_mut(usize::from(head))
            && let Some(last) = chain.pieces.last_mut()
        {
            last.len = len;
            chain.writable = writable(&chain.pieces);
        }
        Ok(())
    }

    fn release(&mut self, head: u16) -> Result<(), DriverError> {
        self.free += self.held(head)?.slots;
        if let Some(chain) = self.chains.get_mut(usize::from(head)) {
            *chain = Chain::default();
        }
        self.free_ids.push(head);
        Ok(())
    }

    #[inline]
    fn offer_each(&mut self, heads: impl IntoIterator<Item = u16>) -> Result<(), DriverError> {
        for head in heads {
            let Chain { pieces, slots, .. } = self.held(head)?;
            let (count, one) = (pieces.len(), pieces.first().copied());
            if count == 1 {
                if let Some(piece) = one {
                    self.put(piece.at.0, piece.len, head, flags_of(&piece));
                }
            } else if *slots == 1 {
                let table = self.table_at(head).map_or(0, |(at, _)| at.0);
                self.put(table, (count * DESC_LEN) as u32, head, VIRTQ_DESC_F_INDIRECT);
            } else {
                let pieces = pieces.clone();
                for (place, piece) in pieces.iter().enumerate() {
                    let next = if place + 1 < count { VIRTQ_DESC_F_NEXT } else { 0 };
                    self.put(piece.at.0, piece.len, head, flags_of(piece) | next);
                }
            }
            if let Some(chain) = self.chains.get_mut(usize::from(head)) {
                chain.holder = Holder::Device;
            }
            self.outstanding += 1;
            if let Some(order) = &mut self.order {
                order.offered(head);
            }
        }
        Ok(())
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let (Some((slot, word)), Some(ring)) = (self.held_back.take(), self.ring.slice()) else {
            return false;
        };
        let _ = ring.store_u64(desc_len(slot) + LEN_OFFSET, word.to_le(), Ordering::Release);
        let filled = std::mem::take(&mut self.filled);
        // The descriptors must be visible before we look whether the device sleeps, as it looks at them after saying so.
        fence(Ordering::SeqCst);
        let event = self.device_event.slice().and_then(|event| event.load_u32(0, Ordering::Relaxed));
        let event = u32::from_le(event.unwrap_or(0));
        match (event >> 16) as u16 & 3 {
            RING_EVENT_FLAGS_DISABLE => false,
            RING_EVENT_FLAGS_DESC if self.options.event_idx => {
                needs_event(Position::from_word(event as u16), self.avail, filled, self.options.size)
            }
            _ => true,
        }
    }

    #[inline]
    fn ready(&mut self) -> Result<u16, DriverError> {
        while self.look()? {}
        Ok(self.found.len() as u16)
    }

    #[inline]
    fn pop_each(&mut self, count: u16, mut each: impl FnMut(Used)) -> Result<(), DriverError> {
        for used in self.found.drain(..usize::from(count).min(self.found.len())) {
            if let Some(chain) = self.chains.get_mut(usize::from(used.head)) {
                chain.holder = Holder::Driver;
            }
            each(used);
        }
        Ok(())
    }

    fn want_calls(&mut self, wanted: bool) {
        let (desc, flags) = match wanted {
            false => (0, RING_EVENT_FLAGS_DISABLE),
            true if self.options.event_idx => (self.used.word(), RING_EVENT_FLAGS_DESC),
            true => (0, RING_EVENT_FLAGS_ENABLE),
        };
        if let Some(event) = self.driver_event.slice() {
            let word = u32::from(desc) | u32::from(flags) << 16;
            let _ = event.store_u32(0, word.to_le(), Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    fn base(&self) -> u32 {
        // What is not used the device takes anew.
        let word = u32::from(self.used.word());
        word | word << 16
    }

    fn reset(&mut self) {
        for part in [&self.ring, &self.driver_event, &self.device_event] {
            if let Some(slice) = part.slice() {
                slice.fill(0);
            }
        }
        for (id, chain) in self.chains.iter_mut().enumerate() {
            let found = self.found.iter().any(|used| usize::from(used.head) == id);
            if chain.holder == Holder::Device || found {
                chain.holder = Holder::Driver;
            }
        }
        self.found.clear();
        self.order.iter_mut().for_each(Order::clear);
        (self.outstanding, self.filled, self.held_back) = (0, 0, None);
        (self.avail, self.used) = (Position::START, Position::START);
        self.want_calls(false);
    }

    fn held_heads(&self) -> Vec<u16> {
        let held = |(head, chain): (usize, &Chain)| (chain.holder == Holder::Driver).then_some(head as u16);
        self.chains.iter().enumerate().filter_map(held).collect()
    }
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;
