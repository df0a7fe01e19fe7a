use proptest::prelude::*;

use super::*;

const PAGES: usize = 40;

fn tally(account: &Account) -> Arc<Tally> {
    Arc::new(Tally(Mutex::new(Inner { account: account.clone(), charged: 0, counts: Counts::default() })))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a number for each page: charges, refusals by a limit, releases, and a change of the account.
    #[test]
    fn counts_agree_with_a_number_for_each_page(
        limit in 10..=PAGES as u64,
        steps in prop::collection::vec((0..4u8, 0..PAGES, 1..12usize, any::<prop::sample::Index>()), 1..120),
    ) {
        let mut account = Account::new(limit * PAGE);
        let tally = tally(&account);
        let mut held: Vec<(Charged, usize, usize)> = Vec::new();
        let mut naive = [0u64; PAGES + 12];
        for (what, first, len, which) in steps {
            match what {
                0 | 1 => {
                    let new = naive[first..first + len].iter().filter(|count| **count == 0).count() as u64;
                    let pinned = account.pinned();
                    match Tally::charge(&tally, first as u64, (first + len - 1) as u64) {
                        Ok(charged) => {
                            held.push((charged, first, len));
                            naive[first..first + len].iter_mut().for_each(|count| *count += 1);
                        }
                        Err(refused) => prop_assert_eq!(refused, OverLimit { wanted: new, pinned, limit }),
                    }
                    prop_assert_eq!(held.last().is_some_and(|(_, at, n)| (*at, *n) == (first, len)) || pinned + new > limit, true);
                }
                2 if !held.is_empty() => {
                    let (charged, first, len) = held.swap_remove(which.index(held.len()));
                    drop(charged);
                    naive[first..first + len].iter_mut().for_each(|count| *count -= 1);
                }
                3 => {
                    let to = Account::new(limit * PAGE);
                    let mut inner = tally.lock();
                    to.charge(inner.charged()).unwrap();
                    inner.hand_over(&to);
                    drop(inner);
                    prop_assert_eq!(account.pinned(), 0);
                    account = to;
                }
                _ => {}
            }
            let counted = naive.iter().filter(|count| **count > 0).count() as u64;
            prop_assert_eq!(account.pinned(), counted);
            let inner = tally.lock();
            prop_assert_eq!(inner.charged(), counted);
            let mut seen = [0u64; PAGES + 12];
            let mut before: Option<Run> = None;
            for (at, run) in &inner.counts.0 {
                seen[*at as usize..=run.last as usize].fill(run.count);
                prop_assert!(!before.is_some_and(|last| last.last + 1 == *at && last.count == run.count), "joined");
                before = Some(*run);
            }
            prop_assert_eq!(seen, naive);
        }
        held.clear();
        prop_assert_eq!(account.pinned(), 0);
        prop_assert!(tally.lock().counts.0.is_empty());
    }
}
