//! What the drivers of both ring formats have in common.
use super::error::DriverError;
use super::memory::GuestMemory;
use super::split::SplitQueue;
use mdev_dma::Iova;

/// What ring to make.
#[derive(Copy, Clone, Debug)]
pub struct RingOptions {
    /// Descriptors: at most 32,768, of a split ring a power of two.
    pub size: u16,
    /// `VIRTIO_RING_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
    /// Chains of more than one piece go into indirect tables (`VIRTIO_RING_F_INDIRECT_DESC` was negotiated).
    pub indirect: bool,
    /// `VIRTIO_F_IN_ORDER` was negotiated: chains are prepared once, always offered in the order in which they were prepared, and
    /// used in that order.
    pub in_order: bool,
}

impl RingOptions {
    /// A ring of `size` descriptors without any feature.
    pub fn plain(size: u16) -> Self {
        RingOptions { size, event_idx: false, indirect: false, in_order: false }
    }
}

/// One piece of a chain.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The guest address of its first byte.
    pub at: Iova,
    /// Bytes.
    pub len: u32,
    /// The device writes it; otherwise it reads it.
    pub device_writes: bool,
}

/// A chain that the device has used.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain's head.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub len: u32,
}

/// Guest addresses of the three parts of a ring.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// The descriptor table.
    pub desc: Iova,
    /// The available ring.
    pub avail: Iova,
    /// The used ring.
    pub used: Iova,
}

/// The driver's side of a virtqueue, whatever the format of its ring. Chains are known by a number below the ring's size: the
/// index of their first descriptor (split), or their buffer id (packed). Here both are called head.
///
/// See [`SplitQueue`] for the life of a chain.
pub trait Virtqueue: Sized + Send {
    /// An empty ring in the guest's memory, with calls not wanted.
    ///
    /// # Errors
    /// [`DriverError::Size`], [`DriverError::Memory`].
    fn new(memory: &mut GuestMemory, options: RingOptions) -> Result<Self, DriverError>;

    /// The ring's options.
    fn options(&self) -> RingOptions;

    /// Where its parts are.
    fn addresses(&self) -> RingAddresses;

    /// Chains that the device has.
    fn outstanding(&self) -> u16;

    /// The head that the next prepared chain gets; `None` if no descriptor is free.
    fn next_head(&self) -> Option<u16>;

    /// Makes a chain and returns its head. The driver holds it.
    ///
    /// # Errors
    /// [`DriverError::NoDescriptors`].
    fn prepare(&mut self, pieces: &[Piece]) -> Result<u16, DriverError>;

    /// Makes the pieces of a held chain others, and returns its head: a new one if there are not as many as before.
    ///
    /// # Errors
    /// [`DriverError::NotHeld`], [`DriverError::NoDescriptors`]; the chain is then released.
    fn rewrite(&mut self, head: u16, pieces: &[Piece]) -> Result<u16, DriverError>;

    /// How many pieces the chain of this head has; 0 if it heads none.
    fn pieces(&self, head: u16) -> usize;

    /// Changes the length of the last piece of a held chain.
    ///
    /// # Errors
    /// [`DriverError::NotHeld`].
    fn resize_last(&mut self, head: u16, len: u32) -> Result<(), DriverError>;

    /// Gives up a held chain: its descriptors are free again.
    ///
    /// # Errors
    /// [`DriverError::NotHeld`].
    fn release(&mut self, head: u16) -> Result<(), DriverError>;

    /// Offers held chains in this order. The device sees them at the next [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`DriverError::NotHeld`], [`DriverError::OutOfOrder`]; those before it are offered.
    fn offer_each(&mut self, heads: impl IntoIterator<Item = u16>) -> Result<(), DriverError>;

    /// Lets the device see all that was offered; true if it wants to be kicked for it.
    fn publish(&mut self) -> bool;

    /// How many used chains there are to take.
    ///
    /// # Errors
    /// [`DriverError`]: the device broke the rules of the ring.
    fn ready(&mut self) -> Result<u16, DriverError>;

    /// Takes the next `count` used chains, which the driver then holds again. Only as many as [`ready`](Self::ready) said.
    ///
    /// # Errors
    /// [`DriverError`]: the device broke the rules of the ring; those before it are taken.
    fn pop_each(&mut self, count: u16, each: impl FnMut(Used)) -> Result<(), DriverError>;

    /// Says whether the device shall call when it has used chains; after saying yes look at [`ready`](Self::ready) once
    /// more before sleeping.
    fn want_calls(&mut self, wanted: bool);

    /// Where the device is to start from when this ring is handed to it, as `SET_VRING_BASE` says it: everything before
    /// it is used.
    fn base(&self) -> u32;

    /// Starts the ring anew, as after a reset of the device: every outstanding chain is held again. The device must have been
    /// stopped.
    fn reset(&mut self);

    /// The heads that the driver holds, ascending.
    fn held_heads(&self) -> Vec<u16>;
}

impl Virtqueue for SplitQueue {
    fn new(memory: &mut GuestMemory, options: RingOptions) -> Result<Self, DriverError> {
        SplitQueue::new(memory, options)
    }

    fn options(&self) -> RingOptions {
        self.options()
    }

    fn addresses(&self) -> RingAddresses {
        self.addresses()
    }

    fn outstanding(&self) -> u16 {
        self.outstanding()
    }

    fn next_head(&self) -> Option<u16> {
        self.next_head()
    }

    fn prepare(&mut self, pieces: &[Piece]) -> Result<u16, DriverError> {
        self.prepare(pieces)
    }

    #[inline]
    fn rewrite(&mut self, head: u16, pieces: &[Piece]) -> Result<u16, DriverError> {
        self.rewrite(head, pieces)
    }

    #[inline]
    fn pieces(&self, head: u16) -> usize {
        self.pieces(head)
    }

    #[inline]
    fn resize_last(&mut self, head: u16, len: u32) -> Result<(), DriverError> {
        self.resize_last(head, len)
    }

    fn release(&mut self, head: u16) -> Result<(), DriverError> {
        self.release(head)
    }

    #[inline]
    fn offer_each(&mut self, heads: impl IntoIterator<Item = u16>) -> Result<(), DriverError> {
        self.offer_each(heads)
    }

    #[inline]
    fn publish(&mut self) -> bool {
        self.publish()
    }

    #[inline]
    fn ready(&mut self) -> Result<u16, DriverError> {
        (*self).ready()
    }

    #[inline]
    fn pop_each(&mut self, count: u16, each: impl FnMut(Used)) -> Result<(), DriverError> {
        self.pop_each(count, each)
    }

    fn want_calls(&mut self, wanted: bool) {
        self.want_calls(wanted);
    }

    fn base(&self) -> u32 {
        self.base().into()
    }

    fn reset(&mut self) {
        self.reset();
    }

    fn held_heads(&self) -> Vec<u16> {
        self.held_heads().collect()
    }
}
