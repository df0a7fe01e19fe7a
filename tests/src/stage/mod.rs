//! Devices of the product on one worker thread, with sessions in front of them: a stage on which a hostile front-end acts while a
//! well-behaved one, on the same worker, must not notice.
//!
//! The stage plays the daemon: a control thread owns the sessions and tells the worker what to run. What makes it different from the
//! daemon is that several devices share its one worker, which is what the tests are about. Everything a guest does is done with the
//! product's own `driver`, and with raw writes where a guest misbehaves.
//!
//! Only one [`Stage`] exists at a time in a process: it counts the process's file descriptors before and after.
//!
//! Nothing here sleeps for a fixed time; what is waited for comes, or a watchdog ends the test and says what did not come.

mod census;
mod churn;
mod control;
mod guest;
mod journal;
mod packed;
mod port;
pub(crate) mod rings;
mod sayings;
mod traffic;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mdev_dma::Windows;
use mdevd::device::net::{NetConfig, NetDevice};
use mdevd::device::{Device, QueueCounters, VirtioDevice};
use mdevd::link::LinkKind;
use mdevd::ring::RingError;
use mdevd::session::{IotlbCounters, IotlbLine};
use mdevd::sys::EventFd;
use mdevd::worker::{Mode, Worker, events};

use control::{Order, Parts};
use journal::Journal;

pub use census::Alone;
pub use churn::Busy;
pub use guest::{FEATURES, Guest, GuestOptions, PROTOCOL};
pub use journal::Ending;
pub use packed::{PackedGuest, Piece};
pub use port::{BUFFER, Port};
pub use traffic::Traffic;

/// How long anything may take before a test gives up. Nothing is expected to take longer than a small part of it.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// Waits until `done`.
///
/// # Panics
/// When that does not come, saying `what` was waited for.
pub fn await_that(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + WATCHDOG;
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Devices on one worker.
pub struct Stage {
    devices: Vec<Arc<NetDevice>>,
    windows: Arc<Windows>,
    translations: Arc<IotlbCounters>,
    journal: Arc<Journal>,
    orders: Sender<Order>,
    wake: Arc<EventFd>,
    control: Option<JoinHandle<()>>,
    connections: AtomicU64,
    alone: Option<Alone>,
}

impl Stage {
    /// A network device of one queue pair for each of `links`, all on one worker that runs in `mode`.
    ///
    /// # Panics
    /// When the machine has no threads or descriptors left.
    pub fn new(mode: Mode, links: &[LinkKind]) -> Stage {
        let alone = Alone::begin();
        sayings::listen();
        let windows = Windows::new().expect("lost memory can be contained");
        let devices: Vec<Arc<NetDevice>> =
            links.iter().enumerate().map(|(number, link)| Arc::new(device(number, *link))).collect();
        let (sink, source) = events().expect("an eventfd");
        let worker = Worker::spawn("stage-worker", None, mode, sink).expect("a worker");
        let (orders, receiver) = mpsc::channel();
        let translations = Arc::new(IotlbCounters::default());
        let (wake, journal) = (Arc::new(EventFd::new().expect("an eventfd")), Arc::new(Journal::default()));
        let parts = Parts {
            worker,
            events: source,
            orders: receiver,
            wake: wake.clone(),
            devices: devices.iter().map(|device| device.clone() as Arc<dyn VirtioDevice>).collect(),
            windows: windows.clone(),
            translations: translations.clone(),
            journal: journal.clone(),
        };
        let thread = std::thread::Builder::new().name("stage-control".into());
        let control = thread.spawn(move || control::run(parts)).expect("a thread");
        Stage {
            devices,
            windows,
            translations,
            journal,
            orders,
            wake,
            control: Some(control),
            connections: AtomicU64::new(1),
            alone: Some(alone),
        }
    }

    /// The usual stage: device 0 gives the victim its frames back, and so does device 1 to the attacker.
    pub fn of_two(mode: Mode) -> Stage {
        Stage::new(mode, &[LinkKind::Loopback; 2])
    }

    /// A connection to a device: its number, and the front-end's end of the socket.
    ///
    /// # Panics
    /// When the machine has no descriptors left.
    pub fn connect(&self, device: usize) -> (u64, UnixStream) {
        let (theirs, ours) = UnixStream::pair().expect("a pair of sockets");
        let conn = self.connections.fetch_add(1, Ordering::Relaxed);
        self.order(Order::Connect { conn, device, socket: ours.into() });
        (conn, theirs)
    }

    /// The counters of a queue.
    ///
    /// # Panics
    /// When there is no such queue.
    pub fn counters(&self, device: usize, queue: u16) -> QueueCounters {
        self.devices[device].queue_stats(queue).expect("the queue exists").counters()
    }

    /// The windows through which the devices see their guests' memory.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// What has happened in the IOTLBs of all connections.
    pub fn translations(&self) -> IotlbLine {
        self.translations.line()
    }

    /// The next error that latched in a queue of this connection: the queue's index, and what it is.
    pub fn failure(&self, conn: u64) -> (u16, RingError) {
        self.journal.take(&format!("a latched error on connection {conn}"), |notes| notes.failure(conn))
    }

    /// Whether a queue of this connection has latched an error that [`Stage::failure`] did not return yet.
    pub fn has_failed(&self, conn: u64) -> bool {
        self.journal.look(|notes| notes.has_failed(conn))
    }

    /// Waits until nothing of a connection is left on the back-end's side, and says how it ended.
    pub fn ending(&self, conn: u64) -> Ending {
        self.journal.take(&format!("the end of connection {conn}"), |notes| notes.ending(conn))
    }

    /// Waits until the product has logged a line with `words` in it since the last call, and returns that line.
    pub fn said(&self, words: &str) -> String {
        let mut line = String::new();
        await_that(&format!("a log line with {words:?}; there was {:?}", sayings::all()), || {
            sayings::take(words).is_some_and(|found| {
                line = found;
                true
            })
        });
        line
    }

    /// Ends the stage and holds it to account: the victim's frames all arrived, its counters are clean, every connection is over, no
    /// window is left, and the process has the descriptors it had before.
    ///
    /// # Panics
    /// When one of these does not hold.
    pub fn end(mut self, victim: Traffic) {
        let guest = victim.end();
        for queue in 0..2 {
            let counters = self.counters(guest.device, queue);
            let clean = (counters.dropped(), counters.parks, counters.errors) == (0, 0, 0);
            assert!(clean && counters.packets > 0, "the victim's queue {queue} noticed: {counters:?}");
        }
        self.leave(guest);
        self.stop();
        assert_eq!(self.windows.live(), 0, "windows are left after the last connection");
        let alone = self.alone.take();
        drop(self);
        if let Some(alone) = alone {
            alone.end();
        }
    }

    /// Ends a guest's connection, and waits until nothing of it is left.
    ///
    /// # Panics
    /// When the device still holds pins on its memory, or the connection did not end by its front-end's wish.
    pub fn leave(&self, guest: Guest) {
        let conn = guest.conn;
        drop(guest);
        let ending = self.ending(conn);
        assert_eq!((ending.pins, ending.clean), (0, true), "{ending:?}");
    }

    fn order(&self, order: Order) {
        let _ = self.orders.send(order);
        self.wake.signal();
    }

    fn stop(&mut self) {
        self.order(Order::End);
        if let Some(control) = self.control.take()
            && control.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the control thread panicked");
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop();
    }
}

fn device(number: usize, link: LinkKind) -> NetDevice {
    let config = NetConfig { name: format!("net{number}"), queue_pairs: 1, mac: None, mtu: None, link };
    NetDevice::new(config).expect("the configuration is valid")
}
