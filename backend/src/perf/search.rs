//! The highest offered rate at which no frame is lost, found by halving (RFC 2544, section 26.1).
use std::time::Duration;

/// A rate that the front-end reaches by less than this share of what was wanted was not offered.
const OFFERED: f64 = 0.98;
/// Halvings after which a search ends, whatever its resolution.
const MOST_TRIALS: usize = 32;
/// Frames a second below which a search gives up.
const LEAST: f64 = 1_000.0;

/// How to search.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct SearchOptions {
    /// Time of each trial.
    pub trial: Duration,
    /// The search ends when the bounds are closer than this share of the upper one.
    pub resolution: f64,
    /// Frames a second to begin with; `None`: a little more than the greatest rate that is measured before.
    pub highest: Option<f64>,
}

/// What came of a trial.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was lost.
    Passed,
    /// Frames were lost.
    Lost,
    /// Nothing was lost, but the front-end could not keep to the rate, which says nothing about the back-end.
    NotOffered,
}

/// One trial.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// Frames a second that were wanted.
    pub wanted: f64,
    /// Frames a second that were due in the end: sent or refused.
    pub offered: f64,
    /// Frames that were put into the ring.
    pub sent: u64,
    /// Frames that found no room in the ring when their time had come.
    pub refused: u64,
    /// Frames that were sent and dropped by the back-end, or never came back.
    pub dropped: u64,
}

impl Trial {
    /// Frames that were lost, one way or the other.
    pub fn lost(&self) -> u64 {
        self.refused.saturating_add(self.dropped)
    }

    /// Lost frames by all that were due; 0 if none was.
    pub fn loss(&self) -> f64 {
        let due = self.sent.saturating_add(self.refused);
        if due == 0 { 0.0 } else { self.lost() as f64 / due as f64 }
    }

    /// What came of it.
    pub fn verdict(&self) -> Verdict {
        match self.lost() {
            0 if self.sent > 0 && self.offered >= OFFERED * self.wanted => Verdict::Passed,
            0 => Verdict::NotOffered,
            _ => Verdict::Lost,
        }
    }
}

/// A finished search.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Search {
    /// All trials, in their order.
    pub trials: Vec<Trial>,
    /// The highest rate that passed, as it was offered; `None` if none did.
    pub best: Option<f64>,
    /// Whether the first trial, at the upper bound, passed: the back-end may be capable of more.
    pub open: bool,
}

/// Halves the interval from nothing to `highest` until its ends are closer than the resolution; `trial` tries a rate.
///
/// # Errors
/// Those of `trial`.
pub fn search<E>(
    highest: f64,
    resolution: f64,
    mut trial: impl FnMut(f64) -> Result<Trial, E>,
) -> Result<Search, E> {
    let mut found = Search::default();
    let (mut low, mut high, mut next) = (0.0, highest, highest);
    while found.trials.len() < MOST_TRIALS {
        let tried = trial(next)?;
        let passed = tried.verdict() == Verdict::Passed;
        let offered = tried.offered;
        found.trials.push(tried);
        if passed {
            low = next;
            found.best = Some(offered);
            if found.trials.len() == 1 {
                found.open = true;
                break;
            }
        } else {
            high = next;
        }
        next = f64::midpoint(low, high);
        if high - low <= resolution * high || next < LEAST {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A back-end of some capacity behind a front-end of some: what is beyond the first is lost, and nothing beyond the second
    /// is offered.
    fn simulated(capacity: f64, front_end: f64) -> impl FnMut(f64) -> Result<Trial, ()> {
        move |wanted| {
            let offered = wanted.min(front_end);
            let dropped = (offered - capacity).max(0.0).ceil() as u64;
            Ok(Trial { wanted, offered, sent: offered as u64, refused: 0, dropped })
        }
    }

    proptest! {
        #[test]
        fn search_ends_within_the_resolution_below_the_capacity(
            capacity in 2e3f64..9e6, resolution in 0.001f64..0.2
        ) {
            let found = search(1e7, resolution, simulated(capacity, 1e9)).unwrap();
            let best = found.best.unwrap();
            prop_assert!(best <= capacity && !found.open);
            let least_failed = found
                .trials.iter().filter(|trial| trial.verdict() != Verdict::Passed)
                .map(|trial| trial.wanted).fold(f64::INFINITY, f64::min);
            prop_assert!(least_failed > capacity - 1.0);
            prop_assert!(least_failed - best <= resolution * least_failed);
            prop_assert!(found.trials.len() <= MOST_TRIALS);
        }
    }

    #[test]
    fn capacity_at_the_upper_bound_takes_one_trial_and_leaves_the_end_open() {
        let found = search(1e6, 0.01, simulated(2e6, 1e9)).unwrap();
        assert_eq!((found.trials.len(), found.best, found.open), (1, Some(1e6), true));
    }

    #[test]
    fn back_end_that_always_loses_has_no_rate_and_the_search_ends() {
        let found = search(1e6, 0.01, |wanted| {
            Ok::<_, ()>(Trial { wanted, offered: wanted, sent: 10, refused: 0, dropped: 1 })
        })
        .unwrap();
        assert_eq!(found.best, None);
        assert!(found.trials.len() < 12, "{}", found.trials.len());
    }

    #[test]
    fn rate_that_the_front_end_cannot_offer_does_not_pass() {
        let found = search(1e7, 0.01, simulated(1e9, 3e6)).unwrap();
        let best = found.best.unwrap();
        assert!((2.9e6..=3.1e6).contains(&best), "{best}");
        assert_eq!(found.trials[0].verdict(), Verdict::NotOffered);
    }

    #[test]
    fn refused_and_dropped_frames_both_are_lost() {
        let trial = Trial { wanted: 100.0, offered: 100.0, sent: 90, refused: 10, dropped: 5 };
        assert_eq!((trial.lost(), trial.verdict()), (15, Verdict::Lost));
        assert_eq!(trial.loss(), 0.15);
        let silent = Trial { wanted: 100.0, offered: 0.0, sent: 0, refused: 0, dropped: 0 };
        assert_eq!((silent.loss(), silent.verdict()), (0.0, Verdict::NotOffered));
    }

    #[test]
    fn error_of_a_trial_ends_the_search() {
        assert_eq!(search(1e6, 0.01, |_| Err::<Trial, _>("gone")), Err("gone"));
    }
}
