//! Descriptor chains, read once and laid flat.

use mdev_dma::{GuestSlice, Iova, Perm, SgList};
use mdev_pin::{Burst, ResolveError};
use mdev_protocol::virtio::split::{
    Desc, VIRTQ_DESC_F_INDIRECT as INDIRECT, VIRTQ_DESC_F_NEXT as NEXT, VIRTQ_DESC_F_WRITE as WRITE,
};

use super::RingError;

/// Bytes of a descriptor.
const DESC_LEN: usize = size_of::<Desc>();

/// Buffers a chain may have, indirect ones included: what QEMU accepts too.
pub const MAX_CHAIN: usize = 1024;

/// One contiguous piece of a chain in the device's address space. Its length is not zero; nothing else is known of it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where it starts.
    pub iova: Iova,
    /// Its bytes.
    pub len: u32,
}

/// A chain, flat: its name for completion, what the device reads, what it writes.
#[derive(Copy, Clone, Debug)]
pub struct Chain<'a> {
    /// The descriptor it starts at, or its buffer id in a packed ring; completes the chain.
    pub head: u16,
    /// The buffers the device reads, in order.
    pub readable: &'a [Buffer],
    /// The buffers the device writes, in order. Together with the readable ones they are less than 4 GiB.
    pub writable: &'a [Buffer],
}

/// The forms that nearly all chains have.
pub(super) enum Common {
    /// One buffer to read: a frame to send.
    Readable(Buffer),
    /// Two buffers to read: a frame to send, its header apart.
    Readable2([Buffer; 2]),
    /// One buffer to write: room for a frame.
    Writable(Buffer),
}

/// Where chains are read from.
pub(super) struct Source<'a, 'b> {
    pub(super) burst: &'a Burst<'b>,
    pub(super) table: GuestSlice<'a>,
    pub(super) size: u16,
    pub(super) indirect: bool,
}

/// A descriptor as it was read, once: its address, and length, flags and next in one word.
#[derive(Copy, Clone)]
struct Descriptor {
    iova: u64,
    rest: u64,
}

impl Descriptor {
    #[inline(always)]
    fn read(table: &GuestSlice<'_>, index: u16) -> Option<Self> {
        words(table, index).map(Self::new)
    }

    #[inline(always)]
    fn new([iova, rest]: [u64; 2]) -> Self {
        Self { iova, rest }
    }

    #[inline(always)]
    fn len(self) -> u32 {
        self.rest as u32
    }

    /// Whether it has one of these flags.
    #[inline(always)]
    fn has(self, flags: u16) -> bool {
        self.rest & (u64::from(flags) << 32) != 0
    }

    #[inline(always)]
    fn next(self) -> u16 {
        (self.rest >> 48) as u16
    }

    #[inline(always)]
    fn buffer(self) -> Buffer {
        Buffer { iova: Iova(self.iova), len: self.len() }
    }
}

/// The two words of a descriptor, in either format.
#[inline(always)]
fn words(table: &GuestSlice<'_>, index: u16) -> Option<[u64; 2]> {
    let [iova, rest] = table.read::<[u64; 2]>(usize::from(index).wrapping_mul(DESC_LEN))?;
    Some([u64::from_le(iova), u64::from_le(rest)])
}

impl Source<'_, '_> {
    /// Reads the chain at `head` if it has one of the forms that nearly all chains have, and is well-formed: those need no
    /// table of buffers and no walk. What it is not is left to [`Source::chain`], which reads it anew.
    #[inline(always)]
    pub(super) fn common(&self, head: u16) -> Option<Common> {
        let desc = Descriptor::read(&self.table, head)?;
        if desc.len() == 0 {
            return None;
        }
        if desc.has(NEXT | INDIRECT) {
            let second = Descriptor::read(&self.table, desc.next())?;
            let odd = desc.has(WRITE | INDIRECT)
                || second.has(WRITE | INDIRECT | NEXT)
                || second.len() == 0
                || desc.len().checked_add(second.len()).is_none();
            return if odd { None } else { Some(Common::Readable2([desc.buffer(), second.buffer()])) };
        }
        let buffer = desc.buffer();
        Some(if desc.has(WRITE) { Common::Writable(buffer) } else { Common::Readable(buffer) })
    }

    /// Reads the chain at `head`, whatever it is, into `out`.
    ///
    /// # Errors
    /// What is wrong with it.
    #[inline(always)]
    pub(super) fn chain<'o>(&self, head: u16, out: &'o mut [Buffer]) -> Result<Chain<'o>, RingError> {
        let mut desc =
            Descriptor::read(&self.table, head).ok_or(RingError::HeadOutOfRange { head, size: self.size })?;
        // A chain that visits more descriptors than there are runs in a circle.
        let limit = out.len().min(self.size.into());
        let direct = out.get_mut(..limit).unwrap_or_default();
        let mut so_far = Walked::default();
        while !desc.has(INDIRECT) {
            so_far.add(desc.buffer(), desc.has(WRITE), direct, self.size)?;
            if !desc.has(NEXT) {
                return so_far.finish(head, out);
            }
            desc = Descriptor::read(&self.table, desc.next())
                .ok_or(RingError::NextOutOfRange { next: desc.next(), size: self.size })?;
        }
        self.indirect(desc, so_far, out)?.finish(head, out)
    }

    /// The rest of a chain in a table of its own, and what the whole chain comes to.
    #[inline(never)]
    fn indirect(
        &self,
        desc: Descriptor,
        mut so_far: Walked,
        out: &mut [Buffer],
    ) -> Result<Walked, RingError> {
        if desc.has(NEXT) {
            return Err(RingError::IndirectAndNext);
        }
        if !self.indirect {
            return Err(RingError::IndirectRefused);
        }
        let (table, size) = Table::open(self.burst, desc.buffer())?;
        let limit = out.len().min(so_far.count.wrapping_add(size.into()));
        let out = out.get_mut(..limit).unwrap_or_default();
        let mut next = 0;
        loop {
            let words = table.read(next)?.ok_or(RingError::NextOutOfRange { next, size })?;
            let desc = Descriptor::new(words);
            if desc.has(INDIRECT) {
                return Err(RingError::IndirectNested);
            }
            so_far.add(desc.buffer(), desc.has(WRITE), out, size)?;
            if !desc.has(NEXT) {
                return Ok(so_far);
            }
            next = desc.next();
        }
    }
}

/// What a chain has come to so far.
#[derive(Copy, Clone, Default)]
pub(super) struct Walked {
    count: usize,
    readable: usize,
    bytes: u64,
}

impl Walked {
    /// Adds a buffer to `out`. A chain for which `out` has no room is too long, or visits some of the `size` descriptors
    /// of its table twice.
    #[inline(always)]
    pub(super) fn add(
        &mut self,
        buffer: Buffer,
        write: bool,
        out: &mut [Buffer],
        size: u16,
    ) -> Result<(), RingError> {
        if buffer.len == 0 {
            return Err(RingError::ZeroLength);
        }
        let Some(place) = out.get_mut(self.count) else {
            let full = self.count >= MAX_CHAIN;
            return Err(if full { RingError::TooLong } else { RingError::Loop { size } });
        };
        *place = buffer;
        if !write {
            if self.readable != self.count {
                return Err(RingError::ReadAfterWrite);
            }
            self.readable = self.readable.wrapping_add(1);
        }
        self.count = self.count.wrapping_add(1);
        // At most 1024 lengths of 32 bits: the sum cannot wrap.
        self.bytes = self.bytes.wrapping_add(u64::from(buffer.len));
        Ok(())
    }

    /// The finished chain.
    #[inline(always)]
    pub(super) fn finish(self, head: u16, out: &[Buffer]) -> Result<Chain<'_>, RingError> {
        if self.bytes > u64::from(u32::MAX) {
            return Err(RingError::LengthOverflow);
        }
        let all = out.get(..self.count).unwrap_or_default();
        let (readable, writable) = all.split_at_checked(self.readable).unwrap_or_default();
        Ok(Chain { head, readable, writable })
    }
}

/// An indirect table, in one piece or (at the border of two areas) not.
pub(super) enum Table<'s, 'b> {
    Whole(GuestSlice<'s>),
    Split { burst: &'s Burst<'b>, iova: Iova, size: u16 },
}

impl<'s, 'b> Table<'s, 'b> {
    /// The table that an indirect descriptor names, and how many descriptors it has.
    ///
    /// # Errors
    /// A size that cannot be, or memory that is not there.
    pub(super) fn open(burst: &'s Burst<'b>, place: Buffer) -> Result<(Self, u16), RingError> {
        let Buffer { iova, len } = place;
        let bytes = len as usize;
        if bytes == 0 || !bytes.is_multiple_of(DESC_LEN) || bytes > MAX_CHAIN.wrapping_mul(DESC_LEN) {
            return Err(RingError::IndirectSize { len });
        }
        let size = (bytes / DESC_LEN) as u16;
        match burst.slice(iova, len, Perm::READ) {
            Ok(table) => Ok((Table::Whole(table), size)),
            Err(ResolveError::Split) => Ok((Table::Split { burst, iova, size }, size)),
            Err(error) => Err(error.into()),
        }
    }

    /// The two words of a descriptor; nothing behind the last.
    #[inline(always)]
    pub(super) fn read(&self, index: u16) -> Result<Option<[u64; 2]>, ResolveError> {
        match self {
            Table::Whole(table) => Ok(words(table, index)),
            Table::Split { burst, iova, size } => read_split(burst, *iova, *size, index),
        }
    }
}

/// A descriptor of a table that is not contiguous here. It may itself be cut in two.
#[cold]
fn read_split(
    burst: &Burst<'_>,
    table: Iova,
    size: u16,
    index: u16,
) -> Result<Option<[u64; 2]>, ResolveError> {
    if index >= size {
        return Ok(None);
    }
    let offset = u64::from(index).saturating_mul(DESC_LEN as u64);
    let at = table.checked_add(offset).ok_or(ResolveError::Overflow)?;
    let mut pieces = SgList::new();
    burst.sg(at, DESC_LEN as u32, Perm::READ, &mut pieces)?;
    let mut bytes = [0u8; DESC_LEN];
    pieces.copy_to(0, &mut bytes);
    let words = u128::from_le_bytes(bytes);
    Ok(Some([words as u64, (words >> 64) as u64]))
}
