//! A block device with all its queues running.
use super::cell::{BlkCellOptions, BlkError};
use super::load::{Load, Place};
use super::requests::Kicked;
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

/// The end of the connection that is not a queue.
pub trait Front {
    /// Whether the device has closed the connection or died. Does not wait.
    fn is_gone(&self) -> bool;

    /// Stops all of so many queues.
    ///
    /// # Errors
    /// [`CellError`]: no answer.
    fn stop(&mut self, queues: u16) -> Result<(), CellError>;
}

impl Front for FrontEnd {
    fn is_gone(&self) -> bool {
        self.peer_is_gone()
    }

    fn stop(&mut self, queues: u16) -> Result<(), CellError> {
        for ring in 0..queues as u8 {
            FrontEnd::stop(self, ring)?;
        }
        Ok(())
    }
}

/// A block device with all its queues running.
pub struct Attached<F, R> {
    /// The connection.
    pub front: F,
    /// The queues.
    pub loads: Vec<Load<R>>,
    /// What the rings and buffers lie in, if the connection does not own it.
    _memory: Option<GuestMemory>,
}

impl<F: Front, R> Attached<F, R> {
    /// Queues that run, and what else there is to keep.
    pub(super) fn of(front: F, loads: Vec<Load<R>>, memory: Option<GuestMemory>) -> Self {
        Attached { front, loads, _memory: memory }
    }

    /// Stops all queues.
    ///
    /// # Errors
    /// [`CellError`]: no answer.
    pub fn stop(&mut self) -> Result<(), CellError> {
        self.front.stop(self.loads.len() as u16)
    }
}

impl<Q: Virtqueue> Attached<FrontEnd, Kicked<Q>> {
    /// Connects to the back-end at `socket`, shares memory and starts the rings.
    ///
    /// # Errors
    /// [`CellError`]: nobody listens, the back-end refuses or lacks something, no memory.
    pub fn virtio(socket: &Path, options: &BlkCellOptions) -> Result<Self, CellError> {
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
        Ok(Attached::of(front_end, loads, Some(memory)))
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
    Ok(options.blocks(u64::from_le_bytes(space.capacity).saturating_mul(SECTOR))?)
}
