//! A network device's queues, as its driver sees them: receive buffers that go round, transmit buffers that were
//! written once.
use super::error::DriverError;
use super::memory::{GuestMemory, Part};
use super::split::SplitQueue;
use super::virtqueue::{Piece, RingOptions, Used, Virtqueue};
use mdev_dma::{GuestSlice, Iova};
use mdev_protocol::virtio::net::NetHeader;
use smallvec::SmallVec;
use std::collections::VecDeque;

/// Bytes of the header before each packet.
pub const HEADER_LEN: usize = NetHeader::LEN;
/// Buffers start this much further apart than their size: an odd number of lines, so that the first lines of all buffers
/// do not compete for a few sets of the caches.
const SKEW: u64 = 64;
/// How many buffers are on their way from the other core before one is used: about what a processor fetches at a time.
const AHEAD: usize = 16;

/// How a packet's buffer is described to the device.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Header and frame in one descriptor.
    Joined,
    /// The header in a descriptor of its own. With [`RingOptions::indirect`] the two are in a table.
    Split,
}

/// Buffers of one size, one for each descriptor of a ring.
struct Buffers {
    part: Part,
    stride: u64,
    /// Bytes of each, header included.
    capacity: u32,
}

impl Buffers {
    fn new(memory: &mut GuestMemory, count: u16, capacity: u32) -> Result<Self, DriverError> {
        let stride = u64::from(capacity).next_multiple_of(128) + SKEW;
        let part = memory.allocate(stride * u64::from(count), 4096)?;
        Ok(Buffers { part, stride, capacity })
    }

    /// All of them, to be looked into with [`Buffers::one`] any number of times.
    #[inline]
    fn all(&self) -> Option<GuestSlice<'_>> {
        self.part.slice()
    }

    /// Buffer `number` of all.
    #[inline(always)]
    fn one<'g>(&self, all: &GuestSlice<'g>, number: u16) -> Option<GuestSlice<'g>> {
        all.subslice(usize::from(number) * self.stride as usize, self.capacity as usize)
    }

    #[inline]
    fn slice(&self, number: u16) -> Option<GuestSlice<'_>> {
        self.one(&self.all()?, number)
    }

    /// The pieces of buffer `number` when it holds `len` bytes, header included.
    fn pieces(&self, number: u16, len: u32, layout: Layout, device_writes: bool) -> SmallVec<[Piece; 2]> {
        let at = self.part.at.0 + u64::from(number) * self.stride;
        let piece = |offset: u32, len| Piece { at: Iova(at + u64::from(offset)), len, device_writes };
        let header = HEADER_LEN as u32;
        match layout {
            Layout::Joined => smallvec::smallvec![piece(0, len)],
            Layout::Split => smallvec::smallvec![piece(0, header), piece(header, len.saturating_sub(header))],
        }
    }
}

/// What buffers a queue has.
#[derive(Copy, Clone, Debug)]
pub struct QueueOptions {
    /// The ring.
    pub ring: RingOptions,
    /// How buffers are described.
    pub layout: Layout,
    /// Bytes of each buffer, header included.
    pub capacity: u32,
    /// `VIRTIO_NET_F_MRG_RXBUF` was negotiated (receive queues only).
    pub mergeable: bool,
}

impl QueueOptions {
    /// A ring of `size` without any feature, mergeable buffers of 2 KiB in one descriptor each.
    pub fn plain(size: u16) -> Self {
        QueueOptions {
            ring: RingOptions::plain(size),
            layout: Layout::Joined,
            capacity: 2048,
            mergeable: true,
        }
    }
}

/// A received packet; valid until its buffers are offered again.
pub struct Packet<'q> {
    /// The first buffer, as far as it is filled: at least a header.
    first: GuestSlice<'q>,
    /// The rest of a frame that spans several buffers.
    rest: SmallVec<[GuestSlice<'q>; 4]>,
}

impl<'q> Packet<'q> {
    /// Its header.
    pub fn header(&self) -> NetHeader {
        self.first.read(0).unwrap_or_default()
    }

    /// The frame, or its beginning if it spans several buffers.
    #[inline(always)]
    pub fn frame(&self) -> GuestSlice<'q> {
        self.first.subslice(HEADER_LEN, self.first.len().saturating_sub(HEADER_LEN)).unwrap_or(self.first)
    }

    /// Bytes of the whole frame.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.rest.iter().fold(self.first.len().saturating_sub(HEADER_LEN), |sum, piece| sum + piece.len())
    }

    /// Whether the frame has no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole frame's bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        let mut done = 0;
        for piece in std::iter::once(&self.frame()).chain(&self.rest) {
            done += piece.copy_to(bytes.get_mut(done..).unwrap_or_default());
        }
        bytes
    }
}

/// A receive queue: all its buffers are offered to the device, received ones are offered again at once.
pub struct RxQueue<Q = SplitQueue> {
    /// The ring, for whatever goes beyond the methods here.
    pub queue: Q,
    buffers: Buffers,
    options: QueueOptions,
    /// What one call takes from the ring; kept for its memory.
    used: Vec<Used>,
}

impl RxQueue {
    /// A queue on a split ring and its buffers, none of them offered yet.
    ///
    /// # Errors
    /// [`DriverError::Size`], [`DriverError::Memory`].
    pub fn new(memory: &mut GuestMemory, options: QueueOptions) -> Result<Self, DriverError> {
        Self::on_ring(memory, options)
    }
}

impl<Q: Virtqueue> RxQueue<Q> {
    /// The same on a ring of any format.
    ///
    /// # Errors
    /// [`DriverError::Size`], [`DriverError::Memory`].
    pub fn on_ring(memory: &mut GuestMemory, options: QueueOptions) -> Result<Self, DriverError> {
        let mut queue = Q::new(memory, options.ring)?;
        let buffers = Buffers::new(memory, options.ring.size, options.capacity)?;
        prepare_all(&mut queue, &buffers, options, true)?;
        Ok(RxQueue { queue, buffers, options, used: Vec::new() })
    }

    /// Offers every buffer that the driver holds, without publishing; how many those were.
    ///
    /// # Errors
    /// None, unless the ring was changed by other means.
    pub fn offer_all(&mut self) -> Result<u16, DriverError> {
        let held = self.queue.held_heads();
        self.queue.offer_each(held.iter().copied())?;
        Ok(held.len() as u16)
    }

    /// Hands up to `limit` received packets to `each` and offers their buffers again, without publishing. `each` gets the head
    /// of the packet's first buffer too. Returns the number of packets.
    ///
    /// # Errors
    /// [`DriverError`], whatever the device did wrong.
    #[inline]
    pub fn receive(
        &mut self,
        limit: u32,
        mut each: impl FnMut(u16, &Packet<'_>),
    ) -> Result<u32, DriverError> {
        let Self { queue, buffers, options, used } = self;
        let Some(all) = buffers.all() else { return Ok(0) };
        let ready = queue.ready()?;
        let count = ready.min(u16::try_from(limit).unwrap_or(u16::MAX));
        used.clear();
        queue.pop_each(count, |entry| {
            if used.len() < AHEAD
                && let Some(buffer) = buffers.one(&all, entry.head)
            {
                buffer.prefetch_read(0);
            }
            used.push(entry);
        })?;
        let mut spare = ready - count;
        let mut packets = 0;
        let mut next = 0;
        while let Some(&entry) = used.get(next) {
            if let Some(later) = used.get(next + AHEAD).and_then(|later| buffers.one(&all, later.head)) {
                later.prefetch_read(0);
            }
            next += 1;
            let wrong = DriverError::UsedLength { len: entry.len, capacity: buffers.capacity };
            let filled = |entry: Used| buffers.one(&all, entry.head)?.subslice(0, entry.len as usize);
            let Some(first) = filled(entry).filter(|first| first.len() >= HEADER_LEN) else {
                return Err(wrong);
            };
            let mut packet = Packet { first, rest: SmallVec::new() };
            let spans =
                if options.mergeable { first.read(NetHeader::NUM_BUFFERS_OFFSET).unwrap_or(1) } else { 1u16 };
            if spans > 1 {
                let others = usize::from(spans) - 1;
                let missing = others.saturating_sub(used.len() - next);
                if missing > usize::from(spare) {
                    let used = (used.len() - next) as u16 + spare + 1;
                    return Err(DriverError::TornPacket { wanted: spans, used });
                }
                queue.pop_each(missing as u16, |entry| used.push(entry))?;
                spare -= missing as u16;
                for &other in used.iter().skip(next).take(others) {
                    let capacity = buffers.capacity;
                    let piece = filled(other).ok_or(DriverError::UsedLength { len: other.len, capacity })?;
                    packet.rest.push(piece);
                }
                next += others;
            }
            each(entry.head, &packet);
            packets += 1;
        }
        queue.offer_each(used.iter().map(|entry| entry.head))?;
        Ok(packets)
    }
}

/// A transmit queue: buffers are filled when they are sent and come back when the device has read them.
pub struct TxQueue<Q = SplitQueue> {
    /// The ring, for whatever goes beyond the methods here.
    pub queue: Q,
    buffers: Buffers,
    /// Heads of buffers that may be filled, in the order in which they came back.
    idle: VecDeque<u16>,
    /// What one call sends; kept for its memory.
    chosen: Vec<u16>,
    /// Bytes that each chain describes now.
    lengths: Vec<u32>,
}

impl TxQueue {
    /// A queue on a split ring and its buffers, their headers zero: an ordinary packet without offloads.
    ///
    /// # Errors
    /// [`DriverError::Size`], [`DriverError::Memory`].
    pub fn new(memory: &mut GuestMemory, options: QueueOptions) -> Result<Self, DriverError> {
        Self::on_ring(memory, options)
    }
}

impl<Q: Virtqueue> TxQueue<Q> {
    /// The same on a ring of any format.
    ///
    /// # Errors
    /// [`DriverError::Size`], [`DriverError::Memory`].
    pub fn on_ring(memory: &mut GuestMemory, options: QueueOptions) -> Result<Self, DriverError> {
        let mut queue = Q::new(memory, options.ring)?;
        let buffers = Buffers::new(memory, options.ring.size, options.capacity)?;
        let idle = prepare_all(&mut queue, &buffers, options, false)?;
        let lengths = vec![options.capacity; options.ring.size.into()];
        Ok(TxQueue { queue, buffers, idle: idle.into(), chosen: Vec::new(), lengths })
    }

    /// Takes up to `limit` buffers back that the device has read, telling `each` their heads; how many they were.
    ///
    /// # Errors
    /// [`DriverError`], whatever the device did wrong.
    #[inline]
    pub fn reclaim(&mut self, limit: u32, mut each: impl FnMut(u16)) -> Result<u32, DriverError> {
        let count = self.queue.ready()?.min(u16::try_from(limit).unwrap_or(u16::MAX));
        let idle = &mut self.idle;
        self.queue.pop_each(count, |used| {
            each(used.head);
            idle.push_back(used.head);
        })?;
        Ok(count.into())
    }

    /// Buffers that can be sent.
    #[inline]
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Offers up to `count` packets, without publishing. `fill` gets a buffer's head and the place of the frame, whose
    /// first bytes it fills, and returns how many. Returns the number of packets, which is less where buffers are out.
    ///
    /// # Errors
    /// [`DriverError::UsedLength`]: `fill` returned more than the buffer holds; nothing is offered then, and the buffers
    /// are not idle any more.
    #[inline]
    pub fn send(
        &mut self,
        count: u32,
        mut fill: impl FnMut(u16, &GuestSlice<'_>) -> u32,
    ) -> Result<u32, DriverError> {
        let Self { queue, buffers, idle, chosen, lengths } = self;
        let Some(all) = buffers.all() else { return Ok(0) };
        let (capacity, header) = (buffers.capacity, HEADER_LEN as u32);
        let count = idle.len().min(count as usize);
        chosen.clear();
        if queue.options().in_order {
            chosen.extend(idle.drain(..count));
        } else {
            // What came back last is the warmest.
            chosen.extend(idle.drain(idle.len() - count..));
        }
        let fetch = |head: &u16| {
            if let Some(buffer) = buffers.one(&all, *head) {
                buffer.prefetch_write(HEADER_LEN);
            }
        };
        chosen.iter().take(AHEAD).for_each(fetch);
        for (position, &head) in chosen.iter().enumerate() {
            chosen.get(position + AHEAD).into_iter().for_each(fetch);
            let frame = buffers
                .one(&all, head)
                .and_then(|whole| whole.subslice(HEADER_LEN, (capacity - header) as usize));
            let bytes = frame.map_or(0, |frame| fill(head, &frame));
            let len = header.saturating_add(bytes);
            if len > capacity {
                return Err(DriverError::UsedLength { len, capacity });
            }
            // The chain describes so many bytes; nothing is written if it already does.
            if let Some(now) = lengths.get_mut(usize::from(head))
                && *now != len
            {
                *now = len;
                queue.resize_last(head, if queue.pieces(head) > 1 { bytes } else { len })?;
            }
        }
        queue.offer_each(chosen.iter().copied())?;
        Ok(chosen.len() as u32)
    }

    /// Every buffer's frame, sent or not, with its head: to fill them before a run.
    pub fn frames(&self) -> impl Iterator<Item = (u16, GuestSlice<'_>)> {
        let heads = 0..self.lengths.len() as u16;
        heads.filter_map(|head| {
            let whole = self.buffers.slice(head)?;
            Some((head, whole.subslice(HEADER_LEN, whole.len() - HEADER_LEN)?))
        })
    }

    /// Starts anew after a reset of the device: see [`SplitQueue::reset`].
    pub fn reset(&mut self) {
        self.queue.reset();
        self.idle = self.queue.held_heads().into();
    }
}

/// Prepares a chain for as many buffers as there are descriptors for; buffer number and head are the same. The headers are
/// zeroed. Returns the heads.
fn prepare_all(
    queue: &mut impl Virtqueue,
    buffers: &Buffers,
    options: QueueOptions,
    device_writes: bool,
) -> Result<Vec<u16>, DriverError> {
    let mut heads = Vec::with_capacity(options.ring.size.into());
    while let Some(head) = queue.next_head() {
        let pieces = buffers.pieces(head, options.capacity, options.layout, device_writes);
        match queue.prepare(&pieces) {
            Ok(head) => heads.push(head),
            // The last descriptor of a ring whose chains take two.
            Err(DriverError::NoDescriptors { .. }) => break,
            Err(error) => return Err(error),
        }
        if let Some(slice) = buffers.slice(head) {
            let _ = slice.write(0, NetHeader::default());
        }
    }
    Ok(heads)
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
