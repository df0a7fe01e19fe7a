//! What is asked of a device: which requests, of how many bytes, how many at a time.
use crate::driver::blk::{BlkQueueOptions, SECTOR};
use crate::driver::nvme::{DoorbellWay, NvmeQueueOptions, Pointers};
use crate::driver::{DriverError, RingOptions};
use crate::perf::shape::Format;
use crate::store::parse_size;
use mdev_protocol::virtio::feature::{
    VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use std::fmt;
use std::str::FromStr;

/// The greatest block: what the data descriptor of a request may have at most.
pub const GREATEST: u32 = 1 << 20;
/// Reads of a hundred requests, where reads and writes are mixed.
pub const MIXED_READS: u64 = 70;
/// The smallest ring that is made where no size was asked for.
const USUAL_RING: u32 = 256;
/// The greatest ring there is.
const GREATEST_RING: u32 = 32_768;

/// Which requests.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
#[value(rename_all = "lower")]
pub enum Rw {
    /// Reads of random blocks.
    RandRead,
    /// Writes of random blocks.
    RandWrite,
    /// Reads of one block after the other.
    Read,
    /// Writes of one block after the other.
    Write,
    /// Of random blocks, 70 % reads and 30 % writes.
    Mixed,
}

impl Rw {
    /// As written on the command line and in names of results.
    pub fn name(self) -> &'static str {
        match self {
            Rw::RandRead => "randread",
            Rw::RandWrite => "randwrite",
            Rw::Read => "read",
            Rw::Write => "write",
            Rw::Mixed => "mixed",
        }
    }

    /// Whether it changes what the store holds.
    pub fn writes(self) -> bool {
        matches!(self, Rw::RandWrite | Rw::Write | Rw::Mixed)
    }

    /// Whether blocks are taken one after the other.
    pub fn is_sequential(self) -> bool {
        matches!(self, Rw::Read | Rw::Write)
    }
}

impl fmt::Display for Rw {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// Bytes of each request.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct BlockSize(u32);

/// Why a size was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block size '{0}': give a multiple of 512 bytes up to 1M, for example 512, 4k or 128k")]
pub struct BlockSizeError(String);

impl BlockSize {
    /// The number.
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// Sectors of a block.
    pub fn sectors(self) -> u64 {
        u64::from(self.0) / SECTOR
    }
}

impl FromStr for BlockSize {
    type Err = BlockSizeError;

    fn from_str(text: &str) -> Result<Self, BlockSizeError> {
        let bytes = parse_size(text).ok().and_then(|bytes| u32::try_from(bytes).ok());
        match bytes {
            Some(bytes) if (1..=GREATEST).contains(&bytes) && bytes.is_multiple_of(SECTOR as u32) => {
                Ok(BlockSize(bytes))
            }
            _ => Err(BlockSizeError(text.to_owned())),
        }
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            bytes if bytes.is_multiple_of(1 << 20) => format!("{}M", bytes >> 20),
            bytes if bytes.is_multiple_of(1 << 10) => format!("{}k", bytes >> 10),
            bytes => bytes.to_string(),
        };
        out.pad(&text)
    }
}

/// What queues are, and how they are reached.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Virtqueues of this format, over vhost-user.
    Virtio(Format),
    /// NVMe queues, over vfio-user.
    Nvme {
        /// How doorbells are written.
        doorbells: DoorbellWay,
        /// How commands say where their data is.
        data: Pointers,
    },
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(&match self {
            Protocol::Virtio(format) => format!("{format:?}").to_lowercase(),
            Protocol::Nvme { doorbells, data } => format!("{}-{}", doorbells.name(), data.name()),
        })
    }
}

/// The requests of one cell.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Which.
    pub rw: Rw,
    /// Bytes of each.
    pub size: BlockSize,
    /// How many are under way at a time, in each queue.
    pub depth: u16,
    /// What they go through.
    pub protocol: Protocol,
}

impl Workload {
    /// What each queue needs.
    ///
    /// # Errors
    /// [`DriverError::Size`]: the requests do not fit into a ring of the size that was asked for.
    pub fn queue(&self, rings: &Rings) -> Result<BlkQueueOptions, DriverError> {
        let needed = BlkQueueOptions::descriptors(self.depth, rings.indirect);
        let size = match rings.size {
            Some(size) => size.into(),
            None => needed.next_power_of_two().max(USUAL_RING),
        };
        let size = match u16::try_from(size) {
            Ok(size) if needed <= size.into() && needed <= GREATEST_RING => size,
            _ => return Err(DriverError::NoDescriptors { pieces: needed as usize, free: size as usize }),
        };
        Ok(BlkQueueOptions {
            ring: RingOptions {
                event_idx: rings.event_idx,
                indirect: rings.indirect,
                ..RingOptions::plain(size)
            },
            requests: self.depth,
            capacity: self.size.bytes(),
        })
    }

    /// What an NVMe queue needs, if it is for namespace 1 and that has blocks of so many bytes.
    pub fn nvme_queue(&self, rings: &Rings, data: Pointers, qid: u16, block: u32) -> NvmeQueueOptions {
        let needed = (u32::from(self.depth) + 1).next_power_of_two().max(USUAL_RING);
        NvmeQueueOptions {
            qid,
            nsid: 1,
            block,
            entries: rings.size.map_or(needed, u32::from),
            requests: self.depth,
            capacity: self.size.bytes(),
            pointers: data,
        }
    }

    /// The virtio features without which a back-end cannot be driven in this way.
    pub fn required(&self, rings: &Rings) -> u64 {
        let when = |wanted: bool, feature: u64| if wanted { feature } else { 0 };
        VIRTIO_F_VERSION_1
            | when(rings.indirect, VIRTIO_RING_F_INDIRECT_DESC)
            | when(rings.event_idx, VIRTIO_RING_F_EVENT_IDX)
            | when(self.protocol == Protocol::Virtio(Format::Packed), VIRTIO_F_RING_PACKED)
    }
}

/// How the rings look, in all cells.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Descriptors of each; `None`: as many as the requests need, and at least 256.
    pub size: Option<u16>,
    /// Requests that are submitted before they are published.
    pub burst: u32,
    /// Each request is described by an indirect table.
    pub indirect: bool,
    /// Kicks and calls are wanted by index.
    pub event_idx: bool,
}

impl fmt::Display for Rings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.size {
            Some(size) => write!(out, "rings of {size}")?,
            None => out.write_str("rings as large as needed")?,
        }
        out.write_str(if self.indirect { ", indirect tables" } else { ", three descriptors a request" })?;
        if self.event_idx {
            out.write_str(", event index")?;
        }
        write!(out, ", bursts of {}", self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_multiples_of_a_sector_up_to_a_mebibyte() {
        for (text, bytes) in [("512", 512), ("1536", 1536), ("4k", 4096), ("1M", 1 << 20)] {
            let size: BlockSize = text.parse().unwrap();
            assert_eq!((size.bytes(), size.sectors()), (bytes, u64::from(bytes) / 512));
            assert_eq!(size.to_string().parse::<BlockSize>().unwrap(), size);
        }
        assert_eq!("4096".parse::<BlockSize>().unwrap().to_string(), "4k");
        for text in ["0", "100", "513", "2M", "4x", ""] {
            assert!(text.parse::<BlockSize>().unwrap_err().to_string().contains("multiple of 512"), "{text}");
        }
    }

    #[test]
    fn ring_has_room_for_all_requests_or_is_refused() {
        let rings = Rings { size: None, burst: 32, indirect: false, event_idx: false };
        let load = |depth| Workload {
            rw: Rw::RandRead,
            size: "4k".parse().unwrap(),
            depth,
            protocol: Protocol::Virtio(Format::Split),
        };
        let size = |depth, rings: Rings| load(depth).queue(&rings).ok().map(|options| options.ring.size);
        assert_eq!([1, 85, 86, 128].map(|depth| size(depth, rings)), [256, 256, 512, 512].map(Some));
        assert_eq!(size(128, Rings { indirect: true, ..rings }), Some(256));
        assert_eq!(size(128, Rings { size: Some(256), ..rings }), None);
        assert_eq!(size(128, Rings { size: Some(128), indirect: true, ..rings }), Some(128));
    }
}
