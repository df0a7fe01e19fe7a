//! What a chain asks for.
//!
//! A chain is a header of 16 bytes and data that the device reads, then data that it writes and one byte of status. Drivers
//! may cut these bytes into buffers as they like (virtio 1.3, 2.7.4): the header is the first 16 readable bytes, the status
//! the last writable one.

use mdev_dma::{GuestSlice, Iova, Perm, SgList};
use mdev_pin::Burst;
use mdev_protocol::virtio::blk::{
    BlkHeader, BlkRange, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_LEN,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use zerocopy::IntoBytes;

use super::config::MAX_TRANSFER;
use crate::device::DropCause;
use crate::ring::{Buffer, Chain, Direction, RingError};
use crate::store::{Operation, SECTOR};

const HEADER: u32 = BlkHeader::LEN as u32;

/// What requests are checked against.
#[derive(Copy, Clone)]
pub(super) struct Rules {
    /// Bytes of the store.
    pub(super) size: u64,
    pub(super) read_only: bool,
    /// Writes are durable when they end.
    pub(super) write_through: bool,
    /// The features that the driver acknowledged.
    pub(super) features: u64,
    /// Bytes of a discard, and of zeroes, at most.
    pub(super) max_discard: u64,
    pub(super) max_zeroes: u64,
}

/// A chain that was understood as far as its status.
pub(super) struct Asked<'c> {
    /// Where the status goes.
    pub(super) status: Iova,
    /// All bytes that the device may write, the status included.
    pub(super) writable: u32,
    pub(super) what: What<'c>,
}

/// What is to be done.
pub(super) enum What<'c> {
    /// An operation of the store, on `len` bytes from `offset` on, which are those of `data` if it moves any.
    Store { operation: Operation, offset: u64, len: u64, data: Data<'c> },
    /// The device's name goes here.
    Id(Data<'c>),
    /// It fails.
    Refused(Refused),
}

/// Why a request fails before the store sees it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Data that are no whole sectors, or none where there should be some.
    Malformed,
    /// A kind of request, or a flag, that was not offered.
    Unsupported,
    /// Bytes beyond the end of the store, or more than its limits permit.
    OutOfRange,
    /// It would change a device that is read-only.
    ReadOnly,
    /// Its data lie where there is no guest memory, or none that permits it.
    NoMemory,
}

impl Refused {
    pub(super) fn status(self) -> u8 {
        if self == Refused::Unsupported { VIRTIO_BLK_S_UNSUPP } else { VIRTIO_BLK_S_IOERR }
    }

    pub(super) fn cause(self) -> DropCause {
        match self {
            Refused::Malformed => DropCause::Malformed,
            Refused::Unsupported => DropCause::Unsupported,
            Refused::OutOfRange => DropCause::OutOfRange,
            Refused::ReadOnly => DropCause::ReadOnly,
            Refused::NoMemory => DropCause::NoMemory,
        }
    }
}

/// The data of a request: buffers, less the header before them or the status behind them.
#[derive(Copy, Clone)]
pub(super) struct Data<'c> {
    buffers: &'c [Buffer],
    /// Bytes to be left out at the beginning.
    skip: u32,
    /// Bytes.
    pub(super) len: u32,
    pub(super) perm: Perm,
}

impl<'c> Data<'c> {
    const fn none() -> Self {
        Data { buffers: &[], skip: 0, len: 0, perm: Perm::READ }
    }

    /// The pieces, none of which is empty.
    #[inline(always)]
    pub(super) fn pieces(self) -> impl Iterator<Item = Buffer> + use<'c> {
        let Data { buffers, mut skip, len: mut left, .. } = self;
        buffers.iter().filter_map(move |buffer| {
            let before = skip.min(buffer.len);
            skip = skip.wrapping_sub(before);
            let len = buffer.len.wrapping_sub(before).min(left);
            left = left.wrapping_sub(len);
            let iova = Iova(buffer.iova.0.wrapping_add(before.into()));
            (len > 0).then_some(Buffer { iova, len })
        })
    }
}

/// Reads the first bytes of buffers, or of what is behind the header in them.
fn gather(burst: &Burst<'_>, data: Data<'_>, out: &mut [u8]) -> Result<bool, RingError> {
    let mut rest = out;
    let mut pieces = SgList::new();
    for piece in data.pieces() {
        let len = piece.len.min(rest.len() as u32);
        if len == 0 {
            break;
        }
        pieces.clear();
        burst.sg(piece.iova, len, Perm::READ, &mut pieces)?;
        pieces.copy_to(0, rest);
        rest = rest.get_mut(len as usize..).unwrap_or_default();
    }
    Ok(rest.is_empty())
}

/// Reads the header.
#[inline(always)]
fn header(burst: &Burst<'_>, readable: &[Buffer]) -> Result<BlkHeader, RingError> {
    if let [first, ..] = readable
        && first.len >= HEADER
        && let Ok(slice) = burst.slice(first.iova, HEADER, Perm::READ)
        && let Some(header) = slice.read::<BlkHeader>(0)
    {
        return Ok(header);
    }
    scattered_header(burst, readable)
}

#[cold]
fn scattered_header(burst: &Burst<'_>, readable: &[Buffer]) -> Result<BlkHeader, RingError> {
    let mut bytes = [0; BlkHeader::LEN];
    let all = Data { buffers: readable, skip: 0, len: HEADER, perm: Perm::READ };
    if !gather(burst, all, &mut bytes)? {
        return Err(RingError::WrongDirection(Direction::Read));
    }
    Ok(zerocopy::transmute!(bytes))
}

/// Reads a chain.
///
/// # Errors
/// Its header cannot be read, or it has no place for a status. What else is wrong is [`What::Refused`].
#[inline(always)]
pub(super) fn parse<'c>(burst: &Burst<'_>, chain: &Chain<'c>, rules: &Rules) -> Result<Asked<'c>, RingError> {
    let last = chain.writable.last().ok_or(RingError::WrongDirection(Direction::Write))?;
    let status = Iova(last.iova.0.wrapping_add(u64::from(last.len.wrapping_sub(1))));
    let header = header(burst, chain.readable)?;
    // Together less than 4 GiB.
    let bytes = |buffers: &[Buffer]| buffers.iter().fold(0u32, |sum, buffer| sum.wrapping_add(buffer.len));
    let writable = bytes(chain.writable);
    let to_guest =
        Data { buffers: chain.writable, skip: 0, len: writable.wrapping_sub(1), perm: Perm::WRITE };
    let from_guest = || Data {
        buffers: chain.readable,
        skip: HEADER,
        len: bytes(chain.readable).wrapping_sub(HEADER),
        perm: Perm::READ,
    };
    let what = match header.kind() {
        VIRTIO_BLK_T_IN => transfer(Operation::Read, header.sector(), to_guest, rules),
        VIRTIO_BLK_T_OUT => {
            let operation = Operation::Write { durable: rules.write_through };
            transfer(operation, header.sector(), from_guest(), rules)
        }
        other => rare(burst, other, to_guest, from_guest(), rules)?,
    };
    Ok(Asked { status, writable, what })
}

/// A read or write.
#[inline(always)]
fn transfer<'c>(operation: Operation, sector: u64, data: Data<'c>, rules: &Rules) -> What<'c> {
    let len = u64::from(data.len);
    if !len.is_multiple_of(SECTOR) || len == 0 {
        return What::Refused(Refused::Malformed);
    }
    if rules.read_only && operation.changes() {
        return What::Refused(Refused::ReadOnly);
    }
    match within(sector, len, rules.size).filter(|_| len <= MAX_TRANSFER) {
        Some(offset) => What::Store { operation, offset, len, data },
        None => What::Refused(Refused::OutOfRange),
    }
}

/// The first byte of so many from a sector on, if they all lie in the store.
#[inline(always)]
fn within(sector: u64, len: u64, size: u64) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR)?;
    offset.checked_add(len).filter(|end| *end <= size)?;
    Some(offset)
}

/// What is neither a read nor a write.
#[cold]
fn rare<'c>(
    burst: &Burst<'_>,
    kind: u32,
    to_guest: Data<'c>,
    from_guest: Data<'c>,
    rules: &Rules,
) -> Result<What<'c>, RingError> {
    let (feature, max) = match kind {
        VIRTIO_BLK_T_FLUSH => {
            let (operation, data) = (Operation::Flush, Data::none());
            return Ok(What::Store { operation, offset: 0, len: 0, data });
        }
        VIRTIO_BLK_T_GET_ID => {
            let len = to_guest.len.min(VIRTIO_BLK_ID_LEN as u32);
            return Ok(What::Id(Data { len, ..to_guest }));
        }
        VIRTIO_BLK_T_DISCARD => (VIRTIO_BLK_F_DISCARD, rules.max_discard),
        VIRTIO_BLK_T_WRITE_ZEROES => (VIRTIO_BLK_F_WRITE_ZEROES, rules.max_zeroes),
        _ => return Ok(What::Refused(Refused::Unsupported)),
    };
    if rules.features & feature == 0 {
        return Ok(What::Refused(Refused::Unsupported));
    }
    // One range is what the configuration says.
    let mut range = BlkRange::default();
    if from_guest.len as usize != BlkRange::LEN || !gather(burst, from_guest, range.as_mut_bytes())? {
        return Ok(What::Refused(Refused::Malformed));
    }
    let zeroes = kind == VIRTIO_BLK_T_WRITE_ZEROES;
    let unmap = range.flags() & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    if range.flags() & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || unmap && !zeroes {
        return Ok(What::Refused(Refused::Unsupported));
    }
    if rules.read_only {
        return Ok(What::Refused(Refused::ReadOnly));
    }
    let len = u64::from(range.sectors()).saturating_mul(SECTOR);
    let operation = if zeroes {
        Operation::WriteZeroes { unmap, durable: rules.write_through }
    } else {
        Operation::Discard
    };
    Ok(match within(range.sector(), len, rules.size).filter(|_| len <= max) {
        Some(offset) => What::Store { operation, offset, len, data: Data::none() },
        None => What::Refused(Refused::OutOfRange),
    })
}

/// Writes a status where a chain has its place.
#[inline(always)]
pub(super) fn write_status(burst: &Burst<'_>, at: Iova, status: u8) -> Result<(), RingError> {
    let place: GuestSlice<'_> = burst.slice(at, 1, Perm::WRITE)?;
    place.copy_from(&[status]);
    Ok(())
}

/// Writes the device's name.
pub(super) fn write_id(burst: &Burst<'_>, data: Data<'_>, id: &[u8]) -> Result<(), RingError> {
    let mut rest = id;
    let mut pieces = SgList::new();
    for piece in data.pieces() {
        pieces.clear();
        burst.sg(piece.iova, piece.len, Perm::WRITE, &mut pieces)?;
        pieces.copy_from(0, rest.get(..piece.len as usize).unwrap_or(rest));
        rest = rest.get(piece.len as usize..).unwrap_or_default();
    }
    Ok(())
}
