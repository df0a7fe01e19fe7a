//! A queue pair as a well-behaved driver uses it: numbered frames out, the same frames back, in order and whole.

use mdev_dma::{GuestSlice, Iova};
use mdev_protocol::virtio::net::NetHeader;
use mdevd::driver::{DriverError, GuestMemory, Part, Piece, RingOptions, SplitQueue};
use mdevd::perf::frames;

/// Bytes of each buffer, one for each descriptor, header included.
pub const BUFFER: u32 = 2048;
const HEADER: u32 = NetHeader::LEN as u32;
/// Frames that are under way at a time: fewer than the smallest ring has room for.
const WINDOW: u64 = 48;

/// The driver's side of a queue pair.
pub struct Port {
    /// The ring that the device fills.
    pub rx: SplitQueue,
    /// The ring that the device empties.
    pub tx: SplitQueue,
    rx_buffers: Part,
    tx_buffers: Part,
    idle: Vec<u16>,
    sent: u64,
    seen: u64,
}

impl Port {
    /// A pair of rings and their buffers in the last region of `memory`. Every receive buffer is offered.
    ///
    /// # Errors
    /// Too little memory.
    pub fn new(memory: &mut GuestMemory, options: RingOptions) -> Result<Port, DriverError> {
        Port::apart(memory, options, |_| {})
    }

    /// The same, where `between` may add a region to the memory after the rings were allocated: the buffers are in
    /// that one.
    ///
    /// # Errors
    /// Too little memory.
    pub fn apart(
        memory: &mut GuestMemory,
        options: RingOptions,
        between: impl FnOnce(&mut GuestMemory),
    ) -> Result<Port, DriverError> {
        let (mut rx, mut tx) = (SplitQueue::new(memory, options)?, SplitQueue::new(memory, options)?);
        between(memory);
        let bytes = u64::from(options.size) * u64::from(BUFFER);
        let (rx_buffers, tx_buffers) = (memory.allocate(bytes, 4096)?, memory.allocate(bytes, 4096)?);
        for head in prepare(&mut rx, &rx_buffers, true)? {
            rx.offer(head)?;
        }
        rx.publish();
        let idle = prepare(&mut tx, &tx_buffers, false)?;
        rx.want_calls(true);
        Ok(Port { rx, tx, rx_buffers, tx_buffers, idle, sent: 0, seen: 0 })
    }

    /// Frames sent, and frames that have come back.
    pub fn frames(&self) -> (u64, u64) {
        (self.sent, self.seen)
    }

    /// Sends what the window and the ring have room for, up to frame `end`; true when the device wants to be kicked.
    ///
    /// # Errors
    /// What the device did wrong.
    pub fn send(&mut self, end: u64) -> Result<bool, DriverError> {
        for _ in 0..self.tx.ready()? {
            let used = self.tx.pop()?;
            self.idle.push(used.head);
        }
        while self.sent < end && self.sent.saturating_sub(self.seen) < WINDOW {
            let Some(head) = self.idle.pop() else { break };
            let len = length(self.sent);
            if let Some(frame) = buffer(&self.tx_buffers, head, HEADER, len) {
                frames::write(&frame, self.sent);
            }
            self.tx.resize_last(head, HEADER + len)?;
            self.tx.offer(head)?;
            self.sent += 1;
        }
        Ok(self.tx.publish())
    }

    /// Takes the frames that have come and offers their buffers again; true when the device wants to be kicked for that.
    ///
    /// # Errors
    /// What the device did wrong.
    ///
    /// # Panics
    /// When a frame is not the next one, or not whole.
    pub fn receive(&mut self) -> Result<bool, DriverError> {
        self.take(|expected, len, frame| {
            let bytes = frame.map(|frame| {
                let mut bytes = vec![0; frame.len()];
                frame.copy_to(&mut bytes);
                bytes
            });
            let right = len == HEADER + length(expected)
                && bytes.as_ref().is_some_and(|bytes| frames::is_ours(bytes, expected));
            assert!(right, "instead of frame {expected} came {len} bytes: {bytes:02x?}");
        })
    }

    /// The same, whatever is in the frames.
    ///
    /// # Errors
    /// What the device did wrong.
    pub fn receive_anything(&mut self) -> Result<bool, DriverError> {
        self.take(|_, _, _| {})
    }

    fn take(&mut self, mut look: impl FnMut(u64, u32, Option<GuestSlice<'_>>)) -> Result<bool, DriverError> {
        for _ in 0..self.rx.ready()? {
            let used = self.rx.pop()?;
            let len = used.len.saturating_sub(HEADER);
            look(self.seen, used.len, buffer(&self.rx_buffers, used.head, HEADER, len));
            self.seen += 1;
            self.rx.offer(used.head)?;
        }
        Ok(self.rx.publish())
    }

    /// Frames that were lost need not be waited for.
    pub fn forgive(&mut self) {
        self.seen = self.sent;
    }
}

/// One chain of one buffer for each descriptor; buffer number and head are the same.
fn prepare(queue: &mut SplitQueue, buffers: &Part, device_writes: bool) -> Result<Vec<u16>, DriverError> {
    let mut heads = Vec::new();
    while let Some(head) = queue.next_head() {
        let at = Iova(buffers.at.0 + u64::from(head) * u64::from(BUFFER));
        if let Some(header) = buffer(buffers, head, 0, HEADER) {
            header.fill(0);
        }
        heads.push(queue.prepare(&[Piece { at, len: BUFFER, device_writes }])?);
    }
    Ok(heads)
}

fn buffer(buffers: &Part, head: u16, from: u32, len: u32) -> Option<GuestSlice<'_>> {
    buffers.range(u64::from(head) * u64::from(BUFFER) + u64::from(from), len.into())
}

/// Bytes of a frame: 60 to 1514, all over.
fn length(number: u64) -> u32 {
    60 + (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 % 1455
}
