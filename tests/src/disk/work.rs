//! Requests at random, and what must come of them, whatever driver carries them out.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mdev_dma::GuestSlice;
use mdevd::driver::ledger::{Expected, Ledger};

use super::journal::{Entry, Journal, Unheard};
use super::{BLOCK, WATCHDOG};
use crate::random::Random;

/// What is asked of a disk. Data are a block, in the buffer of its tag.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Write this block.
    Write(u64),
    /// Read this block.
    Read(u64),
    /// Make all writes durable that have ended.
    Flush,
}

/// A driver's queue of requests, each with a tag and a buffer of [`BLOCK`] bytes.
pub trait RequestQueue {
    /// Requests that are under way.
    fn under_way(&self) -> usize;

    /// Submits up to `count` requests, fewer where tags are out, and lets the device know.
    ///
    /// # Panics
    /// The driver breaks a rule.
    fn submit(&mut self, count: u32, make: &mut dyn FnMut(u16, &GuestSlice<'_>) -> Ask);

    /// Hands the tags and buffers of requests that have ended to `each`.
    ///
    /// # Panics
    /// A request has failed, or the device breaks a rule.
    fn reap(&mut self, each: &mut dyn FnMut(u16, &GuestSlice<'_>));
}

/// A request under way.
enum Asked {
    Write { block: u64, generation: u64 },
    Read { block: u64, expected: Expected },
    Flush,
}

impl Asked {
    fn is_read_of(&self, other: u64) -> bool {
        matches!(self, Asked::Read { block, .. } if *block == other)
    }

    fn is_write_of(&self, other: u64) -> bool {
        matches!(self, Asked::Write { block, .. } if *block == other)
    }
}

/// Requests, and what is known of the disk because of them.
pub struct Work {
    /// What may be on the disk.
    pub ledger: Ledger,
    /// Requests that have ended.
    pub ended: u64,
    /// Blocks of the disk.
    pub(super) blocks: u64,
    asked: HashMap<u16, Asked>,
    random: Random,
}

impl Work {
    /// Work on a disk of so many blocks, whose writes are known by `seed`.
    pub fn new(blocks: u64, seed: u64, random: Random) -> Self {
        Work { ledger: Ledger::new(seed, BLOCK), ended: 0, blocks, asked: HashMap::new(), random }
    }

    /// Submits what it may, and takes what has ended. Whether anything has. No block is read and written at a time: a read through the page
    /// cache may find parts of both, even of one sector.
    ///
    /// # Panics
    /// A request fails, ends twice, or finds what may not be there; nobody hears the journal.
    pub fn step(&mut self, queue: &mut impl RequestQueue, submit: bool, journal: &mut impl Journal) -> bool {
        let Self { ledger, asked, random, blocks, .. } = self;
        if submit {
            queue.submit(u32::MAX, &mut |tag, data| {
                let block = random.below(*blocks);
                let (ask, under_way) = match random.below(16) {
                    1..=4 if !asked.values().any(|other| other.is_write_of(block)) => {
                        (Ask::Read(block), Asked::Read { block, expected: ledger.expected(block) })
                    }
                    5.. if !asked.values().any(|other| other.is_read_of(block)) => {
                        journal.tell(Entry::Begun { block }).expect("somebody listens");
                        let generation = ledger.begin(block);
                        let mut bytes = vec![0; BLOCK as usize];
                        ledger.fill(block, generation, &mut bytes);
                        data.copy_from(&bytes);
                        (Ask::Write(block), Asked::Write { block, generation })
                    }
                    _ => (Ask::Flush, Asked::Flush),
                };
                asked.insert(tag, under_way);
                ask
            });
        }
        let mut ended = 0;
        queue.reap(&mut |tag, data| {
            match asked.remove(&tag).expect("a request that was under way") {
                Asked::Flush => {}
                Asked::Read { block, expected } => {
                    let mut bytes = vec![0; BLOCK as usize];
                    data.copy_to(&mut bytes);
                    if let Err(finding) = ledger.check_read(block, &expected, &bytes) {
                        panic!("{finding}");
                    }
                }
                Asked::Write { block, generation } => {
                    if let Err(finding) = ledger.acknowledge(block, generation) {
                        panic!("{finding}");
                    }
                    journal.tell(Entry::Ended { block, generation }).expect("somebody listens");
                }
            }
            ended += 1;
        });
        self.ended += ended;
        ended > 0
    }

    /// What is under way will never end: writes may be there or not.
    ///
    /// # Panics
    /// Never, if the ledger is its own.
    pub fn give_up(&mut self) {
        for (_, asked) in self.asked.drain() {
            if let Asked::Write { block, generation } = asked {
                self.ledger.give_up(block, generation).expect("a write that was under way");
            }
        }
    }

    /// Waits until nothing is under way.
    ///
    /// # Panics
    /// As [`Work::step`]; a request does not end.
    pub fn drain(&mut self, queue: &mut impl RequestQueue) {
        let deadline = Instant::now() + WATCHDOG;
        while queue.under_way() > 0 {
            if !self.step(queue, false, &mut Unheard) {
                assert!(Instant::now() < deadline, "{} requests do not end", queue.under_way());
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    /// Reads every block of the disk, of which `ledger` says what it may hold.
    ///
    /// # Panics
    /// One holds something else, or cannot be read.
    pub fn verify(&mut self, queue: &mut impl RequestQueue, ledger: &Ledger) {
        self.drain(queue);
        let mut blocks = 0..self.blocks;
        let mut reading = HashMap::new();
        let deadline = Instant::now() + WATCHDOG;
        while !reading.is_empty() || !blocks.is_empty() {
            assert!(Instant::now() < deadline, "{} reads do not end", reading.len());
            let left = blocks.clone().count() as u32;
            queue.submit(left, &mut |tag, _| {
                let block = blocks.next().expect("one that is left");
                reading.insert(tag, block);
                Ask::Read(block)
            });
            queue.reap(&mut |tag, data| {
                let block = reading.remove(&tag).expect("a read that was under way");
                let mut bytes = vec![0; BLOCK as usize];
                data.copy_to(&mut bytes);
                if let Err(finding) = ledger.check(block, &bytes) {
                    panic!("{finding}");
                }
            });
        }
    }
}
