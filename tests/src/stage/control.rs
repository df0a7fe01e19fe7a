//! The stage's control thread: what the daemon does, for several devices.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use mdev_dma::Windows;
use mdevd::device::VirtioDevice;
use mdevd::session::vhost_user::Session;
use mdevd::session::{IotlbCounters, Session as _, SessionError};
use mdevd::sys::{EventFd, Interest, Poll, Readiness, Timer};
use mdevd::worker::{EventSource, Worker, WorkerEvent};

use super::journal::{Ending, Journal};
use super::rings::Rings;

/// What a test wants done.
pub(super) enum Order {
    Connect { conn: u64, device: usize, socket: OwnedFd },
    End,
}

/// What the thread is given.
pub(super) struct Parts {
    pub(super) worker: Worker,
    pub(super) events: EventSource,
    pub(super) orders: Receiver<Order>,
    pub(super) wake: Arc<EventFd>,
    pub(super) devices: Vec<Arc<dyn VirtioDevice>>,
    pub(super) windows: Arc<Windows>,
    pub(super) translations: Arc<IotlbCounters>,
    pub(super) journal: Arc<Journal>,
}

// Keys of the poll; connections go by their numbers above them.
const ORDERS: u64 = 0;
const EVENTS: u64 = 1;
const TIMER: u64 = 2;
const CONNECTION: u64 = 3;

struct Connection {
    device: usize,
    session: Session,
    interest: Interest,
    tick: Option<Instant>,
    /// Why it ended, once it has.
    over: Option<SessionError>,
}

struct Control {
    poll: Poll,
    timer: Timer,
    events: EventSource,
    orders: Receiver<Order>,
    wake: Arc<EventFd>,
    rings: Vec<Rings>,
    connections: BTreeMap<u64, Connection>,
    windows: Arc<Windows>,
    translations: Arc<IotlbCounters>,
    journal: Arc<Journal>,
}

/// Runs until [`Order::End`].
pub(super) fn run(parts: Parts) {
    // Whoever waits for a note hears of it when this thread ends, also when it panics.
    struct Over(Arc<Journal>);
    impl Drop for Over {
        fn drop(&mut self) {
            self.0.over();
        }
    }
    let _over = Over(parts.journal.clone());
    Control::new(parts).expect("descriptors for a loop").run().expect("the loop can wait");
}

impl Control {
    fn new(parts: Parts) -> io::Result<Control> {
        let Parts { worker, events, orders, wake, devices, windows, translations, journal } = parts;
        let (poll, timer) = (Poll::new()?, Timer::new()?);
        poll.add(wake.as_ref(), ORDERS, Interest::READ)?;
        poll.add(&events, EVENTS, Interest::READ)?;
        poll.add(&timer, TIMER, Interest::READ)?;
        let worker = Rc::new(worker);
        let rings = devices.into_iter().zip(0..).map(|(device, key)| Rings::new(device, key, worker.clone()));
        let rings = rings.collect();
        let connections = BTreeMap::new();
        Ok(Control { poll, timer, events, orders, wake, rings, connections, windows, translations, journal })
    }

    fn run(mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        loop {
            let next = self.connections.values().filter_map(|connection| connection.tick).min();
            self.timer.set(next)?;
            self.poll.wait(None, &mut ready)?;
            for &(key, readiness) in &ready {
                match key {
                    ORDERS => {
                        self.wake.drain();
                        while let Ok(order) = self.orders.try_recv() {
                            match order {
                                Order::Connect { conn, device, socket } => {
                                    self.connect(conn, device, socket)?
                                }
                                Order::End => return Ok(()),
                            }
                        }
                    }
                    EVENTS => self.events.take().into_iter().for_each(|event| self.obey(event)),
                    TIMER => self.timer.rang(),
                    conn => self.serve(conn - CONNECTION, readiness),
                }
            }
            self.pass_on();
            let now = Instant::now();
            let due = |connection: &Connection| connection.tick.is_some_and(|at| at <= now);
            for conn in self.those(due) {
                self.refresh(conn);
            }
        }
    }

    fn connect(&mut self, conn: u64, device: usize, socket: OwnedFd) -> io::Result<()> {
        let shared = self.rings[device].device.clone();
        let session = Session::new(conn, socket, shared, self.windows.clone())?;
        let session = session.counted_in(self.translations.clone());
        self.poll.add(session.fd(), CONNECTION + conn, Interest::READ)?;
        let connection = Connection { device, session, interest: Interest::READ, tick: None, over: None };
        self.connections.insert(conn, connection);
        Ok(())
    }

    fn serve(&mut self, conn: u64, readiness: Readiness) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        if connection.over.is_some() {
            return;
        }
        let rings = &mut self.rings[connection.device];
        let mut result = Ok(());
        if readiness.writable {
            result = connection.session.writable(rings);
        }
        if result.is_ok() && (readiness.readable || readiness.hung_up) {
            result = connection.session.readable(rings);
        }
        if let Err(error) = result {
            self.poll.remove(connection.session.fd());
            connection.session.close(rings);
            connection.over = Some(error);
        }
        self.refresh(conn);
    }

    fn refresh(&mut self, conn: u64) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let rings = &mut self.rings[connection.device];
        connection.tick = connection.session.tick(rings, Instant::now());
        if let Some(why) = &connection.over {
            if connection.session.is_closed() {
                let clean = matches!(why, SessionError::Closed);
                let ending = Ending { why: why.to_string(), clean, pins: rings.pins_left(conn) };
                // Before anybody is told: what the session held is gone then.
                self.connections.remove(&conn);
                self.journal.ended(conn, ending);
            }
            return;
        }
        let mut interest = Interest::empty();
        interest.set(Interest::READ, connection.session.wants_read());
        interest.set(Interest::WRITE, connection.session.wants_write());
        if interest != connection.interest {
            connection.interest = interest;
            self.poll.change(connection.session.fd(), CONNECTION + conn, interest).expect("it is watched");
        }
    }

    fn obey(&mut self, event: WorkerEvent) {
        match event {
            WorkerEvent::Started { .. } => {}
            WorkerEvent::Stopped { token, state, .. } => {
                let stopped = self.rings.iter_mut().find_map(|rings| rings.stopped(token));
                let conn = stopped.unwrap_or_else(|| panic!("nobody stopped a ring with token {token}"));
                if let Some(connection) = self.connections.get_mut(&conn) {
                    connection.session.queue_stopped(&mut self.rings[connection.device], token, state);
                }
                self.refresh(conn);
            }
            WorkerEvent::Failed { device_key, index, error } => {
                let Some(conn) = self.rings[device_key as usize].owner else { return };
                if let Some(connection) = self.connections.get_mut(&conn) {
                    connection.session.queue_failed(index, &error);
                }
                self.journal.failed(conn, index, error);
            }
            WorkerEvent::News { .. } => unreachable!("vhost-user has rings only"),
            WorkerEvent::Missed { device_key, index, iova, perm } => {
                let Some(conn) = self.rings[device_key as usize].owner else { return };
                if let Some(connection) = self.connections.get_mut(&conn) {
                    let rings = &mut self.rings[connection.device];
                    connection.session.queue_missed(rings, index, iova, perm);
                }
                self.refresh(conn);
            }
            WorkerEvent::Died { worker } => panic!("{worker} died"),
        }
    }

    /// Tells those who wait for a device that it is free.
    fn pass_on(&mut self) {
        for device in 0..self.rings.len() {
            while self.rings[device].take_freed() {
                for conn in self.those(|connection| connection.device == device) {
                    if let Some(connection) = self.connections.get_mut(&conn) {
                        connection.session.device_free(&mut self.rings[device]);
                    }
                    self.refresh(conn);
                }
            }
        }
    }

    fn those(&self, which: impl Fn(&Connection) -> bool) -> Vec<u64> {
        let found = self.connections.iter().filter(|(_, connection)| which(connection));
        found.map(|(&conn, _)| conn).collect()
    }
}
