//! The configuration space of a block device (virtio 1.3, 5.2.4).

use mdev_protocol::virtio::blk::BlkConfig;
use zerocopy::IntoBytes;

use crate::store::{SECTOR, Store};

/// Bytes that a front-end may read; those behind what there is are zero, because front-ends ask for as much as their own
/// idea of the space has.
const MAX_LEN: usize = 256;
/// Bytes of the configuration space that mean something.
pub(super) const LEN: usize = size_of::<BlkConfig>();
/// Data descriptors of a request: with header and status the rings of 128 that are usual, without indirect tables.
const SEG_MAX: u32 = 126;
/// Bytes of a descriptor.
const SIZE_MAX: u32 = 128 << 10;
/// Bytes of a read or write: what these come to. A driver that goes beyond the one without the other is served.
pub(super) const MAX_TRANSFER: u64 = SEG_MAX as u64 * SIZE_MAX as u64;

/// The space at this moment.
pub(super) fn space(store: &Store, queues: u16, write_back: bool) -> BlkConfig {
    let limits = store.limits();
    let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX).to_le_bytes();
    let blocks = limits.physical_block.checked_div(limits.block).unwrap_or(1).max(1);
    let one = u32::to_le_bytes(1);
    BlkConfig {
        capacity: (store.size() / SECTOR).to_le_bytes(),
        size_max: SIZE_MAX.to_le_bytes(),
        seg_max: SEG_MAX.to_le_bytes(),
        blk_size: limits.block.to_le_bytes(),
        physical_block_exp: blocks.ilog2() as u8,
        min_io_size: (blocks as u16).to_le_bytes(),
        opt_io_size: [0; 4],
        writeback: write_back.into(),
        num_queues: queues.to_le_bytes(),
        max_discard_sectors: sectors(limits.max_discard),
        max_discard_seg: one,
        discard_sector_alignment: sectors(limits.physical_block.into()),
        max_write_zeroes_sectors: sectors(limits.max_zeroes),
        max_write_zeroes_seg: one,
        write_zeroes_may_unmap: 1,
        ..BlkConfig::default()
    }
}

/// Reads part of a space.
///
/// # Errors
/// A range outside it.
pub(super) fn read(space: &BlkConfig, offset: u32, out: &mut [u8]) -> Result<(), String> {
    let first = offset as usize;
    if first.checked_add(out.len()).is_none_or(|end| end > MAX_LEN) {
        return Err(format!(
            "{} bytes at {offset} are outside the configuration space of {MAX_LEN} bytes",
            out.len()
        ));
    }
    let bytes = space.as_bytes().get(first..).unwrap_or_default();
    out.fill(0);
    out.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
    Ok(())
}

/// What a driver writes: whether the cache is to be written back.
///
/// # Errors
/// Everything but that field is read-only.
pub(super) fn written(offset: u32, data: &[u8]) -> Result<bool, String> {
    match (offset as usize, data) {
        (BlkConfig::WRITEBACK_OFFSET, [0]) => Ok(false),
        (BlkConfig::WRITEBACK_OFFSET, [1]) => Ok(true),
        (BlkConfig::WRITEBACK_OFFSET, [other]) => Err(format!("writeback is 0 or 1, not {other}")),
        _ => Err(format!(
            "{} bytes at {offset} of the configuration space cannot be written, only writeback at {}",
            data.len(),
            BlkConfig::WRITEBACK_OFFSET
        )),
    }
}
