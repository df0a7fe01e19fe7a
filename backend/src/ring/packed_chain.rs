//! Descriptor chains of a packed ring, each descriptor read once and laid flat.

use std::sync::atomic::{AtomicU64, Ordering};

use mdev_dma::Iova;
use mdev_pin::Burst;
use mdev_protocol::virtio::packed::{
    Position, VIRTQ_DESC_F_AVAIL as AVAIL, VIRTQ_DESC_F_INDIRECT as INDIRECT, VIRTQ_DESC_F_NEXT as NEXT,
    VIRTQ_DESC_F_USED as USED, VIRTQ_DESC_F_WRITE as WRITE, available_flags,
};

use super::RingError;
use super::chain::{Buffer, Chain, MAX_CHAIN, Table, Walked};
use super::log::Entry;
use super::place::LOST;

/// A descriptor as it lies in the ring: its address, and length, id and flags in one word.
pub(super) type Slot = [AtomicU64; 2];

/// What a descriptor says beside its address: length, id and flags, read in one go with the flags that make it available.
#[derive(Copy, Clone)]
pub(super) struct Descriptor {
    word: u64,
}

impl Descriptor {
    #[inline(always)]
    pub(super) fn load([_, word]: &Slot) -> Self {
        Self { word: u64::from_le(word.load(Ordering::Acquire)) }
    }

    #[inline(always)]
    fn flags(self) -> u16 {
        (self.word >> 48) as u16
    }

    #[inline(always)]
    fn has(self, flags: u16) -> bool {
        self.flags() & flags != 0
    }

    #[inline(always)]
    fn len(self) -> u32 {
        self.word as u32
    }

    #[inline(always)]
    pub(super) fn id(self) -> u16 {
        (self.word >> 32) as u16
    }

    #[inline(always)]
    pub(super) fn is_available(self, wrap: bool) -> bool {
        self.flags() & (AVAIL | USED) == available_flags(wrap)
    }

    /// Whether it is available and a whole chain and well-formed, as nearly all are.
    #[inline(always)]
    pub(super) fn is_single(self, wrap: bool) -> bool {
        self.flags() & (AVAIL | USED | NEXT | INDIRECT) == available_flags(wrap) && self.len() != 0
    }

    #[inline(always)]
    pub(super) fn writes(self) -> bool {
        self.has(WRITE)
    }

    /// The buffer, with the address that was read after the rest.
    #[inline(always)]
    pub(super) fn buffer(self, [iova, _]: &Slot) -> Buffer {
        Buffer { iova: Iova(u64::from_le(iova.load(Ordering::Relaxed))), len: self.len() }
    }
}

/// Where chains are read from.
pub(super) struct Source<'a, 'b> {
    pub(super) burst: &'a Burst<'b>,
    pub(super) ring: &'a [Slot],
    pub(super) size: u16,
    pub(super) indirect: bool,
}

impl Source<'_, '_> {
    /// Reads the chain at `at`, whatever it is, into `out`, and says how many of the `free` slots it has. `None` if there is
    /// none.
    ///
    /// # Errors
    /// What is wrong with it.
    #[inline(never)]
    pub(super) fn chain<'o>(
        &self,
        mut at: Position,
        free: u16,
        out: &'o mut [Buffer],
    ) -> Result<Option<(Chain<'o>, u16)>, RingError> {
        let size = self.size;
        let mut so_far = Walked::default();
        let mut slots = 0u16;
        loop {
            let slot = self.ring.get(usize::from(at.slot)).ok_or(LOST)?;
            let desc = Descriptor::load(slot);
            let available = desc.is_available(at.wrap);
            if !available && slots == 0 {
                return Ok(None);
            }
            if slots == free {
                return Err(RingError::Overrun { size });
            }
            if !available {
                return Err(RingError::Unfinished { slot: at.slot });
            }
            slots = slots.wrapping_add(1);
            if desc.has(INDIRECT) {
                if slots != 1 {
                    return Err(RingError::IndirectAndNext);
                }
                let so_far = self.indirect(desc.buffer(slot), desc.has(NEXT), out)?;
                return Ok(Some((so_far.finish(desc.id(), out)?, 1)));
            }
            so_far.add(desc.buffer(slot), desc.writes(), out, size)?;
            if !desc.has(NEXT) {
                return Ok(Some((so_far.finish(desc.id(), out)?, slots)));
            }
            at = at.advance(1, size);
        }
    }

    /// A chain that was recorded when it was taken first, under this buffer id.
    ///
    /// # Errors
    /// What is wrong with it.
    #[cold]
    pub(super) fn recorded<'o>(
        &self,
        id: u16,
        descriptors: &[Entry],
        out: &'o mut [Buffer],
    ) -> Result<Chain<'o>, RingError> {
        let mut so_far = Walked::default();
        for [iova, word] in descriptors {
            let desc = Descriptor { word: *word };
            let buffer = Buffer { iova: Iova(*iova), len: desc.len() };
            if desc.has(INDIRECT) {
                if descriptors.len() != 1 {
                    return Err(RingError::IndirectAndNext);
                }
                return self.indirect(buffer, desc.has(NEXT), out)?.finish(id, out);
            }
            so_far.add(buffer, desc.writes(), out, self.size)?;
        }
        so_far.finish(id, out)
    }

    /// A chain in a table of its own. All entries belong to it, one behind the other; of their flags only WRITE counts.
    fn indirect(&self, table: Buffer, continues: bool, out: &mut [Buffer]) -> Result<Walked, RingError> {
        if continues {
            return Err(RingError::IndirectAndNext);
        }
        if !self.indirect {
            return Err(RingError::IndirectRefused);
        }
        let (table, size) = Table::open(self.burst, table)?;
        let mut so_far = Walked::default();
        for index in 0..size {
            // An entry is as a descriptor of the ring: its second word ends with id and flags.
            let Some([iova, word]) = table.read(index)? else { break };
            let desc = Descriptor { word };
            if desc.has(INDIRECT) {
                return Err(RingError::IndirectNested);
            }
            so_far.add(Buffer { iova: Iova(iova), len: desc.len() }, desc.writes(), out, size)?;
        }
        Ok(so_far)
    }
}

// The longest chain that fits the ring fits the room for buffers, or is refused by name.
const _: () = assert!(MAX_CHAIN <= u16::MAX as usize);
