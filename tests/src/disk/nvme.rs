//! An NVMe controller's driver under load.

use std::path::{Path, PathBuf};

use mdev_dma::{GuestSlice, Iova};
use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::admin;
use mdev_protocol::vfio_user::DmaUnmap;
use mdevd::driver::ledger::Ledger;
use mdevd::driver::nvme::{
    DoorbellWay, Function, NvmeController, NvmeQueue, NvmeQueueOptions, NvmeRequest, Pointers,
};
use mdevd::driver::{GuestMemory, MemoryOptions};
use rustix::net::{Shutdown, shutdown};

use super::journal::Journal;
use super::watched::Watched;
use super::work::{Ask, RequestQueue, Work};
use super::{BLOCK, DEPTH, WATCHDOG};
use crate::random::Random;

/// Entries of the queues.
const ENTRIES: u32 = 64;
/// Bytes of the greatest request, which is a part of a flood.
const GREATEST: u32 = 128 << 10;
/// Bytes of the regions of memory.
const SIZE: [u64; 2] = [256 << 10, DEPTH as u64 * (GREATEST as u64 + 4096)];
/// The region of the queues and the doorbells in memory, and that of the data.
const QUEUES: usize = 0;
const DATA: usize = 1;

/// A driver with its memory, on one connection.
pub struct NvmeLoad {
    /// What it does.
    pub work: Work,
    path: PathBuf,
    controller: NvmeController,
    queue: NvmeQueue,
}

/// How something is taken away from a controller that has commands in flight.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum NvmeWay {
    /// The connection is closed. It is over when the next client is answered.
    Close,
    /// `DMA_UNMAP` of the data.
    Data,
    /// `DMA_UNMAP` of the live queues, and of doorbells that are in memory.
    Queues,
    /// `DMA_UNMAP` of everything.
    All,
    /// `DEVICE_RESET`.
    Reset,
    /// CC.EN becomes 0.
    Disable,
    /// Delete I/O Submission Queue.
    Delete,
}

impl NvmeWay {
    /// All of them.
    pub const ALL: [NvmeWay; 7] = [
        NvmeWay::Close,
        NvmeWay::Data,
        NvmeWay::Queues,
        NvmeWay::All,
        NvmeWay::Reset,
        NvmeWay::Disable,
        NvmeWay::Delete,
    ];
}

impl RequestQueue for NvmeQueue {
    fn under_way(&self) -> usize {
        NvmeQueue::under_way(self)
    }

    fn submit(&mut self, count: u32, make: &mut dyn FnMut(u16, &GuestSlice<'_>) -> Ask) {
        let first = |block| block * u64::from(BLOCK / 512);
        let submitted = NvmeQueue::submit(self, count, |tag, data| match make(tag, data) {
            Ask::Write(block) => NvmeRequest::Write { block: first(block), len: BLOCK, durable: false },
            Ask::Read(block) => NvmeRequest::Read { block: first(block), len: BLOCK },
            Ask::Flush => NvmeRequest::Flush,
        });
        if submitted.expect("a driver that keeps to the rules") > 0 {
            self.publish().expect("a connection");
        }
    }

    fn reap(&mut self, each: &mut dyn FnMut(u16, &GuestSlice<'_>)) {
        let reaped = NvmeQueue::reap(self, u32::MAX, |ended, data| {
            assert!(ended.status.is_success(), "{:?}", ended.status);
            each(ended.tag, data);
        });
        reaped.expect("a device that keeps to the rules");
    }
}

impl NvmeLoad {
    /// A driver of the disk of so many blocks at `path`, whose writes are known by `seed`: the only client, once those before
    /// have gone.
    ///
    /// # Panics
    /// The device refuses something, or is not there.
    pub fn connect(path: &Path, way: DoorbellWay, blocks: u64, seed: u64, mut random: Random) -> Self {
        let pointers = *random.of(&[Pointers::Prp, Pointers::Sgl]);
        let memory =
            GuestMemory::new(MemoryOptions { size: SIZE[QUEUES], ..Default::default() }).expect("memory");
        let mut controller =
            NvmeController::connect(path, WATCHDOG, memory, way).expect("a device that listens");
        let pair = controller.create_pair(1, ENTRIES).expect("queues");
        let data = MemoryOptions { size: SIZE[DATA], first: Iova(1 << 32), huge_pages: false };
        controller.add_region(data).expect("memory is taken");
        let options = NvmeQueueOptions {
            qid: 1,
            nsid: 1,
            block: 512,
            entries: ENTRIES,
            requests: DEPTH,
            capacity: GREATEST,
            pointers,
        };
        let queue = NvmeQueue::on(pair, controller.memory(), options).expect("a queue");
        NvmeLoad { work: Work::new(blocks, seed, random), path: path.to_owned(), controller, queue }
    }

    /// [`Work::step`].
    ///
    /// # Panics
    /// As that does.
    pub fn step(&mut self, submit: bool, journal: &mut impl Journal) -> bool {
        self.work.step(&mut self.queue, submit, journal)
    }

    /// [`Work::verify`].
    ///
    /// # Panics
    /// As that does.
    pub fn verify(&mut self, ledger: &Ledger) {
        self.work.verify(&mut self.queue, ledger);
    }

    /// Submits nothing but great reads, so that the device has much to write into the guest's memory. Nobody looks at what they bring:
    /// there must be a release next.
    ///
    /// # Panics
    /// As [`Work::drain`]; the disk is smaller than a read.
    pub fn flood(&mut self) {
        self.work.drain(&mut self.queue);
        let places = self.work.blocks * u64::from(BLOCK) / u64::from(GREATEST);
        let submitted = NvmeQueue::submit(&mut self.queue, u32::MAX, |tag, _| {
            let place = u64::from(tag) % places;
            NvmeRequest::Read { block: place * u64::from(GREATEST / 512), len: GREATEST }
        });
        submitted.expect("a driver that keeps to the rules");
        self.queue.publish().expect("a connection");
    }

    /// Takes something away from the device, and says how many commands it had when it was told to let go, and to which memory nobody
    /// may write any more. Commands of which it has told nothing are given up.
    ///
    /// # Panics
    /// The device refuses.
    pub fn release(&mut self, way: NvmeWay) -> (usize, Watched) {
        let under_way = self.queue.under_way();
        let function = self.controller.function().clone();
        let regions = self.controller.guest().regions();
        let (queues, data) = (&regions[QUEUES], &regions[DATA]);
        let released = Watched::of(match way {
            NvmeWay::Data => std::slice::from_ref(data),
            NvmeWay::Queues => std::slice::from_ref(queues),
            _ => regions,
        });
        match way {
            NvmeWay::Close => {
                shutdown(&*function.client(), Shutdown::Both).expect("a socket");
                Function::connect(&self.path, WATCHDOG).expect("a device for the next client");
            }
            NvmeWay::Data => function.take_back_region(data).expect("it lets go"),
            NvmeWay::Queues => function.take_back_region(queues).expect("it lets go"),
            NvmeWay::All => function.client().dma_unmap(DmaUnmap::All).expect("it lets go"),
            NvmeWay::Reset => function.reset().expect("it resets"),
            NvmeWay::Disable => self.controller.disable().expect("it is disabled"),
            NvmeWay::Delete => {
                let delete = Command { cdw10: 1, ..Command::new(admin::DELETE_SQ, 0, 0) };
                self.controller.carry_out("Delete I/O Submission Queue", delete).expect("it is deleted");
            }
        }
        self.work.give_up();
        (under_way, released)
    }
}
