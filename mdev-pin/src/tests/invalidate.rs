//! Invalidation: whole areas that a range touches go, together.

use std::task::Waker;

use proptest::prelude::*;

use super::*;
use crate::{IoasError, ParkState};

/// Areas of 1 to 4 pages over an address space of 256, in a file of as many.
const PAGES: u64 = 256;

fn pages(first: u64, count: u64) -> IovaRange {
    range(first * PAGE, count * PAGE)
}

#[test]
fn every_area_that_is_touched_goes_whole_in_one_round() {
    let device = Arc::new(Recorder::default());
    let s = space_with(device.clone());
    let file = memory(8);
    for page in [0, 2, 4, 6] {
        s.ioas.map(area(&file, page * PAGE, 2 * PAGE, page * PAGE)).unwrap();
    }
    // The last byte of the second and the first byte of the third.
    let touched = range(4 * PAGE - 1, 2);
    assert_eq!(s.ioas.begin_invalidate(&[touched], LONG).unwrap().wait().unwrap(), 4 * PAGE);
    let left: Vec<_> = s.ioas.areas().iter().map(|area| area.range).collect();
    assert_eq!(left, [pages(0, 2), pages(6, 2)]);
    assert_eq!(*device.notified.lock().unwrap(), [pages(2, 2), pages(4, 2)]);
    assert_eq!(s.ioas.begin_invalidate(&[touched], LONG).unwrap().wait().unwrap(), 0, "none is success");
    assert_eq!(s.ioas.begin_invalidate(&[IovaRange::FULL], LONG).unwrap().wait().unwrap(), 4 * PAGE);
    assert!(s.ioas.areas().is_empty());
}

#[test]
fn pin_holds_the_whole_round_up_and_a_later_one_gets_all_back() {
    let device = Arc::new(Recorder::default());
    device.stubborn.store(1, Ordering::SeqCst);
    let s = space_with(device.clone());
    let file = memory(2);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    s.ioas.map(area(&file, PAGE, PAGE, PAGE)).unwrap();
    let mut lane = s.access.lane();
    let pin = lane.enter().pin(Iova(PAGE), 8, Perm::READ).unwrap();
    let stuck = s.ioas.begin_invalidate(&[IovaRange::FULL], SOON).unwrap().wait();
    assert!(matches!(stuck, Err(IoasError::Deadlock(_))), "{stuck:?}");
    assert_eq!(lane.enter().slice(Iova(0), 8, Perm::READ).unwrap_err(), ResolveError::Gated);
    drop(pin);
    assert_eq!(s.ioas.begin_invalidate(&[pages(0, 2)], LONG).unwrap().wait().unwrap(), 2 * PAGE);
    assert!(s.ioas.areas().is_empty());
}

#[test]
fn one_change_at_a_time_may_have_an_area() {
    let device = Arc::new(Recorder::default());
    device.stubborn.store(1, Ordering::SeqCst);
    let s = space_with(device);
    let file = memory(2);
    s.ioas.map(area(&file, 0, PAGE, 0)).unwrap();
    let mut lane = s.access.lane();
    let pin = lane.enter().pin(Iova(0), 8, Perm::READ).unwrap();
    let first = s.ioas.begin_invalidate(&[IovaRange::FULL], LONG).unwrap();
    assert!(matches!(s.ioas.begin_invalidate(&[IovaRange::FULL], LONG), Err(IoasError::Busy)));
    drop(pin);
    first.wait().unwrap();
}

#[test]
fn queue_that_may_not_do_it_waits_until_it_may() {
    let s = space();
    let file = memory(1);
    let read_only = Area { perm: Perm::READ, ..area(&file, 0, PAGE, 0) };
    s.ioas.map(read_only.clone()).unwrap();
    let mut lane = s.access.lane();
    assert_eq!(lane.enter().slice(Iova(0), 8, Perm::WRITE).unwrap_err(), ResolveError::Permission);
    let mut parked = lane.park(std::time::Instant::now() + LONG, Waker::noop()).unwrap();
    assert_eq!((parked.iova(), parked.perm()), (Some(Iova(0)), Perm::WRITE));
    assert_eq!(parked.state(), ParkState::Waiting);
    s.ioas.begin_invalidate(&[range(0, 1)], LONG).unwrap().wait().unwrap();
    assert_eq!(parked.state(), ParkState::Woken, "the answer is another one");
    s.ioas.map(read_only).unwrap();
    assert!(lane.enter().slice(Iova(0), 8, Perm::WRITE).is_err());
    parked = lane.park(std::time::Instant::now() + LONG, Waker::noop()).unwrap();
    s.ioas.replace_table(vec![area(&file, 0, PAGE, 0)], LONG).unwrap();
    assert_eq!(parked.state(), ParkState::Woken);
    assert!(lane.enter().slice(Iova(0), 8, Perm::WRITE).is_ok());
    assert!(lane.enter().slice(Iova(PAGE), 8, Perm::WRITE).is_err());
    parked = lane.park(std::time::Instant::now() + LONG, Waker::noop()).unwrap();
    parked.end_by(std::time::Instant::now());
    assert_eq!(parked.state(), ParkState::Expired);
}

#[test]
fn slice_to_keep_crosses_areas_that_continue_each_other_and_no_others() {
    let s = space();
    let file = memory(8);
    for (page, offset) in [(0, 3), (1, 4), (2, 5), (3, 7)] {
        s.ioas.map(area(&file, page * PAGE, PAGE, offset * PAGE)).unwrap();
    }
    let mut lane = s.access.lane();
    let kept = {
        let burst = lane.enter();
        let (slice, kept) = burst.slice_to_keep(Iova(16), 3 * PAGE as u32 - 16, Perm::WRITE).unwrap();
        slice.copy_from(&vec![7; 3 * PAGE as usize - 16]);
        assert!(matches!(
            burst.slice_to_keep(Iova(16), 3 * PAGE as u32 - 15, Perm::WRITE),
            Err(ResolveError::Split)
        ));
        assert!(matches!(
            burst.slice_to_keep(Iova(3 * PAGE), PAGE as u32 + 1, Perm::WRITE),
            Err(ResolveError::Hole)
        ));
        kept
    };
    let mut seen = vec![0; 3 * PAGE as usize - 16];
    rustix::io::pread(file.as_fd(), &mut seen, 3 * PAGE + 16).unwrap();
    assert!(seen.iter().all(|byte| *byte == 7));
    assert_eq!(lane.enter().recall(&kept).map(|slice| slice.len()), Some(3 * PAGE as usize - 16));
    s.ioas.map(area(&file, 9 * PAGE, PAGE, 0)).unwrap();
    assert!(lane.enter().recall(&kept).is_none(), "another table");
}

/// What is done to the space: an area mapped, ranges of bytes invalidated.
#[derive(Clone, Debug)]
enum Step {
    Map { page: u64, count: u64 },
    Invalidate(Vec<(u64, u64)>),
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = (0..PAGES * PAGE, 1..20 * PAGE);
    prop_oneof![
        6 => (0..PAGES, 1..5_u64).prop_map(|(page, count)| Step::Map { page, count }),
        1 => proptest::collection::vec(bytes, 0..3).prop_map(Step::Invalidate),
        1 => Just(Step::Invalidate(vec![(0, u64::MAX)])),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Against a list of ranges. Long enough that more areas go at once than are taken out one by one.
    #[test]
    fn areas_are_those_of_a_naive_list(steps in proptest::collection::vec(step(), 1..300)) {
        let s = space();
        let file = memory(PAGES + 4);
        let mut lane = s.access.lane();
        let mut model: Vec<IovaRange> = Vec::new();
        for step in steps {
            match step {
                Step::Map { page, count } => {
                    let wanted = pages(page, count);
                    let free = model.iter().all(|there| there.intersection(wanted).is_none());
                    let mapped = s.ioas.map(area(&file, page * PAGE, count * PAGE, page * PAGE));
                    prop_assert_eq!(mapped.is_ok(), free);
                    if free {
                        model.push(wanted);
                    }
                }
                Step::Invalidate(bytes) => {
                    let ranges: Vec<_> = bytes.iter().map(|(first, len)| range(*first, *len)).collect();
                    let goes = |there: &IovaRange| ranges.iter().any(|r| r.intersection(*there).is_some());
                    let gone: u128 = model.iter().filter(|there| goes(there)).map(|there| there.size()).sum();
                    model.retain(|there| !goes(there));
                    let bytes = s.ioas.begin_invalidate(&ranges, LONG).unwrap().wait().unwrap();
                    prop_assert_eq!(u128::from(bytes), gone);
                }
            }
            model.sort_by_key(|there| there.first());
            let areas: Vec<_> = s.ioas.areas().iter().map(|area| area.range).collect();
            prop_assert_eq!(&areas, &model);
        }
        let burst = lane.enter();
        for page in 0..PAGES {
            let there = model.iter().any(|there| there.contains(Iova(page * PAGE)));
            prop_assert_eq!(burst.slice(Iova(page * PAGE), 1, Perm::READ).is_ok(), there);
        }
    }
}
