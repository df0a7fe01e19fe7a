//! A learning bridge between devices of one process: the `peer=NAME` link.
//!
//! # Objects
//!
//! [`Bridges`] knows the bridges by their names. A `Bridge` has a `Port` for each device and the table of stations. A port has a
//! `Receiver` for each queue pair of its device: the place where the pair's running receive queue lies, for whoever has
//! frames for it.
//!
//! # How a frame gets across
//!
//! The worker of the sender copies it, once, from one guest's buffer into the other's. For that it takes the receive queue,
//! with its lane into the receiver's memory, for one burst, if nobody else has it; the worker that runs the receiver's
//! other queues is not asked and need not be awake, unless the queue fails: then the sender rings the bell of its engine. Whether memory was lost is asked of each side's burst, so that blame
//! goes by window: a lost page of the receiver fails the receiver's queue, one of the sender fails the sender's.
//!
//! # Locks
//!
//! A receiver's mutex, which senders only ever try: what they find taken they try at the port's other queues, and drop. Only
//! who starts, stops or changes a receive queue waits for it, for at most one burst. The ports of a bridge are under a mutex
//! that is taken when a device comes or goes; senders keep a copy of the list and look at a number to see that it is old.
//! The table has no lock. Order: the ports, nothing under them; a receiver's mutex is a leaf, but for the log.
//!
//! # What it does not do
//!
//! Spanning trees, VLANs, multicast groups, ports to the host; nobody keeps a guest from using another one's address.

mod table;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::Instant;

use super::offload::Offloads;
use crate::device::{EventFd, Queue};
use crate::link::LinkName;
use table::{Stations, TICK};

pub(super) use table::MAX_PORTS;

/// The bridges of a process, by name. A bridge is there as long as a device is on it.
#[derive(Clone, Default)]
pub struct Bridges {
    by_name: Arc<Mutex<HashMap<LinkName, Weak<Bridge>>>>,
}

impl Bridges {
    /// A new port, for a device of so many queue pairs, on the bridge of this name. `None` if it has no more.
    ///
    /// # Errors
    /// What eventfd(2) answers.
    pub(super) fn join(&self, name: LinkName, pairs: u16) -> io::Result<Option<Port>> {
        let receivers = (0..pairs).map(|_| Receiver::new()).collect::<io::Result<_>>()?;
        let mut by_name = locked(&self.by_name);
        by_name.retain(|_, bridge| bridge.strong_count() != 0);
        let bridge = by_name.get(&name).and_then(Weak::upgrade).unwrap_or_else(|| {
            let bridge = Arc::new(Bridge::new());
            by_name.insert(name, Arc::downgrade(&bridge));
            bridge
        });
        Ok(Bridge::join(&bridge, receivers))
    }
}

/// Ports, and where stations are.
pub(super) struct Bridge {
    ports: Mutex<Vec<Arc<Jack>>>,
    /// Differs whenever the ports differ.
    changes: AtomicU64,
    stations: Stations,
    began: Instant,
}

impl Bridge {
    fn new() -> Self {
        Self {
            ports: Mutex::default(),
            changes: AtomicU64::new(1),
            stations: Stations::new(),
            began: Instant::now(),
        }
    }

    fn join(bridge: &Arc<Bridge>, receivers: Box<[Receiver]>) -> Option<Port> {
        let mut ports = locked(&bridge.ports);
        let number = (0..MAX_PORTS).find(|number| ports.iter().all(|port| port.number != *number))?;
        bridge.stations.clear(number);
        let jack = Arc::new(Jack { number, receivers });
        ports.push(jack.clone());
        bridge.changes.fetch_add(1, Ordering::Release);
        Some(Port { bridge: bridge.clone(), jack })
    }

    /// The ticks since it was made, and the old stations forgotten.
    fn now(&self) -> u64 {
        let now = (self.began.elapsed().as_secs() / TICK).saturating_add(1);
        self.stations.sweep(now);
        now
    }
}

/// A device's end of a bridge; dropped, the port is gone.
pub(super) struct Port {
    bridge: Arc<Bridge>,
    jack: Arc<Jack>,
}

impl Port {
    /// Its receivers, one for each queue pair.
    pub(super) fn jack(&self) -> &Arc<Jack> {
        &self.jack
    }

    /// What a pair of the port's device sends by.
    pub(super) fn sender(&self) -> Sender {
        Sender { bridge: self.bridge.clone(), own: self.jack.number, others: Vec::new(), seen: 0 }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        locked(&self.bridge.ports).retain(|port| !Arc::ptr_eq(port, &self.jack));
        self.bridge.changes.fetch_add(1, Ordering::Release);
        self.bridge.stations.clear(self.jack.number);
    }
}

/// Where frames for a device are put.
pub(super) struct Jack {
    pub(super) number: usize,
    receivers: Box<[Receiver]>,
}

impl Jack {
    /// The receiver of a pair.
    pub(super) fn receiver(&self, pair: u16) -> Option<&Receiver> {
        self.receivers.get(usize::from(pair))
    }

    /// All receivers, those from `first` on before the others, so that the frames of one sender stay in order.
    pub(super) fn receivers_from(&self, first: u16) -> impl Iterator<Item = &Receiver> {
        let first = usize::from(first).checked_rem(self.receivers.len()).unwrap_or_default();
        let (before, after) = self.receivers.split_at_checked(first).unwrap_or_default();
        after.iter().chain(before)
    }
}

/// A pair's receive queue, while it runs.
pub(super) struct Receiver {
    queue: Mutex<Option<Receiving>>,
    /// There is one, so that senders need not look.
    runs: AtomicBool,
    /// It has failed, which its worker has to report.
    failed: AtomicBool,
    /// Gets its engine polled, which may rest.
    bell: Arc<EventFd>,
}

/// A receive queue, and what its driver takes.
pub(super) struct Receiving {
    pub(super) queue: Queue,
    pub(super) mergeable: bool,
    /// What it may be left to do.
    pub(super) takes: Offloads,
}

/// What a sender finds at a receiver.
pub(super) enum Found<'a> {
    /// The queue, for one burst.
    Queue(MutexGuard<'a, Option<Receiving>>),
    /// Somebody else fills it at the moment.
    Busy,
    /// Nothing runs here.
    Nobody,
}

impl Receiver {
    fn new() -> io::Result<Receiver> {
        let bell = Arc::new(EventFd::new()?);
        Ok(Receiver {
            queue: Mutex::default(),
            runs: AtomicBool::default(),
            failed: AtomicBool::default(),
            bell,
        })
    }

    /// Takes the queue, if nobody has it. Never waits.
    pub(super) fn try_take(&self) -> Found<'_> {
        if !self.runs.load(Ordering::Acquire) {
            return Found::Nobody;
        }
        match self.queue.try_lock() {
            Ok(queue) => Found::Queue(queue),
            Err(TryLockError::WouldBlock) => Found::Busy,
            // Its last user died, and the process is about to end for it.
            Err(TryLockError::Poisoned(_)) => Found::Nobody,
        }
    }

    /// Puts a queue there, or takes it away, waiting for a sender's burst to end. What was there before.
    pub(super) fn replace(&self, queue: Option<Receiving>) -> Option<Queue> {
        let mut place = locked(&self.queue);
        self.failed.store(queue.as_ref().is_some_and(|new| new.queue.failed.is_some()), Ordering::Relaxed);
        self.runs.store(queue.is_some(), Ordering::Release);
        std::mem::replace(&mut *place, queue).map(|old| old.queue)
    }

    /// Calls `change` with the queue that runs here, waiting for a sender's burst to end.
    pub(super) fn with(&self, change: impl FnOnce(&mut Queue)) {
        if let Some(receiving) = locked(&self.queue).as_mut() {
            change(&mut receiving.queue);
        }
    }

    /// A sender has seen the queue fail: its worker is to look.
    pub(super) fn has_failed(&self) {
        self.failed.store(true, Ordering::Release);
        self.bell.signal();
    }

    /// Becomes readable, and stays so, when a sender has seen the queue fail. Each time it fails is a signal.
    pub(super) fn bell(&self) -> &Arc<EventFd> {
        &self.bell
    }

    /// Whether the queue has failed.
    pub(super) fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

/// A pair's way to the other ports.
pub(super) struct Sender {
    bridge: Arc<Bridge>,
    own: usize,
    others: Vec<Arc<Jack>>,
    /// The number of changes that `others` is of.
    seen: u64,
}

/// Where a frame goes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// To one port.
    Port(usize),
    /// To all others.
    All,
    /// It has no business here: who it is for is where it comes from, or there is no frame.
    None,
}

impl Target {
    /// Whether a frame of this target goes to this port.
    pub(super) fn is(self, port: usize) -> bool {
        match self {
            Target::Port(number) => number == port,
            Target::All => true,
            Target::None => false,
        }
    }
}

impl Sender {
    /// A burst begins: the ports as they are now, and the tick it is.
    pub(super) fn begin(&mut self) -> u64 {
        let changes = self.bridge.changes.load(Ordering::Acquire);
        if changes != self.seen {
            self.refresh(changes);
        }
        self.bridge.now()
    }

    #[cold]
    fn refresh(&mut self, changes: u64) {
        let ports = locked(&self.bridge.ports);
        self.others = ports.iter().filter(|port| port.number != self.own).cloned().collect();
        self.seen = changes;
    }

    /// The ports of the others.
    pub(super) fn others(&self) -> &[Arc<Jack>] {
        &self.others
    }

    /// Learns where the frame with these addresses comes from, and tells where it goes.
    pub(super) fn target(&self, addresses: [u8; 12], now: u64) -> Target {
        let (destination, source) = addresses.split_at(6);
        let mac = |bytes: &[u8]| bytes.first_chunk().copied().unwrap_or_default();
        self.bridge.stations.learn(mac(source), self.own, now);
        match self.bridge.stations.find(mac(destination), now) {
            Some(port) if port == self.own => Target::None,
            // A port that has just gone is nobody's.
            Some(port) if self.others.iter().any(|other| other.number == port) => Target::Port(port),
            Some(_) | None => Target::All,
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
