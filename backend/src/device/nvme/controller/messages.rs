//! The table of MSI-X vectors: addresses and data are remembered for whoever reads them, masks are heeded.

use mdev_protocol::pci::Msix;

use super::PENDING_OFFSET;
use crate::device::nvme::Vectors;

/// An entry after a reset: masked.
const ENTRY: [u8; Msix::ENTRY_LEN] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
/// Bits of an entry that can be written: address in dwords, data, mask.
const WRITABLE: [u8; Msix::ENTRY_LEN] =
    [0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0];

/// The byte of an entry whose first bit masks it.
const MASK: usize = 12;

/// See the [module](self).
pub(super) struct MessageTable(Vec<u8>);

impl MessageTable {
    pub(super) fn new(vectors: u16) -> Self {
        Self(ENTRY.repeat(vectors.into()))
    }

    pub(super) fn reset(&mut self) {
        let vectors = self.0.len() / Msix::ENTRY_LEN;
        self.0 = ENTRY.repeat(vectors);
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8], vectors: &Vectors) {
        for (at, place) in (offset..=u64::MAX).zip(out) {
            *place = match at.checked_sub(PENDING_OFFSET) {
                None => self.0.get(at as usize).copied().unwrap_or(0),
                Some(at) => usize::try_from(at / 8)
                    .map_or(0, |word| (vectors.pending(word) >> (at % 8).saturating_mul(8)) as u8),
            };
        }
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8], vectors: &Vectors) {
        let Ok(first) = usize::try_from(offset) else { return };
        let places = self.0.iter_mut().zip(WRITABLE.iter().cycle()).enumerate().skip(first);
        for ((at, (place, mask)), byte) in places.zip(data) {
            *place = *place & !mask | byte & mask;
            if at % Msix::ENTRY_LEN == MASK {
                vectors.mask_message((at / Msix::ENTRY_LEN) as u16, *place & 1 != 0);
            }
        }
    }
}
