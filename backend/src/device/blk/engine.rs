//! The data path of one queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mdev_protocol::virtio::blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};

use super::flying::Flying;
use super::gathered::Gathered;
use super::request::Rules;
use super::{Shared, immediate};
use crate::device::{Bell, DropCause, Enabled, Engine, EventFd, Queue};
use crate::limit::LogLimit;
use crate::ring::RingError;
use crate::store::{Completion, Port, Request};
use std::sync::atomic::Ordering;

use rustix::io::Errno;

/// Chains of one burst.
pub(super) const BURST: usize = 32;

static UNUSABLE: LogLimit = LogLimit::new(5, Duration::from_secs(10));

/// One queue and its end at the store.
pub(super) struct BlkEngine {
    pub(super) shared: Arc<Shared>,
    pub(super) features: u64,
    /// None of a group that does not exist, or where the kernel refused it.
    pub(super) port: Option<Port>,
    pub(super) queue: Option<Queue>,
    pub(super) flying: Flying,
    /// Chains whose requests have ended and whose driver does not know yet: head and used length.
    pub(super) ended: Vec<(u16, u32)>,
    /// Bytes that they have moved.
    pub(super) moved: u64,
    pub(super) gathered: Gathered,
    /// What one poll passes on; kept for its memory.
    pub(super) completions: Vec<Completion>,
    pub(super) requests: Vec<Request>,
    /// Nothing more is taken.
    pub(super) quiesced: bool,
    /// Nobody waits for what is in flight.
    pub(super) cancelled: bool,
}

impl BlkEngine {
    pub(super) fn new(shared: Arc<Shared>, bell: Option<Arc<EventFd>>, features: u64) -> Self {
        let port = bell.and_then(|bell| match shared.store.port(bell) {
            Ok(port) => Some(port),
            Err(error) => {
                if let Some(left_out) = UNUSABLE.permit() {
                    log::error!("{}: a queue cannot use its store: {error}{left_out}", shared.name);
                }
                None
            }
        });
        Self {
            shared,
            features,
            port,
            queue: None,
            flying: Flying::new(),
            ended: Vec::new(),
            moved: 0,
            gathered: Gathered::default(),
            completions: Vec::new(),
            requests: Vec::new(),
            quiesced: false,
            cancelled: false,
        }
    }
}

/// What the requests of a burst are checked against.
pub(super) fn rules(shared: &Shared, features: u64) -> Rules {
    let limits = shared.store.limits();
    let write_through = match features & (VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_CONFIG_WCE) {
        // A driver that knows of no cache cannot flush one (virtio 1.3, 5.2.5.2).
        0 => true,
        VIRTIO_BLK_F_FLUSH => false,
        _ => !shared.write_back.load(Ordering::Relaxed),
    };
    Rules {
        size: shared.store.size(),
        read_only: shared.read_only,
        write_through,
        features,
        max_discard: limits.max_discard,
        max_zeroes: limits.max_zeroes,
    }
}

/// What the failure of a store is counted as.
pub(super) fn cause(errno: Errno) -> DropCause {
    match errno {
        Errno::NOSPC | Errno::DQUOT => DropCause::NoSpace,
        Errno::FAULT => DropCause::MemoryLost,
        Errno::CANCELED => DropCause::Cancelled,
        _ => DropCause::StoreFailed,
    }
}

impl Engine for BlkEngine {
    fn start_queue(&mut self, queue: Queue) {
        self.flying.start();
        self.ended.clear();
        (self.moved, self.quiesced, self.cancelled) = (0, false, false);
        self.queue = Some(queue);
    }

    fn quiesce(&mut self, _index: u16) -> bool {
        self.quiesced = true;
        // The driver of a queue that has failed is told nothing more.
        let told = self.ended.is_empty() || self.queue.as_ref().is_none_or(|queue| queue.failed.is_some());
        self.flying.is_empty() && told
    }

    fn cancel(&mut self, _index: u16) {
        self.cancelled = true;
        if let Some(Port::Queued(port)) = &mut self.port {
            port.cancel();
        }
    }

    fn stop_queue(&mut self, index: u16) -> Option<Queue> {
        self.queue.take_if(|queue| queue.index == index)
    }

    fn bell(&self) -> Option<Bell> {
        match &self.port {
            Some(Port::Queued(port)) => Some(port.bell()),
            Some(Port::Immediate(_)) | None => None,
        }
    }

    fn queue_mut(&mut self, index: u16) -> Option<&mut Queue> {
        self.queue.as_mut().filter(|queue| queue.index == index)
    }

    fn poll(&mut self) -> u32 {
        let Self { shared, features, port, queue: Some(queue), quiesced, gathered, .. } = self else {
            return 0;
        };
        match port {
            Some(Port::Immediate(port)) if !*quiesced => {
                immediate::poll(queue, port, gathered, shared, *features)
            }
            Some(Port::Immediate(_)) => 0,
            Some(Port::Queued(_)) => self.poll_queued(),
            None => {
                if queue.failed.is_none() {
                    queue.trouble(RingError::NoStore);
                }
                0
            }
        }
    }

    fn arm(&mut self) -> bool {
        let mut work = false;
        if let Some(Port::Queued(port)) = &mut self.port {
            work = port.arm();
        }
        let full = self.flying.room() == 0;
        if let Some(queue) = &mut self.queue
            && !self.quiesced
            && !full
            && queue.switch.get() == Enabled::Yes
        {
            work |= queue.arm();
        }
        work
    }

    fn disarm(&mut self) {
        if let Some(Port::Queued(port)) = &mut self.port {
            port.disarm();
        }
        if let Some(queue) = &mut self.queue {
            queue.hush();
        }
    }

    fn needs_reset(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.failed.is_some())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let port = match &self.port {
            Some(Port::Queued(port)) => port.next_deadline(),
            Some(Port::Immediate(_)) | None => None,
        };
        self.queue.as_ref().and_then(Queue::deadline).into_iter().chain(port).min()
    }
}
