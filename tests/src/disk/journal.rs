//! What a driver tells of its writes, so that its process may be what is killed.

use std::io::{self, Read, Write};

use mdevd::driver::ledger::Ledger;

/// What a driver tells of its writes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A write of this block is about to be submitted.
    Begun {
        /// The block.
        block: u64,
    },
    /// The write of this block and generation has ended.
    Ended {
        /// The block.
        block: u64,
        /// The write.
        generation: u64,
    },
}

/// Where a driver tells of its writes.
pub trait Journal {
    /// One more.
    ///
    /// # Errors
    /// Nobody listens.
    fn tell(&mut self, entry: Entry) -> io::Result<()>;
}

/// Nobody is told.
#[derive(Debug, Default)]
pub struct Unheard;

impl Journal for Unheard {
    fn tell(&mut self, _: Entry) -> io::Result<()> {
        Ok(())
    }
}

/// A stream, 16 bytes an entry: block and generation, which is 0 for one that begins. Each is whole for whoever reads it, since a pipe takes short writes whole.
#[derive(Debug)]
pub struct Stream<W>(pub W);

impl<W: Write> Journal for Stream<W> {
    fn tell(&mut self, entry: Entry) -> io::Result<()> {
        let (block, generation) = match entry {
            Entry::Begun { block } => (block, 0),
            Entry::Ended { block, generation } => (block, generation),
        };
        let words = [block.to_le_bytes(), generation.to_le_bytes()];
        self.0.write_all(words.as_flattened())
    }
}

/// Makes the calls of a driver that is another process on a ledger, up to the end of the stream. How many writes have ended; those that have not are
/// given up.
///
/// # Panics
/// The driver tells of a write that was not under way.
pub fn follow(ledger: &mut Ledger, mut journal: impl Read) -> u64 {
    let mut under_way = Vec::new();
    let mut ended = 0;
    let mut words = [0; 16];
    while journal.read_exact(&mut words).is_ok() {
        let [block, generation] = [0, 8].map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&words[at..at + 8]);
            u64::from_le_bytes(word)
        });
        if generation == 0 {
            under_way.push((block, ledger.begin(block)));
            continue;
        }
        ledger.acknowledge(block, generation).expect("a write that was under way");
        under_way.retain(|write| *write != (block, generation));
        ended += 1;
    }
    for (block, generation) in under_way {
        ledger.give_up(block, generation).expect("a write that was under way");
    }
    ended
}
