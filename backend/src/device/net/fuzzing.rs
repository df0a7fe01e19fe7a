//! A queue pair over guest memory of somebody's choice, as a plain function of bytes: for libFuzzer and for `cargo test`.

use super::header::{F_MRG_RXBUF, F_VERSION_1};
use super::{NetConfig, NetDevice};
use crate::device::VirtioDevice;
use crate::device::fuzzing::{Guest, Rings};
use crate::link::LinkKind;

/// The transmit ring is here, the receive ring at 0.
const TRANSMIT: u64 = 0x400;

/// Runs a pair on `script`: `[link, features, size, start, memory ...]`. The memory begins with the receive ring, the
/// transmit ring follows at 1024, each as descriptors, available ring, used ring; a packed one as descriptors and both event
/// suppressions. Device addresses are offsets. Of the features bit 0 is mergeable buffers, 1 event index, 2 indirect
/// tables, 3 packed rings, 4 use in order, 5 a log of chains in flight, at 4096.
///
/// Whatever the bytes are, the engine ends every poll, and what it took it gave back.
pub fn fuzz_queue_pair(script: &[u8]) {
    let [link, bits, size, start, memory @ ..] = script else { return };
    // Out of descriptors or memory is nothing that was to be tried.
    let _ = run(*link, Rings { bits: *bits, size: *size, start: *start }, memory);
}

fn run(link: u8, rings: Rings, memory: &[u8]) -> Option<()> {
    let guest = Guest::new(memory)?;
    let link = [LinkKind::Null, LinkKind::Loopback, LinkKind::Pktgen { size: 60 }]
        .into_iter()
        .cycle()
        .nth(link.into())?;
    let config = NetConfig { name: "fuzz".to_owned(), queue_pairs: 1, mac: None, mtu: None, link };
    let device = NetDevice::new(config).ok()?;
    let mergeable = if rings.bits & 1 != 0 { F_MRG_RXBUF } else { 0 };
    let mut engine = device.engine(0, F_VERSION_1 | mergeable);
    for (index, base) in [(0u16, 0u64), (1, TRANSMIT)] {
        engine.start_queue(guest.queue(&device, index, base, rings)?);
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
