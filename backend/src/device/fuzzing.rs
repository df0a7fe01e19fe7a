//! A guest of somebody's choice: what fuzz entries of engines have in common.

use std::sync::Arc;
use std::task::Waker;

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Windows};
use mdev_pin::{Access, IgnoreUnmap, Ioas};
use mdev_protocol::virtio::packed::Position;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{Device, Enabled, Queue, QueueSetup, Switch};
use crate::ring::{QueueState, RingAddr, RingLog, RingSetup};

/// Guest memory: small, so that random addresses hit it.
const MEMORY: u64 = 0x4000;
/// Where logs are, and how far apart.
const LOGS: u64 = 0x1000;
/// Entries a ring has: even the largest ends before 1024 bytes do.
const SIZES: [u16; 6] = [1, 2, 4, 8, 16, 32];
const PACKED_SIZES: [u16; 6] = [1, 2, 3, 7, 16, 33];

/// How its rings look.
#[derive(Copy, Clone)]
pub(super) struct Rings {
    /// Bit 1 is event index, 2 indirect tables, 3 packed rings, 4 use in order, 5 a log of chains in flight.
    pub(super) bits: u8,
    pub(super) size: u8,
    pub(super) start: u8,
}

/// Its memory, at addresses from 0 on.
pub(super) struct Guest {
    access: Access,
    ioas: Ioas,
}

impl Guest {
    /// A guest that has this in its memory; `None` if there is none left, which is nothing that was to be tried.
    pub(super) fn new(memory: &[u8]) -> Option<Guest> {
        let fd = memfd_create("mdevd-fuzz", MemfdFlags::CLOEXEC).ok()?;
        ftruncate(&fd, MEMORY).ok()?;
        let file = BackingFile::new(fd, &FilePolicy::default()).ok()?;
        let windows = Windows::new().ok()?;
        let area = Area {
            range: IovaRange::with_len(Iova(0), MEMORY).ok()?,
            extent: FileExtent { file, offset: 0 }.into(),
            perm: Perm::READ | Perm::WRITE,
            log: None,
        };
        let segment = windows.segments(&area).ok()?.pop()?;
        let guest = segment.window.slice(0, usize::try_from(MEMORY).ok()?)?;
        guest.copy_from(memory);
        let ioas = Ioas::new(windows);
        ioas.map(area).ok()?;
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).ok()?;
        Some(Guest { access, ioas })
    }

    /// The way to its memory.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// What is held of its memory.
    pub(super) fn pins(&self) -> u64 {
        self.ioas.pins()
    }

    /// A queue that starts, whose ring is at `base`: descriptors, available ring, used ring; of a packed one descriptors and both event
    /// suppressions.
    pub(super) fn queue(&self, device: &dyn Device, index: u16, base: u64, rings: Rings) -> Option<Queue> {
        let Rings { bits, size, start } = rings;
        let packed = bits & 8 != 0;
        let sizes = if packed { PACKED_SIZES } else { SIZES };
        let size = sizes.into_iter().cycle().nth(size.into())?;
        let avail = base.saturating_add(u64::from(size).saturating_mul(16));
        let between = if packed { 4 } else { u64::from(size).saturating_mul(2).saturating_add(8) };
        let used = avail.saturating_add(between);
        let at_slot = Position { slot: u16::from(start).checked_rem(size)?, wrap: start & 0x80 == 0 };
        let at = |offset| RingAddr::Iova(Iova(offset));
        let log = if bits & 32 != 0 { Some(self.log(index, packed, size)?) } else { None };
        let ring = RingSetup {
            size,
            desc: at(base),
            avail: at(avail),
            used: at(used),
            event_idx: bits & 2 != 0,
            indirect: bits & 4 != 0,
            packed,
            in_order: bits & 16 != 0,
            state: match packed {
                true => QueueState::packed(at_slot, at_slot),
                false => QueueState::split(u16::from(start).wrapping_mul(257)),
            },
            log,
        };
        let setup = QueueSetup {
            index,
            ring,
            access: self.access.clone(),
            kick: None,
            call: None,
            err: None,
            switch: Switch::new(Enabled::Yes),
        };
        Queue::start(setup, device.queue_stats(index)?, Waker::noop().clone()).ok()
    }
    /// A log that is anything, like the rest of the memory.
    fn log(&self, index: u16, packed: bool, size: u16) -> Option<RingLog> {
        let at = Iova(LOGS.saturating_add(u64::from(index).saturating_mul(LOGS / 2)));
        let len = u32::try_from(RingLog::len_of(packed, size)).ok()?;
        let pin = self.access.lane().enter().pin(at, len, Perm::READ | Perm::WRITE).ok()?;
        Some(RingLog::new(pin, size))
    }
}

#[cfg(test)]
pub(crate) mod tests;
