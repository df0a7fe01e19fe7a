//! The engines of a worker: those that are polled in every round, and those that rest.
//!
//! An engine that has found no work for long costs its neighbours time in every round, more than a burst when there are
//! hundreds. So it is put aside. All are in one vector, the polled ones in front: putting aside and taking back are a
//! swap each and allocate nothing.

use std::collections::HashMap;

/// What has a number that no other has.
pub(super) trait Numbered {
    fn id(&self) -> u64;
}

pub(super) struct Roster<S> {
    slots: Vec<S>,
    /// So many of them are polled.
    polled: usize,
    /// Where each is, by its number.
    places: HashMap<u64, usize>,
    /// Whose turn it is among those that rest.
    turn: usize,
}

impl<S: Numbered> Roster<S> {
    pub(super) fn new() -> Self {
        Roster { slots: Vec::new(), polled: 0, places: HashMap::new(), turn: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Those that are polled.
    #[inline(always)]
    pub(super) fn polled(&mut self) -> &mut [S] {
        self.slots.get_mut(..self.polled).unwrap_or_default()
    }

    /// How many are polled.
    #[inline(always)]
    pub(super) fn polled_count(&self) -> usize {
        self.polled
    }

    /// How many rest.
    #[inline(always)]
    pub(super) fn resting_count(&self) -> usize {
        self.slots.len().saturating_sub(self.polled)
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &S> {
        self.slots.iter()
    }

    /// One more, which is polled.
    pub(super) fn push(&mut self, slot: S) {
        let (id, last) = (slot.id(), self.slots.len());
        self.slots.push(slot);
        self.places.insert(id, last);
        self.wake(id);
    }

    /// Has this one polled from now on. Whether it rested, and itself.
    pub(super) fn wake(&mut self, id: u64) -> Option<(bool, &mut S)> {
        let &at = self.places.get(&id)?;
        let rested = at >= self.polled;
        let at = if rested {
            self.swap(at, self.polled);
            self.polled = self.polled.saturating_add(1);
            self.polled.saturating_sub(1)
        } else {
            at
        };
        Some((rested, self.slots.get_mut(at)?))
    }

    /// Puts one of those that are polled aside, by its place among them; another takes its place.
    pub(super) fn rest(&mut self, at: usize) {
        if at < self.polled {
            self.polled = self.polled.saturating_sub(1);
            self.swap(at, self.polled);
        }
    }

    /// One of those that rest, each in its turn.
    #[inline]
    pub(super) fn next_resting(&mut self) -> Option<&mut S> {
        let next = self.turn.wrapping_add(1);
        self.turn = if next < self.slots.len() && next >= self.polled { next } else { self.polled };
        self.slots.get_mut(self.turn)
    }

    /// Gives those that `gone` says it of to `leave`.
    pub(super) fn sweep(&mut self, gone: impl Fn(&S) -> bool, mut leave: impl FnMut(S)) {
        for at in (0..self.slots.len()).rev() {
            if !self.slots.get(at).is_some_and(&gone) {
                continue;
            }
            let mut at = at;
            if at < self.polled {
                self.rest(at);
                at = self.polled;
            }
            self.swap(at, self.slots.len().saturating_sub(1));
            if let Some(slot) = self.slots.pop() {
                self.places.remove(&slot.id());
                leave(slot);
            }
        }
    }

    fn swap(&mut self, one: usize, other: usize) {
        if one.max(other) < self.slots.len() {
            self.slots.swap(one, other);
        }
        for at in [one, other] {
            if let Some(slot) = self.slots.get(at) {
                self.places.insert(slot.id(), at);
            }
        }
    }
}

#[cfg(test)]
mod tests;
