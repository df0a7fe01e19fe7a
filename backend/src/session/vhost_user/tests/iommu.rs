//! Behind an IOMMU: what is translated, what is asked for, and what a reply waits for.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use mdev_dma::{Iova, Perm};
use mdev_protocol::frame::{Connection, Received};
use mdev_protocol::vhost_user::{
    BackendMessage, BackendReply, BackendRequest, FrontendMessage as M, Iotlb, IotlbPerm,
    ProtocolFeatures as P,
};
use mdev_protocol::virtio::feature::VIRTIO_F_ACCESS_PLATFORM;

use super::House;
use super::front::{FEATURES, Front, MIB, USER, eventfd, memfd, region, ring_at, state, with_fd};
use super::mock::Note;
use crate::ring::RingAddr;
use crate::session::OFFERED_PROTOCOL_FEATURES as OFFERED;
use crate::session::Session as _;

pub const TRANSLATED: u64 = FEATURES | VIRTIO_F_ACCESS_PLATFORM;
pub const RW: IotlbPerm = IotlbPerm::all();

/// A front-end's end of the back-end channel.
pub struct Channel(Connection<BackendMessage>);

impl Channel {
    /// The next translation that is asked for.
    fn asked(&mut self) -> Option<(u64, IotlbPerm)> {
        match self.0.receive().unwrap() {
            Received::Message(frame) => match frame.message {
                BackendMessage::IotlbMsg(Iotlb::Miss { iova, perm }) => {
                    assert!(frame.header.needs_reply());
                    Some((iova, perm))
                }
                other => panic!("{other:?}"),
            },
            Received::WouldBlock => None,
            other => panic!("{other:?}"),
        }
    }

    fn acknowledge(&mut self, value: u64) {
        let ack = BackendReply::Ack { request: BackendRequest::IotlbMsg.id(), value };
        self.0.send(&ack.to_bytes(), &[]).unwrap();
    }
}

pub fn update(iova: u64, size: u64, user_addr: u64, perm: IotlbPerm) -> M {
    M::IotlbMsg(Iotlb::Update { iova, size, user_addr, perm })
}

pub fn invalidate(iova: u64, size: u64) -> M {
    M::IotlbMsg(Iotlb::Invalidate { iova, size })
}

/// A front-end with 4 MiB of memory and a back-end channel, whose driver is behind an IOMMU.
pub fn settled(house: &mut House) -> (Front, Channel) {
    let mut front = house.connect();
    front.tell(house, M::SetProtocolFeatures(OFFERED - P::GPA_ADDRESSES));
    let (ours, theirs) = UnixStream::pair().unwrap();
    front.done(house, M::SetBackendReqFd, &[theirs.as_fd()]);
    front.tell(house, M::SetOwner);
    front.done(house, M::SetFeatures(TRANSLATED), &[]);
    front.done(house, M::AddMemReg(region(0, 4 * MIB, USER)), &[memfd(4 * MIB).as_fd()]);
    (front, Channel(Connection::new(ours)))
}

/// Starts ring `index` at these IOVAs.
fn start(house: &mut House, front: &mut Front, index: u8, at: u64) {
    let ring = u32::from(index);
    front.tell(house, M::SetVringNum(state(ring, 256)));
    front.tell(house, M::SetVringBase(state(ring, 0)));
    front.tell(house, M::SetVringAddr(ring_at(ring, at)));
    front.done(house, M::SetVringKick(with_fd(index)), &[eventfd().as_fd()]);
    front.done(house, M::SetVringEnable(state(ring, 1)), &[]);
}

/// The areas that the device sees: first address, bytes.
fn areas(house: &mut House, conn: u64) -> Vec<(u64, u128)> {
    let areas = house.session(conn).ioas.areas();
    areas.iter().map(|area| (area.range.first().0, area.range.size())).collect()
}

fn miss(house: &mut House, index: u16, iova: u64, perm: Perm) {
    let House { sessions, queues, .. } = house;
    sessions.get_mut(&1).unwrap().queue_missed(queues, index, Iova(iova), perm);
}

fn forsaken(house: &mut House) -> Vec<(u16, u64)> {
    let note = |note| match note {
        Note::Forsake { index, iova } => Some((index, iova.0)),
        _ => None,
    };
    house.queues.take_notes().into_iter().filter_map(note).collect()
}

#[test]
fn feature_without_a_channel_to_ask_on_is_refused() {
    let mut house = House::new(2);
    let mut front = house.connect();
    front.negotiate(&mut house, (OFFERED - P::GPA_ADDRESSES) - P::BACKEND_REQ);
    front.refused(&mut house, M::SetFeatures(TRANSLATED), &[]);
    front.done(&mut house, M::SetFeatures(FEATURES), &[]);
}

#[test]
fn device_sees_what_is_translated_and_not_the_regions() {
    let mut house = House::new(2);
    let (mut front, _channel) = settled(&mut house);
    assert_eq!(areas(&mut house, 1), []);
    front.done(&mut house, update(0x8000_0000, 0x2000, USER + 0x5000, RW), &[]);
    assert_eq!(areas(&mut house, 1), [(0x8000_0000, 0x2000)]);
    let before = house.session(1).ioas.areas();
    front.done(&mut house, update(0x8000_1000, 0x1000, USER + 0x6000, RW), &[]);
    assert_eq!(areas(&mut house, 1), [(0x8000_0000, 0x2000)], "the same translation again");
    assert!(before[0].translates_like(&house.session(1).ioas.areas()[0], before[0].range));
    front.done(&mut house, update(0x8000_1000, 0x1000, USER + 0x9000, RW), &[]);
    assert_eq!(areas(&mut house, 1), [(0x8000_1000, 0x1000)], "another one takes all that it touches");
    front.done(&mut house, update(0x8000_1000, 0x1000, USER + 0x9000, IotlbPerm::READ), &[]);
    assert_eq!(house.session(1).ioas.areas()[0].perm, Perm::READ);
    let line = house.translations.line();
    assert_eq!((line.entries, line.updates, line.invalidations), (1, 4, 0));
}

#[test]
fn update_may_span_regions_that_follow_each_other_and_nothing_else() {
    let mut house = House::new(2);
    let (mut front, _channel) = settled(&mut house);
    let next = region(1 << 32, MIB, USER + 4 * MIB);
    front.done(&mut house, M::AddMemReg(next), &[memfd(MIB).as_fd()]);
    let end = USER + 4 * MIB;
    front.done(&mut house, update(0x1000, 0x3000, end - 0x1000, RW), &[]);
    assert_eq!(areas(&mut house, 1), [(0x1000, 0x1000), (0x2000, 0x2000)]);
    for (size, user) in [(0x1000, USER - 1), (0x2000, end + MIB - 0x1000), (1, 0), (u64::MAX >> 1, USER)] {
        front.refused(&mut house, update(0x1000, size, user, RW), &[]);
    }
    assert_eq!(areas(&mut house, 1), [(0x1000, 0x1000), (0x2000, 0x2000)], "a refusal changes nothing");
    front.done(&mut house, M::RemMemReg(next), &[]);
    assert_eq!(areas(&mut house, 1), [(0x1000, 0x1000)], "what was derived from the region went with it");
}

#[test]
fn invalidation_drops_whole_entries_and_none_is_success() {
    let mut house = House::new(2);
    let (mut front, _channel) = settled(&mut house);
    let fill = |house: &mut House, front: &mut Front| {
        for page in 0..4 {
            front.done(house, update(page * 0x2000, 0x2000, USER + page * 0x2000, RW), &[]);
        }
    };
    fill(&mut house, &mut front);
    front.done(&mut house, invalidate(0x3fff, 2), &[]);
    assert_eq!(areas(&mut house, 1), [(0, 0x2000), (0x6000, 0x2000)]);
    front.done(&mut house, invalidate(0x3000, 0x1000), &[]);
    for all in [invalidate(0, u64::MAX), invalidate(0, 0), invalidate(0x1fff, u64::MAX)] {
        fill(&mut house, &mut front);
        front.done(&mut house, all, &[]);
        assert_eq!(areas(&mut house, 1), []);
    }
    assert_eq!(house.translations.line().entries, 0);
}

#[test]
fn invalidation_is_answered_when_no_burst_can_see_the_memory_any_more() {
    let mut house = House::new(2);
    let (mut front, _channel) = settled(&mut house);
    front.done(&mut house, update(0, 0x1000, USER, RW), &[]);
    let mut lane = house.session(1).access.lane();
    std::thread::scope(|scope| {
        let (inside, entered) = std::sync::mpsc::channel();
        let (leave, left) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            let burst = lane.enter();
            assert!(burst.slice(Iova(0), 8, Perm::READ).is_ok());
            inside.send(()).unwrap();
            left.recv().unwrap();
            drop(burst);
        });
        entered.recv().unwrap();
        assert_eq!(front.ask_with(&mut house, &invalidate(0, 0x1000), &[]), None, "a burst is open");
        leave.send(()).unwrap();
        let mut reply = None;
        house.pump_until(|_| {
            reply = front.receive();
            reply.is_some()
        });
        assert_eq!(reply, super::front::ack(&invalidate(0, 0), 0));
    });
}

#[test]
fn ring_starts_at_once_and_its_misses_are_asked_for_afterwards() {
    let mut house = House::new(2);
    let (mut front, mut channel) = settled(&mut house);
    start(&mut house, &mut front, 0, 0xffff_0000);
    assert!(house.queues.is_running(1, 0));
    let setup = &house.queues.running[&0];
    assert!(matches!(setup.ring.desc, RingAddr::Iova(Iova(0xffff_0000))));
    assert_eq!(channel.asked(), None);
    miss(&mut house, 0, 0xffff_0000, Perm::READ);
    assert_eq!(channel.asked(), Some((0xffff_0000, IotlbPerm::READ)));
    // QEMU brings the update first, and acknowledges when that was answered.
    front.done(&mut house, update(0xffff_0000, 0x1000, USER, RW), &[]);
    channel.acknowledge(0);
    miss(&mut house, 0, 0xffff_2000, Perm::READ | Perm::WRITE);
    assert_eq!(channel.asked(), Some((0xffff_2000, RW)));
    assert_eq!(forsaken(&mut house), []);
    assert_eq!(house.translations.line().misses, 2);
}

#[test]
fn miss_that_is_acknowledged_without_an_update_is_given_up() {
    let mut house = House::new(2);
    let (mut front, mut channel) = settled(&mut house);
    start(&mut house, &mut front, 0, 0);
    miss(&mut house, 0, 0x1000, Perm::WRITE);
    assert!(channel.asked().is_some());
    house.pump();
    assert_eq!(forsaken(&mut house), [], "the front-end has time");
    // It permits too little.
    front.done(&mut house, update(0x1000, 0x1000, USER, IotlbPerm::READ), &[]);
    channel.acknowledge(1);
    house.pump();
    assert_eq!(forsaken(&mut house), [(0, 0x1000)]);
    house.pump();
    assert_eq!(forsaken(&mut house), [], "once");
}

#[test]
fn acknowledgement_that_overtakes_its_update_is_no_refusal() {
    let mut house = House::new(2);
    let (mut front, mut channel) = settled(&mut house);
    start(&mut house, &mut front, 0, 0);
    miss(&mut house, 0, 0x1000, Perm::WRITE);
    assert!(channel.asked().is_some());
    front.send(&update(0x1000, 0x1000, USER, RW), &[], true);
    channel.acknowledge(0);
    house.pump();
    assert_eq!(forsaken(&mut house), []);
}

#[test]
fn ring_that_was_stopped_or_channel_that_was_closed_is_waited_for_no_longer() {
    let mut house = House::new(2);
    let (mut front, mut channel) = settled(&mut house);
    start(&mut house, &mut front, 0, 0);
    start(&mut house, &mut front, 1, 0);
    miss(&mut house, 0, 0x1000, Perm::WRITE);
    miss(&mut house, 1, 0x2000, Perm::READ);
    assert_eq!((channel.asked().is_some(), channel.asked().is_some()), (true, true));
    front.base(&mut house, 0);
    channel.acknowledge(1);
    house.pump();
    assert_eq!(forsaken(&mut house), [], "nobody waits");
    drop(channel);
    house.pump();
    assert_eq!(forsaken(&mut house), [(1, 0x2000)]);
    miss(&mut house, 1, 0x3000, Perm::READ);
    assert_eq!(forsaken(&mut house), [(1, 0x3000)], "there is nobody to ask");
}

#[test]
fn front_end_that_never_answers_is_asked_a_bounded_number_of_times() {
    let mut house = House::new(2);
    let (mut front, mut channel) = settled(&mut house);
    start(&mut house, &mut front, 0, 0);
    for page in 0..10_000 {
        miss(&mut house, 0, page << 12, Perm::READ);
    }
    let asked = std::iter::from_fn(|| channel.asked()).count();
    assert!(asked <= 256, "{asked}");
    assert!(asked > 0);
}

#[test]
fn suspended_or_reset_device_knows_no_translation() {
    let mut house = House::new(2);
    let (mut front, _channel) = settled(&mut house);
    for index in [0, 1] {
        start(&mut house, &mut front, index, 0);
    }
    front.done(&mut house, update(0, 0x1000, USER, RW), &[]);
    front.base(&mut house, 0);
    assert_eq!(areas(&mut house, 1).len(), 1, "ring 1 runs");
    front.base(&mut house, 1);
    assert_eq!(areas(&mut house, 1), []);
    front.done(&mut house, update(0, 0x1000, USER, RW), &[]);
    front.done(&mut house, M::SetStatus(0), &[]);
    assert_eq!(areas(&mut house, 1), []);
}

#[test]
fn firmware_without_the_feature_and_system_with_it_take_turns() {
    let mut house = House::new(2);
    let (mut front, _channel) = settled(&mut house);
    for _ in 0..2 {
        front.done(&mut house, M::SetFeatures(FEATURES), &[]);
        assert_eq!(areas(&mut house, 1), [(0, u128::from(4 * MIB))]);
        start(&mut house, &mut front, 0, USER);
        assert!(matches!(house.queues.running[&0].ring.desc, RingAddr::Extent(_)));
        front.refused(&mut house, update(0, 0x1000, USER, RW), &[]);
        front.done(&mut house, invalidate(0, 0x1000), &[]);
        front.base(&mut house, 0);

        front.done(&mut house, M::SetFeatures(TRANSLATED), &[]);
        front.done(&mut house, M::SetFeatures(TRANSLATED), &[]);
        assert_eq!(areas(&mut house, 1), []);
        start(&mut house, &mut front, 0, 0x1000);
        assert!(matches!(house.queues.running[&0].ring.desc, RingAddr::Iova(Iova(0x1000))));
        front.done(&mut house, update(0, 0x1000, USER, RW), &[]);
        front.base(&mut house, 0);
    }
    let mapped = house.windows.mapped_total();
    assert_eq!(mapped, 1, "the window of the region stayed all the time");
}

#[test]
fn region_is_removed_again_after_a_deadline_when_what_was_derived_from_it_is_free() {
    let mut house = House::impatient(2);
    let (mut front, _channel) = settled(&mut house);
    let dimm = region(1 << 32, MIB, USER + (1 << 32));
    front.done(&mut house, M::AddMemReg(dimm), &[memfd(MIB).as_fd()]);
    front.done(&mut house, update(0x8000, 0x1000, USER + (1 << 32), RW), &[]);
    front.done(&mut house, update(0, 0x1000, USER, RW), &[]);
    let mut lane = house.session(1).access.lane();
    let pin = lane.enter().pin(Iova(0x8000), 8, Perm::READ).unwrap();
    let answered = |house: &mut House, front: &mut Front, region| {
        front.send(&M::RemMemReg(region), &[], true);
        let mut reply = None;
        house.pump_until(|_| {
            reply = front.receive();
            reply.is_some()
        });
        let refused = super::front::ack(&M::RemMemReg(region), 0) != reply;
        !refused
    };
    for _ in 0..2 {
        assert!(!answered(&mut house, &mut front, dimm), "the device holds it");
        assert_eq!(areas(&mut house, 1), [(0, 0x1000), (0x8000, 0x1000)]);
    }
    let other = region(1 << 33, MIB, USER + (1 << 33));
    assert!(!answered(&mut house, &mut front, other), "it was never there");
    drop(pin);
    assert!(answered(&mut house, &mut front, dimm));
    assert_eq!(areas(&mut house, 1), [(0, 0x1000)]);
    assert!(!answered(&mut house, &mut front, dimm), "it is gone");
}

#[test]
fn parts_of_a_ring_in_scattered_pages_are_whole_while_it_runs() {
    let mut house = House::new(2);
    let (mut front, _channel) = settled(&mut house);
    // 256 descriptors take one page; its two halves are translated to different ones.
    let at = 0xffff_0000;
    start(&mut house, &mut front, 0, at + 0x800);
    for (page, user) in [(0, 0x9000), (1, 0x3000), (2, 0x7000), (3, 0x1000)] {
        front.done(&mut house, update(at + page * 0x1000, 0x1000, USER + user, RW), &[]);
    }
    let mut lane = house.session(1).access.lane();
    let whole = |lane: &mut mdev_pin::Lane| {
        lane.enter().slice_to_keep(Iova(at + 0x800), 4096, Perm::READ).map(|(slice, _)| slice.len())
    };
    assert_eq!(whole(&mut lane), Ok(4096));
    front.done(&mut house, invalidate(at + 0x1000, 1), &[]);
    assert_eq!(whole(&mut lane), Err(mdev_pin::ResolveError::Hole));
    front.done(&mut house, update(at + 0x1000, 0x1000, USER + 0xf000, RW), &[]);
    assert_eq!(whole(&mut lane), Ok(4096));
    let windows = house.windows.live();
    assert!(windows > 1);
    front.ask_with(&mut house, &M::GetVringBase(state(0, 0)), &[]).unwrap();
    assert!(house.windows.live() < windows, "nothing is kept for a ring that stands still");
}
