//! Descriptor chains, read once and laid flat.

use mdev_dma::{GuestSlice, Iova, Perm, SgList};
use mdev_pin::{Burst, ResolveError};

use super::RingError;
use super::layout::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_LEN};

/// Buffers a chain may have, indirect ones included: what QEMU accepts too.
pub const MAX_CHAIN: usize = 1024;

/// Chains a burst may hold.
pub const MAX_BURST: usize = 256;

/// Buffers a burst may hold: one chain of any legal length always fits an empty burst.
const BURST_BUFFERS: usize = 2 * MAX_CHAIN;

/// One contiguous piece of a chain in the device's address space. Its length is not zero; nothing else is known of it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where it starts.
    pub iova: Iova,
    /// Its bytes.
    pub len: u32,
}

/// One chain of the burst: its name for completion, and where its buffers are.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The descriptor it starts at; completes the chain.
    pub head: u16,
    first: u16,
    readable: u16,
    writable: u16,
}

/// A descriptor as it was read, once.
#[derive(Copy, Clone)]
struct Descriptor {
    iova: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    #[inline(always)]
    fn read(table: &GuestSlice<'_>, index: u16) -> Option<Self> {
        let at = usize::from(index).wrapping_mul(DESC_LEN);
        let iova = u64::from_le(table.read::<u64>(at)?);
        let rest = u64::from_le(table.read::<u64>(at.wrapping_add(8))?);
        Some(Self::from_words(iova, rest))
    }

    #[inline(always)]
    fn from_words(iova: u64, rest: u64) -> Self {
        Self { iova, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }
}

/// Why a walk ended early.
enum Stop {
    /// No room is left in this burst; the next one starts with this chain.
    Full,
    Bad(RingError),
}

impl From<RingError> for Stop {
    fn from(error: RingError) -> Self {
        Stop::Bad(error)
    }
}

impl From<ResolveError> for Stop {
    fn from(error: ResolveError) -> Self {
        Stop::Bad(error.into())
    }
}

/// The chains of one burst. Made once per ring and used again for every burst.
#[derive(Debug)]
pub(super) struct Chains {
    chains: Box<[Chain]>,
    buffers: Box<[Buffer]>,
    taken: usize,
    filled: usize,
}

/// What a walk needs to know of the ring.
pub(super) struct Source<'a, 'b> {
    pub burst: &'a Burst<'b>,
    pub table: GuestSlice<'a>,
    pub size: u16,
    pub indirect: bool,
}

impl Chains {
    pub(super) fn new() -> Self {
        Self {
            chains: vec![Chain::default(); MAX_BURST].into_boxed_slice(),
            buffers: vec![Buffer { iova: Iova(0), len: 0 }; BURST_BUFFERS].into_boxed_slice(),
            taken: 0,
            filled: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        self.taken = 0;
        self.filled = 0;
    }

    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.taken
    }

    #[inline(always)]
    pub(super) fn get(&self, index: usize) -> Option<Chain> {
        if index < self.taken { self.chains.get(index).copied() } else { None }
    }

    /// Forgets the last `count` chains.
    pub(super) fn drop_last(&mut self, count: usize) {
        self.taken = self.taken.saturating_sub(count);
        self.filled = match self.taken.checked_sub(1).and_then(|last| self.chains.get(last)) {
            Some(last) => last.end(),
            None => 0,
        };
    }

    #[inline(always)]
    pub(super) fn readable(&self, chain: &Chain) -> &[Buffer] {
        let first = usize::from(chain.first);
        self.buffers.get(first..first.wrapping_add(usize::from(chain.readable))).unwrap_or_default()
    }

    #[inline(always)]
    pub(super) fn writable(&self, chain: &Chain) -> &[Buffer] {
        let first = usize::from(chain.first).wrapping_add(usize::from(chain.readable));
        self.buffers.get(first..first.wrapping_add(usize::from(chain.writable))).unwrap_or_default()
    }

    /// Adds the chains that start at `heads`, up to the first that is malformed or does not fit, and says how many.
    ///
    /// # Errors
    /// What is wrong with the very first chain. A malformed chain behind good ones is reported when its turn comes.
    #[inline(always)]
    pub(super) fn take(
        &mut self,
        source: &Source<'_, '_>,
        heads: impl Iterator<Item = Option<u16>>,
    ) -> Result<usize, RingError> {
        let before = self.taken;
        for head in heads {
            match self.push(source, head) {
                Ok(()) => {}
                Err(Stop::Bad(error)) if self.taken == before => return Err(error),
                Err(Stop::Full | Stop::Bad(_)) => break,
            }
        }
        Ok(self.taken.wrapping_sub(before))
    }

    #[inline(always)]
    fn push(&mut self, source: &Source<'_, '_>, head: Option<u16>) -> Result<(), Stop> {
        let head = head.ok_or(RingError::Memory(ResolveError::Hole))?;
        let desc = Descriptor::read(&source.table, head)
            .ok_or(RingError::HeadOutOfRange { head, size: source.size })?;
        let chain = self.chains.get_mut(self.taken).ok_or(Stop::Full)?;
        let rest = self.buffers.get_mut(self.filled..).unwrap_or_default();
        if desc.flags & (DESC_F_NEXT | DESC_F_INDIRECT) == 0 {
            let buffer = rest.first_mut().ok_or(Stop::Full)?;
            if desc.len == 0 {
                return Err(RingError::ZeroLength.into());
            }
            *buffer = Buffer { iova: Iova(desc.iova), len: desc.len };
            let writable = u16::from(desc.flags & DESC_F_WRITE != 0);
            *chain = Chain { head, first: self.filled as u16, readable: writable ^ 1, writable };
            self.filled = self.filled.wrapping_add(1);
        } else {
            let mut walk = Walk { out: rest, count: 0, readable: 0, bytes: 0 };
            walk.chain(source, desc)?;
            let (count, readable) = (walk.count, walk.readable);
            let writable = count.wrapping_sub(readable) as u16;
            *chain = Chain { head, first: self.filled as u16, readable: readable as u16, writable };
            self.filled = self.filled.wrapping_add(count);
        }
        self.taken = self.taken.wrapping_add(1);
        Ok(())
    }
}

impl Chain {
    /// Whether no buffer is for the device to read.
    #[inline(always)]
    pub fn is_write_only(&self) -> bool {
        self.readable == 0
    }

    fn end(&self) -> usize {
        usize::from(self.first)
            .wrapping_add(usize::from(self.readable))
            .wrapping_add(usize::from(self.writable))
    }
}

/// A chain of several descriptors on its way into the burst.
struct Walk<'o> {
    out: &'o mut [Buffer],
    count: usize,
    readable: usize,
    bytes: u64,
}

impl Walk<'_> {
    #[inline]
    fn chain(&mut self, source: &Source<'_, '_>, first: Descriptor) -> Result<(), Stop> {
        let mut desc = first;
        // Each round follows one link; a chain that visits more descriptors than there are runs in a circle.
        for _ in 0..source.size {
            if desc.flags & DESC_F_INDIRECT != 0 {
                if desc.flags & DESC_F_NEXT != 0 {
                    return Err(RingError::IndirectAndNext.into());
                }
                if !source.indirect {
                    return Err(RingError::IndirectRefused.into());
                }
                return self.indirect(source.burst, Iova(desc.iova), desc.len);
            }
            self.buffer(desc)?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            desc = Descriptor::read(&source.table, desc.next)
                .ok_or(RingError::NextOutOfRange { next: desc.next, size: source.size })?;
        }
        Err(RingError::Loop { size: source.size }.into())
    }

    /// A table of its own, in guest memory: read once, never twice.
    fn indirect(&mut self, burst: &Burst<'_>, iova: Iova, len: u32) -> Result<(), Stop> {
        let bytes = len as usize;
        if bytes == 0 || !bytes.is_multiple_of(DESC_LEN) || bytes > MAX_CHAIN.wrapping_mul(DESC_LEN) {
            return Err(RingError::IndirectSize { len }.into());
        }
        let size = (bytes / DESC_LEN) as u16;
        let table = match burst.slice(iova, len, Perm::READ) {
            Ok(table) => Table::Whole(table),
            Err(ResolveError::Split) => Table::Split { burst, iova, size },
            Err(error) => return Err(error.into()),
        };
        let mut next = 0;
        for _ in 0..size {
            let desc = table.read(next)?.ok_or(RingError::NextOutOfRange { next, size })?;
            if desc.flags & DESC_F_INDIRECT != 0 {
                return Err(RingError::IndirectNested.into());
            }
            self.buffer(desc)?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            next = desc.next;
        }
        Err(RingError::Loop { size }.into())
    }

    #[inline(always)]
    fn buffer(&mut self, desc: Descriptor) -> Result<(), Stop> {
        if desc.len == 0 {
            return Err(RingError::ZeroLength.into());
        }
        if desc.flags & DESC_F_WRITE == 0 {
            if self.readable != self.count {
                return Err(RingError::ReadAfterWrite.into());
            }
            self.readable = self.readable.wrapping_add(1);
        }
        // At most 1024 lengths of 32 bits: the sum cannot wrap.
        self.bytes = self.bytes.wrapping_add(u64::from(desc.len));
        if self.bytes > u64::from(u32::MAX) {
            return Err(RingError::LengthOverflow.into());
        }
        if self.count >= MAX_CHAIN {
            return Err(RingError::TooLong { limit: MAX_CHAIN }.into());
        }
        let slot = self.out.get_mut(self.count).ok_or(Stop::Full)?;
        *slot = Buffer { iova: Iova(desc.iova), len: desc.len };
        self.count = self.count.wrapping_add(1);
        Ok(())
    }
}

/// An indirect table, in one piece or (at the border of two areas) not.
enum Table<'s, 'b> {
    Whole(GuestSlice<'s>),
    Split { burst: &'s Burst<'b>, iova: Iova, size: u16 },
}

impl Table<'_, '_> {
    #[inline(always)]
    fn read(&self, index: u16) -> Result<Option<Descriptor>, ResolveError> {
        match self {
            Table::Whole(table) => Ok(Descriptor::read(table, index)),
            Table::Split { burst, iova, size } => Self::read_split(burst, *iova, *size, index),
        }
    }

    #[cold]
    fn read_split(
        burst: &Burst<'_>,
        iova: Iova,
        size: u16,
        index: u16,
    ) -> Result<Option<Descriptor>, ResolveError> {
        if index >= size {
            return Ok(None);
        }
        let offset = u64::from(index).saturating_mul(DESC_LEN as u64);
        let at = iova.checked_add(offset).ok_or(ResolveError::Overflow)?;
        let mut pieces = SgList::new();
        burst.sg(at, DESC_LEN as u32, Perm::READ, &mut pieces)?;
        let mut bytes = [0u8; DESC_LEN];
        pieces.copy_to(0, &mut bytes);
        let words = u128::from_le_bytes(bytes);
        Ok(Some(Descriptor::from_words(words as u64, (words >> 64) as u64)))
    }
}
