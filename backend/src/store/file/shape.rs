//! What sizes and alignments a file likes.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FsWord, StatxFlags, fstatfs, ioctl_blkpbszget, ioctl_blksszget, statx};

use super::super::{Limits, SECTOR};

/// Bytes of one discard or of one request for zeros.
const AT_ONCE: u64 = 1 << 30;
/// What is not known is a page.
const PAGE: u32 = 4096;
/// The largest unit that is believed: network file systems name their transfers.
const LARGEST: u32 = 65536;

/// tmpfs and ramfs, which io_uring does not know to be quick: it gives every request to a thread.
const IN_MEMORY: [FsWord; 2] = [0x0102_1994, 0x8584_58f6];

/// Alignments of a file, in bytes; powers of two.
#[derive(Copy, Clone, Debug)]
pub(super) struct Shape {
    /// A block device.
    pub(super) device: bool,
    /// Of offsets and lengths, for I/O without a detour.
    pub(super) block: u32,
    /// What is written at once at best.
    pub(super) physical_block: u32,
    /// Of addresses and lengths in memory, for direct I/O.
    pub(super) memory: u32,
    /// Past the page cache.
    pub(super) direct: bool,
    /// There is nothing but a page cache.
    pub(super) in_memory: bool,
}

impl Shape {
    /// Asks. `None` if it has to be direct and cannot.
    pub(super) fn of(file: BorrowedFd<'_>, device: bool, direct: bool) -> Option<Shape> {
        let sector = SECTOR as u32;
        let found =
            statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN).ok();
        let logical = if device { unit(ioctl_blksszget(file).ok()) } else { None };
        let physical = match device {
            true => unit(ioctl_blkpbszget(file).ok()),
            false => unit(found.map(|found| found.stx_blksize)),
        };
        let (mut block, mut memory) = (logical.unwrap_or(sector), 1);
        if direct {
            let told = found.filter(|found| found.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
            (block, memory) = match told {
                Some(found) if found.stx_dio_offset_align == 0 => return None,
                Some(found) => (found.stx_dio_offset_align, found.stx_dio_mem_align),
                // Any device takes sectors in memory; a file system, its blocks.
                None => (logical.unwrap_or(PAGE), sector),
            };
        }
        let block = block.checked_next_power_of_two()?.max(sector);
        let memory = memory.checked_next_power_of_two()?;
        let physical_block = physical.unwrap_or(PAGE).max(block);
        let in_memory = !device && fstatfs(file).is_ok_and(|found| IN_MEMORY.contains(&found.f_type));
        Some(Shape { device, block, physical_block, memory, direct, in_memory })
    }

    pub(super) fn limits(self, read_only: bool) -> Limits {
        let at_once = if read_only { 0 } else { AT_ONCE };
        Limits {
            read_only,
            block: self.block,
            physical_block: self.physical_block,
            max_discard: at_once,
            max_zeroes: at_once,
        }
    }
}

fn unit(bytes: Option<u32>) -> Option<u32> {
    bytes.filter(|bytes| bytes.is_power_of_two() && (SECTOR as u32..=LARGEST).contains(bytes))
}
