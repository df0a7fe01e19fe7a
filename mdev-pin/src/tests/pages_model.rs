//! `pin_pages`, `unpin_pages` and `rw` against a naive map of areas, bytes and counts, over random operations.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{scenarios::errno, *};
use crate::Rw;

const PAGES: u64 = 8;
const NOW: Duration = Duration::ZERO;

#[derive(Clone, Debug)]
enum Step {
    Map {
        first: u64,
        pages: u64,
        offset: u64,
        perm: Perm,
    },
    Unmap {
        first: u64,
        pages: u64,
    },
    Pin {
        first: u64,
        len: u64,
        perm: Perm,
    },
    /// Of one of the ranges that are pinned, by chance, or of any range.
    Unpin {
        which: usize,
        any: Option<(u64, u64)>,
    },
    Read {
        first: u64,
        len: u64,
    },
    Write {
        first: u64,
        len: u64,
        byte: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let perm = || prop_oneof![Just(Perm::READ), Just(Perm::WRITE), Just(Perm::all()), Just(Perm::all())];
    let byte = || prop_oneof![4 => (0..PAGES).prop_map(|page| page * PAGE), 1 => 0..PAGES * PAGE];
    let len = || prop_oneof![3 => (1..5u64).prop_map(|pages| pages * PAGE), 1 => 0..3 * PAGE];
    prop_oneof![
        3 => (0..PAGES, 1..4u64, 0..PAGES, perm())
            .prop_map(|(first, pages, offset, perm)| Step::Map { first, pages, offset, perm }),
        1 => (0..PAGES, 1..PAGES).prop_map(|(first, pages)| Step::Unmap { first, pages }),
        4 => (byte(), len(), perm()).prop_map(|(first, len, perm)| Step::Pin { first, len, perm }),
        3 => (any::<usize>(), prop::option::weighted(0.2, (byte(), len())))
            .prop_map(|(which, any)| Step::Unpin { which, any }),
        1 => (0..PAGES * PAGE, len()).prop_map(|(first, len)| Step::Read { first, len }),
        1 => (0..PAGES * PAGE, len(), any::<u8>())
            .prop_map(|(first, len, byte)| Step::Write { first, len, byte }),
    ]
}

struct Known {
    pages: u64,
    offset: u64,
    perm: Perm,
    gated: bool,
}

/// Areas by first page; how often each range, first byte and length, is pinned; the bytes of the file.
struct Naive {
    areas: BTreeMap<u64, Known>,
    pins: BTreeMap<(u64, u64), u64>,
    file: Vec<u8>,
}

impl Naive {
    fn at(&self, byte: u64) -> Option<(u64, &Known)> {
        let (first, area) = self.areas.range(..=byte / PAGE).next_back()?;
        (byte < (first + area.pages) * PAGE).then_some((first * PAGE, area))
    }

    /// Goes through a range area by area: where each part is in the file and how long. The first error ends it.
    fn parts(&self, first: u64, len: u64, perm: Perm, aligned: bool) -> (Vec<(usize, usize)>, i32) {
        let mut parts = Vec::new();
        if len == 0 {
            return (parts, 22);
        }
        let (mut at, end) = (first, first + len);
        while at < end {
            let Some((start, area)) = self.at(at) else { return (parts, 2) };
            if area.gated || (aligned && !at.is_multiple_of(PAGE)) {
                return (parts, 22);
            }
            if !area.perm.contains(perm) {
                return (parts, 1);
            }
            let part = end.min(start + area.pages * PAGE) - at;
            parts.push(((area.offset * PAGE + at - start) as usize, part as usize));
            at += part;
        }
        (parts, 0)
    }

    fn map(&mut self, first: u64, pages: u64, offset: u64, perm: Perm) -> i32 {
        if (first..first + pages).any(|page| self.at(page * PAGE).is_some()) {
            return 17;
        }
        self.areas.insert(first, Known { pages, offset, perm, gated: false });
        0
    }

    fn unmap(&mut self, first: u64, pages: u64) -> Result<u64, i32> {
        let hit = |(at, area): &(&u64, &Known)| **at < first + pages && **at + area.pages > first;
        let hits: Vec<(u64, u64)> =
            self.areas.iter().filter(hit).map(|(at, area)| (*at, area.pages)).collect();
        if hits.is_empty() || hits.iter().any(|(at, n)| *at < first || at + n > first + pages) {
            return Err(2);
        }
        for (at, n) in &hits {
            if self.pins.keys().any(|(pin, len)| *pin < (at + n) * PAGE && pin + len > at * PAGE) {
                self.areas.get_mut(at).unwrap().gated = true;
                return Err(35);
            }
            self.areas.remove(at);
        }
        Ok(hits.iter().map(|(_, n)| n * PAGE).sum())
    }

    fn unpin(&mut self, range: (u64, u64)) -> i32 {
        let Some(count) = self.pins.get_mut(&range) else { return 22 };
        *count -= 1;
        if *count == 0 {
            self.pins.remove(&range);
        }
        0
    }

    /// One for each area of each pinned range.
    fn pieces(&self) -> u64 {
        let areas = |(first, len): &(u64, u64)| {
            let meets = |(at, area): &(&u64, &Known)| {
                **at * PAGE < first + len && (**at + area.pages) * PAGE > *first
            };
            self.areas.iter().filter(meets).count() as u64
        };
        self.pins.keys().map(areas).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn pages_agree_with_naive_counts_and_bytes(steps in prop::collection::vec(step(), 1..60)) {
        let s = pinning_space(Arc::new(IgnoreUnmap));
        let file = memory(2 * PAGES);
        let mut naive = Naive { areas: BTreeMap::new(), pins: BTreeMap::new(), file: vec![0; (2 * PAGES * PAGE) as usize] };
        for (number, byte) in naive.file.iter_mut().enumerate() {
            *byte = (number % 251) as u8;
        }
        rustix::io::pwrite(file.as_fd(), &naive.file, 0).unwrap();
        for step in steps {
            match step {
                Step::Map { first, pages, offset, perm } => {
                    let wanted = Area { perm, ..area(&file, first * PAGE, pages * PAGE, offset * PAGE) };
                    let done = s.ioas.map(wanted).map_or_else(|error| error.errno(), |()| 0);
                    prop_assert_eq!(done, naive.map(first, pages, offset, perm));
                }
                Step::Unmap { first, pages } => {
                    let done = s.ioas.unmap(range(first * PAGE, pages * PAGE), NOW).map_err(|error| error.errno());
                    prop_assert_eq!(done, naive.unmap(first, pages));
                }
                Step::Pin { first, len, perm } => {
                    let (parts, expected) = naive.parts(first, len, perm, true);
                    let pages = s.access.pin_pages(Iova(first), len, perm);
                    if let Ok(pages) = &pages {
                        let bytes = |pin: &Pin| pin.slices().flat_map(|slice| {
                            let mut bytes = vec![0; slice.len()];
                            slice.copy_to(&mut bytes);
                            bytes
                        }).collect::<Vec<u8>>();
                        // A range that is pinned for writing only may be looked at here all the same.
                        let expected: Vec<u8> = parts.iter().flat_map(|(at, len)| &naive.file[*at..at + len]).copied().collect();
                        prop_assert!(pages.with(bytes).unwrap() == expected);
                        *naive.pins.entry((first, len)).or_default() += 1;
                    }
                    prop_assert_eq!(errno(pages), expected);
                }
                Step::Unpin { which, any } => {
                    let known = naive.pins.keys().nth(which % naive.pins.len().max(1)).copied();
                    if let Some((first, len)) = any.or(known) {
                        let expected = if len == 0 { 22 } else { naive.unpin((first, len)) };
                        prop_assert_eq!(errno(s.access.unpin_pages(Iova(first), len)), expected);
                    }
                }
                Step::Read { first, len } => {
                    let (parts, expected) = naive.parts(first, len, Perm::READ, false);
                    let mut seen = vec![0xaa; len as usize];
                    prop_assert_eq!(errno(s.access.rw(Iova(first), Rw::Read(&mut seen))), expected);
                    let mut bytes: Vec<u8> = parts.iter().flat_map(|(at, len)| &naive.file[*at..at + len]).copied().collect();
                    bytes.resize(len as usize, 0xaa);
                    prop_assert!(seen == bytes, "whole areas are read, and nothing behind them");
                }
                Step::Write { first, len, byte } => {
                    let (parts, expected) = naive.parts(first, len, Perm::WRITE, false);
                    let done = s.access.rw(Iova(first), Rw::Write(&vec![byte; len as usize]));
                    prop_assert_eq!(errno(done), expected);
                    for (at, len) in parts {
                        naive.file[at..at + len].fill(byte);
                    }
                }
            }
            prop_assert_eq!(s.access.pins(), naive.pieces());
        }
        let mut bytes = vec![0; naive.file.len()];
        rustix::io::pread(file.as_fd(), &mut bytes, 0).unwrap();
        prop_assert!(bytes == naive.file);
        for ((first, len), count) in naive.pins {
            for _ in 0..count {
                s.access.unpin_pages(Iova(first), len).unwrap();
            }
        }
        prop_assert_eq!(s.access.pins(), 0);
        s.ioas.unmap(IovaRange::FULL, LONG).unwrap();
        prop_assert_eq!(s.windows.live(), 0);
    }
}
