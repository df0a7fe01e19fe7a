//! Namespaces (NVM command set specification, figures 97 and 100; base specification, figure 280).

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::IDENTIFY_LEN;

/// How blocks are formatted.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LbaFormat {
    /// Bytes of metadata of a block.
    pub metadata: u16,
    /// Bytes of a block, as an exponent of two.
    pub block: u8,
    /// How fast it is, compared with the other formats: 0 is best.
    pub performance: u8,
}

/// A namespace of the NVM command set.
#[derive(Copy, Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Blocks.
    pub size: u64,
    /// Blocks that may have room at a time.
    pub capacity: u64,
    /// Blocks that have room.
    pub utilization: u64,
    /// Bits: thin provisioning (0), own atomicity (1), deallocated blocks cannot be read (2), the preferences of
    /// [`IdentifyNamespace::write_granularity`] and the fields behind it are meant (4).
    pub features: u8,
    /// Formats, 0's based.
    pub formats: u8,
    /// The format in use (bits 0-3).
    pub format: u8,
    /// Metadata that there may be.
    pub metadata: u8,
    /// Protection that there may be.
    pub protection: u8,
    /// Protection in use.
    pub protection_type: u8,
    /// It may be attached to more than one controller.
    pub shared: u8,
    /// Reservations.
    pub reservations: u8,
    /// How far a format is.
    pub format_progress: u8,
    /// Deallocated blocks: they read as zeros if bits 0-2 are 1; write zeroes may deallocate (bit 3).
    pub deallocation: u8,
    /// Atomicity: normal, power fail, compare and write, boundaries (size, offset, power fail), 0's based.
    pub atomicity: [u16; 6],
    /// Reads and writes should not cross multiples of so many blocks; 0: none.
    pub optimal_boundary: u16,
    /// Bytes of the medium (128 bits).
    pub medium: [u8; 16],
    /// Preferred multiple of a write, 0's based blocks.
    pub write_granularity: u16,
    /// Preferred alignment of a write, 0's based blocks.
    pub write_alignment: u16,
    /// The same for deallocations.
    pub deallocate_granularity: u16,
    /// The same for deallocations.
    pub deallocate_alignment: u16,
    /// Optimal write, 0's based blocks.
    pub optimal_write: u16,
    /// Limits of copies.
    pub copy: [u8; 7],
    /// Reserved.
    pub reserved0: [u8; 11],
    /// Asymmetric access group.
    pub group: u32,
    /// Reserved.
    pub reserved1: [u8; 3],
    /// Bit 0: it is write protected.
    pub attributes: u8,
    /// NVM set.
    pub set: u16,
    /// Endurance group.
    pub endurance_group: u16,
    /// Globally unique identifier, or zeros.
    pub nguid: [u8; 16],
    /// Extended unique identifier, or zeros.
    pub eui64: [u8; 8],
    /// The formats.
    pub lba_formats: [LbaFormat; 64],
    /// Of the vendor.
    pub vendor_specific: [u8; 3712],
}

impl Default for IdentifyNamespace {
    fn default() -> Self {
        FromZeros::new_zeroed()
    }
}

/// What a namespace has whatever its command set is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IndependentNamespace {
    /// As [`IdentifyNamespace::features`], where that does not depend on the command set.
    pub features: u8,
    /// It may be attached to more than one controller.
    pub shared: u8,
    /// Reservations.
    pub reservations: u8,
    /// How far a format is.
    pub format_progress: u8,
    /// Asymmetric access group.
    pub group: u32,
    /// Bit 0: it is write protected.
    pub attributes: u8,
    /// Reserved.
    pub reserved0: u8,
    /// NVM set.
    pub set: u16,
    /// Endurance group.
    pub endurance_group: u16,
    /// Bit 0: it is ready.
    pub status: u8,
    /// Reserved.
    pub reserved1: [u8; 4081],
}

impl Default for IndependentNamespace {
    fn default() -> Self {
        FromZeros::new_zeroed()
    }
}

/// The limits of a controller that belong to the NVM command set. 0 is no limit.
#[derive(Copy, Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NvmController {
    /// Bytes of a verify, as an exponent of two in units of the smallest page.
    pub verify: u8,
    /// The same for write zeroes.
    pub write_zeroes: u8,
    /// The same for write uncorrectable.
    pub write_uncorrectable: u8,
    /// Ranges of dataset management.
    pub ranges: u8,
    /// Blocks of such a range.
    pub range_blocks: u32,
    /// Blocks of all its ranges.
    pub blocks: u64,
    /// Reserved.
    pub reserved: [u8; 4080],
}

impl Default for NvmController {
    fn default() -> Self {
        FromZeros::new_zeroed()
    }
}

const _: () = assert!(size_of::<IdentifyNamespace>() == IDENTIFY_LEN);
const _: () = assert!(size_of::<IndependentNamespace>() == IDENTIFY_LEN);
const _: () = assert!(size_of::<NvmController>() == IDENTIFY_LEN && size_of::<LbaFormat>() == 4);
