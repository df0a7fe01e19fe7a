use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::{Entry, Registration, TABLE, find, poison_epoch};

/// Beyond every address a process can have, so that no real fault meets these entries.
const NOWHERE: usize = 1 << 62;

/// The n-th made-up window; base, length and page size belong together.
fn entry(n: usize) -> Entry {
    let page = 4096 << (n % 3);
    Entry { base: NOWHERE + n * (1 << 24), len: page * (1 + n % 7), page, writable: n.is_multiple_of(2) }
}

#[test]
fn an_address_finds_the_window_that_holds_it_and_no_other() {
    let (one, two) = (entry(100_001), entry(100_002));
    let first = Registration::new(one).unwrap();
    let second = Registration::new(two).unwrap();
    let found = |address| find(address).map(|found| found.entry);
    assert_eq!(found(one.base), Some(one));
    assert_eq!(found(one.base + one.len - 1), Some(one));
    assert_eq!(found(one.base + one.len), None);
    assert_eq!(found(two.base - 1), None);
    drop(first);
    assert_eq!(found(one.base), None);
    assert_eq!(found(two.base), Some(two));
    drop(second);
    assert_eq!(found(two.base), None);
}

#[test]
fn poison_is_counted_for_the_window_and_a_new_one_starts_at_zero() {
    let one = entry(100_003);
    let bystander = Registration::new(entry(100_004)).unwrap();
    let registration = Registration::new(one).unwrap();
    let before = poison_epoch();
    find(one.base).unwrap().count_poison();
    assert_eq!((registration.poison_count(), bystander.poison_count()), (1, 0));
    assert!(poison_epoch() > before);
    drop(registration);
    // Whichever slot it gets, maybe the same.
    assert_eq!(Registration::new(one).unwrap().poison_count(), 0);
}

#[test]
fn many_lost_pages_of_one_window_are_no_longer_replaced_one_by_one() {
    let one = entry(100_005);
    let _registration = Registration::new(one).unwrap();
    let found = find(one.base).unwrap();
    let alone = (0..100).filter(|_| found.count_poison()).count() as u64;
    assert_eq!(alone, super::PAGES_EACH);
}

#[test]
fn slots_that_change_under_a_reader_are_whole_or_passed_over() {
    // What is registered throughout is always found; what comes and goes is never seen in halves.
    let steady: Vec<_> = (0..4).map(|n| Registration::new(entry(n)).unwrap()).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut looks = 0_u64;
            while !done.load(Ordering::Relaxed) || looks < 100 {
                for n in 0..4 {
                    assert_eq!(find(entry(n).base).map(|found| found.entry), Some(entry(n)));
                }
                for seen in TABLE.iter().take(200).filter_map(super::Slot::get) {
                    if seen.base >= NOWHERE {
                        assert_eq!(seen, entry((seen.base - NOWHERE) >> 24));
                    }
                }
                looks += 1;
            }
        });
        for round in 0..20_000 {
            let n = 4 + round % 50;
            drop(Registration::new(entry(n)).unwrap());
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    drop(steady);
}
