//! The end of a process between any two stores, played on one thread: it unwinds, and what was stored stays.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local! {
    /// Stores that are still made, if they are counted.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

struct Killed;

pub(in super::super::super) fn before_store() {
    match LEFT.get() {
        None => {}
        Some(0) => {
            LEFT.set(None);
            resume_unwind(Box::new(Killed));
        }
        Some(left) => LEFT.set(Some(left - 1)),
    }
}

/// Runs `life`, and ends it before its store number `at`. `None` if it ended so.
pub(in super::super::super) fn killed_at<T>(at: usize, life: impl FnOnce() -> T) -> Option<T> {
    LEFT.set(Some(at));
    let outcome = catch_unwind(AssertUnwindSafe(life));
    LEFT.set(None);
    match outcome {
        Ok(value) => Some(value),
        Err(end) if end.is::<Killed>() => None,
        Err(panic) => resume_unwind(panic),
    }
}
