//! The rings of one device among several on one worker: what a session may ask of the running side.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use mdev_dma::Iova;
use mdev_pin::Access;
use mdevd::device::{Call, Device, QueueSetup, VirtioDevice};
use mdevd::session::{Queues, StartError};
use mdevd::sys::EventFd;
use mdevd::worker::{Command, MakeEngine, Worker};

pub(crate) struct Rings {
    pub(crate) device: Arc<dyn VirtioDevice>,
    /// The same, as sessions ask for it.
    plain: Arc<dyn Device>,
    key: u64,
    worker: Rc<Worker>,
    /// The connection that rings run on.
    pub(crate) owner: Option<u64>,
    running: BTreeSet<u16>,
    /// Connections of rings that were told to stop, by token.
    stopping: HashMap<u64, u64>,
    /// What each connection's rings see memory by.
    accesses: BTreeMap<u64, Access>,
    freed: bool,
}

impl Rings {
    pub(crate) fn new(device: Arc<dyn VirtioDevice>, key: u64, worker: Rc<Worker>) -> Self {
        let (running, stopping, accesses) = Default::default();
        let plain: Arc<dyn Device> = device.clone();
        Rings { device, plain, key, worker, owner: None, running, stopping, accesses, freed: false }
    }

    /// A ring has stopped: its connection.
    pub(crate) fn stopped(&mut self, token: u64) -> Option<u64> {
        let conn = self.stopping.remove(&token)?;
        if self.running.is_empty() && self.stopping.is_empty() {
            self.owner = None;
            self.freed = true;
        }
        Some(conn)
    }

    pub(crate) fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// Pins on the memory of a connection that is over.
    pub(crate) fn pins_left(&mut self, conn: u64) -> u64 {
        self.accesses.remove(&conn).map_or(0, |access| access.pins())
    }

    fn runs(&self, conn: u64, index: u16) -> bool {
        self.owner == Some(conn) && self.running.contains(&index)
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
        if self.busy_elsewhere(conn) {
            return Err(StartError::OtherConnection);
        }
        self.owner = Some(conn);
        assert!(self.running.insert(setup.index), "ring {} was started twice", setup.index);
        self.accesses.entry(conn).or_insert_with(|| setup.access.clone());
        let (device, setup) = (device.clone(), Box::new(setup));
        self.worker.send(Command::Start { token: 0, device, device_key: self.key, features, setup });
        Ok(())
    }

    fn run(&mut self, _: u64, _: u16, _: Option<Arc<EventFd>>, _: MakeEngine) -> Result<(), StartError> {
        unreachable!("vhost-user has rings only")
    }

    fn stop(&mut self, conn: u64, index: u16, token: u64) -> bool {
        if !self.runs(conn, index) {
            return false;
        }
        self.running.remove(&index);
        assert!(self.stopping.insert(token, conn).is_none(), "token {token} was given twice");
        self.worker.send(Command::Stop { token, device_key: self.key, index });
        true
    }

    fn cancel(&mut self, _conn: u64, index: u16) {
        self.worker.send(Command::Cancel { device_key: self.key, index });
    }

    fn forsake(&mut self, conn: u64, index: u16, iova: Iova) {
        if self.runs(conn, index) {
            self.worker.send(Command::Forsake { device_key: self.key, index, iova });
        }
    }

    fn set_call(&mut self, conn: u64, index: u16, call: Option<Arc<dyn Call>>) {
        if self.runs(conn, index) {
            self.worker.send(Command::SetCall { device_key: self.key, index, call });
        }
    }

    fn set_err(&mut self, conn: u64, index: u16, err: Option<Arc<EventFd>>) {
        if self.runs(conn, index) {
            self.worker.send(Command::SetErr { device_key: self.key, index, err });
        }
    }

    fn switched(&mut self, conn: u64, index: u16) {
        if self.runs(conn, index) {
            self.worker.send(Command::Look { device_key: self.key, index });
        }
    }

    fn busy_elsewhere(&self, conn: u64) -> bool {
        self.owner.is_some_and(|owner| owner != conn)
    }

    fn device(&self) -> &Arc<dyn Device> {
        &self.plain
    }
}
