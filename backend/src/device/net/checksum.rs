//! The Internet checksum (RFC 1071), over frames where they are.

use crate::link::Frame;

/// Bytes that are looked at together.
const CHUNK: usize = 2048;

/// A sum in the making: bytes in the order of the network, in words of two.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Sum {
    /// Words so far. Carries are folded in at the end: 2^48 words are needed to lose one.
    words: u64,
    /// The last byte added was the first of a word.
    odd: bool,
}

impl Sum {
    /// Adds bytes behind those before.
    pub(super) fn add(mut self, bytes: &[u8]) -> Self {
        let mut bytes = bytes;
        if self.odd
            && let Some((byte, rest)) = bytes.split_first()
        {
            self.words = self.words.wrapping_add(u64::from(*byte));
            self.odd = false;
            bytes = rest;
        }
        let (words, rest) = bytes.as_chunks::<2>();
        self.words =
            words.iter().fold(self.words, |sum, word| sum.wrapping_add(u64::from(u16::from_be_bytes(*word))));
        if let [byte] = rest {
            self.words = self.words.wrapping_add(u64::from(*byte) << 8);
            self.odd = true;
        }
        self
    }

    /// Adds the bytes of a frame from `offset` on. Each is read once.
    pub(super) fn add_frame(self, frame: &Frame<'_, '_>, offset: usize) -> Self {
        let mut buffer = [0; CHUNK];
        let mut sum = self;
        for piece in frame.from(offset) {
            let mut at = 0usize;
            while let Some(rest) = piece.subslice(at, piece.len().saturating_sub(at).min(CHUNK))
                && !rest.is_empty()
            {
                let done = rest.copy_to(&mut buffer);
                sum = sum.add(buffer.get(..done).unwrap_or_default());
                at = at.saturating_add(done);
            }
        }
        sum
    }

    /// The checksum.
    pub(super) fn finish(self) -> u16 {
        let mut sum = self.words;
        while sum > 0xffff {
            sum = (sum & 0xffff).wrapping_add(sum >> 16);
        }
        !(sum as u16)
    }

    /// The checksum as TCP and UDP send it: UDP's zero says that there is none, and the other zero is as good.
    pub(super) fn finish_transport(self) -> u16 {
        match self.finish() {
            0 => u16::MAX,
            sum => sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, with 16 bits and the carry after each addition.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0u16;
        for word in bytes.chunks(2) {
            let word = u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]);
            let (added, carry) = sum.overflowing_add(word);
            sum = added + u16::from(carry);
        }
        !sum
    }

    proptest! {
        #[test]
        fn sum_is_that_of_the_definition_however_it_is_cut(
            bytes in prop::collection::vec(any::<u8>(), 0..300), cuts in prop::collection::vec(1usize..40, 0..20),
        ) {
            let (mut sum, mut rest) = (Sum::default(), bytes.as_slice());
            for cut in cuts {
                let (part, after) = rest.split_at(cut.min(rest.len()));
                sum = sum.add(part);
                rest = after;
            }
            prop_assert_eq!(sum.add(rest).finish(), naive(&bytes));
        }
    }

    #[test]
    fn sum_of_the_example_in_the_rfc() {
        assert_eq!(Sum::default().add(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]).finish(), !0xddf2);
    }

    #[test]
    fn zero_of_a_transport_is_the_other_zero() {
        assert_eq!(Sum::default().add(&[0xff; 40]).finish(), 0);
        assert_eq!(Sum::default().add(&[0xff; 40]).finish_transport(), 0xffff);
    }
}
