//! UNSAFETY: prefetch and cache write-back are instructions without a safe wrapper.
//!
//! Cache hints. None of them changes what a program computes; where a processor lacks one, it does nothing.

/// Bytes of a cache line on the machines these hints are for.
pub(super) const LINE: usize = 64;

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

/// Writes the lines of `len` bytes at `address` back to memory and keeps them, where the processor can.
#[inline]
pub(super) fn write_back(address: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if len != 0 && clwb::present() {
        clwb::lines(address as usize, len);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (address, len);
}

#[cfg(target_arch = "x86_64")]
mod clwb {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::LINE;

    const UNKNOWN: u8 = 0;
    const ABSENT: u8 = 1;
    const PRESENT: u8 = 2;
    /// What CPUID said. Asking costs a trap in a guest, so it is asked once.
    static FOUND: AtomicU8 = AtomicU8::new(UNKNOWN);

    /// Whether the processor has CLWB (CPUID leaf 7, EBX bit 24).
    #[inline]
    pub(super) fn present() -> bool {
        match FOUND.load(Ordering::Relaxed) {
            UNKNOWN => detect(),
            found => found == PRESENT,
        }
    }

    #[cold]
    fn detect() -> bool {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        let has = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & (1 << 24) != 0;
        FOUND.store(if has { PRESENT } else { ABSENT }, Ordering::Relaxed);
        has
    }

    /// Writes back every line that holds one of the `len` bytes at `address`. The caller made sure of CLWB.
    #[inline]
    pub(super) fn lines(address: usize, len: usize) {
        let mut line = address & !(LINE - 1);
        let last = address.saturating_add(len - 1);
        while line <= last {
            // SAFETY: CLWB of mapped memory changes no byte of it; it may fault like a load, and the slice that is
            // written back is mapped (a page that its file lost raises SIGBUS, which is contained).
            unsafe { std::arch::asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags)) };
            line += LINE;
        }
    }
}
