//! The two entries that queues are made of (base specification, sections 3.3.3.1 and 3.3.3.2).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::status::Status;

/// The namespace identifier that means all namespaces.
pub const NSID_ALL: u32 = u32::MAX;

/// [`Command::fuse`]: a command of its own. The other values belong to fused operations, or are reserved.
pub const FUSE_NONE: u8 = 0;
/// [`Command::psdt`]: the data pointer holds PRP entries.
pub const PSDT_PRP: u8 = 0;
/// [`Command::psdt`]: the data pointer holds an SGL descriptor, the metadata pointer the address of a buffer.
pub const PSDT_SGL: u8 = 1;
/// [`Command::psdt`]: the data pointer holds an SGL descriptor, the metadata pointer the address of another.
pub const PSDT_SGL_METADATA: u8 = 2;

/// A submission queue entry. Where a field means something else than what its name says depends on the opcode.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Command {
    /// Opcode (bits 0-7), fused operation (8-9), reserved (10-13), PRP or SGL (14-15), command identifier (16-31).
    pub cdw0: u32,
    /// The namespace, 0 where none is meant, or [`NSID_ALL`].
    pub nsid: u32,
    /// Command dwords 2 and 3.
    pub cdw2: u32,
    /// See [`Command::cdw2`].
    pub cdw3: u32,
    /// The metadata pointer.
    pub mptr: u64,
    /// The data pointer: two PRP entries, or one [`SglDescriptor`](super::data::SglDescriptor).
    pub dptr: [u64; 2],
    /// Command dwords 10 to 15.
    pub cdw10: u32,
    /// See [`Command::cdw10`].
    pub cdw11: u32,
    /// See [`Command::cdw10`].
    pub cdw12: u32,
    /// See [`Command::cdw10`].
    pub cdw13: u32,
    /// See [`Command::cdw10`].
    pub cdw14: u32,
    /// See [`Command::cdw10`].
    pub cdw15: u32,
}

impl Command {
    /// Bytes of an entry.
    pub const LEN: usize = size_of::<Self>();

    /// A command with PRP entries, not fused; everything else is zero.
    pub const fn new(opcode: u8, cid: u16, nsid: u32) -> Self {
        Self {
            cdw0: opcode as u32 | (cid as u32) << 16,
            nsid,
            cdw2: 0,
            cdw3: 0,
            mptr: 0,
            dptr: [0; 2],
            cdw10: 0,
            cdw11: 0,
            cdw12: 0,
            cdw13: 0,
            cdw14: 0,
            cdw15: 0,
        }
    }

    /// What is asked: a constant of [`admin`](super::opcode::admin) or [`nvm`](super::opcode::nvm), by the queue it came in.
    #[inline]
    pub const fn opcode(&self) -> u8 {
        self.cdw0 as u8
    }

    /// Bits 8 to 15 of the first dword.
    #[inline]
    pub const fn flags(&self) -> u8 {
        (self.cdw0 >> 8) as u8
    }

    /// Which part of a fused operation: [`FUSE_NONE`] if none.
    #[inline]
    pub const fn fuse(&self) -> u8 {
        self.flags() & 3
    }

    /// The reserved bits of [`Command::flags`], in their places.
    #[inline]
    pub const fn reserved_flags(&self) -> u8 {
        self.flags() & 0x3c
    }

    /// What the data pointer holds: a `PSDT_` constant, or 3, which is reserved.
    #[inline]
    pub const fn psdt(&self) -> u8 {
        self.flags() >> 6
    }

    /// The command identifier, which the completion repeats.
    #[inline]
    pub const fn cid(&self) -> u16 {
        (self.cdw0 >> 16) as u16
    }

    /// Two dwords as the number they make, as the LBA of a read is in dwords 10 and 11.
    #[inline]
    pub const fn cdw10_11(&self) -> u64 {
        self.cdw10 as u64 | (self.cdw11 as u64) << 32
    }
}

/// [`Command::cdw12`] of commands with a range of LBAs: the blocks, 0's based, are in bits 0-15.
pub const CDW12_BLOCKS: u32 = 0xffff;
/// [`Command::cdw12`] of writes: the type of a directive.
pub const CDW12_DIRECTIVE: u32 = 0xf << 20;
/// [`Command::cdw12`] of write zeroes: the blocks may be deallocated.
pub const CDW12_DEALLOCATE: u32 = 1 << 25;
/// [`Command::cdw12`] of commands with a range of LBAs: what is done about protection information.
pub const CDW12_PROTECTION: u32 = 0xf << 26;
/// [`Command::cdw12`] of reads and writes: bypasses volatile caches.
pub const CDW12_FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// [`Command::cdw12`] of commands with a range of LBAs: tries less hard when something fails.
pub const CDW12_LIMITED_RETRY: u32 = 1 << 31;

/// [`Command::cdw10`] of dataset management: the ranges, 0's based, are in bits 0-7.
pub const CDW10_RANGES: u32 = 0xff;
/// [`Command::cdw11`] of dataset management: the ranges may be deallocated.
pub const CDW11_DEALLOCATE: u32 = 1 << 2;

/// A completion queue entry.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Completion {
    /// Depends on the command.
    pub dw0: u32,
    /// Depends on the command.
    pub dw1: u32,
    /// How far the controller has fetched the submission queue.
    pub sq_head: u16,
    /// The submission queue of the command.
    pub sq_id: u16,
    /// The command's identifier.
    pub cid: u16,
    /// The phase tag (bit 0) and the status (bits 1-15).
    pub status: u16,
}

impl Completion {
    /// Bytes of an entry.
    pub const LEN: usize = size_of::<Self>();
    /// Where [`Completion::cid`] and [`Completion::status`] are: the dword that is written last.
    pub const LAST_OFFSET: usize = std::mem::offset_of!(Completion, cid);

    /// The last dword, that makes the entry valid.
    #[inline]
    pub const fn last(&self) -> u32 {
        self.cid as u32 | (self.status as u32) << 16
    }

    /// The same with a status and the phase tag of this lap.
    #[inline]
    pub const fn with_status(self, status: Status, phase: bool) -> Self {
        Self { status: status.0 << 1 | phase as u16, ..self }
    }

    /// The phase tag.
    #[inline]
    pub const fn phase(&self) -> bool {
        self.status & 1 != 0
    }

    /// The status.
    #[inline]
    pub const fn status(&self) -> Status {
        Status(self.status >> 1)
    }
}

const _: () = assert!(Command::LEN == 64 && Completion::LEN == 16);
