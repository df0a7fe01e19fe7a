//! What a ring writes down during a burst: heads taken, chains completed. Allocated once, when the ring starts.

use mdev_dma::{GuestSlice, Iova};
use mdev_protocol::virtio::split::{avail_entry, used_entry};

use super::chain::{Buffer, MAX_CHAIN};

/// Chains a burst may hold.
pub const MAX_BURST: usize = 256;

/// The notes of one burst.
#[derive(Debug)]
pub(super) struct Batch {
    /// Entries of the available ring as they stand there, taken ones first.
    heads: Box<[[u8; 2]]>,
    taken: usize,
    /// Entries of the used ring as they will stand there.
    used: Box<[[u8; 8]]>,
    completed: usize,
    /// The buffers of the chain that is being looked at.
    pub(super) scratch: Box<[Buffer]>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            heads: vec![[0; 2]; MAX_BURST].into_boxed_slice(),
            taken: 0,
            used: vec![[0; 8]; MAX_BURST].into_boxed_slice(),
            completed: 0,
            scratch: vec![Buffer { iova: Iova(0), len: 0 }; MAX_CHAIN].into_boxed_slice(),
        }
    }

    #[inline(always)]
    pub(super) fn clear(&mut self) {
        self.taken = 0;
        self.completed = 0;
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

    /// Takes the first `count` of the entries that were fetched.
    #[inline(always)]
    pub(super) fn take(&mut self, count: usize) {
        self.taken = self.taken.wrapping_add(count).min(self.heads.len());
    }

    /// Gives back the last `count` that were taken.
    pub(super) fn untake(&mut self, count: usize) {
        self.taken = self.taken.saturating_sub(count);
    }

    /// The head of chain `index` of the burst.
    #[inline(always)]
    pub(super) fn head(&self, index: usize) -> Option<u16> {
        if index < self.taken { self.heads.get(index).map(|head| u16::from_le_bytes(*head)) } else { None }
    }

    /// Chains completed.
    #[inline(always)]
    pub(super) fn completed(&self) -> usize {
        self.completed
    }

    /// Notes a used entry. False if there is no room.
    #[inline(always)]
    pub(super) fn complete(&mut self, head: u16, len: u32) -> bool {
        let Some(entry) = self.used.get_mut(self.completed) else { return false };
        *entry = (u64::from(head) | u64::from(len) << 32).to_le_bytes();
        self.completed = self.completed.wrapping_add(1);
        true
    }

    /// Notes a used entry of length zero for every chain of the burst. False if there is no room.
    #[inline(always)]
    pub(super) fn complete_all(&mut self) -> bool {
        let heads = self.heads.get(..self.taken).unwrap_or_default();
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

    /// Writes what was completed into the used ring from the free-running index `next` on, and forgets it. `None` only for a
    /// ring that is shorter than its size.
    #[inline(always)]
    pub(super) fn flush(&mut self, used: &GuestSlice<'_>, size: u16, next: u16) -> Option<()> {
        let entries = self.used.get(..self.completed).unwrap_or_default();
        let slot = next & size.wrapping_sub(1);
        let straight = usize::from(size.wrapping_sub(slot)).min(entries.len());
        let (before, after) = entries.split_at_checked(straight)?;
        for (slot, entries) in [(slot, before), (0, after)] {
            if !entries.is_empty() {
                used.subslice(used_entry(slot), size_of_val(entries))?.copy_from(entries.as_flattened());
            }
        }
        self.completed = 0;
        Some(())
    }
}
