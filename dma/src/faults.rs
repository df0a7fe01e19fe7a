//! Failures of the machine, made to happen on purpose.
//!
//! Every step whose failure is not the caller's doing (the kernel refuses a mapping, a table is full, memory ran out)
//! asks [`fail`] before it is made. Tests arm a [`Fault`] for one of the steps that their thread takes and go through
//! all of them, the first, the second and so on, until an operation passes: no failure is left that was not seen.
//!
//! Only tests and the feature `faults` compile what counts; elsewhere [`fail`] is a constant.

/// A step that can fail by no fault of its caller.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Looking at a descriptor: `fcntl`, `fstat`, `fstatfs`.
    Inspect,
    /// Reading the size of a file.
    Size,
    /// `mmap` of a window.
    Map,
    /// `mmap` over revoked pages of a window.
    TakeAway,
    /// `madvise` on a window.
    Advise,
    /// A place in the table of windows.
    WindowSlot,
    /// A number under which the pins of an area are counted.
    AreaSlot,
    /// Charging pages to the owner of memory.
    Charge,
    /// Memory for a list whose length a peer chooses.
    Memory,
}

/// Whether the caller is to behave as if `step` had failed.
#[cfg(not(any(test, feature = "faults")))]
#[inline(always)]
pub const fn fail(_step: Step) -> bool {
    false
}

#[cfg(any(test, feature = "faults"))]
pub use armed::{Fault, fail};

#[cfg(any(test, feature = "faults"))]
mod armed {
    use std::cell::Cell;
    use std::marker::PhantomData;

    use super::Step;

    thread_local! {
        /// Which step from here on fails; 0: none.
        static LEFT: Cell<u64> = const { Cell::new(0) };
        static FAILED: Cell<Option<Step>> = const { Cell::new(None) };
    }

    /// Whether the caller is to behave as if `step` had failed.
    pub fn fail(step: Step) -> bool {
        let left = LEFT.get();
        LEFT.set(left.saturating_sub(1));
        if left == 1 {
            FAILED.set(Some(step));
        }
        left == 1
    }

    /// Makes one step of this thread fail, as long as it lives.
    #[derive(Debug)]
    #[must_use = "a fault that is dropped never happens"]
    pub struct Fault(PhantomData<*const ()>);

    impl Fault {
        /// The `n`-th step from here on fails, counted from 1, and those behind it do not.
        pub fn at(n: u64) -> Fault {
            FAILED.set(None);
            LEFT.set(n);
            Fault(PhantomData)
        }

        /// The step that failed, if it was reached.
        pub fn step(&self) -> Option<Step> {
            FAILED.get()
        }
    }

    impl Drop for Fault {
        fn drop(&mut self) {
            LEFT.set(0);
            FAILED.set(None);
        }
    }
}

#[cfg(test)]
mod tests;
