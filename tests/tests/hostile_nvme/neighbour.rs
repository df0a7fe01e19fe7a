//! The well-behaved host of the other controller: verified reads and writes all the time, and how long each took.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mdev_tests::random::Random;
use mdev_tests::stage::{WATCHDOG, await_that};
use mdevd::driver::ledger::{Expected, Ledger};
use mdevd::driver::nvme::{DoorbellWay, NvmeController, NvmeQueue, NvmeQueueOptions, NvmeRequest, Pointers};
use mdevd::driver::{GuestMemory, MemoryOptions};

/// Bytes of a block of its ledger.
const BLOCK: u32 = 4096;
/// Blocks of its namespace.
const BLOCKS: u64 = (4 << 20) / BLOCK as u64;
const DEPTH: u16 = 4;
/// No request of it may take longer, on a machine that has processors to spare: less than the three seconds that the daemon gives those who
/// hold something. Shorter would time the machine, which may have other work.
const BOUND: Duration = Duration::from_millis(2500);
/// From its thread to the control thread, to the worker, and back.
const HANDOVERS: u32 = 4;
/// A thread that only sleeps says for how long the machine has no processor for anybody.
const NAP: Duration = Duration::from_millis(1);

/// What others see of it.
#[derive(Default)]
struct Seen {
    ended: AtomicU64,
    /// The longest request since somebody asked, in nanoseconds.
    longest: AtomicU64,
    /// How long a thread was kept from a processor, likewise.
    stalled: AtomicU64,
    stop: AtomicBool,
}

/// A host with I/O on.
pub struct Neighbour {
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
    sleeper: Option<JoinHandle<()>>,
}

enum Asked {
    Write { block: u64, generation: u64 },
    Read { block: u64, expected: Expected },
}

struct Load {
    queue: NvmeQueue,
    /// Dropped after its queue.
    _controller: NvmeController,
    ledger: Ledger,
    asked: HashMap<u16, (Asked, Instant)>,
    random: Random,
    seen: Arc<Seen>,
}

impl Neighbour {
    /// One on the controller at `path`.
    pub fn start(path: &Path, way: DoorbellWay) -> Neighbour {
        let seen = Arc::new(Seen::default());
        let mut load = Load::connect(path, way, seen.clone());
        let thread = std::thread::Builder::new().name("neighbour".into());
        let thread = thread.spawn(move || load.run()).expect("a thread");
        let watched = seen.clone();
        let sleeper = std::thread::spawn(move || {
            while !watched.stop.load(Ordering::Relaxed) {
                let since = Instant::now();
                std::thread::sleep(NAP);
                let stalled = since.elapsed().saturating_sub(NAP).as_nanos() as u64;
                watched.stalled.fetch_max(stalled, Ordering::Relaxed);
            }
        });
        let neighbour = Neighbour { seen, thread: Some(thread), sleeper: Some(sleeper) };
        neighbour.must_go_on(50);
        neighbour
    }

    /// Waits until so many requests more have ended.
    pub fn must_go_on(&self, requests: u64) {
        let end = self.ended() + requests;
        await_that(&format!("{requests} requests of the neighbour"), || {
            let running = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
            assert!(running, "the neighbour's thread panicked; see above");
            self.ended() >= end
        });
    }

    /// Requests that have ended.
    pub fn ended(&self) -> u64 {
        self.seen.ended.load(Ordering::Relaxed)
    }

    /// The longest request since this was asked last, and how long it could have been.
    pub fn longest(&self) -> (Duration, Duration) {
        let take = |nanos: &AtomicU64| Duration::from_nanos(nanos.swap(0, Ordering::Relaxed));
        (take(&self.seen.longest), BOUND + take(&self.seen.stalled) * HANDOVERS)
    }

    /// Ends it when all has been read once more.
    pub fn end(mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it ends once");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
        for thread in [self.thread.take(), self.sleeper.take()].into_iter().flatten() {
            let _ = thread.join();
        }
    }
}

impl Load {
    fn connect(path: &Path, way: DoorbellWay, seen: Arc<Seen>) -> Load {
        let memory = GuestMemory::new(MemoryOptions::default()).expect("memory");
        let mut controller = NvmeController::connect(path, WATCHDOG, memory, way).expect("a controller");
        let options = NvmeQueueOptions {
            qid: 1,
            nsid: 1,
            block: 512,
            entries: 16,
            requests: DEPTH,
            capacity: BLOCK,
            pointers: Pointers::Prp,
        };
        let queue = NvmeQueue::new(&mut controller, options).expect("a pair of queues");
        let random = Random::seeded("neighbour");
        let ledger = Ledger::new(random.clone().number(), BLOCK);
        Load { queue, _controller: controller, ledger, asked: HashMap::new(), random, seen }
    }

    fn run(&mut self) {
        while !self.seen.stop.load(Ordering::Relaxed) {
            let block = self.random.below(BLOCKS);
            let reads = self.random.one_in(2);
            self.ask(block, reads);
            if !self.reap() {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        for block in 0..BLOCKS {
            while self.queue.idle() == 0 {
                self.reap();
            }
            self.ask(block, true);
        }
        while self.queue.under_way() > 0 {
            self.reap();
        }
    }

    fn ask(&mut self, block: u64, reads: bool) {
        let Self { queue, ledger, asked, .. } = self;
        let submitted = queue.submit(1, |tag, data| {
            let (first, len) = (block * u64::from(BLOCK / 512), BLOCK);
            let (request, ask) = if reads {
                let expected = ledger.expected(block);
                data.fill(0xa5);
                (NvmeRequest::Read { block: first, len }, Asked::Read { block, expected })
            } else {
                let generation = ledger.begin(block);
                let mut bytes = vec![0; len as usize];
                ledger.fill(block, generation, &mut bytes);
                data.copy_from(&bytes);
                (NvmeRequest::Write { block: first, len, durable: false }, Asked::Write { block, generation })
            };
            asked.insert(tag, (ask, Instant::now()));
            request
        });
        if submitted.expect("a driver that keeps to the rules") > 0 {
            queue.publish().expect("the connection stays");
        }
    }

    fn reap(&mut self) -> bool {
        let Self { queue, ledger, asked, seen, .. } = self;
        let reaped = queue.reap(u32::MAX, |done, data| {
            assert!(done.status.is_success(), "{:?}", done.status);
            let (ask, since) = asked.remove(&done.tag).expect("a request that was under way");
            let finding = match ask {
                Asked::Read { block, expected } => {
                    let mut bytes = vec![0; BLOCK as usize];
                    data.copy_to(&mut bytes);
                    ledger.check_read(block, &expected, &bytes)
                }
                Asked::Write { block, generation } => ledger.acknowledge(block, generation),
            };
            if let Err(finding) = finding {
                panic!("the neighbour's disk: {finding}");
            }
            seen.longest.fetch_max(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
            seen.ended.fetch_add(1, Ordering::Relaxed);
        });
        let ended = reaped.expect("a device that keeps to the rules") > 0;
        let hangs = asked.values().any(|(_, since)| since.elapsed() > WATCHDOG);
        assert!(!hangs, "a request of the neighbour does not end");
        ended
    }
}
