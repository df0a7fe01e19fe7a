//! Payloads that lend memory to the device and take it back.

use bitflags::bitflags;

use super::table::{FdRule, Payload, Problem, Size, check_argsz, fields, put};

bitflags! {
    /// What the device may do with memory (`VFIO_DMA_MAP_FLAG_*`).
    #[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
    pub struct DmaFlags: u32 {
        /// It may read.
        const READ = 1;
        /// It may write.
        const WRITE = 2;
    }
}

/// Memory that the device may reach, in the file that comes along. Without a file it is to be reached by `DMA_READ`
/// and `DMA_WRITE`. Neither its addresses nor its offsets are empty or wrap.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct DmaMap {
    /// What the device may do there.
    pub flags: DmaFlags,
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// The device's address of its first byte.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

const MAP_LEN: usize = 32;
const UNMAP_LEN: usize = 24;
const UNMAP_DIRTY_BITMAP: u32 = 1;
const UNMAP_ALL: u32 = 2;

impl Payload for DmaMap {
    const SIZE: Size = Size::exactly(MAP_LEN);

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([argsz, flags], rest) = fields::<[u32; 2]>(body)?;
        let ([offset, address, size], _) = fields::<[u64; 3]>(rest)?;
        check_argsz(argsz, MAP_LEN)?;
        let flags = DmaFlags::from_bits(flags).ok_or(Problem::Body("has flags that nobody knows"))?;
        check_range(address, size)?;
        check_range(offset, size)?;
        Ok(Self { flags, offset, address, size })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, &[MAP_LEN as u32, self.flags.bits()]);
        put(out, &[self.offset, self.address, self.size]);
    }

    fn fds(&self) -> FdRule {
        FdRule::Between(0, 1)
    }
}

/// Memory that the device may reach no longer.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum DmaUnmap {
    /// What was lent by one `DMA_MAP`. It is neither empty nor does it wrap.
    Range {
        /// The device's address of its first byte.
        address: u64,
        /// Bytes.
        size: u64,
    },
    /// Everything.
    All,
}

impl Payload for DmaUnmap {
    // With the bitmap that drafts of the protocol had, so that it can be refused by its name.
    const SIZE: Size = Size { min: UNMAP_LEN, max: UNMAP_LEN + 16 };

    fn decode(body: &[u8]) -> Result<Self, Problem> {
        let ([argsz, flags], rest) = fields::<[u32; 2]>(body)?;
        let ([address, size], rest) = fields::<[u64; 2]>(rest)?;
        check_argsz(argsz, UNMAP_LEN)?;
        if flags & UNMAP_DIRTY_BITMAP != 0 {
            return Err(Problem::Unsupported("a bitmap of the pages written"));
        }
        if !rest.is_empty() {
            return Err(Problem::Body("is too long"));
        }
        match (flags, address, size) {
            (UNMAP_ALL, 0, 0) => Ok(Self::All),
            (UNMAP_ALL, ..) => Err(Problem::Body("is about everything and about a range")),
            (0, ..) => check_range(address, size).map(|()| Self::Range { address, size }),
            _ => Err(Problem::Body("has flags that nobody knows")),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (flags, address, size) = match *self {
            Self::Range { address, size } => (0, address, size),
            Self::All => (UNMAP_ALL, 0, 0),
        };
        put(out, &[UNMAP_LEN as u32, flags]);
        put(out, &[address, size]);
    }
}

fn check_range(first: u64, size: u64) -> Result<(), Problem> {
    let beyond = size.checked_sub(1).ok_or(Problem::Body("is about no byte"))?;
    first.checked_add(beyond).map(drop).ok_or(Problem::Body("wraps around the end of the addresses"))
}
