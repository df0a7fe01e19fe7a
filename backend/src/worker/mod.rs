//! Threads that run queues.
//!
//! A [`Worker`] is one thread with a set of engines (a device's queue groups) and their queues. It goes round
//! its engines, one burst each, so none can starve another. What it does when a round finds no work is its
//! [`Mode`]. An engine that finds none for long rests, so that hundreds of idle ones cost a busy one little: it is not
//! polled until its driver kicks, or, in busy mode, polled once in many rounds.
//!
//! **Objects.** `Worker` (the control thread's end: send a [`Command`], joined when dropped), `Runner` (the
//! thread's own state), `Slot` (one engine and its queues), `Roster` (all of them: those that are
//! polled and those that rest), [`EventSink`] and [`EventSource`] (what workers
//! tell the control thread).
//!
//! **Locks.** None. Commands and events travel through channels, each with an eventfd that wakes the receiver.
//! An engine and its queues belong to the worker from the start of its first queue to the stop of its last.
//!
//! **What may block.** Only `epoll_wait`, and only after the driver was asked for kicks and the rings were
//! looked at once more; a worker never waits for the control thread. A command is obeyed after at most one
//! burst of each queue of the worker. [`Worker::send`] does not block; dropping a worker waits for that one
//! round.
//!
//! **Kicks.** A kick eventfd is watched edge-triggered: each signal wakes the worker once, and what it finds is
//! served whether the counter can be read or not. A descriptor that is always readable, closed by its peer or
//! at its end thus costs one wake-up, never a spinning worker. A queue whose kick cannot be watched (none was
//! sent, it hung up, it is no eventfd) is looked at every millisecond instead. A parked queue sleeps until its
//! translation is there, which wakes the worker as a command does, or until its time is over. One that is behind an IOMMU
//! tells of it once for each time it looked in vain ([`WorkerEvent::Missed`]).
//!
//! **Stops.** A queue that is told to stop takes nothing more, and the command is answered when its requests in flight
//! have ended. Until then its engine is polled like the others, and woken by its bell; the worker waits for nobody. Where
//! nobody waits for the requests either, they are cancelled as far as the engine can, and stay recorded where the ring keeps a
//! log. The stop of an engine's last queue is
//! answered when the engine and its end of the link are gone: another device may have the link then.
//!
//! **What fails alone.** A queue on which its engine latches an error is told of once, by
//! [`WorkerEvent::Failed`] (the engine has signalled the err eventfd); the engine's other queues and all other
//! engines of the worker go on.
//!
//! **Not here.** Moving a queue from one worker to another, and any knowledge of packets or messages.

mod roster;
mod run;
mod slot;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Duration;

use mdev_dma::{Iova, Perm};
use rustix::thread::CpuSet;

use crate::device::{Call, Device, Engine, QueueNews, QueueSetup, VirtioDevice};
use crate::ring::{QueueState, RingError};
use crate::sys::EventFd;

/// What a worker does when a round over its engines found no work. A worker without queues sleeps in every
/// mode.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// Looks again at once and never sleeps: lowest latency, one core per worker.
    Busy,
    /// Looks again for 50 microseconds, then asks the drivers for kicks and sleeps.
    #[default]
    Adaptive,
    /// Asks the drivers for kicks and sleeps at once.
    Event,
}

impl Mode {
    /// How long to look again before sleeping; `None` for ever.
    fn patience(self) -> Option<Duration> {
        match self {
            Mode::Busy => None,
            Mode::Adaptive => Some(Duration::from_micros(50)),
            Mode::Event => Some(Duration::ZERO),
        }
    }
}

/// What the control thread asks of a worker. Commands are obeyed in order.
pub enum Command {
    /// Run a queue. Answered with [`WorkerEvent::Started`]. A queue of that device and index that runs already
    /// is replaced.
    Start {
        /// Comes back in the event.
        token: u64,
        /// Where the engine of the queue's group comes from, if this worker does not run it yet.
        device: Arc<dyn VirtioDevice>,
        /// Names the device among those that share the worker.
        device_key: u64,
        /// The features the driver acknowledged.
        features: u64,
        /// The queue.
        setup: Box<QueueSetup>,
    },
    /// Run an engine that comes with its only queue, which is no vring: an NVMe submission queue, say. A queue of that device
    /// and index that runs already is replaced. Has no answer of its own.
    Run {
        /// The device.
        device: Arc<dyn Device>,
        /// Names the device among those that share the worker.
        device_key: u64,
        /// The queue's index in its device, and its group.
        index: u16,
        /// What wakes the worker when the driver wants something of the queue.
        kick: Option<Arc<EventFd>>,
        /// Makes the engine, on the worker.
        make: MakeEngine,
    },
    /// End a queue. Answered with [`WorkerEvent::Stopped`] once no I/O of it is left.
    Stop {
        /// Comes back in the event.
        token: u64,
        /// The device.
        device_key: u64,
        /// The queue's index in its device.
        index: u16,
    },
    /// Do not finish what a queue that is being stopped has in flight: cancel it, or leave it to the ring's log. Has no answer of
    /// its own.
    Cancel {
        /// The device.
        device_key: u64,
        /// The queue's index in its device.
        index: u16,
    },
    /// Abort a command of a queue that is no vring. Answered with [`WorkerEvent::News`], unless the queue runs no more.
    Abort {
        /// The device.
        device_key: u64,
        /// The queue's index in its device.
        index: u16,
        /// The command.
        cid: u16,
        /// Comes back in the event.
        number: u64,
    },
    /// A translation that a parked queue waits for will not come: it looks once more, and fails.
    Forsake {
        /// The device.
        device_key: u64,
        /// The queue's index in its device.
        index: u16,
        /// Where it waits.
        iova: Iova,
    },
    /// Replace what tells the driver of used buffers.
    SetCall {
        /// The device.
        device_key: u64,
        /// The queue's index in its device.
        index: u16,
        /// `None`: the driver polls.
        call: Option<Arc<dyn Call>>,
    },
    /// Replace the eventfd that tells the front-end of errors.
    SetErr {
        /// The device.
        device_key: u64,
        /// The queue's index in its device.
        index: u16,
        /// `None`: nobody is told.
        err: Option<Arc<EventFd>>,
    },
    /// Look at a queue again before sleeping: its switch was turned.
    Look {
        /// The device.
        device_key: u64,
        /// The queue's index in its device.
        index: u16,
    },
    /// End the thread. Queues that still run are dropped without an event.
    Quit,
}

/// Makes an engine on the thread that will run it. The waker gets that thread out of its sleep.
pub type MakeEngine = Box<dyn FnOnce(Waker) -> Box<dyn Engine> + Send>;

/// What a worker tells the control thread.
#[derive(Debug)]
pub enum WorkerEvent {
    /// The queue of this [`Command::Start`] runs (or has failed: then [`WorkerEvent::Failed`] came before).
    Started {
        /// From the command.
        token: u64,
    },
    /// The queue of this [`Command::Stop`] runs no more.
    Stopped {
        /// From the command.
        token: u64,
        /// The queue's index in its device.
        index: u16,
        /// Where it stood.
        state: QueueState,
        /// It had no latched error.
        clean: bool,
    },
    /// A queue latched an error and moves no more data until it is stopped.
    Failed {
        /// The device.
        device_key: u64,
        /// The queue's index in its device.
        index: u16,
        /// Why.
        error: RingError,
    },
    /// A queue that is no vring tells of trouble, or what came of an abort.
    News {
        /// The device.
        device_key: u64,
        /// The queue's index in its device.
        index: u16,
        /// What has happened.
        news: QueueNews,
    },
    /// A queue behind an IOMMU is parked until the front-end translates this for it.
    Missed {
        /// The device.
        device_key: u64,
        /// The queue's index in its device.
        index: u16,
        /// Where it looked.
        iova: Iova,
        /// What it is about to do there.
        perm: Perm,
    },
    /// A worker's thread panicked: a defect of this program. Its queues are lost.
    Died {
        /// The thread's name.
        worker: String,
    },
}

/// The workers' end of the way to the control thread.
#[derive(Clone)]
pub struct EventSink {
    events: Sender<WorkerEvent>,
    wake: Arc<EventFd>,
}

/// The control thread's end: readable (as a descriptor) when events have come.
pub struct EventSource {
    events: Receiver<WorkerEvent>,
    wake: Arc<EventFd>,
}

/// The way from any number of workers to one control thread.
///
/// # Errors
/// What eventfd(2) answers.
pub fn events() -> io::Result<(EventSink, EventSource)> {
    let (sender, receiver) = mpsc::channel();
    let wake = Arc::new(EventFd::new()?);
    Ok((EventSink { events: sender, wake: wake.clone() }, EventSource { events: receiver, wake }))
}

impl EventSink {
    fn tell(&self, event: WorkerEvent) {
        // A control thread that is gone has no use for events.
        let _ = self.events.send(event);
        self.wake.signal();
    }
}

impl EventSource {
    /// All events that have come; the descriptor is unreadable until more do.
    pub fn take(&self) -> Vec<WorkerEvent> {
        self.wake.drain();
        self.events.try_iter().collect()
    }
}

impl AsFd for EventSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// The control thread's end of one worker thread. Dropping it ends and joins the thread.
pub struct Worker {
    name: String,
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    abandoned: AtomicBool,
}

impl Worker {
    /// Starts a thread called `name`, bound to processor `cpu` if one is given, that reports to `sink`.
    ///
    /// # Errors
    /// No thread, no descriptors, or a processor that this process may not use.
    pub fn spawn(name: &str, cpu: Option<usize>, mode: Mode, sink: EventSink) -> io::Result<Worker> {
        let (commands, receiver) = mpsc::channel();
        let wake = Arc::new(EventFd::new()?);
        let runner = run::Runner::new(mode, receiver, wake.clone(), sink.clone())?;
        let obituary = Obituary { worker: name.to_owned(), sink };
        let (bound, outcome) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _obituary = obituary;
            let binding = cpu.map_or(Ok(()), bind);
            let failed = binding.is_err();
            let _ = bound.send(binding);
            if !failed {
                runner.run();
            }
        })?;
        let worker = Worker {
            name: name.to_owned(),
            commands,
            wake,
            thread: Some(thread),
            abandoned: AtomicBool::new(false),
        };
        outcome.recv().unwrap_or_else(|_| Err(io::Error::other("the worker's thread ended at once")))?;
        Ok(worker)
    }

    /// Hands over a command and returns at once.
    pub fn send(&self, command: Command) {
        // A thread that is gone has told so by `WorkerEvent::Died`.
        let _ = self.commands.send(command);
        self.wake.signal();
    }

    /// The thread's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives up on a thread that does not answer: it will not be joined.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.send(Command::Quit);
        if let Some(thread) = self.thread.take().filter(|_| !self.abandoned.load(Ordering::Relaxed)) {
            // A panic has been printed and told.
            let _ = thread.join();
        }
    }
}

/// Tells the control thread when a worker's thread unwinds.
struct Obituary {
    worker: String,
    sink: EventSink,
}

impl Drop for Obituary {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.sink.tell(WorkerEvent::Died { worker: std::mem::take(&mut self.worker) });
        }
    }
}

/// Binds the calling thread to one processor.
fn bind(cpu: usize) -> io::Result<()> {
    let unusable = |why: String| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("processor {cpu} cannot be used: {why}"))
    };
    if cpu >= CpuSet::MAX_CPU {
        return Err(unusable(format!("there are at most {}", CpuSet::MAX_CPU)));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|errno| unusable(io::Error::from(errno).to_string()))
}
