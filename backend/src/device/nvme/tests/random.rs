//! Commands of anything.

use mdev_protocol::nvme::command::{Command, NSID_ALL};
use mdev_protocol::nvme::opcode::nvm;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::rig::{Options, Rig, SIZE, device};
use crate::device::QueueNews;
use crate::store::held::Held;
use crate::store::{Port, Store};

const COUNT: usize = 100_000;

/// A xorshift generator: the same commands every time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A pointer that is likely to mean something.
    fn pointer(&mut self, rig: &Rig) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => rig.lists.at.0 + self.below(8 * 4096) / 8 * 8,
            2 => rig.at(self.below(1 << 20)),
            _ => rig.at(self.below(256) * 4096),
        }
    }

    fn command(&mut self, rig: &Rig, cid: u16) -> Command {
        let opcodes = [
            nvm::READ,
            nvm::WRITE,
            nvm::COMPARE,
            nvm::FLUSH,
            nvm::WRITE_ZEROES,
            nvm::DATASET_MANAGEMENT,
            nvm::VERIFY,
        ];
        let mut command = Command::new(opcodes[self.below(7) as usize], cid, 1 + self.below(3) as u32);
        if self.below(50) == 0 {
            command.cdw0 = command.cdw0 & !0xff | self.below(256) as u32;
        }
        if self.below(4) == 0 {
            command.cdw0 |= (self.below(256) as u32) << 8;
        }
        if self.below(50) == 0 {
            command.nsid = NSID_ALL;
        }
        command.dptr = [self.pointer(rig), self.pointer(rig)];
        if self.below(3) == 0 {
            command.dptr[1] = self.below(3000) | self.below(8) << 60;
        }
        command.cdw10 = self.below(SIZE / 512 + 20) as u32;
        command.cdw11 = if self.below(20) == 0 { self.next() as u32 } else { self.below(2) as u32 * 4 };
        command.cdw12 = if self.below(10) == 0 { self.next() as u32 } else { self.below(300) as u32 };
        command
    }
}

#[test]
fn random_commands_all_end_once() {
    let held = Held::new(vec![0; SIZE as usize]);
    let mem = Store::open(&"mem,size=4M".parse().unwrap()).unwrap();
    assert!(matches!(
        mem.port(std::sync::Arc::new(crate::sys::EventFd::new().unwrap())),
        Ok(Port::Immediate(_))
    ));
    let stores = vec![mem, Store::Held(held.clone())];
    let options = Options { entries: 256, completions: 31, ..Options::default() };
    let mut rig = Rig::of(device(stores, false), options);
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    let (mut sent, mut ended) = (0, 0);
    let (mut asked, mut decided, mut aborted) = (0, 0, 0);
    let mut open = [0u32; 1 << 16];
    let mut last = std::time::Instant::now();
    while ended < COUNT {
        while sent < COUNT && sent - ended < 200 {
            let words: Vec<u64> = (0..8).map(|_| numbers.pointer(&rig)).collect();
            let offset = numbers.below(4080) as usize * 8;
            rig.list(offset, &words);
            let cid = sent as u16;
            open[usize::from(cid)] += 1;
            let command = numbers.command(&rig, cid);
            rig.place(0, command);
            sent += 1;
        }
        rig.ring(0);
        rig.poll();
        if numbers.below(4) == 0 {
            held.finish_all();
        }
        if numbers.below(4) == 0 {
            // Those that the host waits for, of which many are still in the queue, and any other.
            let last = sent as u16;
            let waiting = (1..=200).rev().map(|back| last.wrapping_sub(back));
            let waiting = waiting.filter(|cid| open[usize::from(*cid)] > 0).take(8);
            for cid in waiting.chain([numbers.next() as u16]).collect::<Vec<_>>() {
                rig.queues[0].engine.abort(cid, asked);
                asked += 1;
            }
        }
        for one in rig.reap() {
            open[usize::from(one.cid)] -= 1;
            ended += 1;
            last = std::time::Instant::now();
        }
        // Commands whose data are nowhere wait for a while, which this test need not.
        if rig.queues[0].engine.next_deadline().is_some() {
            rig.queues[0].engine.forsake();
        }
        while let Some(news) = rig.queues[0].engine.news() {
            let QueueNews::Abort { aborted: done, .. } = news else { panic!("{news}") };
            decided += 1;
            aborted += u64::from(done);
        }
        assert!(last.elapsed() < std::time::Duration::from_secs(20), "{ended} of {sent} have ended");
    }
    assert!(open.iter().all(|&count| count == 0));
    assert_eq!(asked, decided);
    assert!(aborted > 20, "only {aborted} of {asked} were aborted");
    assert_eq!((rig.ioas.pins(), rig.counters().packets), (0, COUNT as u64));
}

#[test]
fn fuzz_entry_survives_corpus_and_noise() {
    use crate::device::fuzzing::tests::corpus_and_noise;
    use crate::device::nvme::fuzzing::fuzz_commands;
    corpus_and_noise("commands", fuzz_commands, |script, random| match random(4) {
        0 => random(3),
        // Mostly the commands; sometimes lists, and doorbells in memory.
        1 => random(script.len()),
        _ => 3 + random(script.len().min(10 * 64) - 3),
    });
}

/// The pieces that PRP entries mean, as the specification tells it: byte by byte.
fn naive(list: &dyn Fn(u64) -> u64, [first, second]: [u64; 2], len: u32) -> Option<Vec<u64>> {
    if first % 4 != 0 {
        return None;
    }
    let first_page = 4096 - first % 4096;
    let pages = (u64::from(len).saturating_sub(first_page)).div_ceil(4096);
    let mut entries = vec![first];
    match pages {
        0 => {}
        1 => entries.push(second),
        _ => {
            if second % 8 != 0 {
                return None;
            }
            let mut at = second;
            for left in (1..=pages).rev() {
                if at % 4096 == 4088 && left > 1 {
                    at = list(at);
                    if at % 4096 != 0 {
                        return None;
                    }
                }
                entries.push(list(at));
                at += 8;
            }
        }
    }
    if entries.iter().skip(1).any(|entry| entry % 4096 != 0) {
        return None;
    }
    let mut bytes = Vec::new();
    for entry in entries {
        let mut at = entry;
        while bytes.len() < len as usize {
            bytes.push(at);
            at = at.wrapping_add(1);
            if at % 4096 == 0 {
                break;
            }
        }
    }
    Some(bytes)
}

#[test]
fn prp_walk_is_that_of_a_naive_model() {
    use crate::device::nvme::data::{Fault, locate};
    let rig = Rig::new("null,size=4M");
    let base = rig.lists.at.0;
    let word = move || {
        prop_oneof![
            8 => (0u64..64).prop_map(|page| (16 << 20) + page * 4096),
            4 => (0u64..7).prop_map(move |page| base + page * 4096),
            1 => (0u64..512).prop_map(move |word| base + word * 8),
            1 => any::<u64>().prop_map(|any| any & !4095),
        ]
    };
    let words = prop::collection::vec(word(), 24);
    let second = prop_oneof![
        2 => word(),
        3 => (0u64..24).prop_map(move |back| base + 4096 - back * 8),
        1 => (0u64..4096).prop_map(move |byte| base + byte),
    ];
    let first = prop_oneof![(0u64..8192).prop_map(|byte| (16 << 20) + byte), word()];
    // Up to 22 pages of list entries are numbers of this test's choice: what lies behind them are zeros.
    let strategy = (words, first, second, 1u32..=22 * 4096);
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 4000, failure_persistence: None, ..Config::default() },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    runner
        .run(&strategy, |(words, first, second, len)| {
            rig.lists.slice().unwrap().fill(0);
            // At the end of the first list page, and at the beginning of the others.
            rig.list(4096 - 24 * 8, &words);
            (1..7).for_each(|page| rig.list(page * 4096, &words));
            let list = |at: u64| {
                let slice = rig.memory.slice(mdev_dma::Iova(at), 8);
                u64::from_le(slice.and_then(|slice| slice.read(0)).unwrap_or_default())
            };
            let command = Command { dptr: [first, second], ..Command::new(nvm::READ, 0, 1) };
            let mut pieces = Vec::new();
            let mut lane = rig.access.lane();
            let found = locate(&lane.enter(), &command, len, true, &mut pieces);
            match (found, naive(&list, [first, second], len)) {
                (Ok(()), Some(bytes)) => {
                    let all: Vec<u64> = pieces
                        .iter()
                        .flat_map(|piece| (0..u64::from(piece.len)).map(|at| piece.at.0.wrapping_add(at)))
                        .collect();
                    prop_assert_eq!(all, bytes);
                }
                (Err(Fault::Refused(_)), None) => {}
                // A list in no memory: the model reads zeros there.
                (Err(Fault::Memory(_)), _) => {}
                (found, model) => prop_assert!(false, "{found:?} {}", model.is_some()),
            }
            Ok(())
        })
        .unwrap();
}
