//! What an I/O command asks for (NVM command set specification, section 3.2), checked against its namespace.
//!
//! Reserved values of fields that have a meaning are refused, and so is what was not offered: fused operations, directives. Reserved
//! bits are not looked at, as the base specification (section 1.4.1) leaves it to the controller, so that hosts of later versions
//! are served. Neither is protection information (PRINFO, STC, tags), which means something only where blocks have metadata.

use mdev_protocol::nvme::command::{
    CDW10_RANGES, CDW11_DEALLOCATE, CDW12_BLOCKS, CDW12_DEALLOCATE, CDW12_DIRECTIVE, CDW12_FORCE_UNIT_ACCESS,
    Command, FUSE_NONE, NSID_ALL, PSDT_SGL_METADATA,
};
use mdev_protocol::nvme::data::DatasetRange;
use mdev_protocol::nvme::opcode::nvm;
use mdev_protocol::nvme::status::Status;

use super::namespace::Namespace;
use super::steps::{Span, Steps};
use crate::device::DropCause;
use crate::store::{Operation, SECTOR};

/// Bytes that one command moves at most: MDTS is 8, in pages of 4 KiB.
pub(super) const MAX_TRANSFER: u64 = 1 << 20;

/// Bytes of the data of a dataset management command with so many ranges, 0's based.
const fn ranges_len(count: u32) -> u32 {
    count.wrapping_add(1).wrapping_mul(DatasetRange::LEN as u32)
}

/// What is to be done.
pub(super) enum Asked {
    /// An operation on the `len` bytes of the store from `offset` on, which are those of the data.
    Transfer { operation: Operation, offset: u64, len: u32 },
    /// One that moves no data.
    Change(Steps),
    /// The data are ranges, of so many bytes, that are not needed any more.
    Deallocate { len: u32 },
}

/// Why a command fails before its store sees it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: Status,
    pub(super) cause: DropCause,
}

const fn refused(status: Status, cause: DropCause) -> Refused {
    Refused { status: status.do_not_retry(), cause }
}

const INVALID_FIELD: Refused = refused(Status::INVALID_FIELD, DropCause::Malformed);
const INVALID_OPCODE: Refused = refused(Status::INVALID_OPCODE, DropCause::Unsupported);
const OUT_OF_RANGE: Refused = refused(Status::LBA_OUT_OF_RANGE, DropCause::OutOfRange);
const READ_ONLY: Refused = refused(Status::WRITE_PROTECTED, DropCause::ReadOnly);

impl Refused {
    /// The data are where the guest has no memory.
    pub(super) const NO_MEMORY: Refused = refused(Status::DATA_TRANSFER_ERROR, DropCause::NoMemory);

    /// The data were in memory that its owner has taken away: a file that shrank.
    pub(super) const MEMORY_LOST: Refused = refused(Status::DATA_TRANSFER_ERROR, DropCause::MemoryLost);

    /// The data pointers of the command make no sense.
    pub(super) const fn pointers(status: Status) -> Refused {
        Refused { status, cause: DropCause::Malformed }
    }

    /// The namespace that the command names is not there.
    #[cold]
    pub(super) fn no_namespace(command: &Command) -> Refused {
        match command.opcode() {
            nvm::FLUSH | nvm::WRITE | nvm::READ | nvm::COMPARE | nvm::WRITE_ZEROES => {}
            nvm::DATASET_MANAGEMENT | nvm::VERIFY => {}
            _ => return INVALID_OPCODE,
        }
        refused(Status::INVALID_NAMESPACE, DropCause::Unsupported)
    }
}

/// Whether a command flushes all namespaces.
#[cold]
pub(super) fn flushes_all(command: &Command) -> bool {
    command.opcode() == nvm::FLUSH && command.nsid == NSID_ALL
}

/// Reads a command. `write_through`: writes are durable when they end.
///
/// # Errors
/// How it fails.
#[inline(always)]
pub(super) fn parse(command: &Command, namespace: &Namespace, write_through: bool) -> Result<Asked, Refused> {
    let operation = match command.opcode() {
        nvm::READ => Operation::Read,
        nvm::WRITE if command.cdw12 & CDW12_DIRECTIVE == 0 => {
            Operation::Write { durable: is_durable(command, write_through) }
        }
        nvm::COMPARE => Operation::Compare,
        _ => return rare(command, namespace, write_through),
    };
    check_flags(command)?;
    check(operation, namespace)?;
    let Span { offset, len } = span(command, namespace)?;
    match u32::try_from(len) {
        Ok(short) if len <= MAX_TRANSFER => Ok(Asked::Transfer { operation, offset, len: short }),
        _ => Err(INVALID_FIELD),
    }
}

/// What is neither a read nor a usual write.
#[cold]
fn rare(command: &Command, namespace: &Namespace, write_through: bool) -> Result<Asked, Refused> {
    let operation = match command.opcode() {
        // No directives are offered.
        nvm::WRITE => return Err(INVALID_FIELD),
        nvm::FLUSH => Operation::Flush,
        nvm::VERIFY => Operation::Verify,
        nvm::WRITE_ZEROES => {
            let durable = is_durable(command, write_through);
            Operation::WriteZeroes { unmap: command.cdw12 & CDW12_DEALLOCATE != 0, durable }
        }
        nvm::DATASET_MANAGEMENT => Operation::Discard,
        _ => return Err(INVALID_OPCODE),
    };
    check_flags(command)?;
    check(operation, namespace)?;
    let limits = namespace.store.limits();
    match operation {
        Operation::WriteZeroes { .. } if limits.max_zeroes == 0 => Err(INVALID_OPCODE),
        Operation::Flush => Ok(Asked::Change(Steps::one(operation, 0, 0))),
        // The other attributes are hints about ranges that need not even be read.
        Operation::Discard if command.cdw11 & CDW11_DEALLOCATE == 0 || limits.max_discard == 0 => {
            Ok(Asked::Change(Steps::none(operation)))
        }
        Operation::Discard => Ok(Asked::Deallocate { len: ranges_len(command.cdw10 & CDW10_RANGES) }),
        _ => {
            let Span { offset, len } = span(command, namespace)?;
            Ok(Asked::Change(Steps::one(operation, offset, len)))
        }
    }
}

fn is_durable(command: &Command, write_through: bool) -> bool {
    write_through || command.cdw12 & CDW12_FORCE_UNIT_ACCESS != 0
}

/// What is wrong with a command whatever it is.
///
/// # Errors
/// It is part of another, or its data pointer is of a kind that is reserved.
#[inline(always)]
pub(super) fn check_flags(command: &Command) -> Result<(), Refused> {
    if command.fuse() != FUSE_NONE || command.psdt() > PSDT_SGL_METADATA {
        return Err(INVALID_FIELD);
    }
    Ok(())
}

/// What is wrong with an operation whatever blocks it is about.
#[inline(always)]
fn check(operation: Operation, namespace: &Namespace) -> Result<(), Refused> {
    if operation.changes() && namespace.read_only {
        return Err(READ_ONLY);
    }
    Ok(())
}

/// The bytes that the command's blocks are.
#[inline(always)]
fn span(command: &Command, namespace: &Namespace) -> Result<Span, Refused> {
    let blocks = u64::from(command.cdw12 & CDW12_BLOCKS).wrapping_add(1);
    within(command.cdw10_11(), blocks, namespace).ok_or(OUT_OF_RANGE)
}

#[inline(always)]
fn within(first: u64, blocks: u64, namespace: &Namespace) -> Option<Span> {
    let offset = first.checked_mul(SECTOR)?;
    let len = blocks.checked_mul(SECTOR)?;
    offset.checked_add(len).filter(|end| *end <= namespace.store.size())?;
    Some(Span { offset, len })
}

/// What the ranges of a dataset management command mean.
///
/// # Errors
/// A range that is not all in the namespace; then none is deallocated.
pub(super) fn deallocation(ranges: &[DatasetRange], namespace: &Namespace) -> Result<Steps, Refused> {
    let mut steps = Steps::none(Operation::Discard);
    for range in ranges {
        let (first, blocks) = (u64::from_le(range.first), u32::from_le(range.blocks));
        steps.add(within(first, blocks.into(), namespace).ok_or(OUT_OF_RANGE)?);
    }
    Ok(steps)
}
