//! When the next frames are due, at a rate below the greatest.
use std::time::Instant;

/// How many frames a front-end sends.
#[derive(Clone, Debug)]
pub enum Load {
    /// As many as there is room for.
    Greatest,
    /// One, and the next when it is back.
    One,
    /// Those that are due. One that finds no room is refused, which is counted.
    Paced(Pace),
}

/// A clock that owes frames.
///
/// A front-end that was kept off its processor does not make up for the time by a flood, which would overflow any ring: what
/// is owed beyond a limit is forgotten, and the offered rate is less.
#[derive(Clone, Debug)]
pub struct Pace {
    per_second: f64,
    most: f64,
    owed: f64,
    since: Instant,
}

impl Pace {
    /// So many frames a second from `now` on; at most `most` are ever owed.
    pub fn new(per_second: f64, most: u32, now: Instant) -> Self {
        Pace { per_second, most: most.max(1).into(), owed: 0.0, since: now }
    }

    /// Frames that have become due by `now` since the last time.
    #[inline]
    pub fn due(&mut self, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = self.since.max(now);
        self.owed = (self.owed + passed * self.per_second).min(self.most);
        let whole = self.owed as u32;
        self.owed -= f64::from(whole);
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    proptest! {
        #[test]
        fn frames_that_were_due_are_those_of_the_time_that_passed(
            rate in 1.0f64..1e7, steps in prop::collection::vec(1u64..3_000, 1..500)
        ) {
            let start = Instant::now();
            let mut pace = Pace::new(rate, 1 << 20, start);
            let (mut now, mut due) = (start, 0u64);
            for step in steps {
                now += Duration::from_nanos(step);
                due += u64::from(pace.due(now));
            }
            let exact = (now - start).as_secs_f64() * rate;
            prop_assert!(due as f64 <= exact + 1e-3 && due as f64 > exact - 1.001, "{due} of {exact}");
        }
    }

    #[test]
    fn time_off_the_processor_is_forgotten_beyond_the_limit() {
        let start = Instant::now();
        let mut pace = Pace::new(1e6, 64, start);
        assert_eq!(pace.due(start + Duration::from_millis(10)), 64);
        assert_eq!(pace.due(start + Duration::from_millis(10)), 0);
        assert_eq!(pace.due(start + Duration::from_micros(10_005)), 5);
    }

    #[test]
    fn clock_that_stands_still_or_runs_backwards_owes_nothing() {
        let start = Instant::now() + Duration::from_secs(1);
        let mut pace = Pace::new(1e9, 64, start);
        assert_eq!((pace.due(start), pace.due(start - Duration::from_millis(1))), (0, 0));
    }
}
