//! UNSAFETY: volatile accesses to guest memory through raw pointers.
//!
//! Values in guest memory, moved word by word. A volatile access of the whole value would be split into bytes by the
//! compiler where the value is not aligned; so the widest word its size is a multiple of is used where the address is
//! aligned to that, which in practice is always, and an ordinary copy elsewhere.

use std::sync::atomic::{Ordering, compiler_fence};

/// The widest word, up to 8 bytes, that `size` is a multiple of.
const fn width(size: usize) -> usize {
    let lowest_bit = size & size.wrapping_neg();
    if lowest_bit == 0 || lowest_bit > 8 { 8 } else { lowest_bit }
}

/// Reads `size` bytes, a constant, from guest memory at `from` to memory of ours at `to`.
///
/// # Safety
/// `from` must be mapped and `to` writable for `size` bytes, and they must not overlap.
#[inline(always)]
pub(super) unsafe fn read(from: *const u8, to: *mut u8, size: usize) {
    if !from.addr().is_multiple_of(width(size)) {
        // SAFETY: as promised to us.
        return unsafe { read_unaligned(from, to, size) };
    }
    // SAFETY: as promised to us; `from` is aligned to the word.
    unsafe {
        match width(size) {
            8 => read_words::<u64>(from, to, size),
            4 => read_words::<u32>(from, to, size),
            2 => read_words::<u16>(from, to, size),
            _ => read_words::<u8>(from, to, size),
        }
    }
}

/// Writes `size` bytes, a constant, from memory of ours at `from` to guest memory at `to`.
///
/// # Safety
/// `from` must be readable, initialised, and `to` mapped for `size` bytes, and they must not overlap.
#[inline(always)]
pub(super) unsafe fn write(from: *const u8, to: *mut u8, size: usize) {
    if !to.addr().is_multiple_of(width(size)) {
        // SAFETY: as promised to us.
        return unsafe { std::ptr::copy_nonoverlapping(from, to, size) };
    }
    // SAFETY: as promised to us; `to` is aligned to the word.
    unsafe {
        match width(size) {
            8 => write_words::<u64>(from, to, size),
            4 => write_words::<u32>(from, to, size),
            2 => write_words::<u16>(from, to, size),
            _ => write_words::<u8>(from, to, size),
        }
    }
}

/// # Safety
/// As for [`read`], and `from` must be aligned for `W`, of which `size` is a multiple.
#[inline(always)]
unsafe fn read_words<W: Copy>(from: *const u8, to: *mut u8, size: usize) {
    for n in 0..size / size_of::<W>() {
        // SAFETY: the n-th word of `size` bytes that are valid at both ends, aligned at `from`.
        unsafe { to.cast::<W>().add(n).write_unaligned(from.cast::<W>().add(n).read_volatile()) };
    }
}

/// # Safety
/// As for [`write()`], and `to` must be aligned for `W`, of which `size` is a multiple.
#[inline(always)]
unsafe fn write_words<W: Copy>(from: *const u8, to: *mut u8, size: usize) {
    for n in 0..size / size_of::<W>() {
        // SAFETY: the n-th word of `size` bytes that are valid at both ends, aligned at `to`.
        unsafe { to.cast::<W>().add(n).write_volatile(from.cast::<W>().add(n).read_unaligned()) };
    }
}

/// # Safety
/// As for [`read`].
#[inline(always)]
unsafe fn read_unaligned(from: *const u8, to: *mut u8, size: usize) {
    // SAFETY: as promised to us.
    unsafe { std::ptr::copy_nonoverlapping(from, to, size) };
    // Guest memory is not read again in place of the copy.
    compiler_fence(Ordering::SeqCst);
}
