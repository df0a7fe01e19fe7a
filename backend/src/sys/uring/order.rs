//! UNSAFETY: addresses of a [`Memory`] are written into entries of an io_uring, and handed to preadv2(2) and pwritev2(2).

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{opcode, squeue};
use rustix::fs::FallocateFlags;

use super::memory::Memory;

/// Bytes of a transfer that a thread makes itself: microseconds.
const SMALL: usize = 64 << 10;

/// What the kernel is to do. Files go by their number in the ring's list.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// From the file, at `offset`, to memory.
    Read { file: u32, offset: u64 },
    /// From memory to the file, at `offset`; `durable`: it ends when the bytes outlive a loss of power.
    Write { file: u32, offset: u64, durable: bool },
    /// All that was written to the file outlives a loss of power from here on.
    Sync { file: u32 },
    /// fallocate(2).
    Allocate { file: u32, how: FallocateFlags, offset: u64, len: u64 },
}

/// The entry that says this to the kernel. It points to `memory`, and to what that says of its parts.
pub(super) fn entry(order: Order, memory: &Memory) -> squeue::Entry {
    let parts = memory.parts();
    let list = parts.as_ptr().cast::<libc::iovec>();
    let count = parts.len() as u32;
    match order {
        Order::Read { file, offset } => match parts {
            [part] => {
                let address = std::ptr::with_exposed_provenance_mut(part.address);
                opcode::Read::new(Fixed(file), address, part.len_at_once()).offset(offset).build()
            }
            _ => opcode::Readv::new(Fixed(file), list, count).offset(offset).build(),
        },
        Order::Write { file, offset, durable } => match parts {
            [part] => {
                let address = std::ptr::with_exposed_provenance(part.address);
                let write = opcode::Write::new(Fixed(file), address, part.len_at_once());
                write.offset(offset).rw_flags(flags(durable)).build()
            }
            _ => {
                let write = opcode::Writev::new(Fixed(file), list, count);
                write.offset(offset).rw_flags(flags(durable)).build()
            }
        },
        Order::Sync { file } => opcode::Fsync::new(Fixed(file)).flags(FsyncFlags::DATASYNC).build(),
        Order::Allocate { file, how, offset, len } => {
            opcode::Fallocate::new(Fixed(file), len).offset(offset).mode(how.bits().cast_signed()).build()
        }
    }
}

/// Carries out a small transfer. The result is as the kernel's ring has it; `None` if it is not one.
pub(super) fn carry_out(order: Order, memory: &Memory, files: &[OwnedFd]) -> Option<i32> {
    let (Order::Read { file, offset } | Order::Write { file, offset, .. }) = order else { return None };
    if memory.left() > SMALL {
        return None;
    }
    let file = files.get(file as usize)?.as_raw_fd();
    let offset = libc::off_t::try_from(offset).ok()?;
    let parts = memory.parts();
    let list = parts.as_ptr().cast::<libc::iovec>();
    let count = parts.len() as libc::c_int;
    let done = match order {
        // SAFETY: `list` are `count` pieces of memory that `memory` keeps mapped for the length of this call: of the guest,
        // to which no Rust reference points, or of a buffer of its own that nobody else can reach.
        Order::Write { durable, .. } => unsafe { libc::pwritev2(file, list, count, offset, flags(durable)) },
        // SAFETY: as above. Zeros, which may not be written to, are refused by `Ring::push`.
        _ => unsafe { libc::preadv2(file, list, count, offset, 0) },
    };
    let failed = || std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO).saturating_neg();
    Some(if done < 0 { failed() } else { i32::try_from(done).unwrap_or(i32::MAX) })
}

fn flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}
