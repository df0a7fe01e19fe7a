//! What a ring is started with, and what is left of it.

use mdev_dma::{FileExtent, Iova, IovaRange};
use mdev_pin::Stretch;
use mdev_protocol::virtio::packed::{self, Position};
use mdev_protocol::virtio::split;

use super::RingLog;

/// Where a part of a ring starts. Never a host address: those last no longer than a burst.
#[derive(Clone)]
pub enum RingAddr {
    /// In a file: what the front-end's user address meant when it arrived.
    Extent(FileExtent),
    /// In the device's address space (ACCESS_PLATFORM, or vhost-user's GPA_ADDRESSES).
    Iova(Iova),
}

/// What a ring is started with.
#[derive(Clone)]
pub struct RingSetup {
    /// Entries: up to [`MAX_RING_SIZE`](super::MAX_RING_SIZE), a power of two for a split ring.
    pub size: u16,
    /// The descriptor table or ring, 16 bytes aligned.
    pub desc: RingAddr,
    /// The available ring, 2 bytes aligned; of a packed ring the driver's event suppression, 4 bytes aligned.
    pub avail: RingAddr,
    /// The used ring, or the device's event suppression, 4 bytes aligned.
    pub used: RingAddr,
    /// VIRTIO_F_RING_PACKED was negotiated.
    pub packed: bool,
    /// VIRTIO_F_IN_ORDER was negotiated: the device promises to use chains in the order in which they were made available.
    pub in_order: bool,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// Where to begin. A ring with a log begins where that says.
    pub state: QueueState,
    /// Where its chains in flight are recorded, and from which those are taken again that were.
    pub log: Option<RingLog>,
}

impl RingSetup {
    /// A split ring of `size` entries without any feature, from its beginning; its descriptor table, available and used ring are
    /// at these addresses.
    pub fn plain(size: u16, addresses: [Iova; 3]) -> Self {
        let [desc, avail, used] = addresses.map(RingAddr::Iova);
        let state = QueueState::split(0);
        Self {
            size,
            desc,
            avail,
            used,
            packed: false,
            in_order: false,
            event_idx: false,
            indirect: false,
            state,
            log: None,
        }
    }

    /// The bytes of its parts, each of which is read through one slice: what the address space is to keep whole while the
    /// ring runs ([`mdev_pin::Ioas::keep_whole`]). A part that wraps is none, and fails when the ring is opened.
    pub fn stretches(&self) -> Vec<Stretch> {
        let Self { size, event_idx, .. } = *self;
        let lengths = match self.packed {
            true => [packed::desc_len(size), packed::EVENT_LEN, packed::EVENT_LEN],
            false => {
                [split::desc_len(size), split::avail_len(size, event_idx), split::used_len(size, event_idx)]
            }
        };
        let stretch = |(at, len): (&RingAddr, usize)| match at {
            RingAddr::Extent(extent) => Some(Stretch::In(extent.clone(), len as u64)),
            RingAddr::Iova(iova) => IovaRange::with_len(*iova, len as u64).ok().map(Stretch::At),
        };
        [&self.desc, &self.avail, &self.used].into_iter().zip(lengths).filter_map(stretch).collect()
    }
}

/// Where a ring stands between two runs: what SET_VRING_BASE brings and GET_VRING_BASE asks for. What was taken before a
/// stop is completed, unless an engine gave up on it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// What is to be taken next: the available index, or the [`Position`] in a packed ring as a word.
    pub next_avail: u16,
    /// Where the next used descriptor goes in a packed ring, as a word. Nothing for a split ring: its used ring says it.
    pub next_used: Option<u16>,
}

impl QueueState {
    /// A split ring at an available index.
    pub const fn split(next_avail: u16) -> Self {
        Self { next_avail, next_used: None }
    }

    /// A packed ring at two positions.
    pub const fn packed(next_avail: Position, next_used: Position) -> Self {
        Self { next_avail: next_avail.word(), next_used: Some(next_used.word()) }
    }

    /// Where a ring starts that nobody has served before.
    pub const fn fresh(packed: bool) -> Self {
        if packed { Self::packed(Position::START, Position::START) } else { Self::split(0) }
    }
}
