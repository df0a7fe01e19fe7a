//! A driver that keeps its own books, and the ring read in the dumbest way.

use std::collections::VecDeque;

use mdev_protocol::virtio::packed::{Position, is_available};

use super::super::guest::{BASE, Guest, INDIRECT, NEXT, WRITE};
use super::super::legal::Shape;
use super::super::naive::Flat;
use super::guest::{PackedRing, Piece, entry};
use crate::ring::MAX_CHAIN;

pub(super) const MEMORY: u64 = 1 << 18;
/// Each buffer id may have an indirect table of its own, sixteen entries long.
pub(super) const TABLES: u64 = 0x8000;
pub(super) const TABLE: u64 = 16 * 16;
pub(super) const DATA: u64 = 0x2_0000;

/// A driver that uses its buffer ids in whatever order they come back.
pub(super) struct Driver {
    pub(super) ring: PackedRing,
    free: VecDeque<u16>,
    /// Chains the device has, in the order in which they were made available, and their slots.
    pub(super) held: Vec<(Flat, u16)>,
    serial: u32,
}

impl Driver {
    pub(super) fn new(ring: PackedRing) -> Self {
        let free = (0..ring.size).map(|n| ring.size - 1 - n).collect();
        Self { ring, free, held: Vec::new(), serial: 0 }
    }

    /// Makes a chain available if there is room.
    pub(super) fn offer(&mut self, guest: &Guest, shape: &Shape) {
        // A table stands alone in a packed ring.
        let (direct, indirect) = if shape.indirect > 0 { (0, shape.indirect) } else { (shape.direct, 0) };
        let (total, slots) = (direct + indirect, direct.max(1));
        let taken: u16 = self.held.iter().map(|(_, slots)| slots).sum();
        if taken + slots > self.ring.size {
            return;
        }
        let id = self.free.pop_front().expect("an id for each slot");
        let pieces: Vec<Piece> = (0..total)
            .map(|place| {
                self.serial += 1;
                let write = if place + shape.writable >= total { WRITE } else { 0 };
                (DATA + u64::from(self.serial), 1 + self.serial % 4000, write)
            })
            .collect();
        if indirect > 0 {
            let at = TABLES + TABLE * u64::from(id);
            for (place, &(buffer, len, flags)) in (0u64..).zip(&pieces) {
                // What a driver leaves in the other fields is its own affair.
                guest.write(at + 16 * place, &entry(BASE + buffer, len, 0xbeef, flags | NEXT));
            }
            self.ring.offer(guest, id, &[(at, 16 * u32::from(indirect), INDIRECT)]);
        } else {
            self.ring.offer(guest, id, &pieces);
        }
        let part = |write| {
            let those = pieces.iter().filter(|piece| (piece.2 & WRITE != 0) == write);
            those.map(|piece| (BASE + piece.0, piece.1)).collect()
        };
        self.held.push((Flat { head: id, readable: part(false), writable: part(true) }, slots));
    }

    /// Takes back what the device used: ids and lengths, one for each used descriptor.
    pub(super) fn reclaim(&mut self, guest: &Guest) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        while let Some((id, len, flags)) = self.ring.used(guest) {
            assert_eq!(flags & WRITE != 0, len != 0, "whether bytes were written is said twice");
            let at = self.held.iter().position(|(flat, _)| flat.head == id).expect("an id that is held");
            self.give_back(at);
            used.push((id, len));
        }
        used
    }

    /// The same where one used descriptor speaks for all chains up to the one it names. The ids, one by one.
    pub(super) fn reclaim_in_order(&mut self, guest: &Guest) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        while let Some((id, len, _)) = self.ring.used(guest) {
            loop {
                let first = self.held.first().expect("as many as are held").0.head;
                self.give_back(0);
                used.push((first, if first == id { len } else { 0 }));
                if first == id {
                    break;
                }
            }
        }
        used
    }

    fn give_back(&mut self, at: usize) {
        let (flat, slots) = self.held.remove(at);
        self.free.push_back(flat.head);
        self.ring.seen = self.ring.seen.advance(slots, self.ring.size);
    }
}

/// The chains that wait at `from`, each with what becomes of it, as far as one is read before trouble.
pub(super) fn waiting(
    guest: &Guest,
    ring: &PackedRing,
    from: Position,
    may_be_indirect: bool,
) -> Vec<Option<Flat>> {
    let (mut at, mut left) = (from, ring.size);
    let mut chains = Vec::new();
    let mut ids = Vec::new();
    while is_available(read(guest, ring.at(at.slot)).3, at.wrap) {
        let chain = chain(guest, ring, at, left, may_be_indirect)
            .filter(|(flat, _)| flat.head < ring.size && !ids.contains(&flat.head));
        let Some((flat, slots)) = chain else {
            chains.push(None);
            break;
        };
        ids.push(flat.head);
        chains.push(Some(flat));
        at = at.advance(slots, ring.size);
        left -= slots;
    }
    chains
}

fn chain(
    guest: &Guest,
    ring: &PackedRing,
    from: Position,
    left: u16,
    may_be_indirect: bool,
) -> Option<(Flat, u16)> {
    let mut all = Vec::new();
    let mut at = from;
    loop {
        let desc = read(guest, ring.at(at.slot));
        if all.len() == usize::from(left) || !is_available(desc.3, at.wrap) {
            return None;
        }
        all.push(desc);
        at = at.advance(1, ring.size);
        if desc.3 & NEXT == 0 {
            break;
        }
    }
    let (slots, id) = (all.len() as u16, all.last()?.2);
    if all.iter().any(|desc| desc.3 & INDIRECT != 0) {
        let [(iova, len, _, _)] = all[..] else { return None };
        let inside = iova.checked_sub(BASE)?.checked_add(len.into())? <= guest.memory().len() as u64;
        if !may_be_indirect || !inside || len == 0 || len % 16 != 0 || len as usize > 16 * MAX_CHAIN {
            return None;
        }
        all = (0..u64::from(len / 16)).map(|n| read(guest, iova - BASE + 16 * n)).collect();
        if all.iter().any(|desc| desc.3 & INDIRECT != 0) {
            return None;
        }
    }
    let bytes: u64 = all.iter().map(|desc| u64::from(desc.1)).sum();
    let writes: Vec<bool> = all.iter().map(|desc| desc.3 & WRITE != 0).collect();
    if all.iter().any(|desc| desc.1 == 0) || bytes > u64::from(u32::MAX) || !writes.is_sorted() {
        return None;
    }
    let part = |write| all.iter().filter(|d| (d.3 & WRITE != 0) == write).map(|d| (d.0, d.1)).collect();
    Some((Flat { head: id, readable: part(false), writable: part(true) }, slots))
}

/// Address, length, id, flags.
fn read(guest: &Guest, at: u64) -> (u64, u32, u16, u16) {
    let bytes = guest.read(at, 16);
    (
        u64::from_le_bytes(bytes[..8].try_into().unwrap()),
        u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
        u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
        u16::from_le_bytes(bytes[14..].try_into().unwrap()),
    )
}
