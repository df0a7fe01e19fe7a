//! Whoever serves a device of the kernel: a worker, and a thread that owns the session.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use mdev_dma::{FilePolicy, Windows};
use mdev_protocol::vduse::DeviceName;
use mdevd::device::VirtioDevice;
use mdevd::session::vduse::model::{Model, Opened};
use mdevd::session::vduse::{Records, Session};
use mdevd::session::{Session as _, SessionError};
use mdevd::sys::{EventFd, Interest, Poll, Timer};
use mdevd::worker::{EventSource, Mode, Worker, WorkerEvent, events};

use crate::stage::rings::Rings;

/// The number of the session's connection, and of the device.
const NUMBER: u64 = 1;

// Keys of the poll.
const ORDERS: u64 = 0;
const EVENTS: u64 = 1;
const TIMER: u64 = 2;
const KERNEL: u64 = 3;

// What it is to do.
const SERVE: u8 = 0;
const CLOSE: u8 = 1;
const DIE: u8 = 2;

/// A device that is served. It is killed when this is dropped.
pub struct Serving {
    order: Arc<AtomicU8>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<Option<SessionError>>>,
}

impl Serving {
    /// Opens the kernel's device and serves it. `folder`: where its rings record what they have in flight, if they do.
    ///
    /// # Panics
    /// No threads or descriptors left, or the records cannot be used.
    pub fn start(model: &Model, device: Arc<dyn VirtioDevice>, folder: Option<&Path>) -> Serving {
        let name: DeviceName = "model".parse().expect("a name");
        let records = folder.map(|folder| Records::open(folder, &name, false).expect("a place for records"));
        let kernel = Arc::new(model.open().expect("a pair of sockets"));
        let (order, wake) = (Arc::new(AtomicU8::new(SERVE)), Arc::new(EventFd::new().expect("an eventfd")));
        let (ordered, woken) = (order.clone(), wake.clone());
        let thread = std::thread::Builder::new().name("kernel-control".into());
        let thread = thread.spawn(move || {
            let mut server =
                Server::new(kernel, device, records.as_ref(), &woken).expect("what a loop needs");
            server.run(&ordered, &woken).expect("the loop can wait")
        });
        Serving { order, wake, thread: Some(thread.expect("a thread")) }
    }

    /// Kills it: whatever it has not done is not done.
    pub fn kill(self) {}

    /// Ends it in order, and says why it had ended before, if it had.
    ///
    /// # Panics
    /// When it panicked.
    pub fn end(mut self) -> Option<SessionError> {
        self.order(CLOSE);
        let thread = self.thread.take()?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn order(&self, order: u8) {
        self.order.store(order, Ordering::Release);
        self.wake.signal();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.order(DIE);
        if let Some(thread) = self.thread.take()
            && let Err(panic) = thread.join()
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(panic);
        }
    }
}

struct Server {
    // Dies first: its thread is joined, and with it goes what it has in flight.
    rings: Rings,
    session: Session,
    events: EventSource,
    poll: Poll,
    timer: Timer,
    interest: Interest,
}

impl Server {
    fn new(
        kernel: Arc<Opened>,
        device: Arc<dyn VirtioDevice>,
        records: Option<&Records>,
        wake: &EventFd,
    ) -> io::Result<Server> {
        let (sink, source) = events()?;
        let worker = Rc::new(Worker::spawn("kernel-worker", None, Mode::Adaptive, sink)?);
        let windows = Windows::new()?;
        let session = Session::new(NUMBER, kernel, device.clone(), windows, FilePolicy::default(), records);
        let session = session.map_err(io::Error::other)?;
        let (poll, timer) = (Poll::new()?, Timer::new()?);
        poll.add(wake, ORDERS, Interest::READ)?;
        poll.add(&source, EVENTS, Interest::READ)?;
        poll.add(&timer, TIMER, Interest::READ)?;
        poll.add(session.fd(), KERNEL, Interest::READ)?;
        let rings = Rings::new(device, NUMBER, worker);
        Ok(Server { rings, session, events: source, poll, timer, interest: Interest::READ })
    }

    fn run(&mut self, order: &AtomicU8, wake: &EventFd) -> io::Result<Option<SessionError>> {
        let mut ready = Vec::new();
        let mut over = None;
        let mut open = true;
        loop {
            if order.load(Ordering::Acquire) == DIE {
                return Ok(over);
            }
            if order.load(Ordering::Acquire) == CLOSE && open {
                self.session.close(&mut self.rings);
                open = false;
            }
            let next = self.session.tick(&mut self.rings, Instant::now());
            if self.session.is_closed() && order.load(Ordering::Acquire) == CLOSE {
                return Ok(over);
            }
            self.timer.set(next)?;
            let mut interest = Interest::empty();
            interest.set(Interest::READ, self.session.wants_read());
            if open && interest != self.interest {
                self.interest = interest;
                self.poll.change(self.session.fd(), KERNEL, interest)?;
            }
            self.poll.wait(None, &mut ready)?;
            for &(key, _) in &ready {
                match key {
                    ORDERS => drop(wake.drain()),
                    EVENTS => self.events.take().into_iter().for_each(|event| self.obey(event)),
                    TIMER => self.timer.rang(),
                    _ if !open => {}
                    _ => {
                        if let Err(error) = self.session.readable(&mut self.rings) {
                            self.poll.remove(self.session.fd());
                            self.session.close(&mut self.rings);
                            (over, open) = (Some(error), false);
                        }
                    }
                }
            }
        }
    }

    fn obey(&mut self, event: WorkerEvent) {
        match event {
            WorkerEvent::Started { .. } => {}
            WorkerEvent::Stopped { token, state, .. } => {
                self.rings.stopped(token).expect("somebody has stopped it");
                self.session.queue_stopped(&mut self.rings, token, state);
                if self.rings.take_freed() {
                    self.session.device_free(&mut self.rings);
                }
            }
            WorkerEvent::Failed { index, error, .. } => self.session.queue_failed(index, &error),
            WorkerEvent::Missed { index, iova, perm, .. } => {
                self.session.queue_missed(&mut self.rings, index, iova, perm);
            }
            WorkerEvent::News { .. } => unreachable!("virtio has rings only"),
            WorkerEvent::Died { worker } => panic!("{worker} died"),
        }
    }
}
