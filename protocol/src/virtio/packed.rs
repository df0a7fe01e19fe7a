//! The packed ring (virtio 1.3, section 2.8): layouts, flags, positions and the notification rule.
//!
//! Driver and device write into the same descriptors. Each side keeps a [`Position`]: a slot and a wrap counter that starts at
//! true and turns over whenever the slot passes the end. A descriptor is *available* when its AVAIL bit equals the driver's
//! counter and its USED bit does not, and *used* when both equal the device's counter.
//!
//! A chain of n descriptors lies in n slots one behind the other, and using it skips n slots; its name is the `id` of its last
//! descriptor. As with [split rings](super::split), parts are described by offsets, because they lie in memory that the
//! peer can change at any time.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use super::split::{MAX_SIZE, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};

/// [`Desc::flags`]: equals the driver's wrap counter in an available descriptor, the device's in a used one.
pub const VIRTQ_DESC_F_AVAIL: u16 = 1 << 7;
/// [`Desc::flags`]: the opposite of the driver's wrap counter in an available descriptor, equals the device's in a used one.
pub const VIRTQ_DESC_F_USED: u16 = 1 << 15;

/// [`EventSuppress::flags`]: every notification is wanted.
pub const RING_EVENT_FLAGS_ENABLE: u16 = 0;
/// [`EventSuppress::flags`]: none is wanted.
pub const RING_EVENT_FLAGS_DISABLE: u16 = 1;
/// [`EventSuppress::flags`]: one is wanted for the descriptor at [`EventSuppress::desc`] (`VIRTIO_RING_F_EVENT_IDX` only).
pub const RING_EVENT_FLAGS_DESC: u16 = 2;

/// Alignment of the descriptor ring, in bytes.
pub const DESC_ALIGN: u64 = 16;
/// Alignment of an event suppression structure, in bytes.
pub const EVENT_ALIGN: u64 = 4;
/// Bytes of a descriptor.
pub const DESC_LEN: usize = size_of::<Desc>();
/// Bytes of an event suppression structure.
pub const EVENT_LEN: usize = size_of::<EventSuppress>();
/// Offset of `len` in a descriptor, in bytes. From here on `len`, `id` and `flags` are one word of 8 bytes.
pub const LEN_OFFSET: usize = 8;
/// Offset of `id` in a descriptor, in bytes.
pub const ID_OFFSET: usize = 12;
/// Offset of `flags` in a descriptor, in bytes.
pub const FLAGS_OFFSET: usize = 14;
/// Offset of `desc` in an event suppression structure, in bytes.
pub const EVENT_DESC_OFFSET: usize = 0;
/// Offset of `flags` in an event suppression structure, in bytes.
pub const EVENT_FLAGS_OFFSET: usize = 2;

/// A descriptor.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Desc {
    /// Where the buffer starts: guest physical, or an IOVA under `VIRTIO_F_ACCESS_PLATFORM`. Means nothing in a used one.
    pub addr: u64,
    /// Length of the buffer, in bytes; in a used descriptor the bytes that the device wrote.
    pub len: u32,
    /// The buffer id. It counts in the last descriptor of a chain only.
    pub id: u16,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
}

/// An event suppression structure: what one side wants to hear of from the other.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EventSuppress {
    /// A [`Position`] as a [word](Position::word), under `RING_EVENT_FLAGS_DESC`.
    pub desc: u16,
    /// `RING_EVENT_FLAGS_*`, in the low two bits.
    pub flags: u16,
}

/// A place in a packed ring: a slot, and the wrap counter that whoever stands there has.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The slot, below the ring's size.
    pub slot: u16,
    /// The wrap counter.
    pub wrap: bool,
}

impl Position {
    /// Where both sides start.
    pub const START: Position = Position { slot: 0, wrap: true };

    /// From 16 bits as they travel in event suppression and in `SET_VRING_BASE`: the slot in bits 0 to 14, the wrap counter in
    /// bit 15. The slot is not compared with any size.
    #[inline(always)]
    pub const fn from_word(word: u16) -> Position {
        Position { slot: word & 0x7fff, wrap: word & 0x8000 != 0 }
    }

    /// As 16 bits, see [`Position::from_word`].
    #[inline(always)]
    pub const fn word(self) -> u16 {
        self.slot | (self.wrap as u16) << 15
    }

    /// `count` slots further in a ring of `size`; neither exceeds `size`.
    #[inline(always)]
    pub const fn advance(self, count: u16, size: u16) -> Position {
        let slot = self.slot.wrapping_add(count);
        if slot >= size {
            Position { slot: slot.wrapping_sub(size), wrap: !self.wrap }
        } else {
            Position { slot, wrap: self.wrap }
        }
    }

    /// `count` slots back, the opposite of [`Position::advance`].
    #[inline(always)]
    pub const fn retreat(self, count: u16, size: u16) -> Position {
        if count > self.slot {
            Position { slot: self.slot.wrapping_add(size).wrapping_sub(count), wrap: !self.wrap }
        } else {
            Position { slot: self.slot.wrapping_sub(count), wrap: self.wrap }
        }
    }

    /// Slots from `self` on to `later` in a ring of `size`, from 0 to `size`; `None` if that is not the order in which
    /// they lie.
    #[inline]
    pub const fn distance(self, later: Position, size: u16) -> Option<u16> {
        if self.wrap == later.wrap {
            later.slot.checked_sub(self.slot)
        } else if later.slot <= self.slot {
            Some(later.slot.wrapping_add(size).wrapping_sub(self.slot))
        } else {
            None
        }
    }
}

/// Whether `size` descriptors make a ring: any number from 1 to [`MAX_SIZE`].
pub const fn is_size(size: u32) -> bool {
    size >= 1 && size <= MAX_SIZE as u32
}

/// Bytes of the descriptor ring of a ring of `size`. With a slot: its offset in the ring.
#[inline(always)]
pub const fn desc_len(size: u16) -> usize {
    (size as usize).saturating_mul(DESC_LEN)
}

/// Whether a descriptor with these flags is available to a device with this wrap counter.
#[inline(always)]
pub const fn is_available(flags: u16, wrap: bool) -> bool {
    flags & (VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED) == available_flags(wrap)
}

/// Whether a descriptor with these flags is used, for a driver with this wrap counter for used descriptors.
#[inline(always)]
pub const fn is_used(flags: u16, wrap: bool) -> bool {
    flags & (VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED) == used_flags(wrap)
}

/// The two bits of an available descriptor, written by a driver with this wrap counter.
#[inline(always)]
pub const fn available_flags(wrap: bool) -> u16 {
    if wrap { VIRTQ_DESC_F_AVAIL } else { VIRTQ_DESC_F_USED }
}

/// The two bits of a used descriptor, written by a device with this wrap counter.
#[inline(always)]
pub const fn used_flags(wrap: bool) -> u16 {
    if wrap { VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED } else { 0 }
}

/// Whether a side that has moved by `count` slots (at most `size`) to `now` has passed the slot at which the other side
/// wants to hear of it (section 2.8.10; Linux: `virtqueue_kick_prepare_packed`).
#[inline]
pub const fn needs_event(event: Position, now: Position, count: u16, size: u16) -> bool {
    let offset = if event.wrap == now.wrap { event.slot } else { event.slot.wrapping_sub(size) };
    super::split::needs_event(offset, now.slot, now.slot.wrapping_sub(count))
}
