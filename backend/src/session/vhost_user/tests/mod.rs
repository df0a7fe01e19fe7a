//! Sessions on real sockets, against a device and workers that only take notes.
//!
//! Everything runs in one thread: a front-end sends, [`House::pump`] plays the daemon until nothing moves any more,
//! and what has been answered by then was answered without waiting for anybody.

mod barriers;
mod connections;
mod features;
mod front;
mod hostile;
mod inband;
mod inflight;
mod iommu;
mod iotlb;
mod messages;
mod prefault;
mod qemu;
mod random;
mod starts;

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mdev_dma::Windows;

use super::{IotlbCounters, Session, SessionError, SessionOptions};
use crate::device::VirtioDevice;
use crate::ring::QueueState;
use crate::session::Session as _;
use crate::session::tests::mock::{self, MockDevice, MockQueues};
use front::Front;

/// The daemon's part: one device, its queues, the sessions on it.
struct House {
    device: Arc<MockDevice>,
    windows: Arc<Windows>,
    queues: MockQueues,
    sessions: BTreeMap<u64, Session>,
    /// Why sessions ended.
    ended: BTreeMap<u64, SessionError>,
    options: SessionOptions,
    translations: Arc<IotlbCounters>,
    next: u64,
}

impl House {
    fn new(queues: u16) -> Self {
        let device = Arc::new(MockDevice::new(queues));
        House {
            queues: MockQueues::new(device.clone()),
            device,
            windows: Windows::new().unwrap(),
            sessions: BTreeMap::new(),
            ended: BTreeMap::new(),
            options: SessionOptions::default(),
            translations: Arc::default(),
            next: 1,
        }
    }

    /// Deadlines are over before a test gets tired.
    fn impatient(queues: u16) -> Self {
        let mut house = House::new(queues);
        house.options.barrier = Duration::from_millis(1);
        house
    }

    fn connect(&mut self) -> Front {
        let (theirs, ours) = UnixStream::pair().unwrap();
        let conn = self.next;
        self.next += 1;
        let device: Arc<dyn VirtioDevice> = self.device.clone();
        let session =
            Session::with_options(conn, ours, device, self.windows.clone(), self.options.clone()).unwrap();
        let session = session.counted_in(self.translations.clone());
        self.sessions.insert(conn, session);
        Front::new(conn, theirs)
    }

    fn session(&mut self, conn: u64) -> &mut Session {
        self.sessions.get_mut(&conn).unwrap()
    }

    /// Does what the daemon does, until nothing changes.
    fn pump(&mut self) {
        loop {
            let before = self.queues.progress;
            let conns: Vec<u64> = self.sessions.keys().copied().collect();
            for conn in conns {
                self.turn(conn);
            }
            for (conn, token, base) in self.queues.take_stopped() {
                let state = QueueState::split(base);
                if let Some(session) = self.sessions.get_mut(&conn) {
                    session.queue_stopped(&mut self.queues, token, state);
                }
            }
            if self.queues.take_freed() {
                for session in self.sessions.values_mut() {
                    session.device_free(&mut self.queues);
                }
            }
            self.sessions.retain(|_, session| !session.is_closed());
            if self.queues.progress == before && self.sessions.values().all(is_quiet) {
                return;
            }
        }
    }

    /// A session's turn: what an event loop would do for it.
    fn turn(&mut self, conn: u64) {
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        session.tick(&mut self.queues, Instant::now());
        let result = if session.wants_write() { session.writable(&mut self.queues) } else { Ok(()) };
        let result = result.and_then(|()| session.readable(&mut self.queues));
        if let Err(error) = result {
            session.close(&mut self.queues);
            self.ended.entry(conn).or_insert(error);
        }
    }

    /// Lets the stops finish that [`MockQueues::hold_stops`] held back.
    fn release_stops(&mut self) {
        self.queues.hold_stops = false;
        self.pump();
    }

    /// Pumps until `done`, for what depends on a deadline.
    fn pump_until(&mut self, mut done: impl FnMut(&mut House) -> bool) {
        let watchdog = Instant::now();
        while !done(self) {
            assert!(watchdog.elapsed() < Duration::from_secs(20), "nothing happened for 20 s");
            self.pump();
            std::thread::yield_now();
        }
    }
}

/// Whether nothing is left to read that the session wants to read.
fn is_quiet(session: &Session) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    if !session.wants_read() {
        return true;
    }
    let socket = session.fd();
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 0
}
