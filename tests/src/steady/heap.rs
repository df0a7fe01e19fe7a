//! UNSAFETY: the interface of a global allocator is unsafe; this one counts and leaves the rest to the system's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which also counts for each thread: what a program that looks at costs makes its
/// `#[global_allocator]`.
#[derive(Debug)]
pub struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends may allocate after its cell is gone.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

/// How often the calling thread has asked for memory so far.
pub fn allocations() -> u64 {
    COUNT.with(Cell::get)
}

// SAFETY: every call is handed on as it is, to an allocator that keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
}
