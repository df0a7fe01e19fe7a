//! UNSAFETY: a prefetch is an instruction without a safe wrapper.
//!
//! Cache hints. None of them changes what a program computes; where a processor lacks one, it does nothing.

/// Fetches the line at `address` for reading.
#[inline(always)]
pub(super) fn prefetch_read(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and reads nothing into the program, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Fetches the line at `address` for writing.
#[inline(always)]
pub(super) fn prefetch_write(address: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: as for reading. A processor without PREFETCHW runs it as a hint for reading or as a no-op: the opcode
    // is defined so on every 64-bit one.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = address;
}
