//! Random messages over a real socket, while a second session on the same device must not notice.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use mdev_protocol::vhost_user::{FrontendMessage as M, Header};
use zerocopy::IntoBytes;

use super::House;
use super::front::{Front, MIB, USER, eventfd, memfd};

const MESSAGES: usize = 100_000;

/// Numbers that mean something somewhere, and some that do not.
const NUMBERS: [u64; 20] = [
    0,
    1,
    2,
    3,
    8,
    255,
    256,
    257,
    4096,
    65535,
    65536,
    MIB,
    4 * MIB,
    USER,
    USER + 0x1000,
    USER + 0x2000,
    0x1_7000_6e44,
    0x21_a63b,
    u64::MAX,
    u64::MAX - 4095,
];

/// SplitMix64: the same throws for the same seed.
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.throw() as usize % bound
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn number(&mut self) -> u64 {
        match self.below(8) {
            0 => self.throw(),
            _ => NUMBERS[self.below(NUMBERS.len())],
        }
    }
}

/// Header and body of something like a message.
fn message(dice: &mut Dice) -> Vec<u8> {
    const SIZES: [u32; 9] = [0, 8, 8, 8, 16, 24, 40, 40, 72];
    let id = dice.below(48) as u32;
    // Mostly the size it ought to have.
    let proper =
        mdev_protocol::vhost_user::FrontendRequest::from_id(id).map(|request| request.row().size.min);
    let size = match proper {
        Some(size) if !dice.one_in(4) => size,
        _ => SIZES[dice.below(SIZES.len())],
    };
    let mut header = Header::request(id, size, !dice.one_in(4));
    if dice.one_in(2000) {
        header.flags = dice.number() as u32;
    }
    let mut bytes = header.as_bytes().to_vec();
    while bytes.len() < 12 + size as usize {
        let word = dice.number().to_ne_bytes();
        let halves = dice.below(2) * 4;
        bytes.extend_from_slice(&word[halves..]);
    }
    bytes.truncate(12 + size as usize);
    bytes
}

#[test]
fn a_hundred_thousand_random_messages_do_not_reach_another_session() {
    let mut house = House::impatient(2);
    let mut quiet = house.connect();
    let _memory = quiet.settle(&mut house);
    quiet.start(&mut house, 0, 0);
    quiet.start(&mut house, 1, 0);
    house.queues.take_notes();

    rage(&mut house, MESSAGES / 2, 0x5eed);
    assert!(house.queues.take_notes().is_empty(), "the rings of the other session never noticed");
    assert_eq!(quiet.status(&mut house), 0);

    // And with the rings to play with.
    quiet.base(&mut house, 0);
    quiet.base(&mut house, 1);
    rage(&mut house, MESSAGES / 2, 0xdada);
    house.pump();
    quiet.start(&mut house, 0, 0);
    assert_eq!(quiet.status(&mut house), 0);
    assert!(house.queues.is_running(quiet.conn, 0));
    assert_eq!(house.sessions.len(), 1);
    drop(quiet);
    house.pump();
    assert_eq!(house.windows.live(), 0);
}

fn rage(house: &mut House, messages: usize, seed: u64) {
    let mut dice = Dice(seed);
    let (_read, pipe) = rustix::pipe::pipe().unwrap();
    let pool: [OwnedFd; 4] =
        [memfd(4 * MIB), eventfd().as_fd().try_clone_to_owned().unwrap(), memfd(4096), pipe];
    let mut front = tamed(house, &mut dice);
    let mut answered = BTreeSet::new();
    for _ in 0..messages {
        let fds: Vec<BorrowedFd<'_>> = match dice.below(4) {
            0 | 1 => Vec::new(),
            2 => vec![pool[dice.below(pool.len())].as_fd()],
            _ => (0..dice.below(9)).map(|_| pool[dice.below(pool.len())].as_fd()).collect(),
        };
        let sent = front.link.send(&message(&mut dice), &fds).is_ok();
        house.queues.hold_stops = dice.one_in(3);
        house.turn(front.conn);
        if dice.one_in(16) {
            house.queues.hold_stops = false;
            house.pump();
        }
        drain(&mut front, &mut answered);
        if !sent || house.ended.contains_key(&front.conn) {
            house.queues.hold_stops = false;
            house.pump();
            front = tamed(house, &mut dice);
        }
        house.queues.notes.truncate(16);
    }
    assert!(answered.len() > 10, "{answered:?}");
    house.queues.hold_stops = false;
}

/// A front-end whose messages are obeyed: everything is negotiated, by one kind of addresses or the other, there is
/// memory, and its rings run or wait for those of another connection.
fn tamed(house: &mut House, dice: &mut Dice) -> Front {
    let mut front = house.connect();
    if dice.one_in(3) {
        front.negotiate(house, crate::session::OFFERED_PROTOCOL_FEATURES);
    } else {
        let _memory = front.settle(house);
        front.start(house, 0, 0);
        front.start(house, 1, 0xfffe);
    }
    assert!(front.ask_with(house, &M::GetFeatures, &[]).is_some());
    front
}

/// Reads whatever was answered; the shape of a refused value is not that of the value.
fn drain(front: &mut Front, answered: &mut BTreeSet<u32>) {
    let mut raw = [0u8; 65536];
    let socket = front.link.as_fd();
    if let Ok((_, len)) = rustix::net::recv(socket, &mut raw, rustix::net::RecvFlags::DONTWAIT)
        && len >= 12
    {
        answered.insert(u32::from_ne_bytes([raw[0], raw[1], raw[2], raw[3]]));
    }
}
