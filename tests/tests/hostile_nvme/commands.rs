//! Commands at random. `MDEV_COMMANDS` says how many; 100,000 if it is not set.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::data::SglDescriptor;
use mdev_protocol::nvme::opcode::admin;
use mdev_protocol::nvme::register::csts;
use mdev_protocol::vfio_user::{DmaFlags, DmaMap};
use mdev_tests::random::Random;
use zerocopy::IntoBytes;

use super::house::PAIRS;
use super::intruder::{ENTRIES, Intruder, PAGE, with_cid};
use super::maps::memfd;
use super::trial::Trial;

fn wanted() -> u64 {
    std::env::var("MDEV_COMMANDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

/// Admin commands of a round are fewer.
const OF_ADMIN: u64 = 8;
/// Commands that wait for memory that is nowhere take a second each: so few are.
const NOWHERE: u64 = 20_000;
/// How long the commands of a round may take before the host resets the controller.
const PATIENCE: Duration = Duration::from_secs(20);

struct Chance<'i> {
    random: Random,
    data: u64,
    lists: u64,
    intruder: &'i mut Intruder,
    sent: u64,
    ended: u64,
    resets: u64,
}

impl Chance<'_> {
    /// An address: most are in memory, and all kinds of wrong in some way or other.
    fn address(&mut self) -> u64 {
        let base = *self.random.of(&[self.data, self.data, self.lists]);
        let at = base + self.random.below(32) * PAGE;
        match self.random.below(8) {
            0 => at + self.random.below(PAGE),
            1 => at + self.random.below(PAGE) / 8 * 8,
            2 if self.random.one_in(NOWHERE) => self.random.number(),
            _ => at,
        }
    }

    fn word(&mut self) -> u32 {
        match self.random.below(4) {
            0 => 0,
            1 => self.random.below(16) as u32,
            2 => 1 << self.random.below(32),
            _ => self.random.number() as u32,
        }
    }

    fn command(&mut self, opcodes: &[u8]) -> Command {
        let opcode =
            if self.random.one_in(16) { self.random.number() as u8 } else { *self.random.of(opcodes) };
        let dptr = [self.address(), self.address()];
        let mut command = Command { dptr, ..Command::new(opcode, 0, self.random.below(4) as u32) };
        command.cdw10 = if self.random.one_in(8) { self.word() } else { self.random.below(1 << 14) as u32 };
        command.cdw11 = if self.random.one_in(8) { self.word() } else { 0 };
        command.cdw12 = if self.random.one_in(8) { self.word() } else { self.random.below(64) as u32 };
        if self.random.one_in(8) {
            command.dptr = self.descriptor().pointer();
            command.cdw0 |= 1 << 14;
        }
        if self.random.one_in(8) {
            let mut bytes = [0; Command::LEN];
            bytes.copy_from_slice(command.as_bytes());
            // The pointers stay: nearly all that is turned there is nowhere.
            let bit =
                *self.random.of(&[8, 9, 10, 11, 12, 13, 14, 15, 40, 70, 100, 130, 140, 410, 430, 460, 500]);
            bytes[bit / 8] ^= 1 << (bit % 8);
            command = zerocopy::FromBytes::read_from_bytes(&bytes).expect("as long as before");
        }
        command
    }

    /// A descriptor whose length is never one of whole pages: nobody takes it for the address of one.
    fn descriptor(&mut self) -> SglDescriptor {
        let kind = *self.random.of(&[0, 0, 0, 2, 3, 3, 1, 4]);
        let len = *self.random.of(&[512, 1024, 2048, 16, 32, 512 * 7, 1]);
        SglDescriptor::new(kind, self.address(), len)
    }

    /// Lists of entries in the first half of the room for lists, of descriptors in the second.
    fn scribble(&mut self) {
        let place = self.random.below(32 * PAGE / 16) as usize * 16;
        let (entry, descriptor) = (self.address() / PAGE * PAGE, self.descriptor());
        let lists = self.intruder.lists.slice().expect("a part");
        lists.write(place, entry).expect("room");
        lists.write(place + 32 * PAGE as usize, descriptor).expect("room");
    }

    /// Some commands on each queue. Each ends once, or the host resets the controller.
    fn round(&mut self) {
        for _ in 0..32 {
            self.scribble();
        }
        let mut under_way: Vec<BTreeSet<u16>> = vec![BTreeSet::new(); PAIRS.into()];
        for (ring, cids) in under_way.iter_mut().enumerate() {
            for number in 0..ENTRIES as u16 - 1 {
                let command = self.command(&[0, 1, 2, 2, 1, 5, 8, 9, 12]);
                // Its place in this round; the rest of the identifier may be anything.
                let cid = number | (self.random.number() as u16) << 6;
                cids.insert(cid);
                self.intruder.rings[ring].push(&with_cid(command, cid));
                self.sent += 1;
            }
            self.intruder.ring(ring);
        }
        for _ in 0..self.random.below(OF_ADMIN) {
            let command =
                self.command(&[admin::GET_LOG_PAGE, admin::IDENTIFY, admin::ABORT, admin::GET_FEATURES]);
            // These do what they are told: other commands would never end.
            let takes_away = [
                admin::NAMESPACE_MANAGEMENT,
                admin::NAMESPACE_ATTACHMENT,
                admin::DELETE_SQ,
                admin::DOORBELL_BUFFER_CONFIG,
            ];
            if !takes_away.contains(&command.opcode()) {
                let cid = self.intruder.submit_admin(command);
                self.intruder.heard(cid);
                self.sent += 1;
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while under_way.iter().any(|cids| !cids.is_empty()) {
            let mut idle = true;
            for (ring, cids) in under_way.iter_mut().enumerate() {
                for completion in self.intruder.reap(ring) {
                    assert!(cids.remove(&completion.cid), "{completion:?} on queue {}", ring + 1);
                    self.ended += 1;
                    idle = false;
                }
            }
            if idle {
                std::thread::sleep(Duration::from_micros(200));
                if self.intruder.csts() != csts::READY || Instant::now() > deadline {
                    return self.reset();
                }
            }
        }
        let command = Command { cdw10: 1, dptr: [self.data, 0], ..Command::new(admin::IDENTIFY, 0, 0) };
        let cid = self.intruder.submit_admin(command);
        let deadline = Instant::now() + Duration::from_secs(3);
        while self.intruder.heard(cid).is_none() {
            if Instant::now() > deadline {
                // Its room for completions was configured away, or a deletion hit it.
                return self.reset();
            }
        }
        if self.resets_by_chance() {
            self.reset();
        }
    }

    fn resets_by_chance(&mut self) -> bool {
        self.random.one_in(16)
    }

    fn reset(&mut self) {
        self.resets += 1;
        self.intruder.enable();
        self.intruder.create_pairs(PAIRS.into());
    }
}

#[test]
fn commands_at_random_end_once_each() {
    let mut trial = Trial::begin("adaptive");
    let began = Instant::now();
    trial.case("commands at random", |intruder, _| {
        intruder.create_pairs(PAIRS.into());
        let (data, lists) = (intruder.data.at.0, intruder.lists.at.0);
        // Most of what is no address is zero, and is memory here: what waits for memory takes a second.
        let file = memfd(8 << 20);
        let flags = DmaFlags::READ | DmaFlags::WRITE;
        let map = DmaMap { flags, offset: 0, address: 0, size: 1 << 20 };
        intruder.client.dma_map(map, Some(file.as_fd())).expect("memory can be lent");
        let random = Random::seeded("commands at random");
        let mut chance = Chance { random, data, lists, intruder, sent: 0, ended: 0, resets: 0 };
        while chance.sent < wanted() {
            chance.round();
        }
        let Chance { sent, ended, resets, .. } = chance;
        println!("{sent} commands, {ended} ended, {resets} resets, {:?}", began.elapsed());
        assert!(ended > sent / 2, "{ended} of {sent} ended");
    });
    trial.end();
}
