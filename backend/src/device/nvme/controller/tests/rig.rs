//! A host and a controller on one thread.

use std::sync::Arc;

use mdev_dma::{Iova, IovaRange};
use mdev_pin::{Access, IgnoreUnmap, Ioas};
use mdev_protocol::nvme::command::{Command, Completion};
use mdev_protocol::nvme::register::{ACQ, AQA, ASQ, CC, CSTS, DOORBELLS};
use mdev_protocol::nvme::status::Status;

use super::super::*;
use crate::device::nvme::{NamespaceConfig, NvmeConfig};
use crate::driver::{GuestMemory, MemoryOptions, Part};
use crate::store::Store;
use crate::store::held::Held;

/// CC: enabled, entries of 64 and 16 bytes.
pub const ENABLED: u32 = 0x0046_0001;
/// Entries of the admin queues.
pub const ENTRIES: u32 = 32;
/// Pairs of I/O queues of the device.
pub const PAIRS: u16 = 4;
pub const PAGE: u64 = 4096;

/// What a session would do with its workers, on record.
pub struct FakeHost {
    pub access: Access,
    pub started: Vec<(u16, u32, Iova)>,
    pub stopping: Vec<u16>,
    pub kicked: Vec<u16>,
    pub aborted: Vec<(u16, u16, u64)>,
    pub whole: Vec<IovaRange>,
}

impl Host for FakeHost {
    fn access(&self) -> &Access {
        &self.access
    }

    fn start(&mut self, setup: SubmissionSetup) {
        let range = setup.range().unwrap();
        assert!(self.whole.contains(&range), "queue {} starts before its memory is kept whole", setup.qid);
        let completions = setup.completion.range().unwrap();
        assert!(self.whole.contains(&completions), "nor is that of its completion queue");
        self.started.push((setup.qid, setup.entries, setup.base));
    }

    fn stop(&mut self, qid: u16) {
        assert!(!self.stopping.contains(&qid), "queue {qid} is stopped twice");
        self.stopping.push(qid);
    }

    fn keep_whole(&mut self, memory: Vec<IovaRange>) {
        self.whole = memory;
    }

    fn abort(&mut self, qid: u16, cid: u16, number: u64) {
        self.aborted.push((qid, cid, number));
    }

    fn kick(&mut self, qid: u16) {
        self.kicked.push(qid);
    }
}

pub struct Rig {
    pub memory: GuestMemory,
    pub ioas: Ioas,
    pub host: FakeHost,
    pub device: NvmeDevice,
    /// The stores of its namespaces.
    pub held: Vec<Held>,
    pub doorbells: Arc<Doorbells>,
    pub vectors: Arc<Vectors>,
    pub controller: Controller,
    pub asq: Part,
    pub acq: Part,
    /// Pages for data.
    pub data: Part,
    pub tail: u32,
    pub head: u32,
    phase: bool,
    cid: u16,
}

/// A device with namespaces of these identifiers on these stores, of which those below 10 are attached.
fn on(nsids: &[u32], stores: &[Held]) -> NvmeDevice {
    let config =
        NvmeConfig { name: "disk".into(), namespaces: Vec::new(), queues: PAIRS, serial: Some("S 1".into()) };
    let namespaces = nsids.iter().zip(stores).map(|(&nsid, held)| {
        let kind = "null,size=512".parse().unwrap();
        let config = NamespaceConfig { read_only: nsid == 3, ..NamespaceConfig::new(nsid, kind) };
        (Namespace::on("disk", &config, Store::Held(held.clone())), nsid < 10)
    });
    NvmeDevice::with_namespaces(config, namespaces.collect()).unwrap()
}

impl Rig {
    /// A controller that was just powered on, with namespaces 1, 3 and (not attached) 11.
    pub fn new() -> Self {
        let held: Vec<_> = (0..3).map(|_| Held::new(vec![0; 1 << 20])).collect();
        let device = on(&[1, 3, 11], &held);
        let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
        let asq = memory.allocate(PAGE, PAGE).unwrap();
        let acq = memory.allocate(PAGE, PAGE).unwrap();
        let data = memory.allocate(16 * PAGE, PAGE).unwrap();
        let ioas = Ioas::new(memory.windows().clone());
        for region in memory.regions() {
            ioas.map(region.area()).unwrap();
        }
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).unwrap();
        let doorbells = Arc::new(Doorbells::new().unwrap());
        let vectors = Arc::new(Vectors::new(PAIRS + 1));
        let controller = Controller::new(&device, doorbells.clone(), vectors.clone());
        let host = FakeHost {
            access,
            started: Vec::new(),
            stopping: Vec::new(),
            kicked: Vec::new(),
            aborted: Vec::new(),
            whole: Vec::new(),
        };
        Rig {
            memory,
            ioas,
            host,
            device,
            held,
            doorbells,
            vectors,
            controller,
            asq,
            acq,
            data,
            tail: 0,
            head: 0,
            phase: true,
            cid: 0,
        }
    }

    /// The same, enabled.
    pub fn enabled() -> Self {
        let mut rig = Self::new();
        rig.enable();
        rig
    }

    pub fn enable(&mut self) {
        let (asq, acq) = (self.asq.at.0, self.acq.at.0);
        self.point(asq, acq);
        self.write(CC, ENABLED);
        assert_eq!(self.read(CSTS), 1, "not ready");
    }

    /// Says where the admin queues are, whose memory is cleared.
    pub fn point(&mut self, asq: u64, acq: u64) {
        self.acq.slice().unwrap().fill(0);
        (self.tail, self.head, self.phase) = (0, 0, true);
        self.write(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        self.write64(ASQ, asq);
        self.write64(ACQ, acq);
    }

    /// Disables it and lets its queues end.
    pub fn disable(&mut self) {
        self.write(CC, ENABLED & !1);
        self.finish_stops();
        assert_eq!(self.read(CSTS), 0);
    }

    pub fn write(&mut self, offset: u32, value: u32) {
        self.controller.write_bar0(offset.into(), &value.to_le_bytes(), &mut self.host);
    }

    pub fn write64(&mut self, offset: u32, value: u64) {
        self.controller.write_bar0(offset.into(), &value.to_le_bytes(), &mut self.host);
    }

    pub fn read(&mut self, offset: u32) -> u32 {
        let mut bytes = [0xff; 4];
        self.controller.read_bar0(offset.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Workers have ended all queues that they were to end.
    pub fn finish_stops(&mut self) -> usize {
        let stopping = std::mem::take(&mut self.host.stopping);
        for qid in &stopping {
            self.controller.stopped(*qid, &mut self.host);
        }
        stopping.len()
    }

    /// Whether so many stores are to be flushed, after a while.
    pub fn awaits_flushes(&self, count: usize) -> bool {
        let waiting = || self.held.iter().map(|held| held.pending().len()).sum::<usize>();
        (0..5000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            waiting() == count
        })
    }

    /// Ends the flush of a shutdown, and waits for the controller to see it.
    pub fn finish_flushes(&mut self) {
        for _ in 0..5000 {
            for held in &self.held {
                held.finish_all();
            }
            self.controller.look(&mut self.host);
            if self.read(CSTS) & 0xc != 1 << 2 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("the shutdown does not end");
    }

    pub fn ring(&mut self, qid: u16, head: bool, value: u32) {
        self.write(DOORBELLS + u32::from(qid) * 8 + if head { 4 } else { 0 }, value);
    }

    /// Puts a command into the queue and rings. Says its identifier.
    pub fn submit(&mut self, command: Command) -> u16 {
        self.cid = self.cid.wrapping_add(1);
        let command = Command { cdw0: command.cdw0 & 0xffff | u32::from(self.cid) << 16, ..command };
        self.asq.range(u64::from(self.tail) * 64, 64).unwrap().write(0, command).unwrap();
        self.tail = (self.tail + 1) % ENTRIES;
        self.ring(0, false, self.tail);
        self.cid
    }

    /// Takes completions.
    pub fn ended(&mut self) -> Vec<Completion> {
        let mut ended = Vec::new();
        loop {
            let slot = self.acq.range(u64::from(self.head) * 16, 16).unwrap();
            let completion: Completion = slot.read(0).unwrap();
            if completion.phase() != self.phase {
                break;
            }
            self.head = (self.head + 1) % ENTRIES;
            self.phase ^= self.head == 0;
            ended.push(completion);
        }
        if !ended.is_empty() {
            self.ring(0, true, self.head);
        }
        ended
    }

    /// Has a command carried out: its status without flags, and its result.
    pub fn run(&mut self, command: Command) -> (Status, u32) {
        let cid = self.submit(command);
        let ended = self.ended();
        assert_eq!(ended.iter().map(|one| one.cid).collect::<Vec<_>>(), [cid], "{command:?}");
        assert_eq!(ended[0].sq_id, 0);
        (ended[0].status().plain(), ended[0].dw0)
    }

    /// As [`Rig::run`], of a command that succeeds.
    pub fn done(&mut self, command: Command) -> u32 {
        let (status, result) = self.run(command);
        assert_eq!(status, Status::SUCCESS, "{command:?}");
        result
    }

    /// The data of the last command.
    pub fn bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.data.slice().unwrap().copy_to(&mut bytes);
        bytes
    }

    /// Creates a pair of queues without an interrupt.
    pub fn create_pair(&mut self, qid: u16) {
        self.done(create_cq(qid, 64, self.data.at.0));
        self.done(create_sq(qid, 64, self.data.at.0 + PAGE, qid));
    }
}

pub fn create_cq(qid: u16, entries: u32, at: u64) -> Command {
    Command {
        dptr: [at, 0],
        cdw10: u32::from(qid) | (entries - 1) << 16,
        cdw11: 1,
        ..Command::new(mdev_protocol::nvme::opcode::admin::CREATE_CQ, 0, 0)
    }
}

pub fn create_sq(qid: u16, entries: u32, at: u64, cq: u16) -> Command {
    Command {
        dptr: [at, 0],
        cdw10: u32::from(qid) | (entries - 1) << 16,
        cdw11: 1 | u32::from(cq) << 16,
        ..Command::new(mdev_protocol::nvme::opcode::admin::CREATE_SQ, 0, 0)
    }
}
