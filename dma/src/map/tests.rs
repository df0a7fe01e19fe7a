use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::{BRANCH, Hint, IovaMap, LEAF, MapError, Ranged};
use crate::{Iova, IovaRange};

/// An item with a name, so that a replaced one can be told from the old.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Item {
    range: IovaRange,
    name: u32,
}

impl Ranged for Item {
    fn range(&self) -> IovaRange {
        self.range
    }
}

fn item(first: u64, last: u64, name: u32) -> Item {
    Item { range: IovaRange::new(Iova(first), Iova(last)).unwrap(), name }
}

/// The model: items by first address, every question answered by looking at all of them.
#[derive(Clone, Debug, Default)]
struct Model(BTreeMap<u64, Item>);

impl Model {
    fn overlapping(&self, range: IovaRange) -> Vec<Item> {
        self.0.values().filter(|item| item.range.intersection(range).is_some()).copied().collect()
    }

    fn at(&self, at: u64) -> Option<Item> {
        self.0.values().find(|item| item.range.contains(Iova(at))).copied()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(Item),
    Remove(u64),
    RemoveNth(usize),
    Replace(Item),
    ReplaceNth(usize, u64),
    Lookup(u64),
    Overlapping(IovaRange),
}

/// Addresses close together at the bottom, in the middle and at the very top, so that ranges touch.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..4096_u64, 1 => (1 << 40)..((1 << 40) + 256_u64), 2 => (u64::MAX - 1024)..=u64::MAX]
}

fn range() -> impl Strategy<Value = IovaRange> {
    let len = prop_oneof![8 => 1..6_u64, 1 => 1..600_u64, 1 => any::<u64>()];
    (address(), len).prop_map(|(first, len)| {
        IovaRange::new(Iova(first), Iova(first.saturating_add(len.max(1) - 1))).unwrap()
    })
}

fn op() -> impl Strategy<Value = Op> {
    let any_item = || (range(), any::<u32>()).prop_map(|(range, name)| Item { range, name });
    prop_oneof![
        12 => any_item().prop_map(Op::Insert),
        1 => address().prop_map(Op::Remove),
        3 => any::<usize>().prop_map(Op::RemoveNth),
        1 => any_item().prop_map(Op::Replace),
        2 => (any::<usize>(), 0..8_u64).prop_map(|(n, more)| Op::ReplaceNth(n, more)),
        6 => address().prop_map(Op::Lookup),
        3 => range().prop_map(Op::Overlapping),
    ]
}

/// Small ranges only, many of them: leaves fill up, split, shrink and merge.
fn dense_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => (0..3000_u64, 0..2_u64, any::<u32>()).prop_map(|(first, more, name)| Op::Insert(item(first, first + more, name))),
        4 => any::<usize>().prop_map(Op::RemoveNth),
        1 => (0..3000_u64).prop_map(Op::Lookup),
    ]
}

/// What holds of every table, whatever was done to it.
fn check_shape(map: &IovaMap<Item>, model: &Model) {
    assert_eq!(map.firsts.len(), map.branches.len());
    for (first, branch) in map.firsts.iter().zip(map.branches.iter()) {
        assert!((1..=BRANCH).contains(&branch.leaves.len()), "a branch has {} leaves", branch.leaves.len());
        assert_eq!((branch.firsts[0], branch.firsts.len()), (*first, branch.leaves.len()));
        for (first, leaf) in branch.firsts.iter().zip(branch.leaves.iter()) {
            assert!((1..=LEAF).contains(&leaf.len()), "a leaf has {} items", leaf.len());
            assert_eq!(leaf[0].range.first().0, *first);
        }
    }
    assert_eq!((map.len(), map.is_empty()), (model.0.len(), model.0.is_empty()));
    assert!(map.iter().eq(model.0.values()));
}

fn nth(model: &Model, n: usize) -> Option<Item> {
    model.0.values().nth(n.checked_rem(model.0.len())?).copied()
}

fn remove(map: &mut IovaMap<Item>, model: &mut Model, first: u64) {
    let removed = map.remove(Iova(first));
    assert_eq!(removed.as_ref().map(|(_, item)| *item), model.0.remove(&first));
    if let Some((without, _)) = removed {
        *map = without;
    }
}

fn replace(map: &mut IovaMap<Item>, model: &mut Model, item: Item) {
    let only_itself = |found: &[Item]| matches!(found, [one] if one.range.first() == item.range.first());
    let fits = model.0.contains_key(&item.range.first().0) && only_itself(&model.overlapping(item.range));
    let replaced = map.replace(item);
    assert_eq!(replaced.is_some(), fits, "{item:?}");
    if let Some(replaced) = replaced {
        model.0.insert(item.range.first().0, item);
        *map = replaced;
    }
}

fn apply(map: &mut IovaMap<Item>, model: &mut Model, hint: &mut Hint, op: Op) {
    match op {
        Op::Insert(item) => match map.insert(item) {
            Ok(with) => {
                assert!(model.overlapping(item.range).is_empty());
                model.0.insert(item.range.first().0, item);
                *map = with;
            }
            Err(MapError::Overlap { new, existing }) => {
                assert_eq!(new, item.range);
                assert_eq!(Some(existing), model.overlapping(item.range).first().map(|item| item.range));
            }
        },
        Op::Remove(first) => remove(map, model, first),
        Op::RemoveNth(n) => {
            if let Some(item) = nth(model, n) {
                remove(map, model, item.range.first().0);
            }
        }
        Op::Replace(item) => replace(map, model, item),
        Op::ReplaceNth(n, more) => {
            if let Some(old) = nth(model, n) {
                let last = old.range.last().0.saturating_add(more);
                replace(map, model, item(old.range.first().0, last, old.name.wrapping_add(1)));
            }
        }
        Op::Lookup(at) => {
            let expected = model.at(at);
            assert_eq!(map.lookup(Iova(at)).copied(), expected, "at {at:#x}");
            assert_eq!(map.lookup_hinted(Iova(at), hint).copied(), expected, "at {at:#x} by {hint:?}");
        }
        Op::Overlapping(range) => assert!(map.overlapping(range).copied().eq(model.overlapping(range))),
    }
}

fn run(ops: Vec<Op>) {
    let (mut map, mut model, mut hint) = (IovaMap::new(), Model::default(), Hint::default());
    for op in ops {
        let (before, model_before) = (map.clone(), model.clone());
        apply(&mut map, &mut model, &mut hint, op);
        check_shape(&map, &model);
        check_shape(&before, &model_before);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_table_agrees_with_a_naive_model(ops in prop::collection::vec(op(), 1..500)) {
        run(ops);
    }

    #[test]
    fn leaves_that_split_and_merge_agree_with_a_naive_model(
        start in prop::collection::btree_set(0..1500_u64, 0..700),
        ops in prop::collection::vec(dense_op(), 1..300),
    ) {
        let inserts = start.into_iter().map(|n| Op::Insert(item(2 * n, 2 * n, 0)));
        run(inserts.chain(ops).collect());
    }

    #[test]
    fn a_table_made_at_once_is_the_one_made_step_by_step(items in prop::collection::vec(range(), 0..300)) {
        let items: Vec<Item> = items.into_iter().zip(0..).map(|(range, name)| Item { range, name }).collect();
        let mut model = Model::default();
        let mut overlap = false;
        for item in &items {
            overlap |= !model.overlapping(item.range).is_empty();
            model.0.insert(item.range.first().0, *item);
        }
        match IovaMap::from_items(items) {
            Ok(map) => {
                assert!(!overlap);
                check_shape(&map, &model);
            }
            Err(MapError::Overlap { new, existing }) => {
                assert!(overlap);
                assert!(new.intersection(existing).is_some());
            }
        }
    }
}

#[test]
fn neighbours_may_touch_and_the_last_byte_of_all_is_covered() {
    let map =
        IovaMap::from_items(vec![item(0, 9, 1), item(10, u64::MAX - 1, 2), item(u64::MAX, u64::MAX, 3)])
            .unwrap();
    let name = |at| map.lookup(Iova(at)).map(|item| item.name);
    assert_eq!([name(0), name(9), name(10), name(u64::MAX - 1), name(u64::MAX)], [1, 1, 2, 2, 3].map(Some));
    assert_eq!(map.overlapping(IovaRange::FULL).count(), 3);
}

#[test]
fn one_item_covers_everything_and_nothing_fits_beside_it() {
    let map = IovaMap::new().insert(Item { range: IovaRange::FULL, name: 7 }).unwrap();
    assert_eq!(map.lookup(Iova(u64::MAX)).unwrap().name, 7);
    assert!(map.insert(item(u64::MAX, u64::MAX, 8)).is_err());
}

#[test]
fn a_hint_of_another_table_is_harmless() {
    let many = IovaMap::from_items((0..1000).map(|n| item(n, n, n as u32)).collect()).unwrap();
    let few = IovaMap::from_items(vec![item(5, 6, 42)]).unwrap();
    let mut hint = Hint::default();
    assert_eq!(many.lookup_hinted(Iova(999), &mut hint).unwrap().name, 999);
    assert_eq!(few.lookup_hinted(Iova(5), &mut hint).unwrap().name, 42);
    assert!(few.lookup_hinted(Iova(7), &mut hint).is_none());
    assert!(IovaMap::<Item>::new().lookup_hinted(Iova(5), &mut hint).is_none());
}

#[test]
fn a_change_shares_all_but_one_leaf_and_one_branch_with_the_table_before() {
    let map = IovaMap::from_items((0..65_535).map(|n| item(2 * n, 2 * n, 0)).collect()).unwrap();
    let leaves = |of: &IovaMap<Item>| -> Vec<_> {
        of.branches.iter().flat_map(|branch| branch.leaves.iter().map(|leaf| leaf.as_ptr())).collect()
    };
    let new = |other: IovaMap<Item>| {
        let branch = |new: &&Arc<_>| !map.branches.iter().any(|old| Arc::ptr_eq(new, old));
        let old: BTreeSet<_> = leaves(&map).into_iter().collect();
        let leaf = |new: &&*const Item| !old.contains(new);
        (other.branches.iter().filter(branch).count(), leaves(&other).iter().filter(leaf).count())
    };
    // Everything is full, so that one leaf and one branch become two.
    assert_eq!(new(map.insert(item(77_777, 77_777, 1)).unwrap()), (2, 2));
    assert_eq!(new(map.remove(Iova(77_778)).unwrap().0), (1, 1));
    assert_eq!(new(map.replace(item(77_778, 77_779, 1)).unwrap()), (1, 1));
}

#[test]
fn a_table_that_is_emptied_item_by_item_keeps_few_leaves_and_branches() {
    let mut map = IovaMap::from_items((0..6400).map(|n| item(n, n, 0)).collect()).unwrap();
    for n in (0..6400).filter(|n| n % 16 != 0) {
        map = map.remove(Iova(n)).unwrap().0;
    }
    assert_eq!(map.len(), 400);
    let (branches, leaves) =
        (map.branches.len(), map.branches.iter().map(|branch| branch.leaves.len()).sum::<usize>());
    assert!(leaves <= 2 * 400_usize.div_ceil(LEAF / 4), "{leaves} leaves for 400 items");
    assert!(branches <= 2 * leaves.div_ceil(BRANCH / 4), "{branches} branches for {leaves} leaves");
}
