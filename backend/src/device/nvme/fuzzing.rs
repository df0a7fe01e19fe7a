//! A submission queue over guest memory of somebody's choice, as a plain function of bytes: for libFuzzer and for `cargo
//! test`.

use std::sync::Arc;
use std::task::Waker;

use mdev_dma::Iova;

use super::{
    CompletionQueue, CompletionSetup, Doorbells, Namespace, NamespaceConfig, NvmeConfig, NvmeDevice, Shadow,
    SubmissionEngine, SubmissionSetup, Vectors,
};
use crate::device::fuzzing::Guest;
use crate::store::held::Held;
use crate::store::{Store, StoreKind};
use crate::sys::EventFd;

/// Bytes of the store.
const SIZE: u64 = 0x10000;
/// Entries of the submission queue, which is at 0.
const ENTRIES: u32 = 32;
/// Where the completion queue is.
const COMPLETIONS: Iova = Iova(0x1000);
/// Where doorbells in memory are.
const SHADOW: Shadow = Shadow { doorbells: Iova(0x2000), events: Iova(0x3000) };

/// Runs a queue on `script`: `[store, entries, tail, memory ...]`. The memory, of 16 KiB, begins with the submission queue of 32
/// entries; the completion queue, of 2 to 17 `entries`, is at 4096. Device addresses are offsets. Of the store bit 0 is one whose
/// requests end later, bit 1 a namespace that can only be read, bit 2 doorbells in memory, at 8192, and their events at 12288.
///
/// Whatever the bytes are, the engine ends every poll, what it took it gives back when the store has ended it, no more ends than
/// was taken, and nothing holds memory then.
pub fn fuzz_commands(script: &[u8]) {
    let [store, entries, tail, memory @ ..] = script else { return };
    // Out of descriptors or memory is nothing that was to be tried.
    let _ = run(*store, u32::from(entries % 16).saturating_add(2), u32::from(*tail), memory);
}

fn device(store: Store, read_only: bool) -> Option<NvmeDevice> {
    let config = NvmeConfig { name: "fuzz".to_owned(), namespaces: Vec::new(), queues: 1, serial: None };
    let wanted = NamespaceConfig { read_only, ..NamespaceConfig::new(1, StoreKind::Null { size: SIZE }) };
    let namespace = Namespace::on("fuzz", &wanted, store);
    NvmeDevice::with_namespaces(config, vec![(namespace, true)]).ok()
}

fn run(store: u8, entries: u32, tail: u32, memory: &[u8]) -> Option<()> {
    let guest = Guest::new(memory)?;
    let held = Held::new(vec![0; SIZE as usize]);
    let kind = StoreKind::Memory { size: SIZE };
    let behind = if store & 1 == 0 { Store::open(&kind).ok()? } else { Store::Held(held.clone()) };
    let device = device(behind, store & 2 != 0)?;
    let doorbells = Arc::new(Doorbells::new().ok()?);
    let vectors = Arc::new(Vectors::new(1));
    let completion = Arc::new(CompletionQueue::new(CompletionSetup {
        qid: 1,
        base: COMPLETIONS,
        entries,
        vector: Some(0),
        doorbells: doorbells.clone(),
        vectors,
    }));
    let setup = SubmissionSetup {
        qid: 1,
        base: Iova(0),
        entries: ENTRIES,
        completion: completion.clone(),
        access: guest.access().clone(),
        doorbells: doorbells.clone(),
        kick: None,
    };
    let stats = device.submission_stats(1)?.clone();
    let bell = Arc::new(EventFd::new().ok()?);
    let waker = Waker::noop().clone();
    let mut engine = SubmissionEngine::new(device.shared().clone(), setup, stats.clone(), bell, waker);
    doorbells.set_tail(1, tail);
    doorbells.set_shadow((store & 4 != 0).then_some(SHADOW));
    for _ in 0..4 {
        engine.poll();
        engine.arm();
        engine.disarm();
        // What is missing stays away.
        engine.forsake();
        doorbells.set_head(1, completion.tail());
    }
    engine.quiesce();
    engine.cancel();
    held.finish_all();
    let mut quiet = false;
    for _ in 0..64 {
        engine.poll();
        engine.forsake();
        doorbells.set_head(1, completion.tail());
        quiet = engine.quiesce();
    }
    assert!(quiet, "what the store has ended is not in flight");
    let counters = stats.counters();
    assert!(counters.packets <= 4 * 32, "more was served in four polls than four bursts hold");
    assert!(counters.errors <= 1, "a failure is latched once");
    drop(engine);
    assert_eq!(guest.pins(), 0, "nothing holds memory");
    Some(())
}
