//! The file descriptors of this process, which must be the same after a test as before.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::await_that;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A test that has the process to itself, and counts its file descriptors.
pub struct Alone {
    before: Census,
    _guard: MutexGuard<'static, ()>,
}

impl Alone {
    /// Waits for its turn, then counts.
    pub fn begin() -> Alone {
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // What a process opens once, it has opened now.
        mdev_dma::Windows::new().expect("lost memory can be contained");
        Alone { before: Census::take(), _guard: guard }
    }

    /// Holds the test to account.
    ///
    /// # Panics
    /// When the process has not the same descriptors as at the beginning.
    pub fn end(self) {
        let before = &self.before;
        await_that(&format!("the descriptors of before: {before:?}, there are {:?}", Census::take()), || {
            Census::take() == *before
        });
    }
}

/// How many descriptors there are of what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Census(BTreeMap<String, usize>);

impl Census {
    fn take() -> Census {
        let mut counts = BTreeMap::new();
        let entries = std::fs::read_dir("/proc/self/fd").expect("/proc is there");
        // The folder itself is among them, each time it is read, so it makes no difference.
        for entry in entries.flatten() {
            let target = std::fs::read_link(entry.path()).map(|target| target.to_string_lossy().into_owned());
            // Sockets and pipes have numbers; what counts is how many there are.
            let kind = target.unwrap_or_default().split(":[").next().unwrap_or_default().to_owned();
            *counts.entry(kind).or_default() += 1;
        }
        Census(counts)
    }
}
