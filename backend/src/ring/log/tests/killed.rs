//! A device is killed before each of its stores, and so is the one that comes after it: the third still takes every chain that
//! is available and not used, once, in order.

use proptest::prelude::*;

use super::crash::killed_at;
use super::rig::{Rig, Step};
use crate::driver::{PackedQueue, RingOptions, SplitQueue, Virtqueue};

/// How many stores the first device made before it came to its end by itself.
fn kill_everywhere<D: Virtqueue>(
    options: RingOptions,
    packed: bool,
    shapes: &[u8],
    steps: &[Step],
    second: usize,
) -> usize {
    let mut at = 0;
    loop {
        let mut rig = Rig::<D>::new(options, packed, shapes);
        if killed_at(at, || rig.live(steps)).is_some() {
            return at;
        }
        rig.reap();
        // Early, so that recovery is met too.
        let later = at.wrapping_mul(7).wrapping_add(second) % 23;
        if killed_at(later, || rig.live(&steps[steps.len() / 2..])).is_none() {
            rig.reap();
        }
        rig.live(steps);
        at += 1;
    }
}

fn step() -> impl Strategy<Value = Step> {
    let parts = (0u8..6, 0u8..6, 0u8..6, any::<u8>(), 0u8..10);
    parts.prop_map(|(offer, take, uses, from, whim)| Step { offer, take, uses, from, whim })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_chain_is_used_once_whenever_the_device_is_killed(
        size in 1u16..12, size_log in 0u32..4, event_idx: bool, indirect: bool, second in 0usize..23,
        shapes in prop::collection::vec(any::<u8>(), 1..6),
        steps in prop::collection::vec(step(), 1..8),
    ) {
        let options = |size| RingOptions { size, event_idx, indirect, in_order: false };
        kill_everywhere::<SplitQueue>(options(1 << size_log), false, &shapes, &steps, second);
        kill_everywhere::<PackedQueue>(options(size), true, &shapes, &steps, second);
    }
}

/// A batch of several chains in a full ring, used out of order: the slots behind the first must not be believed when the batch
/// was not published and the next one is shorter.
#[test]
fn what_an_unpublished_batch_left_in_the_ring_is_not_taken_for_used() {
    let take_all = Step { offer: 4, take: 4, uses: 0, from: 0, whim: 9 };
    let use_three = Step { offer: 0, take: 0, uses: 3, from: 1, whim: 9 };
    let use_one = Step { offer: 0, take: 4, uses: 1, from: 2, whim: 9 };
    for size in [4, 5] {
        let options = RingOptions::plain(size);
        let mut at = 0;
        loop {
            let mut rig = Rig::<PackedQueue>::new(options, true, &[0]);
            if killed_at(at, || rig.live(&[take_all, use_three])).is_some() {
                break;
            }
            rig.reap();
            rig.live(&[use_one, use_one]);
            at += 1;
        }
        assert!(at > 20, "{at} stores");
    }
}

#[test]
fn chains_that_are_used_in_their_own_burst_cost_no_record() {
    let step = Step { offer: 1, take: 1, uses: 1, from: 0, whim: 9 };
    let both = [step, step];
    let split = kill_everywhere::<SplitQueue>(RingOptions::plain(4), false, &[0], &both, 0);
    // A new log of four entries, recovery apart: the link, the header twice, the mark, the ring.
    assert_eq!(split, 4 + 5 + 2 * 5);
}
