//! A queue of requests over guest memory of somebody's choice, as a plain function of bytes: for libFuzzer and for `cargo
//! test`.

use super::{BlkConfig, BlkDevice};
use crate::device::VirtioDevice;
use crate::device::fuzzing::{Guest, Rings};
use crate::store::held::Held;
use crate::store::{Store, StoreKind};

/// Bytes of the store.
const SIZE: u64 = 0x10000;

/// Runs a queue on `script`: `[store, features, size, start, memory ...]`. The memory begins with the ring: descriptors,
/// available ring, used ring; a packed one has descriptors and both event suppressions. Device addresses are offsets. Of the store
/// bit 0 is one whose requests end later, bit 1 a device that can only be read. Of the features bit 1 is event index, 2 indirect tables, 3 packed rings, 5 a log of chains in flight, at 4096.
///
/// Whatever the bytes are, the engine ends every poll, what it took it gives back when the store has ended it, and nothing
/// holds memory then.
pub fn fuzz_requests(script: &[u8]) {
    let [store, bits, size, start, memory @ ..] = script else { return };
    // Out of descriptors or memory is nothing that was to be tried.
    let _ = run(*store, Rings { bits: *bits & !16, size: *size, start: *start }, memory);
}

fn run(store: u8, rings: Rings, memory: &[u8]) -> Option<()> {
    let guest = Guest::new(memory)?;
    let held = Held::new(vec![0; SIZE as usize]);
    let kind = StoreKind::Memory { size: SIZE };
    let behind = if store & 1 == 0 { Store::open(&kind).ok()? } else { Store::Held(held.clone()) };
    let read_only = store & 2 != 0;
    let config = BlkConfig { name: "fuzz".to_owned(), store: kind, queues: 1, read_only, serial: None };
    let device = BlkDevice::on(config, behind).ok()?;
    let mut engine = device.engine(0, device.features());
    engine.start_queue(guest.queue(&device, 0, 0, rings)?);
    for _ in 0..4 {
        engine.poll();
        engine.arm();
        engine.disarm();
    }
    let mut quiet = engine.quiesce(0);
    for _ in 0..4 {
        held.finish_all();
        engine.poll();
        quiet = engine.quiesce(0);
    }
    assert!(quiet, "what the store has ended is not in flight");
    let queue = engine.stop_queue(0)?;
    let logs = u64::from(queue.ring.keeps_log());
    let counters = queue.stats.counters();
    assert!(counters.packets <= 4 * 32, "more was served in four polls than four bursts hold");
    assert_eq!(counters.errors, u64::from(queue.failed.is_some()), "a failure is latched once");
    assert_eq!(guest.pins(), logs, "nothing but the log holds memory");
    Some(())
}
