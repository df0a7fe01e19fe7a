use proptest::collection::vec;
use proptest::prelude::*;

use super::{Place, Share};

/// As many places as it can get.
fn greedy(share: &Share) -> Vec<Place> {
    std::iter::from_fn(|| share.take().ok()).collect()
}

#[test]
fn each_user_who_takes_all_it_can_get_leaves_as_much_as_it_has() {
    let whole = Share::whole(1024);
    let taken: Vec<Vec<Place>> = (0..4).map(|_| greedy(&whole.part())).collect();
    assert_eq!(taken.iter().map(Vec::len).collect::<Vec<_>>(), [512, 256, 128, 64]);
    assert_eq!(whole.live(), 960);
}

#[test]
fn whom_all_belongs_to_is_not_bound() {
    let whole = Share::whole(4);
    let places: Vec<Place> = (0..8).map(|_| whole.take().unwrap()).collect();
    assert_eq!(whole.part().take().err(), Some(0));
    drop(places);
    assert_eq!(whole.live(), 0);
}

#[test]
fn users_have_the_same_counts() {
    let whole = Share::whole(8);
    let part = whole.part();
    let place = part.take().unwrap();
    place.mapped();
    place.leave_faults(3);
    drop(place);
    assert_eq!((whole.live(), whole.mapped(), whole.faults()), (0, 1, 3));
}

#[derive(Copy, Clone, Debug)]
enum Step {
    Take(usize),
    /// Gives back one of those that it has.
    Drop(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..4usize).prop_map(Step::Take),
        2 => (0..4usize, any::<usize>()).prop_map(|(user, which)| Step::Drop(user, which)),
    ]
}

proptest! {
    /// Against lists of what each user has.
    #[test]
    fn places_are_given_as_the_rule_says(places in 0..24usize, steps in vec(step(), 0..200)) {
        let whole = Share::whole(places);
        let users: [Share; 4] = std::array::from_fn(|_| whole.part());
        let mut has: [Vec<Place>; 4] = Default::default();
        for step in steps {
            let all: usize = has.iter().map(Vec::len).sum();
            match step {
                Step::Take(user) => match users[user].take() {
                    Ok(place) => {
                        prop_assert!(has[user].len() < places - all);
                        has[user].push(place);
                    }
                    Err(held) => {
                        prop_assert_eq!(held, has[user].len());
                        prop_assert!(held >= places - all);
                    }
                },
                Step::Drop(user, which) => {
                    if let Some(which) = which.checked_rem(has[user].len()) {
                        has[user].swap_remove(which);
                    }
                }
            }
            prop_assert_eq!(whole.live(), has.iter().map(Vec::len).sum::<usize>());
            // Whoever has nothing gets something, as long as there is anything.
            let all = whole.live();
            prop_assert_eq!(whole.part().take().is_ok(), all < places);
        }
    }
}
