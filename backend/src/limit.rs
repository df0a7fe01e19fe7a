//! Log lines that a guest or a peer can cause, and therefore must not be able to cause without bound.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lets a number of lines pass per interval and counts the rest.
///
/// ```
/// use std::time::Duration;
/// use mdevd::limit::LogLimit;
///
/// static LIMIT: LogLimit = LogLimit::new(5, Duration::from_secs(10));
/// if let Some(left_out) = LIMIT.permit() {
///     log::warn!("queue 1: the ring is malformed{left_out}");
/// }
/// ```
#[derive(Debug)]
pub struct LogLimit {
    lines: u32,
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Option<Instant>,
    passed: u32,
    left_out: u64,
}

/// How many lines were left out before the one that may be written now: prints as nothing, or as
/// ` (12 more like this)`.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct LeftOut(pub u64);

impl LogLimit {
    /// At most `lines` in any `interval` that begins with a line.
    pub const fn new(lines: u32, interval: Duration) -> Self {
        Self { lines, interval, state: Mutex::new(State { since: None, passed: 0, left_out: 0 }) }
    }

    /// Whether a line may be written now. Takes a lock: not for every packet, but for what has gone wrong.
    pub fn permit(&self) -> Option<LeftOut> {
        self.permit_at(Instant::now())
    }

    fn permit_at(&self, now: Instant) -> Option<LeftOut> {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match state.since {
            Some(since) if now.saturating_duration_since(since) < self.interval => {}
            _ => {
                state.since = Some(now);
                state.passed = 0;
            }
        }
        if state.passed >= self.lines {
            state.left_out = state.left_out.saturating_add(1);
            return None;
        }
        state.passed += 1;
        Some(LeftOut(std::mem::take(&mut state.left_out)))
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} more like this)"),
        }
    }
}

#[cfg(test)]
mod tests;
