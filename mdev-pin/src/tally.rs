//! Which pages of a mapping are charged, and to whom.
//!
//! A [`Tally`] belongs to what was mapped in one call, as `struct iopt_pages` does in Linux: copies of the area and the
//! parts that a replacement cuts out of it share it, and a page is charged once, however many areas and pins it is in.
//! Pages are numbers of 4,096 bytes in the file, or in the address space of a process. Locks: a tally, then its account;
//! both are leaves for everybody else.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mdev_dma::{Area, Iova, IovaRange};

use crate::{
    account::{Account, OverLimit},
    limits::PAGE,
};

/// See the file.
pub struct Tally(Mutex<Inner>);

pub struct Inner {
    account: Account,
    /// How many pages have a count.
    charged: u64,
    counts: Counts,
}

impl Tally {
    fn charge(this: &Arc<Self>, first: u64, last: u64) -> Result<Charged, OverLimit> {
        let mut inner = this.lock();
        let new = inner.counts.without(first, last);
        inner.account.charge(new)?;
        inner.charged = inner.charged.saturating_add(new);
        inner.counts.add(first, last);
        Ok(Charged { tally: this.clone(), first, last })
    }

    /// For whoever changes the account of several: they are locked in the order of their addresses.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    pub fn account(&self) -> &Account {
        &self.account
    }

    pub fn charged(&self) -> u64 {
        self.charged
    }

    /// Belongs to `to` from here on, which was charged already; what the account until now was charged is released.
    pub fn hand_over(&mut self, to: &Account) {
        self.account.release(self.charged);
        self.account = to.clone();
    }
}

/// Pages that are charged while this exists.
pub struct Charged {
    tally: Arc<Tally>,
    first: u64,
    last: u64,
}

impl Drop for Charged {
    fn drop(&mut self) {
        let mut inner = self.tally.lock();
        let gone = inner.counts.remove(self.first, self.last);
        inner.charged = inner.charged.saturating_sub(gone);
        inner.account.release(gone);
    }
}

/// A part of an area, and the tally of its pages.
#[derive(Clone)]
pub struct Share {
    pub range: IovaRange,
    /// Where `range.first()` is: the offset in its file, the address in its process.
    start: u64,
    tally: Arc<Tally>,
}

impl Share {
    /// Of an area that is mapped anew.
    pub fn new(area: &Area, account: &Account) -> Share {
        let inner = Inner { account: account.clone(), charged: 0, counts: Counts::default() };
        Share { range: area.range, start: area.extent.start(), tally: Arc::new(Tally(Mutex::new(inner))) }
    }

    /// The part that lies in `range`.
    pub fn cut(&self, range: IovaRange) -> Option<Share> {
        let range = self.range.intersection(range)?;
        let skipped = range.first().0.wrapping_sub(self.range.first().0);
        Some(Share { range, start: self.start.wrapping_add(skipped), tally: self.tally.clone() })
    }

    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    fn charge(&self) -> Result<Charged, OverLimit> {
        // The bytes lie in their file, so nothing wraps.
        let length = self.range.last().0.wrapping_sub(self.range.first().0);
        Tally::charge(&self.tally, self.start / PAGE, self.start.saturating_add(length) / PAGE)
    }
}

/// What an area is charged by: the shares that it consists of, in order of address, and the charge for all of it while
/// there is one.
pub struct Shares {
    pub parts: Vec<Share>,
    whole: Mutex<Vec<Charged>>,
}

impl Shares {
    pub fn new(parts: Vec<Share>) -> Arc<Shares> {
        Arc::new(Shares { parts, whole: Mutex::default() })
    }

    /// Charges what of it lies in `range`; all or nothing.
    pub fn charge(&self, range: IovaRange, into: &mut Vec<Charged>) -> Result<(), OverLimit> {
        self.parts.iter().filter_map(|share| share.cut(range)).try_for_each(|share| {
            into.push(share.charge()?);
            Ok(())
        })
    }

    /// Charges all of it, unless it is charged already; `true` if it was not. All or nothing.
    pub fn charge_whole(&self) -> Result<bool, OverLimit> {
        let mut whole = self.whole();
        if !whole.is_empty() {
            return Ok(false);
        }
        let mut charged = Vec::with_capacity(self.parts.len());
        self.charge(IovaRange::FULL, &mut charged)?;
        *whole = charged;
        Ok(true)
    }

    /// Takes back [`Shares::charge_whole`].
    pub fn release_whole(&self) {
        let released = std::mem::take(&mut *self.whole());
        drop(released);
    }

    fn whole(&self) -> MutexGuard<'_, Vec<Charged>> {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shares of a range that has moved by as much as `from` is away from `to`.
pub fn moved(share: &Share, from: Iova, to: Iova) -> Option<Share> {
    let first = to.checked_add(share.range.first().0.checked_sub(from.0)?)?;
    let last = to.checked_add(share.range.last().0.checked_sub(from.0)?)?;
    Some(Share { range: IovaRange::new(first, last).ok()?, ..share.clone() })
}

/// How often each page is counted: runs of pages with the same count, which is not 0, by first page. Runs that touch
/// have different counts.
#[derive(Default)]
struct Counts(BTreeMap<u64, Run>);

#[derive(Copy, Clone)]
struct Run {
    last: u64,
    count: u64,
}

impl Counts {
    /// How many pages of `first..=last` have no count.
    fn without(&self, first: u64, last: u64) -> u64 {
        let before = self.0.range(..first).next_back();
        let counted = before.into_iter().chain(self.0.range(first..=last)).map(|(at, run)| {
            let (from, to) = ((*at).max(first), run.last.min(last));
            to.checked_sub(from).map_or(0, |more| more.saturating_add(1))
        });
        last.saturating_sub(first).saturating_add(1).saturating_sub(counted.sum())
    }

    fn add(&mut self, first: u64, last: u64) {
        let behind = last.saturating_add(1);
        self.cut(first);
        self.cut(behind);
        let mut next = first;
        let mut gaps = Vec::new();
        for (at, run) in self.0.range_mut(first..=last) {
            if next < *at {
                gaps.push((next, at.saturating_sub(1)));
            }
            run.count = run.count.saturating_add(1);
            next = run.last.saturating_add(1);
        }
        if next <= last {
            gaps.push((next, last));
        }
        self.0.extend(gaps.into_iter().map(|(from, last)| (from, Run { last, count: 1 })));
        self.join(first);
        self.join(behind);
    }

    /// How many pages have no count any more.
    fn remove(&mut self, first: u64, last: u64) -> u64 {
        let behind = last.saturating_add(1);
        self.cut(first);
        self.cut(behind);
        let mut gone = 0u64;
        let mut empty = Vec::new();
        for (at, run) in self.0.range_mut(first..=last) {
            run.count = run.count.saturating_sub(1);
            if run.count == 0 {
                gone = gone.saturating_add(run.last.saturating_sub(*at).saturating_add(1));
                empty.push(*at);
            }
        }
        for at in empty {
            self.0.remove(&at);
        }
        self.join(first);
        self.join(behind);
        gone
    }

    /// Lets a run begin at `at`, if the pages before and at it are of one.
    fn cut(&mut self, at: u64) {
        if let Some((_, run)) = self.0.range_mut(..at).next_back()
            && run.last >= at
        {
            let behind = *run;
            run.last = at.saturating_sub(1);
            self.0.insert(at, behind);
        }
    }

    /// Joins the run that begins at `at` with the one before it, if they touch and have the same count.
    fn join(&mut self, at: u64) {
        let Some(behind) = self.0.get(&at).copied() else { return };
        if let Some((_, run)) = self.0.range_mut(..at).next_back()
            && run.last.saturating_add(1) == at
            && run.count == behind.count
        {
            run.last = behind.last;
            self.0.remove(&at);
        }
    }
}

#[cfg(test)]
mod tests;
