//! A device without a data path, and queues that write down what they are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use mdev_dma::Iova;
use mdev_protocol::virtio::feature::{
    VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use crate::device::{Call, Device, Enabled, Engine, QueueSetup, QueueStats, VirtioDevice};
use crate::session::{Queues, StartError};
use crate::sys::EventFd;
use crate::worker::MakeEngine;

/// Bits 0 to 23 belong to the device type.
const DEVICE_BITS: u64 = 0xff_ffff;
pub const OFFERED: u64 =
    VIRTIO_F_VERSION_1 | VIRTIO_RING_F_EVENT_IDX | VIRTIO_RING_F_INDIRECT_DESC | DEVICE_BITS;
pub const CONFIG: [u8; 60] = [0x5a; 60];

pub struct MockDevice {
    queues: u16,
    pub resets: AtomicU32,
    pub mtu: AtomicU32,
    /// The address of SEND_RARP.
    pub announced: AtomicU64,
    /// It copies, and gives no memory to the kernel.
    pub copies: AtomicBool,
    /// It keeps requests in flight.
    pub tracks: AtomicBool,
}

impl MockDevice {
    pub fn new(queues: u16) -> Self {
        let [resets, mtu] = Default::default();
        let [copies, tracks] = Default::default();
        MockDevice { queues, resets, mtu, announced: AtomicU64::new(0), copies, tracks }
    }
}

impl Device for MockDevice {
    fn name(&self) -> &str {
        "mock"
    }

    fn queue_count(&self) -> u16 {
        self.queues
    }

    fn gives_memory_to_kernel(&self) -> bool {
        !self.copies.load(Ordering::Relaxed)
    }

    fn group(&self, queue: u16) -> u16 {
        queue / 2
    }

    fn queue_stats(&self, _: u16) -> Option<Arc<QueueStats>> {
        None
    }
}

impl VirtioDevice for MockDevice {
    fn device_id(&self) -> u32 {
        1
    }

    fn config_len(&self) -> usize {
        CONFIG.len()
    }

    fn tracks_in_flight(&self) -> bool {
        self.tracks.load(Ordering::Relaxed)
    }

    fn queue_number(&self) -> u64 {
        u64::from(self.queues / 2)
    }

    fn max_ring_size(&self) -> u16 {
        1024
    }

    fn features(&self) -> u64 {
        OFFERED
    }

    fn check_features(&self, acked: u64) -> Result<(), String> {
        if acked & VIRTIO_F_VERSION_1 == 0 { Err("VIRTIO_F_VERSION_1 is missing".to_owned()) } else { Ok(()) }
    }

    fn config(&self, offset: u32, out: &mut [u8]) -> Result<(), String> {
        let end = offset as usize + out.len();
        out.copy_from_slice(CONFIG.get(offset as usize..end).ok_or("beyond the configuration space")?);
        Ok(())
    }

    fn set_config(&self, _: u32, _: &[u8]) -> Result<(), String> {
        Err("read-only".to_owned())
    }

    fn engine(&self, _: u16, _: u64) -> Box<dyn Engine> {
        unreachable!("no worker runs here")
    }

    fn set_mtu(&self, mtu: u16) -> Result<(), String> {
        self.mtu.store(mtu.into(), Ordering::Relaxed);
        if mtu < 68 { Err("too small".to_owned()) } else { Ok(()) }
    }

    fn rarp(&self, mac: [u8; 6]) {
        let [a, b, c, d, e, f] = mac;
        self.announced.store(u64::from_be_bytes([0, 0, a, b, c, d, e, f]), Ordering::Relaxed);
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
}

/// What was asked of the queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    Start { conn: u64, index: u16, base: u16, enabled: bool },
    Stop { conn: u64, index: u16 },
    Cancel { conn: u64, index: u16 },
    Forsake { index: u16, iova: Iova },
    Call { index: u16, some: bool },
    Err { index: u16, some: bool },
    Enabled { index: u16, enabled: bool },
}

pub struct MockQueues {
    device: Arc<dyn Device>,
    pub owner: Option<u64>,
    pub running: BTreeMap<u16, QueueSetup>,
    pub features: u64,
    pub notes: Vec<Note>,
    /// Rings that are stopped keep a request in flight until this is false.
    pub hold_stops: bool,
    stopping: Vec<(u64, u64, QueueSetup)>,
    freed: bool,
    /// How many chains a ring has taken when it stops.
    pub taken: u16,
    /// Grows with every call that changes something.
    pub progress: u64,
}

impl MockQueues {
    pub fn new(device: Arc<dyn Device>) -> Self {
        MockQueues {
            device,
            owner: None,
            running: BTreeMap::new(),
            features: 0,
            notes: Vec::new(),
            hold_stops: false,
            stopping: Vec::new(),
            freed: false,
            taken: 0,
            progress: 0,
        }
    }

    /// Rings that have stopped since the last call: connection, token, base.
    pub fn take_stopped(&mut self) -> Vec<(u64, u64, u16)> {
        if self.hold_stops {
            return Vec::new();
        }
        let stopped: Vec<_> = self
            .stopping
            .drain(..)
            .map(|(conn, token, setup)| (conn, token, setup.ring.state.next_avail.wrapping_add(self.taken)))
            .collect();
        self.progress += stopped.len() as u64;
        self.settle();
        stopped
    }

    pub fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    pub fn is_running(&self, conn: u64, index: u16) -> bool {
        self.owner == Some(conn) && self.running.contains_key(&index)
    }

    fn settle(&mut self) {
        if self.owner.is_some() && self.running.is_empty() && self.stopping.is_empty() {
            self.owner = None;
            self.freed = true;
        }
    }

    fn note(&mut self, note: Note) {
        self.progress += 1;
        self.notes.push(note);
    }
}

impl Queues for MockQueues {
    fn start(
        &mut self,
        conn: u64,
        _device: &Arc<dyn VirtioDevice>,
        features: u64,
        setup: QueueSetup,
    ) -> Result<(), StartError> {
        if self.busy_elsewhere(conn) {
            return Err(StartError::OtherConnection);
        }
        let (index, base, enabled) =
            (setup.index, setup.ring.state.next_avail, setup.switch.get() == Enabled::Yes);
        self.note(Note::Start { conn, index, base, enabled });
        self.owner = Some(conn);
        self.features = features;
        assert!(self.running.insert(index, setup).is_none(), "ring {index} was started twice");
        Ok(())
    }

    fn run(&mut self, _: u64, _: u16, _: Option<Arc<EventFd>>, _: MakeEngine) -> Result<(), StartError> {
        panic!("vhost-user has rings only");
    }

    fn stop(&mut self, conn: u64, index: u16, token: u64) -> bool {
        if self.owner != Some(conn) {
            return false;
        }
        let Some(setup) = self.running.remove(&index) else { return false };
        self.note(Note::Stop { conn, index });
        assert!(self.stopping.iter().all(|(_, other, _)| *other != token), "token {token} was given twice");
        self.stopping.push((conn, token, setup));
        true
    }

    fn cancel(&mut self, conn: u64, index: u16) {
        let stopping = self.stopping.iter().any(|(of, _, setup)| (*of, setup.index) == (conn, index));
        assert!(stopping, "ring {index} is not being stopped");
        self.note(Note::Cancel { conn, index });
    }

    fn forsake(&mut self, conn: u64, index: u16, iova: Iova) {
        assert!(self.is_running(conn, index));
        self.note(Note::Forsake { index, iova });
    }

    fn set_call(&mut self, conn: u64, index: u16, call: Option<Arc<dyn Call>>) {
        assert!(self.is_running(conn, index));
        self.note(Note::Call { index, some: call.is_some() });
    }

    fn set_err(&mut self, conn: u64, index: u16, err: Option<Arc<EventFd>>) {
        assert!(self.is_running(conn, index));
        self.note(Note::Err { index, some: err.is_some() });
    }

    fn switched(&mut self, conn: u64, index: u16) {
        assert!(self.is_running(conn, index));
        let enabled = self.running[&index].switch.get() == Enabled::Yes;
        self.note(Note::Enabled { index, enabled });
    }

    fn busy_elsewhere(&self, conn: u64) -> bool {
        self.owner.is_some_and(|owner| owner != conn)
    }

    fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }
}
