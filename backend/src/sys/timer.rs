//! A timer that can be waited for beside descriptors, finer than the milliseconds of epoll_wait(2).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// One alarm: set, reset or taken back. Readable once it has passed.
#[derive(Debug)]
pub struct Timer {
    fd: OwnedFd,
    at: Option<Instant>,
}

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// What timerfd_create(2) answers.
    pub fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Self { fd, at: None })
    }

    /// Sets the alarm to `at` (one that has passed rings at once), or takes it back. Costs nothing when it
    /// stands there already.
    ///
    /// # Errors
    /// None that a correct program sees.
    pub fn set(&mut self, at: Option<Instant>) -> io::Result<()> {
        if self.at == at {
            return Ok(());
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let it_value = match at {
            // All zero would take the alarm back.
            Some(at) => at
                .saturating_duration_since(Instant::now())
                .max(Duration::from_nanos(1))
                .try_into()
                .unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }),
            None => zero,
        };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: zero, it_value })?;
        self.at = at;
        Ok(())
    }

    /// To be called when the timer was readable: it is no longer set.
    pub fn rang(&mut self) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.fd, &mut count);
        self.at = None;
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests;
