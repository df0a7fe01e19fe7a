//! What can go wrong between a driver and its device.
use super::memory::MemoryError;
use mdev_protocol::vfio_user::ClientError;

/// What went wrong between driver and device.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The size is no ring's.
    #[error("a ring has at most 32768 descriptors, a split one a power of two of them, not {0}")]
    Size(u16),
    /// There is no memory for the ring or its buffers.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The chain is empty, or longer than the free descriptors or the indirect table.
    #[error("no chain of {pieces} pieces can be made with {free} free descriptors")]
    NoDescriptors {
        /// Pieces of the chain.
        pieces: usize,
        /// Free descriptors.
        free: usize,
    },
    /// The caller named a head that is no chain, or one that the device has.
    #[error("descriptor {0} heads no chain that the driver holds")]
    NotHeld(u16),
    /// The caller offered a chain out of the order in which descriptors lie in the ring, which it promised to keep
    /// (`VIRTIO_F_IN_ORDER`).
    #[error("descriptor {head} was offered where {due} is due: in order, descriptors are used in ring order")]
    OutOfOrder {
        /// What was offered.
        head: u16,
        /// What was due.
        due: u16,
    },
    /// A used entry stands for more chains than the used index says.
    #[error("the device used {used} chains, but descriptor {head} is the last of {batch} in order")]
    BatchBeyondIndex {
        /// What the entry names.
        head: u16,
        /// Chains up to that one.
        batch: u16,
        /// Chains by the index.
        used: u16,
    },
    /// The device's used index is further than the chains that it has.
    #[error("the device used {used} chains but has only {outstanding}: is it a virtio device?")]
    UsedIndexJump {
        /// By how much the index moved.
        used: u16,
        /// Chains that the device has.
        outstanding: u16,
    },
    /// The device used what is no chain of the ring or none that it has.
    #[error("the device used descriptor {0}, which heads no chain that it has")]
    UsedTwice(u32),
    /// The device says that it wrote more, or less, than makes sense.
    #[error("the device says it wrote {len} bytes into a buffer of {capacity}")]
    UsedLength {
        /// Bytes by the used entry.
        len: u32,
        /// Bytes that there are.
        capacity: u32,
    },
    /// The device used only some of the buffers of one packet.
    #[error("the device says a packet spans {wanted} buffers, but used only {used} of them")]
    TornPacket {
        /// `num_buffers` of the packet's header.
        wanted: u16,
        /// Buffers that are used.
        used: u16,
    },
    /// The controller completed a command that it does not have.
    #[error("the controller completed command {0}, which it does not have")]
    NotUnderWay(u16),
    /// A doorbell that is a message cannot be sent.
    #[error("a doorbell cannot be rung: {0}")]
    Doorbell(#[source] Box<ClientError>),
}
