//! Whether guest memory has certain bytes. It is copied piece by piece first, since others write to it meanwhile.

use mdev_dma::GuestSlice;

/// Bytes that are copied at once.
const PIECE: usize = 512;

/// Whether guest memory has these bytes, as many as there are.
pub(crate) fn is_equal(guest: &GuestSlice<'_>, bytes: &[u8]) -> bool {
    let mut copy = [0; PIECE];
    let mut pieces = bytes.chunks(PIECE).enumerate();
    guest.len() == bytes.len()
        && pieces.all(|(index, piece)| {
            let there = guest.subslice(index.saturating_mul(PIECE), piece.len());
            let copied = there.map_or(0, |there| there.copy_to(&mut copy));
            copy.get(..copied) == Some(piece)
        })
}

/// Whether two pieces of memory that others write to have the same bytes.
pub(super) fn is_same(one: &GuestSlice<'_>, other: &GuestSlice<'_>) -> bool {
    let mut copy = [0; PIECE];
    let mut starts = (0..one.len()).step_by(PIECE);
    one.len() == other.len()
        && starts.all(|start| {
            let len = one.len().saturating_sub(start).min(PIECE);
            let (a, b) = (one.subslice(start, len), other.subslice(start, len));
            let copied = a.map_or(0, |a| a.copy_to(&mut copy));
            b.is_some_and(|b| is_equal(&b, copy.get(..copied).unwrap_or_default()))
        })
}
