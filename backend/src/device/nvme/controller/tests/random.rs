//! Hosts that do anything.

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::admin;
use mdev_protocol::nvme::register::{AQA, CC, CSTS};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRng};

use super::super::{QueueNews, fuzz_controller};
use super::rig::*;
use crate::device::fuzzing::tests::corpus_and_noise;

/// Numbers of which many mean something.
struct Dice(TestRng);

impl Dice {
    fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self(TestRng::from_seed(proptest::test_runner::RngAlgorithm::ChaCha, &bytes))
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit
    }

    fn word(&mut self) -> u32 {
        match self.below(4) {
            0 => self.below(8) as u32,
            1 => (self.below(8) | self.below(8) << 16) as u32,
            2 => 1 << self.below(32),
            _ => self.below(1 << 32) as u32,
        }
    }

    fn address(&mut self, rig: &Rig) -> u64 {
        match self.below(6) {
            0 => self.below(u64::MAX),
            1 => rig.data.at.0 + self.below(20) * PAGE + self.below(PAGE),
            2 => rig.asq.at.0,
            3 => u64::MAX - self.below(8192),
            _ => rig.data.at.0 + self.below(20) * PAGE,
        }
    }

    fn command(&mut self, rig: &Rig) -> Command {
        const OPCODES: [u8; 13] = [
            admin::DELETE_SQ,
            admin::CREATE_SQ,
            admin::GET_LOG_PAGE,
            admin::DELETE_CQ,
            admin::CREATE_CQ,
            admin::IDENTIFY,
            admin::ABORT,
            admin::SET_FEATURES,
            admin::GET_FEATURES,
            admin::ASYNC_EVENT,
            admin::NAMESPACE_MANAGEMENT,
            admin::NAMESPACE_ATTACHMENT,
            admin::DOORBELL_BUFFER_CONFIG,
        ];
        let opcode = match self.below(10) {
            0 => self.below(256) as u8,
            _ => OPCODES[self.below(13) as usize],
        };
        let flags = if self.below(10) == 0 { self.below(256) as u32 } else { 0 };
        let nsid = self.word();
        let command = Command::new(opcode, 0, nsid);
        Command {
            cdw0: command.cdw0 | flags << 8,
            dptr: [self.address(rig), self.address(rig)],
            cdw10: self.word(),
            cdw11: self.word(),
            cdw12: self.word(),
            cdw13: if self.below(8) == 0 { self.word() } else { 0 },
            cdw14: if self.below(8) == 0 { self.word() } else { 0 },
            ..command
        }
    }

    fn step(&mut self, rig: &mut Rig) {
        match self.below(40) {
            0 => rig.write(CC, ENABLED & !1),
            1 => {
                let cc = if self.below(2) == 0 { ENABLED } else { self.word() };
                rig.write(CC, cc);
            }
            2 => {
                let (offset, len) = (self.below(0x2100), self.below(17));
                let data: Vec<u8> = (0..len).map(|_| self.below(256) as u8).collect();
                rig.controller.write_bar0(offset, &data, &mut rig.host);
            }
            3 => {
                let (offset, len) = (self.below(0x2100), self.below(17));
                rig.controller.read_bar0(offset, &mut vec![0; len as usize]);
            }
            4 => {
                let (offset, value) = (self.below(0x70) as u32 & !3, self.word());
                rig.write(offset, value);
            }
            5 | 6 => {
                let (qid, head, value) = (self.below(6) as u16, self.below(2) == 0, self.word());
                rig.ring(qid, head, value);
            }
            7 => {
                let (offset, data) = (self.below(0xa0), self.word().to_le_bytes());
                rig.controller.write_config(offset, &data, &mut rig.host);
            }
            8 => {
                let (offset, data) = (self.below(0x2100), self.word().to_le_bytes());
                rig.controller.write_bar4(offset, &data);
                rig.controller.read_bar4(offset, &mut [0; 16]);
            }
            9 | 10 => {
                rig.finish_stops();
            }
            11 => rig.controller.namespaces_changed(&mut rig.host),
            12 => {
                let failure = QueueNews::InvalidDoorbell { qid: 1, head: true, value: 9 };
                rig.controller.queue_news(self.below(6) as u16, failure, &mut rig.host);
            }
            13 => rig.controller.stopped(9, &mut rig.host),
            14 | 15 => revive(rig),
            16..20 => {
                rig.ended();
            }
            _ => {
                let command = self.command(rig);
                rig.submit(command);
            }
        }
    }
}

/// What a host does that wants its controller back.
fn revive(rig: &mut Rig) {
    // It may reach memory.
    rig.controller.write_config(4, &[6], &mut rig.host);
    rig.write(CC, 0);
    rig.finish_stops();
    assert_eq!(rig.read(CSTS), 0, "disabled");
    assert!(rig.controller.is_quiet());
    rig.enable();
    rig.write(AQA, 0);
}

#[test]
fn controller_can_be_enabled_after_anything() {
    let (mut done, mut commands) = (0, 0);
    for seed in 0..100 {
        let (mut rig, mut dice) = (Rig::enabled(), Dice::new(seed));
        for _ in 0..1000 {
            dice.step(&mut rig);
        }
        commands += rig.device.shared().mishaps.count();
        revive(&mut rig);
        // What the host has set is gone, and everything works.
        done += rig.done(Command { cdw10: 7, ..Command::new(admin::GET_FEATURES, 0, 0) });
        rig.create_pair(1);
    }
    assert_eq!(done, 100 * (u32::from(PAIRS) - 1) * 0x1_0001);
    assert!(commands > 1000, "only {commands} commands were refused");
}

#[test]
fn controller_survives_the_corpus_and_noise_in_it() {
    corpus_and_noise("controller", fuzz_controller, |script, random| match random(3) {
        0 => random(script.len()),
        1 => 1 + random(usize::from(script[0]).max(1) * 12).min(script.len() - 2),
        // The words of a command that mean most.
        _ => {
            let first = 1 + usize::from(script[0]) * 12;
            let commands = script.len().saturating_sub(first) / 64;
            let at = first + random(commands.max(1)) * 64 + [0, 4, 24, 25, 40, 42, 44, 46][random(8)];
            at.min(script.len() - 1)
        }
    });
}

proptest! {
    #![proptest_config(Config { cases: 64, ..Config::default() })]

    /// Whatever was written, reading all at once and in parts is the same.
    #[test]
    fn registers_read_the_same_in_any_width(writes in proptest::collection::vec((0u32..0x70, any::<u32>()), 0..40)) {
        let mut rig = Rig::new();
        for (offset, value) in writes {
            rig.write(offset & !3, value);
        }
        for offset in (0..0x80).step_by(8) {
            let mut whole = [0; 8];
            rig.controller.read_bar0(offset, &mut whole);
            for width in [1, 2, 4] {
                let mut parts = Vec::new();
                for at in (0..8).step_by(width) {
                    let mut part = vec![0; width];
                    rig.controller.read_bar0(offset + at as u64, &mut part);
                    parts.extend(part);
                }
                prop_assert_eq!(&parts[..], &whole[..]);
            }
        }
    }
}
