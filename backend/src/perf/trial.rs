//! Frames at a rate of our choice: what was offered, what came of each frame, how long it took.
use super::attached::Attached;
use super::cell::{CellError, CellOptions};
use super::drive::{Care, Counts, Direction};
use super::pace::{Load, Pace};
use super::run::{Plan, drain, drive};
use super::search::Trial;
use super::shape::Format;
use crate::driver::{PackedQueue, SplitQueue, Virtqueue};
use crate::report::CounterLine;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// A pair owes at most this many bursts: what a front-end that was kept off its processor makes up for.
const OWED: u32 = 2;
/// Time at the greatest rate that tells where a search begins.
const SOUNDING: Duration = Duration::from_millis(500);

/// A back-end that frames are offered to at rates below the greatest; what varies is how its rings look.
pub trait Offers {
    /// Offers frames for a time, waits for what is under way, and counts. `rate` is in frames a second, all pairs together;
    /// `None`: one frame at a time.
    ///
    /// # Errors
    /// [`CellError`]: the back-end is gone, or broke the rules of a ring.
    fn offer(&mut self, rate: Option<f64>, time: Duration) -> Result<Offered, CellError>;

    /// Frames a second at the greatest rate.
    ///
    /// # Errors
    /// As [`Offers::offer`].
    fn greatest(&mut self) -> Result<f64, CellError>;
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Offered {
    /// The frames, in numbers.
    pub trial: Trial,
    /// Latencies of all that came back, and what was wrong with them.
    pub counts: Counts,
    /// The part of the time, from 0 to 1, that the front-end had its processor.
    pub share: f64,
}

/// Attaches to the back-end at `socket` and runs `work` on it. `counters` is asked what the back-end dropped, if it can tell.
///
/// # Errors
/// [`CellError`], those of `work` among them.
pub fn with_offers<T>(
    socket: &Path,
    options: &CellOptions,
    stop: &AtomicBool,
    counters: &mut dyn FnMut() -> Option<CounterLine>,
    work: impl FnOnce(&mut dyn Offers) -> Result<T, CellError>,
) -> Result<T, CellError> {
    match options.shape.format {
        Format::Split => {
            let attached = Attached::<SplitQueue>::new(socket, options)?;
            work(&mut Bench { attached, options, stop, counters })
        }
        Format::Packed => {
            let attached = Attached::<PackedQueue>::new(socket, options)?;
            work(&mut Bench { attached, options, stop, counters })
        }
    }
}

struct Bench<'b, Q> {
    attached: Attached<Q>,
    options: &'b CellOptions,
    stop: &'b AtomicBool,
    counters: &'b mut dyn FnMut() -> Option<CounterLine>,
}

impl<Q: Virtqueue> Bench<'_, Q> {
    /// Drives all pairs for a time, then lets what is under way come in; everything that was counted, and the part of the
    /// time that the front-end had its processor.
    fn run(&mut self, time: Duration) -> Result<(Counts, f64), CellError> {
        let Attached { front_end, members, .. } = &mut self.attached;
        let plan = Plan { warm_up: Duration::ZERO, slice: time, slices: 1 };
        let alive = || !front_end.peer_is_gone();
        let slices = drive(members, &plan, &self.options.cpus, self.stop, |_| (), alive)?;
        let mut counts = drain(members, self.stop, alive)?;
        slices.iter().for_each(|slice| counts.merge(&slice.counts));
        Ok((counts, slices.first().map_or(1.0, |slice| slice.share)))
    }

    /// Frames that were sent, refused, and used by the device or received, from the first on.
    fn totals(&self) -> [u64; 3] {
        let pairs = self.attached.members.iter().map(|member| &member.pair);
        pairs.fold([0; 3], |[sent, refused, arrived], pair| {
            let offered = pair.offered();
            [sent + offered[0], refused + offered[1], arrived + pair.completed()]
        })
    }

    /// Frames that the device says it dropped, of those that the driver sent.
    fn dropped(&mut self) -> u64 {
        (self.counters)().map_or(0, |line| line.transmit().drops)
    }
}

impl<Q: Virtqueue> Offers for Bench<'_, Q> {
    fn offer(&mut self, rate: Option<f64>, time: Duration) -> Result<Offered, CellError> {
        let pairs = self.attached.members.len() as f64;
        let owed = OWED * self.options.shape.burst;
        let now = Instant::now();
        for member in &mut self.attached.members {
            member.pair.set_care(Care::Numbers);
            member.pair.time_every_packet();
            member.pair.set_load(match rate {
                None => Load::One,
                Some(rate) => Load::Paced(Pace::new(rate / pairs, owed, now)),
            });
        }
        let (before, dropped_before) = (self.totals(), self.dropped());
        let started = Instant::now();
        let (counts, share) = self.run(time)?;
        // What is under way at the end comes in within microseconds, or within the second that a lost one is waited for.
        let seconds = started.elapsed().min(time).as_secs_f64();
        let (after, dropped_after) = (self.totals(), self.dropped());
        let [sent, refused, arrived] = [0, 1, 2].map(|place: usize| {
            let value = |totals: &[u64; 3]| totals.get(place).copied().unwrap_or(0);
            value(&after) - value(&before)
        });
        let unseen = match self.options.direction {
            Direction::To => dropped_after.saturating_sub(dropped_before),
            // What the device dropped did not come back either.
            Direction::From | Direction::Loop => 0,
        };
        let offered = (sent + refused) as f64 / seconds;
        let dropped = sent.saturating_sub(arrived) + unseen;
        let trial = Trial { wanted: rate.unwrap_or(offered), offered, sent, refused, dropped };
        Ok(Offered { trial, counts, share })
    }

    fn greatest(&mut self) -> Result<f64, CellError> {
        self.attached.members.iter_mut().for_each(|member| member.pair.set_load(Load::Greatest));
        let before = self.totals();
        let started = Instant::now();
        self.run(SOUNDING)?;
        let [_, _, arrived] = self.totals();
        Ok((arrived - before[2]) as f64 / started.elapsed().min(SOUNDING).as_secs_f64())
    }
}
