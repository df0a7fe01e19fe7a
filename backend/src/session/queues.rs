//! What a session may ask of the running side of its device.

use std::sync::Arc;

use mdev_dma::Iova;

use crate::device::{Call, Device, QueueSetup, VirtioDevice};
use crate::sys::EventFd;
use crate::worker::MakeEngine;

/// The queues of one device, as the sessions on it see them. The daemon implements it over its workers.
///
/// Nothing here waits for a worker. `conn` is the number the session was made with; the rings of a device run on one
/// connection at a time, and calls for a ring that runs on another connection change nothing.
pub trait Queues {
    /// Starts a ring of this device: whether or not the driver kicks, what is available is taken.
    ///
    /// # Errors
    /// [`StartError::OtherConnection`] while a ring of this device runs on another connection. The session is told
    /// by [`Session::device_free`](super::Session::device_free) when that has ended.
    fn start(
        &mut self,
        conn: u64,
        device: &Arc<dyn VirtioDevice>,
        features: u64,
        setup: QueueSetup,
    ) -> Result<(), StartError>;

    /// Starts a queue that is no ring. It is stopped as a ring is.
    ///
    /// # Errors
    /// As [`Queues::start`].
    fn run(
        &mut self,
        conn: u64,
        index: u16,
        kick: Option<Arc<EventFd>>,
        make: MakeEngine,
    ) -> Result<(), StartError>;

    /// Stops a ring. `false`: it does not run on this connection. `true`: when no request of the ring is in flight
    /// any more, [`Session::queue_stopped`](super::Session::queue_stopped) follows with this `token`, which no
    /// other stop of any session has.
    fn stop(&mut self, conn: u64, index: u16, token: u64) -> bool;

    /// A ring that is being stopped need not finish its requests in flight: its front-end is gone, or leaves them to the ring's
    /// log.
    fn cancel(&mut self, conn: u64, index: u16);

    /// Aborts a command of a running queue that is no ring ([`Engine::abort`](crate::device::Engine::abort)). Whether it was aborted
    /// follows by [`Session::queue_news`](super::Session::queue_news), unless the queue is stopped before.
    fn abort(&mut self, _conn: u64, _index: u16, _cid: u16, _number: u64) {}

    /// A running ring that waits for a translation of this address will not get it: it looks once more, and fails.
    fn forsake(&mut self, conn: u64, index: u16, iova: Iova);

    /// Gives a running ring another way to call its driver, or none.
    fn set_call(&mut self, conn: u64, index: u16, call: Option<Arc<dyn Call>>);

    /// Gives a running ring another eventfd for its failure, or none.
    fn set_err(&mut self, conn: u64, index: u16, err: Option<Arc<EventFd>>);

    /// The switch of a running ring was turned.
    fn switched(&mut self, conn: u64, index: u16);

    /// Whether a ring of this device runs on another connection than `conn`.
    fn busy_elsewhere(&self, conn: u64) -> bool;

    /// The device.
    fn device(&self) -> &Arc<dyn Device>;
}

/// Why a ring was not started.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// Rings of the device run on another connection.
    #[error("the device's rings run on another connection; they start here when that one has stopped them")]
    OtherConnection,
}
