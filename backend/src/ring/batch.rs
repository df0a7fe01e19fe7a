//! What a ring of either format writes down during a burst: chains taken, chains completed. Allocated once, when the ring
//! starts.

use mdev_dma::{GuestSlice, Iova};
use mdev_protocol::virtio::split::{VIRTQ_DESC_F_WRITE, avail_entry, used_entry};

use super::chain::{Buffer, MAX_CHAIN};

/// Chains a burst may hold.
pub const MAX_BURST: usize = 256;

/// A chain that was completed, as an entry of a used ring.
#[derive(Copy, Clone)]
pub(super) struct Use(u64);

impl Use {
    /// The head or buffer id.
    #[inline(always)]
    pub(super) fn id(self) -> u16 {
        self.0 as u16
    }

    /// Length and id where a packed ring's descriptor has them, with WRITE if anything was written.
    #[inline(always)]
    pub(super) fn packed(self) -> u64 {
        let written = if self.0 >> 32 == 0 { 0 } else { VIRTQ_DESC_F_WRITE };
        self.0.rotate_left(32) | u64::from(written) << 48
    }
}

/// The notes of one burst.
#[derive(Debug)]
pub(super) struct Batch {
    /// Entries of the available ring as they stand there, or buffer ids of a packed ring; taken ones first.
    heads: Box<[[u8; 2]]>,
    taken: usize,
    /// Entries of the used ring as they will stand there: head or buffer id, and length.
    used: Box<[[u8; 8]]>,
    completed: usize,
    /// Chains of the burst that the first of the used entries speaks for: all up to the one it names. 0 if for itself only.
    run: usize,
    /// The buffers of the chain that is being looked at.
    pub(super) scratch: Box<[Buffer]>,
}

impl Batch {
    /// With room for the completion of `in_flight` chains, and for those of a burst.
    pub(super) fn new(in_flight: usize) -> Self {
        Self {
            heads: vec![[0; 2]; MAX_BURST].into_boxed_slice(),
            taken: 0,
            used: vec![[0; 8]; MAX_BURST.max(in_flight)].into_boxed_slice(),
            completed: 0,
            run: 0,
            scratch: vec![Buffer { iova: Iova(0), len: 0 }; MAX_CHAIN].into_boxed_slice(),
        }
    }

    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.taken = 0;
        self.completed = 0;
        self.run = 0;
    }

    /// Chains taken.
    #[inline(always)]
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// How many more chains may be taken.
    #[inline(always)]
    pub(super) fn room(&self) -> usize {
        self.heads.len().saturating_sub(self.taken)
    }

    /// Copies `count` entries of the available ring from the free-running index `next` on. They are not taken yet. Hands
    /// out the room for buffers along with them.
    #[inline(always)]
    pub(super) fn fetch(
        &mut self,
        avail: &GuestSlice<'_>,
        size: u16,
        next: u16,
        count: usize,
    ) -> (&[[u8; 2]], &mut [Buffer]) {
        let fresh = self.heads.get_mut(self.taken..).unwrap_or_default();
        let fresh = fresh.get_mut(..count).unwrap_or_default();
        let slot = next & size.wrapping_sub(1);
        let straight = usize::from(size.wrapping_sub(slot)).min(fresh.len());
        let (before, after) = fresh.split_at_mut_checked(straight).unwrap_or_default();
        for (slot, heads) in [(slot, before), (0, after)] {
            if !heads.is_empty()
                && let Some(entries) = avail.subslice(avail_entry(slot), size_of_val(heads))
            {
                entries.copy_to(heads.as_flattened_mut());
            }
        }
        (self.heads.get(self.taken..self.taken.wrapping_add(count)).unwrap_or_default(), &mut self.scratch)
    }

    /// Room for up to `count` ids, of which none is taken yet, and for buffers.
    #[inline(always)]
    pub(super) fn fresh(&mut self, count: usize) -> (&mut [[u8; 2]], &mut [Buffer]) {
        let end = self.taken.saturating_add(count).min(self.heads.len());
        (self.heads.get_mut(self.taken..end).unwrap_or_default(), &mut self.scratch)
    }

    /// Takes the first `count` of the entries that were fetched or filled in.
    #[inline(always)]
    pub(super) fn take(&mut self, count: usize) {
        self.taken = self.taken.wrapping_add(count).min(self.heads.len());
    }

    /// Gives back the last `count` that were taken.
    pub(super) fn untake(&mut self, count: usize) {
        self.taken = self.taken.saturating_sub(count);
    }

    /// The last `count` that were taken.
    pub(super) fn last(&self, count: usize) -> &[[u8; 2]] {
        self.heads.get(self.taken.saturating_sub(count)..self.taken).unwrap_or_default()
    }

    /// The heads or buffer ids of the chains that were taken, from that of number `from` on.
    pub(super) fn ids(&self, from: usize) -> impl Iterator<Item = u16> {
        let ids = self.heads.get(from..self.taken).unwrap_or_default();
        ids.iter().map(|id| u16::from_le_bytes(*id))
    }

    /// Leaves out what was completed of chains that `keep` does not keep.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(u16) -> bool) {
        let mut kept = 0usize;
        for at in 0..self.completed {
            let Some(entry) = self.used.get(at).copied() else { break };
            if keep(Use(u64::from_le_bytes(entry)).id())
                && let Some(place) = self.used.get_mut(kept)
            {
                *place = entry;
                kept = kept.wrapping_add(1);
            }
        }
        self.completed = kept;
    }

    /// The head of chain `index` of the burst.
    #[inline(always)]
    pub(super) fn head(&self, index: usize) -> Option<u16> {
        if index < self.taken { self.heads.get(index).map(|head| u16::from_le_bytes(*head)) } else { None }
    }

    /// Notes a used entry. False if there is no room.
    #[inline(always)]
    pub(super) fn complete(&mut self, head: u16, len: u32) -> bool {
        let Some(entry) = self.used.get_mut(self.completed) else { return false };
        *entry = (u64::from(head) | u64::from(len) << 32).to_le_bytes();
        self.completed = self.completed.wrapping_add(1);
        true
    }

    /// Notes a used entry of length zero for every chain of the burst, or one for all of them. False if there is no room.
    #[inline(always)]
    pub(super) fn complete_all(&mut self, one_for_all: bool) -> bool {
        let heads = self.heads.get(..self.taken).unwrap_or_default();
        if let (true, 0, Some(last)) = (one_for_all, self.completed, heads.last()) {
            self.run = heads.len();
            return self.complete(u16::from_le_bytes(*last), 0);
        }
        let room = self.used.get_mut(self.completed..).unwrap_or_default();
        if room.len() < heads.len() {
            return false;
        }
        for (entry, head) in room.iter_mut().zip(heads) {
            *entry = u64::from(u16::from_le_bytes(*head)).to_le_bytes();
        }
        self.completed = self.completed.wrapping_add(heads.len());
        true
    }

    /// What was completed, one after the other; and all the ids that the first of them speaks for, if there are more.
    #[inline(always)]
    pub(super) fn uses(&self) -> (&[[u8; 2]], impl Iterator<Item = Use>) {
        let run = self.heads.get(..self.run).unwrap_or_default();
        let entries = self.used.get(..self.completed).unwrap_or_default();
        (run, entries.iter().map(|entry| Use(u64::from_le_bytes(*entry))))
    }

    /// Writes what was completed into the used ring from the free-running index `next` on, forgets it, and says which index comes
    /// next. `None` only for a ring that is shorter than its size.
    #[inline(always)]
    pub(super) fn flush(&mut self, used: &GuestSlice<'_>, size: u16, next: u16) -> Option<u16> {
        let mut entries = self.used.get(..self.completed).unwrap_or_default();
        let mut next = next;
        let mask = size.wrapping_sub(1);
        if self.run != 0 {
            let (first, others) = entries.split_first()?;
            used.subslice(used_entry(next & mask), size_of_val(first))?.copy_from(first);
            next = next.wrapping_add(self.run as u16);
            entries = others;
            self.run = 0;
        }
        let slot = next & mask;
        let straight = usize::from(size.wrapping_sub(slot)).min(entries.len());
        let (before, after) = entries.split_at_checked(straight)?;
        for (slot, entries) in [(slot, before), (0, after)] {
            if !entries.is_empty() {
                used.subslice(used_entry(slot), size_of_val(entries))?.copy_from(entries.as_flattened());
            }
        }
        self.completed = 0;
        Some(next.wrapping_add(entries.len() as u16))
    }
}
