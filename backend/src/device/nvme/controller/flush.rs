//! What a normal shutdown waits for: the volatile caches of all stores are flushed (base specification, section 3.6.1).
//!
//! A flush takes as long as a disk needs, or does not end. So it is made by a thread of its own, one for a device at a time, which
//! the control thread looks at. It is waited for until [`WITHIN`]; then the shutdown is complete all the same, and the log says so.
//! A reset waits for nothing: the thread ends by itself.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::device::nvme::{Namespace, Shared};
use crate::limit::LogLimit;
use crate::store::{Operation, Pins, Port, Queued, Request};
use crate::sys::{EventFd, Interest, Poll};

/// How long a shutdown waits for its flush. The controller says in its identify structure that it may take that long.
pub(super) const WITHIN: Duration =
    if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(8) };
/// How often the control thread looks meanwhile.
const AGAIN: Duration = Duration::from_millis(5);

/// Hosts choose when they shut down.
static FAILURES: LogLimit = LogLimit::new(8, Duration::from_secs(10));

/// The flush of one shutdown.
#[derive(Debug)]
pub(super) struct Flush {
    until: Instant,
    /// When to look again.
    again: Instant,
    /// The thread has begun, and sets this when it is done.
    over: Option<Arc<AtomicBool>>,
}

impl Flush {
    /// One that has not begun.
    pub(super) fn new(now: Instant) -> Self {
        Self { until: now.checked_add(WITHIN).unwrap_or(now), again: now, over: None }
    }

    /// When to look again.
    pub(super) fn deadline(&self) -> Instant {
        self.again
    }

    /// Goes on. Whether it is over, however it ended.
    pub(super) fn is_over(&mut self, shared: &Arc<Shared>, now: Instant) -> bool {
        self.again = now.checked_add(AGAIN).unwrap_or(now);
        if self.over.as_ref().is_some_and(|over| over.load(Ordering::Acquire)) {
            return true;
        }
        if now >= self.until {
            complain(&shared.name, format_args!("not all stores were flushed in {} ms", WITHIN.as_millis()));
            return true;
        }
        // The flush of an earlier shutdown may be under way: it need not have seen the last writes.
        self.over.is_none() && !shared.flushing.swap(true, Ordering::AcqRel) && self.begin(shared)
    }

    /// Whether there is nothing to be waited for.
    fn begin(&mut self, shared: &Arc<Shared>) -> bool {
        let busy = Busy(shared.clone());
        let all = shared.namespaces.all().into_iter().map(|(namespace, _)| namespace);
        let slow: Vec<_> = all.filter(|one| one.store.is_queued() && !one.store.limits().read_only).collect();
        if slow.is_empty() {
            return true;
        }
        let over = Arc::new(AtomicBool::new(false));
        let (done, until) = (over.clone(), self.until);
        let thread = std::thread::Builder::new().name("flush".to_owned()).spawn(move || {
            let name = &busy.0.name;
            if let Err(error) = flush(name, &slow, until, &done) {
                complain(name, error);
                done.store(true, Ordering::Release);
            }
        });
        if let Err(error) = thread {
            complain(&shared.name, error);
            return true;
        }
        self.over = Some(over);
        false
    }
}

/// As long as it is there, its device makes no other flush.
struct Busy(Arc<Shared>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.flushing.store(false, Ordering::Release);
    }
}

#[cold]
fn complain(name: &str, why: impl std::fmt::Display) {
    if let Some(left_out) = FAILURES.permit() {
        log::warn!("{name}: a shutdown could not make all data durable: {why}{left_out}");
    }
}

/// Has the stores flushed, all at a time, and sets `done` when all have ended. What has not ended in time is left to the end of
/// its port, which may take a second.
fn flush(name: &str, namespaces: &[Arc<Namespace>], until: Instant, done: &AtomicBool) -> io::Result<()> {
    let bell = Arc::new(EventFd::new()?);
    let poll = Poll::new()?;
    poll.add(bell.as_ref(), 0, Interest::READ)?;
    let mut ports: Vec<(u32, Queued)> = Vec::new();
    for namespace in namespaces {
        match namespace.store.port(bell.clone()) {
            Ok(Port::Queued(mut port)) => {
                let (operation, memory) = (Operation::Flush, Pins::new());
                port.submit(Request { tag: 0, operation, offset: 0, len: 0, memory });
                port.begin();
                ports.push((namespace.nsid, port));
            }
            Ok(Port::Immediate(_)) => {}
            Err(error) => complain(name, format_args!("namespace {}: {error}", namespace.nsid)),
        }
    }
    let (mut ended, mut ready) = (Vec::new(), Vec::new());
    loop {
        bell.drain();
        ports.retain_mut(|(nsid, port)| {
            port.arm();
            port.take(&mut ended);
            if let Some(Err(errno)) = ended.first().map(|end| end.result)
                && errno != Errno::CANCELED
            {
                complain(name, format_args!("namespace {nsid}: {errno}"));
            }
            ended.drain(..).count() == 0
        });
        let now = Instant::now();
        if ports.is_empty() || now >= until {
            done.store(true, Ordering::Release);
            return Ok(());
        }
        let due = ports.iter().filter_map(|(_, port)| port.next_deadline()).min();
        let wait = due.unwrap_or(until).min(until).saturating_duration_since(now);
        poll.wait(Some(wait), &mut ready)?;
    }
}
