//! Payloads of fixed layout.
//!
//! Each type holds the fields of the specification and leaves padding to the wire. Values are what the peer sent:
//! an index may name no queue, an address no memory; the session decides that.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How many bytes a payload takes, both ends inclusive.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// The fewest.
    pub min: u32,
    /// The most.
    pub max: u32,
}

impl Size {
    /// No payload.
    pub const EMPTY: Size = Size::exactly(0);

    /// Exactly `len` bytes.
    pub const fn exactly(len: u32) -> Self {
        Self { min: len, max: len }
    }

    /// Whether `len` bytes fit.
    pub const fn admits(self, len: usize) -> bool {
        self.min as usize <= len && len <= self.max as usize
    }
}

/// A payload's two directions. `decode` is called with a body that `SIZE` admits and says what else is wrong.
pub(super) trait Payload: Sized {
    const SIZE: Size;

    fn decode(body: &[u8]) -> Result<Self, &'static str>;

    fn encode(&self, out: &mut Vec<u8>);

    /// How many descriptors a message with this payload must carry, where its row says that the payload decides.
    fn fds(&self) -> usize {
        0
    }
}

const TOO_SHORT: &str = "is too short";

/// Payloads whose memory layout is their wire layout.
macro_rules! plain {
    ($($type:ty),* $(,)?) => {$(
        impl Payload for $type {
            const SIZE: Size = Size::exactly(size_of::<$type>() as u32);

            fn decode(body: &[u8]) -> Result<Self, &'static str> {
                Self::read_from_bytes(body).map_err(|_| TOO_SHORT)
            }

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(self.as_bytes());
            }
        }
    )*};
}

plain!(u64, VringState, VringAddr, DeviceState, SharedObject);

/// Nothing: the whole message is its descriptors.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Empty;

impl Payload for Empty {
    const SIZE: Size = Size::EMPTY;

    fn decode(_: &[u8]) -> Result<Self, &'static str> {
        Ok(Self)
    }

    fn encode(&self, _: &mut Vec<u8>) {}
}

/// A payload that may be missing altogether, which says that the request failed.
impl<T: Payload> Payload for Option<T> {
    const SIZE: Size = Size { min: 0, max: T::SIZE.max };

    fn decode(body: &[u8]) -> Result<Self, &'static str> {
        match body.is_empty() {
            true => Ok(None),
            false if T::SIZE.admits(body.len()) => T::decode(body).map(Some),
            false => Err(TOO_SHORT),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        if let Some(payload) = self {
            payload.encode(out);
        }
    }
}

impl Payload for super::ProtocolFeatures {
    const SIZE: Size = u64::SIZE;

    fn decode(body: &[u8]) -> Result<Self, &'static str> {
        u64::decode(body).map(Self::from_bits_retain)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        self.bits().encode(out);
    }
}

/// A vring's index and a number that belongs to it.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringState {
    /// Which vring.
    pub index: u32,
    /// Its size in descriptors, its base, 0 or 1 to enable it: the message says which.
    pub num: u32,
}

/// Where a vring lies.
///
/// The addresses are the front-end's virtual ones, IOVAs under `VIRTIO_F_ACCESS_PLATFORM`, or guest physical ones
/// under `GPA_ADDRESSES`.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VringAddr {
    /// Which vring.
    pub index: u32,
    /// [`VringAddr::LOG`].
    pub flags: u32,
    /// The descriptor table.
    pub desc: u64,
    /// The used ring.
    pub used: u64,
    /// The available ring.
    pub avail: u64,
    /// Guest physical address under which writes to the used ring are logged.
    pub log: u64,
}

impl VringAddr {
    /// Flag: writes to the used ring are to be logged (`VHOST_VRING_F_LOG`).
    pub const LOG: u32 = 1;
}

/// A vring's index and whether a descriptor comes along.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct VringFd {
    /// Which vring.
    pub index: u8,
    /// Whether the message carries a descriptor; without one the ring is polled, or not signalled at all.
    pub has_fd: bool,
}

impl VringFd {
    const INDEX: u64 = 0xff;
    const NO_FD: u64 = 1 << 8;

    fn bits(self) -> u64 {
        u64::from(self.index) | if self.has_fd { 0 } else { Self::NO_FD }
    }

    fn from_bits(bits: u64) -> Self {
        Self { index: (bits & Self::INDEX) as u8, has_fd: bits & Self::NO_FD == 0 }
    }
}

impl Payload for VringFd {
    const SIZE: Size = u64::SIZE;

    fn decode(body: &[u8]) -> Result<Self, &'static str> {
        u64::decode(body).map(Self::from_bits)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        self.bits().encode(out);
    }

    fn fds(&self) -> usize {
        usize::from(self.has_fd)
    }
}

/// An area by which the guest may notify a queue directly; without a descriptor the queue's area is taken back.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct VringArea {
    /// Which vring, and whether there is an area.
    pub vring: VringFd,
    /// Length of the area, in bytes.
    pub size: u64,
    /// Where the area starts in the file, in bytes.
    pub offset: u64,
}

impl Payload for VringArea {
    const SIZE: Size = Size::exactly(24);

    fn decode(body: &[u8]) -> Result<Self, &'static str> {
        let [bits, size, offset] = <[u64; 3]>::read_from_bytes(body).map_err(|_| TOO_SHORT)?;
        Ok(Self { vring: VringFd::from_bits(bits), size, offset })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice([self.vring.bits(), self.size, self.offset].as_bytes());
    }

    fn fds(&self) -> usize {
        self.vring.fds()
    }
}

/// Where the dirty log is.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum LogBase {
    /// In the file that comes along (under `LOG_SHMFD`).
    File {
        /// Length of the log, in bytes.
        size: u64,
        /// Where the log of guest address 0 starts in the file, in bytes.
        offset: u64,
    },
    /// At an address of the front-end, of no use to another process.
    Address(u64),
}

impl Payload for LogBase {
    const SIZE: Size = Size { min: 8, max: 16 };

    fn decode(body: &[u8]) -> Result<Self, &'static str> {
        if let Ok([size, offset]) = <[u64; 2]>::read_from_bytes(body) {
            return Ok(Self::File { size, offset });
        }
        u64::decode(body).map(Self::Address).map_err(|_| "is neither an address nor an area of a file")
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::File { size, offset } => out.extend_from_slice([size, offset].as_bytes()),
            Self::Address(address) => address.encode(out),
        }
    }

    fn fds(&self) -> usize {
        usize::from(matches!(self, Self::File { .. }))
    }
}

/// The buffer in which requests in flight are recorded.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Inflight {
    /// Length of the buffer, in bytes.
    pub mmap_size: u64,
    /// Where it starts in the file, in bytes.
    pub mmap_offset: u64,
    /// Vrings it has room for.
    pub num_queues: u16,
    /// Descriptors a vring.
    pub queue_size: u16,
}

impl Payload for Inflight {
    const SIZE: Size = Size { min: 20, max: 24 };

    fn decode(body: &[u8]) -> Result<Self, &'static str> {
        let ([mmap_size, mmap_offset], rest) = <[u64; 2]>::read_from_prefix(body).map_err(|_| TOO_SHORT)?;
        let ([num_queues, queue_size], _) = <[u16; 2]>::read_from_prefix(rest).map_err(|_| TOO_SHORT)?;
        Ok(Self { mmap_size, mmap_offset, num_queues, queue_size })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice([self.mmap_size, self.mmap_offset].as_bytes());
        out.extend_from_slice([self.num_queues, self.queue_size, 0, 0].as_bytes());
    }
}

/// Which way the device's state goes, and when.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceState {
    /// 0: save, the back-end writes; 1: load, the back-end reads.
    pub direction: u32,
    /// 0: while the device is suspended.
    pub phase: u32,
}

/// The name of an object shared between back-ends.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SharedObject {
    /// Its UUID, as it travels.
    pub uuid: [u8; 16],
}

/// A piece of a file to appear in, or to vanish from, one of the device's shared memory regions.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ShmemMap {
    /// Which region.
    pub shmid: u8,
    /// Where the piece starts in the file, in bytes.
    pub fd_offset: u64,
    /// Where it starts in the region, in bytes.
    pub shm_offset: u64,
    /// Its length, in bytes.
    pub len: u64,
    /// [`ShmemMap::WRITABLE`] or 0.
    pub flags: u64,
}

impl ShmemMap {
    /// `flags`: the guest may write.
    pub const WRITABLE: u64 = 1;
}

impl Payload for ShmemMap {
    const SIZE: Size = Size::exactly(40);

    fn decode(body: &[u8]) -> Result<Self, &'static str> {
        let [first, fd_offset, shm_offset, len, flags] =
            <[u64; 5]>::read_from_bytes(body).map_err(|_| TOO_SHORT)?;
        Ok(Self { shmid: (first & 0xff) as u8, fd_offset, shm_offset, len, flags })
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let words = [u64::from(self.shmid), self.fd_offset, self.shm_offset, self.len, self.flags];
        out.extend_from_slice(words.as_bytes());
    }
}
