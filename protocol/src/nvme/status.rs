//! How a command ended (base specification, section 3.3.3.2.1): type, code and flags.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Status code types.
pub mod kind {
    /// Generic command status.
    pub const GENERIC: u8 = 0;
    /// Status of one command.
    pub const COMMAND: u8 = 1;
    /// Media and data integrity errors.
    pub const MEDIA: u8 = 2;
}

const MORE: u16 = 1 << 13;
const DO_NOT_RETRY: u16 = 1 << 14;
const CODE: u16 = 0x7ff;

/// A status field without its phase tag: status code (bits 0-7), status code type (8-10), retry delay (11-12), more (13), do
/// not retry (14).
#[derive(Copy, Clone, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Status(pub u16);

const fn generic(code: u8) -> Status {
    Status::new(kind::GENERIC, code)
}

const fn command(code: u8) -> Status {
    Status::new(kind::COMMAND, code)
}

const fn media(code: u8) -> Status {
    Status::new(kind::MEDIA, code)
}

impl Status {
    /// It was carried out.
    pub const SUCCESS: Status = generic(0x00);
    /// Invalid Command Opcode.
    pub const INVALID_OPCODE: Status = generic(0x01);
    /// Invalid Field in Command.
    pub const INVALID_FIELD: Status = generic(0x02);
    /// Command ID Conflict.
    pub const COMMAND_ID_CONFLICT: Status = generic(0x03);
    /// Data Transfer Error: the memory that was named cannot be reached.
    pub const DATA_TRANSFER_ERROR: Status = generic(0x04);
    /// Internal Error.
    pub const INTERNAL_ERROR: Status = generic(0x06);
    /// Command Abort Requested.
    pub const ABORT_REQUESTED: Status = generic(0x07);
    /// Command Aborted due to SQ Deletion.
    pub const ABORTED_SQ_DELETION: Status = generic(0x08);
    /// Command Aborted due to Failed Fused Command.
    pub const ABORTED_FAILED_FUSED: Status = generic(0x09);
    /// Command Aborted due to Missing Fused Command.
    pub const ABORTED_MISSING_FUSED: Status = generic(0x0a);
    /// Invalid Namespace or Format.
    pub const INVALID_NAMESPACE: Status = generic(0x0b);
    /// Command Sequence Error.
    pub const COMMAND_SEQUENCE_ERROR: Status = generic(0x0c);
    /// Invalid SGL Segment Descriptor.
    pub const INVALID_SGL_SEGMENT: Status = generic(0x0d);
    /// Invalid Number of SGL Descriptors.
    pub const INVALID_SGL_COUNT: Status = generic(0x0e);
    /// Data SGL Length Invalid.
    pub const SGL_DATA_LENGTH_INVALID: Status = generic(0x0f);
    /// Metadata SGL Length Invalid.
    pub const SGL_METADATA_LENGTH_INVALID: Status = generic(0x10);
    /// SGL Descriptor Type Invalid.
    pub const SGL_TYPE_INVALID: Status = generic(0x11);
    /// Invalid Use of Controller Memory Buffer.
    pub const INVALID_USE_OF_CMB: Status = generic(0x12);
    /// PRP Offset Invalid.
    pub const PRP_OFFSET_INVALID: Status = generic(0x13);
    /// Operation Denied.
    pub const OPERATION_DENIED: Status = generic(0x15);
    /// SGL Offset Invalid.
    pub const SGL_OFFSET_INVALID: Status = generic(0x16);
    /// Host Identifier Inconsistent Format.
    pub const HOST_ID_INCONSISTENT: Status = generic(0x18);
    /// Namespace is Write Protected.
    pub const WRITE_PROTECTED: Status = generic(0x20);
    /// Command Interrupted: it may be tried again.
    pub const COMMAND_INTERRUPTED: Status = generic(0x21);
    /// LBA Out of Range.
    pub const LBA_OUT_OF_RANGE: Status = generic(0x80);
    /// Capacity Exceeded.
    pub const CAPACITY_EXCEEDED: Status = generic(0x81);
    /// Namespace Not Ready.
    pub const NAMESPACE_NOT_READY: Status = generic(0x82);

    /// Completion Queue Invalid.
    pub const COMPLETION_QUEUE_INVALID: Status = command(0x00);
    /// Invalid Queue Identifier.
    pub const INVALID_QUEUE_ID: Status = command(0x01);
    /// Invalid Queue Size.
    pub const INVALID_QUEUE_SIZE: Status = command(0x02);
    /// Abort Command Limit Exceeded.
    pub const ABORT_LIMIT_EXCEEDED: Status = command(0x03);
    /// Asynchronous Event Request Limit Exceeded.
    pub const ASYNC_EVENT_LIMIT_EXCEEDED: Status = command(0x05);
    /// Invalid Firmware Slot.
    pub const INVALID_FIRMWARE_SLOT: Status = command(0x06);
    /// Invalid Interrupt Vector.
    pub const INVALID_INTERRUPT_VECTOR: Status = command(0x08);
    /// Invalid Log Page.
    pub const INVALID_LOG_PAGE: Status = command(0x09);
    /// Invalid Format.
    pub const INVALID_FORMAT: Status = command(0x0a);
    /// Invalid Queue Deletion.
    pub const INVALID_QUEUE_DELETION: Status = command(0x0c);
    /// Feature Identifier Not Saveable.
    pub const FEATURE_NOT_SAVEABLE: Status = command(0x0d);
    /// Feature Not Changeable.
    pub const FEATURE_NOT_CHANGEABLE: Status = command(0x0e);
    /// Feature Not Namespace Specific.
    pub const FEATURE_NOT_NAMESPACE_SPECIFIC: Status = command(0x0f);
    /// Namespace Insufficient Capacity.
    pub const NAMESPACE_INSUFFICIENT_CAPACITY: Status = command(0x15);
    /// Namespace Identifier Unavailable.
    pub const NAMESPACE_ID_UNAVAILABLE: Status = command(0x16);
    /// Namespace Already Attached.
    pub const NAMESPACE_ALREADY_ATTACHED: Status = command(0x18);
    /// Namespace is Private.
    pub const NAMESPACE_IS_PRIVATE: Status = command(0x19);
    /// Namespace Not Attached.
    pub const NAMESPACE_NOT_ATTACHED: Status = command(0x1a);
    /// Controller List Invalid.
    pub const CONTROLLER_LIST_INVALID: Status = command(0x1c);
    /// Invalid Controller Identifier.
    pub const INVALID_CONTROLLER_ID: Status = command(0x1f);
    /// I/O Command Set Not Supported.
    pub const COMMAND_SET_NOT_SUPPORTED: Status = command(0x29);
    /// I/O Command Set Combination Rejected.
    pub const COMMAND_SET_COMBINATION_REJECTED: Status = command(0x2b);
    /// Invalid I/O Command Set.
    pub const INVALID_COMMAND_SET: Status = command(0x2c);
    /// Conflicting Attributes (NVM command set).
    pub const CONFLICTING_ATTRIBUTES: Status = command(0x80);
    /// Invalid Protection Information (NVM command set).
    pub const INVALID_PROTECTION_INFORMATION: Status = command(0x81);
    /// Attempted Write to Read Only Range (NVM command set).
    pub const WRITE_TO_READ_ONLY: Status = command(0x82);
    /// Command Size Limit Exceeded (NVM command set).
    pub const COMMAND_SIZE_LIMIT_EXCEEDED: Status = command(0x83);

    /// Write Fault.
    pub const WRITE_FAULT: Status = media(0x80);
    /// Unrecovered Read Error.
    pub const UNRECOVERED_READ_ERROR: Status = media(0x81);
    /// Compare Failure.
    pub const COMPARE_FAILURE: Status = media(0x85);
    /// Access Denied.
    pub const ACCESS_DENIED: Status = media(0x86);
    /// Deallocated or Unwritten Logical Block.
    pub const DEALLOCATED_BLOCK: Status = media(0x87);

    /// A status of this type (0 to 7) and code, without flags.
    pub const fn new(kind: u8, code: u8) -> Self {
        Self(code as u16 | ((kind & 7) as u16) << 8)
    }

    /// The same command would fail again.
    pub const fn do_not_retry(self) -> Self {
        Self(self.0 | DO_NOT_RETRY)
    }

    /// The error information log has more about it.
    pub const fn more(self) -> Self {
        Self(self.0 | MORE)
    }

    /// The status code type: a constant of [`kind`], or something reserved.
    pub const fn kind(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// The status code.
    pub const fn code(self) -> u8 {
        self.0 as u8
    }

    /// Without its flags: equal to the constant it was made from.
    pub const fn plain(self) -> Self {
        Self(self.0 & CODE)
    }

    /// Whether the command was carried out.
    pub const fn is_success(self) -> bool {
        self.plain().0 == 0
    }

    /// Whether the same command would fail again.
    pub const fn is_final(self) -> bool {
        self.0 & DO_NOT_RETRY != 0
    }

    /// Whether the error information log has more about it.
    pub const fn has_more(self) -> bool {
        self.0 & MORE != 0
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dnr, more) = (self.is_final(), self.has_more());
        write!(f, "Status({:#x}/{:#04x}", self.kind(), self.code())?;
        write!(f, "{}{})", if dnr { " dnr" } else { "" }, if more { " more" } else { "" })
    }
}
