//! What commands point to: SGL descriptors (base specification, section 4.1.2) and the ranges of dataset management (NVM
//! command set specification, section 3.2.3.1).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// [`SglDescriptor::kind`]: the bytes of the data.
pub const SGL_DATA_BLOCK: u8 = 0;
/// [`SglDescriptor::kind`]: bytes of the data that are not wanted.
pub const SGL_BIT_BUCKET: u8 = 1;
/// [`SglDescriptor::kind`]: where more descriptors are, the last of which is a segment again.
pub const SGL_SEGMENT: u8 = 2;
/// [`SglDescriptor::kind`]: where the last descriptors are.
pub const SGL_LAST_SEGMENT: u8 = 3;
/// [`SglDescriptor::kind`]: for message-based transports.
pub const SGL_KEYED_DATA_BLOCK: u8 = 4;
/// [`SglDescriptor::kind`]: for message-based transports.
pub const SGL_TRANSPORT_DATA_BLOCK: u8 = 5;

/// [`SglDescriptor::sub_kind`]: the address is one of memory.
pub const SGL_ADDRESS: u8 = 0;
/// [`SglDescriptor::sub_kind`]: the address is an offset.
pub const SGL_OFFSET: u8 = 1;

/// A descriptor of a scatter gather list.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SglDescriptor {
    /// Where; reserved in a bit bucket.
    pub address: u64,
    /// How many bytes.
    pub len: u32,
    /// Reserved.
    pub reserved: [u8; 3],
    /// Sub type (bits 0-3) and type (bits 4-7).
    pub identifier: u8,
}

impl SglDescriptor {
    /// Bytes of a descriptor.
    pub const LEN: usize = size_of::<Self>();

    /// A descriptor of memory.
    pub const fn new(kind: u8, address: u64, len: u32) -> Self {
        Self { address, len, reserved: [0; 3], identifier: kind << 4 }
    }

    /// The one in a command's data pointer ([`Command::dptr`](super::command::Command::dptr)).
    pub const fn from_pointer(dptr: [u64; 2]) -> Self {
        let [address, rest] = dptr;
        let [a, b, c, identifier] = ((rest >> 32) as u32).to_le_bytes();
        Self { address, len: rest as u32, reserved: [a, b, c], identifier }
    }

    /// As a command's data pointer.
    pub const fn pointer(self) -> [u64; 2] {
        let [a, b, c] = self.reserved;
        [self.address, self.len as u64 | (u32::from_le_bytes([a, b, c, self.identifier]) as u64) << 32]
    }

    /// Its type: an `SGL_` constant, or something reserved.
    pub const fn kind(self) -> u8 {
        self.identifier >> 4
    }

    /// Its sub type.
    pub const fn sub_kind(self) -> u8 {
        self.identifier & 0xf
    }
}

/// One range of dataset management.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DatasetRange {
    /// Hints about its use.
    pub attributes: u32,
    /// How many logical blocks.
    pub blocks: u32,
    /// The first of them.
    pub first: u64,
}

impl DatasetRange {
    /// Bytes of a range.
    pub const LEN: usize = size_of::<Self>();
}

const _: () = assert!(SglDescriptor::LEN == 16 && DatasetRange::LEN == 16);
