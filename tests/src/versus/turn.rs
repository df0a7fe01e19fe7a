//! Back-ends under front-ends of their own, all of them started, one of them running.
//!
//! Those whose turn it is not are stopped by a signal, so that a turn is as short as one likes and finds everything warm: the
//! machine changes its state every few seconds, and a pair of turns counts only if it did not meanwhile.
use std::time::{Duration, Instant};

use mdevd::perf::roundtrip;
use mdevd::report::{median, online_cpus};

use super::{Cell, Direction, Entry, ceiling, cell};
use crate::lab::{Counters, Lab, Mdevd, Running, RunningTestpmd, Skip, Testpmd};

/// How long the back-end that only returns descriptors may take to listen.
const START: Duration = Duration::from_secs(20);

/// The cache line's round trip between the processors of back-end and front-end.
fn line() -> Option<f64> {
    match online_cpus()[..] {
        [first, second, ..] => roundtrip::between(first, second),
        _ => None,
    }
}

/// The back-ends of a cell.
pub struct Turns<'c> {
    cell: &'c Cell,
    seconds: usize,
    mdevd: Attached<Mdevd>,
    dpdk: Attached<RunningTestpmd>,
    ceiling: Option<Attached<Running>>,
}

impl<'c> Turns<'c> {
    /// Starts them, with the one that only returns descriptors if the ceiling is wanted. So many seconds of each turn count.
    ///
    /// # Errors
    /// [`Skip`]: testpmd cannot be started here.
    ///
    /// # Panics
    /// When a peer fails; so do the other operations.
    pub fn start(lab: &Lab, cell: &'c Cell, seconds: usize, with_ceiling: bool) -> Result<Self, Skip> {
        // What back-ends have left behind that were killed.
        for name in ["mdevd.sock", "dpdk.sock", "ceiling.sock"] {
            let _ = std::fs::remove_file(lab.work().join(name));
        }
        let link = cell.direction.link(cell.size);
        let mdevd = Mdevd::net(lab, "mdevd.sock", 1, &["--link", &link, "--mode", "busy", "--cpus", "0"]);
        let mdevd = Attached::new(lab, cell, "mdevd", mdevd)?;
        let dpdk =
            Testpmd::back_end("dpdk.sock", cell.direction.back_end()).packet_size(cell.size).start(lab)?;
        let dpdk = Attached::new(lab, cell, "dpdk", dpdk)?;
        let ceiling = match with_ceiling {
            true => Some(Attached::new(lab, cell, "ceiling", start_ceiling(lab, cell))?),
            false => None,
        };
        Ok(Turns { cell, seconds, mdevd, dpdk, ceiling })
    }

    /// A pair of turns, mdevd's and DPDK's, and one of the ceiling.
    pub fn pair(&mut self, commit: &str) -> Entry {
        let (direction, seconds) = (self.cell.direction, self.seconds);
        let before = line();
        let (mdevd, busy) = self.mdevd.turn(|mdevd, front_end| {
            let then = mdevd.counters();
            let rate = rate(front_end, direction, seconds);
            (rate, busy(direction, &then, &mdevd.counters()))
        });
        let between = line();
        let dpdk = self.dpdk.turn(|_, front_end| rate(front_end, direction, seconds));
        let lines = [before, between, line()].into_iter().flatten().collect();
        let ceiling = self
            .ceiling
            .as_mut()
            .map(|ceiling| ceiling.turn(|_, front_end| rate(front_end, direction, seconds)));
        Entry { cell: self.cell.clone(), commit: commit.into(), mdevd, dpdk, lines, busy, ceiling }
    }
}

/// A program that can be kept off the processors.
trait Held {
    fn hold(&self);
    fn go_on(&mut self);
}

macro_rules! held {
    ($($program:ty),*) => {
        $(impl Held for $program {
            fn hold(&self) {
                <$program>::hold(self);
            }

            fn go_on(&mut self) {
                <$program>::go_on(self);
            }
        })*
    };
}

held!(Mdevd, RunningTestpmd, Running);

/// A back-end and its front-end, held but for its turns. The front-end ends first.
struct Attached<B> {
    front_end: RunningTestpmd,
    back_end: B,
}

impl<B: Held> Attached<B> {
    /// Attaches a front-end to the back-end of this name, which listens.
    fn new(lab: &Lab, cell: &Cell, name: &str, back_end: B) -> Result<Self, Skip> {
        let front_end = Testpmd::front_end(&format!("{name}.sock"), cell.direction.front_end())
            .name(&format!("{name}-front"))
            .ring_size(cell.ring_size)
            .mergeable(cell.mergeable)
            .layout(cell::layout(&cell.layout).map_err(Skip)?)
            .packet_size(cell.size)
            .start(lab)?;
        let attached = Attached { front_end, back_end };
        attached.hold();
        Ok(attached)
    }

    fn hold(&self) {
        self.front_end.hold();
        self.back_end.hold();
    }

    /// Has both run, and measures from their first report on.
    fn turn<R>(&mut self, measure: impl FnOnce(&mut B, &mut RunningTestpmd) -> R) -> R {
        self.back_end.go_on();
        self.front_end.go_on();
        self.front_end.next_rate();
        let measured = measure(&mut self.back_end, &mut self.front_end);
        self.hold();
        measured
    }
}

/// Starts the back-end that only returns descriptors.
fn start_ceiling(lab: &Lab, cell: &Cell) -> Running {
    let (socket, size) = ("ceiling.sock", cell.size.to_string());
    let path = lab.work().join(socket);
    let mut device = Mdevd::run(lab, &[ceiling::COMMAND, socket, cell.direction.name(), &size]);
    let deadline = Instant::now() + START;
    while !path.exists() {
        let ended = device.wait(Duration::from_millis(5)).is_some();
        assert!(!ended && Instant::now() < deadline, "no back-end listens on {socket}");
    }
    device
}

/// Millions of packets a second: the median of the seconds.
fn rate(front_end: &mut RunningTestpmd, direction: Direction, seconds: usize) -> f64 {
    let mut rates: Vec<f64> = (0..seconds)
        .map(|_| {
            let rate = front_end.next_rate();
            let packets = if direction == Direction::To { rate.tx } else { rate.rx };
            packets as f64 / 1e6
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    median(&rates)
}

/// Nanoseconds for each packet between two looks at the counters of a queue pair.
fn busy(direction: Direction, before: &[Counters], after: &[Counters]) -> Option<f64> {
    let ([receive, transmit], [receive_then, transmit_then]) = (after, before) else { return None };
    let since = |title, now: &Counters, then: &Counters| now.get(title).saturating_sub(then.get(title));
    let packets = match direction {
        Direction::To => since("packets", transmit, transmit_then),
        Direction::From | Direction::Loop => since("packets", receive, receive_then),
    };
    let busy = since("busy-ns", receive, receive_then) + since("busy-ns", transmit, transmit_then);
    (packets > 0).then(|| busy as f64 / packets as f64)
}
