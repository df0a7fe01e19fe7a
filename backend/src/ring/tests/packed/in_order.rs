//! VIRTIO_F_IN_ORDER in both formats: one entry for a burst that was only read, an entry each for what was written.

use proptest::prelude::*;

use super::super::guest::{Guest, Ring as SplitRing, WRITE};
use super::super::legal::{Shape, shape};
use super::guest::PackedRing;
use super::legal::standing;
use super::naive::{DATA, Driver, MEMORY};
use crate::ring::{Ring, RingSetup};

/// Takes up to `max`, completes all of it: with nothing written, or each chain with its place as length.
fn serve(guest: &Guest, device: &mut Ring, max: usize, written: bool) -> Vec<(u16, u32)> {
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst).unwrap();
    let mut taken = Vec::new();
    vring
        .take(max, |chain| {
            taken.push((chain.head, if written { taken.len() as u32 + 1 } else { 0 }));
            Ok(())
        })
        .unwrap();
    if written {
        taken.iter().for_each(|(id, len)| vring.complete(*id, *len).unwrap());
    } else {
        vring.complete_all().unwrap();
    }
    vring.publish().unwrap();
    taken
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn driver_that_counts_on_the_order_walks_through_every_batch(
        (size, start) in standing(),
        steps in prop::collection::vec(
            (prop::collection::vec(shape(), 1..6), 1usize..8, any::<bool>(), any::<bool>()), 1..40),
    ) {
        let guest = Guest::new(MEMORY);
        let mut driver = Driver::new(PackedRing::new(&guest, 0, size, start));
        let setup = RingSetup { in_order: true, ..driver.ring.setup(&guest) };
        let mut device = Ring::new(setup.clone()).unwrap();
        for (shapes, max, written, restart) in steps {
            shapes.iter().for_each(|shape: &Shape| driver.offer(&guest, shape));
            let taken = serve(&guest, &mut device, max, written);
            prop_assert_eq!(driver.reclaim_in_order(&guest), taken);
            prop_assert_eq!(device.state().next_used, Some(driver.ring.seen.word()));
            if restart {
                device = Ring::new(RingSetup { state: device.state(), ..setup.clone() }).unwrap();
            }
        }
    }
}

#[test]
fn batch_in_a_packed_ring_is_one_descriptor_at_its_first_slot() {
    let guest = Guest::new(MEMORY);
    let mut ring = PackedRing::fresh(&guest, 6);
    let mut device = Ring::new(RingSetup { in_order: true, ..ring.setup(&guest) }).unwrap();
    ring.offer(&guest, 5, &[(DATA, 1, 0)]);
    ring.offer(&guest, 2, &[(DATA, 1, 0), (DATA, 1, 0)]);
    ring.offer(&guest, 4, &[(DATA, 1, 0)]);
    let behind = guest.read(16, 80);
    serve(&guest, &mut device, 8, false);
    assert_eq!(ring.used(&guest).map(|(id, len, _)| (id, len)), Some((4, 0)));
    assert_eq!(guest.read(16, 80), behind, "the others stay as they are");
    assert_eq!(device.state().next_used, Some(0x8004));
}

#[test]
fn batch_in_a_split_ring_is_one_entry_at_its_first_slot() {
    // The index wraps within the second batch.
    let guest = Guest::new(MEMORY);
    let mut ring = SplitRing::new(&guest, 0, 8, 65531);
    let mut device = Ring::new(RingSetup { in_order: true, ..ring.setup(&guest) }).unwrap();
    for heads in [[0, 1, 2], [3, 4, 5]] {
        let first = ring.used_index(&guest);
        heads.iter().for_each(|head| ring.give(&guest, *head, DATA, 1, 0));
        serve(&guest, &mut device, 8, false);
        assert_eq!(ring.used(&guest, first), (u32::from(heads[2]), 0));
        assert_eq!(ring.used(&guest, first.wrapping_add(1)), (0, 0), "never written");
        assert_eq!(ring.used_index(&guest), first.wrapping_add(3));
    }
    let first = ring.used_index(&guest);
    (0..3).for_each(|head| ring.give(&guest, head, DATA, 9, WRITE));
    serve(&guest, &mut device, 8, true);
    let used: Vec<(u32, u32)> = (0..3).map(|n| ring.used(&guest, first.wrapping_add(n))).collect();
    assert_eq!(used, [(0, 1), (1, 2), (2, 3)]);
}

#[test]
fn without_the_feature_every_chain_has_its_entry() {
    let guest = Guest::new(MEMORY);
    let mut ring = SplitRing::new(&guest, 0, 8, 0);
    let mut device = ring.device(&guest);
    (0..3).for_each(|head| ring.give(&guest, head, DATA, 1, 0));
    serve(&guest, &mut device, 8, false);
    let used: Vec<(u32, u32)> = (0..3).map(|n| ring.used(&guest, n)).collect();
    assert_eq!(used, [(0, 0), (1, 0), (2, 0)]);
}
