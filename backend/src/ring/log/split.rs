//! The log of a split ring.
//!
//! Behind the header is an entry for each descriptor, which speaks for the chain that begins there: whether it is in flight,
//! its place in the order in which chains were taken, and the chain that was used before it.
//!
//! Taking: the counter, then the mark. Using a batch: its heads are linked, the newest first, and the header names the newest;
//! then the used index of the ring moves, which publishes the batch; then the marks go; then the header notes the used index.
//! If that one differs from the ring's, the newest so many in the list are chains that were published and may still be
//! marked. Before the ring's index has moved the two are alike, and nobody looks at the list.

use super::super::RingError;
use super::super::batch::Batch;
use super::{CURRENT, DESC_NUM, RingLog, VERSION, word_at};

/// Bytes of the header and of an entry.
pub(super) const LAYOUT: (usize, usize) = (16, 16);

const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;

/// In an entry: the mark, which is a byte with another to spare; the link; the counter.
const INFLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

/// The log of a split ring that runs.
pub(in super::super) struct SplitLog {
    log: RingLog,
    size: u16,
    /// The chains in flight, by head.
    in_flight: Box<[bool]>,
    /// The next counter.
    counter: u64,
    last_batch_head: u16,
    /// Heads of what is to be taken again, the first one first, and how many of them have been.
    again: Vec<u16>,
    taken_again: usize,
    /// The heads of the batch that is being published.
    used: Vec<u16>,
}

impl SplitLog {
    /// The log of a ring of `size`, which is read when the ring is found.
    ///
    /// # Errors
    /// A log that is no log, or of another ring.
    pub(in super::super) fn new(log: RingLog, size: u16) -> Result<Self, RingError> {
        log.check(false, size)?;
        Ok(Self {
            log,
            size,
            in_flight: vec![false; size.into()].into_boxed_slice(),
            counter: 0,
            last_batch_head: 0,
            again: Vec::new(),
            taken_again: 0,
            used: Vec::with_capacity(size.into()),
        })
    }

    /// Reads what was recorded, completes what was under way, and says which available index comes next, given the used index of
    /// the ring.
    ///
    /// # Errors
    /// [`RingError::LogCorrupt`], [`RingError::LogIndex`], and as [`SplitLog::new`].
    #[cold]
    pub(in super::super) fn recover(&mut self, used_idx: u16) -> Result<u16, RingError> {
        if !self.log.check(false, self.size)? {
            self.begin(used_idx)?;
            return Ok(used_idx);
        }
        let copy = self.log.copy();
        self.log.intact()?;
        let header = word_at(&copy, VERSION)?;
        let (entries, last_batch_head, noted) =
            ((header >> 16) as u16, (header >> 32) as u16, (header >> 48) as u16);
        let mut entries = (0..entries)
            .map(|head| {
                let word = word_at(&copy, entry(head))?;
                let counter = word_at(&copy, entry(head).wrapping_add(COUNTER))?;
                Ok(Read { counter: (word as u8 != 0).then_some(counter), next: (word >> 48) as u16 })
            })
            .collect::<Result<Vec<Read>, RingError>>()?;
        if noted != used_idx && entries.iter().any(|entry| entry.counter.is_some()) {
            let published = used_idx.wrapping_sub(noted);
            if published > self.size {
                return Err(RingError::LogIndex { noted, used: used_idx });
            }
            let mut head = last_batch_head;
            for _ in 0..published {
                let read = entries.get_mut(usize::from(head)).ok_or(RingError::LogCorrupt)?;
                self.log.put_u16(entry(head).wrapping_add(INFLIGHT), 0)?;
                read.counter = None;
                head = read.next;
            }
        }
        let marked = entries.iter().zip(0u16..).filter_map(|(read, head)| Some((read.counter?, head)));
        let mut marked: Vec<(u64, u16)> = marked.collect();
        marked.sort_unstable();
        self.counter = marked.last().map_or(0, |&(counter, _)| counter.wrapping_add(1));
        for &(_, head) in &marked {
            let place = self.in_flight.get_mut(usize::from(head)).ok_or(RingError::LogCorrupt)?;
            *place = true;
        }
        self.again = marked.into_iter().map(|(_, head)| head).collect();
        self.last_batch_head = last_batch_head;
        self.log.put_u16(USED_IDX, used_idx)?;
        Ok(used_idx.wrapping_add(self.again.len() as u16))
    }

    /// Makes a new log.
    fn begin(&mut self, used_idx: u16) -> Result<(), RingError> {
        let entries = self.log.entries;
        for head in 0..entries {
            self.log.put_u64(entry(head), 0)?;
        }
        self.log.put_u64(super::FEATURES, 0)?;
        self.log.put_u16(DESC_NUM, entries)?;
        self.log.put_u16(LAST_BATCH_HEAD, 0)?;
        self.log.put_u16(USED_IDX, used_idx)?;
        self.log.put_u16(VERSION, CURRENT)?;
        self.log.intact()
    }

    /// What is to be taken again, if the burst has taken `here` of it already.
    #[inline]
    pub(in super::super) fn again(&self, here: usize) -> &[u16] {
        self.again.get(self.taken_again.wrapping_add(here)..).unwrap_or_default()
    }

    /// A burst is about to be published, of whose chains the first `here` were taken again. Leaves out uses of chains that are
    /// not in flight.
    ///
    /// # Errors
    /// [`RingError::HeadInFlight`], before anything has changed; [`RingError::LogLost`].
    pub(in super::super) fn before(&mut self, here: usize, batch: &mut Batch) -> Result<(), RingError> {
        let Self { log, in_flight, used, .. } = self;
        log.intact()?;
        for (taken, head) in batch.ids(here).enumerate() {
            match in_flight.get_mut(usize::from(head)) {
                Some(place) if !*place => *place = true,
                _ => {
                    for head in batch.ids(here).take(taken) {
                        in_flight.get_mut(usize::from(head)).map(std::mem::take);
                    }
                    return Err(RingError::HeadInFlight { head });
                }
            }
        }
        self.taken_again = self.taken_again.wrapping_add(here);
        used.clear();
        batch.retain(|head| {
            let there = in_flight.get_mut(usize::from(head)).is_some_and(std::mem::take);
            if there {
                used.push(head);
            }
            there
        });
        // Those of this burst that stay, and with them all of this burst, are recorded.
        if batch.ids(here).any(|head| in_flight.get(usize::from(head)) == Some(&true)) {
            for head in batch.ids(here) {
                log.put_u64(entry(head).wrapping_add(COUNTER), self.counter)?;
                log.put_u16(entry(head).wrapping_add(INFLIGHT), 1)?;
                self.counter = self.counter.wrapping_add(1);
            }
        }
        for &head in &*used {
            log.put_u16(entry(head).wrapping_add(NEXT), self.last_batch_head)?;
            self.last_batch_head = head;
        }
        if !used.is_empty() {
            log.put_u16(LAST_BATCH_HEAD, self.last_batch_head)?;
        }
        Ok(())
    }

    /// The used index of the ring has moved to here.
    pub(in super::super) fn after(&mut self, used_idx: u16) -> Result<(), RingError> {
        for &head in &self.used {
            self.log.put_u16(entry(head).wrapping_add(INFLIGHT), 0)?;
        }
        self.log.put_u16(USED_IDX, used_idx)
    }
}

/// What an entry said.
struct Read {
    /// Of a chain that is marked.
    counter: Option<u64>,
    next: u16,
}

/// Where the entry of a head is.
fn entry(head: u16) -> usize {
    let (header, entry) = LAYOUT;
    usize::from(head).wrapping_mul(entry).wrapping_add(header)
}
