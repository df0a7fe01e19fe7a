//! The worker's thread: rounds over its engines, commands between rounds, sleep when a round found nothing.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::device::{Device, QueueSetup};
use crate::sys::{EventFd, Interest, Poll, Ready};

use super::slot::{NOWHERE, Slot};
use super::{Command, EventSink, Mode, WorkerEvent};

/// The wake-up for commands and for parked queues; kicks go by numbers above it.
const COMMANDS: u64 = 0;
/// How often a sleeping worker looks at rings whose driver cannot wake it.
const LOOK: Duration = Duration::from_millis(1);
/// A worker that does not sleep counts the kicks that came all the same once in so many rounds.
const ROUNDS_PER_COUNT: u32 = 1 << 14;

pub(super) struct Runner {
    mode: Mode,
    commands: Receiver<Command>,
    wake: Arc<EventFd>,
    sink: EventSink,
    poll: Poll,
    /// What the last wait found; kept for its memory.
    ready: Vec<Ready>,
    slots: Vec<Slot>,
    next_key: u64,
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
            slots: Vec::new(),
            next_key: COMMANDS + 1,
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
            Command::Stop { token, device_key, index } => {
                match self.slots.iter_mut().find(|slot| slot.has(device_key, index)) {
                    Some(slot) => slot.stop(index, token, &self.poll, &self.sink),
                    None => {
                        self.sink.tell(WorkerEvent::Stopped { token, index, state: NOWHERE, clean: false });
                    }
                }
                self.sweep();
            }
            Command::Cancel { device_key, index } => {
                self.with(device_key, index, |slot| slot.cancel(index));
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
            // To have been woken is enough.
            Command::Look | Command::Quit => {}
        }
    }

    fn start(&mut self, device: Arc<dyn Device>, device_key: u64, features: u64, setup: QueueSetup) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.has(device_key, setup.index)) {
            slot.end(setup.index, &self.poll, &self.sink);
            self.sweep();
        }
        let group = device.group(setup.index);
        let at = self.slots.iter().position(|slot| slot.device_key == device_key && slot.group == group);
        let at = at.unwrap_or_else(|| {
            let bell = self.key();
            self.slots.push(Slot::new(device, device_key, group, features, bell, &self.poll));
            self.slots.len() - 1
        });
        let key = self.key();
        if let Some(slot) = self.slots.get_mut(at) {
            slot.start(setup, key, &self.poll, &self.sink, Waker::from(self.wake.clone()));
        }
    }

    /// A number for a descriptor in the poll that no other has had.
    fn key(&mut self) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        key
    }

    /// Gives up the engines whose last queue has stopped.
    fn sweep(&mut self) {
        let poll = &self.poll;
        self.slots.retain(|slot| {
            if slot.is_empty() {
                slot.leave(poll);
            }
            !slot.is_empty()
        });
    }

    fn with(&mut self, device_key: u64, index: u16, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.has(device_key, index)) {
            change(slot);
        }
    }

    /// One burst on each queue of each engine; whether there was work.
    fn round(&mut self) -> bool {
        let mut work = false;
        let mut left = false;
        for slot in &mut self.slots {
            work |= slot.round(&self.sink);
            left |= slot.is_empty();
        }
        if left {
            self.sweep();
        }
        self.rounds = self.rounds.wrapping_add(1);
        if self.rounds.is_multiple_of(ROUNDS_PER_COUNT) {
            self.slots.iter_mut().for_each(Slot::count_kicks);
        }
        work
    }

    /// Whether rounds without work have gone on for long enough to sleep.
    fn tired(&mut self) -> bool {
        if self.slots.is_empty() {
            return true;
        }
        let Some(patience) = self.mode.patience() else { return false };
        if patience.is_zero() {
            return true;
        }
        let now = Instant::now();
        now >= *self.sleep_at.get_or_insert(now + patience)
    }

    /// Asks the drivers for kicks, looks once more, and sleeps if there still is nothing.
    fn sleep(&mut self) {
        let mut work = false;
        for slot in &mut self.slots {
            // Every engine is armed, also after one has found work: the disarming below is for all.
            work |= slot.engine.arm();
        }
        if work {
            self.sleep_at = None;
        } else {
            self.wait();
        }
        for slot in &mut self.slots {
            slot.engine.disarm();
        }
    }

    fn wait(&mut self) {
        let now = Instant::now();
        let parked = self.slots.iter().filter_map(Slot::next_deadline).min();
        let parked = parked.map(|at| at.saturating_duration_since(now));
        let blind = self.slots.iter().any(Slot::is_blind).then_some(LOOK);
        let timeout = parked.into_iter().chain(blind).min();
        if let Err(error) = self.poll.wait(timeout, &mut self.ready) {
            // Cannot happen with a valid instance; polling goes on, at the pace of a look.
            log::error!("epoll_wait failed: {error}");
            std::thread::sleep(LOOK);
        }
        for (key, readiness) in self.ready.drain(..) {
            if key == COMMANDS {
                self.wake.drain();
            } else {
                // A look that was not asked for must not buy polling time; a kick does.
                self.sleep_at = None;
                self.slots.iter_mut().any(|slot| slot.kicked(key, readiness.hung_up, &self.poll));
            }
        }
    }
}
