//! Device addresses: an IOVA, an inclusive range of them, and what a device may do there.
//!
//! A range is kept as its first and its *last* byte, so that the whole space (`0..=u64::MAX`) and a range that
//! ends with the last byte can be written down. Every sum is checked: address plus length that wraps is an error.

use std::fmt;

/// A device address: what a guest's descriptor holds. A guest physical address where there is no IOMMU.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Iova(pub u64);

impl Iova {
    /// The address `len` bytes further on; `None` if that wraps.
    #[inline]
    pub const fn checked_add(self, len: u64) -> Option<Iova> {
        match self.0.checked_add(len) {
            Some(at) => Some(Iova(at)),
            None => None,
        }
    }
}

impl fmt::Debug for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Iova({:#x})", self.0)
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A front-end's virtual address: an opaque key of wire messages, never dereferenced. It is translated to a file
/// and an offset when the message arrives, then forgotten.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UserAddr(pub u64);

impl fmt::Debug for UserAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserAddr({:#x})", self.0)
    }
}

impl fmt::Display for UserAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A non-empty range of device addresses, both ends inclusive.
#[derive(Copy, Clone, PartialEq, Eq, Hash)]
pub struct IovaRange {
    first: Iova,
    last: Iova,
}

impl IovaRange {
    /// Every address there is.
    pub const FULL: IovaRange = IovaRange { first: Iova(0), last: Iova(u64::MAX) };

    /// The range from `first` to `last`, both inclusive.
    pub const fn new(first: Iova, last: Iova) -> Result<Self, RangeError> {
        if last.0 < first.0 {
            Err(RangeError::Inverted { first, last })
        } else {
            Ok(IovaRange { first, last })
        }
    }

    /// The range of `len` bytes that starts at `first`.
    #[inline]
    pub const fn with_len(first: Iova, len: u64) -> Result<Self, RangeError> {
        let Some(span) = len.checked_sub(1) else { return Err(RangeError::Empty { first }) };
        match first.checked_add(span) {
            Some(last) => Ok(IovaRange { first, last }),
            None => Err(RangeError::Overflow { first, len }),
        }
    }

    /// The first byte.
    #[inline]
    pub const fn first(self) -> Iova {
        self.first
    }

    /// The last byte, part of the range.
    #[inline]
    pub const fn last(self) -> Iova {
        self.last
    }

    /// Length in bytes; 2^64 for [`IovaRange::FULL`], hence the wide type.
    #[inline]
    pub const fn size(self) -> u128 {
        (self.last.0 - self.first.0) as u128 + 1
    }

    /// Whether `at` lies in the range.
    #[inline]
    pub const fn contains(self, at: Iova) -> bool {
        // One comparison: below `first` the difference wraps to more than any span.
        at.0.wrapping_sub(self.first.0) <= self.last.0 - self.first.0
    }

    /// Whether every byte of `other` lies in the range.
    #[inline]
    pub const fn contains_range(self, other: IovaRange) -> bool {
        self.first.0 <= other.first.0 && other.last.0 <= self.last.0
    }

    /// The bytes that lie in both.
    pub fn intersection(self, other: IovaRange) -> Option<IovaRange> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        IovaRange::new(first, last).ok()
    }

    /// How far `at` is from the first byte; `None` outside the range.
    #[inline]
    pub const fn offset_of(self, at: Iova) -> Option<u64> {
        if self.contains(at) { Some(at.0 - self.first.0) } else { None }
    }
}

impl fmt::Debug for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:#x}..={:#x}]", self.first.0, self.last.0)
    }
}

impl fmt::Display for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..={:#x}", self.first.0, self.last.0)
    }
}

/// Why two numbers are no range.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// A length of zero (`EINVAL`).
    #[error("the range at {first} has length 0; a range has at least one byte")]
    Empty {
        /// Where it would start.
        first: Iova,
    },
    /// The last byte would lie beyond the address space (`EOVERFLOW`).
    #[error("the range at {first} with length {len:#x} wraps around the end of the address space")]
    Overflow {
        /// Where it would start.
        first: Iova,
        /// Its length in bytes.
        len: u64,
    },
    /// The last byte comes before the first (`EINVAL`).
    #[error("the range ends at {last}, before its first byte {first}")]
    Inverted {
        /// The first byte.
        first: Iova,
        /// The last byte.
        last: Iova,
    },
}

impl RangeError {
    /// The error number Linux returns for the same mistake.
    pub const fn errno(self) -> i32 {
        match self {
            RangeError::Empty { .. } | RangeError::Inverted { .. } => libc::EINVAL,
            RangeError::Overflow { .. } => libc::EOVERFLOW,
        }
    }
}

bitflags::bitflags! {
    /// What the *device* may do with memory: `READ` is the guest's buffer going out, `WRITE` data coming in.
    #[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
    pub struct Perm: u8 {
        /// The device may read.
        const READ = 1;
        /// The device may write.
        const WRITE = 2;
    }
}

#[cfg(test)]
mod tests;
