//! A device each of whose chains is a request to a held store: it has requests in flight for as long as a scenario
//! wants.
//!
//! A chain begins with eight bytes that the device reads, the first byte of the store (little-endian). Behind them are
//! bytes to be written there, or room for bytes to be read from there. The used length says how many bytes were moved;
//! 0 is a failure.
//!
//! Memory is pinned in the burst in which a chain is taken, and the store has the request before that burst ends. The
//! chain is used when the store has ended the request. Other than the engines of devices for guests, this one takes
//! locks and allocates.
use crate::device::{Bell, Device, Enabled, Engine, EventFd, Queue, QueueStats, VirtioDevice};
use crate::ring::{Chain, MAX_BURST, MAX_RING_SIZE, RingError};
use crate::store::held::{Held, Port};
use crate::store::{Completion, Operation, Pins, Request};
use mdev_dma::Perm;
use mdev_pin::Burst;
use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;
use rustix::io::Errno;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Bytes that say where in the store.
pub const HEADER: u32 = 8;

/// Bytes of the configuration space.
const CAPACITY: usize = 8;
/// Bytes of a sector.
const SECTOR: u64 = 512;

/// How a device holds on to memory that is taken away from it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Grip {
    /// It passes for one whose requests the kernel carries out. It can cancel them.
    Kernel,
    /// The same, but its requests cannot be cancelled.
    Stubborn,
    /// It copies by itself, which a store of this process does: memory can be taken away from it.
    Copies,
}

/// A device on a held store, with queues that are independent of each other.
pub struct HeldDevice {
    held: Held,
    grip: Grip,
    queues: Vec<(Arc<EventFd>, Arc<QueueStats>)>,
}

impl HeldDevice {
    /// A device with so many queues.
    pub fn new(held: Held, queues: u16, grip: Grip) -> io::Result<HeldDevice> {
        let queue = |_| Ok((Arc::new(EventFd::new()?), Arc::default()));
        Ok(HeldDevice { held, grip, queues: (0..queues).map(queue).collect::<io::Result<_>>()? })
    }
}

impl Device for HeldDevice {
    fn name(&self) -> &str {
        "held"
    }

    fn queue_count(&self) -> u16 {
        self.queues.len() as u16
    }

    fn gives_memory_to_kernel(&self) -> bool {
        self.grip != Grip::Copies
    }

    fn group(&self, queue: u16) -> u16 {
        queue
    }

    fn queue_stats(&self, queue: u16) -> Option<Arc<QueueStats>> {
        self.queues.get(usize::from(queue)).map(|(_, stats)| stats.clone())
    }
}

impl VirtioDevice for HeldDevice {
    fn device_id(&self) -> u32 {
        2
    }

    fn config_len(&self) -> usize {
        CAPACITY
    }

    fn tracks_in_flight(&self) -> bool {
        true
    }

    fn max_ring_size(&self) -> u16 {
        MAX_RING_SIZE
    }

    fn features(&self) -> u64 {
        VIRTIO_F_VERSION_1
    }

    fn check_features(&self, acked: u64) -> Result<(), String> {
        if acked & VIRTIO_F_VERSION_1 == 0 { Err("VIRTIO_F_VERSION_1 is missing".to_owned()) } else { Ok(()) }
    }

    /// The sectors of the store.
    fn config(&self, offset: u32, out: &mut [u8]) -> Result<(), String> {
        let sectors = (self.held.size() / SECTOR).to_le_bytes();
        let bytes = sectors.get(offset as usize..).and_then(|bytes| bytes.get(..out.len()));
        out.copy_from_slice(bytes.ok_or("the configuration space ends there")?);
        Ok(())
    }

    fn set_config(&self, _offset: u32, _data: &[u8]) -> Result<(), String> {
        Err("the configuration space cannot be written".to_owned())
    }

    fn engine(&self, group: u16, _features: u64) -> Box<dyn Engine> {
        let queue = self.queues.get(usize::from(group));
        Box::new(HeldEngine::new(queue.map(|(bell, _)| self.held.open(bell.clone())), self.grip))
    }

    fn set_mtu(&self, _mtu: u16) -> Result<(), String> {
        Err("it is no network device".to_owned())
    }

    fn rarp(&self, _mac: [u8; 6]) {}

    fn reset(&self) {}
}

/// One queue and its requests.
struct HeldEngine {
    /// None of a group that does not exist.
    port: Option<Port>,
    grip: Grip,
    queue: Option<Queue>,
    /// Counts the starts: a request of an earlier one has no chain any more.
    run: u64,
    /// Requests of this start that the store has.
    flying: usize,
    /// What has ended and the driver does not know yet.
    ended: Vec<Completion>,
    quiesced: bool,
    /// What is cancelled from now on stays recorded, where the ring keeps a log.
    cancelled: bool,
}

impl HeldEngine {
    fn new(port: Option<Port>, grip: Grip) -> Self {
        HeldEngine {
            port,
            grip,
            queue: None,
            run: 0,
            flying: 0,
            ended: Vec::new(),
            quiesced: false,
            cancelled: false,
        }
    }

    /// Takes what the store has ended.
    fn collect(&mut self) {
        let mut ended = Vec::new();
        if let Some(port) = &mut self.port {
            port.take(&mut ended);
        }
        ended.retain(|completion| completion.tag >> 16 == self.run);
        self.flying = self.flying.saturating_sub(ended.len());
        if self.cancelled && self.queue.as_ref().is_some_and(|queue| queue.ring.keeps_log()) {
            ended.retain(|completion| completion.result != Err(Errno::CANCELED));
        }
        self.ended.append(&mut ended);
    }
}

impl Engine for HeldEngine {
    fn start_queue(&mut self, queue: Queue) {
        self.run = self.run.wrapping_add(1);
        (self.flying, self.quiesced, self.cancelled) = (0, false, false);
        self.ended.clear();
        self.queue = Some(queue);
    }

    fn quiesce(&mut self, _index: u16) -> bool {
        self.quiesced = true;
        // The driver of a queue that has failed is told nothing more.
        let told = self.ended.is_empty() || self.queue.as_ref().is_none_or(|queue| queue.failed.is_some());
        self.flying == 0 && told
    }

    fn cancel(&mut self, _index: u16) {
        self.cancelled = true;
        if let Some(port) = self.port.as_mut().filter(|_| self.grip != Grip::Stubborn) {
            port.cancel();
        }
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        self.queue.take_if(|queue| queue.index == index)
    }

    fn bell(&self) -> Option<Bell> {
        self.port.as_ref().map(|port| port.bell().clone() as Bell)
    }

    fn queue_mut(&mut self, index: u16) -> Option<&mut Queue> {
        self.queue.as_mut().filter(|queue| queue.index == index)
    }

    fn poll(&mut self) -> u32 {
        self.collect();
        let Self { port: Some(port), queue: Some(queue), run, flying, ended, quiesced, .. } = self else {
            return 0;
        };
        if !queue.ready() {
            return 0;
        }
        let takes = !*quiesced && queue.switch.get() == Enabled::Yes;
        match serve(queue, port, ended, takes.then_some(*run)) {
            Ok(Served { taken, used, call }) => {
                *flying = flying.saturating_add(taken);
                queue.healed();
                if call {
                    queue.call();
                }
                taken.saturating_add(used) as u32
            }
            Err(error) => {
                queue.trouble(error);
                0
            }
        }
    }

    /// Kicks are always wanted, and each is heard.
    fn arm(&mut self) -> bool {
        self.queue.as_mut().is_some_and(|queue| queue.parked.is_some() && queue.ready())
    }

    fn disarm(&mut self) {}

    fn needs_reset(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.failed.is_some())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let parked = self.queue.as_ref().and_then(Queue::deadline);
        parked.into_iter().chain(self.port.as_ref().and_then(Port::next_deadline)).min()
    }
}

/// What a burst came to.
struct Served {
    /// Chains that are requests now.
    taken: usize,
    /// Chains that were used.
    used: usize,
    call: bool,
}

/// One burst: uses the chains of what has `ended`, and as `run` takes new ones.
fn serve(
    queue: &mut Queue,
    port: &mut Port,
    ended: &mut Vec<Completion>,
    run: Option<u64>,
) -> Result<Served, RingError> {
    let Queue { ring, lane, stats, .. } = queue;
    let burst = lane.enter();
    let mut vring = ring.begin(&burst)?;
    for completion in ended.iter() {
        let bytes = completion.result.unwrap_or_default() as u32;
        vring.complete(completion.tag as u16, bytes)?;
    }
    let (mut requests, mut refused) = (Vec::new(), Vec::new());
    if let Some(run) = run {
        // What cannot be served now waits, and must not keep the driver from hearing of what has ended.
        let took = vring.take(MAX_BURST, |chain| {
            let tag = run << 16 | u64::from(chain.head);
            match request(&burst, chain, tag)? {
                Some(request) => requests.push(request),
                None => refused.push(Completion { tag, result: Err(Errno::INVAL) }),
            }
            Ok(())
        });
        if ended.is_empty() {
            took?;
        }
    }
    let call = vring.publish()?;
    let (taken, used) = (requests.len(), ended.len());
    let bytes = ended.iter().fold(0, |sum: u64, end| sum.saturating_add(end.result.unwrap_or(0)));
    ended.clear();
    ended.append(&mut refused);
    // Before the burst ends: an unmap that has waited for it finds every pin in the store.
    requests.into_iter().for_each(|request| port.submit(request));
    if taken + used > 0 {
        stats.add_burst(used as u64, bytes, 0);
    }
    Ok(Served { taken, used, call })
}

/// The request that a chain is, with its memory pinned; `None` if it is none.
fn request(burst: &Burst<'_>, chain: Chain<'_>, tag: u64) -> Result<Option<Request>, RingError> {
    let Some((header, readable)) = chain.readable.split_first() else { return Ok(None) };
    if header.len != HEADER || readable.is_empty() == chain.writable.is_empty() {
        return Ok(None);
    }
    let offset = burst.slice(header.iova, HEADER, Perm::READ)?.read::<u64>(0).map(u64::from_le);
    let Some(offset) = offset else { return Ok(None) };
    let (operation, buffers, perm) = if readable.is_empty() {
        (Operation::Read, chain.writable, Perm::WRITE)
    } else {
        (Operation::WRITE, readable, Perm::READ)
    };
    let pins = buffers.iter().map(|buffer| burst.pin(buffer.iova, buffer.len, perm));
    let memory = pins.collect::<Result<Pins, _>>()?;
    let len = memory.iter().fold(0, |sum: u64, pin| sum.saturating_add(pin.len() as u64));
    Ok(Some(Request { tag, operation, offset, len, memory }))
}
