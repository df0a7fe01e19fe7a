//! Timing: threads that drive their pairs, cut into slices.
use super::drive::{Care, Counts};
pub use super::driven::{Counted, Driven, Member};
use super::roundtrip::pin_to;
use crate::driver::{DriverError, Virtqueue};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Rounds over all pairs between two looks at the clock.
const ROUNDS: u32 = 16;
/// After this long without an arrival, what is under way in a loop is lost. A device that shares its processor is away
/// for a good part of it.
pub const GIVE_UP: Duration = Duration::from_secs(1);
/// A gap between two looks counts as no more silence than this.
const GAP: Duration = Duration::from_millis(20);
/// How often the peer is looked after.
const WATCH: Duration = Duration::from_millis(200);

/// Why a run ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The device broke the rules of the ring.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The device gave up on a ring.
    #[error("the device has given up on a ring of pair {0} (its err counter was signalled); look at its log")]
    RingFailed(usize),
    /// The device gave up on a ring.
    #[error("the device has given up on queue {0} (its err counter was signalled); look at its log")]
    QueueFailed(usize),
    /// No request ends.
    #[error("no request has ended for {} s; look at the back-end's log", .0.as_secs())]
    Unanswered(Duration),
    /// Nothing arrives.
    #[error("no packet for {} s: does the back-end's configuration suit this direction?", .0.as_secs())]
    Stalled(Duration),
    /// The device's process is gone.
    #[error("the back-end closed the connection or died in the middle of the run")]
    PeerGone,
    /// Ctrl-C, or SIGTERM.
    #[error("interrupted")]
    Interrupted,
    /// A thread could not be pinned.
    #[error("cannot run on processor {cpu}: {source}")]
    Pin {
        /// The processor.
        cpu: usize,
        /// What the kernel answered.
        source: std::io::Error,
    },
    /// A driving thread died.
    #[error("a driving thread ended by itself: please report this")]
    Thread,
}

/// How long to run.
#[derive(Copy, Clone, Debug)]
pub struct Plan {
    /// Time before the first slice.
    pub warm_up: Duration,
    /// Time of a slice.
    pub slice: Duration,
    /// Slices.
    pub slices: usize,
}

/// What happened in a slice, all members together.
#[derive(Clone, Debug)]
pub struct Slice<C = Counts> {
    /// Its true length in seconds.
    pub seconds: f64,
    /// The part of that time that the driving thread had its processor, from 0 to 1; of several threads the least.
    pub share: f64,
    /// What was counted in it.
    pub counts: C,
}

/// Drives all members for the time of the plan, spread over `cpus`, one thread on each (none of them: one thread, not pinned).
/// `at_boundary` is called on this thread after the warm-up and after each slice, `alive` now and then.
///
/// # Errors
/// [`RunError`]. The rings are then in an undefined state.
pub fn drive<D: Driven>(
    members: &mut [D],
    plan: &Plan,
    cpus: &[usize],
    stop: &AtomicBool,
    mut at_boundary: impl FnMut(usize),
    alive: impl Fn() -> bool,
) -> Result<Vec<Slice<D::Counts>>, RunError> {
    let each = members.len().div_ceil(cpus.len().max(1)).max(1);
    let threads = members.len().div_ceil(each);
    let barrier = Barrier::new(threads);
    let abort = AtomicBool::new(false);
    thread::scope(|scope| {
        let (boundaries, events) = channel();
        let mut running = Vec::with_capacity(threads);
        for (number, group) in members.chunks_mut(each).enumerate() {
            let boundaries = (number == 0).then(|| boundaries.clone());
            let (barrier, abort, cpu) = (&barrier, &abort, cpus.get(number).copied());
            running.push(scope.spawn(move || {
                let pinned =
                    cpu.map_or(Ok(()), |cpu| pin_to(cpu).map_err(|source| RunError::Pin { cpu, source }));
                barrier.wait();
                let result =
                    pinned.and_then(|()| one_thread(group, number * each, plan, stop, abort, boundaries));
                if result.is_err() {
                    abort.store(true, Ordering::Relaxed);
                }
                result
            }));
        }
        drop(boundaries);
        let gone = watch(&events, plan.slices, &abort, &mut at_boundary, alive);
        let mut all: Vec<Slice<D::Counts>> = Vec::new();
        let mut failure = None;
        for thread in running {
            match thread.join().unwrap_or(Err(RunError::Thread)) {
                Ok(slices) if all.is_empty() => all = slices,
                Ok(slices) => {
                    for (sum, part) in all.iter_mut().zip(&slices) {
                        sum.counts.merge(&part.counts);
                        sum.share = sum.share.min(part.share);
                    }
                }
                // The first thread's own trouble says more than "interrupted" of those that followed it.
                Err(RunError::Interrupted) if failure.is_some() => {}
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            _ if gone => Err(RunError::PeerGone),
            Some(error) => Err(error),
            None => Ok(all),
        }
    })
}

/// Passes boundaries on until the last one, or until the threads end; true if the peer died meanwhile.
fn watch(
    events: &Receiver<()>,
    slices: usize,
    abort: &AtomicBool,
    at_boundary: &mut impl FnMut(usize),
    alive: impl Fn() -> bool,
) -> bool {
    let mut seen = 0;
    while seen <= slices {
        match events.recv_timeout(WATCH) {
            Ok(()) => {
                at_boundary(seen);
                seen += 1;
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if !alive() {
            abort.store(true, Ordering::Relaxed);
            return true;
        }
    }
    !alive()
}

fn one_thread<D: Driven>(
    members: &mut [D],
    first: usize,
    plan: &Plan,
    stop: &AtomicBool,
    abort: &AtomicBool,
    boundaries: Option<Sender<()>>,
) -> Result<Vec<Slice<D::Counts>>, RunError> {
    let mut slices = Vec::with_capacity(plan.slices);
    let mut started = Instant::now();
    let mut silence = Silence::new();
    let mut ends = started + plan.warm_up;
    let (mut warm, mut had) = (false, 0.0);
    while slices.len() < plan.slices {
        let mut arrived = 0;
        for _ in 0..ROUNDS {
            for member in &mut *members {
                arrived += member.poll(true)?;
            }
        }
        let now = Instant::now();
        idle(members, first, silence.look(arrived > 0, now))?;
        if now >= ends {
            let mut counts = D::Counts::default();
            members.iter_mut().for_each(|member| counts.merge(&member.take()));
            if warm {
                let seconds = (now - started).as_secs_f64();
                slices.push(Slice { seconds, share: (processor_time() - had) / seconds, counts });
            }
            (warm, started, ends, had) = (true, now, now + plan.slice, processor_time());
            if let Some(boundaries) = &boundaries {
                // Nobody listens any more only when the run is over.
                let _ = boundaries.send(());
            }
        }
        if stop.load(Ordering::Relaxed) || abort.load(Ordering::Relaxed) {
            return Err(RunError::Interrupted);
        }
    }
    Ok(slices)
}

/// Seconds of processor time that this thread has had.
fn processor_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// How long nothing has arrived, as far as somebody looked: a thread that was kept off its processor has seen no silence
/// meanwhile, and a clock that jumps (those of virtual machines do) has brought none.
struct Silence {
    length: Duration,
    looked: Instant,
}

impl Silence {
    pub fn new() -> Self {
        Silence { length: Duration::ZERO, looked: Instant::now() }
    }

    /// Something arrived, or nothing, by `now`. The length of the silence.
    pub fn look(&mut self, arrived: bool, now: Instant) -> Duration {
        let gap = now.saturating_duration_since(self.looked).min(GAP);
        self.length = if arrived { Duration::ZERO } else { self.length + gap };
        self.looked = now;
        self.length
    }
}

/// Nothing arrived for a while.
fn idle<D: Driven>(members: &mut [D], first: usize, since: Duration) -> Result<(), RunError> {
    if since < GIVE_UP {
        return Ok(());
    }
    let mut numbered = members.iter_mut().enumerate();
    numbered.try_for_each(|(number, member)| member.silent(first + number, since))
}

/// Polls members on this thread until each of them is done.
///
/// # Errors
/// [`RunError`].
pub fn complete<D: Driven>(
    members: &mut [D],
    send: bool,
    stop: &AtomicBool,
    alive: impl Fn() -> bool,
    done: impl Fn(&D) -> bool,
) -> Result<(), RunError> {
    let mut silence = Silence::new();
    while !members.iter().all(&done) {
        let mut arrived = 0;
        for member in &mut *members {
            arrived += member.poll(send)?;
        }
        let length = silence.look(arrived > 0, Instant::now());
        if length >= GIVE_UP && !alive() {
            return Err(RunError::PeerGone);
        }
        idle(members, 0, length)?;
        if stop.load(Ordering::Relaxed) {
            return Err(RunError::Interrupted);
        }
    }
    Ok(())
}

/// Drives members on this thread, checking every byte, until `packets` have arrived, then lets what is under way come in.
/// What was counted, all pairs together.
///
/// # Errors
/// [`RunError`].
pub fn verify<Q: Virtqueue>(
    members: &mut [Member<Q>],
    packets: u64,
    stop: &AtomicBool,
    alive: impl Fn() -> bool,
) -> Result<Counts, RunError> {
    let mut counts = Counts::default();
    let mut silence = Silence::new();
    members.iter_mut().for_each(|member| member.pair.set_care(Care::Bytes));
    let mut quiet = false;
    while !quiet {
        let send = counts.packets < packets;
        let mut arrived = 0;
        for member in &mut *members {
            arrived += member.poll(send)?;
            counts.merge(&member.pair.take());
        }
        let length = silence.look(arrived > 0, Instant::now());
        if length >= GIVE_UP && !alive() {
            return Err(RunError::PeerGone);
        }
        idle(members, 0, length)?;
        let under_way = members.iter().any(|member| member.pair.in_flight() > 0);
        quiet = !send && !under_way;
        if stop.load(Ordering::Relaxed) {
            return Err(RunError::Interrupted);
        }
    }
    members.iter_mut().for_each(|member| {
        counts.merge(&member.pair.take());
        member.pair.set_care(Care::Numbers);
    });
    Ok(counts)
}

/// Lets what is under way come in, on this thread; what was counted, all pairs together. What does not come within a second
/// is lost.
///
/// # Errors
/// [`RunError`].
pub fn drain<Q: Virtqueue>(
    members: &mut [Member<Q>],
    stop: &AtomicBool,
    alive: impl Fn() -> bool,
) -> Result<Counts, RunError> {
    let mut silence = Silence::new();
    while members.iter().any(|member| member.pair.in_flight() > 0) {
        let mut arrived = 0;
        for member in &mut *members {
            arrived += member.poll(false)?;
        }
        let length = silence.look(arrived > 0, Instant::now());
        if length >= GIVE_UP {
            if !alive() {
                return Err(RunError::PeerGone);
            }
            idle(members, 0, length)?;
            break;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(RunError::Interrupted);
        }
    }
    let mut counts = Counts::default();
    members.iter_mut().for_each(|member| counts.merge(&member.pair.take()));
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_the_time_that_somebody_looked() {
        let mut silence = Silence::new();
        let mut now = silence.looked;
        for looks in 1..=1000u32 {
            now += Duration::from_millis(1);
            assert_eq!(silence.look(false, now), Duration::from_millis(looks.into()));
        }
        assert_eq!(silence.look(true, now), Duration::ZERO);
    }

    #[test]
    fn gap_between_two_looks_and_a_jump_of_the_clock_are_no_silence() {
        let mut silence = Silence::new();
        let start = silence.looked;
        assert_eq!(silence.look(false, start + 2 * GIVE_UP), GAP);
        assert_eq!(silence.look(false, start), GAP, "backwards");
        assert_eq!(silence.look(false, start + GIVE_UP), 2 * GAP);
    }
}
