//! A guest with a controller: queues in the first region of its memory, data in the second.
use crate::driver::nvme::{
    DoorbellWay, Ended, NvmeController, NvmeQueue, NvmeQueueOptions, NvmeRequest, Pointers,
};
use crate::driver::{GuestMemory, MemoryOptions, Region};
use crate::regress::random::Random;
use crate::regress::scenario::{Failure, Outcome, expect, expect_equal};
use crate::regress::socket::server::Server;
use crate::regress::space::{LONG, PAGE, await_that, pause};
use crate::store::StoreKind;
use crate::store::held::Held;
use mdev_dma::{GuestSlice, Iova};
use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::nvm;
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::{DmaUnmap, Request};
use std::time::Instant;

/// Requests at a time. Each has a buffer and a place in the store of its own.
pub const REQUESTS: u16 = 15;
/// Bytes of a request.
pub const LEN: u32 = 4096;
/// Where the guest sees its data.
pub const DATA: Iova = Iova(1 << 32);
/// Blocks of a request.
const BLOCKS: u64 = LEN as u64 / 512;
/// Bytes of the store.
const SIZE: u64 = REQUESTS as u64 * LEN as u64;
/// The region of the queues, and that of the data.
pub const QUEUES: usize = 0;
/// See [`QUEUES`].
pub const BUFFERS: usize = 1;

/// The identifier of a command that is none of the requests.
const OTHER: u16 = 1000;

/// A store in memory.
pub const MEMORY: StoreKind = StoreKind::Memory { size: SIZE };

/// A store that holds its requests.
pub fn store() -> Held {
    Held::new((0..SIZE).map(|at| (at / 7) as u8).collect())
}

/// A guest that has enabled its controller, and has a pair of queues.
pub struct Host {
    /// With the guest's memory.
    pub controller: NvmeController,
    /// Requests, the buffer of each of which is in the second region.
    pub queue: NvmeQueue,
}

impl Host {
    /// The only client of a controller, once those before have gone.
    pub fn new(server: &Server, way: DoorbellWay) -> Result<Host, Failure> {
        let mut controller = Host::enabled(server, way)?;
        let entries = u32::from(REQUESTS) + 1;
        let pair = controller.create_pair(1, entries)?;
        controller.add_region(MemoryOptions { size: 64 * PAGE, first: DATA, huge_pages: false })?;
        let options = NvmeQueueOptions {
            qid: 1,
            nsid: 1,
            block: 512,
            entries,
            requests: REQUESTS,
            capacity: LEN,
            pointers: Pointers::Prp,
        };
        let queue = NvmeQueue::on(pair, controller.memory(), options)?;
        Ok(Host { controller, queue })
    }

    /// A controller that is enabled, without queues.
    pub fn enabled(server: &Server, way: DoorbellWay) -> Result<NvmeController, Failure> {
        let memory = GuestMemory::new(MemoryOptions { size: 64 * PAGE, ..Default::default() })?;
        Ok(NvmeController::over(server.vfio_client()?, memory, way)?)
    }

    /// One of its regions.
    pub fn region(&self, number: usize) -> Result<Region, Failure> {
        let region = self.controller.guest().regions().get(number).cloned();
        region.ok_or_else(|| Failure::new("there is no such region"))
    }

    /// The bytes of one of its regions.
    pub fn bytes(&self, number: usize) -> Result<GuestSlice<'_>, Failure> {
        let region = self.region(number)?;
        let bytes = self.controller.guest().slice(region.range.first(), region.size());
        bytes.ok_or_else(|| Failure::new("there is no such region"))
    }

    /// The bytes of a request's buffer.
    pub fn buffer(&self, tag: u16) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; LEN as usize];
        let data = self.queue.data(tag).ok_or_else(|| Failure::new("there is no such request"))?;
        data.copy_to(&mut bytes);
        Ok(bytes)
    }

    /// Offers all requests that are idle, each a read or a write.
    pub fn submit(&mut self, random: &mut Random) -> Outcome {
        self.queue.submit(REQUESTS.into(), |tag, _| {
            let block = u64::from(tag) * BLOCKS;
            match random.below(2) {
                0 => NvmeRequest::Read { block, len: LEN },
                _ => NvmeRequest::Write { block, len: LEN, durable: false },
            }
        })?;
        Ok(self.queue.publish()?)
    }

    /// Offers all requests that are idle as reads.
    pub fn submit_reads(&mut self) -> Outcome {
        let read = |tag: u16| NvmeRequest::Read { block: u64::from(tag) * BLOCKS, len: LEN };
        self.queue.submit(REQUESTS.into(), |tag, _| read(tag))?;
        Ok(self.queue.publish()?)
    }

    /// Offers a read that is none of the requests, into a page of other memory.
    pub fn read_into(&mut self, at: u64) -> Outcome {
        let read = Command { dptr: [at, 0], cdw12: BLOCKS as u32 - 1, ..Command::new(nvm::READ, OTHER, 1) };
        expect(self.queue.pair.push(&read), "the queue is full")?;
        Ok(self.queue.pair.ring()?)
    }

    /// Waits until that one has ended, which it must do well and before all others.
    pub fn await_other(&mut self) -> Outcome {
        let pair = &mut self.queue.pair;
        let mut ends = Vec::new();
        await_that("the command on other memory ends", || {
            pair.reap(1, |end| ends.push((end.cid, end.status().is_success()))).is_err() || !ends.is_empty()
        })?;
        expect_equal(ends, vec![(OTHER, true)], "the command on other memory")
    }

    /// Offers one read.
    pub fn read(&mut self) -> Result<u16, Failure> {
        let mut taken = None;
        self.queue.submit(1, |tag, _| {
            taken = Some(tag);
            NvmeRequest::Read { block: u64::from(tag) * BLOCKS, len: LEN }
        })?;
        self.queue.publish()?;
        taken.ok_or_else(|| Failure::new("no request is idle"))
    }

    /// Takes what has ended.
    pub fn reap(&mut self) -> Result<Vec<Ended>, Failure> {
        let mut all = Vec::new();
        self.queue.reap(u32::MAX, |ended, _| all.push(ended))?;
        Ok(all)
    }

    /// Waits until all requests have ended.
    pub fn await_all(&mut self) -> Result<Vec<Ended>, Failure> {
        let deadline = Instant::now() + LONG;
        let mut all = self.reap()?;
        while self.queue.under_way() > 0 {
            expect(Instant::now() < deadline, "in vain: requests end")?;
            pause();
            all.append(&mut self.reap()?);
        }
        Ok(all)
    }

    /// Waits until all requests have ended, which they must have done well.
    pub fn await_success(&mut self) -> Outcome {
        let ended = self.await_all()?;
        let failed = ended.into_iter().find(|ended| !ended.status.is_success());
        expect_equal(failed.map(|ended| ended.status), None::<Status>, "the end of a request")
    }
}

/// The bytes of a request's place in the store.
pub fn stored(held: &Held, tag: u16) -> Vec<u8> {
    let first = usize::from(tag) * LEN as usize;
    held.bytes().into_iter().skip(first).take(LEN as usize).collect()
}

/// Doorbells by messages, or in memory.
pub fn any_way(random: &mut Random) -> DoorbellWay {
    if random.below(2) == 0 { DoorbellWay::Trapped } else { DoorbellWay::Shadow }
}

/// The message that takes a region back.
pub fn unmap_of(region: &Region) -> Request {
    Request::DmaUnmap(DmaUnmap::Range { address: region.range.first().0, size: region.size() })
}
