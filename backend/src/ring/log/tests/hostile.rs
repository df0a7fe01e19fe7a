//! Logs that somebody else has written: a name for what is wrong, or chains that are available; never more than that.

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::super::RingLog;
use super::rig::{Rig, Step};
use crate::driver::{PackedQueue, RingOptions, SplitQueue, Virtqueue};
use crate::ring::{Ring, RingError, RingSetup};

const SIZE: u16 = 4;

/// A ring of four, all of whose chains are in flight, and whose device was killed.
fn left_alone<D: Virtqueue>(packed: bool) -> Rig<D> {
    let mut rig = Rig::<D>::new(RingOptions::plain(SIZE), packed, &[0]);
    rig.offer(4);
    let mut ring = Ring::new(rig.setup()).unwrap();
    let mut lane = rig.lane();
    let burst = lane.enter();
    let mut vring = ring.begin(&burst).unwrap();
    assert_eq!(vring.take(4, |_| Ok(())), Ok(4));
    vring.publish().unwrap();
    rig
}

/// What the next device says of the log, and if nothing, the heads that it takes.
fn next<D: Virtqueue>(rig: &Rig<D>) -> Result<Vec<u16>, RingError> {
    let mut ring = Ring::new(rig.setup())?;
    let mut lane = rig.lane();
    let burst = lane.enter();
    let mut vring = ring.begin(&burst)?;
    let mut heads = Vec::new();
    vring.take(64, |chain| {
        heads.push(chain.head);
        Ok(())
    })?;
    vring.publish()?;
    Ok(heads)
}

fn after_lie<D: Virtqueue>(packed: bool, at: usize, value: u16) -> Result<Vec<u16>, RingError> {
    let rig = left_alone::<D>(packed);
    rig.with_log(|log| log.store_u16(at, value, Ordering::Relaxed)).unwrap();
    next(&rig)
}

#[test]
fn a_log_of_another_kind_is_refused_by_name() {
    let both = |at, value| {
        let found = [after_lie::<SplitQueue>(false, at, value), after_lie::<PackedQueue>(true, at, value)];
        assert_eq!(found[0], found[1]);
        found[0].clone()
    };
    assert_eq!(both(0, 1), Err(RingError::LogVersion { version: 1 }), "unknown features");
    assert_eq!(both(8, 2), Err(RingError::LogVersion { version: 2 }));
    assert_eq!(both(10, 3), Err(RingError::LogSize { entries: 3, size: 4 }));
    assert_eq!(both(10, 5), Err(RingError::LogSize { entries: 5, size: 4 }));
    assert_eq!(both(8, 1).map(|heads| heads.len()), Ok(4), "no lie at all");
}

#[test]
fn a_log_without_room_is_refused() {
    for packed in [false, true] {
        let len = RingLog::len_of(packed, SIZE);
        assert!(len.is_multiple_of(64) && RingLog::len_of(packed, u16::MAX) > len);
        let rig = Rig::<SplitQueue>::new(RingOptions::plain(SIZE), packed, &[0]);
        let setup = |entries| RingSetup { log: Some(RingLog::new(rig.pin(), entries)), ..rig.setup() };
        for entries in [SIZE - 1, 64, u16::MAX] {
            assert_eq!(Ring::new(setup(entries)).err(), Some(RingError::LogTooShort), "{entries}");
        }
        assert!(Ring::new(setup(SIZE)).is_ok());
    }
}

#[test]
fn a_split_log_of_a_ring_that_was_reset_is_refused_unless_it_is_empty() {
    assert_eq!(after_lie::<SplitQueue>(false, 14, 100), Err(RingError::LogIndex { noted: 100, used: 0 }));
    let mut rig = Rig::<SplitQueue>::new(RingOptions::plain(SIZE), false, &[0]);
    rig.live(&[]);
    rig.with_log(|log| log.store_u16(14, 100, Ordering::Relaxed)).unwrap();
    let offered = rig.offer(2);
    assert_eq!(next(&rig), Ok(offered));
}

#[test]
fn a_packed_log_that_contradicts_itself_is_refused() {
    let entry = |index: usize, field: usize| 32 + 32 * index + field;
    let lies = [
        (16, 4, "used slot beyond the ring"),
        (18, 4, "old used slot beyond the ring"),
        (14, 0, "a free entry that a chain has"),
        (entry(1, 6), 0, "a chain of no slots"),
        (entry(1, 6), 5, "a chain of more slots than there are"),
        (entry(1, 6), 2, "a chain that has another's entries"),
        (entry(1, 4), 2, "a chain that ends elsewhere"),
        (entry(1, 16), 4, "a buffer id beyond the ring"),
        (entry(1, 16), 0, "a buffer id twice"),
    ];
    for (at, value, lie) in lies {
        let found = after_lie::<PackedQueue>(true, at, value);
        // With all entries taken, a free list that begins with one frees it.
        let expected = if at == 14 { found.clone().map(drop) } else { Err(RingError::LogCorrupt) };
        assert_eq!(found.map(drop), expected, "{lie}");
    }
}

#[test]
fn a_head_that_is_made_available_twice_fails_the_ring() {
    let mut rig = Rig::<SplitQueue>::new(RingOptions::plain(SIZE), false, &[0]);
    let heads = rig.offer(2);
    let mut ring = Ring::new(rig.setup()).unwrap();
    let mut lane = rig.lane();
    {
        let burst = lane.enter();
        let mut vring = ring.begin(&burst).unwrap();
        assert_eq!(vring.take(1, |_| Ok(())), Ok(1));
        vring.publish().unwrap();
    }
    // The second entry of the available ring names the first one's head.
    let avail = rig.driver.addresses().avail;
    let burst = lane.enter();
    let slice = burst.slice(avail, 8, mdev_dma::Perm::WRITE).unwrap();
    slice.store_u16(6, heads[0], Ordering::Relaxed).unwrap();
    let mut vring = ring.begin(&burst).unwrap();
    assert_eq!(vring.take(1, |_| Ok(())), Ok(1));
    assert_eq!(vring.publish(), Err(RingError::HeadInFlight { head: heads[0] }));
}

#[test]
fn a_chain_that_is_not_in_flight_is_not_used() {
    for packed in [false, true] {
        let used = if packed { unknown_use::<PackedQueue>(true) } else { unknown_use::<SplitQueue>(false) };
        assert_eq!(used, 1, "packed: {packed}");
    }
}

fn unknown_use<D: Virtqueue>(packed: bool) -> u16 {
    let mut rig = Rig::<D>::new(RingOptions::plain(SIZE), packed, &[0]);
    let heads = rig.offer(2);
    let mut ring = Ring::new(rig.setup()).unwrap();
    let mut lane = rig.lane();
    let burst = lane.enter();
    let mut vring = ring.begin(&burst).unwrap();
    assert_eq!(vring.take(1, |_| Ok(())), Ok(1));
    for head in [heads[0], heads[0], heads[1], 3, 77] {
        vring.complete(head, 0).unwrap();
    }
    vring.publish().unwrap();
    drop(burst);
    rig.driver.ready().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_log_makes_a_device_take_what_is_not_there(
        lies in prop::collection::vec((0usize..20, any::<prop::sample::Index>(), 0u16..6), 0..12), packed: bool,
    ) {
        let found = if packed { lied_to::<PackedQueue>(true, &lies) } else { lied_to::<SplitQueue>(false, &lies) };
        if let Ok(heads) = found {
            let mut distinct = heads.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert!(distinct.len() == heads.len() && heads.iter().all(|head| *head < SIZE), "{heads:?}");
        }
    }
}

/// Lies in the first words and anywhere, in numbers that are nearly right; then whatever the device makes of it, and the
/// next one of that.
fn lied_to<D: Virtqueue>(
    packed: bool,
    lies: &[(usize, prop::sample::Index, u16)],
) -> Result<Vec<u16>, RingError> {
    let rig = left_alone::<D>(packed);
    rig.with_log(|log| {
        for (near, far, value) in lies {
            let at = if *near < 16 { 2 * near } else { 2 * far.index(log.len() / 2) };
            log.store_u16(at, *value, Ordering::Relaxed).unwrap();
        }
    });
    let found = next(&rig);
    let _ = next(&rig);
    found
}

#[test]
fn a_new_device_goes_on_with_a_log_that_an_old_one_left_in_order() {
    let mut rig = Rig::<PackedQueue>::new(RingOptions::plain(SIZE), true, &[0]);
    let step = Step { offer: 3, take: 3, uses: 1, from: 1, whim: 9 };
    rig.live(&[step; 7]);
    rig.live(&[step; 7]);
}
