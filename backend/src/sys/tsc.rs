//! UNSAFETY: the processor's time stamp counter is read by an intrinsic that is declared unsafe.
//!
//! A clock for busy time: reading it costs a few nanoseconds and no system call. Ticks are turned into nanoseconds only
//! when somebody asks for counters, with a rate measured against the monotonic clock since [`start`].

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// From here on the rate is measured for good.
const LONG_ENOUGH: Duration = Duration::from_millis(100);

static BASE: OnceLock<(Instant, u64)> = OnceLock::new();
static RATE: OnceLock<f64> = OnceLock::new();

/// Ticks now. They mean something only as a difference on one machine.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: RDTSC reads a register of the processor. It has no precondition: it faults only where the kernel forbids it
    // by CR4.TSD, which Linux does for a process only on its own request (prctl PR_SET_TSC).
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Ticks now: nanoseconds since the first call, where no cheap counter is known.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn now() -> u64 {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    u64::try_from(FIRST.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Begins to measure the rate. Later calls change nothing.
pub(crate) fn start() {
    BASE.get_or_init(|| (Instant::now(), now()));
}

/// Nanoseconds that so many ticks take.
pub(crate) fn to_ns(ticks: u64) -> u64 {
    if ticks == 0 {
        return 0;
    }
    (ticks as f64 * rate()) as u64
}

/// Nanoseconds per tick. Measured over a short time it is only a first guess and is measured again.
fn rate() -> f64 {
    if let Some(rate) = RATE.get() {
        return *rate;
    }
    let (instant, ticks) = *BASE.get_or_init(|| (Instant::now(), now()));
    if instant.elapsed() < Duration::from_millis(1) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (elapsed, passed) = (instant.elapsed(), now().wrapping_sub(ticks));
    let rate = elapsed.as_nanos() as f64 / passed.max(1) as f64;
    if elapsed >= LONG_ENOUGH { *RATE.get_or_init(|| rate) } else { rate }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_of_a_sleep_are_about_its_nanoseconds() {
        start();
        let (began, ticks) = (Instant::now(), now());
        std::thread::sleep(Duration::from_millis(20));
        let (slept, ns) = (began.elapsed().as_nanos() as f64, to_ns(now().wrapping_sub(ticks)) as f64);
        assert!(ns > slept / 2.0 && ns < slept * 2.0, "{ns} ns for {slept} ns");
    }
}
