//! What the control thread writes down for the test.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use mdevd::ring::RingError;

use super::WATCHDOG;

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Why the session ended, in its own words.
    pub why: String,
    /// The front-end closed the connection between two messages.
    pub clean: bool,
    /// Pins that the device held on the connection's memory when the session said that it was closed.
    pub pins: u64,
}

/// Notes of the control thread, and a way to wait for them.
#[derive(Default)]
pub(super) struct Journal {
    notes: Mutex<Notes>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct Notes {
    failures: Vec<(u64, u16, RingError)>,
    endings: BTreeMap<u64, Ending>,
    /// The control thread is gone.
    over: bool,
}

impl Journal {
    pub(super) fn failed(&self, conn: u64, index: u16, error: RingError) {
        self.write(|notes| notes.failures.push((conn, index, error)));
    }

    pub(super) fn ended(&self, conn: u64, ending: Ending) {
        self.write(|notes| drop(notes.endings.insert(conn, ending)));
    }

    pub(super) fn over(&self) {
        self.write(|notes| notes.over = true);
    }

    fn write(&self, note: impl FnOnce(&mut Notes)) {
        note(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    pub(super) fn look<T>(&self, at: impl FnOnce(&Notes) -> T) -> T {
        at(&self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until `find` finds what it looks for.
    pub(super) fn take<T>(&self, what: &str, mut find: impl FnMut(&mut Notes) -> Option<T>) -> T {
        let deadline = Instant::now() + WATCHDOG;
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(found) = find(&mut notes) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && !notes.over, "in vain: {what}; there is {notes:?}");
            notes = self.changed.wait_timeout(notes, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Notes {
    pub(super) fn failure(&mut self, conn: u64) -> Option<(u16, RingError)> {
        let at = self.failures.iter().position(|(of, ..)| *of == conn)?;
        let (_, index, error) = self.failures.remove(at);
        Some((index, error))
    }

    pub(super) fn has_failed(&self, conn: u64) -> bool {
        self.failures.iter().any(|(of, ..)| *of == conn)
    }

    pub(super) fn ending(&mut self, conn: u64) -> Option<Ending> {
        self.endings.remove(&conn)
    }
}
