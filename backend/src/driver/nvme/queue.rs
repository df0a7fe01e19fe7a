//! Requests on a pair of queues: prepared once, and then going round.

use mdev_dma::GuestSlice;
use mdev_protocol::nvme::command::{CDW11_DEALLOCATE, CDW12_DEALLOCATE, CDW12_FORCE_UNIT_ACCESS, Command};
use mdev_protocol::nvme::data::DatasetRange;
use mdev_protocol::nvme::opcode::nvm;
use mdev_protocol::nvme::status::Status;

use super::controller::NvmeController;
use super::error::NvmeError;
use super::pair::QueuePair;
use super::pointers::{MOST_DATA, Pointers, list_size};
use crate::driver::{DriverError, GuestMemory, Part};

const PAGE: u64 = 4096;
/// The smallest block there is.
const BLOCK: u64 = 512;

/// One request. Data is what lies in the buffer of its tag; `block` is the first logical block.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum NvmeRequest {
    /// `len` bytes.
    Read {
        /// The first block.
        block: u64,
        /// Bytes.
        len: u32,
    },
    /// `len` bytes.
    Write {
        /// The first block.
        block: u64,
        /// Bytes.
        len: u32,
        /// Durable when it ends.
        durable: bool,
    },
    /// Whether `len` bytes are as in the buffer.
    Compare {
        /// The first block.
        block: u64,
        /// Bytes.
        len: u32,
    },
    /// Make all writes durable that have ended.
    Flush,
    /// Blocks that become zeros.
    WriteZeroes {
        /// The first block.
        block: u64,
        /// How many, 1 to 65536.
        blocks: u32,
        /// Whether their room may be given back.
        deallocate: bool,
    },
    /// Blocks that are not needed any more.
    Deallocate {
        /// The first block.
        block: u64,
        /// How many.
        blocks: u32,
    },
}

/// A request that the controller has ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its tag, which is idle again. Its data is untouched until the tag's next request.
    pub tag: u16,
    /// How.
    pub status: Status,
}

/// What a queue has.
#[derive(Copy, Clone, Debug)]
pub struct NvmeQueueOptions {
    /// The number of its pair, from 1.
    pub qid: u16,
    /// The namespace of its requests.
    pub nsid: u32,
    /// Bytes of a logical block of it, a power of two from 512.
    pub block: u32,
    /// Entries of its pair, at least one more than requests.
    pub entries: u32,
    /// Requests that may be under way at a time.
    pub requests: u16,
    /// Bytes of data that each of them has room for, in whole blocks.
    pub capacity: u32,
    /// How commands say where their data is.
    pub pointers: Pointers,
}

impl NvmeQueueOptions {
    /// Bytes of guest memory that a queue with its buffers takes at most.
    pub fn memory(&self) -> u64 {
        let requests = u64::from(self.requests);
        QueuePair::memory(self.entries) + requests * (self.stride() + list_size(self.capacity)) + 3 * PAGE
    }

    fn check(&self) -> Result<(), NvmeError> {
        let NvmeQueueOptions { block, entries, requests, capacity, .. } = *self;
        let fits = u32::from(requests) < entries && (1..=MOST_DATA).contains(&capacity);
        if !fits || block < BLOCK as u32 || !block.is_power_of_two() || !capacity.is_multiple_of(block) {
            return Err(NvmeError::Requests { requests, capacity, entries, block });
        }
        Ok(())
    }

    /// Buffers of less than a page are packed closely, others each begin a page.
    fn stride(&self) -> u64 {
        let capacity = u64::from(self.capacity);
        capacity.next_multiple_of(if capacity < PAGE { BLOCK } else { PAGE })
    }
}

/// One tag's bookkeeping.
struct Tag {
    buffer: Part,
    /// Where PRP entries, or the range of a deallocation, are.
    list: Part,
    /// The data pointer of so many bytes.
    dptr: [u64; 2],
    len: u32,
    under_way: bool,
}

/// A queue of requests. A *tag* names one of them, from 0 on: a command identifier and a buffer. An idle tag is
/// [submitted](Self::submit), the queue [published](Self::publish), and the tag [reaped](Self::reap) when the controller has
/// ended its request, in whatever order.
pub struct NvmeQueue {
    /// The pair, for whatever goes beyond the methods here.
    pub pair: QueuePair,
    options: NvmeQueueOptions,
    shift: u32,
    tags: Vec<Tag>,
    /// Tags that may be submitted; what came back last is the warmest, and goes first.
    idle: Vec<u16>,
}

impl NvmeQueue {
    /// Creates a pair of queues, and buffers in the controller's memory; all tags are idle.
    ///
    /// # Errors
    /// [`NvmeError`]: requests do not fit, no memory, the controller refuses.
    pub fn new(controller: &mut NvmeController, options: NvmeQueueOptions) -> Result<Self, NvmeError> {
        options.check()?;
        if options.pointers == Pointers::Sgl && controller.identify_controller()?.sgl & 3 == 0 {
            return Err(NvmeError::NoSgl);
        }
        let pair = controller.create_pair(options.qid, options.entries)?;
        Self::on(pair, controller.memory(), options)
    }

    /// The same on a pair that is there, with buffers in this memory, which must be lent to its controller.
    ///
    /// # Errors
    /// [`NvmeError`]: requests do not fit, no memory.
    pub fn on(
        pair: QueuePair,
        memory: &mut GuestMemory,
        options: NvmeQueueOptions,
    ) -> Result<Self, NvmeError> {
        options.check()?;
        let NvmeQueueOptions { block, requests, capacity, pointers, .. } = options;
        let align = if options.stride() < PAGE { BLOCK } else { PAGE };
        let mut tags = Vec::with_capacity(requests.into());
        for _ in 0..requests {
            let buffer = memory.allocate(options.stride(), align)?;
            tags.push(buffer);
        }
        let size = list_size(capacity);
        let mut made = Vec::with_capacity(requests.into());
        for buffer in tags {
            let list = memory.allocate(size, size)?;
            let dptr = pointers.of(buffer.at, capacity, &list);
            made.push(Tag { buffer, list, dptr, len: capacity, under_way: false });
        }
        let (shift, idle) = (block.trailing_zeros(), (0..requests).rev().collect());
        Ok(NvmeQueue { pair, options, shift, tags: made, idle })
    }

    /// What it was made of.
    #[inline]
    pub fn options(&self) -> &NvmeQueueOptions {
        &self.options
    }

    /// Requests that can be submitted.
    #[inline]
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Requests that are under way.
    #[inline]
    pub fn under_way(&self) -> usize {
        self.tags.len() - self.idle.len()
    }

    /// The buffer of a tag.
    #[inline]
    pub fn data(&self, tag: u16) -> Option<GuestSlice<'_>> {
        self.tags.get(usize::from(tag))?.buffer.range(0, self.options.capacity.into())
    }

    /// Submits one request and returns its tag, without publishing; `None` if no tag is idle.
    ///
    /// # Errors
    /// [`DriverError::UsedLength`]: more data than the buffer holds.
    pub fn submit_one(&mut self, request: NvmeRequest) -> Result<Option<u16>, DriverError> {
        let mut taken = None;
        self.submit(1, |tag, _| {
            taken = Some(tag);
            request
        })?;
        Ok(taken)
    }

    /// Submits up to `count` requests, without publishing. `make` gets an idle tag and its buffer, which it fills if it writes.
    /// Returns how many, which is less where tags are out.
    ///
    /// # Errors
    /// [`DriverError::UsedLength`]: more data than the buffer holds. The requests before that one are submitted.
    #[inline]
    pub fn submit(
        &mut self,
        count: u32,
        mut make: impl FnMut(u16, &GuestSlice<'_>) -> NvmeRequest,
    ) -> Result<u32, DriverError> {
        let mut submitted = 0;
        while submitted < count {
            let Some(&tag) = self.idle.last() else { break };
            let Some(data) = self.data(tag) else { break };
            let request = make(tag, &data);
            let command = self.command(tag, request)?;
            if !self.pair.push(&command) {
                break;
            }
            self.idle.pop();
            if let Some(tag) = self.tags.get_mut(usize::from(tag)) {
                tag.under_way = true;
            }
            submitted += 1;
        }
        Ok(submitted)
    }

    /// Lets the controller see all that was submitted.
    ///
    /// # Errors
    /// The connection is over.
    #[inline]
    pub fn publish(&mut self) -> Result<(), DriverError> {
        self.pair.ring()
    }

    /// Hands up to `limit` requests that the controller has ended to `each`; how many they were. Their tags are idle, in the
    /// order in which they will be submitted last.
    ///
    /// # Errors
    /// [`DriverError::NotUnderWay`]: it ended a request that it does not have.
    #[inline]
    pub fn reap(
        &mut self,
        limit: u32,
        mut each: impl FnMut(Ended, &GuestSlice<'_>),
    ) -> Result<u32, DriverError> {
        let Self { pair, options, tags, idle, .. } = self;
        let mut wrong = None;
        let count = pair.reap(limit, |completion| {
            let cid = completion.cid;
            match tags.get_mut(usize::from(cid)).filter(|tag| tag.under_way) {
                Some(tag) => {
                    tag.under_way = false;
                    idle.push(cid);
                    if let Some(data) = tag.buffer.range(0, options.capacity.into()) {
                        each(Ended { tag: cid, status: completion.status() }, &data);
                    }
                }
                None => wrong = Some(cid),
            }
        })?;
        wrong.map_or(Ok(count), |cid| Err(DriverError::NotUnderWay(cid)))
    }

    /// A tag's next submission queue entry.
    #[inline]
    fn command(&mut self, tag: u16, request: NvmeRequest) -> Result<Command, DriverError> {
        let NvmeQueueOptions { nsid, capacity, pointers, .. } = self.options;
        let shift = self.shift;
        let command = |opcode: u8| Command::new(opcode, tag, nsid);
        let at = |command: Command, block: u64, cdw12: u32| Command {
            cdw10: block as u32,
            cdw11: (block >> 32) as u32,
            cdw12,
            ..command
        };
        let Some(own) = self.tags.get_mut(usize::from(tag)) else { return Ok(command(nvm::FLUSH)) };
        let (opcode, block, len, flags) = match request {
            NvmeRequest::Read { block, len } => (nvm::READ, block, len, 0),
            NvmeRequest::Write { block, len, durable } => {
                (nvm::WRITE, block, len, if durable { CDW12_FORCE_UNIT_ACCESS } else { 0 })
            }
            NvmeRequest::Compare { block, len } => (nvm::COMPARE, block, len, 0),
            NvmeRequest::Flush => return Ok(command(nvm::FLUSH)),
            NvmeRequest::WriteZeroes { block, blocks, deallocate } => {
                let flags = if deallocate { CDW12_DEALLOCATE } else { 0 };
                return Ok(at(command(nvm::WRITE_ZEROES), block, blocks.saturating_sub(1) | flags));
            }
            NvmeRequest::Deallocate { block, blocks } => {
                let range = DatasetRange { attributes: 0, blocks: blocks.to_le(), first: block.to_le() };
                let _ = own.list.slice().and_then(|list| list.write(0, range));
                // The list of the tag's data is gone.
                own.len = 0;
                let dptr = [own.list.at.0, 0];
                let cdw11 = CDW11_DEALLOCATE;
                return Ok(Command { dptr, cdw11, ..command(nvm::DATASET_MANAGEMENT) });
            }
        };
        if len > capacity || len == 0 || len.trailing_zeros() < shift {
            return Err(DriverError::UsedLength { len, capacity });
        }
        if own.len != len {
            own.dptr = pointers.of(own.buffer.at, len, &own.list);
            own.len = len;
        }
        let command = Command { dptr: own.dptr, ..command(opcode) };
        let command = Command { cdw0: command.cdw0 | u32::from(pointers.psdt()) << 14, ..command };
        Ok(at(command, block, ((len >> shift) - 1) | flags))
    }
}
