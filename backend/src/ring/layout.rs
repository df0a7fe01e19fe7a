//! Sizes, offsets and flags of a split ring (virtio 1.3, 2.7), and the arithmetic of its 16-bit indices.

/// Bytes of a descriptor.
pub(super) const DESC_LEN: usize = 16;
/// The buffer goes on at `next`.
pub(super) const DESC_F_NEXT: u16 = 1;
/// The device writes this buffer.
pub(super) const DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub(super) const DESC_F_INDIRECT: u16 = 4;
/// In the available ring's flags: the driver wants no calls.
pub(super) const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// In the used ring's flags: the device wants no kicks.
pub(super) const USED_F_NO_NOTIFY: u16 = 1;
/// Offset of the index in either ring; the flags are at 0.
pub(super) const INDEX: usize = 2;
/// Offset of the entries in either ring.
pub(super) const ENTRIES: usize = 4;

/// Bytes of the descriptor table.
pub(super) fn desc_len(size: u16) -> usize {
    usize::from(size).saturating_mul(DESC_LEN)
}

/// Offset of entry `slot` of the available ring; with `slot` = size, of `used_event`.
#[inline(always)]
pub(super) fn avail_entry(slot: u16) -> usize {
    usize::from(slot).wrapping_mul(2).wrapping_add(ENTRIES)
}

/// Offset of entry `slot` of the used ring; with `slot` = size, of `avail_event`.
#[inline(always)]
pub(super) fn used_entry(slot: u16) -> usize {
    usize::from(slot).wrapping_mul(8).wrapping_add(ENTRIES)
}

/// Bytes of the available ring. The event word at its end exists only where it was negotiated.
pub(super) fn avail_len(size: u16, event_idx: bool) -> usize {
    avail_entry(size).saturating_add(if event_idx { 2 } else { 0 })
}

/// Bytes of the used ring.
pub(super) fn used_len(size: u16, event_idx: bool) -> usize {
    used_entry(size).saturating_add(if event_idx { 2 } else { 0 })
}

/// Whether the other side asked to be told: it named `event`, and the index moved from `old` to `new` past it
/// (virtio 2.7.10.1). All three wrap at 2^16.
#[inline]
pub(super) fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
