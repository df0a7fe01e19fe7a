//! The log of a ring: which of its chains are in flight, in memory that outlives this process (vhost-user, "Inflight I/O
//! tracking").
//!
//! # What it is for
//!
//! The log belongs to the front-end, which hands it to whoever serves the ring next. That one takes the recorded chains again,
//! in the order in which they were taken first, and goes on behind them: a chain that was available is used exactly once,
//! whoever died in between. Nothing but the ring and its log say how far it got.
//!
//! # What is true at every instant
//!
//! A process that is killed leaves a prefix of its stores behind. Let U be what the used ring says was used. Between any
//! two stores, *the chains that recovery finds are those that were available behind U, up to some place, without those of them
//! that U says were used*. So the next chain to take is known: it is as far behind U as there are recorded chains (split), or
//! as they have slots (packed). Two rules make it so:
//!
//! * Chains of a burst are recorded in order, all of them before anything of the burst is published. Only where each of them
//!   is used in the same burst none need be: before the burst is published none was taken, after it none is left.
//! * What was used is entered where recovery looks only when the ring says that it was published, and the ring says so
//!   with one store. `split` and `packed` say with which.
//!
//! # Whom it trusts
//!
//! Nobody: the front-end can write into a log at any time. While a ring runs its log is only written; what is in flight is known
//! from memory of our own. Recovery copies a log once, checks every number in the copy, and walks lists no further than there
//! are entries. A log that makes no sense fails its ring by a name ([`RingError::LogCorrupt`] and its neighbours).
//! A log whose file shrank is held by the same net as guest memory, and fails its ring too.
//!
//! # Cost
//!
//! Of a ring without a log, one branch for each burst. Otherwise a few stores for each chain; recovery, once for each start,
//! allocates a copy of the log.

mod entries;
mod packed;
mod split;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mdev_dma::GuestSlice;
use mdev_pin::Pin;
use mdev_protocol::virtio::split::MAX_SIZE;

use super::RingError;

pub(super) use entries::{Again, Entry};
pub(super) use packed::PackedLog;
pub(super) use split::SplitLog;

/// Logs of several rings in one buffer begin at multiples of so many bytes.
const ALIGN: usize = 64;

/// Where both formats say what they are: features of the layout (none so far), its version (0: nothing was recorded yet), and
/// how many entries there are.
const FEATURES: usize = 0;
const VERSION: usize = 8;
const DESC_NUM: usize = 10;
/// The one version there is.
const CURRENT: u16 = 1;

/// Memory for the log of a ring.
#[derive(Clone, Debug)]
pub struct RingLog {
    memory: Arc<Pin>,
    entries: u16,
}

impl RingLog {
    /// A log for a ring of up to `entries` descriptors in this memory.
    pub fn new(memory: Pin, entries: u16) -> Self {
        Self { memory: Arc::new(memory), entries }
    }

    /// Bytes of a log with so many entries, up to where the next ring's may begin.
    pub fn len_of(packed: bool, entries: u16) -> usize {
        let bytes = bytes_of(packed, entries);
        bytes.checked_next_multiple_of(ALIGN).unwrap_or(bytes)
    }

    /// Forgets what is recorded: the next to serve the ring finds a new log.
    pub fn forget(&self) {
        // A log without room for its header is found out when the ring is started.
        let _ = self.words().and_then(|words| words.store_u16(VERSION, 0, Ordering::Release));
    }

    fn words(&self) -> Option<GuestSlice<'_>> {
        self.memory.slices().next()
    }

    /// Checks that the log is one of this layout and has room for a ring of `size`. False if nothing was recorded yet.
    ///
    /// # Errors
    /// [`RingError::LogTooShort`], [`RingError::LogVersion`], [`RingError::LogSize`].
    fn check(&self, packed: bool, size: u16) -> Result<bool, RingError> {
        let words = self.words().ok_or(RingError::LogTooShort)?;
        if self.entries > MAX_SIZE || self.entries < size || words.len() < bytes_of(packed, self.entries) {
            return Err(RingError::LogTooShort);
        }
        let features = words.load_u64(FEATURES, Ordering::Acquire).ok_or(RingError::LogTooShort)?;
        let [version, entries] = [VERSION, DESC_NUM].map(|at| words.load_u16(at, Ordering::Acquire));
        let (Some(version), Some(entries)) = (version.map(u16::from_le), entries.map(u16::from_le)) else {
            return Err(RingError::LogTooShort);
        };
        match version {
            0 => Ok(false),
            CURRENT if features == 0 => {
                let fits = (size..=self.entries).contains(&entries);
                if fits { Ok(true) } else { Err(RingError::LogSize { entries, size }) }
            }
            version => Err(RingError::LogVersion { version }),
        }
    }

    /// How many entries a log has that [`RingLog::check`] has found good: as many as it says, which its next reader goes by.
    fn recorded_entries(&self) -> u16 {
        let told = self.words().and_then(|words| words.load_u16(DESC_NUM, Ordering::Acquire));
        told.map_or(self.entries, u16::from_le).min(self.entries)
    }

    /// A copy of the whole log, to be checked and used.
    fn copy(&self) -> Vec<u8> {
        let Some(words) = self.words() else { return Vec::new() };
        let mut bytes = vec![0; words.len()];
        words.copy_to(&mut bytes);
        bytes
    }

    /// Fails when memory of the log was lost: what is in it now means nothing.
    fn intact(&self) -> Result<(), RingError> {
        if self.memory.poisoned() { Err(RingError::LogLost) } else { Ok(()) }
    }

    /// Stores two bytes, after all stores before it.
    fn put_u16(&self, at: usize, value: u16) -> Result<(), RingError> {
        before_store();
        let stored = self.words().and_then(|words| words.store_u16(at, value.to_le(), Ordering::Release));
        stored.ok_or(RingError::LogTooShort)
    }

    /// Stores eight bytes in one go, after all stores before it.
    fn put_u64(&self, at: usize, value: u64) -> Result<(), RingError> {
        before_store();
        let stored = self.words().and_then(|words| words.store_u64(at, value.to_le(), Ordering::Release));
        stored.ok_or(RingError::LogTooShort)
    }
}

/// Bytes of a log with so many entries.
fn bytes_of(packed: bool, entries: u16) -> usize {
    let (header, entry) = if packed { entries::LAYOUT } else { split::LAYOUT };
    usize::from(entries).saturating_mul(entry).saturating_add(header)
}

/// The word at `at` in a copy of a log.
fn word_at(copy: &[u8], at: usize) -> Result<u64, RingError> {
    let bytes = copy.get(at..).and_then(|rest| rest.first_chunk()).ok_or(RingError::LogTooShort)?;
    Ok(u64::from_le_bytes(*bytes))
}

/// Called before every store to a log, and to a ring that has one: here a test may end the process, as it were.
#[cfg(not(test))]
#[inline(always)]
pub(super) fn before_store() {}

#[cfg(test)]
pub(super) use tests::crash::before_store;

#[cfg(test)]
mod tests;
