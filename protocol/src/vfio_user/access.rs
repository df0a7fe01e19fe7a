//! Payloads that move data: accesses to regions, and to the client's memory.

use std::ops::{Deref, DerefMut};

use smallvec::SmallVec;

use super::table::{Payload, Problem, Size, fields, put};
use crate::frame::DoesNotFit;

/// The most bytes of data one message carries (1 MiB): what the protocol lets a peer assume that announces nothing
/// else.
pub const MAX_DATA: usize = 1 << 20;
/// The most writes one `REGION_WRITE_MULTI` holds; QEMU's limit.
pub const MAX_WRITES: usize = 200;

/// The most bytes of each of them.
const MULTI_BYTES: usize = 8;
const MULTI_LEN: usize = 24;

/// At most [`MAX_DATA`] bytes. A register's lie in place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Data(SmallVec<[u8; 16]>);

impl Data {
    /// A copy of `bytes`.
    pub fn new(bytes: &[u8]) -> Result<Self, DoesNotFit> {
        DoesNotFit::check("bytes of data", bytes.len(), MAX_DATA)?;
        Ok(Self(SmallVec::from_slice(bytes)))
    }

    /// So many zeros, at most [`MAX_DATA`], to be filled in.
    pub fn zeroed(len: usize) -> Result<Self, DoesNotFit> {
        DoesNotFit::check("bytes of data", len, MAX_DATA)?;
        Ok(Self(SmallVec::from_elem(0, len)))
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Problem> {
        Self::new(bytes).map_err(|error| Problem::TooMuchData { count: error.len as u64 })
    }

    /// All of `bytes`, which must be as many as `count` says.
    fn counted(bytes: &[u8], count: u64) -> Result<Self, Problem> {
        if bytes.len() as u64 != count {
            return Err(Problem::Body("has a count that differs from its length"));
        }
        Self::decode(bytes)
    }
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Data {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

fn check_count(count: u64) -> Result<(), Problem> {
    if count > MAX_DATA as u64 { Err(Problem::TooMuchData { count }) } else { Ok(()) }
}

/// Read so many bytes of a region, at most [`MAX_DATA`].
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RegionRead {
    /// Where in the region, in bytes.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

/// What was read of a region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RegionReadDone {
    /// Where in the region, in bytes.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// The bytes.
    pub data: Data,
}

/// Write to a region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RegionWrite {
    /// Where in the region, in bytes.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// The bytes.
    pub data: Data,
}

/// What was written to a region.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RegionWriteDone {
    /// Where in the region, in bytes.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

const ACCESS: usize = 16;
const WITH_DATA: Size = Size { min: ACCESS, max: ACCESS + MAX_DATA };

/// The two layouts of an access to a region.
macro_rules! region_access {
    (count: $($count:ident)*; data: $($data:ident)*) => {
        $(impl Payload for $count {
            const SIZE: Size = Size::exactly(ACCESS);

            fn decode(body: &[u8]) -> Result<Self, Problem> {
                let (offset, rest) = fields(body)?;
                let ([region, count], _) = fields::<[u32; 2]>(rest)?;
                check_count(count.into())?;
                Ok(Self { offset, region, count })
            }

            fn encode(&self, out: &mut Vec<u8>) {
                put(out, &self.offset);
                put(out, &[self.region, self.count]);
            }
        })*
        $(impl Payload for $data {
            const SIZE: Size = WITH_DATA;

            fn decode(body: &[u8]) -> Result<Self, Problem> {
                let (offset, rest) = fields(body)?;
                let ([region, count], rest) = fields::<[u32; 2]>(rest)?;
                Ok(Self { offset, region, data: Data::counted(rest, count.into())? })
            }

            fn encode(&self, out: &mut Vec<u8>) {
                put(out, &self.offset);
                put(out, &[self.region, self.data.len() as u32]);
                put(out, &*self.data);
            }
        })*
    };
}

region_access!(count: RegionRead RegionWriteDone; data: RegionReadDone RegionWrite);

/// Several small writes in one message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RegionWriteMulti {
    writes: Vec<RegionWrite>,
}

impl RegionWriteMulti {
    /// At most [`MAX_WRITES`] writes of at most 8 bytes each.
    pub fn new(writes: Vec<RegionWrite>) -> Result<Self, DoesNotFit> {
        DoesNotFit::check("writes", writes.len(), MAX_WRITES)?;
        for write in &writes {
            DoesNotFit::check("bytes of one of several writes", write.data.len(), MULTI_BYTES)?;
        }
        Ok(Self { writes })
    }

    /// The writes, in order.
    pub fn writes(&self) -> &[RegionWrite] {
        &self.writes
    }
}

impl Payload for RegionWriteMulti {
    const SIZE: Size = Size { min: 8, max: 8 + MULTI_LEN * MAX_WRITES };

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let (count, rest) = fields::<u64>(body)?;
        if count.checked_mul(MULTI_LEN as u64) != Some(rest.len() as u64) {
            return Err(Problem::Body("has a count that differs from its length"));
        }
        let one = |piece| {
            let (offset, rest) = fields(piece)?;
            let ([region, count], rest) = fields::<[u32; 2]>(rest)?;
            let data = rest.get(..count as usize).ok_or(Problem::Body("has a write of more than 8 bytes"))?;
            Ok(RegionWrite { offset, region, data: Data::decode(data)? })
        };
        let writes = rest.chunks(MULTI_LEN).map(one).collect::<Result<_, _>>()?;
        Ok(Self { writes })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &(self.writes.len() as u64));
        for write in &self.writes {
            write.encode(out);
            let padding = MULTI_BYTES.saturating_sub(write.data.len());
            out.resize(out.len().saturating_add(padding), 0);
        }
    }
}

/// How many writes of a `REGION_WRITE_MULTI` were done.
impl Payload for u64 {
    const SIZE: Size = Size::exactly(8);

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        Ok(fields(body)?.0)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, self);
    }
}

/// Read so many bytes of the client's memory, at most [`MAX_DATA`].
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DmaRead {
    /// The device's address of the first.
    pub address: u64,
    /// Bytes.
    pub count: u64,
}

impl Payload for DmaRead {
    const SIZE: Size = Size::exactly(ACCESS);

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([address, count], _) = fields::<[u64; 2]>(body)?;
        check_count(count)?;
        Ok(Self { address, count })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &[self.address, self.count]);
    }
}

/// Where the data begin in a `DMA_WRITE`, and in the reply to a `DMA_READ`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum DmaLayout {
    /// 16 bytes into the payload, behind a count of 64 bits, as the specification has it.
    #[default]
    Specified,
    /// 12 bytes into it, behind a count of 32 bits, and four zeros at the end: what QEMU 11 sends and expects.
    Narrow,
}

/// What was read of the client's memory.
///
/// It is taken for [`DmaLayout::Narrow`] where it can be nothing else. Where its data begin with four zeros, it may be either: see
/// [`DmaReadDone::narrow`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DmaReadDone {
    /// The device's address of the first.
    pub address: u64,
    /// The bytes.
    pub data: Data,
    /// Where they were.
    pub layout: DmaLayout,
}

impl DmaReadDone {
    /// What the data are in [`DmaLayout::Narrow`]; `None` if the reply cannot have that.
    pub fn narrow(&self) -> Option<Data> {
        if self.layout == DmaLayout::Narrow {
            return Some(self.data.clone());
        }
        // What stands before the data is the upper half of the count: four zeros. So are the last four.
        let (kept, rest) = self.data.split_at_checked(self.data.len().saturating_sub(PADDING))?;
        if rest.iter().any(|byte| *byte != 0) {
            return None;
        }
        let mut data = Data(SmallVec::from_elem(0, rest.len()));
        data.0.extend_from_slice(kept);
        Some(data)
    }
}

/// Write to the client's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DmaWrite {
    /// The device's address of the first.
    pub address: u64,
    /// The bytes.
    pub data: Data,
    /// Where they are.
    pub layout: DmaLayout,
}

/// Bytes by which the data of the narrow layout are earlier.
const PADDING: usize = 4;

macro_rules! dma_data {
    ($($type:ident)*) => {$(
        impl Payload for $type {
            const SIZE: Size = WITH_DATA;

            fn decode(body: &[u8]) -> Result<Self, Problem> {
                let (address, behind) = fields::<u64>(body)?;
                let (wide, rest) = fields::<u64>(behind)?;
                let (count, narrow) = fields::<u32>(behind)?;
                let (data, padding) = narrow.split_at_checked(rest.len()).unwrap_or_default();
                if wide != rest.len() as u64 && count as usize == data.len() && padding == [0; PADDING] {
                    return Ok(Self { address, data: Data::decode(data)?, layout: DmaLayout::Narrow });
                }
                Ok(Self { address, data: Data::counted(rest, wide)?, layout: DmaLayout::Specified })
            }

            fn encode(&self, out: &mut Vec<u8>) {
                put(out, &self.address);
                put(out, &(self.data.len() as u32));
                if self.layout == DmaLayout::Specified {
                    put(out, &[0u8; PADDING]);
                }
                put(out, &*self.data);
                if self.layout == DmaLayout::Narrow {
                    put(out, &[0u8; PADDING]);
                }
            }
        }
    )*};
}

dma_data!(DmaReadDone DmaWrite);

/// What was written to the client's memory. The specification is of two minds about the width of the count, and QEMU
/// sends nothing but the header: so nothing is [`DmaWriteDone::Silent`], and either width is taken.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum DmaWriteDone {
    /// All of it, presumably.
    Silent,
    /// This much.
    Told {
        /// The device's address of the first byte.
        address: u64,
        /// Bytes.
        count: u64,
    },
}

impl Payload for DmaWriteDone {
    const SIZE: Size = Size { min: 0, max: ACCESS };

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        match body.len() {
            0 => Ok(Self::Silent),
            12 => {
                let (address, rest) = fields(body)?;
                Ok(Self::Told { address, count: fields::<u32>(rest)?.0.into() })
            }
            ACCESS => {
                let ([address, count], _) = fields::<[u64; 2]>(body)?;
                Ok(Self::Told { address, count })
            }
            _ => Err(Problem::Body("is neither empty nor an address and a count")),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        if let Self::Told { address, count } = *self {
            put(out, &[address, count]);
        }
    }
}
