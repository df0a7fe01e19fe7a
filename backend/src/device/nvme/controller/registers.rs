//! The registers that keep what was written to them, and those that never change.

use mdev_protocol::nvme::register::{
    ACQ, AQA, ASQ, BASE_ADDRESS, CAP, CC, CRTO, CSTS, Capabilities, Configuration, INTMC, INTMS,
    QueueAttributes, VS, version,
};

use crate::device::nvme::MAX_ENTRIES;

/// How long the controller may take to become ready, in units of 500 ms.
const TIMEOUT: u8 = 20;
/// The version of the specification.
pub(super) const VERSION: u32 = version(2, 0, 0);

const CAPABILITIES: Capabilities = Capabilities {
    max_entries: MAX_ENTRIES.saturating_sub(1) as u16,
    contiguous: true,
    timeout: TIMEOUT,
    stride: 0,
    command_sets: 1,
    min_page: 0,
    max_page: 0,
    ready_with_media: true,
};

/// See the [module](self).
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) configuration: Configuration,
    pub(super) attributes: QueueAttributes,
    /// Base addresses of the admin submission and completion queue.
    pub(super) submission: u64,
    pub(super) completion: u64,
}

/// A register of 64 bits with one of its halves replaced.
fn with_half(register: u64, upper: bool, value: u32) -> u64 {
    let value = u64::from(value);
    if upper { register & 0xffff_ffff | value << 32 } else { register & !0xffff_ffff | value }
}

impl Registers {
    /// Reads 1, 2, 4 or 8 bytes at a multiple of that; zeros otherwise.
    pub(super) fn read(&self, offset: u64, out: &mut [u8], status: u32, masked: u32) {
        out.fill(0);
        if !matches!(out.len(), 1 | 2 | 4 | 8) || !offset.is_multiple_of(out.len() as u64) {
            return;
        }
        let Ok(offset) = u32::try_from(offset) else { return };
        let word = |at: u32| u64::from(self.word(at, status, masked));
        let aligned = offset & !7;
        let both = word(aligned) | word(aligned | 4) << 32;
        let bytes = both.to_le_bytes();
        let here = bytes.get((offset & 7) as usize..).unwrap_or_default();
        out.iter_mut().zip(here).for_each(|(place, byte)| *place = *byte);
    }

    fn word(&self, offset: u32, status: u32, masked: u32) -> u32 {
        const CAP_UPPER: u32 = CAP | 4;
        const ASQ_UPPER: u32 = ASQ | 4;
        const ACQ_UPPER: u32 = ACQ | 4;
        match offset {
            CAP => CAPABILITIES.bits() as u32,
            CAP_UPPER => (CAPABILITIES.bits() >> 32) as u32,
            VS => VERSION,
            INTMS | INTMC => masked,
            CC => self.configuration.0,
            CSTS => status,
            AQA => self.attributes.0,
            ASQ => self.submission as u32,
            ASQ_UPPER => (self.submission >> 32) as u32,
            ACQ => self.completion as u32,
            ACQ_UPPER => (self.completion >> 32) as u32,
            CRTO => TIMEOUT.into(),
            _ => 0,
        }
    }

    /// Keeps what was written, if it is a register that only keeps. Those with an effect are left to the controller.
    pub(super) fn keep(&mut self, offset: u32, value: u32) {
        let upper = offset & 4 != 0;
        match offset {
            AQA => self.attributes = QueueAttributes(value & QueueAttributes::FIELDS),
            _ if offset & !7 == ASQ => {
                self.submission = with_half(self.submission, upper, value) & BASE_ADDRESS;
            }
            _ if offset & !7 == ACQ => {
                self.completion = with_half(self.completion, upper, value) & BASE_ADDRESS;
            }
            _ => {}
        }
    }
}
