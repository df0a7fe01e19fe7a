//! How long a cache line takes from one core to another and back.
//!
//! Two pinned threads write to one line in turn. On a shared machine this time drifts between runs, and by much where
//! the two cores do not share a cache; a figure of packets that cross cores means nothing without it.
use rustix::thread::{CpuSet, sched_setaffinity};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Turns taken between two looks at the clock.
const BATCH: u64 = 2_000;
/// Batches of a measurement.
const BATCHES: usize = 100;
/// A measurement ends after this time even if batches are left.
const LIMIT: Duration = Duration::from_millis(250);
/// The line, alone in its pair of lines, since some processors fetch two at a time.
#[repr(align(128))]
struct Line(AtomicU64);

/// Pins the calling thread to one processor.
///
/// # Errors
/// EINVAL: the processor does not exist or is not of this process.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// The median over batches of one round trip in nanoseconds between two different processors; takes a quarter of a
/// second at most. `None`: both are the same processor, one cannot be used, or the time passed without one whole batch
/// (a processor that was busy with something else).
pub fn between(first: usize, second: usize) -> Option<f64> {
    if first == second {
        return None;
    }
    let line = &Line(AtomicU64::new(0));
    let over = &AtomicBool::new(false);
    thread::scope(|scope| {
        let answering = scope.spawn(move || {
            if pin_to(second).is_ok() {
                answer(line, over);
            }
        });
        let asking = scope.spawn(move || {
            let result = pin_to(first).ok().and_then(|()| ask(line, || answering.is_finished()));
            over.store(true, Ordering::Release);
            result
        });
        asking.join().ok().flatten()
    })
}

/// Odd numbers are questions; each is answered by the even number that follows it. Neither side pauses between two
/// looks: the pause would be in the figure. The end is said on another line, which no answer can overwrite.
fn answer(line: &Line, over: &AtomicBool) {
    let mut last = 0;
    let mut looks = 0u32;
    loop {
        let seen = line.0.load(Ordering::Acquire);
        if seen != last {
            last = seen.wrapping_add(1);
            line.0.store(last, Ordering::Release);
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(4096) && over.load(Ordering::Acquire) {
            return;
        }
    }
}

/// Asks in batches until there are enough or the time is over.
fn ask(line: &Line, alone: impl Fn() -> bool) -> Option<f64> {
    let started = Instant::now();
    let mut batches = Vec::with_capacity(BATCHES);
    let mut question = 1u64;
    // The first batch wakes both cores up and is not counted.
    for batch in 0..=BATCHES {
        let batch_started = Instant::now();
        for _ in 0..BATCH {
            line.0.store(question, Ordering::Release);
            let mut looks = 0u32;
            while line.0.load(Ordering::Acquire) == question {
                looks = looks.wrapping_add(1);
                if looks.is_multiple_of(4096) && (started.elapsed() > LIMIT || alone()) {
                    return middle(batches);
                }
            }
            question = question.wrapping_add(2);
        }
        if batch > 0 {
            batches.push(batch_started.elapsed().as_nanos() as f64 / BATCH as f64);
        }
    }
    middle(batches)
}

fn middle(mut batches: Vec<f64>) -> Option<f64> {
    batches.sort_by(f64::total_cmp);
    (!batches.is_empty()).then(|| crate::report::median(&batches))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_within_one_core_is_not_measured() {
        assert_eq!(between(0, 0), None);
    }

    #[test]
    fn round_trip_with_a_missing_core_is_not_measured() {
        assert_eq!(between(0, CpuSet::MAX_CPU), None);
        assert_eq!(between(CpuSet::MAX_CPU + 7, 0), None);
    }

    #[test]
    fn round_trip_between_two_cores_is_positive_or_given_up() {
        if let [first, second, ..] = crate::report::online_cpus()[..] {
            assert!(between(first, second).is_none_or(|time| time > 0.0));
        }
    }
}
