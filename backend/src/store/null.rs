//! A store without bytes: what a device costs by itself.
//!
//! Reads leave the guest's memory as it is, so that a guest reads what it had there; writes are forgotten. This is what
//! such stores of other back-ends do too, unless asked otherwise.

use super::Limits;

/// A store of so many bytes that are not there.
#[derive(Clone, Debug)]
pub struct Null {
    size: u64,
}

impl Null {
    /// What every such store can do.
    pub const LIMITS: Limits = Limits {
        read_only: false,
        block: 512,
        physical_block: 4096,
        max_discard: 1 << 30,
        max_zeroes: 1 << 30,
    };

    /// A store of `size` bytes.
    pub fn new(size: u64) -> Null {
        Null { size }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }
}
