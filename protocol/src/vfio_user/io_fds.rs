//! Payloads about descriptors by which regions are reached without a message.

use super::table::{FdRule, Payload, Problem, Size, check_argsz, fields, put};
use crate::frame::{DoesNotFit, MAX_FDS};

/// The most sub-regions that one reply describes.
pub const MAX_SUB_REGIONS: usize = 256;

const INFO_LEN: usize = 16;
const SUB_LEN: usize = 40;
const IOEVENTFD: u32 = 0;
const IOREGIONFD: u32 = 1;

/// By which descriptors is this region reached?
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueryIoFds {
    /// How long the reply's payload may be, in bytes.
    pub argsz: u32,
    /// Which region.
    pub index: u32,
}

impl Payload for QueryIoFds {
    const SIZE: Size = Size::exactly(INFO_LEN);

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([argsz, flags, index, count], _) = fields::<[u32; 4]>(body)?;
        check_argsz(argsz, INFO_LEN)?;
        if flags != 0 || count != 0 {
            return Err(Problem::Body("has flags or a count, which must be 0"));
        }
        Ok(Self { argsz, index })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &[self.argsz, 0, self.index, 0]);
    }
}

/// How a sub-region's descriptor tells of an access.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum IoFdKind {
    /// It is an eventfd, for `KVM_IOEVENTFD`.
    Ioeventfd {
        /// The value that a write has to have, if the flags say so.
        datamatch: u64,
    },
    /// It takes messages, for KVM's proposed ioregionfd.
    Ioregionfd {
        /// What the server knows the sub-region by.
        user_data: u64,
    },
}

/// A part of a region that is reached by a descriptor.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubRegion {
    /// Where it starts in the region, in bytes.
    pub offset: u64,
    /// Bytes; 0 where the size of an access does not matter.
    pub size: u64,
    /// Which of the descriptors that come along.
    pub fd_index: u32,
    /// Flags of KVM's interface.
    pub flags: u32,
    /// How the descriptor tells of an access.
    pub kind: IoFdKind,
}

/// The parts of a region that are reached by descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SubRegions {
    /// These, at most [`MAX_SUB_REGIONS`].
    Given(Vec<SubRegion>),
    /// So many, which do not fit: ask again with this argsz.
    Omitted {
        /// How many.
        count: u32,
        /// The length of the whole payload, in bytes.
        argsz: u32,
    },
}

/// By which descriptors a region is reached. They come along.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegionIoFds {
    index: u32,
    sub_regions: SubRegions,
}

impl RegionIoFds {
    /// The region `index` has these sub-regions, at most [`MAX_SUB_REGIONS`], with at most [`MAX_FDS`] descriptors.
    pub fn new(index: u32, sub_regions: Vec<SubRegion>) -> Result<Self, DoesNotFit> {
        DoesNotFit::check("sub-regions", sub_regions.len(), MAX_SUB_REGIONS)?;
        DoesNotFit::check("descriptors", descriptors(&sub_regions), MAX_FDS)?;
        Ok(Self { index, sub_regions: SubRegions::Given(sub_regions) })
    }

    /// Which region.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its parts.
    pub fn sub_regions(&self) -> &SubRegions {
        &self.sub_regions
    }

    /// What of it fits in a reply whose payload may have `argsz` bytes. No descriptors belong to what does not fit.
    pub fn fit(mut self, argsz: u32) -> Self {
        let whole = self.argsz();
        if let SubRegions::Given(given) = &self.sub_regions
            && whole > argsz
        {
            self.sub_regions = SubRegions::Omitted { count: given.len() as u32, argsz: whole };
        }
        self
    }

    /// The length of the whole payload, in bytes.
    pub fn argsz(&self) -> u32 {
        match &self.sub_regions {
            SubRegions::Given(given) => given.len().saturating_mul(SUB_LEN).saturating_add(INFO_LEN) as u32,
            SubRegions::Omitted { argsz, .. } => *argsz,
        }
    }
}

/// How many descriptors have to come along.
fn descriptors(sub_regions: &[SubRegion]) -> usize {
    sub_regions.iter().map(|sub| (sub.fd_index as usize).saturating_add(1)).max().unwrap_or_default()
}

impl Payload for RegionIoFds {
    const SIZE: Size = Size { min: INFO_LEN, max: INFO_LEN + SUB_LEN * MAX_SUB_REGIONS };

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([argsz, _, index, count], rest) = fields::<[u32; 4]>(body)?;
        check_argsz(argsz, INFO_LEN)?;
        if argsz as usize > body.len() {
            return Ok(Self { index, sub_regions: SubRegions::Omitted { count, argsz } });
        }
        if (count as usize).checked_mul(SUB_LEN) != Some(rest.len()) {
            return Err(Problem::Body("has a count that differs from its length"));
        }
        let given = rest.chunks(SUB_LEN).map(SubRegion::decode).collect::<Result<Vec<_>, _>>()?;
        Self::new(index, given).map_err(|_| Problem::Body("needs more descriptors than a message carries"))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (count, given): (_, &[SubRegion]) = match &self.sub_regions {
            SubRegions::Given(given) => (given.len() as u32, given),
            SubRegions::Omitted { count, .. } => (*count, &[]),
        };
        put(out, &[self.argsz(), 0, self.index, count]);
        for sub in given {
            sub.encode(out);
        }
    }

    fn fds(&self) -> FdRule {
        match &self.sub_regions {
            SubRegions::Given(given) => FdRule::Between(descriptors(given), MAX_FDS),
            SubRegions::Omitted { .. } => FdRule::NONE,
        }
    }
}

impl SubRegion {
    fn decode(bytes: &[u8]) -> Result<Self, Problem> {
        let ([offset, size], rest) = fields::<[u64; 2]>(bytes)?;
        let ([fd_index, kind, flags, _], rest) = fields::<[u32; 4]>(rest)?;
        let (value, _) = fields::<u64>(rest)?;
        let kind = match kind {
            IOEVENTFD => IoFdKind::Ioeventfd { datamatch: value },
            IOREGIONFD => IoFdKind::Ioregionfd { user_data: value },
            _ => return Err(Problem::Body("has a sub-region of a kind that nobody knows")),
        };
        Ok(Self { offset, size, fd_index, flags, kind })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, value) = match self.kind {
            IoFdKind::Ioeventfd { datamatch } => (IOEVENTFD, datamatch),
            IoFdKind::Ioregionfd { user_data } => (IOREGIONFD, user_data),
        };
        put(out, &[self.offset, self.size]);
        put(out, &[self.fd_index, kind, self.flags, 0]);
        put(out, &value);
    }
}
