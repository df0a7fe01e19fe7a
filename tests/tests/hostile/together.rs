//! Several front-ends on one device at once: its rings run for one of them, and what the others say does not touch those.

use std::os::fd::AsFd;

use mdev_protocol::vhost_user::{Client, FrontendMessage as M, ProtocolFeatures, VringFd, VringState};
use mdev_tests::stage::{FEATURES, Guest, GuestOptions, Traffic, WATCHDOG};
use mdevd::ring::RingError;
use mdevd::worker::Mode;

use super::files::described;
use super::latched::{ATTACKED, Attacks, SIZE, TX, offer_head};

/// A guest that has said everything and waits for the device.
fn waiting(attacks: &Attacks) -> Guest {
    let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    guest.port.send(10).expect("an empty ring");
    guest.fds[1].kick.signal();
    guest
}

/// Whether the device has looked at a guest's rings.
fn is_served(guest: &Guest) -> bool {
    guest.port.tx.raw().used_index() != 0 || guest.port.rx.raw().used_index() != 0
}

fn stop(guest: &mut Guest) {
    for index in 0..2 {
        guest.front.stop(index).expect("it stops");
    }
}

#[test]
fn the_rings_of_the_second_front_end_start_when_the_first_has_stopped_its_own() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let first = Traffic::of(Guest::start(&attacks.stage, ATTACKED, GuestOptions::default()));
    first.must_go_on(100);
    let mut second = waiting(&attacks);
    first.must_go_on(200);
    assert!(!is_served(&second) && !second.needs_reset());

    let mut first = first.end();
    stop(&mut first);
    second.exchange(100);
    // And back again, on connections that stay open; the second goes without a word.
    first.start_anew();
    first.port.send(10).expect("an empty ring");
    second.exchange(100);
    assert!(!is_served(&first) && !first.needs_reset());
    attacks.stage.leave(second);
    first.exchange(100);
    attacks.leave("the first", first);
    attacks.end();
}

#[test]
fn a_queue_of_front_ends_is_served_one_after_another() {
    let attacks = Attacks::begin(Mode::Event);
    let mut queue: Vec<Guest> = (0..12).map(|_| waiting(&attacks)).collect();
    while !queue.is_empty() {
        // Whoever it is that runs now: exactly one does.
        let mut running = None;
        mdev_tests::stage::await_that("somebody is served", || {
            running = queue.iter().position(is_served);
            running.is_some()
        });
        attacks.victim.must_go_on(20);
        assert_eq!(queue.iter().filter(|guest| is_served(guest)).count(), 1);
        let mut guest = queue.remove(running.expect("it was found"));
        guest.exchange(20);
        attacks.stage.leave(guest);
    }
    assert_eq!(attacks.stage.windows().live(), 1);
    attacks.end();
}

/// Everything that stops, resets or starts something, said on a connection of its own.
pub fn say_everything(client: &mut Client, guest: &Guest, round: u32) {
    let event = guest.fds[0].kick.as_fd();
    let memory = &guest.memory.regions()[0];
    let (file, region) = (memory.extent.file.as_fd(), described(memory));
    let state = |index, num| VringState { index, num };
    let with_fd = |index| VringFd { index, has_fd: true };
    let features = FEATURES | mdev_protocol::virtio::feature::VHOST_USER_F_PROTOCOL_FEATURES;
    let mut messages =
        vec![(M::SetOwner, vec![]), (M::ResetOwner, vec![]), (M::SetFeatures(features), vec![])];
    for index in 0..2 {
        messages.extend([
            (M::SetVringEnable(state(index, 0)), vec![]),
            (M::SetVringNum(state(index, 64)), vec![]),
            (M::SetVringBase(state(index, 7)), vec![]),
            (M::SetVringKick(with_fd(index as u8)), vec![event]),
            (M::SetVringCall(with_fd(index as u8)), vec![event]),
            (M::SetVringErr(with_fd(index as u8)), vec![event]),
            (M::SetVringEnable(state(index, 1)), vec![]),
            (M::GetVringBase(state(index, 0)), vec![]),
        ]);
    }
    messages.extend([
        (M::SetStatus(0), vec![]),
        (M::AddMemReg(region), vec![file]),
        (M::RemMemReg(region), vec![]),
        (M::SetMemTable(Default::default()), vec![]),
        (M::ResetDevice, vec![]),
        (M::SetStatus(15), vec![]),
        (M::NetSetMtu(1400), vec![]),
        (M::GetStatus, vec![]),
    ]);
    // Every message is the first after RESET_DEVICE once, and some connection ends with it.
    let count = messages.len();
    for (message, fds) in messages.into_iter().cycle().skip(round as usize % count).take(count) {
        // Refused or not is the other tests' question.
        let answer = client.call(&message, &fds);
        let known = matches!(answer, Ok(_) | Err(mdev_protocol::vhost_user::ClientError::Refused { .. }));
        assert!(known, "{message:?}: {answer:?}");
    }
}

#[test]
fn what_a_second_front_end_says_does_not_touch_the_rings_of_the_first() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let first = Traffic::of(Guest::start(&attacks.stage, ATTACKED, GuestOptions::default()));
    let other = Guest::connect(&attacks.stage, ATTACKED, GuestOptions::default());
    let all = mdevd::session::OFFERED_PROTOCOL_FEATURES;
    for round in 0..32 {
        let (conn, socket) = attacks.stage.connect(ATTACKED);
        let mut client = Client::new(socket, WATCHDOG);
        // By user addresses and by guest addresses.
        let features = if round % 2 == 0 { all } else { all.difference(ProtocolFeatures::GPA_ADDRESSES) };
        client.set_protocol_features(features).expect("what is offered");
        say_everything(&mut client, &other, round);
        first.must_go_on(20);
        drop(client);
        assert_eq!(attacks.stage.ending(conn).pins, 0);
    }
    first.must_go_on(200);
    attacks.stage.leave(other);
    let mut first = first.end();
    assert!(!first.needs_reset());
    for queue in 0..2 {
        let counters = attacks.stage.counters(ATTACKED, queue);
        assert_eq!((counters.dropped(), counters.parks, counters.errors), (0, 0, 0), "{counters:?}");
    }
    attacks.leave("the first", first);
    attacks.end();
}

#[test]
fn a_second_front_end_with_broken_rings_fails_alone_when_its_turn_comes() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let mut first = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    first.exchange(50);
    let mut second = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    offer_head(&second.port.tx, u16::MAX);
    let mut third = waiting(&attacks);
    first.exchange(50);
    assert!(!second.needs_reset() && !attacks.stage.has_failed(second.conn));

    attacks.stage.leave(first);
    // Whoever of the two comes first, both have their turn.
    if is_served_soon(&attacks, &second, &third) {
        third.exchange(50);
        stop(&mut third);
    }
    attacks.must_fail(
        "the second",
        &mut second,
        TX,
        RingError::HeadOutOfRange { head: u16::MAX, size: SIZE },
    );
    assert!(!third.needs_reset());
    attacks.stage.leave(second);
    third.start_anew();
    third.exchange(50);
    attacks.leave("the third", third);
    attacks.end();
}

/// Waits until the second has failed or the third is served, and says whether it was the latter.
fn is_served_soon(attacks: &Attacks, second: &Guest, third: &Guest) -> bool {
    let mut served = false;
    mdev_tests::stage::await_that("one of them has its turn", || {
        served = is_served(third);
        served || attacks.stage.has_failed(second.conn)
    });
    served
}

#[test]
fn a_failed_ring_keeps_the_device_until_its_front_end_stops_it() {
    let attacks = Attacks::begin(Mode::Event);
    let mut first = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    first.exchange(20);
    offer_head(&first.port.tx, SIZE);
    first.fds[1].kick.signal();
    let expected = RingError::HeadOutOfRange { head: SIZE, size: SIZE };
    attacks.must_fail("the first", &mut first, TX, expected);
    let mut second = waiting(&attacks);
    attacks.victim.must_go_on(100);
    assert!(!is_served(&second) && !second.needs_reset(), "the error is the first one's");
    stop(&mut first);
    second.exchange(50);
    assert!(!second.needs_reset());
    attacks.stage.leave(first);
    attacks.leave("the second", second);
    attacks.end();
}
