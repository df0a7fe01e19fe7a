//! Latencies of sampled packets.
use hdrhistogram::Histogram;
use std::time::{Duration, Instant};

/// The greatest latency that is told apart: later ones count as this.
const GREATEST: Duration = Duration::from_secs(10);

/// Latencies in nanoseconds, to three digits, up to ten seconds.
#[derive(Clone, Debug)]
pub struct Latencies(Option<Histogram<u64>>);

impl Latencies {
    /// None yet.
    pub fn new() -> Self {
        // Bounds and digits are constants that the crate accepts; were they not, nothing would be recorded.
        Latencies(Histogram::new_with_bounds(1, GREATEST.as_nanos() as u64, 3).ok())
    }

    /// Adds one.
    pub fn record(&mut self, latency: Duration) {
        self.record_ns(latency.as_nanos() as u64);
    }

    /// Adds one, in nanoseconds.
    #[inline]
    pub fn record_ns(&mut self, latency: u64) {
        if let Some(histogram) = &mut self.0 {
            histogram.saturating_record(latency);
        }
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Latencies) {
        if let (Some(histogram), Some(other)) = (&mut self.0, &other.0) {
            // Fails only if a value does not fit; both have the same bounds.
            let _ = histogram.add(other);
        }
    }

    /// How many were recorded.
    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, Histogram::len)
    }

    /// The least and the greatest in microseconds; `None` without samples.
    pub fn extremes_us(&self) -> Option<[f64; 2]> {
        let histogram = self.0.as_ref().filter(|histogram| !histogram.is_empty())?;
        Some([histogram.min() as f64 / 1e3, histogram.max() as f64 / 1e3])
    }

    /// The latency in microseconds that `share` (0 to 1) of the samples do not exceed; `None` without samples.
    pub fn quantile_us(&self, share: f64) -> Option<f64> {
        let histogram = self.0.as_ref().filter(|histogram| !histogram.is_empty())?;
        Some(histogram.value_at_quantile(share) as f64 / 1e3)
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

/// Follows one packet at a time: in every `interval`-th burst a packet is marked, and no other until it is back.
#[derive(Debug)]
pub struct Probe {
    interval: u32,
    bursts: u32,
    marked: Option<(u64, Instant)>,
}

impl Probe {
    /// Marks one packet in each `interval` bursts.
    pub fn every(interval: u32) -> Self {
        Probe { interval: interval.max(1), bursts: 0, marked: None }
    }

    /// A burst was sent whose last packet is `packet`; true if this one is followed from now on.
    #[inline]
    pub fn burst(&mut self, packet: u64) -> bool {
        self.bursts = self.bursts.wrapping_add(1);
        if self.bursts < self.interval || self.marked.is_some() {
            return false;
        }
        self.bursts = 0;
        self.marked = Some((packet, Instant::now()));
        true
    }

    /// The packet that is followed.
    #[inline]
    pub fn marked(&self) -> Option<u64> {
        self.marked.map(|(packet, _)| packet)
    }

    /// The marked packet is back: its latency.
    pub fn back(&mut self) -> Option<Duration> {
        self.marked.take().map(|(_, since)| since.elapsed())
    }

    /// The marked packet was lost.
    pub fn forget(&mut self) {
        self.marked = None;
    }
}

/// Follows every packet: when each was sent, by a place of its own while it is under way.
#[derive(Clone, Debug)]
pub struct Stamps(Vec<Option<Instant>>);

impl Stamps {
    /// Of packets of which at most `places` are under way at a time.
    pub fn new(places: u16) -> Self {
        Stamps(vec![None; places.max(1).into()])
    }

    /// The packet at `place` (modulo the number of places) was sent.
    #[inline]
    pub fn start(&mut self, place: u64, now: Instant) {
        let count = self.0.len() as u64;
        if let Some(stamp) = self.0.get_mut((place % count) as usize) {
            *stamp = Some(now);
        }
    }

    /// The packet at `place` is back: its latency; `None` if it was not sent.
    #[inline]
    pub fn stop(&mut self, place: u64) -> Option<Duration> {
        let count = self.0.len() as u64;
        let stamp = self.0.get_mut((place % count) as usize)?.take()?;
        Some(stamp.elapsed())
    }
}

/// Which packets' latencies are taken.
#[derive(Debug)]
pub enum Timing {
    /// Some.
    Sampled(Probe),
    /// All.
    Every(Stamps),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_tell_each_latency_once() {
        let mut stamps = Stamps::new(4);
        let now = Instant::now();
        stamps.start(2, now);
        stamps.start(7, now);
        assert!(stamps.stop(6).is_some(), "place 2 again, modulo 4");
        assert_eq!((stamps.stop(2), stamps.stop(0)), (None, None));
        assert!(stamps.stop(7).is_some());
    }

    #[test]
    fn quantiles_are_of_the_recorded_values_in_microseconds() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.quantile_us(0.5), None);
        for micros in 1..=1000 {
            latencies.record(Duration::from_micros(micros));
        }
        let near = |share: f64, expected: f64| {
            let value = latencies.quantile_us(share).unwrap();
            assert!((value - expected).abs() / expected < 0.002, "{share}: {value}");
        };
        near(0.5, 500.0);
        near(0.99, 990.0);
        near(0.999, 999.0);
        assert_eq!(latencies.count(), 1000);
    }

    #[test]
    fn latency_beyond_the_greatest_is_counted_as_the_greatest() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::from_secs(100));
        let value = latencies.quantile_us(0.5).unwrap();
        assert!((9.9e6..=1.01e7).contains(&value), "{value}");
    }

    #[test]
    fn merged_latencies_hold_both() {
        let (mut first, mut second) = (Latencies::new(), Latencies::default());
        first.record(Duration::from_micros(1));
        second.record(Duration::from_micros(100));
        first.merge(&second);
        assert_eq!(first.count(), 2);
        assert!(first.quantile_us(1.0).unwrap() >= 99.9);
    }

    #[test]
    fn probe_follows_one_packet_at_a_time_every_interval() {
        let mut probe = Probe::every(3);
        assert!(!probe.burst(1) && !probe.burst(2));
        assert!(probe.burst(3));
        assert_eq!(probe.marked(), Some(3));
        assert!((0..10).all(|packet| !probe.burst(packet)));
        assert!(probe.back().is_some());
        assert_eq!((probe.back(), probe.marked()), (None, None));
        assert!(probe.burst(20), "the interval passed while the last one was out");
        probe.forget();
        assert!(probe.back().is_none());
    }
}
