//! What a load needs of a queue, whatever protocol it speaks.
use crate::driver::blk::{BlkQueue, Request};
use crate::driver::nvme::{NvmeQueue, NvmeRequest};
use crate::driver::{DriverError, RingFds, SplitQueue, Virtqueue};
use crate::sys::Kicks;
use mdev_dma::GuestSlice;
use mdev_protocol::nvme::status::Status;
use mdev_protocol::virtio::blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP};
use std::fmt;

/// A read or a write. Its data is in the buffer of its tag.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// It writes.
    pub write: bool,
    /// The first sector, of 512 bytes.
    pub sector: u64,
    /// Bytes.
    pub len: u32,
}

/// With what status a request has failed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// A `VIRTIO_BLK_S_` constant, or [`UNANSWERED`](crate::driver::blk::UNANSWERED).
    Virtio(u8),
    /// A status of NVMe.
    Nvme(Status),
}

impl fmt::Display for Failed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::Virtio(VIRTIO_BLK_S_IOERR) => out.write_str("an I/O error"),
            Failed::Virtio(VIRTIO_BLK_S_UNSUPP) => out.write_str("not supported"),
            Failed::Virtio(crate::driver::blk::UNANSWERED) => out.write_str("no status written"),
            Failed::Virtio(other) => write!(out, "status {other}"),
            Failed::Nvme(status) => write!(out, "{status:?}"),
        }
    }
}

/// A request that has ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Its tag, which is idle again.
    pub tag: u16,
    /// Why, if it was not carried out.
    pub failed: Option<Failed>,
}

impl Done {
    /// Whether it was carried out.
    #[inline]
    pub fn is_ok(&self) -> bool {
        self.failed.is_none()
    }
}

/// A queue of requests that are named by tags from 0 on, each with a buffer: see [`BlkQueue`], which has the same calls.
pub trait RequestQueue: Send {
    /// Requests that can be submitted.
    fn idle(&self) -> usize;

    /// Requests that are under way.
    fn under_way(&self) -> usize;

    /// The buffer of a tag.
    fn data(&self, tag: u16) -> Option<GuestSlice<'_>>;

    /// Submits up to `count` requests, without publishing; how many.
    ///
    /// # Errors
    /// [`DriverError`]: more data than the buffer holds.
    fn submit(
        &mut self,
        count: u32,
        make: impl FnMut(u16, &GuestSlice<'_>) -> Transfer,
    ) -> Result<u32, DriverError>;

    /// Lets the device see what was submitted, if it looks by itself; true if it is to be kicked.
    fn publish(&mut self) -> bool;

    /// Tells the device to look.
    ///
    /// # Errors
    /// [`DriverError`]: the connection is over.
    fn kick(&mut self) -> Result<(), DriverError>;

    /// Hands up to `limit` requests that have ended to `each`; how many they were.
    ///
    /// # Errors
    /// [`DriverError`], whatever the device did wrong.
    fn reap(&mut self, limit: u32, each: impl FnMut(Done, &GuestSlice<'_>)) -> Result<u32, DriverError>;

    /// Whether the device has said that it has given up on the queue.
    fn is_given_up(&self) -> bool;
}

/// A virtio queue with the counters by which it is kicked.
pub struct Kicked<Q = SplitQueue> {
    /// The queue.
    pub queue: BlkQueue<Q>,
    /// Its counters.
    pub fds: RingFds,
}

impl<Q: Virtqueue> RequestQueue for Kicked<Q> {
    #[inline]
    fn idle(&self) -> usize {
        self.queue.idle()
    }

    #[inline]
    fn under_way(&self) -> usize {
        self.queue.under_way()
    }

    #[inline]
    fn data(&self, tag: u16) -> Option<GuestSlice<'_>> {
        self.queue.data(tag)
    }

    #[inline]
    fn submit(
        &mut self,
        count: u32,
        mut make: impl FnMut(u16, &GuestSlice<'_>) -> Transfer,
    ) -> Result<u32, DriverError> {
        self.queue.submit(count, |tag, data| match make(tag, data) {
            Transfer { write: true, sector, len } => Request::Write { sector, len },
            Transfer { write: false, sector, len } => Request::Read { sector, len },
        })
    }

    #[inline]
    fn publish(&mut self) -> bool {
        self.queue.publish()
    }

    #[inline]
    fn kick(&mut self) -> Result<(), DriverError> {
        self.fds.kick.signal();
        Ok(())
    }

    #[inline]
    fn reap(&mut self, limit: u32, mut each: impl FnMut(Done, &GuestSlice<'_>)) -> Result<u32, DriverError> {
        self.queue.reap(limit, |done, data| {
            let failed = (!done.is_ok()).then_some(Failed::Virtio(done.status));
            each(Done { tag: done.tag, failed }, data);
        })
    }

    fn is_given_up(&self) -> bool {
        matches!(self.fds.err.drain(), Kicks::Some(_))
    }
}

impl RequestQueue for NvmeQueue {
    #[inline]
    fn idle(&self) -> usize {
        NvmeQueue::idle(self)
    }

    #[inline]
    fn under_way(&self) -> usize {
        NvmeQueue::under_way(self)
    }

    #[inline]
    fn data(&self, tag: u16) -> Option<GuestSlice<'_>> {
        NvmeQueue::data(self, tag)
    }

    #[inline]
    fn submit(
        &mut self,
        count: u32,
        mut make: impl FnMut(u16, &GuestSlice<'_>) -> Transfer,
    ) -> Result<u32, DriverError> {
        let shift = self.options().block.trailing_zeros().saturating_sub(9);
        NvmeQueue::submit(self, count, |tag, data| {
            let Transfer { write, sector, len } = make(tag, data);
            let block = sector >> shift;
            if write {
                NvmeRequest::Write { block, len, durable: false }
            } else {
                NvmeRequest::Read { block, len }
            }
        })
    }

    /// Nothing is seen before the doorbell.
    #[inline]
    fn publish(&mut self) -> bool {
        true
    }

    #[inline]
    fn kick(&mut self) -> Result<(), DriverError> {
        NvmeQueue::publish(self)
    }

    #[inline]
    fn reap(&mut self, limit: u32, mut each: impl FnMut(Done, &GuestSlice<'_>)) -> Result<u32, DriverError> {
        NvmeQueue::reap(self, limit, |ended, data| {
            let failed = (!ended.status.is_success()).then_some(Failed::Nvme(ended.status));
            each(Done { tag: ended.tag, failed }, data);
        })
    }

    /// A controller tells of that in its status register, and by not ending anything.
    fn is_given_up(&self) -> bool {
        false
    }
}
