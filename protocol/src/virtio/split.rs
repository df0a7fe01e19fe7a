//! The split ring (virtio 1.3, section 2.7): layouts, sizes, alignments, and the notification rule.
//!
//! Parts are described by byte offsets rather than by references, because a ring lies in memory that its peer can
//! change at any time and is read through volatile slices only.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`Desc::flags`]: the chain goes on at [`Desc::next`].
pub const VIRTQ_DESC_F_NEXT: u16 = 1;
/// [`Desc::flags`]: the device writes this buffer (otherwise it reads it).
pub const VIRTQ_DESC_F_WRITE: u16 = 2;
/// [`Desc::flags`]: the buffer is a table of descriptors.
pub const VIRTQ_DESC_F_INDIRECT: u16 = 4;
/// Flags of the available ring: the driver asks for no calls (without `VIRTIO_RING_F_EVENT_IDX`).
pub const VIRTQ_AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Flags of the used ring: the device asks for no kicks (without `VIRTIO_RING_F_EVENT_IDX`).
pub const VIRTQ_USED_F_NO_NOTIFY: u16 = 1;

/// The largest ring, in descriptors.
pub const MAX_SIZE: u16 = 32768;
/// Alignment of the descriptor table, in bytes.
pub const DESC_ALIGN: u64 = 16;
/// Alignment of the available ring, in bytes.
pub const AVAIL_ALIGN: u64 = 2;
/// Alignment of the used ring, in bytes.
pub const USED_ALIGN: u64 = 4;
/// Offset of `flags` in the available and in the used ring, in bytes.
pub const FLAGS_OFFSET: usize = 0;
/// Offset of `idx` in the available and in the used ring, in bytes.
pub const IDX_OFFSET: usize = 2;
/// Offset of the first entry in the available and in the used ring, in bytes.
pub const RING_OFFSET: usize = 4;

/// A descriptor.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Desc {
    /// Where the buffer starts: guest physical, or an IOVA under `VIRTIO_F_ACCESS_PLATFORM`.
    pub addr: u64,
    /// Length of the buffer, in bytes.
    pub len: u32,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
    /// Index of the next descriptor, if `VIRTQ_DESC_F_NEXT` is set.
    pub next: u16,
}

/// An entry of the used ring.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UsedElem {
    /// Index of the chain's first descriptor.
    pub id: u32,
    /// Bytes the device wrote to the chain.
    pub len: u32,
}

/// Whether `size` descriptors make a ring: a power of two, at most [`MAX_SIZE`].
pub const fn is_size(size: u32) -> bool {
    size.is_power_of_two() && size <= MAX_SIZE as u32
}

/// Bytes of the descriptor table of a ring of `size`.
pub const fn desc_len(size: u16) -> usize {
    (size as usize).saturating_mul(16)
}

/// Bytes of the available ring of a ring of `size`, `used_event` included if `event_idx`.
pub const fn avail_len(size: u16, event_idx: bool) -> usize {
    avail_entry(size).saturating_add(if event_idx { 2 } else { 0 })
}

/// Bytes of the used ring of a ring of `size`, `avail_event` included if `event_idx`.
pub const fn used_len(size: u16, event_idx: bool) -> usize {
    used_entry(size).saturating_add(if event_idx { 2 } else { 0 })
}

/// Offset of entry `slot` in the available ring, in bytes. With `slot` = ring size: the offset of `used_event`.
#[inline(always)]
pub const fn avail_entry(slot: u16) -> usize {
    RING_OFFSET.saturating_add((slot as usize).saturating_mul(2))
}

/// Offset of entry `slot` in the used ring, in bytes. With `slot` = ring size: the offset of `avail_event`.
#[inline(always)]
pub const fn used_entry(slot: u16) -> usize {
    RING_OFFSET.saturating_add((slot as usize).saturating_mul(8))
}

/// Whether moving an index from `old` to `new` passes `event`, so that the other side wants to hear of it
/// (section 2.7.7.2; all three wrap at 2^16).
#[inline]
pub const fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
