//! The ring read in the dumbest way: everything is copied out first, then looked at.

use super::guest::{BASE, Guest, INDIRECT, NEXT, Ring, WRITE};
use crate::ring::MAX_CHAIN;

/// A chain as the specification describes it: what the device reads, what it writes, as (address, length).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flat {
    pub(super) head: u16,
    pub(super) readable: Vec<(u64, u32)>,
    pub(super) writable: Vec<(u64, u32)>,
}

type Desc = (u64, u32, u16, u16);

fn table(bytes: &[u8]) -> Vec<Desc> {
    bytes
        .chunks(16)
        .map(|d| {
            (
                u64::from_le_bytes(d[..8].try_into().unwrap()),
                u32::from_le_bytes(d[8..12].try_into().unwrap()),
                u16::from_le_bytes(d[12..14].try_into().unwrap()),
                u16::from_le_bytes(d[14..].try_into().unwrap()),
            )
        })
        .collect()
}

/// Every descriptor from `head` on in the order of the chain; nothing if it leaves the table or never ends.
fn follow(table: &[Desc], head: u16) -> Option<Vec<Desc>> {
    let mut seen = Vec::new();
    let mut at = head;
    loop {
        if seen.len() == table.len() {
            return None;
        }
        let desc = *table.get(usize::from(at))?;
        seen.push(desc);
        if desc.2 & NEXT == 0 {
            return Some(seen);
        }
        at = desc.3;
    }
}

/// The chain that starts at `head`, or nothing if a device must refuse it.
pub(super) fn chain(guest: &Guest, ring: &Ring, head: u16, may_be_indirect: bool) -> Option<Flat> {
    let outer = table(&guest.read(ring.desc, 16 * usize::from(ring.size)));
    let mut all = follow(&outer, head)?;
    if all.iter().any(|d| d.2 & INDIRECT != 0 && (d.2 & NEXT != 0 || !may_be_indirect)) {
        return None;
    }
    let last = *all.last()?;
    if last.2 & INDIRECT != 0 {
        all.pop();
        let len = last.1 as usize;
        let inside = last.0.checked_sub(BASE)?.checked_add(len as u64)? <= guest.memory().len() as u64;
        if len == 0 || !len.is_multiple_of(16) || len > 16 * MAX_CHAIN || !inside {
            return None;
        }
        let inner = follow(&table(&guest.read(last.0 - BASE, len)), 0)?;
        if inner.iter().any(|d| d.2 & INDIRECT != 0) {
            return None;
        }
        all.extend(inner);
    }
    let bytes: u64 = all.iter().map(|d| u64::from(d.1)).sum();
    let writes: Vec<bool> = all.iter().map(|d| d.2 & WRITE != 0).collect();
    if all.len() > MAX_CHAIN
        || all.iter().any(|d| d.1 == 0)
        || bytes > u64::from(u32::MAX)
        || !writes.is_sorted()
    {
        return None;
    }
    let part = |write| all.iter().filter(|d| (d.2 & WRITE != 0) == write).map(|d| (d.0, d.1)).collect();
    Some(Flat { head, readable: part(false), writable: part(true) })
}

/// Every chain that waits from index `from` on, each with what becomes of it; nothing if the index jumped.
pub(super) fn waiting(
    guest: &Guest,
    ring: &Ring,
    from: u16,
    may_be_indirect: bool,
) -> Option<Vec<Option<Flat>>> {
    let count = guest.word(ring.avail + 2).wrapping_sub(from);
    if count > ring.size {
        return None;
    }
    let slot = |n: u16| ring.avail + 4 + 2 * u64::from(from.wrapping_add(n) % ring.size);
    Some((0..count).map(|n| chain(guest, ring, guest.word(slot(n)), may_be_indirect)).collect())
}
