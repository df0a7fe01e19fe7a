//! The worker's thread: rounds over its engines, commands between rounds, sleep when a round found nothing.
//!
//! Of its engines it polls those that have had work lately; the others rest, see [`Roster`]. In the modes that sleep a
//! resting engine is armed: its driver kicks, and the kick is found by a look at the poll, once in so many rounds while
//! others have work. A worker that sleeps has put all its engines to rest. In busy mode nobody is asked for kicks, and
//! those that rest are polled in turn.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::device::{Device, QueueSetup, VirtioDevice};
use crate::sys::{EventFd, Interest, Poll, Ready};

use super::roster::Roster;
use super::slot::{NOWHERE, Slot};
use super::{Command, EventSink, MakeEngine, Mode, WorkerEvent};

/// The wake-up for commands and for parked queues. Slots, and with them their descriptors, have numbers above it.
const COMMANDS: u64 = 0;
/// How often a sleeping worker looks at rings whose driver cannot wake it.
const LOOK: Duration = Duration::from_millis(1);
/// A worker that does not sleep counts the kicks that came all the same once in so many rounds.
const ROUNDS_PER_COUNT: u32 = 1 << 14;

/// An engine that has found no work in so many rounds rests as soon as others have some. It is about the time that the adaptive
/// mode polls without work.
const IDLE_ROUNDS: u32 = 64;
/// While others have work, those that rest are looked after once in so many rounds: by a system call where they can kick.
const ROUNDS_PER_LOOK: u32 = 32;
/// The same where they cannot: one of them is polled.
const ROUNDS_PER_TURN: u32 = 4;

pub(super) struct Runner {
    mode: Mode,
    commands: Receiver<Command>,
    wake: Arc<EventFd>,
    sink: EventSink,
    poll: Poll,
    /// What the last wait found; kept for its memory.
    ready: Vec<Ready>,
    slots: Roster<Slot>,
    /// Those that rest and may have to be polled although nobody wakes them, and when.
    alarms: Vec<(Instant, u64)>,
    next_slot: u64,
    rounds: u32,
    /// Since when rounds have found no work, plus the mode's patience: when to sleep.
    sleep_at: Option<Instant>,
}

impl Runner {
    pub(super) fn new(
        mode: Mode,
        commands: Receiver<Command>,
        wake: Arc<EventFd>,
        sink: EventSink,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.add(wake.as_ref(), COMMANDS, Interest::READ | Interest::EDGE)?;
        Ok(Runner {
            mode,
            commands,
            wake,
            sink,
            poll,
            ready: Vec::new(),
            slots: Roster::new(),
            alarms: Vec::new(),
            next_slot: COMMANDS + 1,
            rounds: 0,
            sleep_at: None,
        })
    }

    pub(super) fn run(mut self) {
        while self.obey() {
            if self.round() {
                self.sleep_at = None;
            } else if self.tired() {
                self.sleep();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Obeys the commands that have come; `false` after `Quit`.
    fn obey(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Quit) | Err(TryRecvError::Disconnected) => return false,
                Ok(command) => self.obey_one(command),
                Err(TryRecvError::Empty) => return true,
            }
            self.sleep_at = None;
        }
    }

    fn obey_one(&mut self, command: Command) {
        match command {
            Command::Start { token, device, device_key, features, setup } => {
                self.start(device, device_key, features, *setup);
                self.sink.tell(WorkerEvent::Started { token });
            }
            Command::Run { device, device_key, index, kick, make } => {
                self.run_engine(device, device_key, index, kick, make);
            }
            Command::Stop { token, device_key, index } => {
                let id = self.find(device_key, index);
                match id.and_then(|id| self.rouse(id)) {
                    Some((slot, poll, sink)) => slot.stop(index, token, poll, sink),
                    None => {
                        self.sink.tell(WorkerEvent::Stopped { token, index, state: NOWHERE, clean: false });
                    }
                }
                self.sweep();
            }
            Command::Cancel { device_key, index } => {
                self.with(device_key, index, |slot| slot.cancel(index));
            }
            Command::Abort { device_key, index, cid, number } => {
                self.with(device_key, index, |slot| slot.abort(index, cid, number));
            }
            Command::Forsake { device_key, index, iova } => {
                self.with(device_key, index, |slot| slot.forsake(index, iova));
            }
            Command::SetCall { device_key, index, call } => {
                self.with(device_key, index, |slot| slot.set_call(index, call));
            }
            Command::SetErr { device_key, index, err } => {
                self.with(device_key, index, |slot| slot.set_err(index, err));
            }
            Command::Look { device_key, index } => self.with(device_key, index, |_| {}),
            Command::Quit => {}
        }
    }

    fn start(&mut self, device: Arc<dyn VirtioDevice>, device_key: u64, features: u64, setup: QueueSetup) {
        self.end(device_key, setup.index);
        let group = device.group(setup.index);
        let there = self.slots.iter().find(|slot| slot.device_key == device_key && slot.group == group);
        let id = there.map(Slot::number).unwrap_or_else(|| {
            let id = self.number();
            self.slots.push(Slot::of_rings(id, device, device_key, group, features, &self.poll));
            id
        });
        let waker = Waker::from(self.wake.clone());
        if let Some((slot, poll, sink)) = self.rouse(id) {
            slot.start(setup, poll, sink, waker);
        }
    }

    fn run_engine(
        &mut self,
        device: Arc<dyn Device>,
        device_key: u64,
        index: u16,
        kick: Option<Arc<EventFd>>,
        make: MakeEngine,
    ) {
        self.end(device_key, index);
        let engine = make(Waker::from(self.wake.clone()));
        let mut slot = Slot::new(self.number(), device, device_key, index, engine, &self.poll);
        slot.run(index, kick, &self.poll);
        self.slots.push(slot);
    }

    /// The number of the next slot.
    fn number(&mut self) -> u64 {
        let id = self.next_slot;
        self.next_slot += 1;
        id
    }

    /// Ends a queue that is to be replaced.
    fn end(&mut self, device_key: u64, index: u16) {
        let before = self.find(device_key, index);
        if let Some((slot, poll, sink)) = before.and_then(|id| self.rouse(id)) {
            slot.end(index, poll, sink);
            self.sweep();
        }
    }

    /// Gives up the engines whose last queue has stopped.
    fn sweep(&mut self) {
        let (poll, sink) = (&self.poll, &self.sink);
        self.slots.sweep(Slot::is_empty, |slot| slot.leave(poll, sink));
    }

    /// The number of the slot that has a queue.
    fn find(&self, device_key: u64, index: u16) -> Option<u64> {
        self.slots.iter().find(|slot| slot.has(device_key, index)).map(Slot::number)
    }

    /// Changes the slot that has a queue. It is polled from now on, since there may be work now.
    fn with(&mut self, device_key: u64, index: u16, change: impl FnOnce(&mut Slot)) {
        let id = self.find(device_key, index);
        if let Some((slot, ..)) = id.and_then(|id| self.rouse(id)) {
            change(slot);
        }
    }

    /// Has a slot polled again; its drivers are told that they need not kick.
    fn rouse(&mut self, id: u64) -> Option<(&mut Slot, &Poll, &EventSink)> {
        let (rested, slot) = self.slots.wake(id)?;
        if rested {
            slot.idle = 0;
            slot.engine.disarm();
            self.alarms.retain(|&(_, other)| other != id);
        }
        Some((slot, &self.poll, &self.sink))
    }

    /// One burst on each queue of each engine that does not rest; whether there was work.
    fn round(&mut self) -> bool {
        let mut work = false;
        let mut left = false;
        let mut idle = false;
        for slot in self.slots.polled() {
            work |= slot.round(&self.sink);
            left |= slot.is_empty();
            idle |= slot.idle >= IDLE_ROUNDS;
        }
        self.rounds = self.rounds.wrapping_add(1);
        if self.slots.resting_count() > 0 {
            work |= self.look_after_resting(work);
        }
        if idle && work && self.slots.polled_count() > 1 {
            self.rest_idle();
        }
        if left {
            self.sweep();
        }
        if self.rounds.is_multiple_of(ROUNDS_PER_COUNT) {
            self.slots.polled().iter_mut().for_each(Slot::count_kicks);
            // Only where nobody sleeps: of a driver that was asked for kicks each one is to be found by a look, and one that
            // was counted first would be lost.
            if self.mode == Mode::Busy
                && let Some(slot) = self.slots.next_resting()
            {
                slot.count_kicks();
            }
        }
        work
    }

    /// Looks after those that rest while the worker does not sleep. Whether there was work.
    fn look_after_resting(&mut self, busy: bool) -> bool {
        if self.mode != Mode::Busy {
            if self.rounds.is_multiple_of(ROUNDS_PER_LOOK) {
                self.look(Some(Duration::ZERO));
            }
            return false;
        }
        if busy && !self.rounds.is_multiple_of(ROUNDS_PER_TURN) {
            return false;
        }
        let Some(slot) = self.slots.next_resting() else { return false };
        let (work, id) = (slot.round(&self.sink), slot.number());
        if slot.is_empty() {
            self.sweep();
        } else if work {
            self.slots.wake(id);
        }
        work
    }

    /// Those that have long found nothing rest, all but one.
    #[cold]
    fn rest_idle(&mut self) {
        for at in (0..self.slots.polled_count()).rev() {
            if self.slots.polled_count() <= 1 {
                return;
            }
            let Some(slot) = self.slots.polled().get_mut(at).filter(|slot| slot.idle >= IDLE_ROUNDS) else {
                continue;
            };
            slot.idle = 0;
            if self.mode == Mode::Busy {
                self.slots.rest(at);
            } else {
                self.rest_armed(at);
            }
        }
    }

    /// Asks the drivers of one that is polled for kicks, looks once more, and lets it rest if there still is nothing.
    fn rest_armed(&mut self, at: usize) {
        let Some(slot) = self.slots.polled().get_mut(at) else { return };
        if slot.engine.arm() {
            slot.engine.disarm();
            return;
        }
        let parked = slot.next_deadline();
        let blind = slot.is_blind().then(|| Instant::now() + LOOK);
        let (alarm, id) = (parked.into_iter().chain(blind).min(), slot.number());
        self.slots.rest(at);
        self.alarms.extend(alarm.map(|at| (at, id)));
    }

    /// Whether rounds without work have gone on for long enough to sleep.
    fn tired(&mut self) -> bool {
        if self.slots.is_empty() {
            return true;
        }
        let Some(patience) = self.mode.patience() else { return false };
        if patience.is_zero() || self.slots.polled_count() == 0 {
            return true;
        }
        let now = Instant::now();
        now >= *self.sleep_at.get_or_insert(now + patience)
    }

    /// Puts all to rest, and sleeps if none of them has found work meanwhile.
    fn sleep(&mut self) {
        for at in (0..self.slots.polled_count()).rev() {
            self.rest_armed(at);
        }
        if self.slots.polled_count() > 0 {
            self.sleep_at = None;
            return;
        }
        let alarm = self.alarms.iter().map(|&(at, _)| at).min();
        self.look(alarm.map(|at| at.saturating_duration_since(Instant::now())));
    }

    /// Waits for so long for what wakes those that rest (and for commands), and wakes them.
    fn look(&mut self, timeout: Option<Duration>) {
        if let Err(error) = self.poll.wait(timeout, &mut self.ready) {
            // Cannot happen with a valid instance; polling goes on, at the pace of a look.
            log::error!("epoll_wait failed: {error}");
            std::thread::sleep(LOOK);
        }
        let mut ready = std::mem::take(&mut self.ready);
        for (key, readiness) in ready.drain(..) {
            if key == COMMANDS {
                self.wake.drain();
                // Perhaps it was the translation that a parked queue misses.
                self.rouse_alarmed(|_| true);
                continue;
            }
            // A look that was not asked for must not buy polling time; a kick does.
            self.sleep_at = None;
            if let Some((slot, poll, _)) = self.rouse(Slot::number_of(key)) {
                slot.kicked(key, readiness.hung_up, poll);
            }
        }
        self.ready = ready;
        if !self.alarms.is_empty() {
            let now = Instant::now();
            self.rouse_alarmed(|at| at <= now);
        }
    }

    fn rouse_alarmed(&mut self, due: impl Fn(Instant) -> bool) {
        while let Some(&(_, id)) = self.alarms.iter().find(|&&(at, _)| due(at)) {
            self.alarms.retain(|&(_, other)| other != id);
            self.rouse(id);
        }
    }
}

#[cfg(test)]
mod tests;
