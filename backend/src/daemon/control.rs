//! The control thread's loop.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mdev_dma::Windows;

use crate::limit::LogLimit;
use crate::report::MemoryLine;
use crate::session::{Queues, Session, SessionError, SessionOptions};
use crate::sys::{Interest, Poll, Readiness, Ready, Timer};
use crate::worker::{EventSource, WorkerEvent};

use super::counters::CounterSocket;
use super::dialer::Dialer;
use super::endpoint::{Endpoint, Listener};
use super::rings::Rings;
use super::signals::Signals;
use super::stats::{self, QueueNames, Rates};
use super::{DaemonError, Options};

/// Connections at a time.
pub const MAX_CONNECTIONS: usize = 16;

/// Front-ends accepted before others are looked after.
const ACCEPTS_AT_ONCE: usize = MAX_CONNECTIONS;
/// How long accepting pauses when it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long rings may take to stop when the process ends.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

// What the descriptors go by in the poll; a connection goes by its number, counted from 1, above the last of
// these.
const LISTENER: u64 = 0;
const EVENTS: u64 = 1;
const TIMER: u64 = 2;
const STOP: u64 = 3;
const PRINT: u64 = 4;
const COUNTERS: u64 = 5;
const CONNECTION: u64 = 5;

static COMINGS: LogLimit = LogLimit::new(20, Duration::from_secs(10));
static REFUSALS: LogLimit = LogLimit::new(5, Duration::from_secs(10));
static ACCEPT_ERRORS: LogLimit = LogLimit::new(5, Duration::from_secs(10));

pub(super) struct Control {
    poll: Poll,
    timer: Timer,
    signals: Signals,
    events: EventSource,
    rings: Rings,
    windows: Arc<Windows>,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    /// `None` while draining, and where front-ends do not come to us.
    listener: Option<Listener>,
    /// `None` while draining, and where we do not go to a front-end.
    dialer: Option<Dialer>,
    /// Accepting failed: when to try again.
    accept_at: Option<Instant>,
    /// When the rings must have stopped, once the process is to end.
    drain_until: Option<Instant>,
    stats: Option<Stats>,
    counters: Option<CounterSocket>,
    names: QueueNames,
    sessions: SessionOptions,
}

/// One front-end.
struct Connection {
    session: Session,
    interest: Interest,
    /// When the session wants to be called.
    tick: Option<Instant>,
    /// It is gone, but for its rings and its memory.
    closing: bool,
}

/// The line of rates that is written from time to time.
struct Stats {
    every: Duration,
    next: Instant,
    rates: Rates,
}

impl Control {
    pub(super) fn new(
        endpoint: Endpoint,
        rings: Rings,
        events: EventSource,
        windows: Arc<Windows>,
        options: Options,
    ) -> Result<Control, DaemonError> {
        let names = options.queue_names;
        let now = Instant::now();
        let stats = options.stats.map(|every| {
            let rates = Rates::new(rings.device().as_ref(), names, now);
            Stats { every, next: after(now, every), rates }
        });
        let watching = DaemonError::system("watch descriptors");
        let control = (|| {
            let mut control = Control {
                poll: Poll::new()?,
                timer: Timer::new()?,
                signals: Signals::install()?,
                events,
                rings,
                windows,
                connections: BTreeMap::new(),
                next_connection: 1,
                listener: None,
                dialer: None,
                accept_at: None,
                drain_until: None,
                stats,
                counters: options.counters,
                names,
                sessions: options.sessions,
            };
            let poll = &control.poll;
            poll.add(&control.timer, TIMER, Interest::READ)?;
            poll.add(&control.events, EVENTS, Interest::READ)?;
            poll.add(&control.signals.stop.0, STOP, Interest::READ)?;
            poll.add(&control.signals.print.0, PRINT, Interest::READ)?;
            if let Some(counters) = &control.counters {
                poll.add(counters, COUNTERS, Interest::READ)?;
            }
            match endpoint {
                Endpoint::Listening(listener) => {
                    poll.add(&listener, LISTENER, Interest::READ)?;
                    control.listener = Some(listener);
                }
                Endpoint::Connected(socket) => {
                    control.connect(socket)?;
                }
                Endpoint::Dialing(dialer) => control.dialer = Some(dialer),
            }
            Ok(control)
        })();
        control.map_err(watching)
    }

    pub(super) fn run(mut self) -> Result<(), DaemonError> {
        let mut ready: Vec<Ready> = Vec::new();
        while !self.finished() {
            self.timer.set(self.next_deadline()).map_err(DaemonError::system("set a timer"))?;
            self.poll.wait(None, &mut ready).map_err(DaemonError::system("wait for descriptors"))?;
            for &(key, readiness) in &ready {
                self.dispatch(key, readiness)?;
            }
            self.pass_on();
            self.on_time(Instant::now())?;
        }
        Ok(())
    }

    fn finished(&self) -> bool {
        self.connections.is_empty() && self.listener.is_none() && self.dialer.is_none()
    }

    fn dispatch(&mut self, key: u64, readiness: Readiness) -> Result<(), DaemonError> {
        match key {
            LISTENER => self.accept(),
            EVENTS => return self.events.take().into_iter().try_for_each(|event| self.obey(event)),
            TIMER => self.timer.rang(),
            STOP => self.drain(),
            PRINT => {
                self.signals.print.take();
                print(&stats::table(self.rings.device().as_ref(), self.names, MemoryLine::of(&self.windows)));
            }
            COUNTERS => self.count(),
            connection => self.serve(connection - CONNECTION, readiness),
        }
        Ok(())
    }

    /// Answers whoever measures this process; without them it has nobody to run for.
    fn count(&mut self) {
        let (device, windows) = (self.rings.device().as_ref(), &self.windows);
        if let Some(counters) = self.counters.take_if(|counters| !counters.answer(device, windows)) {
            self.poll.remove(&counters);
            self.drain();
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_AT_ONCE {
            let Some(listener) = &self.listener else { return };
            match listener.accept() {
                Ok(None) => return,
                Ok(Some(socket)) => {
                    if let Err(error) = self.connect(socket) {
                        return self.pause(&error);
                    }
                }
                Err(error) => return self.pause(&error),
            }
        }
    }

    /// Nothing can be accepted now, and the listener would be ready all the time: it is left alone for a
    /// moment.
    fn pause(&mut self, error: &io::Error) {
        if let Some(left_out) = ACCEPT_ERRORS.permit() {
            log::error!("cannot accept a front-end: {error}; trying again in {ACCEPT_PAUSE:?}{left_out}");
        }
        if let Some(listener) = &self.listener {
            let _ = self.poll.change(listener, LISTENER, Interest::empty());
            self.accept_at = Some(after(Instant::now(), ACCEPT_PAUSE));
        }
    }

    /// Calls on the front-end.
    fn dial(&mut self, now: Instant) {
        let name = self.rings.device().name();
        let Some(socket) = self.dialer.as_mut().and_then(|dialer| dialer.dial(name, now)) else { return };
        let connected = self.connect(socket);
        let Some(dialer) = &mut self.dialer else { return };
        match connected {
            Ok(Some(conn)) => dialer.connected(conn, now),
            Ok(None) => dialer.wait(now),
            Err(error) => {
                if let Some(left_out) = ACCEPT_ERRORS.permit() {
                    log::error!("cannot serve a front-end: {error}; trying again{left_out}");
                }
                dialer.wait(now);
            }
        }
    }

    /// Begins to serve a front-end: the connection's number, `None` if there are too many.
    fn connect(&mut self, socket: OwnedFd) -> io::Result<Option<u64>> {
        let open = self.connections.values().filter(|connection| !connection.closing).count();
        if open >= MAX_CONNECTIONS {
            if let Some(left_out) = REFUSALS.permit() {
                let name = self.rings.device().name();
                log::warn!("{name}: refused a front-end: {open} are connected, and no more may be{left_out}");
            }
            return Ok(None);
        }
        let conn = self.next_connection;
        let device = self.rings.device().clone();
        let (windows, options) = (self.windows.clone(), self.sessions.clone());
        let session = Session::with_options(conn, socket, device, windows, options)?;
        self.poll.add(session.fd(), CONNECTION + conn, Interest::READ)?;
        self.next_connection += 1;
        let connection = Connection { session, interest: Interest::READ, tick: None, closing: false };
        self.connections.insert(conn, connection);
        if let Some(left_out) = COMINGS.permit() {
            log::info!("{}: connection {conn}: a front-end is there{left_out}", self.rings.device().name());
        }
        Ok(Some(conn))
    }

    /// Something happened on a connection's socket.
    fn serve(&mut self, conn: u64, readiness: Readiness) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let mut result = Ok(());
        if readiness.writable {
            result = connection.session.writable(&mut self.rings);
        }
        if result.is_ok() && (readiness.readable || readiness.hung_up) {
            // Takes what arrived before the hang-up, then ends, also where nothing is read at the moment.
            result = connection.session.readable(&mut self.rings);
        }
        match result {
            Err(error) => self.close(conn, Some(&error)),
            Ok(()) => self.refresh(conn, Instant::now()),
        }
    }

    /// Lets a session go on with what waits for time or memory, watches its socket for what it now wants, and
    /// drops it when its end is complete.
    fn refresh(&mut self, conn: u64, now: Instant) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        connection.tick = connection.session.tick(&mut self.rings, now);
        if connection.closing {
            if connection.session.is_closed() {
                self.connections.remove(&conn);
            }
            return;
        }
        let mut interest = Interest::empty();
        interest.set(Interest::READ, connection.session.wants_read());
        interest.set(Interest::WRITE, connection.session.wants_write());
        if interest != connection.interest {
            connection.interest = interest;
            let _ = self.poll.change(connection.session.fd(), CONNECTION + conn, interest);
        }
    }

    /// Ends a connection; the session stays until its rings have stopped and its memory is let go.
    fn close(&mut self, conn: u64, why: Option<&SessionError>) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        if !connection.closing {
            connection.closing = true;
            self.poll.remove(connection.session.fd());
            connection.session.close(&mut self.rings);
            if let Some(dialer) = &mut self.dialer {
                dialer.ended(conn, Instant::now());
            }
            if let Some(left_out) = COMINGS.permit() {
                let name = self.rings.device().name();
                match why {
                    None => log::info!("{name}: connection {conn}: closed{left_out}"),
                    Some(error @ SessionError::Closed) => {
                        log::info!("{name}: connection {conn}: {error}{left_out}")
                    }
                    Some(error) => log::warn!("{name}: connection {conn}: closed: {error}{left_out}"),
                }
            }
        }
        self.refresh(conn, Instant::now());
    }

    fn obey(&mut self, event: WorkerEvent) -> Result<(), DaemonError> {
        match event {
            WorkerEvent::Started { .. } => {}
            WorkerEvent::Stopped { token, state, .. } => {
                let Some(conn) = self.rings.stopped(token) else { return Ok(()) };
                if let Some(connection) = self.connections.get_mut(&conn) {
                    connection.session.queue_stopped(&mut self.rings, token, state);
                }
                self.refresh(conn, Instant::now());
            }
            WorkerEvent::Failed { index, error, .. } => {
                let owner = self.rings.owner();
                if let Some(connection) = owner.and_then(|conn| self.connections.get_mut(&conn)) {
                    connection.session.queue_failed(index, &error);
                }
            }
            WorkerEvent::Died { worker } => {
                self.rings.abandon();
                return Err(DaemonError::WorkerDied(worker));
            }
        }
        Ok(())
    }

    /// Tells those who wait for the device that it is free, oldest first.
    fn pass_on(&mut self) {
        while self.rings.take_freed() {
            let conns: Vec<u64> = self.connections.keys().copied().collect();
            for conn in conns {
                if let Some(connection) = self.connections.get_mut(&conn) {
                    connection.session.device_free(&mut self.rings);
                }
                self.refresh(conn, Instant::now());
            }
        }
    }

    /// The process is to end: nobody is accepted any more, and everybody's rings are stopped.
    fn drain(&mut self) {
        self.signals.stop.take();
        if self.drain_until.is_some() {
            return;
        }
        log::info!("{}: stopping", self.rings.device().name());
        if let Some(listener) = self.listener.take() {
            self.poll.remove(&listener);
        }
        self.dialer = None;
        self.accept_at = None;
        self.drain_until = Some(after(Instant::now(), DRAIN_WITHIN));
        let conns: Vec<u64> = self.connections.keys().copied().collect();
        for conn in conns {
            self.close(conn, None);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let dial = self.dialer.as_ref().and_then(|dialer| dialer.due(Instant::now()));
        let ticks = self.connections.values().filter_map(|connection| connection.tick);
        let stats = self.stats.as_ref().map(|stats| stats.next);
        ticks.chain(stats).chain(self.accept_at).chain(dial).chain(self.drain_until).min()
    }

    /// Does what is due.
    fn on_time(&mut self, now: Instant) -> Result<(), DaemonError> {
        let due: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.tick.is_some_and(|at| at <= now))
            .map(|(&conn, _)| conn)
            .collect();
        for conn in due {
            self.refresh(conn, now);
        }
        if let Some(stats) = self.stats.as_mut().filter(|stats| stats.next <= now) {
            let device = self.rings.device().as_ref();
            print(&format!("{}\n", stats.rates.line(device, self.names, now)));
            stats.next = after(now, stats.every);
        }
        if self.dialer.as_ref().and_then(|dialer| dialer.due(now)).is_some_and(|at| at <= now) {
            self.dial(now);
        }
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept_at = None;
            if let Some(listener) = &self.listener {
                let _ = self.poll.change(listener, LISTENER, Interest::READ);
            }
        }
        if self.drain_until.is_some_and(|at| at <= now) {
            self.rings.abandon();
            return Err(DaemonError::Drain(DRAIN_WITHIN));
        }
        Ok(())
    }
}

fn after(now: Instant, time: Duration) -> Instant {
    now.checked_add(time).unwrap_or(now)
}

/// Counters are asked for and not log lines: they go to standard error whatever the log level is.
fn print(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
