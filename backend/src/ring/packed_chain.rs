//! Descriptor chains of a packed ring, each descriptor read once and laid flat.

use std::sync::atomic::Ordering;

use mdev_dma::{GuestSlice, Iova};
use mdev_pin::Burst;
use mdev_protocol::virtio::packed::{
    DESC_LEN, LEN_OFFSET, Position, VIRTQ_DESC_F_AVAIL as AVAIL, VIRTQ_DESC_F_INDIRECT as INDIRECT,
    VIRTQ_DESC_F_NEXT as NEXT, VIRTQ_DESC_F_USED as USED, VIRTQ_DESC_F_WRITE as WRITE, available_flags,
};

use super::RingError;
use super::chain::{Buffer, Chain, MAX_CHAIN, Table, Walked};
use super::place::LOST;

/// What a descriptor says beside its address: length, id and flags, read in one go with the flags that make it available.
#[derive(Copy, Clone)]
pub(super) struct Descriptor {
    word: u64,
}

impl Descriptor {
    #[inline(always)]
    pub(super) fn load(ring: &GuestSlice<'_>, slot: u16) -> Option<Self> {
        let at = usize::from(slot).wrapping_mul(DESC_LEN).wrapping_add(LEN_OFFSET);
        Some(Self { word: u64::from_le(ring.load_u64(at, Ordering::Acquire)?) })
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

    /// Whether it is a whole chain and well-formed, as nearly all are.
    #[inline(always)]
    pub(super) fn is_single(self) -> bool {
        !self.has(NEXT | INDIRECT) && self.len() != 0
    }

    #[inline(always)]
    pub(super) fn writes(self) -> bool {
        self.has(WRITE)
    }

    /// The buffer, with the address that was read after the rest.
    #[inline(always)]
    pub(super) fn buffer(self, ring: &GuestSlice<'_>, slot: u16) -> Buffer {
        let at = usize::from(slot).wrapping_mul(DESC_LEN);
        // It lies before what was loaded, so that it is there.
        let iova = ring.read::<u64>(at).map_or(0, u64::from_le);
        Buffer { iova: Iova(iova), len: self.len() }
    }
}

/// Where chains are read from.
pub(super) struct Source<'a, 'b> {
    pub(super) burst: &'a Burst<'b>,
    pub(super) ring: GuestSlice<'a>,
    pub(super) size: u16,
    pub(super) indirect: bool,
}

impl Source<'_, '_> {
    /// Reads the chain that starts with the available descriptor `desc` at `at`, whatever it is, into `out`, and says how many of the
    /// `free` slots it has.
    ///
    /// # Errors
    /// What is wrong with it.
    #[inline(never)]
    pub(super) fn chain<'o>(
        &self,
        mut at: Position,
        free: u16,
        mut desc: Descriptor,
        out: &'o mut [Buffer],
    ) -> Result<(Chain<'o>, u16), RingError> {
        let size = self.size;
        if desc.has(INDIRECT) {
            let so_far = self.indirect(desc.buffer(&self.ring, at.slot), desc.has(NEXT), out)?;
            return Ok((so_far.finish(desc.id(), out)?, 1));
        }
        let mut so_far = Walked::default();
        let mut slots = 1u16;
        loop {
            so_far.add(desc.buffer(&self.ring, at.slot), desc.writes(), out, size)?;
            if !desc.has(NEXT) {
                return Ok((so_far.finish(desc.id(), out)?, slots));
            }
            if slots == free {
                return Err(RingError::Overrun { size });
            }
            slots = slots.wrapping_add(1);
            at = at.advance(1, size);
            desc = Descriptor::load(&self.ring, at.slot).ok_or(LOST)?;
            if !desc.is_available(at.wrap) {
                return Err(RingError::Unfinished { slot: at.slot });
            }
            if desc.has(INDIRECT) {
                return Err(RingError::IndirectAndNext);
            }
        }
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
