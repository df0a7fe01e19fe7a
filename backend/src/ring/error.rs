//! What can be wrong with a ring, each by its name.

use mdev_pin::ResolveError;
use thiserror::Error;

use super::MAX_CHAIN;

/// The parts of a ring: descriptors, and one of each side in its format.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The descriptor table, or the descriptor ring.
    Descriptors,
    /// The driver area: available ring.
    Available,
    /// The device area: used ring.
    Used,
    /// The driver area of a packed ring: what the driver wants to hear of.
    DriverEvents,
    /// The device area of a packed ring: what the device wants to hear of.
    DeviceEvents,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Descriptors => "descriptor table",
            Part::Available => "available ring",
            Part::Used => "used ring",
            Part::DriverEvents => "driver's event suppression",
            Part::DeviceEvents => "device's event suppression",
        })
    }
}

/// What a device does with a buffer.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It reads it.
    Read,
    /// It writes it.
    Write,
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Direction::Read => "read",
            Direction::Write => "write",
        })
    }
}

/// Why a ring cannot be served. An empty ring is no error.
///
/// Everything here except [`RingError::is_transient`] is the driver's or the front-end's doing and is latched by the
/// queue: nothing is read from that ring again until it is started anew.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Error)]
pub enum RingError {
    /// A split ring has 1 to 32768 entries, a power of two (virtio 2.7).
    #[error("ring size {0} is not a power of two from 1 to 32768")]
    BadSize(u32),
    /// A packed ring has 1 to 32768 entries (virtio 2.8).
    #[error("packed ring size {0} is not from 1 to 32768")]
    BadPackedSize(u16),
    /// A packed ring is said to stand where it has no slot, or to have more in flight than it has slots.
    #[error("a packed ring of {size} cannot stand at {slot}: the front-end's SET_VRING_BASE is wrong")]
    BadPosition {
        /// The slot named.
        slot: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// More descriptors of a packed ring are available, or in one chain, than it has slots without a chain in flight.
    #[error("more descriptors are available than the packed ring of {size} has free slots")]
    Overrun {
        /// Entries of the ring.
        size: u16,
    },
    /// A chain in a packed ring continues at a descriptor that was not made available with it.
    #[error("descriptor chain continues at slot {slot}, which is not available")]
    Unfinished {
        /// The slot.
        slot: u16,
    },
    /// A buffer id that is not below the ring's size.
    #[error("buffer id {id} in a packed ring of {size}")]
    IdOutOfRange {
        /// The id.
        id: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// A buffer id of a chain that the device has not used yet.
    #[error("buffer id {id} is made available again before the device has used it")]
    IdInFlight {
        /// The id.
        id: u16,
    },
    /// A head of a chain that the device has not used yet, in a ring whose chains in flight are recorded.
    #[error("the available ring names descriptor {head} again before the device has used its chain")]
    HeadInFlight {
        /// The descriptor.
        head: u16,
    },
    /// The in-flight log has no room for the ring, or is not aligned to 8 bytes.
    #[error(
        "the in-flight log has no room for the ring: the front-end must ask for it with the number of descriptors \
         that it sets (GET_INFLIGHT_FD)"
    )]
    LogTooShort,
    /// The in-flight log has a layout that is not known here.
    #[error("the in-flight log has version {version} or unknown features; version 1 without any is served")]
    LogVersion {
        /// Its version.
        version: u16,
    },
    /// The in-flight log was made for another ring.
    #[error(
        "the in-flight log has {entries} entries, which does not fit a ring of {size}: it is another ring's"
    )]
    LogSize {
        /// Entries of the log.
        entries: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// The in-flight log and the ring cannot belong together.
    #[error(
        "the in-flight log was left at used index {noted}, which is too far from the ring's {used}: the front-end \
         must make a new one for a ring that was reset"
    )]
    LogIndex {
        /// What the log says.
        noted: u16,
        /// What the used ring says.
        used: u16,
    },
    /// The in-flight log contradicts itself.
    #[error("the in-flight log makes no sense: something else than a back-end has written into it")]
    LogCorrupt,
    /// The file of the in-flight log shrank.
    #[error("the in-flight log was lost while it was used: its file shrank, or its file system is full")]
    LogLost,
    /// A part does not start where virtio 2.7 wants it (16, 2 and 4 bytes).
    #[error("the {0} is not aligned: the guest driver or the front-end's SET_VRING_ADDR is wrong")]
    Misaligned(Part),
    /// Two parts share bytes.
    #[error("the {0} and the {1} overlap: the guest driver or the front-end's SET_VRING_ADDR is wrong")]
    Overlap(Part, Part),
    /// More chains are said to be available than the ring has entries.
    #[error("available index {index} is more than {size} ahead of {next}")]
    AvailJump {
        /// The next index the device would take.
        next: u16,
        /// The index the driver published.
        index: u16,
        /// Entries of the ring.
        size: u16,
    },
    /// An entry of the available ring names no descriptor.
    #[error("available ring names descriptor {head} in a table of {size}")]
    HeadOutOfRange {
        /// The descriptor named.
        head: u16,
        /// Entries of the table.
        size: u16,
    },
    /// A descriptor continues at a descriptor that is not there.
    #[error("descriptor continues at {next} in a table of {size}")]
    NextOutOfRange {
        /// The descriptor named.
        next: u16,
        /// Entries of the (possibly indirect) table.
        size: u16,
    },
    /// A chain has more descriptors than its table: it runs in a circle.
    #[error("descriptor chain is longer than its table of {size}: it loops")]
    Loop {
        /// Entries of the (possibly indirect) table.
        size: u16,
    },
    /// A chain has more buffers than a device accepts.
    #[error("descriptor chain has more than {MAX_CHAIN} buffers")]
    TooLong,
    /// An indirect table is empty, holds no whole number of descriptors, or more than a chain may have.
    #[error("indirect table of {len} bytes: a multiple of 16 up to 16384 is wanted")]
    IndirectSize {
        /// Bytes of the table, as its descriptor says.
        len: u32,
    },
    /// An indirect table inside an indirect table.
    #[error("indirect descriptor inside an indirect table")]
    IndirectNested,
    /// A descriptor with both INDIRECT and NEXT.
    #[error("descriptor is indirect and continues")]
    IndirectAndNext,
    /// An indirect descriptor although the feature was not negotiated.
    #[error("indirect descriptor, but VIRTIO_F_INDIRECT_DESC was not negotiated")]
    IndirectRefused,
    /// A device-readable buffer after a device-writable one (virtio 2.7.4.2).
    #[error("device-readable descriptor after a device-writable one")]
    ReadAfterWrite,
    /// A buffer without bytes. QEMU refuses these too.
    #[error("descriptor of zero length")]
    ZeroLength,
    /// The buffers of one chain add up to 4 GiB or more (virtio 2.7.5.2).
    #[error("descriptor chain describes 4 GiB or more")]
    LengthOverflow,
    /// A chain has no buffer in the direction its queue is for.
    #[error("descriptor chain has no buffer that the device may {0}")]
    WrongDirection(Direction),
    /// The ring or a buffer is not in memory the device may use that way.
    #[error("guest memory: {0}")]
    Memory(ResolveError),
    /// The queue has no end at its store: the kernel refused it, which the log says.
    #[error("its store cannot be used")]
    NoStore,
    /// The front-end took a page away under the device (a file that shrank, a full tmpfs, a bad page).
    #[error("guest memory was lost while it was used: its file shrank, or its file system is full")]
    Poisoned,
}

// One register: the result of reading a chain is returned for every chain.
const _: () = assert!(size_of::<RingError>() <= 8);

impl RingError {
    /// Whether this may heal by itself: an address that has no translation now. The queue parks instead of failing,
    /// because front-ends remove and add a region in separate messages.
    pub fn is_transient(self) -> bool {
        matches!(self, RingError::Memory(ResolveError::Hole | ResolveError::Gated | ResolveError::Detached))
    }
}

impl From<ResolveError> for RingError {
    fn from(error: ResolveError) -> Self {
        match error {
            ResolveError::Poisoned => RingError::Poisoned,
            other => RingError::Memory(other),
        }
    }
}
