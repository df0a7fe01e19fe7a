//! Scatter-gather lists: the pieces of guest memory that one request means, in order.

use smallvec::SmallVec;

use crate::GuestSlice;

/// Pieces kept without an allocation.
const INLINE: usize = 8;

/// An ordered list of guest slices, used as if they were one buffer.
///
/// Pieces may overlap and may alias those of another list: both come from a hostile guest. A copy between such lists
/// moves whatever bytes are there when it gets to them, piece by piece in order.
#[derive(Clone, Debug, Default)]
pub struct SgList<'a> {
    slices: SmallVec<[GuestSlice<'a>; INLINE]>,
    len: u64,
}

impl<'a> SgList<'a> {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a piece; an empty one is dropped.
    #[inline]
    pub fn push(&mut self, slice: GuestSlice<'a>) {
        if !slice.is_empty() {
            // Slices are mapped memory, below 2^47 bytes each: no list that fits into memory saturates.
            self.len = self.len.saturating_add(slice.len() as u64);
            self.slices.push(slice);
        }
    }

    /// Length in bytes, all pieces together.
    #[inline]
    pub fn len_bytes(&self) -> u64 {
        self.len
    }

    /// Whether there is no byte in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// The pieces in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = GuestSlice<'a>> + '_ {
        self.slices.iter().copied()
    }

    /// Drops all pieces; the room for them stays.
    #[inline]
    pub fn clear(&mut self) {
        self.slices.clear();
        self.len = 0;
    }

    /// Copies from the list, beginning `offset` bytes into it, to `dst`. Returns the bytes copied: fewer than
    /// `dst.len()` where the list ends first.
    pub fn copy_to(&self, offset: u64, dst: &mut [u8]) -> usize {
        let mut rest = dst;
        let mut done = 0;
        for piece in self.pieces_from(offset) {
            if rest.is_empty() {
                break;
            }
            let n = piece.copy_to(rest);
            done += n;
            rest = rest.get_mut(n..).unwrap_or_default();
        }
        done
    }

    /// Copies `src` into the list, beginning `offset` bytes into it. Returns the bytes copied.
    pub fn copy_from(&self, offset: u64, src: &[u8]) -> usize {
        let mut rest = src;
        let mut done = 0;
        for piece in self.pieces_from(offset) {
            if rest.is_empty() {
                break;
            }
            let n = piece.copy_from(rest);
            done += n;
            rest = rest.get(n..).unwrap_or_default();
        }
        done
    }

    /// Copies at most `len` bytes from the list, beginning `offset` bytes into it, to `dst`, beginning `dst_offset`
    /// bytes into that. Returns the bytes copied: fewer where either list ends first. One copy, from page to page.
    pub fn copy_to_sg(&self, offset: u64, dst: &SgList<'_>, dst_offset: u64, len: u64) -> u64 {
        let mut sources = self.pieces_from(offset);
        let mut targets = dst.pieces_from(dst_offset);
        let (mut source, mut target) = (sources.next(), targets.next());
        let mut left = len;
        while let (Some(from), Some(to)) = (source, target) {
            let room = to.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let Some(n) = to.subslice(0, room).map(|to| from.copy_to_slice(&to)).filter(|n| *n > 0) else {
                break;
            };
            left -= n as u64;
            source = rest_of(from, n).or_else(|| sources.next());
            target = rest_of(to, n).or_else(|| targets.next());
        }
        len - left
    }

    /// The pieces from the byte at `offset` on.
    fn pieces_from(&self, offset: u64) -> impl Iterator<Item = GuestSlice<'a>> + '_ {
        let mut skip = offset;
        self.iter().filter_map(move |piece| {
            let len = piece.len() as u64;
            if skip >= len {
                skip -= len;
                return None;
            }
            // Below `len`, which came from a usize.
            let rest = rest_of(piece, skip as usize);
            skip = 0;
            rest
        })
    }
}

/// What follows the first `n` bytes; `None` if nothing does.
fn rest_of(slice: GuestSlice<'_>, n: usize) -> Option<GuestSlice<'_>> {
    let left = slice.len().checked_sub(n)?;
    if left == 0 { None } else { slice.subslice(n, left) }
}

impl<'a> Extend<GuestSlice<'a>> for SgList<'a> {
    fn extend<I: IntoIterator<Item = GuestSlice<'a>>>(&mut self, slices: I) {
        for slice in slices {
            self.push(slice);
        }
    }
}

#[cfg(test)]
mod tests;
