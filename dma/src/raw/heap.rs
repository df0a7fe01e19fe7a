//! UNSAFETY: allocates and frees the memory that stands for a file.
//!
//! Miri interprets no file mappings. Under it, a backing file is a piece of heap, and a window a view into that.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

/// What windows start at a multiple of.
const PAGE: usize = 4096;

/// The bytes of a file.
#[derive(Debug)]
pub(crate) struct Heap {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is reached through `GuestSlice` only, as mappings are.
unsafe impl Send for Heap {}
// SAFETY: as above.
unsafe impl Sync for Heap {}

impl Heap {
    /// `len` bytes of zeros, at least a page.
    pub(crate) fn new(len: usize) -> Option<Heap> {
        let layout = Layout::from_size_align(len.max(PAGE).next_multiple_of(PAGE), PAGE).ok()?;
        // SAFETY: the layout is not empty.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) });
        Some(Heap { base: base.unwrap_or_else(|| handle_alloc_error(layout)), layout })
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.layout.size()
    }

    /// Where the bytes from `offset` on are, if there are `len` of them.
    pub(crate) fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        offset.checked_add(len).filter(|end| *end <= self.len())?;
        // SAFETY: within the allocation, by the comparison above.
        Some(unsafe { self.base.add(offset) })
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; every window holds its file, and so this.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}
