//! The buffers of chains, found in our own mapping.

use mdev_dma::{GuestSlice, Perm, SgList};
use mdev_pin::{Burst, ResolveError};
use smallvec::SmallVec;

use crate::ring::{Buffer, Vring};

/// Chains that one poll serves on one queue at most.
pub(super) const BURST: usize = 64;
/// How many receive buffers are on their way into the cache before one is written. More than a processor fetches at a
/// time would be lost or wait.
pub(super) const AHEAD: usize = 16;
/// Pieces a frame may be in; what DPDK's back-end accepts too.
pub(super) const MAX_PIECES: usize = 256;

/// Chains that one poll serves of this ring. Never all it has: driver and device would wait for each other in turn.
#[inline(always)]
pub(super) fn burst_of(ring: &Vring<'_, '_>) -> usize {
    BURST.min(usize::from(ring.size() / 2)).max(1)
}

/// Guest memory of one burst, flat, for chains that are in several pieces. There is room on the stack for what drivers
/// do that cut every jumbo frame into pages.
pub(super) type Pieces<'s> = SmallVec<[GuestSlice<'s>; 512]>;

/// Appends the memory of a buffer. On an error nothing was appended.
#[inline]
pub(super) fn resolve<'s>(
    burst: &'s Burst<'_>,
    buffer: Buffer,
    perm: Perm,
    pieces: &mut Pieces<'s>,
) -> Result<(), ResolveError> {
    match burst.slice(buffer.iova, buffer.len, perm) {
        Ok(slice) => {
            pieces.push(slice);
            Ok(())
        }
        Err(ResolveError::Split) => resolve_split(burst, buffer, perm, pieces),
        Err(error) => Err(error),
    }
}

/// A buffer that crosses the border of two areas.
#[cold]
fn resolve_split<'s>(
    burst: &'s Burst<'_>,
    buffer: Buffer,
    perm: Perm,
    pieces: &mut Pieces<'s>,
) -> Result<(), ResolveError> {
    let mut list = SgList::new();
    burst.sg(buffer.iova, buffer.len, perm, &mut list)?;
    pieces.extend(list.iter());
    Ok(())
}
