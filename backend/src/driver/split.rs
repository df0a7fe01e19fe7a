//! The driver's side of a split virtqueue (virtio 1.3, section 2.7).
use super::error::DriverError;
use super::memory::{GuestMemory, Part};
use super::order::Order;
use super::pieces::{PLACES, write_chain};
use super::raw::RawRing;
use super::virtqueue::{Piece, RingAddresses, RingOptions, Used};
use mdev_dma::{GuestSlice, Iova};
use mdev_protocol::virtio::split::{
    AVAIL_ALIGN, DESC_ALIGN, Desc, FLAGS_OFFSET, IDX_OFFSET, USED_ALIGN, VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT, VIRTQ_USED_F_NO_NOTIFY, avail_entry, avail_len, desc_len, is_size, needs_event,
    used_entry, used_len,
};
use std::sync::atomic::{Ordering, fence};

/// Descriptors in each chain's indirect table.
pub(super) const INDIRECT_PIECES: usize = 16;
/// Bytes of such a table.
pub(super) const INDIRECT_LEN: u64 = (INDIRECT_PIECES * size_of::<Desc>()) as u64;
/// Each part of a ring starts on lines of its own: the two sides write to different parts.
pub(super) const LINES: u64 = 128;

/// Where a chain's bookkeeping stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Chain {
    /// Heads nothing.
    None,
    /// The driver has it.
    Held,
    /// The device has it.
    Outstanding,
}

/// The driver's side of one split ring.
///
/// A chain is known by its head. It is prepared once, then goes round: [`offer`](Self::offer), [`publish`](Self::publish),
/// [`pop`](Self::pop). The driver's own records say what is free and what is outstanding; nothing is ever derived from
/// what the device could have overwritten.
pub struct SplitQueue {
    desc: Part,
    avail: Part,
    used: Part,
    /// One indirect table for each head, if the ring has them.
    tables: Option<Part>,
    options: RingOptions,
    free: Vec<u16>,
    chains: Vec<Chain>,
    /// The descriptors that belong to each chain, head first.
    members: Vec<Vec<u16>>,
    pieces: Vec<u8>,
    /// What the device may write to each chain, in bytes: of the last piece, and of those before it.
    writable: Vec<[u32; 2]>,
    order: Option<Order>,
    /// The head that is to be offered next, in order.
    due: u16,
    outstanding: u16,
    next_avail: u16,
    published: u16,
    next_used: u16,
}

impl SplitQueue {
    /// An empty ring in the guest's memory, with calls not wanted.
    ///
    /// # Errors
    /// [`DriverError::Size`], [`DriverError::Memory`].
    pub fn new(memory: &mut GuestMemory, options: RingOptions) -> Result<Self, DriverError> {
        let size = options.size;
        if !is_size(size.into()) {
            return Err(DriverError::Size(size));
        }
        let mut part = |len: usize, align: u64| memory.allocate(len as u64, align.max(LINES));
        let mut queue = SplitQueue {
            desc: part(desc_len(size), DESC_ALIGN)?,
            avail: part(avail_len(size, true), AVAIL_ALIGN)?,
            used: part(used_len(size, true), USED_ALIGN)?,
            tables: options
                .indirect
                .then(|| part(usize::from(size) * INDIRECT_LEN as usize, 16))
                .transpose()?,
            options,
            free: (0..size).rev().collect(),
            chains: vec![Chain::None; size.into()],
            members: vec![Vec::new(); size.into()],
            pieces: vec![0; size.into()],
            writable: vec![[0; 2]; size.into()],
            order: options.in_order.then(Order::default),
            due: 0,
            outstanding: 0,
            next_avail: 0,
            published: 0,
            next_used: 0,
        };
        queue.want_calls(false);
        Ok(queue)
    }

    /// The ring's options.
    pub fn options(&self) -> RingOptions {
        self.options
    }

    /// Where its parts are.
    pub fn addresses(&self) -> RingAddresses {
        RingAddresses { desc: self.desc.at, avail: self.avail.at, used: self.used.at }
    }

    /// Chains that the device has.
    pub fn outstanding(&self) -> u16 {
        self.outstanding
    }

    /// The head that the next prepared chain gets; `None` if no descriptor is free.
    pub fn next_head(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Writes a chain and returns its head. The driver holds it.
    ///
    /// # Errors
    /// [`DriverError::NoDescriptors`].
    pub fn prepare(&mut self, pieces: &[Piece]) -> Result<u16, DriverError> {
        let indirect = self.tables.is_some() && pieces.len() > 1;
        let needed = if indirect { 1 } else { pieces.len() };
        let none = DriverError::NoDescriptors { pieces: pieces.len(), free: self.free.len() };
        if pieces.is_empty()
            || needed > self.free.len()
            || pieces.len() > usize::from(u8::MAX)
            || (indirect && pieces.len() > INDIRECT_PIECES)
        {
            return Err(none);
        }
        let members = self.free.split_off(self.free.len() - needed);
        let members: Vec<u16> = members.into_iter().rev().collect();
        let Some(&head) = members.first() else { return Err(none) };
        if indirect {
            let at = Iova(self.table_at(head).map_or(0, |(at, _)| at.0));
            if let Some((_, table)) = self.table_at(head) {
                write_chain(&table, &PLACES, pieces);
            }
            let whole = Desc {
                addr: at.0,
                len: (pieces.len() * size_of::<Desc>()) as u32,
                flags: VIRTQ_DESC_F_INDIRECT,
                next: 0,
            };
            self.write_desc(head, whole);
        } else if let Some(table) = self.desc.slice() {
            write_chain(&table, &members, pieces);
        }
        if let (Some(chain), Some(own), Some(count), Some(writable)) = (
            self.chains.get_mut(usize::from(head)),
            self.members.get_mut(usize::from(head)),
            self.pieces.get_mut(usize::from(head)),
            self.writable.get_mut(usize::from(head)),
        ) {
            *chain = Chain::Held;
            *own = members;
            *count = pieces.len() as u8;
            *writable = writable_of(pieces);
        }
        Ok(head)
    }

    /// Makes the pieces of a held chain others, and returns its head: a new one if there are not as many as before.
    ///
    /// # Errors
    /// [`DriverError::NotHeld`], [`DriverError::NoDescriptors`]; the chain is then released.
    #[inline]
    pub fn rewrite(&mut self, head: u16, pieces: &[Piece]) -> Result<u16, DriverError> {
        self.held(head)?;
        if pieces.len() != self.pieces(head) {
            self.release(head)?;
            return self.prepare(pieces);
        }
        let members = self.members.get(usize::from(head)).map_or(&[][..], Vec::as_slice);
        if members.len() == pieces.len() {
            if let Some(table) = self.desc.slice() {
                write_chain(&table, members, pieces);
            }
        } else if let Some((_, table)) = self.table_at(head) {
            write_chain(&table, &PLACES, pieces);
        }
        if let Some(writable) = self.writable.get_mut(usize::from(head)) {
            *writable = writable_of(pieces);
        }
        Ok(head)
    }

    /// How many pieces the chain of this head has; 0 if it heads none.
    #[inline]
    pub fn pieces(&self, head: u16) -> usize {
        usize::from(self.pieces.get(usize::from(head)).copied().unwrap_or(0))
    }

    /// Changes the length of the last piece of a held chain.
    ///
    /// # Errors
    /// [`DriverError::NotHeld`].
    #[inline]
    pub fn resize_last(&mut self, head: u16, len: u32) -> Result<(), DriverError> {
        self.held(head)?;
        if let Some([last, _]) = self.writable.get_mut(usize::from(head))
            && *last > 0
        {
            *last = len;
        }
        let pieces = self.pieces(head);
        let members = self.members.get(usize::from(head)).map_or(&[][..], Vec::as_slice);
        let (table, place) = if members.len() == pieces {
            (self.desc.slice(), members.last().map_or(0, |&last| usize::from(last)))
        } else {
            (self.table_at(head).map(|(_, table)| table), pieces.saturating_sub(1))
        };
        let field = place * size_of::<Desc>() + std::mem::offset_of!(Desc, len);
        table.and_then(|table| table.write(field, len.to_le())).ok_or(DriverError::NotHeld(head))
    }

    /// Gives up a held chain: its descriptors are free again.
    ///
    /// # Errors
    /// [`DriverError::NotHeld`].
    pub fn release(&mut self, head: u16) -> Result<(), DriverError> {
        self.held(head)?;
        if let (Some(chain), Some(own)) =
            (self.chains.get_mut(usize::from(head)), self.members.get_mut(usize::from(head)))
        {
            *chain = Chain::None;
            self.free.extend(own.drain(..).rev());
        }
        Ok(())
    }

    /// Puts a held chain into the available ring. The device sees it at the next [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`DriverError::NotHeld`].
    #[inline]
    pub fn offer(&mut self, head: u16) -> Result<(), DriverError> {
        self.offer_each([head])
    }

    /// Puts held chains into the available ring, in this order.
    ///
    /// # Errors
    /// [`DriverError::NotHeld`]; those before it are offered.
    #[inline]
    pub fn offer_each(&mut self, heads: impl IntoIterator<Item = u16>) -> Result<(), DriverError> {
        let Some(avail) = self.avail.slice() else { return Ok(()) };
        let mask = self.options.size - 1;
        for head in heads {
            let Some(chain @ Chain::Held) = self.chains.get_mut(usize::from(head)) else {
                return Err(DriverError::NotHeld(head));
            };
            if let Some(order) = &mut self.order {
                if head != self.due {
                    return Err(DriverError::OutOfOrder { head, due: self.due });
                }
                let members = self.members.get(usize::from(head)).map_or(0, Vec::len);
                self.due = head.wrapping_add(members as u16) & mask;
                order.offered(head);
            }
            *chain = Chain::Outstanding;
            let _ = avail.store_u16(avail_entry(self.next_avail & mask), head, Ordering::Relaxed);
            self.next_avail = self.next_avail.wrapping_add(1);
            self.outstanding += 1;
        }
        Ok(())
    }

    /// Lets the device see all that was offered; true if it wants to be kicked for it.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_avail);
        let (Some(avail), Some(used)) = (self.avail.slice(), self.used.slice()) else { return false };
        if old == new {
            return false;
        }
        let _ = avail.store_u16(IDX_OFFSET, new, Ordering::Release);
        self.published = new;
        // The index must be visible before we look whether the device sleeps, as it looks at the index after saying so.
        fence(Ordering::SeqCst);
        if self.options.event_idx {
            let event = used.load_u16(used_entry(self.options.size), Ordering::Relaxed).unwrap_or(old);
            needs_event(event, new, old)
        } else {
            used.load_u16(FLAGS_OFFSET, Ordering::Relaxed).unwrap_or(0) & VIRTQ_USED_F_NO_NOTIFY == 0
        }
    }

    /// How many used chains there are to [`pop`](Self::pop).
    ///
    /// # Errors
    /// [`DriverError::UsedIndexJump`].
    #[inline]
    pub fn ready(&self) -> Result<u16, DriverError> {
        let index = self.used.slice().and_then(|used| used.load_u16(IDX_OFFSET, Ordering::Acquire));
        let used = index.unwrap_or(self.next_used).wrapping_sub(self.next_used);
        if used > self.outstanding {
            return Err(DriverError::UsedIndexJump { used, outstanding: self.outstanding });
        }
        Ok(used)
    }

    /// Takes the next used chain; the driver holds it again. Only as often as [`ready`](Self::ready) said.
    ///
    /// # Errors
    /// [`DriverError::UsedTwice`].
    #[inline]
    pub fn pop(&mut self) -> Result<Used, DriverError> {
        let mut popped = Used { head: 0, len: 0 };
        self.pop_each(1, |used| popped = used)?;
        Ok(popped)
    }

    /// Takes the next `count` used chains. Only as many as [`ready`](Self::ready) said.
    ///
    /// # Errors
    /// [`DriverError::UsedTwice`]; those before it are taken.
    #[inline]
    pub fn pop_each(&mut self, count: u16, mut each: impl FnMut(Used)) -> Result<(), DriverError> {
        for _ in 0..count {
            let (id, len) = if self.order.is_some() { self.next_in_order()? } else { self.entry() };
            match self.chains.get_mut(id as usize) {
                Some(chain @ Chain::Outstanding) => *chain = Chain::Held,
                _ => return Err(DriverError::UsedTwice(id)),
            }
            self.next_used = self.next_used.wrapping_add(1);
            self.outstanding = self.outstanding.saturating_sub(1);
            each(Used { head: id as u16, len });
        }
        Ok(())
    }

    /// The used entry at the driver's place: id and length.
    #[inline]
    fn entry(&self) -> (u32, u32) {
        let Some(ring) = self.used.slice() else { return (u32::MAX, 0) };
        let slot = self.next_used & (self.options.size - 1);
        // Two words: together they are not aligned to their size.
        let word = |at| ring.load_u32(used_entry(slot) + at, Ordering::Relaxed).map_or(0, u32::from_le);
        (word(0), word(4))
    }

    /// The next used chain where one entry may stand for many.
    fn next_in_order(&mut self) -> Result<(u32, u32), DriverError> {
        let (id, len) = self.entry();
        let used = self.ready()?;
        let Some(order) = &mut self.order else { return Ok((id, len)) };
        let next = match order.take() {
            Some(next) => Some(next),
            None => {
                let head = u16::try_from(id).map_err(|_| DriverError::UsedTwice(id))?;
                let batch = order.spans(head).ok_or(DriverError::UsedTwice(id))?;
                if batch > used {
                    return Err(DriverError::BatchBeyondIndex { head, batch, used });
                }
                order.begin(batch, len);
                order.take()
            }
        };
        let Some((head, len)) = next else { return Err(DriverError::UsedTwice(id)) };
        let [last, before] = self.writable.get(usize::from(head)).copied().unwrap_or_default();
        // Of all but the last of a batch nothing is said: they were used completely.
        Ok((head.into(), len.unwrap_or(last.saturating_add(before))))
    }

    /// Says whether the device shall call when it has used chains; after saying yes look at [`ready`](Self::ready) once
    /// more before sleeping. With event index the wish holds for the next used chain only, and a refusal for the next
    /// 65,535.
    pub fn want_calls(&mut self, wanted: bool) {
        let Some(avail) = self.avail.slice() else { return };
        if self.options.event_idx {
            let event = if wanted { self.next_used } else { self.next_used.wrapping_sub(1) };
            let _ = avail.store_u16(avail_entry(self.options.size), event, Ordering::Relaxed);
        } else {
            let flags = if wanted { 0 } else { VIRTQ_AVAIL_F_NO_INTERRUPT };
            let _ = avail.store_u16(FLAGS_OFFSET, flags, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// The index that the device is to start from when this ring is handed to it: everything before it is used.
    pub fn base(&self) -> u16 {
        self.next_used
    }

    /// Starts the ring anew, as after a reset of the device: indices at zero, every outstanding chain is held again.
    /// The device must have been stopped.
    pub fn reset(&mut self) {
        for part in [&self.avail, &self.used] {
            if let Some(slice) = part.slice() {
                slice.fill(0);
            }
        }
        self.chains
            .iter_mut()
            .filter(|chain| **chain == Chain::Outstanding)
            .for_each(|chain| *chain = Chain::Held);
        self.order.iter_mut().for_each(Order::clear);
        (self.outstanding, self.due) = (0, 0);
        (self.next_avail, self.published, self.next_used) = (0, 0, 0);
        self.want_calls(false);
    }

    /// The heads that the driver holds.
    pub fn held_heads(&self) -> impl Iterator<Item = u16> + '_ {
        let held = |(head, chain): (usize, &Chain)| (*chain == Chain::Held).then_some(head as u16);
        self.chains.iter().enumerate().filter_map(held)
    }

    /// The ring's memory, to be written with anything at all.
    pub fn raw(&self) -> RawRing<'_> {
        RawRing::new(&self.desc, &self.avail, &self.used, self.options.size)
    }

    fn held(&self, head: u16) -> Result<(), DriverError> {
        match self.chains.get(usize::from(head)) {
            Some(Chain::Held) => Ok(()),
            _ => Err(DriverError::NotHeld(head)),
        }
    }

    fn table_at(&self, head: u16) -> Option<(Iova, GuestSlice<'_>)> {
        let tables = self.tables.as_ref()?;
        let offset = u64::from(head) * INDIRECT_LEN;
        Some((tables.at.checked_add(offset)?, tables.range(offset, INDIRECT_LEN)?))
    }

    fn write_desc(&self, place: u16, desc: Desc) {
        if let Some(table) = self.desc.slice() {
            let _ = table.write(usize::from(place) * size_of::<Desc>(), desc);
        }
    }
}

/// Bytes that a device may write to a chain: to the last piece, and to those before it.
fn writable_of(pieces: &[Piece]) -> [u32; 2] {
    let writable = |piece: &Piece| if piece.device_writes { piece.len } else { 0 };
    let Some((last, before)) = pieces.split_last() else { return [0; 2] };
    [writable(last), before.iter().map(writable).fold(0, u32::saturating_add)]
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
