//! Payloads about regions.

use bitflags::bitflags;

use super::table::{FdRule, Payload, Problem, Size, check_argsz, fields, put};
use crate::frame::DoesNotFit;

/// The most mappable areas of one region.
pub const MAX_AREAS: usize = 256;

bitflags! {
    /// What can be done with a region (`VFIO_REGION_INFO_FLAG_*`). Bits nobody here knows are kept as they came; that of
    /// the capabilities is [`RegionInfo::caps`].
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
    pub struct RegionFlags: u32 {
        /// It can be read.
        const READ = 1;
        /// It can be written.
        const WRITE = 2;
        /// It can be mapped from the file that comes along.
        const MMAP = 4;
    }
}

/// What is this region? All else that the message has is ignored.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueryRegion {
    /// How long the reply's payload may be, in bytes.
    pub argsz: u32,
    /// Which region.
    pub index: u32,
}

/// A part of a region that can be mapped.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SparseArea {
    /// Where it starts in the region, in bytes.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// What there is to say of a region beyond its size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum RegionCaps {
    /// Nothing.
    #[default]
    None,
    /// Only these parts of it can be mapped, at most [`MAX_AREAS`]. Other capabilities are not told apart here.
    Sparse(Vec<SparseArea>),
    /// Something that does not fit: ask again with this argsz, in bytes.
    Omitted {
        /// The length of the whole payload, in bytes.
        argsz: u32,
    },
}

/// What a region is. The file to map it from comes with it if it can be mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RegionInfo {
    /// What can be done with it.
    pub flags: RegionFlags,
    /// Which region.
    pub index: u32,
    /// Bytes.
    pub size: u64,
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    caps: RegionCaps,
}

const INFO_LEN: usize = 32;
const SPARSE_LEN: usize = 16;
const AREA_LEN: usize = 16;
const FLAG_CAPS: u32 = 8;
const CAP_SPARSE: u16 = 1;
const CAP_VERSION: u16 = 1;
/// The most capabilities that are looked at.
const MAX_CAPS: usize = 16;

impl RegionInfo {
    /// The region `index` of `size` bytes, which starts `offset` bytes into its file if it has one.
    pub fn new(index: u32, flags: RegionFlags, size: u64, offset: u64) -> Self {
        Self { flags, index, size, offset, caps: RegionCaps::None }
    }

    /// The same region, of which only these parts can be mapped, at most [`MAX_AREAS`].
    pub fn with_areas(mut self, areas: Vec<SparseArea>) -> Result<Self, DoesNotFit> {
        DoesNotFit::check("mappable areas", areas.len(), MAX_AREAS)?;
        self.caps = RegionCaps::Sparse(areas);
        Ok(self)
    }

    /// What there is to say beyond its size.
    pub fn caps(&self) -> &RegionCaps {
        &self.caps
    }

    /// What of it fits in a reply whose payload may have `argsz` bytes.
    pub fn fit(mut self, argsz: u32) -> Self {
        let whole = self.argsz();
        if whole > argsz && self.caps != RegionCaps::None {
            self.caps = RegionCaps::Omitted { argsz: whole };
        }
        self
    }

    /// The length of the whole payload, in bytes.
    pub fn argsz(&self) -> u32 {
        match &self.caps {
            RegionCaps::None => INFO_LEN as u32,
            RegionCaps::Sparse(areas) => {
                let areas = areas.len().saturating_mul(AREA_LEN);
                areas.saturating_add(INFO_LEN + SPARSE_LEN) as u32
            }
            RegionCaps::Omitted { argsz } => *argsz,
        }
    }
}

impl Payload for QueryRegion {
    const SIZE: Size = Size::exactly(INFO_LEN);

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([argsz, _, index], _) = fields::<[u32; 3]>(body)?;
        check_argsz(argsz, INFO_LEN)?;
        Ok(Self { argsz, index })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &[self.argsz, 0, self.index, 0]);
        put(out, &[0u64; 2]);
    }
}

impl Payload for RegionInfo {
    const SIZE: Size = Size { min: INFO_LEN, max: INFO_LEN + SPARSE_LEN + AREA_LEN * MAX_AREAS + 256 };

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([argsz, flags, index, cap_offset], rest) = fields::<[u32; 4]>(body)?;
        let ([size, offset], _) = fields::<[u64; 2]>(rest)?;
        check_argsz(argsz, INFO_LEN)?;
        let caps = if flags & FLAG_CAPS == 0 {
            RegionCaps::None
        } else if argsz as usize > body.len() {
            RegionCaps::Omitted { argsz }
        } else {
            find_areas(body, cap_offset as usize)?
        };
        Ok(Self { flags: RegionFlags::from_bits_retain(flags & !FLAG_CAPS), index, size, offset, caps })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        // QEMU refuses a reply whose capabilities start nowhere, even before it asks again with more room.
        let (flag, cap_offset) = match self.caps {
            RegionCaps::None => (0, 0),
            _ => (FLAG_CAPS, INFO_LEN as u32),
        };
        let flags = self.flags.bits() & !FLAG_CAPS | flag;
        put(out, &[self.argsz(), flags, self.index, cap_offset]);
        put(out, &[self.size, self.offset]);
        if let RegionCaps::Sparse(areas) = &self.caps {
            put(out, &[CAP_SPARSE, CAP_VERSION]);
            put(out, &[0u32, areas.len() as u32, 0]);
            for area in areas {
                put(out, &[area.offset, area.size]);
            }
        }
    }

    fn fds(&self) -> FdRule {
        FdRule::Between(0, 1)
    }
}

/// Walks the chain of capabilities that starts `at` bytes into the payload, forward only.
fn find_areas(body: &[u8], mut at: usize) -> Result<RegionCaps, Problem> {
    let mut end = INFO_LEN;
    for _ in 0..MAX_CAPS {
        if at == 0 {
            return Ok(RegionCaps::None);
        }
        let cap =
            body.get(at..).filter(|_| at >= end).ok_or(Problem::Body("has capabilities out of place"))?;
        let ([id, _], rest) = fields::<[u16; 2]>(cap)?;
        let (next, rest) = fields::<u32>(rest)?;
        if id == CAP_SPARSE {
            return areas(rest).map(RegionCaps::Sparse);
        }
        end = at.saturating_add(8);
        at = next as usize;
    }
    Err(Problem::Body("has too many capabilities"))
}

fn areas(body: &[u8]) -> Result<Vec<SparseArea>, Problem> {
    let ([count, _], rest) = fields::<[u32; 2]>(body)?;
    let count = count as usize;
    let bytes = count.checked_mul(AREA_LEN).filter(|_| count <= MAX_AREAS).and_then(|len| rest.get(..len));
    let bytes = bytes.ok_or(Problem::Body("has a count that differs from its length"))?;
    bytes
        .chunks(AREA_LEN)
        .map(|area| fields::<[u64; 2]>(area).map(|([offset, size], _)| SparseArea { offset, size }))
        .collect()
}
