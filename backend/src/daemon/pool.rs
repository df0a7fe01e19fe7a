//! The workers of the process, and which of them takes a ring.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::worker::{Command, Worker};

/// The workers, shared by all devices; counted from 0. Only the control thread places rings: the counters are atomic
/// for the sake of a daemon that is made on one thread and runs on another.
pub(super) struct Pool {
    workers: Vec<Worker>,
    /// The rings on each.
    loads: Vec<AtomicUsize>,
}

impl Pool {
    /// Needs at least one worker.
    pub(super) fn new(workers: Vec<Worker>) -> Self {
        let loads = workers.iter().map(|_| AtomicUsize::new(0)).collect();
        Pool { workers, loads }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.workers.len()
    }

    /// Of the workers in `allowed` (all if it is empty) the one with the fewest rings.
    pub(super) fn least_loaded(&self, allowed: &[usize]) -> usize {
        let may = |worker: &usize| allowed.is_empty() || allowed.contains(worker);
        let load =
            |worker: &usize| self.loads.get(*worker).map_or(usize::MAX, |load| load.load(Ordering::Relaxed));
        (0..self.len()).filter(may).min_by_key(load).unwrap_or_default()
    }

    /// A ring goes to a worker.
    pub(super) fn take(&self, worker: usize) {
        if let Some(load) = self.loads.get(worker) {
            load.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A ring has left its worker.
    pub(super) fn give_back(&self, worker: usize) {
        if let Some(load) = self.loads.get(worker) {
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn send(&self, worker: usize, command: Command) {
        if let Some(worker) = self.workers.get(worker) {
            worker.send(command);
        }
    }

    /// Leaves the threads to themselves, for the end of a process in which one does not answer.
    pub(super) fn abandon(&self) {
        self.workers.iter().for_each(Worker::abandon);
    }
}
