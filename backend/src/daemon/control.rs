//! The control thread's loop.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mdev_dma::Windows;

use crate::report::{CounterLine, MemoryLine};
use crate::sys::{Interest, Poll, Readiness, Ready, Timer};
use crate::worker::{EventSource, WorkerEvent};

use super::connection::Connection;
use super::counters::CounterSocket;
use super::key::Key;
use super::plan::{Plan, Plans};
use super::pool::Pool;
use super::served::Served;
use super::signals::Signals;
use super::{DaemonError, stats};

/// How long rings may take to stop when the process ends.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct Control {
    pub(super) poll: Poll,
    timer: Timer,
    signals: Signals,
    events: EventSource,
    pub(super) pool: Arc<Pool>,
    /// The workers poll and never sleep.
    pub(super) busy_workers: bool,
    pub(super) windows: Arc<Windows>,
    pub(super) devices: BTreeMap<u64, Served>,
    pub(super) next_device: u64,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) next_connection: u64,
    /// What is to be served, where that can change.
    pub(super) plans: Option<Box<dyn Plans>>,
    /// What is not served yet.
    pub(super) wanted: Vec<Plan>,
    /// When the rings must have stopped, once the process is to end.
    drain_until: Option<Instant>,
    /// How often rates are written, and when next.
    stats: Option<(Duration, Instant)>,
    counters: Option<CounterSocket>,
    /// Why the process is to end with an error.
    pub(super) failure: Option<DaemonError>,
}

/// What the loop starts with.
pub(super) struct Parts {
    pub(super) signals: Signals,
    pub(super) pool: Pool,
    pub(super) busy_workers: bool,
    pub(super) events: EventSource,
    pub(super) windows: Arc<Windows>,
    pub(super) stats: Option<Duration>,
    pub(super) counters: Option<CounterSocket>,
    pub(super) plans: Option<Box<dyn Plans>>,
}

impl Control {
    /// A loop that serves nothing yet.
    pub(super) fn new(parts: Parts) -> io::Result<Control> {
        let Parts { signals, pool, busy_workers, events, windows, stats, counters, plans } = parts;
        let control = Control {
            poll: Poll::new()?,
            timer: Timer::new()?,
            signals,
            events,
            pool: Arc::new(pool),
            busy_workers,
            windows,
            devices: BTreeMap::new(),
            next_device: 0,
            connections: BTreeMap::new(),
            next_connection: 1,
            plans,
            wanted: Vec::new(),
            drain_until: None,
            stats: stats.map(|every| (every, after(Instant::now(), every))),
            counters,
            failure: None,
        };
        let poll = &control.poll;
        poll.add(&control.timer, Key::Timer.number(), Interest::READ)?;
        poll.add(&control.events, Key::Events.number(), Interest::READ)?;
        poll.add(&control.signals.stop.0, Key::Stop.number(), Interest::READ)?;
        poll.add(&control.signals.print.0, Key::Print.number(), Interest::READ)?;
        if let Some(reload) = &control.signals.reload {
            poll.add(&reload.0, Key::Reload.number(), Interest::READ)?;
        }
        if let Some(counters) = &control.counters {
            poll.add(counters, Key::Counters.number(), Interest::READ)?;
        }
        Ok(control)
    }

    pub(super) fn run(mut self) -> Result<(), DaemonError> {
        let mut ready: Vec<Ready> = Vec::new();
        while !self.finished() {
            self.timer.set(self.next_deadline()).map_err(DaemonError::system("set a timer"))?;
            self.poll.wait(None, &mut ready).map_err(DaemonError::system("wait for descriptors"))?;
            for &(key, readiness) in &ready {
                self.dispatch(Key::of(key), readiness)?;
            }
            self.on_time(Instant::now())?;
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Nobody is there, and nobody can come. Plans may change, so a process that has some waits.
    fn finished(&self) -> bool {
        let nobody_comes = self.plans.is_none() && self.devices.values().all(Served::is_shut);
        self.connections.is_empty() && (nobody_comes || self.draining())
    }

    pub(super) fn draining(&self) -> bool {
        self.drain_until.is_some()
    }

    fn dispatch(&mut self, key: Key, readiness: Readiness) -> Result<(), DaemonError> {
        match key {
            Key::Listener(device) => self.accept(device),
            Key::Connection(conn) => self.serve(conn, readiness),
            Key::Outside(device) => self.look_behind(device),
            Key::Notices(conn) => self.say_notices(conn),
            Key::Events => return self.events.take().into_iter().try_for_each(|event| self.obey(event)),
            Key::Timer => self.timer.rang(),
            Key::Stop => self.drain(),
            Key::Print => {
                self.signals.print.take();
                self.print_counters();
            }
            Key::Reload => {
                if let Some(reload) = &self.signals.reload {
                    reload.take();
                }
                self.reload();
            }
            Key::Counters => self.count(),
        }
        Ok(())
    }

    fn obey(&mut self, event: WorkerEvent) -> Result<(), DaemonError> {
        match event {
            WorkerEvent::Started { .. } => {}
            WorkerEvent::Stopped { token, state, .. } => self.ring_stopped(token, state),
            WorkerEvent::Failed { device_key, index, error } => self.ring_failed(device_key, index, &error),
            WorkerEvent::News { device_key, index, news } => self.queue_news(device_key, index, news),
            WorkerEvent::Missed { device_key, index, iova, perm } => {
                self.ring_missed(device_key, index, iova, perm);
            }
            WorkerEvent::Died { worker } => {
                self.pool.abandon();
                return Err(DaemonError::WorkerDied(worker));
            }
        }
        Ok(())
    }

    /// Something behind a device has changed: whoever asked to be told of its configuration is told.
    fn look_behind(&mut self, device: u64) {
        if self.devices.get(&device).is_some_and(|served| served.device().look()) {
            for conn in self.connections_of(device) {
                let Some(served) = self.devices.get_mut(&device) else { return };
                if let Some(connection) = self.connections.get_mut(&conn) {
                    connection.session.config_changed(&mut served.rings);
                }
            }
        }
    }

    fn print_counters(&self) {
        let mut text: String = self
            .devices
            .values()
            .map(|served| {
                let table = stats::table(served.device().as_ref(), served.names);
                table + &stats::iotlb(served.translations.line())
            })
            .collect();
        text.push_str(&stats::memory(MemoryLine::of(&self.windows)));
        print(&text);
    }

    /// Answers whoever measures this process; without them it has nobody to run for.
    fn count(&mut self) {
        let Some(served) = self.devices.values().next() else { return };
        let line = || CounterLine {
            iotlb: served.translations.line(),
            ..CounterLine::of(served.device().as_ref(), &self.windows)
        };
        if let Some(counters) = self.counters.take_if(|counters| !counters.answer(line)) {
            self.poll.remove(&counters);
            self.drain();
        }
    }

    /// The process is to end: nobody is accepted any more, and everybody's rings are stopped.
    fn drain(&mut self) {
        self.signals.stop.take();
        if self.draining() {
            return;
        }
        match self.devices.values().next() {
            Some(only) if self.plans.is_none() => log::info!("{}: stopping", only.name()),
            _ => log::info!("stopping {} devices", self.devices.len()),
        }
        self.wanted.clear();
        for served in self.devices.values_mut() {
            served.shut(&self.poll);
        }
        self.drain_until = Some(after(Instant::now(), DRAIN_WITHIN));
        let conns: Vec<u64> = self.connections.keys().copied().collect();
        for conn in conns {
            self.close(conn, None);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        let ticks = self.connections.values().filter_map(|connection| connection.tick);
        let comings = self.devices.values().filter_map(|served| served.due(now));
        let stats = self.stats.map(|(_, next)| next);
        let kept = self.devices.values().filter_map(|served| served.kept.until());
        ticks.chain(comings).chain(kept).chain(stats).chain(self.drain_until).min()
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
        if let Some((every, next)) = self.stats.filter(|&(_, next)| next <= now) {
            for Served { rings, rates, names, .. } in self.devices.values_mut() {
                let device = crate::session::Queues::device(rings).as_ref();
                print(&format!("{}\n", rates.line(device, *names, now)));
            }
            self.stats = Some((every, after(next.max(now), every)));
        }
        self.devices.values_mut().for_each(|served| served.kept.on_time(now));
        let due = |served: &Served| served.due(now).is_some_and(|at| at <= now);
        let coming: Vec<u64> =
            self.devices.iter().filter(|(_, served)| due(served)).map(|(&id, _)| id).collect();
        for device in coming {
            self.look_for_front_end(device, now);
        }
        if self.drain_until.is_some_and(|at| at <= now) {
            self.pool.abandon();
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
