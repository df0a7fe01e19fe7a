//! Sessions: what one front-end, on one connection, has said about its device.
//!
//! A session is a state machine without a thread. The daemon's control thread calls it when its socket has something to
//! read, when time has passed, and when a worker has let go of a queue; it answers on the socket and drives queues
//! through [`Queues`]. Nothing in a session waits for a worker, for the front-end, or for another session.
//!
//! | module | the transport |
//! |---|---|
//! | [`vhost_user`] | virtqueues over a Unix socket |
//! | [`vfio_user`] | a PCI function over a Unix socket |
//! | [`vduse`] | virtqueues of the host's own kernel |
//!
//! A session owns the address space of its guest and the device's attachment to it; they end with the connection. What survives
//! a connection belongs to the device.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::arithmetic_side_effects
    )
)]

mod access;
mod error;
mod logs;
mod options;
mod queues;
#[cfg(test)]
mod tests;
mod translations;
pub mod vduse;
pub mod vfio_user;
pub mod vhost_user;

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use mdev_dma::{Iova, Perm, Segment};

use crate::device::QueueNews;
use crate::ring::{QueueState, RingError};

pub use error::SessionError;
pub use options::SessionOptions;
pub use queues::{Queues, StartError};
pub use translations::{IotlbCounters, IotlbLine};
pub use vhost_user::{MAX_IOTLB_ENTRIES, MAX_SLOTS, OFFERED_PROTOCOL_FEATURES, offered_protocol_features};

/// How many messages are served before other connections have their turn.
const TURN: usize = 64;
/// How often the address space is asked whether a change of it has finished.
const POLL: Duration = Duration::from_micros(200);

/// The longest pause between two such questions.
const LONGEST: Duration = Duration::from_millis(10);

/// When to ask again about a change that has been under way since then. One that has taken long may take an eighth longer: somebody
/// else may need the processor meanwhile.
fn ask_again(since: Instant, now: Instant) -> Option<Instant> {
    let waited = now.saturating_duration_since(since);
    now.checked_add(waited.checked_div(8).unwrap_or(POLL).clamp(POLL, LONGEST))
}

/// One connection of a front-end, whatever its protocol.
pub trait Session: Send {
    /// The connection's socket, to be watched for what [`Session::wants_read`] and [`Session::wants_write`] say
    /// after each call of any other function.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Whether messages are taken now.
    fn wants_read(&self) -> bool;

    /// Whether replies wait for room in the socket.
    fn wants_write(&self) -> bool;

    /// Serves what has arrived. A hang-up is noticed even while no messages are taken.
    ///
    /// # Errors
    /// Why the connection is over: [`Session::close`] is to be called.
    fn readable(&mut self, queues: &mut dyn Queues) -> Result<(), SessionError>;

    /// Sends what the socket takes now.
    ///
    /// # Errors
    /// As [`Session::readable`].
    fn writable(&mut self, queues: &mut dyn Queues) -> Result<(), SessionError>;

    /// Looks at what waits. Says when to be called again, if nothing else happens before.
    fn tick(&mut self, queues: &mut dyn Queues, now: Instant) -> Option<Instant>;

    /// A queue that was told to stop has none of its requests in flight any more.
    fn queue_stopped(&mut self, queues: &mut dyn Queues, token: u64, state: QueueState);

    /// The device's queues run on no connection any more: those that waited here start.
    fn device_free(&mut self, queues: &mut dyn Queues);

    /// Ends the session. Its queues stop and cancel their requests in flight, then the device lets go of its memory; see
    /// [`Session::is_closed`]. The socket is shut down at once.
    fn close(&mut self, queues: &mut dyn Queues);

    /// Whether the end is complete: no queue runs, nothing holds the guest's memory. Until then a session that was
    /// closed wants its ticks and stops; one that is dropped earlier leaves the memory to the workers that use it.
    fn is_closed(&self) -> bool;

    /// What the front-end may have been told of its device has changed.
    fn config_changed(&mut self, queues: &mut dyn Queues);

    /// A running ring has failed and is not looked at any more; its worker has signalled err.
    fn queue_failed(&mut self, _index: u16, _error: &RingError) {}

    /// A running queue that is no ring tells of trouble, or of an abort.
    fn queue_news(&mut self, _queues: &mut dyn Queues, _index: u16, _news: QueueNews) {}

    /// A ring that runs waits for a translation.
    fn queue_missed(&mut self, _queues: &mut dyn Queues, _index: u16, _iova: Iova, _perm: Perm) {}

    /// Readable when [`Session::say_notices`] is to be called; `None` as long as there is nothing to be watched. Once there is
    /// one it stays the same until the session is closed.
    fn notices(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Does what [`Session::notices`] is about: tells the front-end what it wants to hear by messages, or looks at what it has
    /// written where nobody traps it.
    fn say_notices(&mut self, _queues: &mut dyn Queues) {}

    /// The memory that it has left in order, if its front-end may come back with it.
    fn leaves_behind(&self) -> Vec<Segment> {
        Vec::new()
    }
}
