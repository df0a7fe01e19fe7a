//! What a lane shows to control threads: whether it is inside a burst, and how many pins it took and lost per area.
//!
//! The lane's thread is the only writer of `sequence` and of every `acquired`; `released` is incremented by whoever
//! drops a pin. After the grace of a gated area no `acquired` of its slot can grow, so from then on
//! `acquired == released` says that no pin is out, and stays true. Explored by the models `burst_against_unmap` and
//! `pin_against_unmap`.

use std::{collections::BTreeSet, sync::OnceLock};

use crate::sync::{Arc, AtomicU64, Ordering, fence};

const LEAF: usize = 32;
const MIDDLE: usize = 64;
const ROOT: usize = 64;

/// How many areas of one address space can be counted: twice the 65,535 mappings a vfio-user client may make.
pub const MAX_SLOTS: u32 = (LEAF * MIDDLE * ROOT) as u32;

/// The pins of one area that one lane took.
#[derive(Default)]
pub struct Count {
    acquired: AtomicU64,
    released: AtomicU64,
}

type Leaf = Box<[Count; LEAF]>;
type Middle = Box<[OnceLock<Leaf>; MIDDLE]>;

/// The shared half of a lane. Aligned so that two lanes never share a line (two lines: the prefetcher pairs them).
#[repr(align(128))]
pub struct Shard {
    /// Odd inside a burst, even outside; grows with every entry.
    sequence: AtomicU64,
    counts: Box<[OnceLock<Middle>; ROOT]>,
}

impl Shard {
    pub fn new() -> Self {
        Shard { sequence: AtomicU64::new(0), counts: Box::new([const { OnceLock::new() }; ROOT]) }
    }

    /// Announces a burst; what is loaded after it is protected until [`Shard::leave`]. `odd` must be odd and new.
    #[inline(always)]
    pub fn enter(&self, odd: u64) {
        // Release: a grace period that waits for an earlier burst may see this value instead of the end of that one.
        self.sequence.store(odd, Ordering::Release);
        // Orders the announcement before the load of the published pointer. Its partner is the fence in
        // `Grace::begin`: either the writer sees the announcement, or this lane sees the new table.
        fence(Ordering::SeqCst);
    }

    /// Ends the burst. Release: what the burst did is over when a grace period sees this value.
    #[inline(always)]
    pub fn leave(&self, even: u64) {
        self.sequence.store(even, Ordering::Release);
    }

    fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Acquire)
    }

    #[inline]
    fn count(&self, slot: u32) -> Option<&Count> {
        let slot = slot as usize;
        let middle = self.counts.get(slot / (LEAF * MIDDLE))?.get()?;
        middle.get((slot / LEAF) % MIDDLE)?.get()?.get(slot % LEAF)
    }

    /// The counter of a slot, which is made if there is none and then stays where it is. Lane's thread only. `None` for a slot
    /// beyond [`MAX_SLOTS`].
    pub fn counter(&self, slot: u32) -> Option<&Count> {
        let at = slot as usize;
        let middle = self.counts.get(at / (LEAF * MIDDLE))?;
        let middle = middle.get_or_init(|| Box::new([const { OnceLock::new() }; MIDDLE]));
        let leaf = middle.get((at / LEAF) % MIDDLE)?;
        let leaf = leaf.get_or_init(|| Box::new(std::array::from_fn(|_| Count::default())));
        leaf.get(at % LEAF)
    }

    /// Pins out on `slot`. Exact once the slot is gated and its grace is over; a snapshot before that.
    pub fn pins_on(&self, slot: u32) -> u64 {
        self.count(slot).map_or(0, Count::out)
    }

    /// Pins out on all slots.
    pub fn pins(&self) -> u64 {
        self.pins_beside(&BTreeSet::new())
    }

    /// Pins out on all slots but these.
    pub fn pins_beside(&self, void: &BTreeSet<u32>) -> u64 {
        let middles = self.counts.iter().enumerate().filter_map(|(at, middle)| Some((at, middle.get()?)));
        let leaves = middles.flat_map(|(root, middle)| {
            let leaves = middle.iter().enumerate();
            leaves.filter_map(move |(at, leaf)| Some(((root * MIDDLE + at) * LEAF, leaf.get()?)))
        });
        let counts = leaves.flat_map(|(first, leaf)| leaf.iter().zip(first as u32..));
        counts.filter(|(_, slot)| !void.contains(slot)).map(|(count, _)| count.out()).sum()
    }
}

impl Count {
    /// Counts a pin. Lane's thread only, inside a burst.
    #[inline(always)]
    pub fn acquire(&self) {
        // One writer, so no read-modify-write. Relaxed: the drain reads it after the grace of this burst.
        self.acquired.store(self.acquired.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Uncounts a pin; from any thread. Release: the accesses made through the pin are over when the drain sees it.
    #[inline]
    pub fn release(&self) {
        self.released.fetch_add(1, Ordering::Release);
    }

    fn out(&self) -> u64 {
        // Released first: a pin that is taken and dropped between the two loads then counts as out, never as -1.
        let released = self.released.load(Ordering::Acquire);
        self.acquired.load(Ordering::Relaxed).wrapping_sub(released)
    }
}

/// A wait until every lane of a set has left the burst it was in when the wait began.
#[derive(Default)]
pub struct Grace {
    inside: Vec<(Arc<Shard>, u64)>,
}

impl Grace {
    /// Begins after the new table was stored. `shards` are all lanes that may have loaded the old one.
    pub fn begin(shards: impl IntoIterator<Item = Arc<Shard>>) -> Self {
        // See `Shard::enter`.
        fence(Ordering::SeqCst);
        let inside = shards.into_iter().map(|shard| {
            let seen = shard.sequence();
            (shard, seen)
        });
        Grace { inside: inside.filter(|(_, seen)| seen % 2 == 1).collect() }
    }

    /// Whether all had left when it was asked last.
    pub fn is_over(&self) -> bool {
        self.inside.is_empty()
    }

    /// Waits also for those of `shards` that `other` waits for.
    pub fn join(&mut self, other: &Grace, shards: &[Arc<Shard>]) {
        let among = |waited: &&(Arc<Shard>, u64)| shards.iter().any(|shard| Arc::ptr_eq(shard, &waited.0));
        self.inside.extend(other.inside.iter().filter(among).cloned());
    }

    /// Whether all have left.
    pub fn over(&mut self) -> bool {
        self.inside.retain(|(shard, seen)| shard.sequence() == *seen);
        self.inside.is_empty()
    }
}
