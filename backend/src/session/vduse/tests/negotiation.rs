//! What a driver says before its rings run, and what is none of its business.

use mdev_protocol::vduse::Answer;
use mdev_protocol::virtio::feature::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET};

use super::*;
use crate::session::tests::mock::CONFIG;

#[test]
fn features_that_were_not_offered_fail_and_the_status_stays() {
    let mut house = House::new(2);
    house.done(Action::Reset);
    house.done(Action::SetStatus(ACKNOWLEDGE | DRIVER));
    for unwanted in [VIRTIO_F_RING_RESET, VIRTIO_F_RING_PACKED << 3, 1 << 63] {
        house.model.set_features(FEATURES | unwanted);
        house.fails(Action::SetStatus(READY));
        assert_eq!(house.model.status(), ACKNOWLEDGE | DRIVER);
    }
    // What the device itself does not want.
    house.model.set_features(VIRTIO_F_ACCESS_PLATFORM);
    house.fails(Action::SetStatus(READY));
    house.model.set_features(FEATURES | VIRTIO_F_ACCESS_PLATFORM);
    house.done(Action::SetStatus(READY));
    assert_eq!(house.model.status(), READY);
}

#[test]
fn driver_ok_starts_the_rings_that_are_ready_and_others_start_when_they_are() {
    let mut house = House::new(3);
    house.prepare();
    house.done(Action::SetReady { index: 1, ready: false });
    house.done(Action::SetMap(vec![entry(0, 4 * MIB, &memfd(4 * MIB), 0)]));
    assert!(house.queues.take_notes().is_empty(), "nothing runs before DRIVER_OK");
    assert!(house.areas().is_empty());
    house.done(Action::SetStatus(OK));
    assert_eq!(starts(&house.queues.take_notes()), [(0, 0), (2, 0)]);
    house.done(Action::SetReady { index: 1, ready: true });
    assert_eq!(starts(&house.queues.take_notes()), [(1, 0)]);
    house.done(Action::SetReady { index: 0, ready: false });
    assert_eq!([0, 1, 2].map(|index| house.runs(index)), [false, true, true]);
    // More of the status says nothing about rings.
    house.done(Action::SetStatus(OK));
    assert_eq!([0, 1, 2].map(|index| house.runs(index)), [false, true, true]);
}

#[test]
fn driver_ok_with_other_features_than_before_fails_and_can_be_tried_again() {
    let mut house = House::new(1);
    house.prepare();
    house.model.set_features(FEATURES | 1 << 63);
    house.fails(Action::SetStatus(OK));
    assert!(!house.runs(0) && house.model.status() == READY);
    house.model.set_features(FEATURES);
    house.done(Action::SetStatus(OK));
    assert!(house.runs(0));
}

#[test]
fn interrupts_come_when_the_kernel_knows_that_the_driver_is_ready() {
    let mut house = House::new(2);
    house.prepare();
    house.done(Action::SetReady { index: 1, ready: false });
    let asked = house.model.begin(Action::SetStatus(OK));
    house.pump();
    assert!(house.runs(0), "it may have used something by now");
    assert_eq!(house.model.calls(0), 0, "and nobody would hear of it");
    house.model.outcome(&asked).unwrap();
    house.pump_until(|house| house.model.calls(0) == 1);
    let asked = house.model.begin(Action::SetReady { index: 1, ready: true });
    house.pump();
    assert!(house.runs(1) && house.model.calls(1) == 0);
    house.model.outcome(&asked).unwrap();
    house.pump_until(|house| house.model.calls(1) == 1);
    house.pump();
    assert_eq!((house.model.calls(0), house.model.calls(1)), (1, 1), "once is enough");
}

#[test]
fn only_group_0_and_address_space_0_are_there() {
    let mut house = House::new(1);
    house.done(Action::SetGroupAsid { group: 0, asid: 0 });
    for (group, asid) in [(0, 1), (1, 0), (1, 1), (u32::MAX, 0)] {
        house.fails(Action::SetGroupAsid { group, asid });
    }
}

#[test]
fn requests_that_nobody_understands_fail_and_the_session_goes_on() {
    let mut house = House::new(1);
    house.start(Vec::new());
    let unknown = house.model.ask_raw(6, &[]);
    let backwards = house.model.ask_raw(2, &[1, 0, 0, 0]);
    let neither = house.model.ask_raw(4, &[0, 2]);
    let no_such_ring = house.model.ask_raw(0, &[9]);
    house.pump();
    for id in [unknown, backwards, neither, no_such_ring] {
        assert_eq!(house.model.answer(id), Some(Answer::Failed));
    }
    assert!(house.runs(0) && house.ended.is_none());
}

#[test]
fn readiness_of_a_ring_that_is_not_there_breaks_nothing() {
    let mut house = House::new(1);
    let id = house.model.ask_raw(4, &[9, 1]);
    house.pump();
    assert_eq!(house.model.answer(id), Some(Answer::Done));
}

#[test]
fn answers_that_nobody_waits_for_change_nothing() {
    let mut house = House::new(1);
    house.start(Vec::new());
    let asked = house.model.begin(Action::State(0));
    house.model.withdraw(&asked);
    house.pump();
    assert_eq!(house.model.unheard(), 1);
    assert!(house.runs(0) && house.ended.is_none());
}

#[test]
fn configuration_reaches_the_kernel_and_a_driver_that_is_ready_is_told() {
    let mut house = House::new(1);
    house.prepare();
    house.session.config_changed(&mut house.queues);
    assert_eq!(house.model.space(), CONFIG);
    assert_eq!(house.model.config_calls(), 0);
    house.done(Action::SetStatus(OK));
    house.session.config_changed(&mut house.queues);
    assert_eq!(house.model.config_calls(), 1);
    house.done(Action::Suspend);
    house.session.config_changed(&mut house.queues);
    assert_eq!(house.model.config_calls(), 1, "a suspended device says nothing");
}

#[test]
fn device_that_the_kernel_gives_up_ends_the_session() {
    let mut house = House::new(1);
    house.start(Vec::new());
    house.model.break_device();
    house.pump();
    assert!(matches!(house.ended, Some(SessionError::Broken)), "{:?}", house.ended);
    assert!(house.session.is_closed() && !house.runs(0));
}

#[test]
fn device_that_the_kernel_gives_up_during_a_barrier_ends_the_session() {
    for late in [false, true] {
        let mut house = House::new(1);
        house.start(Vec::new());
        house.queues.hold_stops = true;
        let asked = house.waits(Action::SetReady { index: 0, ready: false });
        house.model.break_device();
        if late {
            // The answer is on its way, and nobody takes it.
            house.queues.hold_stops = false;
            for (_, token, base) in house.queues.take_stopped() {
                house.session.queue_stopped(&mut house.queues, token, QueueState::split(base));
            }
        }
        house.pump();
        assert!(matches!(house.ended, Some(SessionError::Broken)), "{:?}", house.ended);
        assert_eq!(house.model.outcome(&asked), Some(Outcome::Failed));
    }
}
