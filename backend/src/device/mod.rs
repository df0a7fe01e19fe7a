//! Devices: what a guest sees, whatever transport carries it.
//!
//! A [`Device`] is configuration and counters; it outlives connections and is shared by all threads. An [`Engine`] is
//! the data path of a group of its queues (a net queue pair): it lives on the worker that runs them, from the first
//! queue's start to the last queue's stop. A [`Queue`] is one running vring with its lane into guest memory.
//!
//! An engine never blocks, takes no lock and allocates nothing while it polls. One burst per queue and poll; what goes wrong with a
//! queue (malformed ring, lost memory) is latched in that queue alone: `err` is written, the session answers NEEDS_RESET,
//! and neither the other queues of the engine nor the other engines of the worker notice. A translation that is missing parks the
//! queue, see [`Queue::trouble`]; behind an IOMMU the queue also says what it lacks, see [`Queue::behind_iommu`].
//!
//! The traits know nothing of vhost-user; sessions and workers know nothing of Ethernet.

pub mod blk;
mod fuzzing;
pub mod net;
pub mod nvme;
mod queue;
mod stats;
mod switch;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

pub use crate::sys::EventFd;
pub use nvme::QueueNews;
pub use queue::{Call, Missed, Queue, QueueSetup};
pub(crate) use queue::{Wait, can_be_brought};
pub use stats::{DropCause, QueueCounters, QueueNames, QueueStats};
pub use switch::{Enabled, Switch};

/// A descriptor that becomes readable when an engine has work: an eventfd, or the other end of its link.
pub type Bell = Arc<dyn AsFd + Send + Sync>;

/// The data path of one group of queues, on one worker.
pub trait Engine: Send {
    /// Takes over a ring that starts. One with the same index that is still here is replaced. Engines that come with their
    /// only queue get none.
    fn start_queue(&mut self, _queue: Queue) {}

    /// Takes nothing more from a queue that is to be stopped. True when none of its requests is in flight, so that it
    /// can be given back; until then it is polled as before, and asked this after every poll. The worker waits for
    /// nobody meanwhile.
    fn quiesce(&mut self, _index: u16) -> bool {
        true
    }

    /// Nobody waits any more for the requests in flight of a queue that is being stopped: its front-end is gone, or leaves them
    /// to whoever serves the ring next. Those that can end now do; the others are waited for. Where the ring keeps a log
    /// ([`Ring::keeps_log`](crate::ring::Ring::keeps_log)) the chains of those that were cancelled are not completed, so that they
    /// stay recorded; without one they are failures.
    fn cancel(&mut self, _index: u16) {}

    /// Aborts the command `cid` of a queue that is no ring, if that can still be done. Whether it was is told by [`Engine::news`],
    /// under this number.
    fn abort(&mut self, _index: u16, _cid: u16, _number: u64) {}

    /// Gives a queue back. No I/O of it is left, its ring's state is where it stopped. Requests that are in flight
    /// nevertheless, because it was not quiesced, end unheard.
    fn stop_queue(&mut self, index: u16) -> Option<Queue>;

    /// Becomes readable when there is work that no kick announces: requests that have ended, frames that have come,
    /// a queue that somebody else has seen fail. It wakes the worker, once each time, from the start of the first queue to the stop of the last.
    fn bell(&self) -> Option<Bell> {
        None
    }

    /// A queue that runs here, unless others may use it too.
    fn queue_mut(&mut self, index: u16) -> Option<&mut Queue>;

    /// Calls `change` with a queue that runs here, to change its call or err counter or to see what is wrong with it.
    fn with_queue(&mut self, index: u16, change: &mut dyn FnMut(&mut Queue)) {
        if let Some(queue) = self.queue_mut(index) {
            change(queue);
        }
    }

    /// One burst on each queue. Says how many chains were processed; 0 is idle.
    fn poll(&mut self) -> u32;

    /// Asks the drivers for kicks before the worker sleeps, or lets it rest. True if there is work already: poll again instead.
    /// A parked queue that was woken since the last poll is work: the worker may have heard the wake-up already.
    fn arm(&mut self) -> bool;

    /// Tells the drivers that the worker polls.
    fn disarm(&mut self);

    /// Whether one of the queues has failed ([`Queue::failed`]), or has something to tell ([`Engine::news`]).
    fn needs_reset(&self) -> bool;

    /// What a queue that is no ring tells of itself, once, and its index.
    fn news(&mut self) -> Option<(u16, QueueNews)> {
        None
    }

    /// When to poll again even if no kick comes, because a queue is parked.
    fn next_deadline(&self) -> Option<Instant>;
}

/// What survives a connection, whatever the transport.
///
/// Texts in errors are for the operator and end up in a log line.
pub trait Device: Send + Sync {
    /// Its name in logs and statistics.
    fn name(&self) -> &str;

    /// Vrings the device has; a vring index is less than this.
    fn queue_count(&self) -> u16;

    /// Whether the kernel may be at work on guest memory that its engines hold, in I/O that cannot be cancelled at once.
    /// If not, memory that they do not let go of in time is taken away from them ([`mdev_pin::Past::Revoke`]).
    fn gives_memory_to_kernel(&self) -> bool {
        self.holds_pins()
    }

    /// Whether its engines hold guest memory beyond a burst ([`mdev_pin::Burst::pin`]). If not, nothing is charged for it.
    fn holds_pins(&self) -> bool {
        true
    }

    /// The group that a queue belongs to: its engine.
    fn group(&self, queue: u16) -> u16;

    /// Becomes readable when the world behind the device has changed, which [`Device::look`] then takes note of. For the
    /// device's whole life.
    fn watched(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Looks at the world behind the device. Whether the configuration space has changed.
    fn look(&self) -> bool {
        false
    }

    /// The counters of a queue. They live as long as the device.
    fn queue_stats(&self, queue: u16) -> Option<Arc<QueueStats>>;
}

/// A device whose queues are virtqueues, whatever carries them.
pub trait VirtioDevice: Device {
    /// Its number in the virtio specification (section 5): 1 a network card, 2 a disk.
    fn device_id(&self) -> u32;

    /// What GET_QUEUE_NUM answers. Network front-ends count queue pairs there, others vrings.
    fn queue_number(&self) -> u64 {
        self.queue_count().into()
    }

    /// Whether its engines keep requests in flight that a ring may record ([`crate::ring::Ring::keeps_log`]). If so, an engine
    /// does not complete what was cancelled by [`Engine::cancel`] in a ring that keeps a log.
    fn tracks_in_flight(&self) -> bool {
        false
    }

    /// Whether its engines use the chains of a ring in the order in which they took them. Then a ring whose front-end
    /// does not know how far it got goes on where its used ring ends, and VIRTIO_F_IN_ORDER may be offered.
    fn uses_in_order(&self) -> bool {
        false
    }

    /// The largest ring it accepts, in entries.
    fn max_ring_size(&self) -> u16;

    /// The virtio feature bits it offers. A transport adds its own.
    fn features(&self) -> u64;

    /// Whether the device can run with what the driver acknowledged.
    ///
    /// # Errors
    /// What is missing, for instance VIRTIO_F_VERSION_1.
    fn check_features(&self, acked: u64) -> Result<(), String>;

    /// Bytes of the configuration space.
    fn config_len(&self) -> usize;

    /// Reads the configuration space.
    ///
    /// # Errors
    /// A range outside it.
    fn config(&self, offset: u32, out: &mut [u8]) -> Result<(), String>;

    /// Writes the configuration space.
    ///
    /// # Errors
    /// A range outside it, or one that is read-only.
    fn set_config(&self, offset: u32, data: &[u8]) -> Result<(), String>;

    /// A new engine for a group, with the features that were acknowledged.
    fn engine(&self, group: u16, features: u64) -> Box<dyn Engine>;

    /// The control thread tells which features the driver has acknowledged for good, on transports where that is known before
    /// a queue starts. For what may wait for a lock that a driver of this host's kernel holds while it waits for its first queue.
    fn agreed(&self, _features: u64) {}

    /// The control thread tells of each queue that starts with these features, is enabled or disabled while it runs, or is
    /// taken from its worker. `runs`: frames may come for it. For what takes longer than a worker may take.
    fn queue_turned(&self, _queue: u16, _features: u64, _runs: bool) {}

    /// The MTU the front-end told the guest (NET_SET_MTU).
    ///
    /// # Errors
    /// Not a network device, or a value it cannot serve.
    fn set_mtu(&self, mtu: u16) -> Result<(), String>;

    /// The guest has moved here: make its address known where the device can (SEND_RARP).
    fn rarp(&self, mac: [u8; 6]);

    /// Back to the state after creation (RESET_DEVICE), counters excepted. Comes only while no queue runs.
    fn reset(&self);
}
