//! A block device with all its queues running.
use super::cell::{BlkCellOptions, BlkError};
use super::load::{Load, Place};
use crate::driver::blk::{BlkQueue, SECTOR};
use crate::driver::{FrontEnd, GuestMemory, MemoryOptions, RingFds, Virtqueue};
use crate::perf::cell::CellError;
use mdev_protocol::vhost_user::{Config, ProtocolFeatures};
use mdev_protocol::virtio::blk::{
    BlkConfig, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
};
use std::path::Path;
use std::time::Duration;
use zerocopy::FromBytes;

/// How long the back-end may take to listen, and for each answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A block device with all its queues running.
pub struct AttachedBlk<Q> {
    /// The connection.
    pub front_end: FrontEnd,
    /// The queues.
    pub loads: Vec<Load<Q>>,
    /// What the rings and buffers lie in.
    _memory: GuestMemory,
}

impl<Q: Virtqueue> AttachedBlk<Q> {
    /// Connects to the back-end at `socket`, shares memory and starts the rings.
    ///
    /// # Errors
    /// [`CellError`]: nobody listens, the back-end refuses or lacks something, no memory.
    pub fn new(socket: &Path, options: &BlkCellOptions) -> Result<Self, CellError> {
        let BlkCellOptions { workload, rings, queues, .. } = options;
        let optional = VIRTIO_BLK_F_RO
            | VIRTIO_BLK_F_BLK_SIZE
            | VIRTIO_BLK_F_FLUSH
            | if *queues > 1 { VIRTIO_BLK_F_MQ } else { 0 };
        let required = workload.required(rings);
        let mut front_end =
            FrontEnd::connect(socket, TIMEOUT, required, optional, FrontEnd::usual_protocol())?;
        let blocks = blocks(&mut front_end, options)?;
        let queue = workload.queue(rings)?;
        let size = (u64::from(*queues) * queue.memory()).saturating_add(1 << 20);
        let mut memory = GuestMemory::new(MemoryOptions { size, ..MemoryOptions::default() })?;
        let share = blocks / u64::from(*queues);
        let mut loads = Vec::with_capacity((*queues).into());
        for number in 0..u64::from(*queues) {
            let fds = RingFds::new().map_err(CellError::EventFd)?;
            let place = Place { all: blocks, first: number * share, count: share };
            loads.push(Load::new(BlkQueue::<Q>::new(&mut memory, queue)?, fds, options, place));
        }
        front_end.share(&memory)?;
        for (number, load) in loads.iter().enumerate() {
            front_end.start(number as u8, load.ring(), load.fds(), &memory)?;
        }
        Ok(AttachedBlk { front_end, loads, _memory: memory })
    }

    /// Stops all rings.
    ///
    /// # Errors
    /// [`CellError`]: no answer.
    pub fn stop(&mut self) -> Result<(), CellError> {
        for ring in 0..self.loads.len() as u8 {
            self.front_end.stop(ring)?;
        }
        Ok(())
    }
}

/// How many blocks of the device are used.
fn blocks(front_end: &mut FrontEnd, options: &BlkCellOptions) -> Result<u64, CellError> {
    let features = front_end.features();
    if features & VIRTIO_BLK_F_RO != 0 && (options.workload.rw.writes() || options.verify) {
        return Err(BlkError::ReadOnly.into());
    }
    let wanted = u64::from(options.queues);
    let mq = wanted > 1 && features & VIRTIO_BLK_F_MQ != 0;
    let offered = match front_end.protocol().contains(ProtocolFeatures::MQ) {
        true if mq => front_end.client().queue_num().map_err(crate::driver::FrontEndError::from)?,
        _ => 1,
    };
    if offered < wanted {
        return Err(BlkError::Queues { offered, wanted }.into());
    }
    let space = Config::new(0, 0, vec![0; BlkConfig::LEN]).map_err(|_| BlkError::NoConfiguration)?;
    let space = front_end.client().config(space).map_err(crate::driver::FrontEndError::from)?;
    let space = space.and_then(|space| BlkConfig::read_from_bytes(space.data()).ok());
    let space = space.ok_or(BlkError::NoConfiguration)?;
    let size = options.workload.size;
    let logical = match features & VIRTIO_BLK_F_BLK_SIZE {
        0 => SECTOR as u32,
        _ => u32::from_le_bytes(space.blk_size).max(1),
    };
    if !size.bytes().is_multiple_of(logical) {
        return Err(BlkError::BlockSize { size, logical }.into());
    }
    let bytes = u64::from_le_bytes(space.capacity).saturating_mul(SECTOR);
    let used = options.span.map_or(bytes, |span| span.min(bytes));
    let blocks = used / u64::from(size.bytes());
    // Requests under way at a time are to different blocks, as long as these are verified.
    if blocks < wanted {
        return Err(BlkError::TooSmall { bytes: used, size, queues: options.queues }.into());
    }
    Ok(blocks)
}
