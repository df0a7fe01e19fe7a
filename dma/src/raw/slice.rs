//! UNSAFETY: loads, stores and copies of memory that is mapped from a file and that others write at any time.
//!
//! Guest memory is never a `&[u8]`: it changes under our feet. Single values are moved by volatile accesses or
//! atomics, longer ones by memcpy between guest memory and memory of ours.

use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, compiler_fence};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{copy, cpu, table, words};

/// Bytes of guest memory, readable and writable as the window they lie in, changed by others at any time.
///
/// All reads may see torn or senseless data; a value is to be read once, then checked, then used. The slice borrows
/// whatever keeps its memory mapped. It is `Copy`, and may be used from several threads at once.
#[derive(Copy, Clone)]
pub struct GuestSlice<'a> {
    // Invariant: for 'a, the `len` bytes at `start` are mapped memory that no Rust reference points into but to
    // atomics, in one mapping (so that `start + len` does not wrap and no offset exceeds isize::MAX), whose faults are contained.
    start: NonNull<u8>,
    len: usize,
    mapped: PhantomData<&'a ()>,
}

// SAFETY: the bytes belong to no thread; every access is volatile, atomic or a copy whose result is not trusted.
unsafe impl Send for GuestSlice<'_> {}
// SAFETY: as for Send; there is no state beside the bytes.
unsafe impl Sync for GuestSlice<'_> {}

/// Defines the atomic load and store of one width.
macro_rules! atomic_access {
    ($($int:ident $atomic:ident $load:ident $store:ident;)*) => {$(
        #[doc = concat!("Loads a native-endian `", stringify!($int), "` at `offset` as one access; `None` if it is not within the")]
        /// slice or not aligned to its size.
        #[inline(always)]
        pub fn $load(&self, offset: usize, order: Ordering) -> Option<$int> {
            let at = self.aligned(offset, size_of::<$int>())?;
            // SAFETY: `at` is in bounds and aligned (checked above), the memory is mapped for 'a (invariant), and we
            // access it by atomics, volatile accesses and untrusted copies only.
            Some(unsafe { $atomic::from_ptr(at.cast()) }.load(order))
        }

        #[doc = concat!("Stores a native-endian `", stringify!($int), "` at `offset` as one access; `None` if it is not within the")]
        /// slice or not aligned to its size.
        #[inline(always)]
        pub fn $store(&self, offset: usize, value: $int, order: Ordering) -> Option<()> {
            let at = self.aligned(offset, size_of::<$int>())?;
            // SAFETY: as for the load.
            unsafe { $atomic::from_ptr(at.cast()) }.store(value, order);
            Some(())
        }
    )*};
}

impl<'a> GuestSlice<'a> {
    /// Whether the window that these bytes lie in has lost a page: what was read may be zeros, and what was written lost.
    /// For whoever has kept the slice and not the window ([`crate::HostWindow::poisoned`]). Costs next to nothing while no
    /// window of this process is poisoned, else a look at each of them.
    pub fn poisoned(&self) -> bool {
        table::is_poisoned(self.start.as_ptr().addr())
    }

    /// A slice of the `len` bytes at `address`, as taken apart by [`GuestSlice::as_io_vec_parts`].
    ///
    /// # Safety
    /// For all of `'a` these bytes must lie in one mapping of this process, of a window or of anonymous memory, into
    /// which no Rust reference points but to atomics. The address is not zero, also of a slice of no bytes.
    #[inline(always)]
    pub unsafe fn from_raw_parts(address: usize, len: usize) -> GuestSlice<'a> {
        let start = std::ptr::with_exposed_provenance_mut(address);
        // SAFETY: the caller's promise.
        unsafe { Self::of_mapping(NonNull::new_unchecked(start), len) }
    }

    /// A slice of the `len` bytes at `start`.
    ///
    /// # Safety
    /// As for [`GuestSlice::from_raw_parts`].
    #[inline(always)]
    pub(super) unsafe fn of_mapping(start: NonNull<u8>, len: usize) -> GuestSlice<'a> {
        GuestSlice { start, len, mapped: PhantomData }
    }

    /// Length in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte in it.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `len` bytes at `offset`; `None` if they do not lie within the slice.
    #[inline(always)]
    pub fn subslice(&self, offset: usize, len: usize) -> Option<GuestSlice<'a>> {
        let start = self.at(offset, len)?;
        // SAFETY: in bounds of a mapping (checked above), hence not null.
        let start = unsafe { NonNull::new_unchecked(start) };
        Some(GuestSlice { start, len, mapped: PhantomData })
    }

    /// Copies to `dst` as many bytes as both have, and returns how many.
    #[inline]
    pub fn copy_to(&self, dst: &mut [u8]) -> usize {
        let n = self.len.min(dst.len());
        // SAFETY: `n` bytes are mapped at `start` (invariant) and are ours at `dst`; no reference points into guest
        // memory, so they do not overlap. Whatever the bytes are, they are valid u8.
        unsafe { copy::apart(self.start.as_ptr(), dst.as_mut_ptr(), n) };
        read_once();
        n
    }

    /// Copies from `src` as many bytes as both have, and returns how many.
    #[inline]
    pub fn copy_from(&self, src: &[u8]) -> usize {
        let n = self.len.min(src.len());
        // SAFETY: as for `copy_to`, the other way round.
        unsafe { copy::apart(src.as_ptr(), self.start.as_ptr(), n) };
        n
    }

    /// Copies to `dst`, guest memory too, as many bytes as both have, and returns how many. They may overlap.
    #[inline]
    pub fn copy_to_slice(&self, dst: &GuestSlice<'_>) -> usize {
        let n = self.len.min(dst.len);
        // SAFETY: `n` bytes are mapped at both places (invariant), which may overlap.
        unsafe { copy::any(self.start.as_ptr(), dst.start.as_ptr(), n) };
        n
    }

    /// Sets every byte to `byte`.
    #[inline]
    pub fn fill(&self, byte: u8) {
        // SAFETY: `len` bytes are mapped at `start` (invariant).
        unsafe { std::ptr::write_bytes(self.start.as_ptr(), byte, self.len) };
    }

    /// Reads a value at `offset`, which needs no alignment; `None` if it is not within the slice. Read once: the
    /// memory is not looked at again when the value is used. At an aligned address the value is read in words of up
    /// to 8 bytes and each word is whole; anything else may be torn.
    #[inline(always)]
    pub fn read<T: FromBytes>(&self, offset: usize) -> Option<T> {
        let at = self.at(offset, size_of::<T>())?;
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: `size_of::<T>()` bytes are mapped at `at` (checked above, invariant) and writable at `value`.
        unsafe { words::read(at, value.as_mut_ptr().cast(), size_of::<T>()) };
        // SAFETY: all bytes were written, and every bit pattern is a valid T.
        Some(unsafe { value.assume_init() })
    }

    /// Writes a value at `offset`, which needs no alignment; `None` if it is not within the slice. At an aligned
    /// address it is written in whole words of up to 8 bytes.
    #[inline(always)]
    pub fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: T) -> Option<()> {
        let at = self.at(offset, size_of::<T>())?;
        // SAFETY: `size_of::<T>()` bytes are mapped at `at` (checked above, invariant); T has no padding, so all bytes
        // of `value` are initialised and none that is not is shown to the guest.
        unsafe { words::write(std::ptr::from_ref(&value).cast(), at, size_of::<T>()) };
        Some(())
    }

    atomic_access! {
        u16 AtomicU16 load_u16 store_u16;
        u32 AtomicU32 load_u32 store_u32;
        u64 AtomicU64 load_u64 store_u64;
    }

    /// The slice as pairs of words, to be walked along without a check for each; a rest of less than 16 bytes is left out.
    /// `None` if it is not aligned to 8 bytes. What goes for every read goes here too: load once, then check, then use.
    /// Storing is for slices that may be written.
    #[inline(always)]
    pub fn pairs(&self) -> Option<&'a [[AtomicU64; 2]]> {
        let start = self.aligned(0, size_of::<u64>())?;
        // SAFETY: so many pairs lie within the mapped bytes (invariant), aligned (checked above; where there is no word, the
        // slice is refused). Atomics may be changed by others while they are referred to; plain references do not exist.
        Some(unsafe {
            std::slice::from_raw_parts(start.cast_const().cast(), self.len / size_of::<[u64; 2]>())
        })
    }

    /// Fetches the cache line at `offset` for reading. A hint: any offset is allowed.
    #[inline(always)]
    pub fn prefetch_read(&self, offset: usize) {
        cpu::prefetch_read(self.start.as_ptr().wrapping_add(offset));
    }

    /// Fetches the cache line at `offset` for writing. A hint: any offset is allowed.
    #[inline(always)]
    pub fn prefetch_write(&self, offset: usize) {
        cpu::prefetch_write(self.start.as_ptr().wrapping_add(offset));
    }

    /// Address and length, for an `iovec` handed to the kernel, and for [`GuestSlice::from_raw_parts`].
    #[inline(always)]
    pub fn as_io_vec_parts(&self) -> (usize, usize) {
        (self.start.as_ptr().expose_provenance(), self.len)
    }

    /// Where `len` bytes at `offset` are, if they lie within the slice.
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: at most one past the end of the bytes of the invariant.
        Some(unsafe { self.start.as_ptr().add(offset) })
    }

    /// The same for a value that must be aligned to its size.
    #[inline(always)]
    fn aligned(&self, offset: usize, size: usize) -> Option<*mut u8> {
        self.at(offset, size).filter(|at| at.addr() & (size - 1) == 0)
    }
}

/// Keeps the compiler from reading guest memory again where a copy of it is used: without this it may replace a copy
/// of the copy by a second copy of the original, after the first one was checked.
#[inline(always)]
fn read_once() {
    compiler_fence(Ordering::SeqCst);
}

impl fmt::Debug for GuestSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No address: it is of no use to a reader and of some to an attacker.
        f.debug_struct("GuestSlice").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
