//! The buffer for requests in flight: made, taken, checked, handed to rings, and what a stop means with it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use mdev_protocol::frame::Received;
use mdev_protocol::vhost_user::{FrontendMessage as M, FrontendReply as R, Inflight, ProtocolFeatures as P};
use mdev_protocol::virtio::status::DEVICE_NEEDS_RESET;
use rustix::fs::{SealFlags, fcntl_get_seals, fstat, ftruncate};
use rustix::net::RecvFlags;

use super::House;
use super::front::{FEATURES, Front, MIB, USER, ack, eventfd, memfd, region, state};
use super::mock::Note;
use crate::ring::{Ring, RingLog};
use crate::session::{OFFERED_PROTOCOL_FEATURES as OFFERED, SessionOptions, offered_protocol_features};

const TRACKING: P = P::INFLIGHT_SHMFD.union(P::GET_VRING_BASE_INFLIGHT);

fn tracking(queues: u16) -> House {
    let house = House::new(queues);
    house.device.tracks.store(true, Ordering::Relaxed);
    house
}

/// A front-end with memory and these protocol features.
fn settled(house: &mut House, protocol: P) -> Front {
    let mut front = house.connect();
    front.negotiate(house, (OFFERED | protocol) - P::GPA_ADDRESSES);
    front.done(house, M::AddMemReg(region(0, 4 * MIB, USER)), &[memfd(4 * MIB).as_fd()]);
    front
}

fn wanted(num_queues: u16, queue_size: u16) -> Inflight {
    Inflight { num_queues, queue_size, ..Inflight::default() }
}

/// The buffer that the back-end makes.
fn make(house: &mut House, front: &mut Front, num_queues: u16) -> (Inflight, OwnedFd) {
    front.send(&M::GetInflightFd(wanted(num_queues, 256)), &[], true);
    house.pump();
    let Received::Message(frame) = front.link.receive().unwrap() else { panic!("no reply") };
    let R::GetInflightFd(inflight) = frame.message else { panic!("{:?}", frame.message) };
    (inflight, frame.fds.into_iter().next().expect("no descriptor"))
}

fn set(house: &mut House, front: &mut Front, inflight: Inflight, fd: BorrowedFd<'_>) -> bool {
    let message = M::SetInflightFd(inflight);
    let reply = front.ask_with(house, &message, &[fd]);
    assert!(reply == ack(&message, 0) || reply == ack(&message, 1), "{reply:?}");
    reply == ack(&message, 0)
}

#[test]
fn tracking_is_offered_for_devices_that_keep_requests_in_flight() {
    let (mut plain, mut tracks) = (House::new(2), tracking(2));
    assert_eq!(plain.connect().ask(&mut plain, M::GetProtocolFeatures), R::GetProtocolFeatures(OFFERED));
    let mut options = SessionOptions::default();
    let offered = offered_protocol_features(tracks.device.as_ref(), &options);
    assert_eq!(offered, OFFERED | TRACKING);
    assert_eq!(tracks.connect().ask(&mut tracks, M::GetProtocolFeatures), R::GetProtocolFeatures(offered));
    options.ring_reset = true;
    assert_eq!(offered_protocol_features(tracks.device.as_ref(), &options), OFFERED);
    // Not negotiated, not served; and the stream stays in step.
    let mut front = tracks.connect();
    front.negotiate(&mut tracks, OFFERED);
    front.refused(&mut tracks, M::SetInflightFd(wanted(1, 256)), &[memfd(MIB).as_fd()]);
    assert_eq!(front.status(&mut tracks), 0);
}

#[test]
fn a_buffer_has_room_for_the_logs_and_keeps_its_size() {
    let mut house = tracking(4);
    let mut front = house.connect();
    front.negotiate(&mut house, OFFERED | TRACKING);
    let (inflight, fd) = make(&mut house, &mut front, 3);
    let size = 3 * RingLog::len_of(false, 256) as u64;
    assert_eq!(inflight, Inflight { mmap_size: size, mmap_offset: 0, num_queues: 3, queue_size: 256 });
    assert_eq!(fstat(&fd).unwrap().st_size as u64, size);
    let seals = fcntl_get_seals(&fd).unwrap();
    assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL), "{seals:?}");
    assert!(set(&mut house, &mut front, inflight, fd.as_fd()));
}

#[test]
fn a_buffer_for_what_the_device_does_not_have_is_not_made() {
    let mut house = tracking(2);
    let mut front = settled(&mut house, TRACKING);
    let mut raw = [0u8; 64];
    for (queues, size) in [(0, 256), (3, 256), (1, 0), (1, 1025), (u16::MAX, u16::MAX)] {
        front.send(&M::GetInflightFd(wanted(queues, size)), &[], true);
        house.pump();
        let (_, len) = rustix::net::recv(front.link.as_fd(), &mut raw, RecvFlags::DONTWAIT).unwrap();
        assert_eq!(len, 12, "a header without a value: {queues} queues of {size}");
    }
    assert_eq!(front.status(&mut house), 0);
}

#[test]
fn a_buffer_that_cannot_be_is_refused() {
    let mut house = tracking(2);
    let mut front = settled(&mut house, TRACKING);
    let (good, fd) = make(&mut house, &mut front, 2);
    let bad = [
        Inflight { mmap_size: 0, ..good },
        Inflight { mmap_size: good.mmap_size - 1, ..good },
        Inflight { mmap_size: good.mmap_size + 1, ..good },
        Inflight { mmap_size: u64::MAX, mmap_offset: 64, ..good },
        Inflight { mmap_offset: 8, ..good },
        Inflight { num_queues: 0, ..good },
        Inflight { num_queues: 3, ..good },
        Inflight { queue_size: 260, ..good },
        Inflight { queue_size: 0, ..good },
    ];
    for told in bad {
        assert!(!set(&mut house, &mut front, told, fd.as_fd()), "{told:?}");
    }
    let long = memfd(MIB);
    assert!(!set(&mut house, &mut front, Inflight { mmap_offset: 4, ..good }, long.as_fd()), "misaligned");
    let uneven = Inflight { mmap_size: good.mmap_size + 2, ..good };
    assert!(!set(&mut house, &mut front, uneven, long.as_fd()), "the second log is misaligned");
    assert!(!set(&mut house, &mut front, good, eventfd().as_fd()), "no file");
    assert!(set(&mut house, &mut front, Inflight { mmap_offset: 4096, ..good }, long.as_fd()));
    front.start(&mut house, 0, 0);
    assert!(!set(&mut house, &mut front, good, fd.as_fd()), "a ring records into the old one");
    assert_eq!(front.status(&mut house), 0);
}

#[test]
fn each_ring_that_the_buffer_is_for_gets_its_own_log() {
    let mut house = tracking(4);
    let mut front = settled(&mut house, TRACKING);
    front.start(&mut house, 3, 0);
    assert!(house.queues.running[&3].ring.log.is_none(), "there is none");
    front.base(&mut house, 3);
    let (inflight, fd) = make(&mut house, &mut front, 2);
    assert!(set(&mut house, &mut front, inflight, fd.as_fd()));
    for index in 0..3 {
        front.start(&mut house, index, 0);
        let setup = house.queues.running[&u16::from(index)].clone();
        assert_eq!(setup.ring.log.is_some(), index < 2, "ring {index}");
        let mut lane = setup.access.lane();
        let mut ring = Ring::new(setup.ring).unwrap();
        assert_eq!(ring.keeps_log(), index < 2);
        // The first burst makes the log.
        ring.begin(&lane.enter()).map(drop).unwrap();
    }
    let stride = inflight.mmap_size as usize / 2;
    let mut bytes = vec![0; 2 * stride];
    rustix::io::pread(&fd, &mut bytes, 0).unwrap();
    for (index, log) in bytes.chunks(stride).enumerate() {
        assert_eq!(log[8..12], [1, 0, 0, 1], "version and descriptors of log {index}");
    }
}

/// The notes of a ring that is stopped while it has requests in flight.
fn stopped(house: &mut House, front: &mut Front) -> Vec<Note> {
    front.start(house, 0, 0);
    house.queues.take_notes();
    house.queues.hold_stops = true;
    assert_eq!(front.ask_with(house, &M::GetVringBase(state(0, 0)), &[]), None);
    let notes = house.queues.take_notes();
    house.release_stops();
    assert_eq!(front.receive(), Some(R::GetVringBase(state(0, 0))));
    notes
}

#[test]
fn a_ring_is_suspended_only_where_that_was_negotiated_and_it_keeps_a_log() {
    let (stop, cancel) = (Note::Stop { conn: 1, index: 0 }, Note::Cancel { conn: 1, index: 0 });
    for (protocol, logged) in [(TRACKING, true), (TRACKING, false), (P::INFLIGHT_SHMFD, true)] {
        let mut house = tracking(2);
        let mut front = settled(&mut house, protocol);
        let (inflight, fd) = make(&mut house, &mut front, 1);
        if logged {
            assert!(set(&mut house, &mut front, inflight, fd.as_fd()));
        }
        let notes = stopped(&mut house, &mut front);
        if logged && protocol == TRACKING {
            assert_eq!(notes, [stop.clone(), cancel.clone()]);
        } else {
            assert_eq!(notes, std::slice::from_ref(&stop), "{protocol:?}, {logged}");
        }
    }
}

#[test]
fn a_buffer_that_shrank_fails_its_rings_and_nothing_else() {
    let mut house = tracking(2);
    let mut front = settled(&mut house, TRACKING);
    let file = memfd(MIB);
    let inflight = Inflight { mmap_size: MIB, ..wanted(1, 256) };
    assert!(set(&mut house, &mut front, inflight, file.as_fd()));
    front.start(&mut house, 0, 0);
    let setup = house.queues.running[&0].clone();
    ftruncate(&file, 0).unwrap();
    let mut lane = setup.access.lane();
    let outcome = Ring::new(setup.ring).and_then(|mut ring| {
        let burst = lane.enter();
        ring.begin(&burst).map(drop)
    });
    assert_eq!(outcome, Err(crate::ring::RingError::LogLost));
    // From the beginning.
    front.base(&mut house, 0);
    front.start(&mut house, 0, 0);
    assert!(house.queues.running.is_empty());
    assert_eq!(front.status(&mut house), u64::from(DEVICE_NEEDS_RESET));
    // Another buffer heals it.
    front.base(&mut house, 0);
    let (inflight, fd) = make(&mut house, &mut front, 1);
    assert!(set(&mut house, &mut front, inflight, fd.as_fd()));
    front.start(&mut house, 0, 0);
    assert!(house.queues.is_running(1, 0));
}

#[test]
fn a_reset_empties_the_logs_and_a_new_session_forgets_the_buffer() {
    let mut house = tracking(2);
    let mut front = settled(&mut house, TRACKING);
    let (inflight, fd) = make(&mut house, &mut front, 2);
    for at in [0, inflight.mmap_size / 2] {
        rustix::io::pwrite(&fd, &[1, 0, 0, 1], at + 8).unwrap();
    }
    assert!(set(&mut house, &mut front, inflight, fd.as_fd()));
    let versions = || {
        let mut bytes = [0; 4];
        rustix::io::pread(&fd, &mut bytes[..2], 8).unwrap();
        rustix::io::pread(&fd, &mut bytes[2..], inflight.mmap_size / 2 + 8).unwrap();
        bytes
    };
    front.done(&mut house, M::SetStatus(0), &[]);
    assert_eq!(versions(), [1, 0, 1, 0], "a stop of the machine is no reset");
    front.done(&mut house, M::ResetDevice, &[]);
    assert_eq!(versions(), [0; 4]);
    front.start(&mut house, 0, 0);
    assert!(house.queues.running[&0].ring.log.is_some());
    front.done(&mut house, M::SetOwner, &[]);
    front.tell(&mut house, M::SetFeatures(FEATURES));
    front.done(&mut house, M::AddMemReg(region(0, 4 * MIB, USER)), &[memfd(4 * MIB).as_fd()]);
    front.start(&mut house, 0, 0);
    assert!(house.queues.running[&0].ring.log.is_none());
}

#[test]
fn the_buffer_of_a_connection_that_ended_serves_the_next() {
    let mut house = tracking(2);
    let mut front = settled(&mut house, TRACKING);
    let (inflight, fd) = make(&mut house, &mut front, 1);
    assert!(set(&mut house, &mut front, inflight, fd.as_fd()));
    front.start(&mut house, 0, 0);
    drop(front);
    house.pump_until(|house| house.sessions.is_empty());
    assert_eq!(house.windows.live(), 0, "nothing of the buffer is left");
    let mut next = settled(&mut house, TRACKING);
    assert!(set(&mut house, &mut next, inflight, fd.as_fd()));
    next.start(&mut house, 0, 0);
    assert!(house.queues.running[&0].ring.log.is_some());
}
