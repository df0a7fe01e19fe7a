//! The file descriptors of this process.

use std::collections::BTreeMap;

use super::await_that;

/// How many descriptors there are of what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Census(BTreeMap<String, usize>);

impl Census {
    pub(super) fn take() -> Census {
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

    /// Panics unless the process has the same descriptors again.
    pub(super) fn must_hold(&self) {
        await_that(&format!("the descriptors of before: {self:?}, there are {:?}", Census::take()), || {
            Census::take() == *self
        });
    }
}
