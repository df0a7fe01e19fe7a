//! Entries of the log of a packed ring: where they are, and what was found in them.

use super::super::RingError;
use super::word_at;

/// Bytes of the header and of an entry.
pub(super) const LAYOUT: (usize, usize) = (32, 32);

/// In an entry: the word with the mark, the link, the last entry and the number of entries; the counter; and the descriptor, id and
/// flags in front of the length, then the address.
pub(super) const MARK: usize = 0;
pub(super) const NEXT: usize = 2;
pub(super) const COUNTER: usize = 8;
pub(super) const DESC: usize = 16;
pub(super) const ADDR: usize = 24;

/// Where no entry is.
pub(super) const NONE: u16 = u16::MAX;

/// A descriptor as it lies in a ring: its address, and length, id and flags.
pub(in super::super) type Entry = [u64; 2];

/// The entries of a chain.
#[derive(Copy, Clone)]
pub(super) struct Recorded {
    pub(super) first: u16,
    pub(super) last: u16,
}

/// A chain that was recorded.
pub(in super::super) struct Again {
    pub(in super::super) id: u16,
    pub(super) counter: u64,
    pub(super) entries: Recorded,
    pub(in super::super) descriptors: Vec<Entry>,
}

impl Recorded {
    pub(super) const NOT: Recorded = Recorded { first: NONE, last: NONE };
}

/// What an entry said.
pub(super) struct Read {
    pub(super) marked: bool,
    pub(super) next: u16,
    last: u16,
    num: u16,
    counter: u64,
    descriptor: Entry,
}

impl Read {
    pub(super) fn of(copy: &[u8], index: u16) -> Result<Read, RingError> {
        let [mark, counter, word, address] =
            [MARK, COUNTER, DESC, ADDR].map(|offset| word_at(copy, at(index, offset)));
        let mark = mark?;
        let [next, last, num] = [16, 32, 48].map(|shift| (mark >> shift) as u16);
        let descriptor = [address?, word?.rotate_left(32)];
        Ok(Read { marked: mark as u8 != 0, next, last, num, counter: counter?, descriptor })
    }
}

/// The chain whose first entry is this one. No entry is met twice.
pub(super) fn chain(read: &[Read], met: &mut [bool], first: u16, size: u16) -> Result<Again, RingError> {
    let head = read.get(usize::from(first)).ok_or(RingError::LogCorrupt)?;
    if head.num == 0 || head.num > size {
        return Err(RingError::LogCorrupt);
    }
    let mut descriptors = Vec::with_capacity(head.num.into());
    let (mut index, mut last) = (first, first);
    for _ in 0..head.num {
        let entry = read.get(usize::from(index)).ok_or(RingError::LogCorrupt)?;
        meet(met, index)?;
        descriptors.push(entry.descriptor);
        last = index;
        index = entry.next;
    }
    let [_, word] = descriptors.last().ok_or(RingError::LogCorrupt)?;
    let id = (word >> 32) as u16;
    if last != head.last {
        return Err(RingError::LogCorrupt);
    }
    Ok(Again { id, counter: head.counter, entries: Recorded { first, last }, descriptors })
}

/// An entry has one owner: the list of free ones, or a chain.
pub(super) fn meet(met: &mut [bool], index: u16) -> Result<(), RingError> {
    match met.get_mut(usize::from(index)) {
        Some(place) if !*place => {
            *place = true;
            Ok(())
        }
        _ => Err(RingError::LogCorrupt),
    }
}

/// Where a field of an entry is.
pub(super) fn at(index: u16, field: usize) -> usize {
    let (header, entry) = LAYOUT;
    usize::from(index).wrapping_mul(entry).wrapping_add(header).wrapping_add(field)
}
