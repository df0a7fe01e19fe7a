use proptest::prelude::*;

use super::*;

#[test]
fn rooms_are_memory_apart_from_each_other_that_can_be_pinned() {
    let mut bounce = Bounce::new().unwrap();
    let (one, two) = (bounce.take(1 << 20).unwrap(), bounce.take(1 << 20).unwrap());
    assert_eq!(bounce.take(1), None);
    bounce.with(one, 1 << 20, |slice| slice.fill(1)).unwrap();
    bounce.with(two, 1 << 20, |slice| slice.fill(2)).unwrap();
    let pin = bounce.pin(one, 512).unwrap();
    assert_eq!(bounce.with(one, 512, |slice| slice.read::<u8>(511)).unwrap(), Some(1));
    assert_eq!(bounce.with(one, (1 << 20) + 1, |_| ()), None, "it has not so many");
    drop(pin);
    bounce.give(one);
    assert_eq!(bounce.take(1), Some(Room { at: one.at, len: 1 }));
}

proptest! {
    #[test]
    fn rooms_are_those_of_a_naive_map_of_units(
        steps in proptest::collection::vec((any::<bool>(), 1u32..20_000), 0..120),
    ) {
        const LEN: usize = 128;
        let mut rooms = Rooms::new(LEN as u32 * UNIT);
        let mut used = [false; LEN];
        let mut taken: Vec<(u32, u32)> = Vec::new();
        for (takes, number) in steps {
            if takes || taken.is_empty() {
                let units = (number as usize).div_ceil(UNIT as usize);
                let fits = |at: &usize| used.get(*at..*at + units).is_some_and(|some| !some.contains(&true));
                let expected = (0..LEN).find(fits);
                let found = rooms.take(number);
                prop_assert_eq!(found, expected.map(|at| at as u32 * UNIT));
                if let (Some(at), Some(first)) = (found, expected) {
                    used[first..first + units].fill(true);
                    taken.push((at, number));
                }
            } else {
                let (at, len) = taken.swap_remove(number as usize % taken.len());
                rooms.give(at, len);
                let first = (at / UNIT) as usize;
                used[first..first + len.div_ceil(UNIT) as usize].fill(false);
            }
        }
        for (at, len) in taken {
            rooms.give(at, len);
        }
        prop_assert_eq!(rooms.free, BTreeMap::from([(0, LEN as u32 * UNIT)]));
    }
}
