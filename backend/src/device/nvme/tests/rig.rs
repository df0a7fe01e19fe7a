//! A host and the data path of a controller on one thread.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::Waker;

use mdev_dma::Iova;
use mdev_pin::{Access, IgnoreUnmap, Ioas};
use mdev_protocol::nvme::command::{Command, Completion};
use mdev_protocol::nvme::opcode::nvm;
use mdev_protocol::nvme::status::Status;

use super::super::*;
use crate::device::QueueCounters;
use crate::driver::{GuestMemory, MemoryOptions, Part};
use crate::store::Store;
use crate::store::held::Held;

/// Bytes of the stores here.
pub const SIZE: u64 = 4 << 20;
/// Where commands have their data.
const DATA: u64 = 4 << 20;
/// The completion queue's identifier.
pub const CQ: u16 = 9;

#[derive(Copy, Clone)]
pub struct Options {
    pub queues: u16,
    pub entries: u32,
    pub completions: u32,
    pub vector: Option<u16>,
    pub read_only: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { queues: 1, entries: 64, completions: 64, vector: None, read_only: false }
    }
}

pub struct Rig {
    pub memory: GuestMemory,
    pub ioas: Ioas,
    pub access: Access,
    pub device: NvmeDevice,
    pub doorbells: Arc<Doorbells>,
    pub vectors: Arc<Vectors>,
    pub completion: Arc<CompletionQueue>,
    pub queues: Vec<HostQueue>,
    pub data: Part,
    /// A page for lists.
    pub lists: Part,
    cq: Part,
    cq_entries: u32,
    pub head: u32,
    phase: bool,
    pub woken: Arc<Wakes>,
}

/// How often a parked queue was woken.
#[derive(Default)]
pub struct Wakes(pub AtomicUsize);

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

/// The host's side of a submission queue, and the engine at the other.
pub struct HostQueue {
    pub engine: SubmissionEngine,
    pub part: Part,
    entries: u32,
    pub tail: u32,
}

pub fn device(stores: Vec<Store>, read_only: bool) -> NvmeDevice {
    let config = NvmeConfig { name: "nvme".into(), namespaces: Vec::new(), queues: 16, serial: None };
    let namespaces = stores.into_iter().enumerate().map(|(index, store)| {
        let kind = "null,size=512".parse().unwrap();
        let config = NamespaceConfig { read_only, ..NamespaceConfig::new(index as u32 + 1, kind) };
        (Namespace::on("nvme", &config, store), true)
    });
    NvmeDevice::with_namespaces(config, namespaces.collect()).unwrap()
}

impl Rig {
    /// One queue on a store of this kind.
    pub fn new(store: &str) -> Self {
        Self::on(Store::open(&store.parse().unwrap()).unwrap(), Options::default())
    }

    /// One queue on a store whose requests end when the test says so.
    pub fn held(options: Options) -> (Self, Held) {
        let held = Held::new(vec![0; SIZE as usize]);
        (Self::on(Store::Held(held.clone()), options), held)
    }

    pub fn on(store: Store, options: Options) -> Self {
        Self::of(device(vec![store], options.read_only), options)
    }

    pub fn of(device: NvmeDevice, options: Options) -> Self {
        let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
        let cq = memory.allocate(u64::from(options.completions) * 16, 4096).unwrap();
        let lists = memory.allocate(8 * 4096, 4096).unwrap();
        let data = memory.allocate(DATA, 4096).unwrap();
        let parts: Vec<_> = (0..options.queues)
            .map(|_| memory.allocate(u64::from(options.entries) * 64, 4096).unwrap())
            .collect();
        let ioas = Ioas::new(memory.windows().clone());
        for region in memory.regions() {
            ioas.map(region.area()).unwrap();
        }
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).unwrap();
        let doorbells = Arc::new(Doorbells::new().unwrap());
        let vectors = Arc::new(Vectors::new(4));
        let completion = Arc::new(CompletionQueue::new(CompletionSetup {
            qid: CQ,
            base: cq.at,
            entries: options.completions,
            vector: options.vector,
            doorbells: doorbells.clone(),
            vectors: vectors.clone(),
        }));
        let mut rig = Rig {
            memory,
            ioas,
            access,
            device,
            doorbells,
            vectors,
            completion,
            queues: Vec::new(),
            data,
            lists,
            cq,
            cq_entries: options.completions,
            head: 0,
            phase: true,
            woken: Arc::default(),
        };
        for (index, part) in parts.into_iter().enumerate() {
            let engine = rig.engine(index as u16 + 1, part.at, options.entries);
            rig.queues.push(HostQueue { engine, part, entries: options.entries, tail: 0 });
        }
        rig
    }

    pub fn engine(&self, qid: u16, base: Iova, entries: u32) -> SubmissionEngine {
        let setup = SubmissionSetup {
            qid,
            base,
            entries,
            completion: self.completion.clone(),
            access: self.access.clone(),
            doorbells: self.doorbells.clone(),
            kick: None,
        };
        let (stats, bell) = (self.device.submission_stats(qid).unwrap(), self.device.bell(qid).unwrap());
        let waker = Waker::from(self.woken.clone());
        SubmissionEngine::new(self.device.shared().clone(), setup, stats.clone(), bell.clone(), waker)
    }

    /// Puts a command into a queue, and does not tell of it.
    pub fn place(&mut self, queue: usize, command: Command) {
        let queue = &mut self.queues[queue];
        queue.part.slice().unwrap().write(queue.tail as usize * 64, command).unwrap();
        queue.tail = (queue.tail + 1) % queue.entries;
    }

    /// Rings the doorbell of a queue.
    pub fn ring(&self, queue: usize) {
        self.doorbells.set_tail(queue as u16 + 1, self.queues[queue].tail);
    }

    /// Offers a command in the first queue.
    pub fn offer(&mut self, command: Command) {
        self.place(0, command);
        self.ring(0);
    }

    pub fn poll(&mut self) -> u32 {
        self.queues[0].engine.poll()
    }

    /// Takes the completions that are there, and does not tell of it.
    pub fn look(&mut self) -> Vec<Completion> {
        let mut found = Vec::new();
        loop {
            let at = self.head as usize * 16;
            let entry: Completion = self.cq.slice().unwrap().read(at).unwrap();
            if entry.phase() != self.phase {
                return found;
            }
            found.push(entry);
            self.head += 1;
            if self.head == self.cq_entries {
                self.head = 0;
                self.phase = !self.phase;
            }
        }
    }

    /// Takes the completions that are there.
    pub fn reap(&mut self) -> Vec<Completion> {
        let found = self.look();
        self.doorbells.set_head(CQ, self.head);
        found
    }

    /// Offers a command, has it served at once, and says how it ended.
    pub fn run(&mut self, command: Command) -> Status {
        self.offer(command);
        assert_eq!(self.poll(), 2, "taken and posted");
        let found = self.reap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].cid, found[0].sq_id), (command.cid(), 1));
        assert_eq!(u32::from(found[0].sq_head), self.queues[0].tail);
        found[0].status()
    }

    /// Where the byte of the data at `offset` is.
    pub fn at(&self, offset: u64) -> u64 {
        self.data.at.0 + offset
    }

    pub fn fill(&self, offset: u64, len: u64, byte: u8) {
        self.data.range(offset, len).unwrap().fill(byte);
    }

    pub fn bytes(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.data.range(offset, len).unwrap().copy_to(&mut bytes);
        bytes
    }

    /// Writes numbers to the list pages.
    pub fn list(&self, offset: usize, words: &[u64]) {
        let slice = self.lists.slice().unwrap();
        words.iter().enumerate().for_each(|(index, word)| slice.write(offset + index * 8, *word).unwrap());
    }

    pub fn counters(&self) -> QueueCounters {
        self.device.submission_stats(1).unwrap().counters()
    }
}

/// A command on `blocks` blocks from `lba` on, with data that begin at `first`, and `second` as second PRP entry.
pub fn transfer(opcode: u8, lba: u64, blocks: u32, first: u64, second: u64) -> Command {
    Command {
        dptr: [first, second],
        cdw10: lba as u32,
        cdw11: (lba >> 32) as u32,
        cdw12: blocks - 1,
        ..Command::new(opcode, lba as u16, 1)
    }
}

pub fn read(lba: u64, blocks: u32, first: u64, second: u64) -> Command {
    transfer(nvm::READ, lba, blocks, first, second)
}

pub fn write(lba: u64, blocks: u32, first: u64, second: u64) -> Command {
    transfer(nvm::WRITE, lba, blocks, first, second)
}
