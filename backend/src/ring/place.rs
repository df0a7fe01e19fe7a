//! Where the three parts of a ring are: found in the present table, and kept until it changes.

use mdev_dma::{GuestSlice, Perm};
use mdev_pin::{Burst, KeptSlice, ResolveError};

use super::{Part, RingAddr, RingError};

/// A part turned out shorter than it was resolved: never seen, and no reason to panic.
pub(super) const LOST: RingError = RingError::Memory(ResolveError::Hole);

/// The parts, in the order of [`RingSetup`](super::RingSetup): descriptors, the driver's, the device's.
pub(super) type Parts<'s> = [GuestSlice<'s>; 3];

/// What a part has to be.
pub(super) struct Wanted {
    pub(super) part: Part,
    pub(super) len: usize,
    pub(super) perm: Perm,
    /// In bytes.
    pub(super) align: usize,
}

/// The places of a ring's parts. No pin on memory.
pub(super) struct Places([Place; 3]);

struct Place {
    addr: RingAddr,
    kept: Option<KeptSlice>,
}

impl Places {
    pub(super) fn new(addrs: [RingAddr; 3]) -> Self {
        Self(addrs.map(|addr| Place { addr, kept: None }))
    }

    /// The parts, if they are where they were.
    #[inline(always)]
    pub(super) fn recall<'s>(&self, burst: &'s Burst<'_>) -> Option<Parts<'s>> {
        let [desc, driver, device] = &self.0;
        Some([desc.recall(burst)?, driver.recall(burst)?, device.recall(burst)?])
    }

    /// Finds the parts in the present table.
    ///
    /// # Errors
    /// A part that has no translation, the wrong permission or alignment, or overlaps another.
    #[cold]
    pub(super) fn find<'s>(
        &mut self,
        burst: &'s Burst<'_>,
        wanted: [Wanted; 3],
    ) -> Result<Parts<'s>, RingError> {
        let [desc, driver, device] = &mut self.0;
        let [want_desc, want_driver, want_device] = &wanted;
        let parts = [
            desc.find(burst, want_desc)?,
            driver.find(burst, want_driver)?,
            device.find(burst, want_device)?,
        ];
        for (slice, Wanted { part, align, .. }) in parts.iter().zip(&wanted) {
            // Windows are page-aligned, and so are host addresses aligned as the guest's are.
            if !slice.as_io_vec_parts().0.is_multiple_of(*align) {
                return Err(RingError::Misaligned(*part));
            }
        }
        let [desc, driver, device] = &parts;
        for (one, other, a, b) in [
            (desc, driver, want_desc, want_driver),
            (desc, device, want_desc, want_device),
            (driver, device, want_driver, want_device),
        ] {
            if overlap(one, other) {
                return Err(RingError::Overlap(a.part, b.part));
            }
        }
        Ok(parts)
    }
}

fn overlap(one: &GuestSlice<'_>, other: &GuestSlice<'_>) -> bool {
    let ((a, a_len), (b, b_len)) = (one.as_io_vec_parts(), other.as_io_vec_parts());
    a < b.saturating_add(b_len) && b < a.saturating_add(a_len)
}

impl Place {
    #[inline(always)]
    fn recall<'s>(&self, burst: &'s Burst<'_>) -> Option<GuestSlice<'s>> {
        burst.recall(self.kept.as_ref()?)
    }

    fn find<'s>(&mut self, burst: &'s Burst<'_>, wanted: &Wanted) -> Result<GuestSlice<'s>, ResolveError> {
        let Wanted { len, perm, .. } = *wanted;
        self.kept = None;
        let (slice, kept) = match &self.addr {
            RingAddr::Extent(extent) => {
                let slice = burst.extent(extent, len as u64, perm)?;
                (slice, burst.keep(slice))
            }
            RingAddr::Iova(iova) => burst.slice_to_keep(*iova, len as u32, perm)?,
        };
        self.kept = Some(kept);
        Ok(slice)
    }
}
