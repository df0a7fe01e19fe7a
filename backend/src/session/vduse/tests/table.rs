//! The session's address space against the kernel's table, whatever happens to both.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Where an entry may lie, in pages.
const PAGES: u64 = 40;
const PAGE: u64 = 4096;

#[derive(Clone, Debug)]
enum Step {
    /// The driver maps something else. `held`: the device has a pin on this page meanwhile.
    Set {
        table: Vec<(u64, u64, u64, u8)>,
        held: Option<u64>,
    },
    /// The kernel maps something of its own.
    Map((u64, u64, u64, u8)),
    /// A ring misses something.
    Miss {
        page: u64,
        write: bool,
    },
    /// Between a new table and its message a ring misses something.
    Race {
        table: Vec<(u64, u64, u64, u8)>,
        page: u64,
    },
    Reset,
    Restart,
}

fn an_entry() -> impl Strategy<Value = (u64, u64, u64, u8)> {
    (0..PAGES, 1..6u64, 0..8u64, 1..4u8)
}

/// Sometimes more than what is fetched as a whole.
fn a_table() -> impl Strategy<Value = Vec<(u64, u64, u64, u8)>> {
    prop::collection::vec(an_entry(), 0..16)
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (a_table(), prop::option::of(0..PAGES)).prop_map(|(table, held)| Step::Set { table, held }),
        2 => an_entry().prop_map(Step::Map),
        8 => (0..PAGES, any::<bool>()).prop_map(|(page, write)| Step::Miss { page, write }),
        2 => (a_table(), 0..PAGES).prop_map(|(table, page)| Step::Race { table, page }),
        1 => Just(Step::Reset),
        1 => Just(Step::Restart),
    ]
}

/// Entries of one file, whose bytes tell which page of it they are on.
fn entries(file: &Arc<OwnedFd>, table: &[(u64, u64, u64, u8)]) -> Vec<Entry> {
    let entry = |(at, len, offset, perm): &(u64, u64, u64, u8)| Entry {
        perm: IotlbPerm::from_bits_truncate(*perm),
        ..entry(at * PAGE, len * PAGE, file, offset * PAGE)
    };
    table.iter().map(entry).collect()
}

/// What the device may do on each page, and which page of the file it is.
type Shown = BTreeMap<u64, (Perm, u64)>;

fn shown_by_session(house: &House) -> Shown {
    let mut shown = Shown::new();
    for area in house.session.ioas.areas() {
        let offset = area.extent.file().unwrap().offset;
        for page in 0..(area.range.size() as u64 / PAGE) {
            shown.insert(area.range.first().0 / PAGE + page, (area.perm, offset / PAGE + page));
        }
    }
    shown
}

fn shown_by_kernel(house: &House) -> Shown {
    let mut shown = Shown::new();
    for entry in house.model.entries().values() {
        let mut perm = Perm::empty();
        perm.set(Perm::READ, entry.perm.contains(IotlbPerm::READ));
        perm.set(Perm::WRITE, entry.perm.contains(IotlbPerm::WRITE));
        for page in 0..(entry.range.size() as u64 / PAGE) {
            shown.insert(entry.range.first().0 / PAGE + page, (perm, entry.offset / PAGE + page));
        }
    }
    shown
}

/// What the model expects of one session: the pages that it has seen.
fn check(house: &mut House, told: bool, missed: &[(u64, Perm)]) {
    let (session, kernel) = (shown_by_session(house), shown_by_kernel(house));
    for (page, seen) in &session {
        assert_eq!(kernel.get(page), Some(seen), "page {page} is not there, or another");
    }
    if told && house.model.entries().len() <= super::super::memory::FETCHED {
        assert_eq!(session, kernel, "a table of a few entries is there as a whole");
    }
    for (page, perm) in missed {
        if let Some((allowed, _)) = kernel.get(page)
            && allowed.contains(*perm)
        {
            assert!(session.contains_key(page), "page {page} was missed and not brought");
        }
    }
}

fn missed(house: &mut House, page: u64, perm: Perm) {
    house.queues.take_notes();
    let there = shown_by_kernel(house).get(&page).is_some_and(|(allowed, _)| allowed.contains(perm));
    house.miss(page * PAGE + 9, perm);
    let forsaken = house.queues.take_notes().iter().any(|note| matches!(note, Note::Forsake { .. }));
    assert_ne!(there, forsaken, "whoever waits for page {page} ({perm:?}) is told the truth");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn address_space_shows_what_the_kernel_shows_and_nothing_else(
        steps in prop::collection::vec(a_step(), 1..24)
    ) {
        let mut house = House::new(1);
        let file = memfd(32 * PAGE);
        house.start(Vec::new());
        for step in steps {
            let (mut told, mut seen) = (false, Vec::new());
            match step {
                Step::Set { table, held } => {
                    let pin = held.and_then(|page| house.pin(page * PAGE));
                    match house.ask(Action::SetMap(entries(&file, &table))) {
                        Ok(outcome) => assert_eq!(outcome, Outcome::Done),
                        Err(asked) => {
                            assert!(pin.is_some(), "nobody else could be waited for");
                            drop(pin);
                            assert_eq!(house.outcome(&asked), Some(Outcome::Done));
                        }
                    }
                    told = true;
                }
                Step::Map(one) => {
                    for one in entries(&file, &[one]) {
                        house.model.map(one);
                    }
                }
                Step::Miss { page, write } => {
                    let perm = if write { Perm::WRITE } else { Perm::READ };
                    missed(&mut house, page, perm);
                    seen.push((page, perm));
                }
                Step::Race { table, page } => {
                    // What it still has of the old table is no longer missed, and goes with that.
                    let had = shown_by_session(&house).contains_key(&page);
                    let asked = house.model.begin(Action::SetMap(entries(&file, &table)));
                    house.session.queue_missed(&mut house.queues, 0, Iova(page * PAGE), Perm::READ);
                    assert_eq!(house.outcome(&asked), Some(Outcome::Done));
                    told = true;
                    let forsaken = house.queues.take_notes().contains(&Note::Forsake { index: 0, iova: Iova(page * PAGE) });
                    if !forsaken && !had {
                        seen.push((page, Perm::READ));
                    }
                }
                Step::Reset => {
                    let table: Vec<Entry> = house.model.entries().into_values().collect();
                    house.start(table);
                    told = true;
                }
                Step::Restart => {
                    house.restart();
                    house.pump();
                    told = true;
                }
            }
            assert!(house.runs(0) && house.ended.is_none());
            check(&mut house, told, &seen);
        }
    }
}
