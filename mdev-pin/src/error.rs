//! What can go wrong, with the code that Linux's iommufd returns for it.

use mdev_dma::{Iova, IovaRange, OutOfMemory, RangeError, Unreachable, WindowError};

use crate::account::OverLimit;

/// `errno` values used by this crate (`asm-generic/errno-base.h`, `errno.h`).
mod errno {
    pub const EPERM: i32 = 1;
    pub const EIO: i32 = 5;
    pub const ENOENT: i32 = 2;
    pub const ENOMEM: i32 = 12;
    pub const EFAULT: i32 = 14;
    pub const EBUSY: i32 = 16;
    pub const EEXIST: i32 = 17;
    pub const EINVAL: i32 = 22;
    pub const ENOSPC: i32 = 28;
    pub const EDEADLK: i32 = 35;
    pub const EOVERFLOW: i32 = 75;
    pub const EMSGSIZE: i32 = 90;
    pub const EADDRINUSE: i32 = 98;
}

pub(crate) use errno::EIO;

/// Why an IOVA range could not be resolved inside a burst.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Some byte of the range is not mapped.
    #[error("the range is not mapped completely; map what is missing")]
    Hole,
    /// The area does not allow this direction.
    #[error("the area does not permit this access; map it with the permission")]
    Permission,
    /// The area is being unmapped, or an unmap of it has failed.
    #[error("the area is gated by an unmap; finish the unmap and map it anew")]
    Gated,
    /// The access is not attached to an address space.
    #[error("the access is not attached to an address space; attach it first")]
    Detached,
    /// Address plus length wraps.
    #[error("the range wraps around the address space; shorten it")]
    Overflow,
    /// A length of zero.
    #[error("the range is empty; ask for at least one byte")]
    Empty,
    /// The file behind the area lost a page (it was truncated, or memory ran out); map the range anew to heal it.
    #[error("the file behind the area has lost a page; map the range anew")]
    Poisoned,
    /// The range is mapped, but not by one piece of host memory; resolve it as a scatter-gather list.
    #[error("the range crosses pieces of host memory; resolve it as a list")]
    Split,
    /// The range is mapped, but its bytes are with another process or a peer: there is no slice of them.
    #[error("the range is not host memory; use rw or pin_pages for a process, a transfer for a peer")]
    Elsewhere,
    /// The access was not made for pins in bursts.
    #[error("this access pins nothing in bursts; create it with Access::new")]
    NotPinning,
}

impl ResolveError {
    /// The code that `iommufd_access_pin_pages` returns in this case.
    pub fn errno(self) -> i32 {
        match self {
            ResolveError::Hole | ResolveError::Detached => errno::ENOENT,
            ResolveError::Permission => errno::EPERM,
            ResolveError::Gated
            | ResolveError::Empty
            | ResolveError::Split
            | ResolveError::NotPinning
            | ResolveError::Elsewhere => errno::EINVAL,
            ResolveError::Overflow => errno::EOVERFLOW,
            ResolveError::Poisoned => errno::EFAULT,
        }
    }
}

/// Why an operation on an address space failed.
#[derive(Debug, thiserror::Error)]
pub enum IoasError {
    /// The range intersects an area that is mapped already.
    #[error("{wanted:?} intersects the mapped area {existing:?}; unmap it first")]
    Exists {
        /// The range to be mapped.
        wanted: IovaRange,
        /// An area in its way.
        existing: IovaRange,
    },
    /// No area, or not whole areas only, lie in the range of an unmap.
    #[error("{0:?} does not cover whole areas, or covers none")]
    NotFound(IovaRange),
    /// Another operation is changing these areas.
    #[error("another change of the address space is under way; try again when it has ended")]
    Busy,
    /// A lane stayed in its burst, or a pin was held, past the deadline. The area stays mapped and gated.
    #[error("{0:?} is still in use by a device after the deadline; it stays mapped and gated, try again")]
    Deadlock(IovaRange),
    /// The calling thread is inside a burst and would wait for itself.
    #[error("called from inside a burst, which it would wait for; leave the burst first")]
    InsideBurst,
    /// An area that grants nothing.
    #[error("an area must permit reading or writing")]
    NoPermission,
    /// More areas than the space can count pins for.
    #[error("the address space has no room for another area")]
    Full,
    /// The IOVA, or an end of the range or of the file extent, is beyond the last number there is.
    #[error("the range or its place in the file wraps; choose an IOVA and an offset with room behind them")]
    Overflow,
    /// A length of zero, or a range that wraps.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// An area that does not keep to the alignment of the space.
    #[error(
        "{what} is no multiple of {alignment} bytes, which a device or the huge-page option of this space demands"
    )]
    Misaligned {
        /// What is misaligned.
        what: &'static str,
        /// What the space demands, in bytes.
        alignment: u64,
    },
    /// The range intersects a reserved one.
    #[error("{wanted:?} intersects the reserved range {reserved:?}; map it elsewhere")]
    Reserved {
        /// The range to be mapped.
        wanted: IovaRange,
        /// A reserved range in its way.
        reserved: IovaRange,
    },
    /// No place for an allocation.
    #[error("no room for {length:#x} bytes; unmap something, allow more ranges, or map at a fixed IOVA")]
    NoSpace {
        /// Length in bytes.
        length: u64,
    },
    /// More than an allocation can place.
    #[error("{length:#x} bytes are more than half of the address space; map them in parts")]
    TooLong {
        /// Length in bytes.
        length: u64,
    },
    /// An allowed range of one byte, or one that overlaps another.
    #[error(
        "the allowed range {0:?} has a single byte or overlaps another of the list; give disjoint ranges"
    )]
    Allowed(IovaRange),
    /// A range to be reserved or allowed is in use.
    #[error("{wanted:?} intersects {by:?}, which is mapped, allowed or reserved; clear that first")]
    InUse {
        /// The range to be reserved or allowed.
        wanted: IovaRange,
        /// What is in its way.
        by: IovaRange,
    },
    /// An area that is mapped does not keep to an alignment that is now demanded.
    #[error(
        "the mapped area {area:?} is not aligned to {alignment} bytes, which is now needed; unmap it first"
    )]
    Unaligned {
        /// The area.
        area: IovaRange,
        /// What is demanded, in bytes.
        alignment: u64,
    },
    /// The caller's room for ranges is too small.
    #[error("there are {needed} ranges; ask again with room for as many")]
    TooFewRanges {
        /// How many there are.
        needed: usize,
    },
    /// A byte of the source of a copy is not mapped.
    #[error("{0} is not mapped; copy only what is mapped without a gap")]
    Hole(Iova),
    /// A copy that would permit more than its source.
    #[error("the area {0:?} is read-only, and so must be every copy of it")]
    ReadOnly(IovaRange),
    /// An access is attached to a space that is to be destroyed.
    #[error("{accesses} accesses are attached; detach them first")]
    Attached {
        /// How many.
        accesses: usize,
    },
    /// The space was destroyed.
    #[error("the address space was destroyed; make a new one")]
    Destroyed,
    /// An area that is backed by no file, in a space whose owner is to change.
    #[error("{0:?} is backed by the owner's address space or by messages; unmap it before the owner changes")]
    NotAFile(IovaRange),
    /// The owner may not hold as much memory.
    #[error(transparent)]
    Charge(#[from] OverLimit),
    /// The file could not be mapped for this area.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// No memory for a list of areas.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

impl IoasError {
    /// The code that the corresponding iommufd ioctl returns.
    pub fn errno(&self) -> i32 {
        match self {
            IoasError::Exists { .. } => errno::EEXIST,
            IoasError::NotFound(_) | IoasError::Hole(_) | IoasError::Destroyed => errno::ENOENT,
            IoasError::Busy | IoasError::Attached { .. } => errno::EBUSY,
            IoasError::Deadlock(_) | IoasError::InsideBurst => errno::EDEADLK,
            IoasError::NoPermission
            | IoasError::Misaligned { .. }
            | IoasError::Reserved { .. }
            | IoasError::Allowed(_)
            | IoasError::NotAFile(_) => errno::EINVAL,
            IoasError::Charge(_) => errno::ENOMEM,
            IoasError::Full | IoasError::NoSpace { .. } => errno::ENOSPC,
            IoasError::Overflow | IoasError::TooLong { .. } => errno::EOVERFLOW,
            IoasError::InUse { .. } | IoasError::Unaligned { .. } => errno::EADDRINUSE,
            IoasError::TooFewRanges { .. } => errno::EMSGSIZE,
            IoasError::ReadOnly(_) => errno::EPERM,
            IoasError::Range(error) => error.errno(),
            // Linux, too, answers for pages that are not writable, not with the file's own EACCES.
            IoasError::Window(WindowError::Permission { .. }) => errno::EPERM,
            IoasError::Window(error) => error.errno(),
            IoasError::Memory(_) => errno::ENOMEM,
        }
    }
}

/// Why an operation on an access failed.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// It is attached already.
    #[error("the access is attached already; detach it first")]
    Attached,
    /// It is not attached.
    #[error("the access is not attached to an address space; attach it first")]
    Detached,
    /// A detach of it is under way.
    #[error("a detach or a replacement of this access is under way; try again when it has ended")]
    Busy,
    /// Its device has not dropped pins whose memory was revoked.
    #[error("pins of this access that were revoked are still out; drop them, or use another access")]
    Void,
    /// Its device kept a pin, or a lane its burst, past the deadline.
    #[error("the device still holds guest memory after the deadline; release its pins and try again")]
    Deadlock,
    /// A callback into the device did not return within the bound.
    #[error("a callback into the device has not returned in time; it must not wait for anybody")]
    CallbackStuck,
    /// The calling thread is inside a burst or a callback and would wait for itself.
    #[error("called from inside a burst or a callback, which it would wait for; leave it first")]
    WouldWaitForItself,
    /// The access was closed.
    #[error("the access is closed; create another one")]
    Closed,
    /// The space does not take the access.
    #[error(transparent)]
    Space(#[from] IoasError),
    /// Pages are pinned through an access that was not made for it.
    #[error("the access does not pin pages; create it with Access::pinning")]
    NotPinning,
    /// Neither reading nor writing was asked for.
    #[error("nothing is to be done with the pages; ask for reading or writing")]
    NoDirection,
    /// Pages that do not begin where pages of the file begin.
    #[error(
        "the memory at {0} does not begin, or an area in the range not end, on a page of its file; use rw"
    )]
    Misaligned(Iova),
    /// The file is shorter than it was when it was mapped.
    #[error("the file behind {0} has become too short; map the range anew when it has its length again")]
    Truncated(Iova),
    /// The device kept pages for longer than it may, and they were taken away.
    #[error("the memory at {0} was revoked, as it was still pinned at the deadline of an unmap; unpin it")]
    Revoked(IovaRange),
    /// An unpin of what is not pinned.
    #[error("{0} is not pinned; unpin exactly what was pinned, once for each time")]
    NotPinned(IovaRange),
    /// A transfer of what no peer keeps.
    #[error("the memory at {0} is not with a peer; use a slice, rw or pin_pages")]
    NotRemote(Iova),
    /// Bytes in another process could not be reached.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// The owner of the memory may not hold as much.
    #[error(transparent)]
    Charge(#[from] OverLimit),
    /// The range cannot be resolved.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// No memory for a list of pages.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

impl AccessError {
    /// The code that the corresponding iommufd function returns.
    pub fn errno(&self) -> i32 {
        match self {
            AccessError::Attached
            | AccessError::NotPinning
            | AccessError::NoDirection
            | AccessError::Misaligned(_)
            | AccessError::Truncated(_)
            | AccessError::NotRemote(_)
            | AccessError::NotPinned(_) => errno::EINVAL,
            AccessError::Resolve(error) => error.errno(),
            AccessError::Charge(_) => errno::ENOMEM,
            AccessError::Revoked(_) | AccessError::Unreachable(_) => errno::EFAULT,
            AccessError::Detached | AccessError::Closed => errno::ENOENT,
            AccessError::Busy | AccessError::Void | AccessError::CallbackStuck => errno::EBUSY,
            AccessError::Deadlock | AccessError::WouldWaitForItself => errno::EDEADLK,
            AccessError::Space(error) => error.errno(),
            AccessError::Memory(_) => errno::ENOMEM,
        }
    }
}
