//! A block device's queues, as its driver sees them: requests that are prepared once and then go round.
use super::error::DriverError;
use super::memory::{GuestMemory, Part};
use super::split::SplitQueue;
use super::virtqueue::{Piece, RingOptions, Used, Virtqueue};
use mdev_dma::{GuestSlice, Iova};
use mdev_protocol::virtio::blk::{
    BlkHeader, BlkRange, VIRTIO_BLK_ID_LEN, VIRTIO_BLK_S_OK, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use smallvec::{SmallVec, smallvec};

/// Bytes of a virtio sector.
pub const SECTOR: u64 = 512;
/// What the driver writes where the device is to write the status: no status of the specification.
pub const UNANSWERED: u8 = 0xff;

/// All of a request that is not its data lies in one line of its own: the device reads and writes it, and nobody else has
/// anything in it.
const LINE: u64 = 64;
/// Where [`BlkHeader`]'s sector is in it.
const SECTOR_AT: usize = 8;
/// Where the [`BlkRange`] of a discard is in it.
const RANGE_AT: usize = BlkHeader::LEN;
/// Where the status is in it.
const STATUS_AT: usize = 63;
/// The device's name takes a place of its own behind the lines.
const ID_LEN: u64 = 32;
/// Buffers of less than a page are packed closely, others each begin a page.
const PAGE: u64 = 4096;
/// How many lines are on their way from the other core before one is used: about what a processor fetches at a time.
const AHEAD: usize = 16;

/// One request. Data is what lies in the buffer of its tag.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// `len` bytes from `sector` on.
    Read {
        /// The first sector.
        sector: u64,
        /// Bytes.
        len: u32,
    },
    /// `len` bytes to `sector` and those behind it.
    Write {
        /// The first sector.
        sector: u64,
        /// Bytes.
        len: u32,
    },
    /// Make all writes durable that have ended.
    Flush,
    /// Sectors that are not needed any more.
    Discard(BlkRange),
    /// Sectors that become zeros; their room may be given back.
    WriteZeroes {
        /// The first sector.
        sector: u64,
        /// How many.
        sectors: u32,
        /// Whether their room may be given back.
        unmap: bool,
    },
    /// The device's name; it is found by [`BlkQueue::id`].
    GetId,
    /// What no device knows: no data.
    Unknown(u32),
}

impl Request {
    /// What the chain looks like: the kind in its header, and the bytes of its data.
    #[inline]
    fn form(self) -> Form {
        match self {
            Request::Read { len, .. } => Form { kind: VIRTIO_BLK_T_IN, len },
            Request::Write { len, .. } => Form { kind: VIRTIO_BLK_T_OUT, len },
            Request::Flush => Form { kind: VIRTIO_BLK_T_FLUSH, len: 0 },
            Request::Discard(_) => Form { kind: VIRTIO_BLK_T_DISCARD, len: BlkRange::LEN as u32 },
            Request::WriteZeroes { .. } => {
                Form { kind: VIRTIO_BLK_T_WRITE_ZEROES, len: BlkRange::LEN as u32 }
            }
            Request::GetId => Form { kind: VIRTIO_BLK_T_GET_ID, len: VIRTIO_BLK_ID_LEN as u32 },
            Request::Unknown(kind) => Form { kind, len: 0 },
        }
    }
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Form {
    kind: u32,
    len: u32,
}

/// A request that the device has ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Its tag, which is idle again. Its data is untouched until the tag's next request.
    pub tag: u16,
    /// The status that the device wrote: a `VIRTIO_BLK_S_` constant, or [`UNANSWERED`].
    pub status: u8,
    /// Bytes that the device says it wrote, the status among them.
    pub written: u32,
}

impl Done {
    /// Whether it was carried out.
    #[inline]
    pub fn is_ok(&self) -> bool {
        self.status == VIRTIO_BLK_S_OK
    }
}

/// What a queue has.
#[derive(Copy, Clone, Debug)]
pub struct BlkQueueOptions {
    /// The ring. Each request needs a descriptor of it where tables are indirect, else three.
    pub ring: RingOptions,
    /// Requests that may be under way at a time.
    pub requests: u16,
    /// Bytes of data that each of them has room for.
    pub capacity: u32,
}

impl BlkQueueOptions {
    /// Descriptors that the ring needs at least for so many requests.
    pub fn descriptors(requests: u16, indirect: bool) -> u32 {
        u32::from(requests) * if indirect { 1 } else { 3 }
    }

    /// Bytes of guest memory that a queue with its buffers takes at most.
    pub fn memory(&self) -> u64 {
        let each = u64::from(self.ring.size) * 512;
        each + u64::from(self.requests) * (LINE + ID_LEN + self.stride()) + 8 * PAGE
    }

    fn stride(&self) -> u64 {
        u64::from(self.capacity).next_multiple_of(if u64::from(self.capacity) < PAGE { SECTOR } else { PAGE })
    }
}

/// One tag's bookkeeping.
#[derive(Copy, Clone, Debug)]
struct Tag {
    /// Of its chain.
    head: u16,
    /// What its chain describes now.
    form: Form,
}

/// A request queue. A *tag* names one of its requests, from 0 on: a line, a buffer and a chain that describes them. An idle tag
/// is [submitted](Self::submit), the queue [published](Self::publish), and the tag [reaped](Self::reap) when the device has
/// ended its request, in whatever order.
pub struct BlkQueue<Q = SplitQueue> {
    /// The ring, for whatever goes beyond the methods here.
    pub queue: Q,
    lines: Part,
    ids: Part,
    data: Part,
    stride: u64,
    capacity: u32,
    tags: Vec<Tag>,
    /// The tag of each chain, by its head.
    owners: Vec<u16>,
    /// Tags that may be submitted; what came back last is the warmest, and goes first.
    idle: Vec<u16>,
    /// What one call submits or reaps; kept for their memory.
    chosen: Vec<u16>,
    used: Vec<Used>,
}

impl<Q: Virtqueue> BlkQueue<Q> {
    /// A queue and its buffers, all tags idle.
    ///
    /// # Errors
    /// [`DriverError`]: no such ring, too few descriptors in it, no memory.
    pub fn new(memory: &mut GuestMemory, options: BlkQueueOptions) -> Result<Self, DriverError> {
        let BlkQueueOptions { ring, requests, capacity } = options;
        let count = u64::from(requests);
        let stride = options.stride();
        let mut queue = BlkQueue {
            queue: Q::new(memory, ring)?,
            lines: memory.allocate(count * LINE, 128)?,
            ids: memory.allocate(count * ID_LEN, 128)?,
            data: memory.allocate((count * stride).max(1), PAGE)?,
            stride,
            capacity,
            tags: Vec::with_capacity(requests.into()),
            owners: vec![u16::MAX; ring.size.into()],
            idle: (0..requests).rev().collect(),
            chosen: Vec::with_capacity(requests.into()),
            used: Vec::with_capacity(requests.into()),
        };
        let form = Request::Read { sector: 0, len: capacity }.form();
        for tag in 0..requests {
            let pieces = queue.pieces(tag, form);
            let head = queue.queue.prepare(&pieces)?;
            queue.tags.push(Tag { head, form });
            queue.own(head, tag);
            queue.describe(tag, form.kind);
        }
        Ok(queue)
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
        self.data.range(u64::from(tag) * self.stride, self.capacity.into())
    }

    /// The name that the tag's [`Request::GetId`] has brought.
    pub fn id(&self, tag: u16) -> Option<[u8; VIRTIO_BLK_ID_LEN]> {
        self.ids.range(u64::from(tag) * ID_LEN, ID_LEN)?.read(0)
    }

    /// Submits one request and returns its tag, without publishing; `None` if no tag is idle.
    ///
    /// # Errors
    /// [`DriverError`]: more data than the buffer holds, or no descriptors for another form of request.
    pub fn submit_one(&mut self, request: Request) -> Result<Option<u16>, DriverError> {
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
    /// [`DriverError`]: more data than the buffer holds, or no descriptors for another form of request. None of the call's requests is
    /// offered then, and their tags are not idle any more.
    #[inline]
    pub fn submit(
        &mut self,
        count: u32,
        mut make: impl FnMut(u16, &GuestSlice<'_>) -> Request,
    ) -> Result<u32, DriverError> {
        self.chosen.clear();
        for _ in 0..count {
            let Some(tag) = self.idle.pop() else { break };
            let Some(data) = self.data(tag) else { break };
            let request = make(tag, &data);
            let form = request.form();
            if self.tags.get(usize::from(tag)).is_none_or(|now| now.form != form) {
                self.reshape(tag, form)?;
            }
            let Some(line) = self.lines.range(u64::from(tag) * LINE, LINE) else { break };
            let (sector, range) = match request {
                Request::Read { sector, .. } | Request::Write { sector, .. } => (sector, None),
                Request::Discard(range) => (0, Some(range)),
                Request::WriteZeroes { sector, sectors, unmap } => {
                    let flags = if unmap { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
                    (0, Some(BlkRange::new(sector, sectors, flags)))
                }
                Request::Flush | Request::GetId | Request::Unknown(_) => (0, None),
            };
            let _ = line.write(SECTOR_AT, sector.to_le());
            let _ = line.write(STATUS_AT, UNANSWERED);
            if let Some(range) = range {
                let _ = line.write(RANGE_AT, range);
            }
            if let Some(tag) = self.tags.get(usize::from(tag)) {
                self.chosen.push(tag.head);
            }
        }
        self.queue.offer_each(self.chosen.iter().copied())?;
        Ok(self.chosen.len() as u32)
    }

    /// Lets the device see all that was submitted; true if it wants to be kicked for it.
    #[inline]
    pub fn publish(&mut self) -> bool {
        self.queue.publish()
    }

    /// Hands up to `limit` requests that the device has ended to `each`; how many they were. Their tags are idle, in the order in
    /// which they will be submitted last.
    ///
    /// # Errors
    /// [`DriverError`], whatever the device did wrong: [`DriverError::UsedTwice`] where it ended a request that it does not
    /// have.
    #[inline]
    pub fn reap(
        &mut self,
        limit: u32,
        mut each: impl FnMut(Done, &GuestSlice<'_>),
    ) -> Result<u32, DriverError> {
        let Self { queue, lines, data, stride, capacity, owners, used, idle, .. } = self;
        let count = queue.ready()?.min(u16::try_from(limit).unwrap_or(u16::MAX));
        if count == 0 {
            return Ok(0);
        }
        let (Some(lines), Some(data)) = (lines.slice(), data.slice()) else { return Ok(0) };
        let owner = |head: u16| owners.get(usize::from(head)).copied().unwrap_or(u16::MAX);
        // For writing: the next request of the tag writes it anyway.
        let fetch = |head: u16| lines.prefetch_write(usize::from(owner(head)) * LINE as usize);
        used.clear();
        queue.pop_each(count, |entry| {
            if used.len() < AHEAD {
                fetch(entry.head);
            }
            used.push(entry);
        })?;
        for (position, entry) in used.iter().enumerate() {
            if let Some(later) = used.get(position + AHEAD) {
                fetch(later.head);
            }
            let tag = owner(entry.head);
            let status = lines.read(usize::from(tag) * LINE as usize + STATUS_AT).unwrap_or(UNANSWERED);
            let buffer = data.subslice(usize::from(tag) * *stride as usize, *capacity as usize);
            let greatest = capacity.saturating_add(1).max(VIRTIO_BLK_ID_LEN as u32 + 1);
            if entry.len > greatest {
                return Err(DriverError::UsedLength { len: entry.len, capacity: greatest });
            }
            idle.push(tag);
            if let Some(buffer) = buffer {
                each(Done { tag, status, written: entry.len }, &buffer);
            }
        }
        Ok(count.into())
    }

    /// Starts anew after a reset of the device: see [`Virtqueue::reset`]. All tags are idle; what was under way is forgotten.
    pub fn reset(&mut self) {
        self.queue.reset();
        self.idle.clear();
        self.idle.extend((0..self.tags.len() as u16).rev());
    }

    /// The pieces of a tag's chain in this form: header, data if there is any, status.
    fn pieces(&self, tag: u16, form: Form) -> SmallVec<[Piece; 3]> {
        let line = self.lines.at.0 + u64::from(tag) * LINE;
        let piece = |at: u64, len: u32, device_writes: bool| Piece { at: Iova(at), len, device_writes };
        let header = piece(line, BlkHeader::LEN as u32, false);
        let status = piece(line + STATUS_AT as u64, 1, true);
        let (at, device_writes) = match form.kind {
            VIRTIO_BLK_T_GET_ID => (self.ids.at.0 + u64::from(tag) * ID_LEN, true),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => (line + RANGE_AT as u64, false),
            kind => (self.data.at.0 + u64::from(tag) * self.stride, kind == VIRTIO_BLK_T_IN),
        };
        if form.len == 0 {
            smallvec![header, status]
        } else {
            smallvec![header, piece(at, form.len, device_writes), status]
        }
    }

    /// Makes an idle tag's chain describe another form of request.
    fn reshape(&mut self, tag: u16, form: Form) -> Result<(), DriverError> {
        let reads_or_writes = matches!(form.kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT);
        if reads_or_writes && form.len > self.capacity {
            return Err(DriverError::UsedLength { len: form.len, capacity: self.capacity });
        }
        let Some(now) = self.tags.get(usize::from(tag)).copied() else { return Ok(()) };
        let pieces = self.pieces(tag, form);
        let head = self.queue.rewrite(now.head, &pieces)?;
        if let Some(now) = self.tags.get_mut(usize::from(tag)) {
            *now = Tag { head, form };
        }
        self.own(head, tag);
        self.describe(tag, form.kind);
        Ok(())
    }

    fn own(&mut self, head: u16, tag: u16) {
        if let Some(owner) = self.owners.get_mut(usize::from(head)) {
            *owner = tag;
        }
    }

    fn describe(&self, tag: u16, kind: u32) {
        if let Some(line) = self.lines.range(u64::from(tag) * LINE, LINE) {
            let _ = line.write(0, BlkHeader::new(kind, 0));
        }
    }
}

#[cfg(test)]
#[path = "blk_tests.rs"]
mod tests;
