//! UNSAFETY: copies through raw pointers, to and from memory that others write meanwhile.
//!
//! Copies of any length. Packets and headers are short, and for those the call of the library's routine costs as much
//! as the copy; so up to [`SHORT`] bytes are moved here, by blocks that may overlap in the middle.

/// The longest copy that is done in place.
const SHORT: usize = 64;
/// What one instruction moves.
const BLOCK: usize = 16;
/// The same for what is shorter than that.
const HALF: usize = 8;

/// Copies `len` bytes between places that do not overlap.
///
/// # Safety
/// `from` must be mapped and `to` writable for `len` bytes, at addresses that have none in common.
#[inline(always)]
pub(super) unsafe fn apart(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: as promised to us; each branch has the length that its blocks need.
    unsafe {
        // The long ones first: they shall not wait for the decision about the others.
        if !(HALF..=SHORT).contains(&len) {
            std::ptr::copy_nonoverlapping(from, to, len);
        } else if len >= 2 * BLOCK {
            block::<BLOCK>(from, to, 0);
            block::<BLOCK>(from, to, BLOCK);
            block::<BLOCK>(from, to, len - 2 * BLOCK);
            block::<BLOCK>(from, to, len - BLOCK);
        } else if len >= BLOCK {
            block::<BLOCK>(from, to, 0);
            block::<BLOCK>(from, to, len - BLOCK);
        } else {
            block::<HALF>(from, to, 0);
            block::<HALF>(from, to, len - HALF);
        }
    }
}

/// Copies `len` bytes as if by way of a third place.
///
/// # Safety
/// `from` must be mapped and `to` writable for `len` bytes.
#[inline(always)]
pub(super) unsafe fn any(from: *const u8, to: *mut u8, len: usize) {
    let ahead = to.addr().wrapping_sub(from.addr());
    let behind = from.addr().wrapping_sub(to.addr());
    // SAFETY: as promised to us; apart if each starts at least `len` bytes from the other.
    unsafe {
        if ahead >= len && behind >= len { apart(from, to, len) } else { std::ptr::copy(from, to, len) }
    }
}

/// Copies the `N` bytes at `offset`.
///
/// # Safety
/// As for [`apart`], with `offset + N` bytes.
#[inline(always)]
unsafe fn block<const N: usize>(from: *const u8, to: *mut u8, offset: usize) {
    // SAFETY: as promised to us.
    unsafe { std::ptr::copy_nonoverlapping(from.add(offset), to.add(offset), N) };
}
