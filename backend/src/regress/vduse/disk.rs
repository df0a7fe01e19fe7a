//! The driver of a block device: it writes each place again and again, each time something else.
use crate::driver::blk::{BlkQueue, BlkQueueOptions, Request};
use crate::driver::vdpa::VdpaFrontEnd;
use crate::driver::{GuestMemory, MemoryOptions, RingFds, RingOptions, Virtqueue};
use crate::regress::scenario::{Failure, Outcome, expect, expect_equal};
use crate::regress::space::{LONG, pause};
use std::time::Instant;

/// Requests at a time, and the places that each of them writes to.
const TAGS: u16 = 32;
/// Bytes of each.
const LEN: u32 = 4096;
/// Sectors of each.
const SECTORS: u64 = LEN as u64 / 512;
/// Bytes of the disk.
pub const SIZE: u64 = TAGS as u64 * LEN as u64;

/// A driver and its guest.
pub struct Disk<Q> {
    /// Its memory.
    pub guest: GuestMemory,
    queue: BlkQueue<Q>,
    fds: RingFds,
    /// What was written last, by tag.
    written: [u64; TAGS as usize],
}

impl<Q: Virtqueue> Disk<Q> {
    /// A driver that has not begun.
    pub fn new() -> Result<Self, Failure> {
        let options = BlkQueueOptions { ring: RingOptions::plain(128), requests: TAGS, capacity: LEN };
        let mut guest = GuestMemory::new(MemoryOptions { size: options.memory(), ..Default::default() })?;
        let queue = BlkQueue::new(&mut guest, options)?;
        Ok(Disk { guest, queue, fds: RingFds::new()?, written: [0; TAGS as usize] })
    }

    /// Starts the only queue where the driver is.
    pub fn start(&self, front: &VdpaFrontEnd) -> Outcome {
        front.start(0, &self.queue.queue, &self.fds)?;
        Ok(front.run()?)
    }

    /// Where the ring stands, when no request is under way.
    pub fn base(&self) -> u32 {
        self.queue.queue.base()
    }

    /// Writes wherever no request is under way.
    pub fn write(&mut self) -> Outcome {
        let Disk { queue, written, .. } = self;
        queue.submit(u32::MAX, |tag, data| {
            let number = written.get_mut(usize::from(tag)).map_or(0, |number| {
                *number = number.wrapping_add(1);
                *number
            });
            data.copy_from(&contents(tag, number));
            Request::Write { sector: u64::from(tag) * SECTORS, len: LEN }
        })?;
        self.offer();
        Ok(())
    }

    fn offer(&mut self) {
        self.queue.publish();
        self.fds.kick.signal();
    }

    /// Takes what has ended, all of which must have ended well.
    pub fn reap(&mut self) -> Outcome {
        let mut failed = 0;
        self.queue.reap(u32::MAX, |done, _| failed += u32::from(!done.is_ok()))?;
        expect_equal(failed, 0, "requests that failed")
    }

    /// Waits until no request is under way.
    pub fn settle(&mut self) -> Outcome {
        let deadline = Instant::now() + LONG;
        while self.queue.under_way() > 0 {
            expect(Instant::now() < deadline, "in vain: requests end")?;
            self.reap()?;
            pause();
        }
        Ok(())
    }

    /// Reads everything back, which must be what was written last.
    pub fn check(&mut self) -> Outcome {
        self.queue.submit(u32::MAX, |tag, _| Request::Read { sector: u64::from(tag) * SECTORS, len: LEN })?;
        self.offer();
        self.settle()?;
        for (tag, number) in (0..TAGS).zip(self.written) {
            let mut found = vec![0; LEN as usize];
            self.queue.data(tag).map(|data| data.copy_to(&mut found));
            expect(found == contents(tag, number), "the disk does not have what was written last")?;
        }
        Ok(())
    }
}

/// What a place has after it was written so many times; zeros before.
fn contents(tag: u16, number: u64) -> Vec<u8> {
    if number == 0 {
        return vec![0; LEN as usize];
    }
    let words =
        (0..u64::from(LEN) / 8).map(|word| number.wrapping_shl(32) ^ u64::from(tag).wrapping_shl(16) ^ word);
    words.flat_map(u64::to_le_bytes).collect()
}
