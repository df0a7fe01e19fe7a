//! Which processors do what.
use super::roundtrip;

/// The processors of the two sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The workers of the device.
    pub device: Vec<usize>,
    /// The driving threads.
    pub driver: Vec<usize>,
}

impl Layout {
    /// As many processors on each side as there are pairs, and no more than half of all. With a single one nobody is pinned.
    pub fn of(cpus: &[usize], queue_pairs: u16) -> Self {
        let each = (cpus.len() / 2).min(queue_pairs.into());
        let (device, rest) = cpus.split_at(each);
        Layout { device: device.to_vec(), driver: rest.iter().take(each).copied().collect() }
    }

    /// The cache line's round trip between the first processor of each side, in nanoseconds.
    pub fn round_trip(&self) -> Option<f64> {
        roundtrip::between(*self.device.first()?, *self.driver.first()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_split_between_device_and_driver() {
        let layout = |cpus: &[usize], pairs| Layout::of(cpus, pairs);
        assert_eq!(layout(&[0, 1], 1), Layout { device: vec![0], driver: vec![1] });
        assert_eq!(layout(&[0, 1], 4), Layout { device: vec![0], driver: vec![1] });
        assert_eq!(layout(&[2, 3, 5, 7, 8], 4), Layout { device: vec![2, 3], driver: vec![5, 7] });
        assert_eq!(layout(&[0], 1), Layout { device: vec![], driver: vec![] });
        assert_eq!(layout(&[0], 1).round_trip(), None);
    }
}
