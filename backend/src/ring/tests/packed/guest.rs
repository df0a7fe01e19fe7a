//! A packed ring as its driver sees it, written word by word.

use mdev_dma::FileExtent;
use mdev_protocol::virtio::packed::{Position, available_flags, is_used, used_flags};

use super::super::guest::{BASE, Guest, NEXT};
use crate::ring::{QueueState, Ring, RingAddr, RingSetup};

/// A buffer: its offset in the file, its length, its flags.
pub(super) type Piece = (u64, u32, u16);

/// One packed ring in guest memory.
#[derive(Copy, Clone, Debug)]
pub(super) struct PackedRing {
    pub(super) size: u16,
    pub(super) desc: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
    /// Where both sides began.
    pub(super) start: Position,
    /// Where the next chain goes.
    pub(super) next: Position,
    /// Where the next used descriptor is looked for.
    pub(super) seen: Position,
}

impl PackedRing {
    /// A ring at offset `at` in which everything up to `start` has been used.
    pub(super) fn new(guest: &Guest, at: u64, size: u16, start: Position) -> Self {
        let driver = at + 16 * u64::from(size);
        let ring = Self { size, desc: at, driver, device: driver + 4, start, next: start, seen: start };
        for slot in 0..size {
            let lap = if slot < start.slot { start.wrap } else { !start.wrap };
            guest.set_word(ring.at(slot) + 14, used_flags(lap));
        }
        ring
    }

    /// The usual one: at offset 0, never used.
    pub(super) fn fresh(guest: &Guest, size: u16) -> Self {
        Self::new(guest, 0, size, Position::START)
    }

    pub(super) fn setup(&self, guest: &Guest) -> RingSetup {
        let at = |offset| RingAddr::Extent(FileExtent { file: guest.file.clone(), offset });
        RingSetup {
            size: self.size,
            desc: at(self.desc),
            avail: at(self.driver),
            used: at(self.device),
            packed: true,
            in_order: false,
            event_idx: false,
            indirect: true,
            state: QueueState::packed(self.start, self.start),
            log: None,
        }
    }

    /// The device's side of it.
    pub(super) fn ring(&self, guest: &Guest) -> Ring {
        Ring::new(self.setup(guest)).unwrap()
    }

    pub(super) fn at(&self, slot: u16) -> u64 {
        self.desc + 16 * u64::from(slot)
    }

    /// Writes a descriptor at `place`, flags last.
    pub(super) fn describe(&self, guest: &Guest, place: Position, piece: Piece, id: u16) {
        let at = self.at(place.slot);
        guest.write(at, &(BASE + piece.0).to_le_bytes());
        guest.write(at + 8, &piece.1.to_le_bytes());
        guest.set_word(at + 12, id);
        guest.set_word(at + 14, piece.2 | available_flags(place.wrap));
    }

    /// Makes a chain available: its first descriptor last, and only the last one with its id.
    pub(super) fn offer(&mut self, guest: &Guest, id: u16, pieces: &[Piece]) {
        let count = pieces.len() as u16;
        for (place, &(at, len, flags)) in pieces.iter().enumerate().rev() {
            let last = place + 1 == pieces.len();
            let more = if last { 0 } else { NEXT };
            let position = self.next.advance(place as u16, self.size);
            self.describe(guest, position, (at, len, flags | more), if last { id } else { 0xdead });
        }
        self.next = self.next.advance(count, self.size);
    }

    /// The used descriptor that is due, if it is there: id, length, flags.
    pub(super) fn used(&self, guest: &Guest) -> Option<(u16, u32, u16)> {
        let at = self.at(self.seen.slot);
        let flags = guest.word(at + 14);
        let len = u32::from_le_bytes(guest.read(at + 8, 4).try_into().unwrap());
        is_used(flags, self.seen.wrap).then(|| (guest.word(at + 12), len, flags))
    }
}

/// The bytes of an entry of an indirect table.
pub(super) fn entry(iova: u64, len: u32, id: u16, flags: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&iova.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&id.to_le_bytes());
    bytes[14..].copy_from_slice(&flags.to_le_bytes());
    bytes
}
