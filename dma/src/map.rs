//! An immutable sorted table from device addresses to whatever covers them.
//!
//! The items sit in leaves of at most [`LEAF`], the leaves under branches of at most [`BRANCH`], the branches under one
//! root; branches and root know the first address of each thing below them. A change copies one leaf, one branch and
//! the root (a second leaf or branch when two are joined) and shares the rest with the table it came from, so that a
//! table of 65,535 areas can be changed while readers are in the old one, and at the cost of some hundred counts. An
//! empty leaf or branch does not exist; ranges do not overlap.
//!
//! A lookup tries the caller's last hit first, then searches the root, a branch, a leaf.

use std::sync::Arc;

use crate::{Iova, IovaRange};

/// Most items in a leaf. Tests have small ones, so that they see many.
const LEAF: usize = if cfg!(test) { 8 } else { 32 };
/// Most leaves in a branch.
const BRANCH: usize = if cfg!(test) { 8 } else { 64 };
/// A leaf or branch smaller than a quarter joins a neighbour if both fit into one with room to grow: what was just
/// split is not joined again at once.
const fn small(most: usize) -> usize {
    most / 4
}

/// Something that covers a range of device addresses.
pub trait Ranged {
    /// The range; it does not change while the item is in a table.
    fn range(&self) -> IovaRange;
}

/// Where the last lookup hit, kept by the caller. A stale hint, or one of another table, is harmless: it is checked
/// against the table it is used with.
#[derive(Copy, Clone, Debug, Default)]
pub struct Hint(Position);

type Leaf<T> = Arc<[T]>;

/// Leaves, in order.
#[derive(Debug)]
struct Branch<T> {
    /// The first address of each leaf.
    firsts: Box<[u64]>,
    leaves: Box<[Leaf<T>]>,
}

/// An immutable table of items sorted by address. Cloning it costs two reference counts.
#[derive(Debug)]
pub struct IovaMap<T> {
    /// The first address of each branch.
    firsts: Arc<[u64]>,
    branches: Arc<[Arc<Branch<T>>]>,
    len: usize,
}

/// Where an item is, or would be put.
#[derive(Copy, Clone, Debug, Default)]
struct Position {
    branch: usize,
    leaf: usize,
    item: usize,
}

impl<T> Clone for IovaMap<T> {
    fn clone(&self) -> Self {
        IovaMap { firsts: Arc::clone(&self.firsts), branches: Arc::clone(&self.branches), len: self.len }
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
        IovaMap { firsts: Arc::from([]), branches: Arc::from([]), len: 0 }
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
        let len = items.len();
        let leaves: Vec<Leaf<T>> = items.chunks(LEAF).map(Arc::from).collect();
        let branches: Vec<Arc<Branch<T>>> =
            leaves.chunks(BRANCH).map(|leaves| Arc::new(Branch::of(leaves))).collect();
        let firsts = branches.iter().map(|branch| branch.first()).collect();
        Ok(IovaMap { firsts, branches: Arc::from(branches), len })
    }

    /// The table with `item` added; this one stays as it is.
    pub fn insert(&self, item: T) -> Result<Self, MapError> {
        let range = item.range();
        if let Some(existing) = self.overlapping(range).next() {
            return Err(MapError::Overlap { new: range, existing: existing.range() });
        }
        let at = self.position_from(range.first());
        let len = self.len + 1;
        let Some((branch, leaf)) = self.leaf(at) else {
            let branch =
                Branch { firsts: Box::from([range.first().0]), leaves: Box::from([Arc::from([item])]) };
            return Ok(self.with_branches(at.branch, 0, [branch], len));
        };
        let items: Leaf<T> = splice(leaf, at.item, 0, [item]);
        let branch = match halves(&items, LEAF) {
            None => branch.with_leaves(at.leaf, 1, [items]),
            Some((low, high)) => branch.with_leaves(at.leaf, 1, [Arc::from(low), Arc::from(high)]),
        };
        Ok(match halves(&branch.leaves, BRANCH) {
            None => self.with_branches(at.branch, 1, [branch], len),
            Some((low, high)) => self.with_branches(at.branch, 1, [Branch::of(low), Branch::of(high)], len),
        })
    }

    /// The table without the item whose range starts at `first`, and that item; `None` if there is none.
    pub fn remove(&self, first: Iova) -> Option<(Self, T)> {
        let at = self.find(first)?;
        let (branch, leaf) = self.leaf(at)?;
        let removed = leaf.get(at.item).filter(|item| item.range().first() == first)?.clone();
        let items: Leaf<T> = splice(leaf, at.item, 1, []);
        let branch = match neighbour(&branch.leaves, at.leaf, items.len(), LEAF, |leaf| leaf.len()) {
            _ if items.is_empty() => branch.with_leaves(at.leaf, 1, []),
            None => branch.with_leaves(at.leaf, 1, [items]),
            Some((other, other_leaf)) if other < at.leaf => {
                branch.with_leaves(other, 2, [other_leaf.iter().chain(&*items).cloned().collect()])
            }
            Some((_, other_leaf)) => {
                branch.with_leaves(at.leaf, 2, [items.iter().chain(&**other_leaf).cloned().collect()])
            }
        };
        let len = self.len - 1;
        let leaves = branch.leaves.len();
        let table = match neighbour(&self.branches, at.branch, leaves, BRANCH, |branch| branch.leaves.len()) {
            _ if leaves == 0 => self.with_branches(at.branch, 1, [], len),
            None => self.with_branches(at.branch, 1, [branch], len),
            Some((other, other_branch)) if other < at.branch => {
                self.with_branches(other, 2, [other_branch.joined(&branch)], len)
            }
            Some((_, other_branch)) => self.with_branches(at.branch, 2, [branch.joined(other_branch)], len),
        };
        Some((table, removed))
    }

    /// The table with `item` in place of the one that starts at the same address. `None` if no item starts there, or
    /// if `item` is longer and would overlap the next one.
    pub fn replace(&self, item: T) -> Option<Self> {
        let range = item.range();
        let at = self.find(range.first())?;
        let (branch, leaf) = self.leaf(at)?;
        leaf.get(at.item).filter(|old| old.range().first() == range.first())?;
        if self.overlapping(range).nth(1).is_some() {
            return None;
        }
        let branch = branch.with_leaves(at.leaf, 1, [splice(leaf, at.item, 1, [item])]);
        Some(self.with_branches(at.branch, 1, [branch], self.len))
    }

    /// The item that covers `at`.
    #[inline]
    pub fn lookup(&self, at: Iova) -> Option<&T> {
        self.item(self.find(at)?)
    }

    /// The item that covers `at`, looked for first where `hint` says; `hint` is set to where it was found.
    #[inline]
    pub fn lookup_hinted(&self, at: Iova, hint: &mut Hint) -> Option<&T> {
        match self.item(hint.0) {
            Some(item) if item.range().contains(at) => Some(item),
            _ => self.lookup_and_note(at, hint),
        }
    }

    /// The slow half of [`IovaMap::lookup_hinted`].
    #[inline(never)]
    fn lookup_and_note(&self, at: Iova, hint: &mut Hint) -> Option<&T> {
        hint.0 = self.find(at)?;
        self.item(hint.0)
    }

    /// The items that share a byte with `range`, in order of address.
    pub fn overlapping(&self, range: IovaRange) -> impl Iterator<Item = &T> {
        self.iter_from(self.position_from(range.first()))
            .take_while(move |item| item.range().first() <= range.last())
    }

    /// All items in order of address.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.iter_from(Position::default())
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The table with some branches in place of `old` ones from `at` on.
    fn with_branches<const N: usize>(&self, at: usize, old: usize, new: [Branch<T>; N], len: usize) -> Self {
        IovaMap {
            firsts: splice(&self.firsts, at, old, new.each_ref().map(Branch::first)),
            branches: splice(&self.branches, at, old, new.map(Arc::new)),
            len,
        }
    }

    /// The branch and the leaf of a position.
    #[inline]
    fn leaf(&self, at: Position) -> Option<(&Branch<T>, &[T])> {
        let branch = self.branches.get(at.branch)?;
        Some((branch, branch.leaves.get(at.leaf)?))
    }

    #[inline]
    fn item(&self, at: Position) -> Option<&T> {
        self.leaf(at)?.1.get(at.item)
    }

    /// The last item that starts at `at` or before it.
    #[inline]
    fn last_from(&self, at: Iova) -> Option<Position> {
        let branch = self.firsts.partition_point(|first| *first <= at.0).checked_sub(1)?;
        let leaves = self.branches.get(branch)?;
        let leaf = leaves.firsts.partition_point(|first| *first <= at.0).checked_sub(1)?;
        let item =
            leaves.leaves.get(leaf)?.partition_point(|item| item.range().first() <= at).checked_sub(1)?;
        Some(Position { branch, leaf, item })
    }

    /// The item that covers `at`.
    #[inline]
    fn find(&self, at: Iova) -> Option<Position> {
        let found = self.last_from(at)?;
        self.item(found)?.range().contains(at).then_some(found)
    }

    /// The first item whose last byte is at `at` or behind it; in a full leaf that may be the place behind its end.
    fn position_from(&self, at: Iova) -> Position {
        let Some(found) = self.last_from(at) else { return Position::default() };
        let covers = self.item(found).is_some_and(|item| item.range().last() >= at);
        Position { item: if covers { found.item } else { found.item + 1 }, ..found }
    }

    fn iter_from(&self, start: Position) -> impl Iterator<Item = &T> {
        let mut branches = self.branches.get(start.branch..).unwrap_or_default().iter();
        let leaves = branches.next().and_then(|branch| branch.leaves.get(start.leaf..)).unwrap_or_default();
        let leaves = leaves.iter().chain(branches.flat_map(|branch| branch.leaves.iter()));
        leaves.flat_map(|leaf| leaf.iter()).skip(start.item)
    }
}

impl<T: Ranged + Clone> Branch<T> {
    /// Looks at every leaf.
    fn of(leaves: &[Leaf<T>]) -> Self {
        let first_of = |leaf: &Leaf<T>| leaf.first().map_or(0, |item| item.range().first().0);
        Branch { firsts: leaves.iter().map(first_of).collect(), leaves: Box::from(leaves) }
    }

    fn first(&self) -> u64 {
        self.firsts.first().copied().unwrap_or(0)
    }

    /// The branch with some leaves in place of `old` ones from `at` on.
    fn with_leaves<const N: usize>(&self, at: usize, old: usize, new: [Leaf<T>; N]) -> Self {
        let first_of = |leaf: &Leaf<T>| leaf.first().map_or(0, |item| item.range().first().0);
        let firsts = splice(&self.firsts, at, old, new.each_ref().map(first_of));
        Branch { firsts, leaves: splice(&self.leaves, at, old, new) }
    }

    fn joined(&self, behind: &Branch<T>) -> Self {
        let firsts = self.firsts.iter().chain(&behind.firsts).copied().collect();
        Branch { firsts, leaves: self.leaves.iter().chain(&behind.leaves).cloned().collect() }
    }
}

/// `of` with `new` in place of `old` things from `at` on.
fn splice<X: Clone, const N: usize, S: FromIterator<X>>(of: &[X], at: usize, old: usize, new: [X; N]) -> S {
    let (before, rest) = of.split_at(at.min(of.len()));
    let behind = rest.get(old..).unwrap_or_default();
    before.iter().cloned().chain(new).chain(behind.iter().cloned()).collect()
}

/// Two halves, of what has become too long.
fn halves<X>(all: &[X], most: usize) -> Option<(&[X], &[X])> {
    (all.len() > most).then(|| all.split_at(all.len() / 2))
}

/// The neighbour that something of `len` at `at` joins, if it is small.
fn neighbour<X>(
    all: &[X],
    at: usize,
    len: usize,
    most: usize,
    len_of: impl Fn(&X) -> usize,
) -> Option<(usize, &X)> {
    if len >= small(most) {
        return None;
    }
    let fits = |other: usize| Some((other, all.get(other)?));
    let candidates = [at.checked_sub(1), at.checked_add(1)].into_iter().flatten();
    candidates.filter_map(fits).find(|(_, other)| len_of(other) + len <= most - small(most))
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
