//! Blocks whose bytes follow from their place and a number, so that whoever reads one can say whether it is the one that was written.

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// Fill `block` with what block `index` holds after it was written for the `number`th time.
pub fn fill(block: &mut [u8], index: u64, number: u64) {
    let (head, body) = block.split_at_mut(16);
    head[..8].copy_from_slice(&index.to_le_bytes());
    head[8..].copy_from_slice(&number.to_le_bytes());
    let mut word = index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    for piece in body.chunks_mut(8) {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]);
    }
}

/// Whether `block` is what [`fill`] makes of this.
///
/// # Errors
/// What is wrong with it.
pub fn check(block: &[u8], index: u64, number: u64) -> Result<(), String> {
    let mut wanted = vec![0; block.len()];
    fill(&mut wanted, index, number);
    let Some(at) = block.iter().zip(&wanted).position(|(is, should)| is != should) else { return Ok(()) };
    let word = |at: usize| {
        block.get(at..at + 8).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_le_bytes(*word))
    };
    Err(format!(
        "block {index} is not what was written for the {number}th time: it differs from byte {at} on, and says that it is block {} of the \
         {}th time",
        word(0),
        word(8)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_itself_and_no_other() {
        let mut block = vec![0; BLOCK];
        fill(&mut block, 7, 3);
        assert_eq!(check(&block, 7, 3), Ok(()));
        assert!(check(&block, 7, 4).is_err());
        assert!(check(&block, 8, 3).is_err());
        block[BLOCK - 1] ^= 1;
        let said = check(&block, 7, 3).expect_err("a changed byte");
        assert!(said.contains("from byte 4095"), "{said}");
    }
}
