//! Payloads that hold memory regions or a counted number of bytes. Their constructors refuse what does not fit on
//! the wire, so that encoding cannot fail.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::payload::{Payload, Size};
use crate::frame::DoesNotFit;

/// The most regions one `SET_MEM_TABLE` holds.
pub const MAX_REGIONS: usize = 8;
/// The most bytes of configuration space one message holds.
pub const MAX_CONFIG: usize = 256;
/// The longest crypto session description that is taken, in bytes.
pub const MAX_CRYPTO: usize = 2048;
/// How many shared memory regions a device may have.
pub const SHMEM_REGIONS: usize = 256;

const MISCOUNTED: &str = "has a count that differs from its length";

/// A region of guest memory and where it lies in the file that comes along.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryRegion {
    /// Guest physical address of its first byte.
    pub guest_addr: u64,
    /// Its length, in bytes.
    pub size: u64,
    /// The front-end's virtual address of its first byte: a key, never to be followed.
    pub user_addr: u64,
    /// Where its first byte lies in the file, in bytes.
    pub mmap_offset: u64,
}

/// The single region of `ADD_MEM_REG` and `REM_MEM_REG`, with eight bytes of padding before it.
impl Payload for MemoryRegion {
    const SIZE: Size = Size::exactly(40);

    fn decode(body: &[u8]) -> Result<Self, &'static str> {
        Self::read_from_suffix(body).map(|(_, region)| region).map_err(|_| MISCOUNTED)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(self.as_bytes());
    }
}

/// All regions of guest memory, at most [`MAX_REGIONS`]; the message carries a descriptor for each, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MemoryTable {
    regions: Vec<MemoryRegion>,
}

impl MemoryTable {
    /// A table of `regions`.
    pub fn new(regions: Vec<MemoryRegion>) -> Result<Self, DoesNotFit> {
        DoesNotFit::check("memory regions", regions.len(), MAX_REGIONS)?;
        Ok(Self { regions })
    }

    /// The regions.
    pub fn regions(&self) -> &[MemoryRegion] {
        &self.regions
    }
}

impl Payload for MemoryTable {
    const SIZE: Size = Size { min: 8, max: 8 + 32 * MAX_REGIONS as u32 };

    fn decode(body: &[u8]) -> Result<Self, &'static str> {
        let ([count, _], rest) = <[u32; 2]>::read_from_prefix(body).map_err(|_| MISCOUNTED)?;
        let regions: Vec<_> = rest
            .chunks(size_of::<MemoryRegion>())
            .map_while(|r| MemoryRegion::read_from_bytes(r).ok())
            .collect();
        if regions.len() != count as usize || regions.as_bytes().len() != rest.len() {
            return Err(MISCOUNTED);
        }
        Ok(Self { regions })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice([self.regions.len() as u32, 0].as_bytes());
        out.extend_from_slice(self.regions.as_bytes());
    }

    fn fds(&self) -> usize {
        self.regions.len()
    }
}

/// A piece of the device's configuration space. In a request to read it, `data` only says how long the piece is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Config {
    /// Where the piece starts, in bytes.
    pub offset: u32,
    /// [`Config::LIVE_MIGRATION`] or 0.
    pub flags: u32,
    data: Vec<u8>,
}

impl Config {
    /// `flags`: the piece restores a device that has been migrated, so that read-only fields may be written.
    pub const LIVE_MIGRATION: u32 = 1;

    /// A piece that starts at `offset` and holds `data`, at most [`MAX_CONFIG`] bytes.
    pub fn new(offset: u32, flags: u32, data: Vec<u8>) -> Result<Self, DoesNotFit> {
        DoesNotFit::check("bytes of configuration space", data.len(), MAX_CONFIG)?;
        Ok(Self { offset, flags, data })
    }

    /// The bytes.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The bytes, to be filled in by the back-end.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }
}

impl Payload for Config {
    const SIZE: Size = Size { min: 12, max: 12 + MAX_CONFIG as u32 };

    fn decode(body: &[u8]) -> Result<Self, &'static str> {
        let ([offset, size, flags], data) = <[u32; 3]>::read_from_prefix(body).map_err(|_| MISCOUNTED)?;
        if size as usize != data.len() {
            return Err(MISCOUNTED);
        }
        Ok(Self { offset, flags, data: data.to_vec() })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice([self.offset, self.data.len() as u32, self.flags].as_bytes());
        out.extend_from_slice(&self.data);
    }
}

/// The description of a crypto session: bytes that only the two ends of a crypto device understand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CryptoSession {
    bytes: Vec<u8>,
}

impl CryptoSession {
    /// A description of at most [`MAX_CRYPTO`] bytes.
    pub fn new(bytes: Vec<u8>) -> Result<Self, DoesNotFit> {
        DoesNotFit::check("bytes of a crypto session", bytes.len(), MAX_CRYPTO)?;
        Ok(Self { bytes })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Payload for CryptoSession {
    const SIZE: Size = Size { min: 0, max: MAX_CRYPTO as u32 };

    fn decode(body: &[u8]) -> Result<Self, &'static str> {
        Ok(Self { bytes: body.to_vec() })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes);
    }
}

/// The device's shared memory regions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShmemConfig {
    /// How many of the sizes are not zero.
    pub regions: u32,
    /// The size of each region in bytes, by its id.
    pub sizes: Box<[u64; SHMEM_REGIONS]>,
}

impl Payload for ShmemConfig {
    const SIZE: Size = Size::exactly(8 + 8 * SHMEM_REGIONS as u32);

    fn decode(body: &[u8]) -> Result<Self, &'static str> {
        let ([regions, _], rest) = <[u32; 2]>::read_from_prefix(body).map_err(|_| MISCOUNTED)?;
        let sizes = <[u64; SHMEM_REGIONS]>::read_from_bytes(rest).map_err(|_| MISCOUNTED)?;
        Ok(Self { regions, sizes: Box::new(sizes) })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice([self.regions, 0].as_bytes());
        out.extend_from_slice(self.sizes.as_bytes());
    }
}
