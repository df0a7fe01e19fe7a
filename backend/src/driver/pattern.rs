//! What verified writes consist of: sectors that say what they are.
//!
//! A sector is 64 words, little-endian: a magic number, the seed of the run, the number of its block, its own number within the block,
//! the generation (the number of the write), a checksum of these five, and 58 words that follow from the checksum. So every byte of
//! it is checked, and whatever sector is found anywhere tells where it belongs.

/// Bytes of a sector.
pub const SECTOR: usize = 512;

const WORD: usize = size_of::<u64>();
/// "mdevdblk".
const MAGIC: u64 = u64::from_be_bytes(*b"mdevdblk");
/// The words before the checksum.
const FIELDS: usize = 5;
/// An odd number without a pattern: 2^64 by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What a sector turned out to be.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// None of this run's sectors.
    Blank,
    /// One of this run's, but its bytes are not those of one write.
    Broken,
    /// A sector as it was written.
    Whole {
        /// The number of its block.
        block: u64,
        /// Its number within the block.
        sector: u64,
        /// The number of the write.
        generation: u64,
    },
}

/// Writes what the write `generation` of the run `seed` puts into the block `block`. A rest of less than a sector is left alone.
pub fn fill(seed: u64, block: u64, generation: u64, bytes: &mut [u8]) {
    for (number, sector) in bytes.chunks_exact_mut(SECTOR).enumerate() {
        let fields = [MAGIC, seed, block, number as u64, generation];
        let checksum = checksum(fields);
        let words = fields.into_iter().chain(body(checksum));
        for (place, word) in sector.chunks_exact_mut(WORD).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// What a sector is, as the run `seed` sees it.
pub fn look(seed: u64, sector: &[u8]) -> Found {
    let mut words = sector.chunks_exact(WORD).map(|word| {
        // A chunk has as many bytes as a word.
        u64::from_le_bytes(word.try_into().unwrap_or_default())
    });
    let mut fields = [0; FIELDS];
    for field in &mut fields {
        *field = words.next().unwrap_or(0);
    }
    let [magic, of_run, block, sector, generation] = fields;
    if magic != MAGIC || of_run != seed {
        return Found::Blank;
    }
    match words.eq(body(checksum(fields))) {
        true => Found::Whole { block, sector, generation },
        false => Found::Broken,
    }
}

/// The checksum, and the words that follow from it: as many as fill a sector.
fn body(checksum: u64) -> impl Iterator<Item = u64> {
    let rest = SECTOR / WORD - FIELDS;
    (0..rest as u64).map(move |place| checksum.rotate_left((place % 61) as u32) ^ place.wrapping_mul(STEP))
}

fn checksum(fields: [u64; FIELDS]) -> u64 {
    fields.into_iter().fold(STEP, |sum, field| mix(sum ^ field))
}

/// A number that depends on every bit of another (the finish of SplitMix64).
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(STEP);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sectors_that_were_written_tell_what_they_are() {
        let mut bytes = vec![0; 4 * SECTOR];
        fill(7, 1 << 40, 9, &mut bytes);
        for (number, sector) in bytes.chunks(SECTOR).enumerate() {
            let whole = Found::Whole { block: 1 << 40, sector: number as u64, generation: 9 };
            assert_eq!(look(7, sector), whole);
            assert_eq!(look(8, sector), Found::Blank, "a sector of another run");
        }
        assert_eq!(look(7, &[0; SECTOR]), Found::Blank);
        assert_eq!(look(7, &bytes[..100]), Found::Broken);
    }

    proptest! {
        #[test]
        fn every_changed_byte_is_seen(at in 0..SECTOR, change in 1u8..) {
            let mut bytes = vec![0; SECTOR];
            fill(7, 3, 9, &mut bytes);
            bytes[at] ^= change;
            // Before the end of the seed it is no sector of this run any more.
            prop_assert_eq!(look(7, &bytes), if at < 2 * WORD { Found::Blank } else { Found::Broken });
        }
    }
}
