//! NVMe commands against a store without bytes, in one process: a driver on one thread, an engine on another, or both on
//! one to see what the engine alone costs. Prints one line per queue depth.
//!
//! `cargo bench --bench nvme`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use mdev_pin::{Access, IgnoreUnmap, Ioas};
use mdev_protocol::nvme::command::{Command, Completion};
use mdev_protocol::nvme::opcode::nvm;
use mdevd::device::EventFd;
use mdevd::device::nvme::{
    CompletionQueue, CompletionSetup, Doorbells, NamespaceConfig, NvmeConfig, NvmeDevice, SubmissionEngine,
    SubmissionSetup, Vectors,
};
use mdevd::driver::{GuestMemory, MemoryOptions, Part};
use mdevd::store::StoreKind;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

const ENTRIES: u32 = 1024;
const BLOCKS: u32 = 8;
const SIZE: u64 = 1 << 30;
const RUN: Duration = Duration::from_millis(300);

struct Host {
    doorbells: Arc<Doorbells>,
    submissions: Part,
    completions: Part,
    data: Part,
    tail: u32,
    head: u32,
    phase: bool,
}

impl Host {
    fn submit(&mut self, count: u32) {
        let slice = self.submissions.slice().expect("a part has bytes");
        for _ in 0..count {
            let mut command = Command::new(nvm::READ, self.tail as u16, 1);
            command.dptr = [self.data.at.0 + u64::from(self.tail % 128) * 4096, 0];
            command.cdw10 = self.tail * BLOCKS;
            command.cdw12 = BLOCKS - 1;
            slice.write(self.tail as usize * 64, command);
            self.tail = (self.tail + 1) % ENTRIES;
        }
        self.doorbells.set_tail(1, self.tail);
    }

    fn reap(&mut self) -> u32 {
        let slice = self.completions.slice().expect("a part has bytes");
        let mut count = 0;
        loop {
            let at = self.head as usize * 16;
            let last = slice.load_u32(at + Completion::LAST_OFFSET, Ordering::Acquire).unwrap_or_default();
            if (last >> 16 & 1 != 0) != self.phase {
                break;
            }
            assert!(last >> 17 == 0, "a command has failed");
            count += 1;
            self.head = (self.head + 1) % ENTRIES;
            if self.head == 0 {
                self.phase = !self.phase;
            }
        }
        if count > 0 {
            self.doorbells.set_head(1, self.head);
        }
        count
    }
}

fn rig(store: &str) -> (Host, SubmissionEngine, NvmeDevice, Access) {
    let kind: StoreKind = store.parse().expect("a store");
    let namespaces = vec![NamespaceConfig::new(1, kind)];
    let config = NvmeConfig { name: "bench".into(), namespaces, queues: 1, serial: None };
    let device = NvmeDevice::new(config).expect("a device");
    let options = MemoryOptions { size: 64 << 20, ..MemoryOptions::default() };
    let mut memory = GuestMemory::new(options).expect("memory");
    let submissions = memory.allocate(u64::from(ENTRIES) * 64, 4096).expect("room");
    let completions = memory.allocate(u64::from(ENTRIES) * 16, 4096).expect("room");
    let data = memory.allocate(8 << 20, 4096).expect("room");
    data.slice().expect("a part has bytes").fill(1);
    let ioas = Ioas::new(memory.windows().clone());
    for region in memory.regions() {
        ioas.map(region.area()).expect("memory can be mapped");
    }
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas).expect("a space takes an access");
    let doorbells = Arc::new(Doorbells::new().expect("a page"));
    let completion = Arc::new(CompletionQueue::new(CompletionSetup {
        qid: 1,
        base: completions.at,
        entries: ENTRIES,
        vector: None,
        doorbells: doorbells.clone(),
        vectors: Arc::new(Vectors::new(1)),
    }));
    let setup = SubmissionSetup {
        qid: 1,
        base: submissions.at,
        entries: ENTRIES,
        completion,
        access: access.clone(),
        doorbells: doorbells.clone(),
        kick: None,
    };
    let bell = Arc::new(EventFd::new().expect("an eventfd"));
    let stats = device.submission_stats(1).expect("a queue").clone();
    let engine = SubmissionEngine::new(device.shared().clone(), setup, stats, bell, Waker::noop().clone());
    let host = Host { doorbells, submissions, completions, data, tail: 0, head: 0, phase: true };
    (host, engine, device, access)
}

/// Binds the calling thread to one of the processors that this process may use, as far as there are so many.
fn bind(index: usize) {
    let allowed = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    let mut processors = (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor));
    if let Some(processor) = processors.nth(index) {
        let mut one = CpuSet::new();
        one.set(processor);
        // Where it is refused the scheduler places it.
        let _ = sched_setaffinity(None, &one);
    }
}

/// Both on one thread: nanoseconds that the engine takes for a command.
fn alone(store: &str, depth: u32) -> f64 {
    let (mut host, mut engine, _device, _access) = rig(store);
    let mut best = f64::MAX;
    for _ in 0..10 {
        let (mut spent, mut done) = (Duration::ZERO, 0);
        while done < 100_000 {
            host.submit(depth);
            let began = Instant::now();
            let mut polled = 0;
            while polled < 2 * depth {
                polled += engine.poll();
                assert!(engine.news().is_none());
            }
            spent += began.elapsed();
            done += host.reap();
        }
        best = best.min(spent.as_nanos() as f64 / f64::from(done));
    }
    best
}

/// A thread each: commands a second, and nanoseconds that the engine was busy for a command.
fn together(store: &str, depth: u32) -> (f64, f64) {
    let (mut host, mut engine, device, _access) = rig(store);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = std::thread::spawn(move || {
        bind(0);
        while !stopped.load(Ordering::Relaxed) {
            if engine.poll() == 0 {
                std::hint::spin_loop();
            }
        }
    });
    // After the other was made, which would inherit it.
    bind(1);
    host.submit(depth);
    let mut best = 0f64;
    for _ in 0..8 {
        let (began, mut done) = (Instant::now(), 0u64);
        while began.elapsed() < RUN {
            for _ in 0..64 {
                let count = host.reap();
                if count > 0 {
                    host.submit(count);
                    done += u64::from(count);
                }
            }
        }
        best = best.max(done as f64 / began.elapsed().as_secs_f64());
    }
    stop.store(true, Ordering::Relaxed);
    thread.join().expect("the engine's thread ends");
    let counters = device.submission_stats(1).expect("a queue").counters();
    (best, counters.busy_ns as f64 / counters.packets as f64)
}

fn main() {
    for kind in ["null", "mem"] {
        let store = format!("{kind},size={SIZE}");
        for depth in [1, 4, 32, 128] {
            let alone = alone(&store, depth);
            // Threads of their own: this one is bound to no processor.
            let name = store.clone();
            let driver = std::thread::spawn(move || together(&name, depth));
            let (rate, busy) = driver.join().expect("the driver's thread ends");
            println!(
                "{kind:4} read 4 KiB, depth {depth:3}: {:6.2} M/s, {busy:5.0} ns busy, {alone:5.1} ns alone",
                rate / 1e6
            );
        }
    }
}
