//! The message sequences that QEMU 11.1 was seen to send, message for message.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use mdev_protocol::vhost_user::{Config, FrontendMessage as M, FrontendReply as R, ProtocolFeatures as P};
use rustix::net::RecvFlags;

use super::House;
use super::front::{FEATURES, Front, MIB, USER, eventfd, memfd, region, ring_at, state, with_fd};
use super::mock::{CONFIG, Note};
use crate::session::{MAX_SLOTS, OFFERED_PROTOCOL_FEATURES as OFFERED};

const BIOS_FEATURES: u64 = 0x1_4000_0044;
const ACKNOWLEDGED: u64 = 0x08;
const DRIVER_OK: u64 = 0x0f;

/// What QEMU takes of the offer: it does not speak GPA_ADDRESSES with every device.
fn taken() -> P {
    OFFERED - P::GPA_ADDRESSES
}

/// vhost-user-blk: everything between connect and the first START.
fn init(house: &mut House, front: &mut Front, queues: u8) -> UnixStream {
    let offered = front.ask(house, M::GetFeatures);
    assert!(matches!(offered, R::GetFeatures(bits) if bits & FEATURES == FEATURES), "{offered:?}");
    assert_eq!(front.ask(house, M::GetProtocolFeatures), R::GetProtocolFeatures(OFFERED));
    front.tell(house, M::SetProtocolFeatures(taken()));
    front.ask(house, M::GetQueueNum);
    assert_eq!(front.ask(house, M::GetMaxMemSlots), R::GetMaxMemSlots(MAX_SLOTS as u64));
    let (ours, theirs) = UnixStream::pair().unwrap();
    front.done(house, M::SetBackendReqFd, &[theirs.as_fd()]);
    front.tell(house, M::SetOwner);
    front.ask(house, M::GetFeatures);
    for index in 0..queues {
        front.done(house, M::SetVringCall(with_fd(index)), &[eventfd().as_fd()]);
        front.done(house, M::SetVringErr(with_fd(index)), &[eventfd().as_fd()]);
    }
    ours
}

/// vhost-user-blk's START. `memory` is what is new since the connection was made.
fn start(
    house: &mut House,
    front: &mut Front,
    features: u64,
    base: u32,
    memory: &[(mdev_protocol::vhost_user::MemoryRegion, &std::os::fd::OwnedFd)],
) {
    front.tell(house, M::SetFeatures(features));
    front.status(house);
    front.tell(house, M::SetStatus(ACKNOWLEDGED));
    front.done(house, M::SetVringCall(with_fd(0)), &[eventfd().as_fd()]);
    front.tell(house, M::SetFeatures(features));
    front.status(house);
    for (region, file) in memory {
        front.done(house, M::AddMemReg(*region), &[file.as_fd()]);
    }
    front.tell(house, M::SetVringNum(state(0, 256)));
    front.tell(house, M::SetVringBase(state(0, base)));
    front.tell(house, M::SetVringAddr(ring_at(0, USER)));
    front.done(house, M::SetVringKick(with_fd(0)), &[eventfd().as_fd()]);
    front.done(house, M::SetVringEnable(state(0, 1)), &[]);
    front.status(house);
    front.tell(house, M::SetStatus(DRIVER_OK));
    assert_eq!(front.status(house), DRIVER_OK);
}

fn stop(house: &mut House, front: &mut Front) -> u32 {
    front.done(house, M::SetVringEnable(state(0, 0)), &[]);
    let base = front.base(house, 0);
    front.tell(house, M::SetStatus(0));
    base
}

fn started(house: &mut House) -> Vec<(u16, u16)> {
    let notes = house.queues.take_notes();
    let starts = notes.into_iter().filter_map(|note| match note {
        Note::Start { index, base, .. } => Some((index, base)),
        _ => None,
    });
    starts.collect()
}

#[test]
fn blk_boots_through_bios_and_linux_stops_and_continues() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let file = memfd(4 * MIB);
    init(&mut house, &mut front, 2);
    let whole = Config::new(0, 0, vec![0; 57]).unwrap();
    assert_eq!(
        front.ask(&mut house, M::GetConfig(whole)),
        R::GetConfig(Some(Config::new(0, 0, CONFIG[..57].to_vec()).unwrap()))
    );
    // At realize and at machine start, before any START.
    front.tell(&mut house, M::ResetDevice);
    front.tell(&mut house, M::ResetDevice);

    start(&mut house, &mut front, BIOS_FEATURES, 0, &[(region(0, 4 * MIB, USER), &file)]);
    assert_eq!(started(&mut house), [(0, 0)]);
    house.queues.taken = 1;
    assert_eq!(stop(&mut house, &mut front), 1);
    front.tell(&mut house, M::ResetDevice);

    // No region is sent again.
    start(&mut house, &mut front, FEATURES, 0, &[]);
    assert_eq!(started(&mut house), [(0, 0)]);
    assert_eq!(house.queues.features, FEATURES & !(1 << 30));
    let running = &house.queues.running[&0];
    assert!(running.call.is_some() && running.err.is_some() && running.kick.is_some());
    assert!(running.ring.event_idx && running.ring.indirect);

    // QMP stop and cont: the base comes back as it was told.
    house.queues.taken = 0xad;
    let base = stop(&mut house, &mut front);
    assert_eq!(base, 0xad);
    start(&mut house, &mut front, FEATURES, base, &[]);
    assert_eq!(started(&mut house), [(0, 0xad)]);
}

#[test]
fn net_starts_with_a_table_and_stops_without_disabling() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let file = memfd(4 * MIB);
    let table = [(region(0, 4 * MIB, USER), file.as_fd())];
    front.ask(&mut house, M::GetFeatures);
    front.ask(&mut house, M::GetProtocolFeatures);
    front.tell(&mut house, M::SetProtocolFeatures(taken() - P::CONFIGURE_MEM_SLOTS));
    assert_eq!(front.ask(&mut house, M::GetQueueNum), R::GetQueueNum(1));
    front.tell(&mut house, M::SetOwner);
    for index in 0..2 {
        front.done(&mut house, M::SetVringCall(with_fd(index)), &[eventfd().as_fd()]);
        front.done(&mut house, M::SetVringErr(with_fd(index)), &[eventfd().as_fd()]);
    }
    for round in 0..3 {
        // At realize and at every reset, long before there is memory; and again just before START.
        for _ in 0..4 {
            front.done(&mut house, M::SetVringEnable(state(0, 1)), &[]);
            front.done(&mut house, M::SetVringEnable(state(1, 1)), &[]);
        }
        front.tell(&mut house, M::SetFeatures(FEATURES));
        front.status(&mut house);
        front.tell(&mut house, M::SetStatus(ACKNOWLEDGED));
        let acked = front.table(&mut house, &table);
        assert!(matches!(acked, Some(R::Ack { value: 0, .. })), "{acked:?}");
        for index in 0..2u8 {
            let ring = u32::from(index);
            front.tell(&mut house, M::SetVringNum(state(ring, 256)));
            front.tell(&mut house, M::SetVringBase(state(ring, round)));
            front.tell(&mut house, M::SetVringAddr(ring_at(ring, USER)));
            front.done(&mut house, M::SetVringKick(with_fd(index)), &[eventfd().as_fd()]);
            front.done(&mut house, M::SetVringCall(with_fd(index)), &[eventfd().as_fd()]);
        }
        front.tell(&mut house, M::SetStatus(DRIVER_OK));
        let notes = house.queues.take_notes();
        let expected: Vec<Note> = (0..2)
            .flat_map(|index| {
                let start = Note::Start { conn: 1, index, base: round as u16, enabled: true };
                [start, Note::Call { index, some: true }]
            })
            .collect();
        assert_eq!(notes, expected);
        house.queues.taken = 1;
        assert_eq!(front.base(&mut house, 0), round + 1);
        assert_eq!(front.base(&mut house, 1), round + 1);
        front.tell(&mut house, M::SetStatus(0));
        assert!(house.queues.running.is_empty());
        house.queues.take_notes();
    }
}

#[test]
fn features_of_a_second_pair_arrive_while_the_first_runs() {
    let mut house = House::new(4);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    front.start(&mut house, 0, 0);
    front.start(&mut house, 1, 0);
    // QEMU negotiates for each pair of queues.
    front.ask(&mut house, M::GetProtocolFeatures);
    front.tell(&mut house, M::SetProtocolFeatures(taken()));
    front.tell(&mut house, M::SetFeatures(FEATURES));
    front.start(&mut house, 2, 0);
    front.start(&mut house, 3, 0);
    assert_eq!(house.queues.running.len(), 4);
    assert!(!house.queues.notes.iter().any(|note| matches!(note, Note::Stop { .. })));
    front.refused(&mut house, M::SetFeatures(FEATURES & !(1 << 29)), &[]);
}

#[test]
fn memory_is_plugged_and_unplugged_while_rings_run() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    front.start(&mut house, 0, 0);
    house.queues.take_notes();
    let dimm = memfd(16 * MIB);
    let plugged = region(0x1_0000_0000, 16 * MIB, USER + 0x1000_0000);
    front.done(&mut house, M::AddMemReg(plugged), &[dimm.as_fd()]);
    assert_eq!(house.session(1).ioas.areas().len(), 2);
    front.done(&mut house, M::RemMemReg(plugged), &[]);
    assert_eq!(house.session(1).ioas.areas().len(), 1);
    // Older front-ends send a descriptor along; and the offset does not name the region.
    front.done(&mut house, M::AddMemReg(plugged), &[dimm.as_fd()]);
    let mut other_offset = plugged;
    other_offset.mmap_offset = 4096;
    front.done(&mut house, M::RemMemReg(other_offset), &[dimm.as_fd()]);
    front.refused(&mut house, M::RemMemReg(plugged), &[]);
    assert!(house.queues.take_notes().is_empty(), "the ring did not notice");
}

#[test]
fn a_device_plugged_again_on_the_same_connection_is_a_new_session() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let file = memfd(4 * MIB);
    let dimm = memfd(MIB);
    init(&mut house, &mut front, 2);
    let memory = [(region(0, 4 * MIB, USER), &file), (region(8 * MIB, MIB, USER + 16 * MIB), &dimm)];
    start(&mut house, &mut front, FEATURES, 0, &memory);
    stop(&mut house, &mut front);
    let mapped = house.windows.mapped_total();

    let channel = init(&mut house, &mut front, 2);
    assert!(house.session(1).ioas.areas().is_empty());
    start(&mut house, &mut front, FEATURES, 0, &memory[..1]);
    assert_eq!(started(&mut house), [(0, 0), (0, 0)]);
    assert_eq!(house.session(1).ioas.areas().len(), 1);
    assert!(house.windows.mapped_total() <= mapped + 1);

    // The new back-end channel is the one that is used.
    house.session(1).configuration_changed();
    let mut message = [0u8; 64];
    let (_, len) = rustix::net::recv(&channel, &mut message, RecvFlags::DONTWAIT).unwrap();
    assert_eq!((len, message[0]), (12, 2));
}

#[test]
fn a_front_end_killed_under_load_makes_room_for_the_next() {
    let mut house = House::new(2);
    let mut front = house.connect();
    let _file = front.settle(&mut house);
    front.start(&mut house, 0, 0);
    house.queues.taken = 7;
    drop(front);
    house.pump();
    assert!(house.queues.running.is_empty());
    assert!(house.sessions.is_empty());
    assert_eq!(house.windows.live(), 0);

    // A back-end that was reconnected to gets no GET_CONFIG, and the base from guest memory.
    let mut front = house.connect();
    let file = memfd(4 * MIB);
    init(&mut house, &mut front, 2);
    start(&mut house, &mut front, FEATURES, 0xbbe, &[(region(0, 4 * MIB, USER), &file)]);
    assert_eq!(started(&mut house), [(0, 0), (0, 0xbbe)]);
}
