//! Chance that can be had again: numbers that follow from a seed and the number of a round.

/// A sequence of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of one round.
    pub fn of(seed: u64, round: u64) -> Self {
        Random(mixed(seed) ^ mixed(round.wrapping_add(0x5851_f42d_4c95_7f2d)))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// A number less than `end`; 0 if that is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number().checked_rem(end).unwrap_or(0)
    }

    /// Spins for a random while, mostly a short one: up to some tens of microseconds.
    pub fn spin(&mut self) {
        let longest = 1 << self.below(13);
        for _ in 0..self.below(longest) {
            std::hint::spin_loop();
        }
    }
}

/// A bijection that makes neighbours unlike (the finaliser of SplitMix64).
fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
