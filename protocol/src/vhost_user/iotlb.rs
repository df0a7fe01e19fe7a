//! The messages of the device IOTLB, which both channels have: what the device may reach behind an IOMMU.

use bitflags::bitflags;
use zerocopy::{FromBytes, IntoBytes};

use super::payload::{Payload, Size};

bitflags! {
    /// What a device wants to do with memory, or may do (`VHOST_ACCESS_RO`, `_WO`, `_RW`).
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
    pub struct IotlbPerm: u8 {
        /// It reads.
        const READ = 1;
        /// It writes.
        const WRITE = 2;
    }
}

/// A message of the device IOTLB (`struct vhost_iotlb_msg`).
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Iotlb {
    /// The back-end lacks a translation (1).
    Miss {
        /// Where it looked.
        iova: u64,
        /// What it is about to do there. Some say nothing of it.
        perm: IotlbPerm,
    },
    /// The front-end supplies a translation (2). Neither of its ranges is empty or wraps, and it permits something.
    Update {
        /// First address of the device.
        iova: u64,
        /// Bytes.
        size: u64,
        /// The front-end's own address of the first byte.
        user_addr: u64,
        /// What is permitted.
        perm: IotlbPerm,
    },
    /// The front-end takes translations back (3).
    Invalidate {
        /// First address of the device.
        iova: u64,
        /// Bytes. All of the address space has as many as do not fit: QEMU then says 0.
        size: u64,
    },
    /// An access was not allowed (4).
    AccessFail {
        /// Where.
        iova: u64,
        /// Bytes, if known.
        size: u64,
        /// What was attempted.
        perm: IotlbPerm,
    },
}

const MISS: u8 = 1;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;
const ACCESS_FAIL: u8 = 4;

/// The fields without the padding that a C compiler adds.
const FIELDS: u32 = 26;

impl Iotlb {
    /// The first and last address that an [`Iotlb::Invalidate`] concerns. A range that is empty or wraps reaches the end
    /// of the address space: to forget too much costs a miss, to keep too much the guest's memory.
    pub fn concerned(iova: u64, size: u64) -> (u64, u64) {
        let last = size.checked_sub(1).and_then(|beyond| iova.checked_add(beyond));
        (iova, last.unwrap_or(u64::MAX))
    }
}

impl Payload for Iotlb {
    const SIZE: Size = Size { min: FIELDS, max: 32 };

    fn decode(body: &[u8]) -> Result<Self, &'static str> {
        const TOO_SHORT: &str = "is too short";
        let ([iova, size, user_addr], rest) = <[u64; 3]>::read_from_prefix(body).map_err(|_| TOO_SHORT)?;
        let ([perm, kind], _) = <[u8; 2]>::read_from_prefix(rest).map_err(|_| TOO_SHORT)?;
        let perm = || IotlbPerm::from_bits(perm).ok_or("permits what is neither reading nor writing");
        match kind {
            MISS => Ok(Self::Miss { iova, perm: perm()? }),
            UPDATE => {
                let perm = perm()?;
                if perm.is_empty() {
                    return Err("permits nothing");
                }
                let beyond = size.checked_sub(1).ok_or("is about no byte")?;
                if iova.checked_add(beyond).is_none() || user_addr.checked_add(beyond).is_none() {
                    return Err("wraps around the end of the addresses");
                }
                Ok(Self::Update { iova, size, user_addr, perm })
            }
            INVALIDATE => Ok(Self::Invalidate { iova, size }),
            ACCESS_FAIL => Ok(Self::AccessFail { iova, size, perm: perm()? }),
            _ => Err("is of a kind that nobody knows"),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (words, perm, kind) = match *self {
            Self::Miss { iova, perm } => ([iova, 0, 0], perm, MISS),
            Self::Update { iova, size, user_addr, perm } => ([iova, size, user_addr], perm, UPDATE),
            Self::Invalidate { iova, size } => ([iova, size, 0], IotlbPerm::empty(), INVALIDATE),
            Self::AccessFail { iova, size, perm } => ([iova, size, 0], perm, ACCESS_FAIL),
        };
        out.extend_from_slice(words.as_bytes());
        out.extend_from_slice(&[perm.bits(), kind, 0, 0, 0, 0, 0, 0]);
    }
}

#[cfg(test)]
mod tests;
