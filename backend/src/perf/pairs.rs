//! Two back-ends, measured in turns: what may be compared, and what follows from it.
use crate::report::{Measurement, Status};

/// The machine has changed its state where the greatest round trip around a pair exceeds the least by this factor.
pub const STEADY: f64 = 1.25;

/// Two measurements one behind the other, with the cache line's round trips before, between and after them.
#[derive(Clone, Debug, PartialEq)]
pub struct Pairing {
    /// The rate of the first back-end, such as millions of packets a second.
    pub first: f64,
    /// Of the second.
    pub second: f64,
    /// Round trips in nanoseconds; none where the machine has but one processor.
    pub lines: Vec<f64>,
}

impl Pairing {
    /// Whether the machine was in the same state all the time, as far as the round trips tell.
    pub fn steady(&self) -> bool {
        let least = self.lines.iter().copied().fold(f64::INFINITY, f64::min);
        self.lines.iter().all(|&line| line <= STEADY * least)
    }

    /// How many times the second's packets the first moves; `None` where the second moved none.
    pub fn ratio(&self) -> Option<f64> {
        (self.second > 0.0).then_some(self.first / self.second)
    }
}

/// What the steady pairs say.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Rates of the first back-end.
    pub first: Measurement,
    /// Rates of the second.
    pub second: Measurement,
    /// First by second, pair by pair.
    pub ratio: Measurement,
    /// Round trips around the pairs.
    pub cache_line: Measurement,
    /// Pairs that count.
    pub kept: usize,
    /// Pairs in which the machine changed its state.
    pub dropped: usize,
}

impl Comparison {
    /// Compares rates of packets; results are named `place/...`, the two back-ends by `names`.
    pub fn of(place: &str, names: [&str; 2], pairs: &[Pairing]) -> Self {
        Self::in_unit("Mpps", place, names, pairs)
    }

    /// The same of rates in whatever unit.
    pub fn in_unit(rate: &str, place: &str, names: [&str; 2], pairs: &[Pairing]) -> Self {
        let [first, second] = names;
        let steady: Vec<&Pairing> = pairs.iter().filter(|pair| pair.steady()).collect();
        let measured = |what: String, unit: &str, samples: Vec<f64>| {
            let name = format!("{place}/{what}");
            match samples.is_empty() {
                true => Measurement::without_value(name, unit, Status::Skipped),
                false => Measurement::new(name, unit, samples),
            }
        };
        let each = |value: &dyn Fn(&Pairing) -> f64| steady.iter().map(|pair| value(pair)).collect();
        Comparison {
            first: measured(format!("{first}-beside-{second}/rate"), rate, each(&|pair| pair.first)),
            second: measured(format!("{second}/rate"), rate, each(&|pair| pair.second)),
            ratio: measured(
                format!("{first}-by-{second}/ratio"),
                "ratio",
                steady.iter().filter_map(|pair| pair.ratio()).collect(),
            ),
            cache_line: measured(
                format!("{second}/cache-line-round-trip"),
                "ns",
                steady.iter().flat_map(|pair| pair.lines.clone()).collect(),
            ),
            kept: steady.len(),
            dropped: pairs.len() - steady.len(),
        }
    }

    /// All measurements, for the report, the number of dropped pairs among them.
    pub fn measurements(&self) -> impl Iterator<Item = Measurement> {
        let place = self.second.name.trim_end_matches("/rate");
        let dropped = Measurement::new(format!("{place}/pairs-dropped"), "pairs", [self.dropped as f64]);
        [&self.first, &self.second, &self.ratio, &self.cache_line]
            .map(Clone::clone)
            .into_iter()
            .chain([dropped])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(first: f64, second: f64, lines: &[f64]) -> Pairing {
        Pairing { first, second, lines: lines.to_vec() }
    }

    #[test]
    fn pair_is_steady_while_round_trips_stay_within_a_quarter() {
        assert!(pair(1.0, 1.0, &[]).steady());
        assert!(pair(1.0, 1.0, &[80.0, 100.0, 90.0]).steady());
        assert!(!pair(1.0, 1.0, &[80.0, 101.0, 90.0]).steady());
        assert!(!pair(1.0, 1.0, &[60.0, 60.0, 400.0]).steady());
    }

    #[test]
    fn unsteady_pairs_are_dropped_counted_and_leave_no_trace_in_the_figures() {
        let pairs = [
            pair(10.0, 5.0, &[60.0, 61.0, 62.0]),
            pair(90.0, 1.0, &[60.0, 300.0, 300.0]),
            pair(12.0, 8.0, &[62.0, 60.0, 61.0]),
            pair(9.0, 9.0, &[70.0, 70.0, 70.0]),
        ];
        let comparison = Comparison::of("to/64", ["A", "B"], &pairs);
        assert_eq!((comparison.kept, comparison.dropped), (3, 1));
        assert_eq!((comparison.first.median, comparison.first.min, comparison.first.max), (10.0, 9.0, 12.0));
        assert_eq!(comparison.second.samples, [5.0, 8.0, 9.0]);
        assert_eq!((comparison.ratio.median, comparison.ratio.min, comparison.ratio.max), (1.5, 1.0, 2.0));
        assert_eq!(comparison.cache_line.samples.len(), 9);
    }

    #[test]
    fn ratio_is_of_pairs_not_of_medians() {
        let lines = [60.0; 3];
        let pairs = [pair(1.0, 2.0, &lines), pair(4.0, 4.0, &lines), pair(9.0, 3.0, &lines)];
        assert_eq!(Comparison::of("to/64", ["A", "B"], &pairs).ratio.median, 1.0);
    }

    #[test]
    fn comparison_without_a_steady_pair_is_skipped_not_zero() {
        let comparison = Comparison::of("to/64", ["A", "C"], &[pair(1.0, 2.0, &[50.0, 500.0, 50.0])]);
        assert_eq!(comparison.ratio.status, Status::Skipped);
        let names: Vec<String> = comparison.measurements().map(|result| result.name).collect();
        assert_eq!(
            names,
            [
                "to/64/A-beside-C/rate",
                "to/64/C/rate",
                "to/64/A-by-C/ratio",
                "to/64/C/cache-line-round-trip",
                "to/64/C/pairs-dropped"
            ]
        );
    }

    #[test]
    fn back_end_that_moved_nothing_has_no_ratio() {
        assert_eq!(pair(1.0, 0.0, &[]).ratio(), None);
    }
}
