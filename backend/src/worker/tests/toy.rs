//! A device whose rings are counters in our own memory: everything a worker does can be seen, and a driver is
//! one line.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use mdev_dma::{Iova, Perm, Windows};
use mdev_pin::{Access, IgnoreUnmap, Ioas};

use crate::device::{Bell, Device, Enabled, Engine, Queue, QueueSetup, QueueStats, Switch, VirtioDevice};
use crate::ring::{QueueState, RingError, RingSetup};
use crate::sys::EventFd;

/// Queues of the toy; two of them are a group.
pub const QUEUES: usize = 8;

/// A ring: `added` is the driver's index, `taken` the device's.
pub struct Ring {
    pub added: AtomicU64,
    pub taken: AtomicU64,
    /// How often the worker has looked.
    pub polls: AtomicU64,
    /// The driver need not kick.
    quiet: AtomicBool,
    /// The next look at the ring latches an error.
    pub malformed: AtomicBool,
    /// The ring is parked until then.
    pub parked: Mutex<Option<Instant>>,
    /// Requests that were taken and have not ended.
    pub flying: AtomicU64,
    /// Entries are taken only while there is memory at address 0.
    pub needs_memory: AtomicBool,
    pub kick: Option<Arc<EventFd>>,
    pub switch: Switch,
    pub stats: Arc<QueueStats>,
    /// Done once, when the driver is told that it need not kick.
    pub at_disarm: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Ring {
    fn new(kick: Option<Arc<EventFd>>) -> Ring {
        Ring {
            added: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            polls: AtomicU64::new(0),
            quiet: AtomicBool::new(false),
            malformed: AtomicBool::new(false),
            parked: Mutex::new(None),
            flying: AtomicU64::new(0),
            needs_memory: AtomicBool::new(false),
            kick,
            switch: Switch::new(Enabled::Yes),
            stats: Arc::default(),
            at_disarm: Mutex::new(None),
        }
    }

    /// Adds one entry and kicks if the device wants that, as a virtio driver does.
    pub fn add(&self) {
        self.added.fetch_add(1, Ordering::Release);
        fence(Ordering::SeqCst);
        if !self.quiet.load(Ordering::Relaxed)
            && let Some(kick) = &self.kick
        {
            kick.signal();
        }
    }

    pub fn wants_kicks(&self) -> bool {
        !self.quiet.load(Ordering::Relaxed)
    }

    pub fn is_empty(&self) -> bool {
        self.taken.load(Ordering::Acquire) == self.added.load(Ordering::Acquire)
    }
}

pub struct Toy {
    pub rings: Vec<Arc<Ring>>,
    /// Signalled when a request that was in flight has ended.
    pub bell: Arc<EventFd>,
    /// Empty at first.
    pub ioas: Ioas,
    access: Access,
}

impl Toy {
    /// A device whose queues have these kicks.
    pub fn with_kicks(kick: impl Fn(usize) -> Option<Arc<EventFd>>) -> Arc<Toy> {
        let rings = (0..QUEUES).map(|index| Arc::new(Ring::new(kick(index)))).collect();
        let ioas = Ioas::new(Windows::new().unwrap());
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).unwrap();
        Arc::new(Toy { rings, bell: Arc::new(EventFd::new().unwrap()), ioas, access })
    }

    pub fn new() -> Arc<Toy> {
        Toy::with_kicks(|_| Some(Arc::new(EventFd::new().unwrap())))
    }

    pub fn setup(&self, index: u16) -> QueueSetup {
        let plain = RingSetup::plain(256, [0, 0x1000, 0x2000].map(Iova));
        let ring = RingSetup { state: QueueState::split(100 + index), ..plain };
        let Ring { kick, switch, .. } = &*self.rings[usize::from(index)];
        let err = Some(Arc::new(EventFd::new().unwrap()));
        QueueSetup {
            index,
            ring,
            access: self.access.clone(),
            kick: kick.clone(),
            call: None,
            err,
            switch: switch.clone(),
        }
    }
}

struct ToyEngine {
    rings: Vec<Arc<Ring>>,
    queues: Vec<Queue>,
    /// Nothing more is taken from these.
    quiesced: Vec<u16>,
    bell: Arc<EventFd>,
}

impl ToyEngine {
    fn serve(ring: &Ring, queue: &mut Queue) -> u32 {
        ring.polls.fetch_add(1, Ordering::Relaxed);
        if queue.failed.is_some() || queue.switch.get() != Enabled::Yes {
            return 0;
        }
        // First of all: who sees an entry sees what was said of the ring before it was added.
        let added = ring.added.load(Ordering::Acquire);
        if ring.malformed.load(Ordering::Relaxed) {
            queue.trouble(RingError::Poisoned);
            return 0;
        }
        if ring.parked.lock().unwrap().is_some_and(|until| Instant::now() < until) {
            return 0;
        }
        *ring.parked.lock().unwrap() = None;
        if ring.needs_memory.load(Ordering::Relaxed) {
            if !queue.ready() {
                return 0;
            }
            let looked = queue.lane.enter().slice(Iova(0), 1, Perm::READ).map(drop);
            if let Err(error) = looked {
                queue.trouble(error.into());
                return 0;
            }
            queue.healed();
        }
        // One burst is at most four entries.
        let taken = ring.taken.load(Ordering::Relaxed);
        let burst = (added - taken).min(4);
        ring.taken.store(taken + burst, Ordering::Release);
        u32::try_from(burst).unwrap()
    }
}

impl Engine for ToyEngine {
    fn start_queue(&mut self, queue: Queue) {
        self.quiesced.retain(|index| *index != queue.index);
        self.queues.push(queue);
    }

    fn quiesce(&mut self, index: u16) -> bool {
        self.quiesced.push(index);
        self.rings[usize::from(index)].flying.load(Ordering::Acquire) == 0
    }

    fn cancel(&mut self, index: u16) {
        self.rings[usize::from(index)].flying.store(0, Ordering::Release);
    }

    fn bell(&self) -> Option<Bell> {
        Some(self.bell.clone())
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        let at = self.queues.iter().position(|queue| queue.index == index)?;
        Some(self.queues.remove(at))
    }

    fn queue_mut(&mut self, index: u16) -> Option<&mut Queue> {
        self.queues.iter_mut().find(|queue| queue.index == index)
    }

    fn poll(&mut self) -> u32 {
        let Self { rings, queues, quiesced, .. } = self;
        let running = queues.iter_mut().filter(|queue| !quiesced.contains(&queue.index));
        running.map(|queue| Self::serve(&rings[usize::from(queue.index)], queue)).sum()
    }

    fn arm(&mut self) -> bool {
        let rings = || {
            let running = self.queues.iter().filter(|queue| !self.quiesced.contains(&queue.index));
            running.filter(|queue| queue.failed.is_none() && queue.switch.get() == Enabled::Yes)
        };
        for queue in rings() {
            self.rings[usize::from(queue.index)].quiet.store(false, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        rings().any(|queue| {
            let ring = &self.rings[usize::from(queue.index)];
            !ring.is_empty() && ring.parked.lock().unwrap().is_none() && queue.parked.is_none()
        })
    }

    fn disarm(&mut self) {
        for queue in &self.queues {
            let ring = &self.rings[usize::from(queue.index)];
            ring.quiet.store(true, Ordering::Relaxed);
            if let Some(act) = ring.at_disarm.lock().unwrap().take() {
                act();
            }
        }
    }

    fn needs_reset(&self) -> bool {
        self.queues.iter().any(|queue| queue.failed.is_some())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let parked = |queue: &Queue| *self.rings[usize::from(queue.index)].parked.lock().unwrap();
        self.queues.iter().flat_map(|queue| [parked(queue), queue.deadline()]).flatten().min()
    }
}

impl Device for Toy {
    fn name(&self) -> &str {
        "toy"
    }

    fn queue_count(&self) -> u16 {
        QUEUES as u16
    }

    fn group(&self, queue: u16) -> u16 {
        queue / 2
    }

    fn queue_stats(&self, queue: u16) -> Option<Arc<QueueStats>> {
        self.rings.get(usize::from(queue)).map(|ring| ring.stats.clone())
    }
}

impl VirtioDevice for Toy {
    fn device_id(&self) -> u32 {
        2
    }

    fn config_len(&self) -> usize {
        0
    }

    fn max_ring_size(&self) -> u16 {
        256
    }

    fn features(&self) -> u64 {
        0
    }

    fn check_features(&self, _: u64) -> Result<(), String> {
        Ok(())
    }

    fn config(&self, _: u32, _: &mut [u8]) -> Result<(), String> {
        Ok(())
    }

    fn set_config(&self, _: u32, _: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn engine(&self, _: u16, _: u64) -> Box<dyn Engine> {
        let (rings, bell) = (self.rings.clone(), self.bell.clone());
        Box::new(ToyEngine { rings, queues: Vec::new(), quiesced: Vec::new(), bell })
    }

    fn set_mtu(&self, _: u16) -> Result<(), String> {
        Ok(())
    }

    fn rarp(&self, _: [u8; 6]) {}

    fn reset(&self) {}
}
