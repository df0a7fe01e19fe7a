//! The controller with real queues: their engines run on the same thread, where a session would have workers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Waker;

use mdev_dma::Iova;
use mdev_pin::{Access, IgnoreUnmap, Ioas};
use mdev_protocol::nvme::command::{Command, Completion};
use mdev_protocol::nvme::feature;
use mdev_protocol::nvme::identify::{IdentifyController, cns};
use mdev_protocol::nvme::log::{self, Health};
use mdev_protocol::nvme::opcode::{admin, nvm};
use mdev_protocol::nvme::register::{ACQ, AQA, ASQ, CC, CSTS, DOORBELLS};
use mdev_protocol::nvme::status::Status;
use zerocopy::FromBytes;

use super::super::*;
use super::rig::{ENABLED, PAGE, create_cq, create_sq};
use crate::device::nvme::{NamespaceConfig, NvmeConfig, SubmissionEngine};
use crate::driver::{GuestMemory, MemoryOptions, Part};
use crate::store::Store;
use crate::store::held::Held;

const ENTRIES: u32 = 16;

pub struct Inline {
    pub access: Access,
    pub device: NvmeDevice,
    pub engines: BTreeMap<u16, SubmissionEngine>,
    pub stopping: Vec<u16>,
}

impl Host for Inline {
    fn access(&self) -> &Access {
        &self.access
    }

    fn start(&mut self, setup: SubmissionSetup) {
        let qid = setup.qid;
        let (bell, stats) =
            (self.device.bell(qid).unwrap().clone(), self.device.submission_stats(qid).unwrap().clone());
        let shared = self.device.shared().clone();
        let engine = SubmissionEngine::new(shared, setup, stats, bell, Waker::noop().clone());
        assert!(self.engines.insert(qid, engine).is_none(), "queue {qid} is started twice");
    }

    fn stop(&mut self, qid: u16) {
        let engine = self.engines.get_mut(&qid).unwrap();
        engine.quiesce();
        engine.cancel();
        self.stopping.push(qid);
    }

    fn keep_whole(&mut self, _memory: Vec<IovaRange>) {}

    fn abort(&mut self, qid: u16, cid: u16, number: u64) {
        self.engines.get_mut(&qid).unwrap().abort(cid, number);
    }

    fn kick(&mut self, qid: u16) {
        assert!(self.engines.contains_key(&qid));
    }
}

/// A pair of queues as its host has it: at two consecutive pages.
pub struct Pair {
    pub qid: u16,
    pub at: u64,
    pub tail: u32,
    pub head: u32,
    pub phase: bool,
}

pub struct Machine {
    pub memory: GuestMemory,
    pub host: Inline,
    pub controller: Controller,
    pub held: Held,
    pub room: Part,
    pub next: u16,
}

impl Machine {
    /// Namespace 1 is memory, namespace 2 ends its requests when it is told to.
    pub fn new() -> Self {
        let held = Held::new(vec![0; 1 << 20]);
        let open = |nsid, store| {
            let config = NamespaceConfig::new(nsid, "null,size=512".parse().unwrap());
            (Namespace::on("disk", &config, store), true)
        };
        let memory = Store::open(&"mem,size=2M".parse().unwrap()).unwrap();
        let namespaces = vec![open(1, memory), open(2, Store::Held(held.clone()))];
        let config = NvmeConfig { name: "disk".into(), namespaces: Vec::new(), queues: 4, serial: None };
        let device = NvmeDevice::with_namespaces(config, namespaces).unwrap();
        let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
        let room = memory.allocate(32 * PAGE, PAGE).unwrap();
        let ioas = Ioas::new(memory.windows().clone());
        memory.regions().iter().for_each(|region| ioas.map(region.area()).unwrap());
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).unwrap();
        let vectors = Arc::new(Vectors::new(5));
        let controller = Controller::new(&device, Arc::new(Doorbells::new().unwrap()), vectors);
        let host = Inline { access, device, engines: BTreeMap::new(), stopping: Vec::new() };
        Self { memory, host, controller, held, room, next: 0 }
    }

    pub fn write(&mut self, offset: u32, value: u32) {
        self.controller.write_bar0(offset.into(), &value.to_le_bytes(), &mut self.host);
    }

    pub fn status(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.controller.read_bar0(CSTS.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// The pages of pair `qid` are 2 * qid and the one behind it, cleared.
    pub fn pair(&self, qid: u16) -> Pair {
        let offset = u64::from(qid) * 2 * PAGE;
        self.room.range(offset, 2 * PAGE).unwrap().fill(0);
        Pair { qid, at: self.room.at.0 + offset, tail: 0, head: 0, phase: true }
    }

    pub fn enable(&mut self) -> Pair {
        let admin = self.pair(0);
        self.write(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        self.write(ASQ, admin.at as u32);
        self.write(ACQ, (admin.at + PAGE) as u32);
        self.write(CC, ENABLED);
        assert_eq!(self.status(), 1);
        admin
    }

    pub fn create(&mut self, admin: &mut Pair, qid: u16) -> Pair {
        let pair = self.pair(qid);
        assert_eq!(self.run(admin, create_cq(qid, ENTRIES, pair.at + PAGE)), Status::SUCCESS);
        assert_eq!(self.run(admin, create_sq(qid, ENTRIES, pair.at, qid)), Status::SUCCESS);
        pair
    }

    pub fn submit(&mut self, pair: &mut Pair, command: Command) -> u16 {
        self.next += 1;
        let command = Command { cdw0: command.cdw0 & 0xffff | u32::from(self.next) << 16, ..command };
        let at = Iova(pair.at + u64::from(pair.tail) * 64);
        self.memory.slice(at, 64).unwrap().write(0, command).unwrap();
        pair.tail = (pair.tail + 1) % ENTRIES;
        self.write(DOORBELLS + u32::from(pair.qid) * 8, pair.tail);
        self.next
    }

    /// Lets everybody work, as often as anybody could need.
    pub fn work(&mut self) {
        for _ in 0..8 {
            let mut heard = Vec::new();
            for (qid, engine) in &mut self.host.engines {
                engine.poll();
                heard.extend(std::iter::from_fn(|| engine.news()).map(|news| (*qid, news)));
            }
            for (qid, news) in heard {
                self.controller.queue_news(qid, news, &mut self.host);
            }
            let ends = |host: &mut Inline, qid: &u16| host.engines.get_mut(qid).unwrap().quiesce();
            let stopping = std::mem::take(&mut self.host.stopping);
            for qid in stopping {
                if ends(&mut self.host, &qid) {
                    self.host.engines.remove(&qid);
                    self.controller.stopped(qid, &mut self.host);
                } else {
                    self.host.stopping.push(qid);
                }
            }
        }
    }

    pub fn ended(&mut self, pair: &mut Pair) -> Vec<(u16, Status)> {
        self.work();
        self.results(pair).into_iter().map(|(cid, status, _)| (cid, status)).collect()
    }

    /// What the host finds without anybody working.
    pub fn results(&mut self, pair: &mut Pair) -> Vec<(u16, Status, u32)> {
        let mut ended = Vec::new();
        loop {
            let at = Iova(pair.at + PAGE + u64::from(pair.head) * 16);
            let completion: Completion = self.memory.slice(at, 16).unwrap().read(0).unwrap();
            if completion.phase() != pair.phase {
                break;
            }
            assert_eq!(completion.sq_id, pair.qid);
            pair.head = (pair.head + 1) % ENTRIES;
            pair.phase ^= pair.head == 0;
            ended.push((completion.cid, completion.status().plain(), completion.dw0));
            self.write(DOORBELLS + u32::from(pair.qid) * 8 + 4, pair.head);
        }
        ended
    }

    pub fn run(&mut self, pair: &mut Pair, command: Command) -> Status {
        let cid = self.submit(pair, command);
        let ended = self.ended(pair);
        assert_eq!(ended.len(), 1, "{command:?}");
        assert_eq!(ended[0].0, cid);
        ended[0].1
    }

    pub fn data(&self) -> u64 {
        self.room.at.0 + 20 * PAGE
    }
}

pub fn transfer(opcode: u8, nsid: u32, block: u32, at: u64) -> Command {
    Command { dptr: [at, 0], cdw10: block, cdw12: 7, ..Command::new(opcode, 0, nsid) }
}

#[test]
fn blocks_that_were_written_are_read_through_another_queue_and_counted() {
    let mut machine = Machine::new();
    let mut admin = machine.enable();
    let (mut one, mut two) = (machine.create(&mut admin, 1), machine.create(&mut admin, 2));
    let at = machine.data();
    machine.memory.slice(Iova(at), PAGE).unwrap().fill(0x5a);
    for round in 0..40 {
        assert_eq!(machine.run(&mut one, transfer(nvm::WRITE, 1, round * 8, at)), Status::SUCCESS);
    }
    assert_eq!(machine.run(&mut two, transfer(nvm::READ, 1, 39 * 8, at + PAGE)), Status::SUCCESS);
    let mut bytes = [0; 4096];
    machine.memory.slice(Iova(at + PAGE), PAGE).unwrap().copy_to(&mut bytes);
    assert_eq!(bytes, [0x5a; 4096]);
    assert_eq!(machine.run(&mut two, transfer(nvm::READ, 1, 1 << 20, at)), Status::LBA_OUT_OF_RANGE);
    let health = Command {
        dptr: [at, 0],
        cdw10: u32::from(log::HEALTH) | 127 << 16,
        ..Command::new(admin::GET_LOG_PAGE, 0, u32::MAX)
    };
    assert_eq!(machine.run(&mut admin, health), Status::SUCCESS);
    let mut page = [0; 512];
    machine.memory.slice(Iova(at), 512).unwrap().copy_to(&mut page);
    let health = Health::read_from_bytes(&page).unwrap();
    let number = u128::from_le_bytes;
    assert_eq!((number(health.writes), number(health.reads), number(health.error_entries)), (40, 1, 1));
}

#[test]
fn deleted_queue_ends_what_is_in_flight_before_its_deletion() {
    let mut machine = Machine::new();
    let mut admin = machine.enable();
    let mut pair = machine.create(&mut admin, 1);
    let flying = machine.submit(&mut pair, transfer(nvm::READ, 2, 0, machine.data()));
    assert_eq!(machine.ended(&mut pair), []);
    let delete = Command { cdw10: 1, ..Command::new(admin::DELETE_SQ, 0, 0) };
    let cid = machine.submit(&mut admin, delete);
    let deleted = machine.ended(&mut admin);
    let aborted = machine.ended(&mut pair);
    machine.held.finish_all();
    let later = machine.ended(&mut admin);
    assert_eq!([&deleted[..], &later[..]].concat(), [(cid, Status::SUCCESS)]);
    let aborted = [aborted, machine.ended(&mut pair)].concat();
    assert_eq!(aborted.iter().map(|(cid, _)| *cid).collect::<Vec<_>>(), [flying]);
    assert!(machine.held.pending().is_empty());
    let delete = Command { cdw10: 1, ..Command::new(admin::DELETE_CQ, 0, 0) };
    assert_eq!(machine.run(&mut admin, delete), Status::SUCCESS);
    machine.create(&mut admin, 1);
}

#[test]
fn disabled_controller_waits_for_what_is_in_flight() {
    let mut machine = Machine::new();
    let mut admin = machine.enable();
    let mut pairs = [machine.create(&mut admin, 1), machine.create(&mut admin, 4)];
    for pair in &mut pairs {
        machine.submit(pair, transfer(nvm::WRITE, 2, 0, machine.data()));
    }
    machine.work();
    machine.write(CC, ENABLED & !1);
    machine.work();
    machine.held.finish_all();
    machine.work();
    assert_eq!((machine.status(), machine.host.engines.len()), (0, 0));
    let mut admin = machine.enable();
    let mut pair = machine.create(&mut admin, 1);
    assert_eq!(machine.run(&mut pair, transfer(nvm::READ, 1, 0, machine.data())), Status::SUCCESS);
}

#[test]
fn detached_namespace_is_gone_for_queues_and_comes_back() {
    let mut machine = Machine::new();
    let mut admin = machine.enable();
    let mut pair = machine.create(&mut admin, 1);
    let at = machine.data();
    let read = transfer(nvm::READ, 1, 0, at);
    let turn =
        |select| Command { dptr: [at, 0], cdw10: select, ..Command::new(admin::NAMESPACE_ATTACHMENT, 0, 1) };
    machine.memory.slice(Iova(at), PAGE).unwrap().fill(0);
    machine.memory.slice(Iova(at), 4).unwrap().copy_from(&[1, 0, 1, 0]);
    assert_eq!(machine.run(&mut admin, turn(1)), Status::SUCCESS);
    assert_eq!(machine.run(&mut pair, read), Status::INVALID_NAMESPACE);
    assert_eq!(machine.run(&mut admin, turn(0)), Status::SUCCESS);
    assert_eq!(machine.run(&mut pair, read), Status::SUCCESS);
}

#[test]
fn commands_of_the_length_that_is_promised_are_served_and_longer_ones_are_not() {
    let mut machine = Machine::new();
    let mut admin = machine.enable();
    let mut pair = machine.create(&mut admin, 1);
    let at = machine.data();
    let identify =
        Command { dptr: [at, 0], cdw10: cns::CONTROLLER.into(), ..Command::new(admin::IDENTIFY, 0, 0) };
    assert_eq!(machine.run(&mut admin, identify), Status::SUCCESS);
    let mut page = [0; 4096];
    machine.memory.slice(Iova(at), PAGE).unwrap().copy_to(&mut page);
    let promised = IdentifyController::read_from_bytes(&page).unwrap().max_transfer;
    let blocks = (4096u32 << promised) / 512;
    // All pages of the data are the same one.
    let list = machine.memory.slice(Iova(at + PAGE), PAGE).unwrap();
    (0..512).for_each(|entry| list.write(entry * 8, at).unwrap());
    let write =
        |blocks: u32| Command { dptr: [at, at + PAGE], cdw12: blocks - 1, ..Command::new(nvm::WRITE, 0, 1) };
    assert_eq!(machine.run(&mut pair, write(blocks)), Status::SUCCESS);
    assert_eq!(machine.run(&mut pair, write(blocks + 1)), Status::INVALID_FIELD);
}

/// What Linux's driver asks for when it finds a controller, in its order; nothing of it may fail.
#[test]
fn driver_of_linux_finds_what_it_asks_for() {
    let mut machine = Machine::new();
    let mut admin = machine.enable();
    let at = machine.data();
    let ask = |opcode, nsid, cdw10: u32, cdw11| Command {
        dptr: [at, 0],
        cdw10,
        cdw11,
        ..Command::new(opcode, 0, nsid)
    };
    let identify = |cns: u8, nsid| ask(admin::IDENTIFY, nsid, cns.into(), 0);
    let page =
        |page: u8, bytes: u32| ask(admin::GET_LOG_PAGE, u32::MAX, u32::from(page) | (bytes / 4 - 1) << 16, 0);
    let set = |feature: u8, value| ask(admin::SET_FEATURES, 0, feature.into(), value);
    for command in [
        identify(cns::CONTROLLER, 0),
        identify(cns::COMMAND_SET_CONTROLLER, 0),
        page(log::COMMAND_EFFECTS, 4096),
        set(feature::TIMESTAMP, 0),
        page(log::HEALTH, 512),
        ask(admin::GET_FEATURES, 0, feature::TEMPERATURE_THRESHOLD.into(), 0),
        set(feature::NUMBER_OF_QUEUES, 0x0003_0003),
    ] {
        assert_eq!(machine.run(&mut admin, command), Status::SUCCESS, "{command:?}");
    }
    let mut pair = machine.create(&mut admin, 1);
    let buffers = Command { dptr: [at + PAGE, at + 2 * PAGE], ..ask(admin::DOORBELL_BUFFER_CONFIG, 0, 0, 0) };
    assert_eq!(machine.run(&mut admin, buffers), Status::SUCCESS);
    machine.submit(&mut admin, Command::new(admin::ASYNC_EVENT, 0, 0));
    for command in [
        set(feature::ASYNC_EVENTS, feature::EVENT_NAMESPACES),
        identify(cns::ACTIVE_NAMESPACES, 0),
        identify(cns::DESCRIPTORS, 1),
        identify(cns::NAMESPACE, 1),
        identify(cns::COMMAND_SET_NAMESPACE, 1),
        page(log::FIRMWARE_SLOTS, 512),
        page(log::CHANGED_NAMESPACES, 4096),
    ] {
        assert_eq!(machine.run(&mut admin, command), Status::SUCCESS, "{command:?}");
    }
    // The queue's doorbells are in memory from now on: the tail of queue 1 is the third of them.
    let doorbell =
        |machine: &Machine, at, value: u32| machine.memory.slice(Iova(at), 4).unwrap().write(0, value);
    let command = Command { cdw0: u32::from(nvm::READ) | 7 << 16, ..transfer(nvm::READ, 1, 0, at) };
    machine.memory.slice(Iova(pair.at), 64).unwrap().write(0, command).unwrap();
    doorbell(&machine, at + PAGE + 8, 1).unwrap();
    assert_eq!(machine.ended(&mut pair), [(7, Status::SUCCESS)]);
    doorbell(&machine, at + PAGE + 12, pair.head).unwrap();
    let delete = |opcode| ask(opcode, 0, 1, 0);
    assert_eq!(machine.run(&mut admin, delete(admin::DELETE_SQ)), Status::SUCCESS);
    assert_eq!(machine.run(&mut admin, delete(admin::DELETE_CQ)), Status::SUCCESS);
    machine.write(CC, ENABLED | 1 << 14);
    assert_eq!(machine.status(), 1 | 1 << 2, "what was written is being made durable");
    while machine.status() != 1 | 2 << 2 {
        machine.held.finish_all();
        let at = machine.controller.next_deadline().unwrap();
        std::thread::sleep(at.saturating_duration_since(std::time::Instant::now()));
        machine.controller.look(&mut machine.host);
    }
}
