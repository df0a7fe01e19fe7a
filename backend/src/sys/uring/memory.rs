//! What the bytes of an operation move to or from.

use std::ops::Range;

use mdev_pin::Pin;
use rustix::io::Errno;
use smallvec::SmallVec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::store::is_equal;

/// Bytes that go through a buffer at once, at most.
const DETOUR: usize = 1 << 20;
/// Pieces that the kernel takes at once (`UIO_MAXIOV`).
const MAX_PARTS: usize = 1024;
/// Bytes that one operation moves at most: what the kernel does in one piece, in whole pages.
const MAX_BYTES: usize = 0x7fff_f000;
const PAGE: usize = 4096;

#[derive(Clone, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

static ZEROS: [Page; 16] = [const { Page([0; PAGE]) }; 16];

/// A piece of memory, laid out as `struct iovec`.
#[derive(Copy, Clone, Debug)]
#[repr(C)]
pub(super) struct Part {
    pub(super) address: usize,
    pub(super) len: usize,
}

/// Memory that the kernel moves bytes to or from: pinned guest memory, or zeros. What has been moved is left behind.
pub(crate) struct Memory {
    pins: SmallVec<[Pin; 2]>,
    /// What the pins hold, or zeros; neighbours are one part. What is left begins at `first`.
    parts: SmallVec<[Part; 2]>,
    first: usize,
    /// Bytes that have been moved.
    moved: usize,
    /// Bytes that have not.
    left: usize,
    detour: Option<Box<Detour>>,
}

/// A buffer that stands for the first bytes of what is left.
struct Detour {
    pages: Vec<Page>,
    part: Part,
}

impl Memory {
    /// None: for operations that move nothing.
    pub(crate) fn none() -> Memory {
        Memory::of(SmallVec::new(), SmallVec::new())
    }

    /// Guest memory.
    pub(crate) fn pinned(pins: SmallVec<[Pin; 2]>) -> Memory {
        let mut parts: SmallVec<[Part; 2]> = SmallVec::new();
        for slice in pins.iter().flat_map(Pin::slices) {
            let (address, len) = slice.as_io_vec_parts();
            match parts.last_mut() {
                Some(last) if last.address.checked_add(last.len) == Some(address) => {
                    last.len = last.len.saturating_add(len);
                }
                _ => parts.push(Part { address, len }),
            }
        }
        Memory::of(pins, parts)
    }

    /// As many zeros, or as one operation writes at once.
    pub(crate) fn zeros(len: u64) -> Memory {
        let zeros = ZEROS.as_bytes();
        let mut left = usize::try_from(len).unwrap_or(usize::MAX).min(DETOUR);
        let mut parts = SmallVec::new();
        while left > 0 {
            let len = left.min(zeros.len());
            parts.push(Part { address: zeros.as_ptr().expose_provenance(), len });
            left = left.saturating_sub(len);
        }
        Memory::of(SmallVec::new(), parts)
    }

    /// A buffer alone, for so many bytes that nobody wants: to [go by](Memory::go_by_buffer).
    pub(crate) fn nowhere(len: u64) -> Memory {
        let mut memory = Memory::none();
        memory.left = usize::try_from(len).unwrap_or(usize::MAX);
        memory
    }

    fn of(pins: SmallVec<[Pin; 2]>, parts: SmallVec<[Part; 2]>) -> Memory {
        let left = parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.len));
        Memory { pins, parts, first: 0, moved: 0, left, detour: None }
    }

    /// Bytes that have not been moved.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Whether it is no guest memory, and not to be written to.
    pub(super) fn is_zeros(&self) -> bool {
        self.pins.is_empty() && !self.parts.is_empty()
    }

    /// Whether what is left begins and ends at multiples of `unit`, a power of two, piece by piece.
    pub(crate) fn is_aligned(&self, unit: usize) -> bool {
        let low = unit.saturating_sub(1);
        self.rest().iter().all(|part| (part.address | part.len) & low == 0)
    }

    /// Whether guest memory among it was lost. To be asked after the last access.
    pub(crate) fn poisoned(&self) -> bool {
        self.pins.iter().any(Pin::poisoned)
    }

    /// The next operation goes through a buffer that is aligned to pages, and moves as much as that holds; one that is to
    /// write is given the bytes now.
    ///
    /// # Errors
    /// No memory for it.
    pub(crate) fn go_by_buffer(&mut self, to_write: bool) -> Result<(), Errno> {
        let len = self.left.min(DETOUR);
        let mut pages = Vec::new();
        pages.try_reserve_exact(len.div_ceil(PAGE)).map_err(|_| Errno::NOMEM)?;
        pages.resize(len.div_ceil(PAGE), Page([0; PAGE]));
        let bytes = pages.as_mut_bytes().get_mut(..len).ok_or(Errno::NOMEM)?;
        if to_write {
            self.each(len, |at, slice| {
                slice.copy_to(bytes.get_mut(at).unwrap_or_default());
            });
        }
        let part = Part { address: bytes.as_mut_ptr().expose_provenance(), len };
        self.detour = Some(Box::new(Detour { pages, part }));
        Ok(())
    }

    /// Whether the first `bytes` that were read into the buffer are those of guest memory. False without a buffer.
    pub(crate) fn is_same(&self, bytes: usize) -> bool {
        let Some(detour) = &self.detour else { return false };
        let mut same = true;
        self.each(bytes.min(self.left), |at, slice| {
            same &= is_equal(&slice, detour.pages.as_bytes().get(at).unwrap_or_default());
        });
        same
    }

    /// The next operation takes what is left as it is.
    pub(crate) fn go_straight(&mut self) {
        self.detour = None;
    }

    /// The operation has moved so many bytes: what was read into a buffer is given to the guest, and the rest is left.
    pub(crate) fn moved(&mut self, bytes: usize, was_read: bool) {
        let bytes = bytes.min(self.left);
        if let Some(detour) = self.detour.take()
            && was_read
        {
            self.each(bytes, |at, slice| {
                slice.copy_from(detour.pages.as_bytes().get(at).unwrap_or_default());
            });
        }
        self.moved = self.moved.saturating_add(bytes);
        self.left = self.left.saturating_sub(bytes);
        let mut behind = bytes;
        while let Some(part) = self.parts.get_mut(self.first) {
            if behind < part.len {
                part.address = part.address.saturating_add(behind);
                part.len = part.len.saturating_sub(behind);
                break;
            }
            behind = behind.saturating_sub(part.len);
            self.first = self.first.saturating_add(1);
        }
    }

    /// What the next operation is given. The kernel may use the parts for as long as this memory stays where it is and is
    /// not changed, and the bytes behind them for as long as it lives and is not changed.
    pub(super) fn parts(&self) -> &[Part] {
        match &self.detour {
            Some(detour) => std::slice::from_ref(&detour.part),
            None => {
                let rest = self.rest();
                rest.get(..MAX_PARTS).unwrap_or(rest)
            }
        }
    }

    fn rest(&self) -> &[Part] {
        self.parts.get(self.first..).unwrap_or_default()
    }

    /// Goes through the first `len` bytes of guest memory that are left, and says where each piece is among them.
    fn each(&self, len: usize, mut each: impl FnMut(Range<usize>, mdev_dma::GuestSlice<'_>)) {
        let (mut skip, mut at) = (self.moved, 0usize);
        for slice in self.pins.iter().flat_map(Pin::slices) {
            let from = skip.min(slice.len());
            skip = skip.saturating_sub(from);
            let wanted = slice.len().saturating_sub(from).min(len.saturating_sub(at));
            if let Some(piece) = slice.subslice(from, wanted)
                && wanted > 0
            {
                let end = at.saturating_add(wanted);
                each(at..end, piece);
                at = end;
            }
        }
    }
}

impl Part {
    /// Its length, as far as one operation moves it.
    pub(super) fn len_at_once(&self) -> u32 {
        self.len.min(MAX_BYTES) as u32
    }
}
