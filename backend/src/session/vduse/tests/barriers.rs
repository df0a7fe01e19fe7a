//! Answers that wait until the device has let go (contract K11), how long they may, and what happens if it does not.

use mdev_protocol::vduse::VqState;

use super::super::barrier::PATIENCE;
use super::*;

/// Every answer has left by then: patience, a last chance, and what a busy machine takes.
const BOUND: Duration = Duration::from_millis(1500);
const DIMM: u64 = 64 * MIB;

/// A driver with two pieces of memory, and a pin of the device in the second.
fn with_pin(house: &mut House) -> (Vec<Entry>, Pin) {
    let entries = vec![entry(0, MIB, &memfd(MIB), 0), entry(DIMM, MIB, &memfd(MIB), 0)];
    house.start(entries.clone());
    let pin = house.pin(DIMM + 4096).unwrap();
    (entries, pin)
}

fn cancels(house: &mut House) -> Vec<u16> {
    let cancel = |note: Note| match note {
        Note::Cancel { index, .. } => Some(index),
        _ => None,
    };
    house.queues.take_notes().into_iter().filter_map(cancel).collect()
}

#[test]
fn scenario_25_update_is_answered_when_the_last_pin_on_what_went_is_gone() {
    let mut house = House::new(2);
    let (entries, pin) = with_pin(&mut house);
    let other = house.pin(4096).unwrap();
    let asked = house.waits(Action::SetMap(vec![entries[0].clone()]));
    assert!(house.pin(DIMM).is_none(), "no new pin while it goes");
    assert!(house.pin(0).is_some(), "what stays does not notice");
    drop(pin);
    assert_eq!(house.outcome(&asked), Some(Outcome::Done), "nobody waits for pins elsewhere");
    assert_eq!(house.areas(), [(0, MIB - 1)]);
    assert_eq!(house.session.ioas.pins(), 1);
    assert!(house.runs(0) && house.runs(1));
    drop(other);
}

#[test]
fn scenario_25_update_waits_for_a_burst_that_may_have_seen_what_went() {
    let mut house = House::new(1);
    let (entries, pin) = with_pin(&mut house);
    drop(pin);
    let access = house.queues.running[&0].access.clone();
    let (enter, entered) = std::sync::mpsc::channel();
    let (leave, left) = std::sync::mpsc::channel::<()>();
    let worker = std::thread::spawn(move || {
        let mut lane = access.lane();
        let burst = lane.enter();
        let slice = burst.slice(Iova(DIMM), 64, Perm::READ).map(|slice| slice.len());
        enter.send(slice).unwrap();
        let _ = left.recv();
    });
    assert_eq!(entered.recv().unwrap(), Ok(64));
    let asked = house.waits(Action::SetMap(entries[..1].to_vec()));
    drop(leave);
    worker.join().unwrap();
    assert_eq!(house.outcome(&asked), Some(Outcome::Done));
}

#[test]
fn same_table_again_disturbs_nobody() {
    let mut house = House::new(1);
    let (entries, pin) = with_pin(&mut house);
    let mapped = house.windows.mapped_total();
    house.done(Action::SetMap(entries.clone()));
    // With more behind it, and in another order.
    let more = vec![entry(2 * DIMM, MIB, &memfd(MIB), 0), entries[1].clone(), entries[0].clone()];
    house.done(Action::SetMap(more));
    assert!(house.windows.mapped_total() <= mapped + 2, "what is the same is not mapped anew");
    assert_eq!(house.session.ioas.pins(), 1);
    assert!(starts(&house.queues.take_notes()).is_empty());
    drop(pin);
}

#[test]
fn what_is_mapped_anew_is_read_anew_after_the_answer() {
    let mut house = House::new(1);
    let (old, new) = (memfd(MIB), memfd(MIB));
    write(&old, 0, 1);
    write(&new, 0, 2);
    house.start(vec![entry(0, MIB, &old, 0)]);
    assert_eq!(house.byte(0), Some(1));
    house.done(Action::SetMap(vec![entry(0, MIB, &new, 0)]));
    assert_eq!(house.byte(0), Some(2));
    // The same file elsewhere, which is another byte.
    write(&new, 4096, 3);
    house.done(Action::SetMap(vec![entry(0, MIB - 4096, &new, 4096)]));
    assert_eq!(house.byte(0), Some(3));
}

#[test]
fn device_that_lets_go_when_it_is_told_to_cancel_has_obeyed_and_goes_on() {
    let mut house = House::new(2);
    let (entries, pin) = with_pin(&mut house);
    house.queues.hold_stops = true;
    let asked = house.waits(Action::SetMap(vec![entries[0].clone()]));
    let mut cancelled = Vec::new();
    house.pump_until(|house| {
        cancelled.extend(cancels(house));
        !cancelled.is_empty()
    });
    assert_eq!(cancelled, [0, 1]);
    drop(pin);
    assert_eq!(house.end_of(&asked), Outcome::Done);
    assert!(asked.waited() < BOUND);
    // The answer did not wait for the workers to say that their rings have stopped. They run again when they have.
    assert!(!house.runs(0) && !house.runs(1));
    house.release_stops();
    assert!(house.runs(0) && house.runs(1));
}

#[test]
fn device_that_never_lets_go_is_an_error_in_time_and_stands_still_until_a_reset() {
    let mut house = House::new(2);
    let (entries, pin) = with_pin(&mut house);
    let asked = house.waits(Action::SetMap(vec![entries[0].clone()]));
    assert_eq!(house.end_of(&asked), Outcome::Failed);
    assert!(asked.waited() < BOUND, "{:?}", asked.waited());
    assert!(house.queues.running.is_empty());
    assert!(house.model.entries().is_empty(), "the kernel has forgotten the table");
    house.done(Action::SetReady { index: 0, ready: true });
    assert!(house.queues.running.is_empty());
    // A reset waits for it too, and is answered in time.
    let asked = house.waits(Action::Reset);
    assert_eq!(house.end_of(&asked), Outcome::Failed);
    assert!(asked.waited() < BOUND, "{:?}", asked.waited());
    drop(pin);
    house.start(vec![entries[0].clone()]);
    assert!(house.runs(0) && house.runs(1));
}

#[test]
fn memory_is_taken_away_from_a_device_that_only_copies() {
    let mut house = House::new(1);
    house.device.copies.store(true, Ordering::Relaxed);
    let (entries, pin) = with_pin(&mut house);
    let dimm = entries[1].file.clone();
    let asked = house.waits(Action::SetMap(vec![entries[0].clone()]));
    assert_eq!(house.end_of(&asked), Outcome::Done);
    assert!(asked.waited() >= PATIENCE && asked.waited() < BOUND);
    pin.slices().for_each(|slice| slice.fill(9));
    let mut seen = [0; 1];
    rustix::io::pread(&dimm, &mut seen, 4096).unwrap();
    assert_eq!(seen, [0], "a void pin reaches nobody's memory");
    assert!(house.runs(0) && cancels(&mut house).is_empty(), "its rings do not notice");
}

#[test]
fn suspension_that_is_late_fails_and_the_rings_go_on() {
    let mut house = House::new(2);
    house.start(Vec::new());
    (house.queues.hold_stops, house.queues.taken) = (true, 4);
    let asked = house.waits(Action::Suspend);
    assert_eq!(house.end_of(&asked), Outcome::Failed);
    assert!(asked.waited() >= PATIENCE && asked.waited() < BOUND, "{:?}", asked.waited());
    assert!(cancels(&mut house).is_empty(), "what is in flight would be lost for whoever goes on elsewhere");
    assert!(!house.model.is_suspended() && house.queues.running.is_empty());
    house.release_stops();
    assert_eq!(starts(&house.queues.take_notes()), [(0, 4), (1, 4)]);
}

#[test]
fn state_that_is_late_fails_and_the_ring_goes_on() {
    let mut house = House::new(2);
    house.start(Vec::new());
    (house.queues.hold_stops, house.queues.taken) = (true, 4);
    let asked = house.waits(Action::State(1));
    assert_eq!(house.end_of(&asked), Outcome::Failed);
    assert!(asked.waited() < BOUND && cancels(&mut house).is_empty());
    assert!(house.runs(0), "the other ring does not notice");
    // Asked again, and in time.
    let asked = house.waits(Action::State(1));
    house.release_stops();
    assert_eq!(house.outcome(&asked), Some(Outcome::State(VqState::Split { avail_index: 4 })));
    assert!(house.runs(1));
}

#[test]
fn ring_that_is_late_to_be_disabled_is_cancelled_and_no_other() {
    let mut house = House::new(2);
    house.start(Vec::new());
    house.queues.hold_stops = true;
    let asked = house.waits(Action::SetReady { index: 1, ready: false });
    let mut cancelled = Vec::new();
    house.pump_until(|house| {
        cancelled.extend(cancels(house));
        !cancelled.is_empty()
    });
    assert_eq!(cancelled, [1]);
    house.release_stops();
    assert_eq!(house.outcome(&asked), Some(Outcome::Done));
    assert!(house.runs(0) && !house.runs(1) && house.ended.is_none());
}

#[test]
fn reset_of_rings_that_are_late_is_answered_in_time() {
    let mut house = House::new(1);
    let (_, pin) = with_pin(&mut house);
    house.queues.hold_stops = true;
    let asked = house.waits(Action::Reset);
    // The rings stop at the last moment, and then the memory is not let go.
    house.pump_until(|house| !cancels(house).is_empty());
    house.release_stops();
    assert_eq!(house.end_of(&asked), Outcome::Failed);
    assert!(asked.waited() < PATIENCE * 2, "the time is that of both: {:?}", asked.waited());
    drop(pin);
    house.done(Action::Reset);
}

#[test]
fn rings_that_do_not_stop_fail_a_reset_in_time_and_the_next_succeeds() {
    let mut house = House::new(1);
    house.start(Vec::new());
    house.queues.hold_stops = true;
    let asked = house.waits(Action::Reset);
    assert_eq!(house.end_of(&asked), Outcome::Failed);
    assert!(asked.waited() < BOUND);
    house.release_stops();
    assert!(house.queues.running.is_empty(), "nothing runs that was reset");
    house.start(Vec::new());
    assert!(house.runs(0));
}

#[test]
fn requests_wait_their_turn_behind_a_barrier() {
    let mut house = House::new(1);
    let (entries, pin) = with_pin(&mut house);
    let update = house.waits(Action::SetMap(vec![entries[0].clone()]));
    let state = house.waits(Action::State(0));
    drop(pin);
    assert_eq!(house.outcome(&update), Some(Outcome::Done));
    assert!(house.outcome(&state).is_some());
}
