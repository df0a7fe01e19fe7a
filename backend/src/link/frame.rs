//! Frames where they are: pieces of guest memory.

use mdev_dma::GuestSlice;

/// No page is smaller.
const SMALLEST_PAGE: usize = 4096;

/// A frame the guest sends, without its virtio header. Its bytes may change while they are read.
#[derive(Copy, Clone)]
pub(crate) struct Frame<'a, 'g> {
    pieces: &'a [GuestSlice<'g>],
    len: usize,
}

/// Room for a frame in buffers the guest receives into, virtio header included.
#[derive(Copy, Clone)]
pub(crate) struct Room<'a, 'g> {
    pieces: &'a [GuestSlice<'g>],
}

impl<'a, 'g> Frame<'a, 'g> {
    /// A frame of `len` bytes, which is what the pieces add up to.
    #[inline(always)]
    pub(crate) fn new(pieces: &'a [GuestSlice<'g>], len: usize) -> Self {
        Self { pieces, len }
    }

    /// Its bytes.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where it is.
    #[inline(always)]
    pub(crate) fn pieces(&self) -> &'a [GuestSlice<'g>] {
        self.pieces
    }

    /// The pieces from byte `offset` on.
    pub(crate) fn from(&self, offset: usize) -> impl Iterator<Item = GuestSlice<'g>> + use<'a, 'g> {
        tail(self.pieces, offset)
    }

    /// Copies the frame, or as much of it as fits, and says how many bytes.
    #[inline]
    pub(crate) fn copy_to(&self, out: &mut [u8]) -> usize {
        if let [piece] = self.pieces {
            return piece.copy_to(out);
        }
        let mut done = 0usize;
        for piece in self.pieces {
            let Some(rest) = out.get_mut(done..) else { break };
            done = done.saturating_add(piece.copy_to(rest));
        }
        done
    }
}

impl<'a, 'g> Room<'a, 'g> {
    /// The pieces of one or more chains, in order.
    #[inline(always)]
    pub(crate) fn new(pieces: &'a [GuestSlice<'g>]) -> Self {
        Self { pieces }
    }

    /// The pieces from byte `offset` on.
    pub(crate) fn from(&self, offset: usize) -> impl Iterator<Item = GuestSlice<'g>> + use<'a, 'g> {
        tail(self.pieces, offset)
    }

    /// Writes `bytes` at `offset`. What does not fit is left out.
    #[inline]
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        if let Some(first) = self.pieces.first()
            && let Some(target) = first.subslice(offset, bytes.len())
        {
            target.copy_from(bytes);
            return;
        }
        let mut rest = bytes;
        for target in tail(self.pieces, offset) {
            let done = target.copy_from(rest);
            rest = rest.get(done..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
        }
    }

    /// Copies a frame to `offset`, from guest memory to guest memory, once. What does not fit is left out.
    #[inline]
    pub(crate) fn write_frame(&self, offset: usize, frame: &Frame<'_, '_>) {
        if let ([source], Some(first)) = (frame.pieces, self.pieces.first())
            && let Some(target) = first.subslice(offset, source.len())
        {
            source.copy_to_slice(&target);
            return;
        }
        let mut sources = frame.pieces.iter().copied();
        let mut source = sources.next();
        for mut target in tail(self.pieces, offset) {
            while let Some(from) = source
                && !target.is_empty()
            {
                let done = from.copy_to_slice(&target);
                target = skip(target, done);
                source = if done < from.len() { Some(skip(from, done)) } else { sources.next() };
            }
        }
    }
}

/// Reads a byte of every page of these pieces, for whoever has learned from the kernel that something of them is lost:
/// then it is lost for us too, and its window is known for it.
#[cold]
pub(crate) fn touch<'g>(pieces: impl Iterator<Item = GuestSlice<'g>>) {
    for piece in pieces {
        let last = piece.len().checked_sub(1);
        for offset in (0..piece.len()).step_by(SMALLEST_PAGE).chain(last) {
            std::hint::black_box(piece.read::<u8>(offset));
        }
    }
}

/// The pieces from byte `offset` on.
fn tail<'a, 'g>(
    pieces: &'a [GuestSlice<'g>],
    mut offset: usize,
) -> impl Iterator<Item = GuestSlice<'g>> + use<'a, 'g> {
    pieces.iter().filter_map(move |piece| {
        let skipped = offset.min(piece.len());
        offset = offset.saturating_sub(skipped);
        (skipped < piece.len()).then(|| skip(*piece, skipped))
    })
}

fn skip<'g>(slice: GuestSlice<'g>, count: usize) -> GuestSlice<'g> {
    slice.subslice(count, slice.len().saturating_sub(count)).unwrap_or(slice)
}
