use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

impl Numbered for u64 {
    fn id(&self) -> u64 {
        *self
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push,
    Wake(u64),
    Rest(usize),
    Sweep(BTreeSet<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    let id = 0u64..12;
    prop_oneof![
        3 => Just(Step::Push),
        3 => id.clone().prop_map(Step::Wake),
        3 => (0usize..12).prop_map(Step::Rest),
        1 => prop::collection::btree_set(id, 0..3).prop_map(Step::Sweep),
    ]
}

proptest! {
    #[test]
    fn every_slot_is_where_two_sets_say_it_is(steps in prop::collection::vec(step(), 0..60)) {
        let mut roster = Roster::new();
        let (mut polled, mut resting) = (BTreeSet::new(), BTreeSet::new());
        let mut next = 0;
        for step in steps {
            match step {
                Step::Push => {
                    roster.push(next);
                    polled.insert(next);
                    next += 1;
                }
                Step::Wake(id) => {
                    let rested = resting.remove(&id);
                    let there = rested || polled.contains(&id);
                    let woken = roster.wake(id).map(|(rested, slot)| (rested, *slot));
                    prop_assert_eq!(woken, there.then_some((rested, id)));
                    if there {
                        polled.insert(id);
                    }
                }
                Step::Rest(at) => {
                    if let Some(&id) = roster.polled().get(at) {
                        polled.remove(&id);
                        resting.insert(id);
                    }
                    roster.rest(at);
                }
                Step::Sweep(gone) => {
                    let mut left = BTreeSet::new();
                    roster.sweep(|id| gone.contains(id), |id| assert!(left.insert(id)));
                    let there = polled.union(&resting).copied().filter(|id| gone.contains(id));
                    prop_assert_eq!(left, there.collect::<BTreeSet<_>>());
                    polled.retain(|id| !gone.contains(id));
                    resting.retain(|id| !gone.contains(id));
                }
            }
            prop_assert_eq!(roster.polled().iter().copied().collect::<BTreeSet<_>>(), polled.clone());
            prop_assert_eq!((roster.polled_count(), roster.resting_count()), (polled.len(), resting.len()));
            prop_assert_eq!(roster.is_empty(), polled.is_empty() && resting.is_empty());
            let all: BTreeSet<u64> = roster.iter().copied().collect();
            prop_assert_eq!(all.len(), polled.len() + resting.len());
            let turns: BTreeSet<u64> = (0..resting.len()).filter_map(|_| roster.next_resting().copied()).collect();
            prop_assert_eq!(&turns, &resting, "each has its turn");
        }
    }
}
