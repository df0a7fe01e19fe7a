//! A queue pair over guest memory of somebody's choice, as a plain function of bytes: for libFuzzer and for `cargo test`.

use std::sync::Arc;
use std::task::Waker;

use mdev_dma::{Area, BackingFile, FileExtent, FilePolicy, Iova, IovaRange, Perm, Windows};
use mdev_pin::{Access, IgnoreUnmap, Ioas};
use mdev_protocol::virtio::packed::Position;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::header::{F_MRG_RXBUF, F_VERSION_1};
use super::{NetConfig, NetDevice};
use crate::device::{Device, Enabled, Queue, QueueSetup, Switch};
use crate::link::LinkKind;
use crate::ring::{QueueState, RingAddr, RingLog, RingSetup};

/// Guest memory: small, so that random addresses hit it.
const MEMORY: u64 = 0x4000;
/// The transmit ring is here, the receive ring at 0.
const TRANSMIT: u64 = 0x400;
/// The log of the receive ring.
const LOGS: u64 = 0x1000;
/// Entries a ring has: even the largest ends before the next ring begins.
const SIZES: [u16; 6] = [1, 2, 4, 8, 16, 32];
const PACKED_SIZES: [u16; 6] = [1, 2, 3, 7, 16, 33];

/// Runs a pair on `script`: `[link, features, size, start, memory ...]`. The memory begins with the receive ring, the
/// transmit ring follows at 1024, each as descriptors, available ring, used ring; a packed one as descriptors and both event
/// suppressions. Device addresses are offsets. Of the features bit 0 is mergeable buffers, 1 event index, 2 indirect
/// tables, 3 packed rings, 4 use in order, 5 logs of what is in flight, that of the receive ring at 4096, the other at 6144.
///
/// Whatever the bytes are, the engine ends every poll, and what it took it gave back.
pub fn fuzz_queue_pair(script: &[u8]) {
    let [link, bits, size, start, memory @ ..] = script else { return };
    // Out of descriptors or memory is nothing that was to be tried.
    let _ = run(*link, *bits, *size, *start, memory);
}

/// A log that is anything, like the rest of the memory.
fn log(access: &Access, index: u16, packed: bool, size: u16) -> Option<RingLog> {
    let at = Iova(LOGS.saturating_add(u64::from(index).saturating_mul(LOGS / 2)));
    let len = u32::try_from(RingLog::len_of(packed, size)).ok()?;
    let pin = access.lane().enter().pin(at, len, Perm::READ | Perm::WRITE).ok()?;
    Some(RingLog::new(pin, size))
}

fn run(link: u8, bits: u8, size: u8, start: u8, memory: &[u8]) -> Option<()> {
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

    let link = [LinkKind::Null, LinkKind::Loopback, LinkKind::Pktgen { size: 60 }]
        .into_iter()
        .cycle()
        .nth(link.into())?;
    let config = NetConfig { name: "fuzz".to_owned(), queue_pairs: 1, mac: None, mtu: None, link };
    let device = NetDevice::new(config).ok()?;
    let mergeable = if bits & 1 != 0 { F_MRG_RXBUF } else { 0 };
    let mut engine = device.engine(0, F_VERSION_1 | mergeable);
    let packed = bits & 8 != 0;
    for (index, base) in [(0u16, 0u64), (1, TRANSMIT)] {
        let sizes = if packed { PACKED_SIZES } else { SIZES };
        let size = sizes.into_iter().cycle().nth(size.into())?;
        let avail = base.saturating_add(u64::from(size).saturating_mul(16));
        let between = if packed { 4 } else { u64::from(size).saturating_mul(2).saturating_add(8) };
        let used = avail.saturating_add(between);
        let at_slot = Position { slot: u16::from(start).checked_rem(size)?, wrap: start & 0x80 == 0 };
        let at = |offset| RingAddr::Iova(Iova(offset));
        let log = if bits & 32 != 0 { Some(log(&access, index, packed, size)?) } else { None };
        let ring = RingSetup {
            size,
            desc: at(base),
            avail: at(avail),
            used: at(used),
            event_idx: bits & 2 != 0,
            indirect: bits & 4 != 0,
            packed,
            in_order: bits & 16 != 0,
            log,
            state: match packed {
                true => QueueState::packed(at_slot, at_slot),
                false => QueueState::split(u16::from(start).wrapping_mul(257)),
            },
        };
        let setup = QueueSetup {
            index,
            ring,
            access: access.clone(),
            kick: None,
            call: None,
            err: None,
            switch: Switch::new(Enabled::Yes),
        };
        engine.start_queue(Queue::start(setup, device.queue_stats(index)?, Waker::noop().clone()).ok()?);
    }
    for _ in 0..4 {
        engine.poll();
        engine.arm();
        engine.disarm();
    }
    for index in [0, 1] {
        let queue = engine.stop_queue(index)?;
        let counters = queue.stats.counters();
        assert!(counters.packets <= 4 * 32, "more was served in four polls than four bursts hold");
        assert_eq!(counters.errors, u64::from(queue.failed.is_some()), "a failure is latched once");
    }
    Some(())
}
