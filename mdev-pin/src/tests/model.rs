//! A space against a naive map of pages, over random operations.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const PAGES: u64 = 12;

#[derive(Clone, Debug)]
enum Step {
    Map { first: u64, pages: u64, file: usize, offset: u64 },
    Unmap { first: u64, pages: u64 },
    Replace(Vec<(u64, u64, usize, u64)>),
}

fn step() -> impl Strategy<Value = Step> {
    let extent = || (0..PAGES, 1..5u64, 0..2usize, 0..PAGES);
    prop_oneof![
        extent().prop_map(|(first, pages, file, offset)| Step::Map { first, pages, file, offset }),
        (0..PAGES, 1..PAGES).prop_map(|(first, pages)| Step::Unmap { first, pages }),
        prop::collection::vec(extent(), 0..5).prop_map(Step::Replace),
    ]
}

/// Per page its file and page in the file; areas by first page.
#[derive(Default)]
struct Naive {
    areas: BTreeMap<u64, (u64, usize, u64)>,
}

impl Naive {
    fn page(&self, page: u64) -> Option<(usize, u64)> {
        let (first, (pages, file, offset)) = self.areas.range(..=page).next_back()?;
        (page < first + pages).then(|| (*file, offset + page - first))
    }

    fn map(&mut self, first: u64, pages: u64, file: usize, offset: u64) -> bool {
        let free = (first..first + pages).all(|page| self.page(page).is_none());
        if free {
            self.areas.insert(first, (pages, file, offset));
        }
        free
    }

    fn unmap(&mut self, first: u64, pages: u64) -> Option<u64> {
        let hit: Vec<_> =
            self.areas.iter().filter(|(at, (n, ..))| **at < first + pages && **at + n > first).collect();
        if hit.is_empty() || hit.iter().any(|(at, (n, ..))| **at < first || **at + n > first + pages) {
            return None;
        }
        let gone: Vec<u64> = hit.iter().map(|(at, _)| **at).collect();
        Some(gone.iter().filter_map(|at| self.areas.remove(at)).map(|(n, ..)| n).sum())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn space_agrees_with_naive_pages(steps in prop::collection::vec(step(), 1..40)) {
        let s = space();
        let files = [memory(2 * PAGES), memory(2 * PAGES)];
        for (number, file) in files.iter().enumerate() {
            for page in 0..2 * PAGES {
                rustix::io::pwrite(file.as_fd(), &[number as u8, page as u8], page * PAGE).unwrap();
            }
        }
        let mut naive = Naive::default();
        let mut lane = s.access.lane();
        for step in steps {
            match step {
                Step::Map { first, pages, file, offset } => {
                    let done = s.ioas.map(area(&files[file], first * PAGE, pages * PAGE, offset * PAGE));
                    prop_assert_eq!(done.is_ok(), naive.map(first, pages, file, offset));
                }
                Step::Unmap { first, pages } => {
                    let done = s.ioas.unmap(range(first * PAGE, pages * PAGE), LONG).ok();
                    prop_assert_eq!(done, naive.unmap(first, pages).map(|n| n * PAGE));
                }
                Step::Replace(extents) => {
                    let mut next = Naive::default();
                    let legal = extents.iter().all(|&(first, pages, file, offset)| next.map(first, pages, file, offset));
                    let areas = extents.iter().map(|&(first, pages, file, offset)| area(&files[file], first * PAGE, pages * PAGE, offset * PAGE));
                    prop_assert_eq!(s.ioas.replace_table(areas.collect(), LONG).is_ok(), legal);
                    if legal {
                        naive = next;
                    }
                }
            }
            let burst = lane.enter();
            for page in 0..PAGES + 5 {
                let seen = burst.slice(Iova(page * PAGE), 2, Perm::READ).ok().map(|s| s.read::<[u8; 2]>(0).unwrap());
                let expected = naive.page(page).map(|(file, page)| [file as u8, page as u8]);
                prop_assert_eq!(seen, expected, "page {}", page);
            }
            drop(burst);
            let areas: Vec<_> = s.ioas.areas().iter().map(|a| (a.range.first().0 / PAGE, a.range.size() as u64 / PAGE)).collect();
            prop_assert_eq!(areas, naive.areas.iter().map(|(at, (n, ..))| (*at, *n)).collect::<Vec<_>>());
        }
        s.ioas.unmap(IovaRange::FULL, LONG).unwrap();
        prop_assert_eq!(s.windows.live(), 0);
    }
}
