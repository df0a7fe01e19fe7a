//! UNSAFETY: why this file exists: bytes of another process that are pinned are a copy in memory of ours, and devices see
//! them as they see guest memory: by volatile accesses, from several threads.

use std::{ptr::NonNull, sync::Arc};

use mdev_dma::GuestSlice;

/// A copy of somebody's bytes, at least one.
pub struct Snapshot(NonNull<[u8]>);

// SAFETY: the memory belongs to this value, and is reached through `GuestSlice`s only, which may be used from any thread.
unsafe impl Send for Snapshot {}
// SAFETY: as above.
unsafe impl Sync for Snapshot {}

impl Snapshot {
    /// Takes these bytes.
    pub fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Snapshot(NonNull::from(Box::leak(bytes.into_boxed_slice()))))
    }

    /// The bytes.
    pub fn slice(&self) -> GuestSlice<'_> {
        let address = self.0.cast::<u8>().as_ptr().expose_provenance();
        // SAFETY: they are allocated until `self` is dropped, and no reference to them exists: `new` gave its one up.
        // The address of an allocation, and a dangling one of no bytes, is not zero.
        unsafe { GuestSlice::from_raw_parts(address, self.0.len()) }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // SAFETY: from `Box::leak` in `new`, and freed once; all slices borrow `self`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_a_snapshot_are_read_and_written() {
        let snapshot = Snapshot::new(vec![1, 2, 3]);
        let slice = snapshot.slice();
        assert_eq!(slice.read::<u8>(2), Some(3));
        slice.fill(9);
        let mut seen = [0; 3];
        assert_eq!((snapshot.slice().copy_to(&mut seen), seen), (3, [9; 3]));
    }
}
