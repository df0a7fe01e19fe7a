//! A split ring between bursts: where its parts are and how far it got.

use mdev_dma::{FileExtent, GuestSlice, Iova, Perm};
use mdev_pin::{Burst, KeptSlice, ResolveError};
use mdev_protocol::virtio::split::{self, IDX_OFFSET, avail_len, desc_len, used_len};

use super::batch::Batch;
use super::{Part, RingError, Vring};
use std::sync::atomic::Ordering;

/// Entries a ring may have (virtio 2.7).
pub const MAX_RING_SIZE: u16 = split::MAX_SIZE;

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
    /// Entries: a power of two up to [`MAX_RING_SIZE`].
    pub size: u16,
    /// The descriptor table, 16 bytes aligned.
    pub desc: RingAddr,
    /// The available ring, 2 bytes aligned.
    pub avail: RingAddr,
    /// The used ring, 4 bytes aligned.
    pub used: RingAddr,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// The available index to begin at (SET_VRING_BASE). The used index is what the used ring says.
    pub next_avail: u16,
}

/// What is left of a ring when it has stopped.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// The available index to be taken next (GET_VRING_BASE). What was taken before it is completed.
    pub next_avail: u16,
}

/// A split ring, device side (virtio 1.3, 2.7).
///
/// It keeps addresses and positions, and no pin on memory: [`SplitRing::begin`] finds the parts anew whenever the table
/// changed. A failed start, or memory that is missing for a while, changes nothing here.
pub struct SplitRing {
    pub(super) size: u16,
    pub(super) event_idx: bool,
    pub(super) indirect: bool,
    pub(super) next_avail: u16,
    pub(super) next_used: Option<u16>,
    /// Begin where the used ring ends.
    at_used: bool,
    /// The used index at the last decision about a call. Nothing before the first.
    pub(super) signalled: Option<u16>,
    pub(super) batch: Batch,
    desc: Place,
    avail: Place,
    used: Place,
}

struct Place {
    addr: RingAddr,
    kept: Option<KeptSlice>,
}

impl SplitRing {
    /// A ring that has not been looked at yet.
    ///
    /// # Errors
    /// [`RingError::BadSize`].
    pub fn new(setup: RingSetup) -> Result<Self, RingError> {
        let RingSetup { size, desc, avail, used, event_idx, indirect, next_avail } = setup;
        if !size.is_power_of_two() || size > MAX_RING_SIZE {
            return Err(RingError::BadSize(size.into()));
        }
        Ok(Self {
            size,
            event_idx,
            indirect,
            next_avail,
            next_used: None,
            at_used: false,
            signalled: None,
            batch: Batch::new(),
            desc: Place::new(desc),
            avail: Place::new(avail),
            used: Place::new(used),
        })
    }

    /// Begins where the used ring ends, whatever available index was told. Where chains are used in order the two are
    /// the same, unless whoever tells it does not know: a front-end whose back-end died can only guess.
    pub fn begin_at_used(&mut self) {
        self.at_used = true;
    }

    /// How far the ring got.
    pub fn state(&self) -> QueueState {
        QueueState { next_avail: self.next_avail }
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Opens the ring for one burst.
    ///
    /// # Errors
    /// A part that has no translation, the wrong permission or alignment, or overlaps another.
    #[inline]
    pub fn begin<'r, 'b>(&'r mut self, burst: &'r Burst<'b>) -> Result<Vring<'r, 'b>, RingError> {
        let recalled = (self.desc.recall(burst), self.avail.recall(burst), self.used.recall(burst));
        let (desc, avail, used) = match (recalled, self.next_used) {
            ((Some(desc), Some(avail), Some(used)), Some(_)) => (desc, avail, used),
            _ => self.find(burst)?,
        };
        Ok(Vring::new(self, burst, desc, avail, used))
    }

    /// Finds the three parts in the present table.
    #[cold]
    fn find<'s>(
        &mut self,
        burst: &'s Burst<'_>,
    ) -> Result<(GuestSlice<'s>, GuestSlice<'s>, GuestSlice<'s>), RingError> {
        let desc = self.desc.find(burst, desc_len(self.size), Perm::READ)?;
        let avail = self.avail.find(burst, avail_len(self.size, self.event_idx), Perm::READ)?;
        let used = self.used.find(burst, used_len(self.size, self.event_idx), Perm::READ | Perm::WRITE)?;
        for (slice, part, align) in
            [(&desc, Part::Descriptors, 16), (&avail, Part::Available, 2), (&used, Part::Used, 4)]
        {
            // Windows are page-aligned, and so are host addresses aligned as the guest's are.
            if !slice.as_io_vec_parts().0.is_multiple_of(align) {
                return Err(RingError::Misaligned(part));
            }
        }
        for (one, other, a, b) in [
            (&desc, &avail, Part::Descriptors, Part::Available),
            (&desc, &used, Part::Descriptors, Part::Used),
            (&avail, &used, Part::Available, Part::Used),
        ] {
            if overlap(one, other) {
                return Err(RingError::Overlap(a, b));
            }
        }
        if self.next_used.is_none() {
            // Where the driver and whoever served the ring before us left it; nobody else knows.
            let next_used = used.load_u16(IDX_OFFSET, Ordering::Acquire).map(u16::from_le).ok_or(LOST)?;
            self.next_used = Some(next_used);
            if self.at_used {
                self.next_avail = next_used;
            }
        }
        Ok((desc, avail, used))
    }
}

/// A part turned out shorter than it was resolved: never seen, and no reason to panic.
pub(super) const LOST: RingError = RingError::Memory(ResolveError::Hole);

fn overlap(one: &GuestSlice<'_>, other: &GuestSlice<'_>) -> bool {
    let ((a, a_len), (b, b_len)) = (one.as_io_vec_parts(), other.as_io_vec_parts());
    a < b.saturating_add(b_len) && b < a.saturating_add(a_len)
}

impl Place {
    fn new(addr: RingAddr) -> Self {
        Self { addr, kept: None }
    }

    #[inline(always)]
    fn recall<'s>(&self, burst: &'s Burst<'_>) -> Option<GuestSlice<'s>> {
        burst.recall(self.kept.as_ref()?)
    }

    fn find<'s>(
        &mut self,
        burst: &'s Burst<'_>,
        len: usize,
        perm: Perm,
    ) -> Result<GuestSlice<'s>, ResolveError> {
        self.kept = None;
        let slice = match &self.addr {
            RingAddr::Extent(extent) => burst.extent(extent, len as u64, perm)?,
            RingAddr::Iova(iova) => burst.slice(*iova, len as u32, perm)?,
        };
        self.kept = Some(burst.keep(slice));
        Ok(slice)
    }
}
