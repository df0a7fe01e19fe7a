//! What the product logs, kept for tests: a message that is refused says why in a log line only.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use log::{LevelFilter, Log, Metadata, Record};

/// Lines that are kept.
const KEPT: usize = 256;

struct Sayings(Mutex<VecDeque<String>>);

static SAYINGS: Sayings = Sayings(Mutex::new(VecDeque::new()));

impl Log for Sayings {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT {
            lines.pop_front();
        }
        lines.push_back(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Keeps what is logged from now on, and forgets what was.
pub(super) fn listen() {
    if log::set_logger(&SAYINGS).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
    SAYINGS.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// The first line with `words` in it; it and those before it are forgotten.
pub(super) fn take(words: &str) -> Option<String> {
    let mut lines = SAYINGS.0.lock().unwrap_or_else(PoisonError::into_inner);
    let at = lines.iter().position(|line| line.contains(words))?;
    lines.drain(..=at).next_back()
}

/// What is kept.
pub(super) fn all() -> Vec<String> {
    SAYINGS.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}
