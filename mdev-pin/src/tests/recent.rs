//! What a lane remembers of the pages it hit, against a naive map, over more pages than it has places for.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const PAGES: u64 = 300;

#[derive(Clone, Debug)]
enum Step {
    Look {
        page: u64,
        write: bool,
        pin: bool,
        over: bool,
    },
    /// The page goes, and may come back as another page of the file.
    Change {
        page: u64,
        to: Option<(u64, bool)>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    // Few pages more often than others, so that they are hit again; neighbours and multiples of a power of two.
    let page = || prop_oneof![0..8u64, (0..PAGES / 16).prop_map(|n| n * 16), 0..PAGES];
    let look = (page(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.1))
        .prop_map(|(page, write, pin, over)| Step::Look { page, write, pin, over });
    let change = (page(), prop::option::of((0..PAGES, any::<bool>())))
        .prop_map(|(page, to)| Step::Change { page, to });
    prop_oneof![30 => look, 1 => change]
}

fn permission(writable: bool) -> Perm {
    if writable { Perm::READ | Perm::WRITE } else { Perm::READ }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn pages_hit_of_late_are_those_of_the_present_table(
        bursts in prop::collection::vec(prop::collection::vec(step(), 1..60), 1..12)
    ) {
        let s = space();
        let file = memory(PAGES);
        for page in 0..PAGES {
            rustix::io::pwrite(file.as_fd(), &page.to_le_bytes(), page * PAGE).unwrap();
        }
        // What lies where: the page of the file, and whether it may be written.
        let mut naive: BTreeMap<u64, (u64, bool)> = (0..PAGES).map(|page| (page, (page, page % 3 != 0))).collect();
        let one = |page: u64, (of, writable): (u64, bool)| {
            Area { perm: permission(writable), ..area(&file, page * PAGE, PAGE, of * PAGE) }
        };
        s.ioas.replace_table(naive.iter().map(|(page, to)| one(*page, *to)).collect(), LONG).unwrap();
        let mut lane = s.access.lane();
        for steps in bursts {
            let mut changes = Vec::new();
            let burst = lane.enter();
            for step in steps {
                let Step::Look { page, write, pin, over } = step else {
                    changes.push(step);
                    continue;
                };
                let (len, perm) = (if over { 5000 } else { 8 }, if write { Perm::WRITE } else { Perm::READ });
                let expected = match (naive.get(&page), naive.get(&(page + 1))) {
                    (None, _) => Err(ResolveError::Hole),
                    (Some((_, false)), _) if write => Err(ResolveError::Permission),
                    (_, None) if over => Err(ResolveError::Hole),
                    (_, Some((_, false))) if over && write => Err(ResolveError::Permission),
                    _ if over => Err(ResolveError::Split),
                    (Some((of, _)), _) => Ok(*of),
                };
                let at = Iova(page * PAGE);
                if pin && !over {
                    let pinned = burst.pin(at, len, perm);
                    prop_assert_eq!(pinned.map(|_| ()), expected.map(|_| ()), "pin of page {}", page);
                } else {
                    let seen = burst.slice(at, len, perm).map(|slice| u64::from_le(slice.read::<u64>(0).unwrap()));
                    prop_assert_eq!(seen, expected, "page {}", page);
                }
            }
            drop(burst);
            for change in changes {
                let Step::Change { page, to } = change else { continue };
                if naive.remove(&page).is_some() {
                    prop_assert_eq!(s.ioas.unmap(range(page * PAGE, PAGE), LONG).ok(), Some(PAGE));
                }
                if let Some(to) = to {
                    s.ioas.map(one(page, to)).unwrap();
                    naive.insert(page, to);
                }
            }
        }
    }
}

#[test]
fn page_lost_since_it_was_hit_is_looked_for_again() {
    let s = space();
    let file = memory(2);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    s.ioas.map(area(&file, 0x10_0000, PAGE, PAGE)).unwrap();
    let mut lane = s.access.lane();
    let burst = lane.enter();
    for at in [0, 0x10_0000] {
        burst.slice(Iova(at), 8, Perm::READ).unwrap();
    }
    drop(burst);
    rustix::fs::ftruncate(file.as_fd(), 0).unwrap();
    let burst = lane.enter();
    let slice = burst.slice(Iova(0), 8, Perm::READ).unwrap();
    assert_eq!(slice.read::<u64>(0), Some(0), "lost while it is read");
    assert!(burst.poisoned());
    drop(burst);
    let burst = lane.enter();
    for at in [0, 0x10_0000] {
        assert_eq!(burst.slice(Iova(at), 8, Perm::READ).err(), Some(ResolveError::Poisoned));
    }
}
