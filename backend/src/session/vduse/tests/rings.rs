//! Rings that stop, say how far they are, and go on.

use mdev_protocol::vduse::VqState;

use super::*;
use crate::sys::Kicks;

fn split(avail_index: u16) -> Outcome {
    Outcome::State(VqState::Split { avail_index })
}

#[test]
fn ring_that_runs_says_how_far_it_is_and_goes_on_from_there() {
    let mut house = House::new(2);
    house.start(Vec::new());
    (house.queues.hold_stops, house.queues.taken) = (true, 5);
    let asked = house.waits(Action::State(0));
    assert!(house.runs(1) && !house.runs(0));
    house.release_stops();
    assert_eq!(house.outcome(&asked), Some(split(5)));
    assert_eq!(starts(&house.queues.take_notes()), [(0, 5)]);
    assert_eq!(house.ask(Action::State(0)).unwrap(), split(10));
}

#[test]
fn ring_that_never_ran_stands_where_the_driver_wants_it_to_start() {
    let mut house = House::new(1);
    house.prepare();
    house.model.place(0, Place { state: Some(VqState::Split { avail_index: 77 }), ..place(0) });
    assert_eq!(house.ask(Action::State(0)).unwrap(), split(77));
    house.done(Action::SetStatus(OK));
    assert_eq!(starts(&house.queues.take_notes()), [(0, 77)]);
}

#[test]
fn ring_that_is_disabled_goes_on_from_where_it_stood_and_after_a_reset_from_its_beginning() {
    let mut house = House::new(1);
    house.start(Vec::new());
    house.queues.taken = 3;
    house.done(Action::SetReady { index: 0, ready: false });
    house.done(Action::SetReady { index: 0, ready: true });
    assert_eq!(starts(&house.queues.take_notes()), [(0, 3)]);
    house.start(Vec::new());
    house.done(Action::SetReady { index: 0, ready: false });
    house.done(Action::SetReady { index: 0, ready: true });
    assert_eq!(starts(&house.queues.take_notes()), [(0, 3)]);
}

#[test]
fn kick_of_a_ring_that_is_on_its_way_is_not_lost() {
    let mut house = House::new(1);
    house.start(Vec::new());
    house.queues.hold_stops = true;
    let asked = house.waits(Action::State(0));
    house.model.kick(0);
    house.release_stops();
    assert!(house.outcome(&asked).is_some());
    let kick = house.queues.running[&0].kick.clone().unwrap();
    assert_eq!(kick.drain(), Kicks::Some(1));
    house.model.kick(0);
    assert_eq!(kick.drain(), Kicks::Some(1));
}

#[test]
fn suspended_device_stands_still_until_a_reset() {
    let mut house = House::new(2);
    house.start(vec![entry(0, MIB, &memfd(MIB), 0)]);
    house.queues.hold_stops = true;
    let asked = house.waits(Action::Suspend);
    assert!(!house.model.is_suspended(), "what was taken is finished first");
    let cancelled = |note: &Note| matches!(note, Note::Cancel { .. });
    assert!(!house.queues.take_notes().iter().any(cancelled));
    house.queues.taken = 9;
    house.release_stops();
    assert_eq!(house.outcome(&asked), Some(Outcome::Done));
    assert!(house.model.is_suspended());
    assert_eq!(house.ask(Action::State(1)).unwrap(), split(9));
    house.done(Action::SetReady { index: 0, ready: true });
    house.done(Action::SetMap(vec![entry(0, MIB, &memfd(MIB), 0)]));
    house.done(Action::SetStatus(OK));
    house.model.kick(0);
    assert!(starts(&house.queues.take_notes()).is_empty(), "nothing moves");
    house.start(Vec::new());
    assert!(house.runs(0) && house.runs(1) && !house.model.is_suspended());
}

#[test]
fn ring_that_has_failed_is_served_again_after_a_reset() {
    let mut house = House::new(2);
    house.start(Vec::new());
    house.session.queue_failed(0, &crate::ring::RingError::LogLost);
    assert!(matches!(house.ask(Action::State(0)), Ok(Outcome::State(_))));
    house.done(Action::SetReady { index: 0, ready: true });
    assert!(!house.runs(0) && house.runs(1));
    house.start(Vec::new());
    assert!(house.runs(0));
}

#[test]
fn reset_waits_for_all_rings_and_leaves_nothing() {
    let mut house = House::new(2);
    house.start(vec![entry(0, MIB, &memfd(MIB), 0)]);
    house.queues.hold_stops = true;
    let asked = house.waits(Action::Reset);
    assert_eq!(house.areas().len(), 1);
    house.release_stops();
    assert_eq!(house.outcome(&asked), Some(Outcome::Done));
    assert!(house.areas().is_empty() && house.queues.running.is_empty());
    assert_eq!(house.windows.live(), 0);
    assert!(house.device.resets.load(Ordering::Relaxed) >= 1);
}
