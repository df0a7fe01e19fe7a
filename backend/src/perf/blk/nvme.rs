//! An NVMe controller with all its queues running.
use super::attached::{Attached, Front};
use super::cell::{BlkCellOptions, BlkError};
use super::load::{Load, Place};
use crate::driver::nvme::{DoorbellWay, NvmeController, NvmeQueue, NvmeQueueOptions, Pointers};
use crate::driver::{GuestMemory, MemoryOptions};
use crate::perf::cell::CellError;
use mdev_protocol::nvme::identify::{NAMESPACE_LIST_LEN, cns};
use std::path::Path;
use std::time::Duration;

/// How long the device may take for each answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A page, as an exponent of two: the unit of the longest command.
const PAGE: u32 = 12;

impl Front for NvmeController {
    fn is_gone(&self) -> bool {
        self.function().is_gone()
    }

    fn stop(&mut self, queues: u16) -> Result<(), CellError> {
        (1..=queues).try_for_each(|qid| self.delete_pair(qid))?;
        Ok(self.shut_down()?)
    }
}

/// A namespace, as far as it is used.
struct Ground {
    nsid: u32,
    /// Bytes of a logical block.
    logical: u32,
    /// Blocks of the workload's size.
    blocks: u64,
}

impl Attached<NvmeController, NvmeQueue> {
    /// Connects to the device at `socket`, enables its controller and creates the queues. Requests go to the first namespace.
    ///
    /// # Errors
    /// [`CellError`]: nobody listens, the controller refuses or lacks something, no memory.
    pub fn nvme(
        socket: &Path,
        options: &BlkCellOptions,
        doorbells: DoorbellWay,
        data: Pointers,
    ) -> Result<Self, CellError> {
        let BlkCellOptions { workload, rings, queues, .. } = options;
        let each = workload.nvme_queue(rings, data, 1, 512).memory();
        let size = u64::from(*queues) * each + NvmeController::memory_needed() + (1 << 20);
        let memory = GuestMemory::new(MemoryOptions { size, ..MemoryOptions::default() })?;
        let mut controller = NvmeController::connect(socket, TIMEOUT, memory, doorbells)?;
        let Ground { nsid, logical, blocks } = ground(&mut controller, options)?;
        let share = blocks / u64::from(*queues);
        let mut loads = Vec::with_capacity((*queues).into());
        for number in 0..*queues {
            let wanted = workload.nvme_queue(rings, data, number + 1, logical);
            let queue = NvmeQueue::new(&mut controller, NvmeQueueOptions { nsid, ..wanted })?;
            let place = Place { all: blocks, first: u64::from(number) * share, count: share };
            loads.push(Load::on(queue, options, place));
        }
        Ok(Attached::of(controller, loads, None))
    }
}

/// Whether the controller and its first namespace are fit for the workload, and how many of its blocks are used.
fn ground(controller: &mut NvmeController, options: &BlkCellOptions) -> Result<Ground, CellError> {
    let size = options.workload.size;
    let active: [u32; NAMESPACE_LIST_LEN] = controller.identify(cns::ACTIVE_NAMESPACES, 0)?;
    let nsid = active.first().copied().filter(|nsid| *nsid != 0).ok_or(BlkError::NoNamespace)?;
    let limit = controller.identify_controller()?.max_transfer;
    let greatest = match limit {
        0 => u64::MAX,
        limit => 1u64.checked_shl(PAGE + u32::from(limit)).unwrap_or(u64::MAX),
    };
    if u64::from(size.bytes()) > greatest {
        return Err(BlkError::Transfer { size, greatest }.into());
    }
    let namespace = controller.identify_namespace(nsid)?;
    if namespace.attributes & 1 != 0 && (options.workload.rw.writes() || options.verify) {
        return Err(BlkError::ReadOnly.into());
    }
    let format = namespace.lba_formats.get(usize::from(namespace.format & 0xf));
    let format = format.filter(|format| format.metadata == 0 && (9..=20).contains(&format.block));
    let logical = 1 << format.ok_or(BlkError::Format)?.block;
    if !size.bytes().is_multiple_of(logical) {
        return Err(BlkError::BlockSize { size, logical }.into());
    }
    let wanted = options.queues;
    let offered = controller.ask_for_queues(wanted)?;
    if offered < wanted {
        return Err(BlkError::Queues { offered: offered.into(), wanted: wanted.into() }.into());
    }
    let blocks = options.blocks(namespace.size.saturating_mul(logical.into()))?;
    Ok(Ground { nsid, logical, blocks })
}

#[cfg(test)]
#[path = "nvme_tests.rs"]
mod tests;
