//! What a disk may hold: a model of writes that were begun and acknowledged, and the damage that it finds.
//!
//! A [`Ledger`] knows for every block which writes may be what a read finds there now. Each write has a *generation*, the number of the
//! write in the run, and puts a [`pattern`] into its block that names block and generation. A write that
//! is acknowledged supersedes all that had ended before it began; writes that were under way together may have come in any
//! order, or each in part of the block; one that failed, or whose device died, may be there wholly, partly, or not at all. What
//! the block held before the run is generation 0.
//!
//! The ledger is a value without locks, and follows from the calls alone: where the driver's process is what is killed, it
//! tells its calls to another process, which makes them on a ledger of its own and gets the same generations.
use super::pattern::{self, Found, SECTOR};
use smallvec::{SmallVec, smallvec};
use std::collections::HashMap;
use std::fmt;

/// What may be wrong with a block.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Damage {
    /// A write that was acknowledged is not there: the block holds an older one, or none.
    Lost,
    /// A write was acknowledged twice, or was not under way when it was.
    Doubled,
    /// The block consists of parts of two writes, at least one of which may not be there any more; or a sector does.
    Torn,
    /// A sector that belongs elsewhere.
    Misplaced,
}

impl fmt::Display for Damage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Damage::Lost => "LOST",
            Damage::Doubled => "DOUBLED",
            Damage::Torn => "TORN",
            Damage::Misplaced => "MISPLACED",
        })
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{damage}: sector {sector} (block {block}): {what}")]
pub struct Finding {
    /// What kind of damage.
    pub damage: Damage,
    /// The block, in blocks from the beginning of the disk.
    pub block: u64,
    /// The first sector that is wrong, in virtio sectors from the beginning of the disk.
    pub sector: u64,
    /// What was found, and what may be there.
    pub what: String,
}

/// How a write stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum State {
    UnderWay,
    /// The first generation that was not yet begun when it ended.
    Ended {
        before: u64,
    },
}

/// A write whose bytes may be in a block.
#[derive(Copy, Clone, Debug)]
struct Write {
    generation: u64,
    state: State,
}

/// What a block held before the run.
const BEFORE: Write = Write { generation: 0, state: State::Ended { before: 1 } };

/// What a read that begins now may find: see [`Ledger::expected`].
#[derive(Clone, Debug)]
pub struct Expected {
    generations: SmallVec<[u64; 2]>,
    /// Writes from this generation on begin later.
    next: u64,
}

impl Expected {
    fn allows(&self, generation: u64) -> bool {
        generation >= self.next || self.generations.contains(&generation)
    }
}

/// The model. Blocks are of one size and numbered from the beginning of the disk.
#[derive(Clone, Debug)]
pub struct Ledger {
    seed: u64,
    /// Sectors of a block.
    sectors: u64,
    next: u64,
    /// The blocks that were written: the writes that they may hold.
    blocks: HashMap<u64, SmallVec<[Write; 1]>>,
}

impl Ledger {
    /// A disk of which nothing is known. `seed` tells the run's sectors from those of others; `block_size` is in bytes, a multiple of
    /// 512.
    pub fn new(seed: u64, block_size: u32) -> Self {
        let sectors = (u64::from(block_size) / SECTOR as u64).max(1);
        Ledger { seed, sectors, next: 1, blocks: HashMap::new() }
    }

    /// A write of the block is about to be submitted; its generation.
    pub fn begin(&mut self, block: u64) -> u64 {
        let generation = self.next;
        self.next += 1;
        let writes = self.blocks.entry(block).or_insert_with(|| smallvec![BEFORE]);
        writes.push(Write { generation, state: State::UnderWay });
        generation
    }

    /// The bytes of that write.
    pub fn fill(&self, block: u64, generation: u64, bytes: &mut [u8]) {
        pattern::fill(self.seed, block, generation, bytes);
    }

    /// The write has ended well.
    ///
    /// # Errors
    /// [`Damage::Doubled`]: no such write was under way.
    pub fn acknowledge(&mut self, block: u64, generation: u64) -> Result<(), Finding> {
        self.end(block, generation)?;
        if let Some(writes) = self.blocks.get_mut(&block) {
            let superseded = |write: &Write| match write.state {
                State::Ended { before } => write.generation != generation && before <= generation,
                State::UnderWay => false,
            };
            writes.retain(|write| !superseded(write));
        }
        Ok(())
    }

    /// The write has failed, or will never end, since its device is gone: it may be there or not, or in part.
    ///
    /// # Errors
    /// [`Damage::Doubled`]: no such write was under way.
    pub fn give_up(&mut self, block: u64, generation: u64) -> Result<(), Finding> {
        self.end(block, generation)
    }

    fn end(&mut self, block: u64, generation: u64) -> Result<(), Finding> {
        let next = self.next;
        let mut writes = self.blocks.get_mut(&block).into_iter().flatten();
        let under_way = |write: &&mut Write| (write.generation, write.state) == (generation, State::UnderWay);
        match writes.find(under_way) {
            Some(write) => {
                write.state = State::Ended { before: next };
                Ok(())
            }
            None => Err(Finding {
                damage: Damage::Doubled,
                block,
                sector: block * self.sectors,
                what: format!("generation {generation} ended, but it was not under way"),
            }),
        }
    }

    /// What a read of the block that is submitted now may find. (A write that begins meanwhile it may find too.)
    pub fn expected(&self, block: u64) -> Expected {
        let generations = match self.blocks.get(&block) {
            Some(writes) => writes.iter().map(|write| write.generation).collect(),
            None => smallvec![BEFORE.generation],
        };
        Expected { generations, next: self.next }
    }

    /// Looks at a block that was read while nothing is written.
    ///
    /// # Errors
    /// The damage.
    pub fn check(&self, block: u64, bytes: &[u8]) -> Result<(), Finding> {
        self.check_read(block, &self.expected(block), bytes)
    }

    /// Looks at a block that was read while others were written; `expected` is from when the read was submitted.
    ///
    /// # Errors
    /// The damage.
    pub fn check_read(&self, block: u64, expected: &Expected, bytes: &[u8]) -> Result<(), Finding> {
        let first = block * self.sectors;
        let wrong = |damage, number: u64, what: String| {
            let sector = first.saturating_add(number);
            Err(Finding { damage, block, sector, what })
        };
        let may = || list(&expected.generations);
        // The first sector that may not be there, and the first of another generation than that of the first sector.
        let (mut stale, mut begun, mut other) = (None, None, None);
        for (number, sector) in (0u64..).zip(bytes.chunks(SECTOR)) {
            let generation = match pattern::look(self.seed, sector) {
                Found::Blank => 0,
                Found::Broken => {
                    let what = format!("its parts are of different writes; {} may be there", may());
                    return wrong(Damage::Torn, number, what);
                }
                Found::Whole { block: of, sector, generation } if (of, sector) != (block, number) => {
                    let (home, may) = (of.saturating_mul(self.sectors).saturating_add(sector), may());
                    let what = format!(
                        "it belongs to sector {home} (block {of}, generation {generation}); {may} may be there"
                    );
                    return wrong(Damage::Misplaced, number, what);
                }
                Found::Whole { generation, .. } => generation,
            };
            let begun = *begun.get_or_insert(generation);
            if generation != begun {
                other.get_or_insert((number, generation));
            }
            if !expected.allows(generation) {
                stale.get_or_insert((number, generation));
            }
        }
        match (stale, other) {
            (None, _) => Ok(()),
            (Some((number, generation)), None) => {
                let what = format!("{} is there, and {} may be there", named(generation), may());
                wrong(Damage::Lost, number, what)
            }
            (Some((number, generation)), Some((_, second))) => {
                let beside = if second == generation { begun.unwrap_or(0) } else { second };
                let what = format!("{} beside {}; {} may be there", named(generation), named(beside), may());
                wrong(Damage::Torn, number, what)
            }
        }
    }

    /// Writes that were begun.
    pub fn begun(&self) -> u64 {
        self.next - 1
    }

    /// Blocks that were written.
    pub fn written(&self) -> usize {
        self.blocks.len()
    }
}

/// A generation in words.
fn named(generation: u64) -> String {
    match generation {
        0 => "what was there before the run".to_owned(),
        generation => format!("generation {generation}"),
    }
}

/// Generations in words.
fn list(generations: &[u64]) -> String {
    match generations {
        [one] => format!("only {}", named(*one)),
        several => several.iter().map(|&one| named(one)).collect::<Vec<_>>().join(" or "),
    }
}

/// How many findings of each kind there are, and what the first of them say.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    counts: [u64; 4],
    first: Vec<Finding>,
}

/// Findings that are told in full.
const TOLD: usize = 8;

impl Findings {
    /// Adds one.
    pub fn add(&mut self, finding: Finding) {
        if let Some(count) = self.counts.get_mut(finding.damage as usize) {
            *count += 1;
        }
        if self.first.len() < TOLD {
            self.first.push(finding);
        }
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Findings) {
        self.counts.iter_mut().zip(other.counts).for_each(|(sum, count)| *sum += count);
        let room = TOLD - self.first.len().min(TOLD);
        self.first.extend(other.first.iter().take(room).cloned());
    }

    /// How many of this kind.
    pub fn count(&self, damage: Damage) -> u64 {
        self.counts.get(damage as usize).copied().unwrap_or(0)
    }

    /// How many in all.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The first ones.
    pub fn first(&self) -> &[Finding] {
        &self.first
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
