//! Rings of every legal shape, and of random illegal ones, against the naive driver and reader.

use mdev_protocol::virtio::packed::Position;
use proptest::prelude::*;

use super::super::guest::{Guest, WRITE};
use super::super::legal::{Shape, flat, poll, shape};
use super::super::naive::Flat;
use super::guest::PackedRing;
use super::naive::{DATA, Driver, MEMORY, TABLE, TABLES, waiting};
use crate::ring::{Ring, RingSetup};

#[derive(Clone, Debug)]
enum Step {
    Offer(Vec<Shape>),
    Poll {
        max: usize,
        picks: Vec<prop::sample::Index>,
    },
    /// A burst that is dropped after chains were taken and completed in it.
    Drop {
        max: usize,
    },
    /// A burst that gives some of its chains back.
    Untake {
        max: usize,
        back: usize,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(shape(), 1..6).prop_map(Step::Offer),
        4 => (1usize..40, prop::collection::vec(any::<prop::sample::Index>(), 1..12))
            .prop_map(|(max, picks)| Step::Poll { max, picks }),
        1 => (1usize..40).prop_map(|max| Step::Drop { max }),
        1 => (1usize..40, 0usize..5).prop_map(|(max, back)| Step::Untake { max, back }),
        1 => Just(Step::Restart),
    ]
}

/// A ring's size and where it starts.
pub(super) fn standing() -> impl Strategy<Value = (u16, Position)> {
    (1u16..24, any::<u16>(), any::<bool>())
        .prop_map(|(size, slot, wrap)| (size, Position { slot: slot % size, wrap }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Whatever a correct driver does, the device sees its chains, in order, and the driver sees exactly what the device
    /// completed, in the order in which it did: chains of later bursts before those of earlier ones, with stops in between.
    #[test]
    fn packed_ring_and_naive_driver_agree(
        (size, start) in standing(),
        event_idx: bool,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let guest = Guest::new(MEMORY);
        let mut driver = Driver::new(PackedRing::new(&guest, 0, size, start));
        let setup = RingSetup { event_idx, ..driver.ring.setup(&guest) };
        let mut device = Ring::new(setup.clone()).unwrap();
        // Chains of the driver's that the device has taken and not completed.
        let mut pending: Vec<Flat> = Vec::new();
        for step in steps {
            let untaken: Vec<Flat> = driver.held.iter()
                .map(|(flat, _)| flat.clone()).filter(|flat| !pending.contains(flat)).collect();
            match step {
                Step::Offer(shapes) => shapes.iter().for_each(|shape| driver.offer(&guest, shape)),
                Step::Poll { max, picks } => {
                    let held = pending.len();
                    let mut picks = picks.iter().cycle();
                    let completed = {
                        let expected = &untaken[..max.min(untaken.len())];
                        let mut seen = None;
                        let mut completing = pending.clone();
                        let completed = poll(&guest, &mut device, max, &mut completing, &mut |count| {
                            seen.get_or_insert(count - 1);
                            picks.next().unwrap().index(count)
                        }).unwrap();
                        prop_assert_eq!(seen.unwrap() - held, expected.len());
                        let mut all = [&pending[..], expected].concat();
                        all.retain(|flat| !completed.iter().any(|done| done.0 == u32::from(flat.head)));
                        completing.sort_by_key(|flat| flat.head);
                        let mut sorted = all.clone();
                        sorted.sort_by_key(|flat| flat.head);
                        prop_assert_eq!(completing, sorted, "chains as they were offered");
                        pending = all;
                        completed
                    };
                    let used: Vec<(u32, u32)> =
                        driver.reclaim(&guest).into_iter().map(|(id, len)| (id.into(), len)).collect();
                    prop_assert_eq!(used, completed);
                    prop_assert_eq!(device.state().next_used, Some(driver.ring.seen.word()));
                }
                Step::Drop { max } => {
                    let state = device.state();
                    let mut lane = guest.lane();
                    let burst = lane.enter();
                    {
                        let mut vring = device.begin(&burst).unwrap();
                        prop_assert_eq!(vring.take(max, |_| Ok(())), Ok(max.min(untaken.len())));
                        vring.complete_all().unwrap();
                    }
                    prop_assert_eq!(device.state(), state);
                    prop_assert_eq!(driver.ring.used(&guest), None);
                }
                Step::Untake { max, back } => {
                    let mut lane = guest.lane();
                    let burst = lane.enter();
                    let mut vring = device.begin(&burst).unwrap();
                    let taken = vring.take(max, |_| Ok(())).unwrap();
                    vring.untake(back);
                    prop_assert_eq!(vring.publish(), Ok(false));
                    pending.extend_from_slice(&untaken[..taken.saturating_sub(back)]);
                }
                // Stopped and started where it was, as a new front-end does; only when nothing is held back.
                Step::Restart if pending.is_empty() => {
                    let state = device.state();
                    prop_assert_eq!(Some(state.next_avail), state.next_used);
                    device = Ring::new(RingSetup { state, ..setup.clone() }).unwrap();
                }
                Step::Restart => {}
            }
        }
    }

    /// A ring in which words were overwritten at random: what the naive reading refuses, the device refuses by name,
    /// and what it accepts, the device takes as it is.
    #[test]
    fn damaged_packed_rings_are_refused_where_the_naive_reading_refuses(
        (size, start) in standing(),
        shapes in prop::collection::vec(shape(), 1..12),
        damage in prop::collection::vec((any::<prop::sample::Index>(), damaged_word()), 1..6),
        indirect in prop::bool::weighted(0.9),
    ) {
        let guest = Guest::new(MEMORY);
        let mut driver = Driver::new(PackedRing::new(&guest, 0, size, start));
        shapes.iter().for_each(|shape| driver.offer(&guest, shape));
        let tables = (TABLES..TABLES + TABLE * u64::from(size)).step_by(2);
        let words: Vec<u64> = (0..driver.ring.driver).step_by(2).chain(tables).collect();
        for (place, value) in damage {
            guest.set_word(*place.get(&words), value);
        }
        let mut device = Ring::new(RingSetup { indirect, ..driver.ring.setup(&guest) }).unwrap();
        let mut lane = guest.lane();
        let burst = lane.enter();
        let mut vring = device.begin(&burst).unwrap();
        for wanted in waiting(&guest, &driver.ring, start, indirect) {
            prop_assert_eq!(vring.pending().unwrap_or(1), 1);
            let mut taken = None;
            let outcome = vring.take(1, |chain| {
                let (readable, writable) = (flat(chain.readable), flat(chain.writable));
                taken = Some(Flat { head: chain.head, readable, writable });
                Ok(())
            });
            match wanted {
                Some(wanted) => {
                    prop_assert_eq!(outcome, Ok(1));
                    prop_assert_eq!(taken, Some(wanted));
                }
                None => {
                    prop_assert!(outcome.is_err());
                    return Ok(());
                }
            }
        }
        prop_assert_eq!(vring.take(1, |_| Ok(())), Ok(0));
    }

    /// Bytes without any sense: an error or chains, and the device lives.
    #[test]
    fn noise_in_a_packed_ring_is_survived(
        bytes in prop::collection::vec(any::<u8>(), 512..2048), (size, start) in standing(), in_order: bool,
    ) {
        let guest = Guest::new(MEMORY);
        let ring = PackedRing::new(&guest, 0, size, start);
        guest.write(0, &bytes);
        let mut device = Ring::new(RingSetup { in_order, ..ring.setup(&guest) }).unwrap();
        let mut pending = Vec::new();
        for _ in 0..4 {
            let _ = poll(&guest, &mut device, 32, &mut pending, &mut |count| count.saturating_sub(1));
        }
    }
}

/// Values that do harm: flags of both laps, small ones, anything.
fn damaged_word() -> impl Strategy<Value = u16> {
    let flags = prop_oneof![Just(0x80u16), Just(0x8000), Just(0x8080), Just(0)];
    prop_oneof![(flags, 0u16..8).prop_map(|(lap, flags)| lap | flags), 0u16..20, any::<u16>()]
}

#[test]
fn packed_ring_stops_and_goes_on_at_every_position() {
    const SIZE: u16 = 5;
    for slots in [1u16, 2, 3, 5] {
        let guest = Guest::new(MEMORY);
        let mut driver = Driver::new(PackedRing::fresh(&guest, SIZE));
        let setup = driver.ring.setup(&guest);
        let mut state = setup.state;
        let mut at = Position::START;
        for _ in 0..4 * SIZE {
            driver.offer(&guest, &Shape { direct: slots, indirect: 0, writable: 1 });
            let mut device = Ring::new(RingSetup { state, ..setup.clone() }).unwrap();
            let mut pending = Vec::new();
            let completed = poll(&guest, &mut device, 8, &mut pending, &mut |count| count - 1).unwrap();
            assert_eq!((completed.len(), driver.reclaim(&guest).len()), (1, 1), "{slots} slots at {at:?}");
            at = at.advance(slots, SIZE);
            state = device.state();
            assert_eq!((state.next_avail, state.next_used), (at.word(), Some(at.word())));
        }
    }
}

#[test]
fn chain_that_is_held_over_a_stop_leaves_the_used_position_behind() {
    let guest = Guest::new(MEMORY);
    let mut ring = PackedRing::fresh(&guest, 4);
    ring.offer(&guest, 3, &[(DATA, 1, 0), (DATA, 1, 0)]);
    ring.offer(&guest, 1, &[(DATA, 1, WRITE)]);
    let mut device = ring.ring(&guest);
    let mut pending = Vec::new();
    poll(&guest, &mut device, 8, &mut pending, &mut |_| 0).unwrap();
    let state = device.state();
    assert_eq!((state.next_avail, state.next_used), (0x8003, Some(0x8000)));
    // Its slots stay taken for whoever goes on: one is left.
    let mut device = Ring::new(RingSetup { state, ..ring.setup(&guest) }).unwrap();
    ring.offer(&guest, 0, &[(DATA, 1, 0)]);
    poll(&guest, &mut device, 8, &mut pending, &mut |_| 0).unwrap();
    assert_eq!(pending.last().map(|flat| flat.head), Some(0));
}

#[test]
fn packed_ring_of_one_serves_again_and_again() {
    let guest = Guest::new(MEMORY);
    let mut driver = Driver::new(PackedRing::fresh(&guest, 1));
    let mut device = driver.ring.ring(&guest);
    for _ in 0..5 {
        driver.offer(&guest, &Shape { direct: 1, indirect: 0, writable: 0 });
        driver.offer(&guest, &Shape { direct: 1, indirect: 0, writable: 0 });
        poll(&guest, &mut device, 8, &mut Vec::new(), &mut |count| count - 1).unwrap();
        assert_eq!(driver.reclaim(&guest).len(), 1);
    }
}

#[test]
fn later_used_descriptors_do_not_show_before_the_first() {
    let guest = Guest::new(MEMORY);
    let mut ring = PackedRing::fresh(&guest, 8);
    (0..4).for_each(|id| ring.offer(&guest, id, &[(DATA, 1, 0)]));
    let mut device = ring.ring(&guest);
    let mut lane = guest.lane();
    let burst = lane.enter();
    let before = guest.read(0, 128);
    let mut vring = device.begin(&burst).unwrap();
    assert_eq!(vring.take(8, |_| Ok(())), Ok(4));
    vring.complete_all().unwrap();
    assert_eq!(guest.read(0, 128), before, "nothing before it is published");
    vring.publish().unwrap();
    for _ in 0..4 {
        assert!(ring.used(&guest).is_some());
        ring.seen = ring.seen.advance(1, 8);
    }
}
