//! A device's running rings: on which worker each runs, and for which connection.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mdev_dma::Iova;

use crate::device::{Call, Device, QueueSetup, VirtioDevice};
use crate::session::{Queues, StartError};
use crate::sys::EventFd;
use crate::worker::{Command, MakeEngine};

use super::pool::Pool;

/// The rings of one device over the workers of the process. They run on one connection at a time: the *owner*, from its
/// first start to the end of its last ring.
pub(super) struct Rings {
    device: Arc<dyn Device>,
    /// What the device goes by on the workers.
    device_key: u64,
    pool: Arc<Pool>,
    /// The workers that its rings may run on; all if empty.
    allowed: Vec<usize>,
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
    /// No ring runs yet.
    pub(super) fn new(
        device: Arc<dyn Device>,
        device_key: u64,
        pool: Arc<Pool>,
        allowed: Vec<usize>,
    ) -> Self {
        let (running, stopping) = (BTreeMap::new(), HashMap::new());
        Rings {
            device,
            device_key,
            pool,
            allowed,
            owner: None,
            running,
            stopping,
            next_start: 0,
            freed: false,
        }
    }

    /// The connection on which rings run.
    pub(super) fn owner(&self) -> Option<u64> {
        self.owner
    }

    /// A worker has stopped a ring: the connection that is to be told.
    pub(super) fn stopped(&mut self, token: u64) -> Option<u64> {
        let stopping = self.stopping.remove(&token)?;
        self.pool.give_back(stopping.worker);
        self.settle();
        Some(stopping.conn)
    }

    /// Whether the device became free since the last call: other connections may start their rings.
    pub(super) fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    fn settle(&mut self) {
        if self.owner.is_some() && self.running.is_empty() && self.stopping.is_empty() {
            self.owner = None;
            self.freed = true;
        }
    }

    /// The worker for a ring: that of its group, or of those it may run on the one with the fewest rings. A ring that
    /// is being stopped counts where it is.
    fn place(&self, index: u16) -> usize {
        let group = self.device.group(index);
        let running = self.running.iter().map(|(&index, &worker)| (index, worker));
        let stopping = self.stopping.values().map(|stopping| (stopping.index, stopping.worker));
        let of_group = running.chain(stopping).find(|&(other, _)| self.device.group(other) == group);
        of_group.map_or_else(|| self.pool.least_loaded(&self.allowed), |(_, worker)| worker)
    }

    /// The worker for a ring that starts on this connection; it counts as running there from now on.
    fn take(&mut self, conn: u64, index: u16) -> Result<usize, StartError> {
        if self.busy_elsewhere(conn) {
            return Err(StartError::OtherConnection);
        }
        let worker = self.place(index);
        self.owner = Some(conn);
        // A ring that runs already is replaced, and none of it is left to be counted.
        if let Some(before) = self.running.insert(index, worker) {
            self.pool.give_back(before);
        }
        self.pool.take(worker);
        Ok(worker)
    }

    /// Tells the worker of a ring that runs on this connection.
    fn tell(&self, conn: u64, index: u16, command: Command) {
        if self.owner == Some(conn)
            && let Some(&worker) = self.running.get(&index)
        {
            self.pool.send(worker, command);
        }
    }
}

impl Queues for Rings {
    fn start(
        &mut self,
        conn: u64,
        device: &Arc<dyn VirtioDevice>,
        features: u64,
        setup: QueueSetup,
    ) -> Result<(), StartError> {
        let worker = self.take(conn, setup.index)?;
        let token = self.next_start;
        self.next_start = token.wrapping_add(1);
        let (device, setup, device_key) = (device.clone(), Box::new(setup), self.device_key);
        self.pool.send(worker, Command::Start { token, device, device_key, features, setup });
        Ok(())
    }

    fn run(
        &mut self,
        conn: u64,
        index: u16,
        kick: Option<Arc<EventFd>>,
        make: MakeEngine,
    ) -> Result<(), StartError> {
        let worker = self.take(conn, index)?;
        let (device, device_key) = (self.device.clone(), self.device_key);
        self.pool.send(worker, Command::Run { device, device_key, index, kick, make });
        Ok(())
    }

    fn stop(&mut self, conn: u64, index: u16, token: u64) -> bool {
        if self.owner != Some(conn) {
            return false;
        }
        let Some(worker) = self.running.remove(&index) else { return false };
        self.stopping.insert(token, Stopping { conn, index, worker });
        self.pool.send(worker, Command::Stop { token, device_key: self.device_key, index });
        true
    }

    fn cancel(&mut self, conn: u64, index: u16) {
        let meant = |stopping: &&Stopping| stopping.conn == conn && stopping.index == index;
        if let Some(stopping) = self.stopping.values().find(meant) {
            self.pool.send(stopping.worker, Command::Cancel { device_key: self.device_key, index });
        }
    }

    fn abort(&mut self, conn: u64, index: u16, cid: u16, number: u64) {
        self.tell(conn, index, Command::Abort { device_key: self.device_key, index, cid, number });
    }

    fn forsake(&mut self, conn: u64, index: u16, iova: Iova) {
        self.tell(conn, index, Command::Forsake { device_key: self.device_key, index, iova });
    }

    fn set_call(&mut self, conn: u64, index: u16, call: Option<Arc<dyn Call>>) {
        let device_key = self.device_key;
        self.tell(conn, index, Command::SetCall { device_key, index, call });
    }

    fn set_err(&mut self, conn: u64, index: u16, err: Option<Arc<EventFd>>) {
        let device_key = self.device_key;
        self.tell(conn, index, Command::SetErr { device_key, index, err });
    }

    fn switched(&mut self, conn: u64, index: u16) {
        let device_key = self.device_key;
        self.tell(conn, index, Command::Look { device_key, index });
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
