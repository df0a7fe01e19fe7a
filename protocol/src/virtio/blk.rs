//! The block device (virtio 1.3, section 5.2): feature masks, request header and status, the configuration space.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The number of this kind of device (section 5).
pub const DEVICE_ID: u32 = 2;

/// A descriptor may have at most [`BlkConfig::size_max`] bytes.
pub const VIRTIO_BLK_F_SIZE_MAX: u64 = 1 << 1;
/// A request may have at most [`BlkConfig::seg_max`] data descriptors.
pub const VIRTIO_BLK_F_SEG_MAX: u64 = 1 << 2;
/// The device tells cylinders, heads and sectors.
pub const VIRTIO_BLK_F_GEOMETRY: u64 = 1 << 4;
/// The device cannot be written.
pub const VIRTIO_BLK_F_RO: u64 = 1 << 5;
/// [`BlkConfig::blk_size`] is valid.
pub const VIRTIO_BLK_F_BLK_SIZE: u64 = 1 << 6;
/// The device has a cache that can be flushed.
pub const VIRTIO_BLK_F_FLUSH: u64 = 1 << 9;
/// The topology fields of the configuration are valid.
pub const VIRTIO_BLK_F_TOPOLOGY: u64 = 1 << 10;
/// The driver may switch between write-back and write-through ([`BlkConfig::writeback`]).
pub const VIRTIO_BLK_F_CONFIG_WCE: u64 = 1 << 11;
/// The device has more than one queue.
pub const VIRTIO_BLK_F_MQ: u64 = 1 << 12;
/// The device can discard.
pub const VIRTIO_BLK_F_DISCARD: u64 = 1 << 13;
/// The device can write zeroes.
pub const VIRTIO_BLK_F_WRITE_ZEROES: u64 = 1 << 14;

/// [`BlkHeader::kind`]: from the device to the driver.
pub const VIRTIO_BLK_T_IN: u32 = 0;
/// [`BlkHeader::kind`]: from the driver to the device.
pub const VIRTIO_BLK_T_OUT: u32 = 1;
/// [`BlkHeader::kind`]: all writes that have ended become durable.
pub const VIRTIO_BLK_T_FLUSH: u32 = 4;
/// [`BlkHeader::kind`]: the device's name.
pub const VIRTIO_BLK_T_GET_ID: u32 = 8;
/// [`BlkHeader::kind`]: sectors that are not needed any more.
pub const VIRTIO_BLK_T_DISCARD: u32 = 11;
/// [`BlkHeader::kind`]: sectors that become zeros.
pub const VIRTIO_BLK_T_WRITE_ZEROES: u32 = 13;

/// Bytes of the answer to [`VIRTIO_BLK_T_GET_ID`]; a shorter name is followed by zeros.
pub const VIRTIO_BLK_ID_LEN: usize = 20;

/// The status of a request: it was carried out.
pub const VIRTIO_BLK_S_OK: u8 = 0;
/// The status of a request: it failed.
pub const VIRTIO_BLK_S_IOERR: u8 = 1;
/// The status of a request: the device does not know it.
pub const VIRTIO_BLK_S_UNSUPP: u8 = 2;

/// [`BlkRange::flags`]: the room of zeroes may be given back.
pub const VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP: u32 = 1;

/// The first bytes that the device reads of a request (section 5.2.6).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkHeader {
    kind: [u8; 4],
    reserved: [u8; 4],
    sector: [u8; 8],
}

impl BlkHeader {
    /// Bytes of the header.
    pub const LEN: usize = size_of::<Self>();

    /// A header.
    pub fn new(kind: u32, sector: u64) -> Self {
        Self { kind: kind.to_le_bytes(), reserved: [0; 4], sector: sector.to_le_bytes() }
    }

    /// What is asked: a `VIRTIO_BLK_T_` constant.
    pub fn kind(&self) -> u32 {
        u32::from_le_bytes(self.kind)
    }

    /// The first sector of a read or write.
    pub fn sector(&self) -> u64 {
        u64::from_le_bytes(self.sector)
    }
}

/// The data of a discard or of zeroes: one range of sectors.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkRange {
    sector: [u8; 8],
    sectors: [u8; 4],
    flags: [u8; 4],
}

impl BlkRange {
    /// Bytes of a range.
    pub const LEN: usize = size_of::<Self>();

    /// A range.
    pub fn new(sector: u64, sectors: u32, flags: u32) -> Self {
        Self { sector: sector.to_le_bytes(), sectors: sectors.to_le_bytes(), flags: flags.to_le_bytes() }
    }

    /// Its first sector.
    pub fn sector(&self) -> u64 {
        u64::from_le_bytes(self.sector)
    }

    /// How many sectors.
    pub fn sectors(&self) -> u32 {
        u32::from_le_bytes(self.sectors)
    }

    /// [`VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`] or nothing.
    pub fn flags(&self) -> u32 {
        u32::from_le_bytes(self.flags)
    }
}

/// The configuration space (section 5.2.4), up to the fields of zeroes. Numbers are in the byte order of the wire; see
/// [`BlkConfig::default`] for zeros, and write with `to_le_bytes`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlkConfig {
    /// Sectors of 512 bytes (64 bits).
    pub capacity: [u8; 8],
    /// Bytes of a descriptor at most (32 bits).
    pub size_max: [u8; 4],
    /// Data descriptors of a request at most (32 bits).
    pub seg_max: [u8; 4],
    /// Cylinders (16 bits), heads, sectors.
    pub geometry: [u8; 4],
    /// Bytes of a logical block (32 bits).
    pub blk_size: [u8; 4],
    /// Logical blocks of a physical one, as an exponent of two.
    pub physical_block_exp: u8,
    /// The first logical block that begins a physical one.
    pub alignment_offset: u8,
    /// Logical blocks of an I/O that suggests itself, at least (16 bits).
    pub min_io_size: [u8; 2],
    /// The same at best (32 bits).
    pub opt_io_size: [u8; 4],
    /// 0 for write-through, 1 for write-back; the driver may change it.
    pub writeback: u8,
    /// Nothing.
    pub unused0: u8,
    /// Queues (16 bits).
    pub num_queues: [u8; 2],
    /// Sectors of a discard at most (32 bits).
    pub max_discard_sectors: [u8; 4],
    /// Ranges of a discard at most (32 bits).
    pub max_discard_seg: [u8; 4],
    /// What the beginning of a discard should be a multiple of, in sectors (32 bits).
    pub discard_sector_alignment: [u8; 4],
    /// Sectors of zeroes at most (32 bits).
    pub max_write_zeroes_sectors: [u8; 4],
    /// Ranges of zeroes at most (32 bits).
    pub max_write_zeroes_seg: [u8; 4],
    /// Zeroes may give room back.
    pub write_zeroes_may_unmap: u8,
    /// Nothing.
    pub unused1: [u8; 3],
}

impl BlkConfig {
    /// Bytes of the space.
    pub const LEN: usize = size_of::<Self>();
    /// Where [`BlkConfig::writeback`] is.
    pub const WRITEBACK_OFFSET: usize = std::mem::offset_of!(BlkConfig, writeback);
}

const _: () = assert!(BlkConfig::LEN == 60 && BlkHeader::LEN == 16 && BlkRange::LEN == 16);
