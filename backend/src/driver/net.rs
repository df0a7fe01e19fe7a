//! A network device's queues, as its driver sees them: receive buffers that go round, transmit buffers that were
//! written once.
use super::memory::{GuestMemory, Part};
use super::split::{DriverError, Piece, RingOptions, SplitQueue};
use mdev_dma::{GuestSlice, Iova};
use mdev_protocol::virtio::net::NetHeader;
use smallvec::SmallVec;

/// Bytes of the header before each packet.
pub const HEADER_LEN: usize = NetHeader::LEN;
/// Buffers start this much further apart than their size: an odd number of lines, so that the first lines of all buffers
/// do not compete for a few sets of the caches.
const SKEW: u64 = 64;

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

    #[inline]
    fn slice(&self, number: u16) -> Option<GuestSlice<'_>> {
        self.part.range(u64::from(number) * self.stride, self.capacity.into())
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
    /// Its header.
    pub header: NetHeader,
    /// The frame, or its beginning if it spans several buffers.
    pub frame: GuestSlice<'q>,
    /// The rest of a frame that spans several buffers.
    pub rest: SmallVec<[GuestSlice<'q>; 4]>,
}

impl Packet<'_> {
    /// Bytes of the whole frame.
    #[inline]
    pub fn len(&self) -> usize {
        self.rest.iter().fold(self.frame.len(), |sum, piece| sum + piece.len())
    }

    /// Whether the frame has no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The whole frame's bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        let mut done = 0;
        for piece in std::iter::once(&self.frame).chain(&self.rest) {
            done += piece.copy_to(bytes.get_mut(done..).unwrap_or_default());
        }
        bytes
    }
}

/// A receive queue: all its buffers are offered to the device, received ones are offered again at once.
pub struct RxQueue {
    /// The ring, for whatever goes beyond the methods here.
    pub queue: SplitQueue,
    buffers: Buffers,
    options: QueueOptions,
}

impl RxQueue {
    /// A queue and its buffers, none of them offered yet.
    ///
    /// # Errors
    /// [`DriverError::Size`], [`DriverError::Memory`].
    pub fn new(memory: &mut GuestMemory, options: QueueOptions) -> Result<Self, DriverError> {
        let mut queue = SplitQueue::new(memory, options.ring)?;
        let buffers = Buffers::new(memory, options.ring.size, options.capacity)?;
        prepare_all(&mut queue, &buffers, options, true)?;
        Ok(RxQueue { queue, buffers, options })
    }

    /// Offers every buffer that the driver holds, without publishing; how many those were.
    ///
    /// # Errors
    /// None, unless the ring was changed by other means.
    pub fn offer_all(&mut self) -> Result<u16, DriverError> {
        let held: Vec<u16> = self.queue.held_heads().collect();
        for &head in &held {
            self.queue.offer(head)?;
        }
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
        let mut ready = self.queue.ready()?;
        let mut packets = 0;
        while ready > 0 && packets < limit {
            let used = self.queue.pop()?;
            ready -= 1;
            let capacity = self.buffers.capacity;
            let wrong = DriverError::UsedLength { len: used.len, capacity };
            let Some(slice) =
                self.buffers.slice(used.head).and_then(|slice| slice.subslice(0, used.len as usize))
            else {
                return Err(wrong);
            };
            let Some(header) = slice.read::<NetHeader>(0) else { return Err(wrong) };
            let Some(frame) = slice.subslice(HEADER_LEN, slice.len() - HEADER_LEN) else { return Err(wrong) };
            let mut packet = Packet { header, frame, rest: SmallVec::new() };
            let spans = if self.options.mergeable { header.num_buffers } else { 1 };
            if spans > 1 {
                let others = spans - 1;
                if others > ready {
                    return Err(DriverError::TornPacket { wanted: spans, used: ready + 1 });
                }
                ready -= others;
                let mut heads = SmallVec::<[u16; 8]>::new();
                for _ in 0..others {
                    let next = self.queue.pop()?;
                    let piece =
                        self.buffers.slice(next.head).and_then(|slice| slice.subslice(0, next.len as usize));
                    packet.rest.push(piece.ok_or(DriverError::UsedLength { len: next.len, capacity })?);
                    heads.push(next.head);
                }
                each(used.head, &packet);
                self.queue.offer(used.head)?;
                for head in heads {
                    self.queue.offer(head)?;
                }
            } else {
                each(used.head, &packet);
                self.queue.offer(used.head)?;
            }
            packets += 1;
        }
        Ok(packets)
    }
}

/// A transmit queue: buffers are filled when they are sent and come back when the device has read them.
pub struct TxQueue {
    /// The ring, for whatever goes beyond the methods here.
    pub queue: SplitQueue,
    buffers: Buffers,
    /// Heads of buffers that may be filled, the one that came back last on top: it is the warmest.
    idle: Vec<u16>,
    /// Bytes that each chain describes now.
    lengths: Vec<u32>,
}

impl TxQueue {
    /// A queue and its buffers, their headers zero: an ordinary packet without offloads.
    ///
    /// # Errors
    /// [`DriverError::Size`], [`DriverError::Memory`].
    pub fn new(memory: &mut GuestMemory, options: QueueOptions) -> Result<Self, DriverError> {
        let mut queue = SplitQueue::new(memory, options.ring)?;
        let buffers = Buffers::new(memory, options.ring.size, options.capacity)?;
        let idle = prepare_all(&mut queue, &buffers, options, false)?;
        Ok(TxQueue { queue, buffers, idle, lengths: vec![options.capacity; options.ring.size.into()] })
    }

    /// Takes up to `limit` buffers back that the device has read, telling `each` their heads; how many they were.
    ///
    /// # Errors
    /// [`DriverError`], whatever the device did wrong.
    #[inline]
    pub fn reclaim(&mut self, limit: u32, mut each: impl FnMut(u16)) -> Result<u32, DriverError> {
        let count = u32::from(self.queue.ready()?).min(limit);
        for _ in 0..count {
            let used = self.queue.pop()?;
            each(used.head);
            self.idle.push(used.head);
        }
        Ok(count)
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
    /// [`DriverError::UsedLength`]: `fill` returned more than the buffer holds.
    #[inline]
    pub fn send(
        &mut self,
        count: u32,
        mut fill: impl FnMut(u16, &GuestSlice<'_>) -> u32,
    ) -> Result<u32, DriverError> {
        let mut sent = 0;
        while sent < count {
            let Some(&head) = self.idle.last() else { break };
            let capacity = self.buffers.capacity;
            let header = HEADER_LEN as u32;
            let frame = self
                .buffers
                .slice(head)
                .and_then(|whole| whole.subslice(HEADER_LEN, (capacity - header) as usize));
            let Some(frame) = frame else { break };
            let bytes = fill(head, &frame);
            let len = header.saturating_add(bytes);
            if len > capacity {
                return Err(DriverError::UsedLength { len, capacity });
            }
            self.describe(head, len)?;
            self.idle.pop();
            self.queue.offer(head)?;
            sent += 1;
        }
        Ok(sent)
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
        self.idle = self.queue.held_heads().collect();
    }

    /// Makes the chain describe `len` bytes, header included; nothing is written if it already does.
    #[inline]
    fn describe(&mut self, head: u16, len: u32) -> Result<(), DriverError> {
        let pieces = self.queue.pieces(head);
        match self.lengths.get_mut(usize::from(head)) {
            Some(now) if *now != len => {
                *now = len;
                let header = HEADER_LEN as u32;
                self.queue.resize_last(head, if pieces > 1 { len - header } else { len })
            }
            _ => Ok(()),
        }
    }
}

/// Prepares a chain for as many buffers as there are descriptors for; buffer number and head are the same. The headers are
/// zeroed. Returns the heads.
fn prepare_all(
    queue: &mut SplitQueue,
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
    heads.reverse();
    Ok(heads)
}

#[cfg(test)]
#[path = "net_tests.rs"]
mod tests;
