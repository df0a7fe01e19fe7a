//! Whoever serves a device is killed, and another goes on (contract, scenario 26).

use mdev_protocol::vduse::VqState;

use super::*;

#[test]
fn scenario_26_what_was_not_answered_is_asked_again_and_rings_go_on() {
    let mut house = House::tracking(2);
    let file = memfd(MIB);
    write(&file, 0, 7);
    house.start(vec![entry(0, MIB, &file, 0)]);
    let pin = house.pin(4096).unwrap();
    let more = entry(MIB, MIB, &memfd(MIB), 0);
    let update = house.waits(Action::SetMap(vec![more.clone()]));
    let state = house.waits(Action::State(1));
    assert_eq!(house.model.unanswered(), [update.id, state.id]);
    house.restart();
    drop(pin);
    assert_eq!(house.outcome(&update), Some(Outcome::Done), "asked again");
    assert!(matches!(house.outcome(&state), Some(Outcome::State(_))));
    assert_eq!(house.areas(), [(MIB, 2 * MIB - 1)], "the table is that of now");
    assert!(house.runs(0) && house.runs(1));
    assert!(house.queues.running[&0].ring.log.is_some());
}

#[test]
fn scenario_26_drivers_are_called_once_by_whoever_goes_on() {
    let mut house = House::tracking(1);
    house.start(Vec::new());
    let before = house.model.calls(0);
    house.restart();
    house.pump();
    assert_eq!(house.model.calls(0), before + 1, "what was used last may not have been told");
}

#[test]
fn restart_before_the_driver_is_ready_waits_for_it() {
    let mut house = House::tracking(1);
    house.prepare();
    let asked = house.model.begin(Action::SetStatus(OK));
    house.restart();
    assert_eq!(house.outcome(&asked), Some(Outcome::Done));
    assert!(house.runs(0));
    house.restart();
    house.pump();
    assert!(house.runs(0), "nobody had to say so");
}

#[test]
fn restart_in_a_reset_resets() {
    let mut house = House::tracking(1);
    house.start(vec![entry(0, MIB, &memfd(MIB), 0)]);
    house.queues.hold_stops = true;
    let asked = house.waits(Action::Reset);
    house.restart();
    assert_eq!(house.outcome(&asked), Some(Outcome::Done));
    assert!(!house.runs(0) && house.areas().is_empty());
    house.start(Vec::new());
    assert!(house.runs(0));
}

#[test]
fn restart_while_suspended_moves_nothing_and_makes_nothing_up() {
    let mut house = House::tracking(1);
    house.start(vec![entry(0, MIB, &memfd(MIB), 0)]);
    house.queues.taken = 3;
    house.done(Action::Suspend);
    house.restart();
    house.pump();
    assert!(!house.runs(0));
    house.fails(Action::State(0));
    house.done(Action::SetMap(Vec::new()));
    house.done(Action::Suspend);
    assert!(!house.runs(0) && house.areas().is_empty());
    house.start(Vec::new());
    assert!(house.runs(0));
    assert_eq!(house.ask(Action::State(0)).unwrap(), Outcome::State(VqState::Split { avail_index: 0 }));
}

#[test]
fn restart_in_a_suspension_suspends() {
    let mut house = House::tracking(1);
    house.start(Vec::new());
    house.queues.hold_stops = true;
    let asked = house.waits(Action::Suspend);
    house.restart();
    house.queues.taken = 6;
    assert_eq!(house.outcome(&asked), Some(Outcome::Done));
    assert!(!house.runs(0));
    assert_eq!(house.ask(Action::State(0)).unwrap(), Outcome::State(VqState::Split { avail_index: 6 }));
}

#[test]
fn device_that_is_closed_in_order_leaves_its_driver_to_the_next() {
    let mut house = House::tracking(2);
    house.start(vec![entry(0, MIB, &memfd(MIB), 0)]);
    house.session.close(&mut house.queues);
    let cancelled = |note: &Note| matches!(note, Note::Cancel { .. });
    assert_eq!(house.queues.take_notes().iter().filter(|note| cancelled(note)).count(), 2);
    house.ended = Some(SessionError::Closed);
    house.pump();
    assert!(house.session.is_closed());
    assert_eq!(house.windows.live(), 0);
    assert_eq!(house.device.resets.load(Ordering::Relaxed), 1, "that of the driver");
    house.model.kick(0);
    house.restart();
    house.pump();
    assert!(house.runs(0) && house.runs(1));
}

#[test]
fn session_of_which_the_kernel_is_gone_ends() {
    let mut house = House::new(1);
    house.start(Vec::new());
    // Somebody else has the device: this process is dead and does not know it.
    let other = house.model.open().unwrap();
    house.pump();
    assert!(house.ended.is_some() && house.session.is_closed());
    drop(other);
}

#[test]
fn driver_with_features_of_another_device_is_left_alone_until_it_resets() {
    let mut house = House::new(1);
    house.start(Vec::new());
    house.model.set_features(FEATURES | 1 << 63);
    house.restart();
    house.pump();
    assert!(!house.runs(0) && house.ended.is_none());
    house.fails(Action::State(0));
    house.start(Vec::new());
    assert!(house.runs(0));
}
