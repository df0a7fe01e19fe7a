//! Messages that lend memory to a device and take it back.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::vhost_user::IotlbPerm;

/// Bytes of a message.
pub const MESSAGE_LEN: usize = 72;

/// `struct vhost_msg_v2`, whose union is as long as its padding: `struct vhost_iotlb_msg` and zeroes.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Wire {
    version: u32,
    asid: u32,
    iova: u64,
    size: u64,
    uaddr: u64,
    perm: u8,
    kind: u8,
    rest: [u8; 38],
}

const _: () = assert!(size_of::<Wire>() == MESSAGE_LEN);

/// `VHOST_IOTLB_MSG_V2`.
const VERSION: u32 = 2;

const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;
const BATCH_BEGIN: u8 = 5;
const BATCH_END: u8 = 6;

/// A message of the front-end's to the kernel.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct IotlbMessage {
    /// Which address space ([`BackendFeatures::IOTLB_ASID`](super::BackendFeatures::IOTLB_ASID)).
    pub asid: u32,
    /// What changes.
    pub change: IotlbChange,
}

/// What changes in an address space.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum IotlbChange {
    /// The device may reach memory. The kernel answers `EFAULT` if it reaches some there already.
    Update {
        /// Its first IOVA.
        iova: u64,
        /// Bytes.
        size: u64,
        /// Where it is mapped in the process that sends this. VDUSE gets what belongs to files there, shared, and leaves out
        /// what does not.
        user_addr: u64,
        /// What the device may do there.
        perm: IotlbPerm,
    },
    /// The device may no longer reach memory.
    Invalidate {
        /// Its first IOVA.
        iova: u64,
        /// Bytes.
        size: u64,
    },
    /// What follows is told to the device as one.
    BatchBegin,
    /// Now.
    BatchEnd,
}

/// Why bytes are no message.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IotlbError {
    /// It is too short or too long.
    #[error("a message of vhost-vdpa has {MESSAGE_LEN} bytes, and this one {len}")]
    Length {
        /// Bytes that came.
        len: usize,
    },
    /// It is not of version 2.
    #[error("a message of vhost-vdpa has the version {0}, and only 2 is known")]
    Version(u32),
    /// Nobody here knows what it is about.
    #[error("a message of vhost-vdpa is of type {0}, which is unknown")]
    Unknown(u8),
    /// It contradicts itself.
    #[error("a message of vhost-vdpa {0}")]
    Body(&'static str),
}

impl IotlbMessage {
    /// The message in the bytes of one write(2).
    ///
    /// # Errors
    /// [`IotlbError`]: they are not one.
    pub fn decode(bytes: &[u8]) -> Result<Self, IotlbError> {
        let Ok(wire) = Wire::read_from_bytes(bytes) else {
            return Err(IotlbError::Length { len: bytes.len() });
        };
        let Wire { version: VERSION, asid, iova, size, uaddr: user_addr, perm, kind, .. } = wire else {
            return Err(IotlbError::Version(wire.version));
        };
        let check = |first: u64| {
            let beyond = size.checked_sub(1).ok_or(IotlbError::Body("is about no byte"))?;
            let last = first.checked_add(beyond);
            last.map(drop).ok_or(IotlbError::Body("wraps around the end of the addresses"))
        };
        let change = match kind {
            UPDATE => {
                check(iova)?;
                check(user_addr)?;
                let perm = IotlbPerm::from_bits(perm).filter(|perm| !perm.is_empty());
                let perm =
                    perm.ok_or(IotlbError::Body("permits nothing, or what is neither reading nor writing"))?;
                IotlbChange::Update { iova, size, user_addr, perm }
            }
            INVALIDATE => {
                check(iova)?;
                IotlbChange::Invalidate { iova, size }
            }
            BATCH_BEGIN => IotlbChange::BatchBegin,
            BATCH_END => IotlbChange::BatchEnd,
            kind => return Err(IotlbError::Unknown(kind)),
        };
        Ok(Self { asid, change })
    }

    /// The message as it is handed to the kernel by write(2).
    pub fn to_bytes(&self) -> [u8; MESSAGE_LEN] {
        let nothing = IotlbPerm::empty();
        let (kind, iova, size, uaddr, perm) = match self.change {
            IotlbChange::Update { iova, size, user_addr, perm } => (UPDATE, iova, size, user_addr, perm),
            IotlbChange::Invalidate { iova, size } => (INVALIDATE, iova, size, 0, nothing),
            IotlbChange::BatchBegin => (BATCH_BEGIN, 0, 0, 0, nothing),
            IotlbChange::BatchEnd => (BATCH_END, 0, 0, 0, nothing),
        };
        let (asid, perm) = (self.asid, perm.bits());
        zerocopy::transmute!(Wire { version: VERSION, asid, iova, size, uaddr, perm, kind, rest: [0; 38] })
    }
}
