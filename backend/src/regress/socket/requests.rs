//! A guest whose requests the device holds: one ring, and buffers in regions of their own.
use super::device::HEADER;
use super::server::Server;
use crate::driver::{
    FrontEnd, GuestMemory, InFlightRecord, MemoryOptions, Part, Piece, RingFds, RingOptions, SplitQueue, Used,
};
use crate::regress::scenario::{Failure, Outcome, expect_equal};
use crate::regress::space::{PAGE, await_that};
use crate::store::Operation;
use mdev_dma::{GuestSlice, Iova};
use mdev_protocol::vhost_user::{MemoryRegion, ProtocolFeatures};
use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;

/// Requests that a ring has room for.
pub const SLOTS: u16 = 16;
/// Bytes of each.
pub const BLOCK: u32 = 256;
/// Bytes of a region of buffers, and of the store behind them: a block for each slot.
pub const BLOCKS: u64 = SLOTS as u64 * BLOCK as u64;
/// Where the guest sees the first region of buffers; the others follow at the same distance.
const BUFFERS: u64 = 1 << 32;

/// A guest's memory: a region for rings, and regions of buffers.
pub struct Memory {
    /// All of it.
    pub guest: GuestMemory,
}

impl Memory {
    /// Memory with so many regions of buffers, and rings in its first region.
    pub fn new(rings: usize, regions: u64) -> Result<(Memory, Vec<Ring>), Failure> {
        let mut guest = GuestMemory::new(MemoryOptions { size: 16 * PAGE, ..Default::default() })?;
        let rings = (0..rings).map(|_| Ring::new(&mut guest)).collect::<Result<_, _>>()?;
        for number in 1..=regions {
            guest.add_region(MemoryOptions {
                size: BLOCKS,
                first: Iova(number * BUFFERS),
                huge_pages: false,
            })?;
        }
        Ok((Memory { guest }, rings))
    }

    /// A region as messages name it; 0 is that of the rings.
    pub fn named(&self, region: usize) -> Result<MemoryRegion, Failure> {
        let region =
            self.guest.regions().get(region).ok_or_else(|| Failure::new("there is no such region"))?;
        Ok(MemoryRegion {
            guest_addr: region.range.first().0,
            size: region.size(),
            user_addr: region.user.0,
            mmap_offset: region.extent.offset,
        })
    }

    /// Adds a region to those that the device knows.
    pub fn share(&self, front: &mut FrontEnd, region: usize) -> Outcome {
        let named = self.named(region)?;
        let file = self.guest.regions().get(region).map(|region| region.extent.file.as_fd());
        let file = file.ok_or_else(|| Failure::new("there is no such region"))?;
        Ok(front.client().add_mem_region(named, file)?)
    }

    /// The bytes of a region of buffers.
    pub fn buffers(&self, region: u64) -> Result<GuestSlice<'_>, Failure> {
        let buffers = self.guest.slice(Iova(region * BUFFERS), BLOCKS);
        buffers.ok_or_else(|| Failure::new("there are no buffers"))
    }

    /// The bytes of a slot's block in a region of buffers.
    pub fn block(&self, region: u64, slot: u16) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; BLOCK as usize];
        let block = self.buffers(region)?.subslice(usize::from(slot) * BLOCK as usize, bytes.len());
        block.ok_or_else(|| Failure::new("there is no such block"))?.copy_to(&mut bytes);
        Ok(bytes)
    }
}

/// Connects as the front-end of one who holds requests, and shares all of the guest's memory.
pub fn connect(server: &Server, memory: &Memory) -> Result<FrontEnd, Failure> {
    let protocol = FrontEnd::usual_protocol() | ProtocolFeatures::STATUS;
    let mut front = FrontEnd::over(server.client()?, VIRTIO_F_VERSION_1, 0, protocol)?;
    front.share(&memory.guest)?;
    Ok(front)
}

/// The same, of a front-end that has the device record what is in flight: in this record, or in one that is made now.
pub fn connect_recorded(
    server: &Server,
    memory: &Memory,
    record: Option<InFlightRecord>,
) -> Result<(FrontEnd, InFlightRecord), Failure> {
    let protocol = FrontEnd::usual_protocol()
        | ProtocolFeatures::STATUS
        | ProtocolFeatures::INFLIGHT_SHMFD
        | ProtocolFeatures::GET_VRING_BASE_INFLIGHT;
    let mut front = FrontEnd::over(server.client()?, VIRTIO_F_VERSION_1, 0, protocol)?;
    let record = match record {
        Some(record) => record,
        None => front.make_record(1, 4 * SLOTS)?,
    };
    front.record_in(&record)?;
    front.share(&memory.guest)?;
    Ok((front, record))
}

/// A request of a ring.
#[derive(Copy, Clone, Debug)]
pub struct Asked {
    /// Which block of region and store.
    pub slot: u16,
    /// What.
    pub operation: Operation,
    /// The region of its buffer.
    pub region: u64,
}

/// The driver's side of one ring.
pub struct Ring {
    queue: SplitQueue,
    headers: Part,
    fds: RingFds,
    /// By head.
    asked: Vec<(u16, Asked)>,
}

impl Ring {
    fn new(guest: &mut GuestMemory) -> Result<Ring, Failure> {
        let queue = SplitQueue::new(guest, RingOptions::plain(4 * SLOTS))?;
        let headers = guest.allocate(u64::from(SLOTS) * u64::from(HEADER), PAGE)?;
        Ok(Ring { queue, headers, fds: RingFds::new()?, asked: Vec::new() })
    }

    /// Starts the ring as queue `index`.
    pub fn start(&self, front: &mut FrontEnd, memory: &Memory, index: u8) -> Outcome {
        Ok(front.start(index, &self.queue, &self.fds, &memory.guest)?)
    }

    /// The ring, and its event counters.
    pub fn parts(&self) -> (&SplitQueue, &RingFds) {
        (&self.queue, &self.fds)
    }

    /// Offers a request, and kicks.
    pub fn ask(&mut self, asked: Asked) -> Outcome {
        let Asked { slot, operation, region } = asked;
        let offset = u64::from(slot) * u64::from(BLOCK);
        let at = u64::from(slot) * u64::from(HEADER);
        let header = self.headers.range(at, HEADER.into()).and_then(|header| header.write(0, offset.to_le()));
        header.ok_or_else(|| Failure::new("there is no such slot"))?;
        let header = Piece { at: Iova(self.headers.at.0 + at), len: HEADER, device_writes: false };
        let at = Iova(region * BUFFERS + offset);
        let data = Piece { at, len: BLOCK, device_writes: operation == Operation::Read };
        let head = self.queue.prepare(&[header, data])?;
        self.asked.push((head, asked));
        self.queue.offer(head)?;
        self.queue.publish();
        self.fds.kick.signal();
        Ok(())
    }

    /// Takes what the device has used: what was asked, and how many bytes were moved.
    pub fn used(&mut self) -> Result<Vec<(Asked, u32)>, Failure> {
        let mut all = Vec::new();
        for _ in 0..self.queue.ready()? {
            let Used { head, len } = self.queue.pop()?;
            let at = self.asked.iter().position(|(other, _)| *other == head);
            let at = at.ok_or_else(|| Failure::new("the device used a chain that it did not have"))?;
            let (head, asked) = self.asked.swap_remove(at);
            self.queue.release(head)?;
            all.push((asked, len));
        }
        Ok(all)
    }

    /// Waits until the device has used so many.
    pub fn await_used(&mut self, count: usize) -> Result<Vec<(Asked, u32)>, Failure> {
        let queue = &self.queue;
        await_that("the device tells of ends", || {
            queue.ready().is_ok_and(|ready| usize::from(ready) >= count)
        })?;
        let used = self.used()?;
        expect_equal(used.len(), count, "requests that have ended")?;
        Ok(used)
    }

    /// The device was reset: starts the ring anew, and says what was under way.
    pub fn reset(&mut self) -> Result<Vec<Asked>, Failure> {
        self.queue.reset();
        let mut lost = Vec::new();
        for (head, asked) in self.asked.drain(..) {
            self.queue.release(head)?;
            lost.push(asked);
        }
        Ok(lost)
    }

    /// Requests that the device has, taken or not.
    pub fn outstanding(&self) -> usize {
        self.asked.len()
    }

    /// Stops the ring, queue `index`, at whose end every chain that was taken must be used. Says how many were not
    /// taken.
    pub fn stop(&mut self, front: &mut FrontEnd, index: u8) -> Result<usize, Failure> {
        let base = front.stop(index)?;
        let taken = base.wrapping_sub(self.queue.base());
        expect_equal(self.queue.ready()?, taken, "of the chains that were taken, those that are used")?;
        Ok(self.outstanding() - usize::from(taken))
    }
}

#[cfg(test)]
mod tests;
