//! Numbers that look random and can be had again: hostile peers must do the same every time, unless a test is asked for something else.

/// The environment variable that seeds all tests anew: any number.
pub const SEED: &str = "MDEV_SEED";

/// A sequence of numbers.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this name, the same every time unless [`SEED`] is set. It prints its seed, which is seen when the test fails.
    pub fn seeded(name: &str) -> Random {
        let chosen = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).unwrap_or(1u64);
        println!("{name}: {SEED}={chosen}");
        let seed = name.bytes().fold(chosen, |seed, byte| step(seed ^ u64::from(byte)));
        Random(seed)
    }

    /// The sequence of a number.
    pub fn of_number(seed: u64) -> Random {
        Random(step(seed))
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        step(self.0)
    }

    /// A number less than `end`; 0 if that is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number().checked_rem(end).unwrap_or(0)
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub fn of<'t, T>(&mut self, choices: &'t [T]) -> &'t T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// Fills bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let word = self.number().to_le_bytes();
            piece.copy_from_slice(&word[..piece.len()]);
        }
    }
}

/// One step of a mixer: neighbouring numbers become unlike.
fn step(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_repeat_and_differ_by_name() {
        let numbers = |name| {
            let mut random = Random::seeded(name);
            [random.number(), random.number(), random.below(10), u64::from(random.one_in(2))]
        };
        assert_eq!(numbers("a"), numbers("a"));
        assert_ne!(numbers("a"), numbers("b"));
        assert!(numbers("a")[2] < 10);
    }

    #[test]
    fn every_choice_is_made_and_bytes_are_filled() {
        let mut random = Random::seeded("choices");
        let mut seen = [false; 5];
        (0..200).for_each(|_| seen[*random.of(&[0, 1, 2, 3, 4])] = true);
        assert_eq!(seen, [true; 5]);
        let mut bytes = [0; 13];
        random.fill(&mut bytes);
        assert!(bytes.iter().filter(|byte| **byte == 0).count() < 5);
        assert_eq!(random.below(0), 0);
    }
}
