//! An immutable sorted table from device addresses to whatever covers them.
//!
//! The items sit in leaves of at most [`LEAF`], the leaves under one spine with the first address of each. A change
//! copies one leaf (two when leaves are merged) and the spine and shares the rest with the table it came from, so
//! that a table of 65,535 areas can be changed while readers are in the old one. An empty leaf does not exist;
//! ranges do not overlap.
//!
//! A lookup tries the caller's last hit first, then searches the spine, then the leaf.

use std::sync::Arc;

use crate::{Iova, IovaRange};

/// Most items in a leaf.
const LEAF: usize = 64;
/// A leaf smaller than this joins a neighbour if both fit into one leaf with room to grow.
const SMALL_LEAF: usize = LEAF / 4;

/// Something that covers a range of device addresses.
pub trait Ranged {
    /// The range; it does not change while the item is in a table.
    fn range(&self) -> IovaRange;
}

/// Where the last lookup hit, kept by the caller. A stale hint, or one of another table, is harmless: it is checked
/// against the table it is used with.
#[derive(Copy, Clone, Debug, Default)]
pub struct Hint {
    leaf: u32,
    item: u32,
}

type Leaf<T> = Arc<[T]>;

/// An immutable table of items sorted by address. Cloning it costs two reference counts.
#[derive(Debug)]
pub struct IovaMap<T> {
    /// The first address of each leaf.
    firsts: Arc<[u64]>,
    leaves: Arc<[Leaf<T>]>,
    len: usize,
}

/// Where an item is, or would be put.
#[derive(Copy, Clone)]
struct Position {
    leaf: usize,
    item: usize,
}

impl<T> Clone for IovaMap<T> {
    fn clone(&self) -> Self {
        IovaMap { firsts: Arc::clone(&self.firsts), leaves: Arc::clone(&self.leaves), len: self.len }
    }
}

impl<T: Ranged + Clone> Default for IovaMap<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Ranged + Clone> IovaMap<T> {
    /// An empty table.
    pub fn new() -> Self {
        IovaMap { firsts: Arc::from([]), leaves: Arc::from([]), len: 0 }
    }

    /// A table of `items`, in any order.
    pub fn from_items(mut items: Vec<T>) -> Result<Self, MapError> {
        items.sort_by_key(|item| item.range().first());
        for pair in items.windows(2) {
            if let [before, after] = pair {
                let (before, after) = (before.range(), after.range());
                if after.first() <= before.last() {
                    return Err(MapError::Overlap { new: after, existing: before });
                }
            }
        }
        Ok(Self::from_leaves(items.chunks(LEAF).map(Arc::from).collect()))
    }

    /// The table with `item` added; this one stays as it is.
    pub fn insert(&self, item: T) -> Result<Self, MapError> {
        let range = item.range();
        if let Some(existing) = self.overlapping(range).next() {
            return Err(MapError::Overlap { new: range, existing: existing.range() });
        }
        let mut leaves = self.leaves.to_vec();
        let at = self.position_from(range.first());
        match leaves.get_mut(at.leaf) {
            None => leaves.push(Arc::from([item])),
            Some(leaf) => {
                let mut items = leaf.to_vec();
                items.insert(at.item.min(items.len()), item);
                if items.len() <= LEAF {
                    *leaf = Arc::from(items);
                } else {
                    let (low, high) = items.split_at(items.len() / 2);
                    *leaf = Arc::from(low);
                    leaves.insert(at.leaf + 1, Arc::from(high));
                }
            }
        }
        Ok(Self::from_leaves(leaves))
    }

    /// The table without the item whose range starts at `first`, and that item; `None` if there is none.
    pub fn remove(&self, first: Iova) -> Option<(Self, T)> {
        let at = self.find(first)?;
        let mut items = self.leaves.get(at.leaf)?.to_vec();
        if items.get(at.item)?.range().first() != first {
            return None;
        }
        let removed = items.remove(at.item);

        let mut leaves = self.leaves.to_vec();
        if items.is_empty() {
            leaves.remove(at.leaf);
        } else {
            // Whichever neighbour leaves room to grow: a leaf that was just split is not merged again at once.
            let fits = |leaf: usize| {
                leaves.get(leaf).is_some_and(|other| other.len() + items.len() <= LEAF - SMALL_LEAF)
            };
            let (before, after) = (at.leaf.wrapping_sub(1), at.leaf + 1);
            if items.len() < SMALL_LEAF && fits(before) {
                let merged = leaves.remove(before).iter().cloned().chain(items).collect();
                leaves[before] = merged;
            } else if items.len() < SMALL_LEAF && fits(after) {
                let other = leaves.remove(after);
                items.extend(other.iter().cloned());
                leaves[at.leaf] = Arc::from(items);
            } else {
                leaves[at.leaf] = Arc::from(items);
            }
        }
        Some((Self::from_leaves(leaves), removed))
    }

    /// The table with `item` in place of the one that starts at the same address. `None` if no item starts there, or
    /// if `item` is longer and would overlap the next one.
    pub fn replace(&self, item: T) -> Option<Self> {
        let range = item.range();
        let at = self.find(range.first())?;
        let mut items = self.leaves.get(at.leaf)?.to_vec();
        let old = items.get_mut(at.item).filter(|old| old.range().first() == range.first())?;
        *old = item;
        if self.overlapping(range).nth(1).is_some() {
            return None;
        }
        let mut leaves = self.leaves.to_vec();
        *leaves.get_mut(at.leaf)? = Arc::from(items);
        // The leaf's first address is what it was.
        Some(IovaMap { firsts: Arc::clone(&self.firsts), leaves: Arc::from(leaves), len: self.len })
    }

    /// The item that covers `at`.
    #[inline]
    pub fn lookup(&self, at: Iova) -> Option<&T> {
        let found = self.find(at)?;
        self.leaves.get(found.leaf)?.get(found.item)
    }

    /// The item that covers `at`, looked for first where `hint` says; `hint` is set to where it was found.
    #[inline]
    pub fn lookup_hinted(&self, at: Iova, hint: &mut Hint) -> Option<&T> {
        if let Some(item) = self.leaves.get(hint.leaf as usize).and_then(|leaf| leaf.get(hint.item as usize))
            && item.range().contains(at)
        {
            return Some(item);
        }
        self.lookup_and_note(at, hint)
    }

    /// The slow half of [`IovaMap::lookup_hinted`].
    #[inline(never)]
    fn lookup_and_note(&self, at: Iova, hint: &mut Hint) -> Option<&T> {
        let found = self.find(at)?;
        // A position that does not fit wraps to another one: it is only a hint.
        *hint = Hint { leaf: found.leaf as u32, item: found.item as u32 };
        self.leaves.get(found.leaf)?.get(found.item)
    }

    /// The items that share a byte with `range`, in order of address.
    pub fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = &T> {
        self.iter_from(self.position_from(range.first()))
            .take_while(move |item| item.range().first() <= range.last())
    }

    /// All items in order of address.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.iter_from(Position { leaf: 0, item: 0 })
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn from_leaves(leaves: Vec<Leaf<T>>) -> Self {
        let first_of = |leaf: &Leaf<T>| leaf.first().map_or(0, |item| item.range().first().0);
        IovaMap {
            firsts: leaves.iter().map(first_of).collect(),
            len: leaves.iter().map(|leaf| leaf.len()).sum(),
            leaves: Arc::from(leaves),
        }
    }

    /// The leaf in which an item that starts at `at` or before it would be, and the index behind the last such item.
    #[inline]
    fn locate(&self, at: Iova) -> Option<(usize, usize)> {
        let leaf = self.firsts.partition_point(|first| *first <= at.0).checked_sub(1)?;
        let items = self.leaves.get(leaf)?;
        Some((leaf, items.partition_point(|item| item.range().first() <= at)))
    }

    /// The item that covers `at`.
    #[inline]
    fn find(&self, at: Iova) -> Option<Position> {
        let (leaf, behind) = self.locate(at)?;
        let item = behind.checked_sub(1)?;
        self.leaves.get(leaf)?.get(item)?.range().contains(at).then_some(Position { leaf, item })
    }

    /// The first item whose last byte is at `at` or behind it; in a full leaf that may be the place behind its end.
    fn position_from(&self, at: Iova) -> Position {
        let Some((leaf, behind)) = self.locate(at) else { return Position { leaf: 0, item: 0 } };
        let covers = |item: &T| item.range().last() >= at;
        match behind.checked_sub(1) {
            Some(item) if self.leaves.get(leaf).and_then(|items| items.get(item)).is_some_and(covers) => {
                Position { leaf, item }
            }
            _ => Position { leaf, item: behind },
        }
    }

    fn iter_from(&self, start: Position) -> impl Iterator<Item = &T> {
        let leaves = self.leaves.get(start.leaf..).unwrap_or_default();
        leaves.iter().flat_map(|leaf| leaf.iter()).skip(start.item)
    }
}

/// Why a table could not be made.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Two items share a byte (`EEXIST`).
    #[error("{new} overlaps {existing}, which is mapped already; unmap that first")]
    Overlap {
        /// The range that was to be added.
        new: IovaRange,
        /// A range that was there before.
        existing: IovaRange,
    },
}

#[cfg(test)]
mod tests;
