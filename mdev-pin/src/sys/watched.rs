//! UNSAFETY: why this file exists: loom watches a cell only if threads share it, and its cell is not `Sync`, because that
//! accesses to it are ordered is what a model is to find out.

use std::sync::Arc;

use loom::cell::UnsafeCell;

/// The guest's memory, as loom sees it.
pub(crate) struct Memory(UnsafeCell<u32>);

// SAFETY: the cell is reached only through `with` and `with_mut`, and loom panics where two of them are not ordered.
unsafe impl Sync for Memory {}
// SAFETY: it is a number.
unsafe impl Send for Memory {}

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Memory(UnsafeCell::new(0)))
    }

    /// A device touches it.
    pub(crate) fn touch(&self) {
        self.0.with(|_| ());
    }

    /// Its owner reuses it, sure that no device can touch it.
    pub(crate) fn reuse(&self) {
        self.0.with_mut(|_| ());
    }
}
