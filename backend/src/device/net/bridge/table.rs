//! Where stations are: on which port a MAC address was seen last.
//!
//! Written by every port that sends, read by all, without a lock: an entry is one word, and one that is lost to a race is
//! learned again with the station's next frame.
//!
//! There is no model of its interleavings. A word says nothing of any other word, and each step reads words and writes one whole, so
//! all that a race can leave is an older word, or one station in two words of its bucket: the tests write both, and see the next
//! frame set them right. Senders on two threads learn and find in one table in the test of the bridge's mutex.

use std::sync::atomic::{AtomicU64, Ordering};

/// Entries; a station finds place in one of [`WAYS`] of them.
const ENTRIES: usize = 4096;
const WAYS: usize = 4;
/// Seconds in a tick of an entry's age.
pub(super) const TICK: u64 = 4;
/// Ticks after which a station that says nothing is forgotten: five minutes, as IEEE 802.1D has it.
pub(super) const LIFETIME: u64 = 300 / TICK;
/// Ticks that an entry can count; older ones look young again.
const AGES: u64 = 1 << AGE_BITS;
const AGE_BITS: u32 = 10;
const PORT_BITS: u32 = 6;

/// Ports that an entry can name.
pub(in crate::device::net) const MAX_PORTS: usize = 1 << PORT_BITS;

/// The table: bounded, and ageing.
pub(super) struct Stations {
    /// Address, port and age, or zero.
    entries: Box<[AtomicU64]>,
    /// When the old were forgotten last.
    swept: AtomicU64,
}

/// An address as a number; `None` for one that no station has: of a group, or zero.
fn station(mac: [u8; 6]) -> Option<u64> {
    let [a, b, c, d, e, f] = mac;
    (a & 1 == 0 && mac != [0; 6]).then(|| u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
}

fn entry(station: u64, port: usize, now: u64) -> u64 {
    (station << (PORT_BITS + AGE_BITS)) | (((port % MAX_PORTS) as u64) << AGE_BITS) | (now % AGES)
}

fn station_of(entry: u64) -> u64 {
    entry >> (PORT_BITS + AGE_BITS)
}

fn port_of(entry: u64) -> usize {
    (entry >> AGE_BITS) as usize % MAX_PORTS
}

/// Ticks since the station was heard.
fn age(entry: u64, now: u64) -> u64 {
    now.wrapping_sub(entry) % AGES
}

fn is_gone(entry: u64, now: u64) -> bool {
    entry == 0 || age(entry, now) > LIFETIME
}

impl Stations {
    pub(super) fn new() -> Self {
        Self { entries: (0..ENTRIES).map(|_| AtomicU64::new(0)).collect(), swept: AtomicU64::new(0) }
    }

    /// A station was heard on a port, at this tick.
    pub(super) fn learn(&self, mac: [u8; 6], port: usize, now: u64) {
        let Some(station) = station(mac) else { return };
        let new = entry(station, port, now);
        let mut known = false;
        // The place to take if it is not known: a free one, else the port's own oldest, else the oldest, so that a port that
        // makes addresses up drives out its own before it drives out those of others.
        let mut place: Option<(&AtomicU64, u64)> = None;
        for way in self.ways(station) {
            let old = way.load(Ordering::Relaxed);
            if station_of(old) == station {
                // Twice, after a race: once is enough.
                let wanted = if known { 0 } else { new };
                if old != wanted {
                    way.store(wanted, Ordering::Relaxed);
                }
                known = true;
                continue;
            }
            let rank = match () {
                () if is_gone(old, now) => AGES.saturating_mul(2),
                () if port_of(old) == port => AGES.saturating_add(age(old, now)),
                () => age(old, now),
            };
            if place.is_none_or(|(_, best)| rank > best) {
                place = Some((way, rank));
            }
        }
        if let (false, Some((way, _))) = (known, place) {
            way.store(new, Ordering::Relaxed);
        }
    }

    /// The port a station was heard on last, unless that is too long ago.
    pub(super) fn find(&self, mac: [u8; 6], now: u64) -> Option<usize> {
        let station = station(mac)?;
        let mut entries = self.ways(station).map(|way| way.load(Ordering::Relaxed));
        let entry = entries.find(|entry| station_of(*entry) == station)?;
        (!is_gone(entry, now)).then(|| port_of(entry))
    }

    /// Forgets who has said nothing for too long, before it looks young again. Costs something once in a tick.
    pub(super) fn sweep(&self, now: u64) {
        let swept = self.swept.load(Ordering::Relaxed);
        if swept == now
            || self.swept.compare_exchange(swept, now, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        // After a silence as long as that nobody can tell old from young.
        let all = now.saturating_sub(swept) >= AGES.saturating_sub(LIFETIME);
        self.forget(|entry| all || is_gone(entry, now));
    }

    /// A port is gone, or begins anew: nobody is on it.
    pub(super) fn clear(&self, port: usize) {
        self.forget(|entry| port_of(entry) == port);
    }

    fn forget(&self, which: impl Fn(u64) -> bool) {
        for way in &self.entries {
            let entry = way.load(Ordering::Relaxed);
            if entry != 0 && which(entry) {
                // Not if it was learned anew meanwhile.
                let _ = way.compare_exchange(entry, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    fn ways(&self, station: u64) -> impl Iterator<Item = &AtomicU64> {
        let bucket = station.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let first = (bucket as usize % (ENTRIES / WAYS)).saturating_mul(WAYS);
        self.entries.get(first..first.saturating_add(WAYS)).unwrap_or_default().iter()
    }
}

#[cfg(test)]
mod tests;
