//! UNSAFETY: why this file exists: `vm-memory` makes its slices from a pointer and a length.
//!
//! [`vm_memory::GuestMemory`] for a burst: `virtio-queue`, and device code that is written for it, run on memory that is
//! resolved through an access.
//!
//! Addresses are IOVAs. Each call resolves anew and holds nothing: slices end with the burst they borrow. As everywhere,
//! ask [`Burst::poisoned`] before publishing what was read, and do not write through a slice that was asked for to be
//! read. Dirty bitmaps are not kept: this crate logs by [`mdev_dma::Area::log`].

use std::iter::FusedIterator;
use std::vec::IntoIter;

use mdev_dma::{GuestSlice, Iova, Perm, SgList};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions, VolatileSlice};

use crate::{Burst, ResolveError};

impl GuestMemory for Burst<'_> {
    /// There is none to be had: memory is reached through the access only.
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        count == 0 || self.pieces(addr, count, access).is_ok()
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        if count == 0 {
            return Ok(Slices { first: None, rest: Vec::new().into_iter() });
        }
        let short = u32::try_from(count).ok();
        let whole = short.and_then(|len| self.slice(Iova(addr.0), len, perm(access)).ok());
        let (first, rest) = match whole {
            Some(slice) => (Some(slice), Vec::new()),
            None => (None, self.pieces(addr, count, access).map_err(|error| refused(addr, error))?),
        };
        Ok(Slices { first, rest: rest.into_iter() })
    }
}

impl Burst<'_> {
    fn pieces(
        &self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<Vec<GuestSlice<'_>>, ResolveError> {
        let len = u32::try_from(count).map_err(|_| ResolveError::Overflow)?;
        let mut list = SgList::new();
        self.sg(Iova(addr.0), len, perm(access), &mut list)?;
        Ok(list.iter().collect())
    }
}

fn perm(access: Permissions) -> Perm {
    match access {
        Permissions::No => Perm::empty(),
        Permissions::Read => Perm::READ,
        Permissions::Write => Perm::WRITE,
        Permissions::ReadWrite => Perm::READ | Perm::WRITE,
    }
}

fn refused(addr: GuestAddress, error: ResolveError) -> GuestMemoryError {
    match error {
        ResolveError::Hole => GuestMemoryError::InvalidGuestAddress(addr),
        ResolveError::Overflow => GuestMemoryError::GuestAddressOverflow,
        other => GuestMemoryError::IOError(std::io::Error::other(other)),
    }
}

/// The pieces of a range: nearly always one.
struct Slices<'a> {
    first: Option<GuestSlice<'a>>,
    rest: IntoIter<GuestSlice<'a>>,
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a>, GuestMemoryError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (address, len) = self.first.take().or_else(|| self.rest.next())?.as_io_vec_parts();
        let start = std::ptr::with_exposed_provenance_mut(address);
        // SAFETY: for 'a, the borrow of the burst, these bytes are mapped, as they were for the slice they come from;
        // everybody accesses them by volatile accesses, atomics or copies.
        Some(Ok(unsafe { VolatileSlice::new(start, len) }))
    }
}

impl FusedIterator for Slices<'_> {}
impl<'a> GuestMemorySliceIterator<'a, ()> for Slices<'a> {}

#[cfg(all(test, not(loom)))]
mod tests;
