//! What is charged, against a naive set of pages for each mapping, over random operations of two spaces.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{Account, Place, change_process};

const PAGES: u64 = 12;
const BOTH: Perm = Perm::READ.union(Perm::WRITE);

#[derive(Clone, Debug)]
enum Step {
    Map {
        space: usize,
        first: u64,
        pages: u64,
        offset: u64,
    },
    Copy {
        from: usize,
        first: u64,
        pages: u64,
        to: u64,
    },
    Unmap {
        space: usize,
        first: u64,
        pages: u64,
    },
    /// Maps the same bytes anew, cut at this page, and without what lies behind that many pages.
    Recut {
        space: usize,
        cut: u64,
        keep: u64,
    },
    Pin {
        space: usize,
        first: u64,
        pages: u64,
    },
    Unpin {
        which: prop::sample::Index,
    },
    Attach {
        space: usize,
    },
    Detach {
        space: usize,
    },
    Change {
        spaces: u8,
        to: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (space, at, pages) = (|| 0..2usize, || 0..PAGES, || 1..5u64);
    prop_oneof![
        4 => (space(), at(), pages(), at())
            .prop_map(|(space, first, pages, offset)| Step::Map { space, first, pages, offset }),
        2 => (space(), at(), pages(), at())
            .prop_map(|(from, first, pages, to)| Step::Copy { from, first, pages, to }),
        1 => (space(), at(), 1..PAGES).prop_map(|(space, first, pages)| Step::Unmap { space, first, pages }),
        2 => (space(), at(), PAGES / 2..2 * PAGES).prop_map(|(space, cut, keep)| Step::Recut { space, cut, keep }),
        4 => (space(), at(), pages()).prop_map(|(space, first, pages)| Step::Pin { space, first, pages }),
        3 => any::<prop::sample::Index>().prop_map(|which| Step::Unpin { which }),
        1 => space().prop_map(|space| Step::Attach { space }),
        1 => space().prop_map(|space| Step::Detach { space }),
        2 => (1..4u8, 0..3usize).prop_map(|(spaces, to)| Step::Change { spaces, to }),
    ]
}

/// A page of a mapping: which mapping, and which page of the file.
type Page = (usize, u64);

/// Pages by IOVA page, with the area they belong to.
#[derive(Default)]
struct Naive {
    /// For each space: the page behind an IOVA page, and the first page of its area.
    spaces: [BTreeMap<u64, (Page, u64)>; 2],
    /// The account of each space, and of each mapping.
    of_space: [usize; 2],
    of_mapping: Vec<usize>,
    attached: [bool; 2],
    pins: Vec<(usize, u64, u64, BTreeSet<Page>)>,
}

impl Naive {
    /// Pages charged to each account.
    fn charged(&self) -> [u64; 3] {
        let mut pages: BTreeSet<Page> = self.pins.iter().flat_map(|(.., pages)| pages).copied().collect();
        for (space, areas) in self.spaces.iter().enumerate() {
            if self.attached[space] {
                pages.extend(areas.values().map(|(page, _)| *page));
            }
        }
        let mut sums = [0; 3];
        pages.iter().for_each(|(mapping, _)| sums[self.of_mapping[*mapping]] += 1);
        sums
    }

    /// First page and length of each area.
    fn areas(&self, space: usize) -> Vec<(u64, u64)> {
        let mut areas: BTreeMap<u64, u64> = BTreeMap::new();
        self.spaces[space].values().for_each(|(_, area)| *areas.entry(*area).or_default() += 1);
        areas.into_iter().collect()
    }

    fn pages(&self, space: usize, first: u64, pages: u64) -> Option<Vec<Page>> {
        (first..first + pages).map(|at| self.spaces[space].get(&at).map(|(page, _)| *page)).collect()
    }

    fn is_pinned(&self, space: usize, first: u64, pages: u64) -> bool {
        let hit =
            |(of, at, n, _): &(usize, u64, u64, _)| *of == space && *at < first + pages && at + n > first;
        self.pins.iter().any(hit)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn charges_agree_with_naive_sets_of_pages(steps in prop::collection::vec(step(), 1..90)) {
        let accounts = [(); 3].map(|()| Account::unlimited());
        let windows = Windows::new().unwrap();
        let spaces = [0, 1].map(|number| Ioas::charged_to(windows.clone(), &accounts[number]));
        let pinners = spaces.each_ref().map(|ioas| {
            let access = Access::pinning(Arc::new(IgnoreUnmap));
            access.attach(ioas).unwrap();
            access
        });
        let bursters = [(); 2].map(|()| Access::new(Arc::new(IgnoreUnmap)));
        let file = memory(3 * PAGES);
        let mut naive = Naive { of_space: [0, 1], ..Naive::default() };
        for step in steps {
            match step {
                Step::Map { space, first, pages, offset } => {
                    let done = spaces[space].map(area(&file, first * PAGE, pages * PAGE, offset * PAGE));
                    if done.is_ok() {
                        let mapping = naive.of_mapping.len();
                        naive.of_mapping.push(naive.of_space[space]);
                        for at in 0..pages {
                            naive.spaces[space].insert(first + at, ((mapping, offset + at), first));
                        }
                    }
                }
                Step::Copy { from, first, pages, to } => {
                    let (into, range) = (1 - from, pages * PAGE);
                    let place = Place::At(Iova(to * PAGE));
                    if spaces[into].copy_from(&spaces[from], Iova(first * PAGE), range, place, BOTH).is_ok() {
                        for at in 0..pages {
                            let (page, area) = naive.spaces[from][&(first + at)];
                            naive.spaces[into].insert(to + at, (page, to + area.max(first) - first));
                        }
                    }
                }
                Step::Unmap { space, first, pages } => {
                    if !naive.is_pinned(space, 0, 4 * PAGES)
                        && spaces[space].unmap(range(first * PAGE, pages * PAGE), LONG).is_ok()
                    {
                        naive.spaces[space].retain(|at, _| !(first..first + pages).contains(at));
                    }
                }
                Step::Recut { space, cut, keep } => {
                    // A cut shares its slot with what goes, so pins would be waited for.
                    if naive.is_pinned(space, 0, 4 * PAGES) {
                        continue;
                    }
                    naive.spaces[space].retain(|at, _| *at < keep);
                    for (at, (_, area)) in naive.spaces[space].iter_mut() {
                        if *at >= cut && *area < cut {
                            *area = cut;
                        }
                    }
                    let offset = |at: u64| naive.spaces[space][&at].0.1;
                    let wanted = naive.areas(space).into_iter()
                        .map(|(at, pages)| area(&file, at * PAGE, pages * PAGE, offset(at) * PAGE));
                    spaces[space].replace_table(wanted.collect(), LONG).unwrap();
                }
                Step::Pin { space, first, pages } => {
                    let done = pinners[space].pin_pages(Iova(first * PAGE), pages * PAGE, BOTH);
                    let expected = naive.pages(space, first, pages);
                    prop_assert_eq!(done.is_ok(), expected.is_some());
                    naive.pins.extend(expected.map(|set| (space, first, pages, set.into_iter().collect())));
                }
                Step::Unpin { which } if !naive.pins.is_empty() => {
                    let (space, first, pages, _) = naive.pins.swap_remove(which.index(naive.pins.len()));
                    pinners[space].unpin_pages(Iova(first * PAGE), pages * PAGE).unwrap();
                }
                Step::Unpin { .. } => {}
                Step::Attach { space } => naive.attached[space] |= bursters[space].attach(&spaces[space]).is_ok(),
                Step::Detach { space } => {
                    let _ = bursters[space].detach(LONG);
                    naive.attached[space] = false;
                }
                Step::Change { spaces: which, to } => {
                    let chosen: Vec<usize> = (0..2).filter(|space| which & (1 << space) != 0).collect();
                    let named: Vec<Ioas> = chosen.iter().map(|space| spaces[*space].clone()).collect();
                    change_process(&named, &accounts[to]).unwrap();
                    for space in chosen {
                        naive.of_space[space] = to;
                        for ((mapping, _), _) in naive.spaces[space].values() {
                            naive.of_mapping[*mapping] = to;
                        }
                    }
                }
            }
            prop_assert_eq!(accounts.each_ref().map(Account::pinned), naive.charged());
            for (space, ioas) in spaces.iter().enumerate() {
                let areas: Vec<_> = ioas.areas().iter()
                    .map(|area| (area.range.first().0 / PAGE, area.range.size() as u64 / PAGE)).collect();
                prop_assert_eq!(areas, naive.areas(space));
            }
        }
        for (space, first, pages, _) in naive.pins {
            pinners[space].unpin_pages(Iova(first * PAGE), pages * PAGE).unwrap();
        }
        bursters.iter().for_each(|access| access.close(LONG).unwrap());
        prop_assert_eq!(accounts.each_ref().map(Account::pinned), [0; 3]);
    }
}
