//! A device's running rings: on which worker each runs, and for which connection.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::device::{Device, QueueSetup};
use crate::session::{Queues, StartError};
use crate::sys::EventFd;
use crate::worker::{Command, Worker};

/// The one device of the process goes by this number on its workers.
pub(super) const DEVICE_KEY: u64 = 0;

/// The rings of one device over a set of workers. They run on one connection at a time: the *owner*, from its
/// first start to the end of its last ring.
pub(super) struct Rings {
    device: Arc<dyn Device>,
    workers: Vec<Worker>,
    owner: Option<u64>,
    /// Where each running ring runs.
    running: BTreeMap<u16, usize>,
    /// Rings that were told to stop, by token.
    stopping: HashMap<u64, Stopping>,
    next_start: u64,
    freed: bool,
}

struct Stopping {
    conn: u64,
    index: u16,
    worker: usize,
}

impl Rings {
    /// No ring runs yet. Needs at least one worker.
    pub(super) fn new(device: Arc<dyn Device>, workers: Vec<Worker>) -> Self {
        let (running, stopping) = (BTreeMap::new(), HashMap::new());
        Rings { device, workers, owner: None, running, stopping, next_start: 0, freed: false }
    }

    /// The connection on which rings run.
    pub(super) fn owner(&self) -> Option<u64> {
        self.owner
    }

    /// A worker has stopped a ring: the connection that is to be told.
    pub(super) fn stopped(&mut self, token: u64) -> Option<u64> {
        let stopping = self.stopping.remove(&token)?;
        self.settle();
        Some(stopping.conn)
    }

    /// Whether the device became free since the last call: other connections may start their rings.
    pub(super) fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// Leaves the workers' threads to themselves, for the end of a process in which one does not answer.
    pub(super) fn abandon(&mut self) {
        self.workers.drain(..).for_each(Worker::abandon);
    }

    fn settle(&mut self) {
        if self.owner.is_some() && self.running.is_empty() && self.stopping.is_empty() {
            self.owner = None;
            self.freed = true;
        }
    }

    /// The worker for a ring: that of its group, or the one with the fewest rings. A ring that is being stopped
    /// counts where it is.
    fn place(&self, index: u16) -> usize {
        let group = self.device.group(index);
        let stopping = self.stopping.values().map(|stopping| (stopping.index, stopping.worker));
        let taken: Vec<(u16, usize)> =
            self.running.iter().map(|(&index, &worker)| (index, worker)).chain(stopping).collect();
        if let Some(&(_, worker)) = taken.iter().find(|&&(other, _)| self.device.group(other) == group) {
            return worker;
        }
        let load = |worker: &usize| taken.iter().filter(|&&(_, other)| other == *worker).count();
        (0..self.workers.len()).min_by_key(load).unwrap_or_default()
    }

    fn send(&self, worker: usize, command: Command) {
        if let Some(worker) = self.workers.get(worker) {
            worker.send(command);
        }
    }

    /// Tells the worker of a ring that runs on this connection.
    fn tell(&self, conn: u64, index: u16, command: Command) {
        if self.owner == Some(conn)
            && let Some(&worker) = self.running.get(&index)
        {
            self.send(worker, command);
        }
    }
}

impl Queues for Rings {
    fn start(&mut self, conn: u64, features: u64, setup: QueueSetup) -> Result<(), StartError> {
        if self.busy_elsewhere(conn) {
            return Err(StartError::OtherConnection);
        }
        let worker = self.place(setup.index);
        self.owner = Some(conn);
        self.running.insert(setup.index, worker);
        let token = self.next_start;
        self.next_start = token.wrapping_add(1);
        let (device, setup) = (self.device.clone(), Box::new(setup));
        self.send(worker, Command::Start { token, device, device_key: DEVICE_KEY, features, setup });
        Ok(())
    }

    fn stop(&mut self, conn: u64, index: u16, token: u64) -> bool {
        if self.owner != Some(conn) {
            return false;
        }
        let Some(worker) = self.running.remove(&index) else { return false };
        self.stopping.insert(token, Stopping { conn, index, worker });
        self.send(worker, Command::Stop { token, device_key: DEVICE_KEY, index });
        true
    }

    fn cancel(&mut self, conn: u64, index: u16) {
        let meant = |stopping: &&Stopping| stopping.conn == conn && stopping.index == index;
        if let Some(stopping) = self.stopping.values().find(meant) {
            self.send(stopping.worker, Command::Cancel { device_key: DEVICE_KEY, index });
        }
    }

    fn set_call(&mut self, conn: u64, index: u16, call: Option<Arc<EventFd>>) {
        self.tell(conn, index, Command::SetCall { device_key: DEVICE_KEY, index, call });
    }

    fn set_err(&mut self, conn: u64, index: u16, err: Option<Arc<EventFd>>) {
        self.tell(conn, index, Command::SetErr { device_key: DEVICE_KEY, index, err });
    }

    fn switched(&mut self, conn: u64, index: u16) {
        self.tell(conn, index, Command::Look);
    }

    fn busy_elsewhere(&self, conn: u64) -> bool {
        self.owner.is_some_and(|owner| owner != conn)
    }

    fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }
}

#[cfg(test)]
mod tests;
