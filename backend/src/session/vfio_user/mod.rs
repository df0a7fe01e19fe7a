//! The vfio-user session: what one client, on one connection, does with a PCI function.
//!
//! # Objects
//!
//! | file | the question it answers |
//! |---|---|
//! | `dispatch` | which message does what, and what a refusal looks like |
//! | `version` | what the two ends have agreed on |
//! | `memory` | which memory the client has lent, and when it has it back |
//! | `function` | which register is where, and how the function reaches its queues |
//! | `interrupts` | where interrupts go |
//! | `outbox`, `wire` | how is memory reached that has no file |
//! | `commands` | which socket do the server's commands take, and who hears the answers |
//! | `error` | why a message was not obeyed |
//!
//! A session owns its address space (`Ioas`), the device's attachment to it (`Access`), the controller and its doorbells: what a
//! client has set up ends with it, and the next one finds a function that was just powered on. Namespaces and counters are the
//! device's and stay.
//!
//! A function has one client at a time. Another one is not read from before the first has let go of everything, and is sent away
//! when that takes longer than [`SEAT`].
//!
//! # Orders
//!
//! Replies to `DMA_MAP` and `DMA_UNMAP` leave in the order of the requests, because clients wait for the last of several only. All
//! other messages are served, and answered, as they come; they overtake those. A map waits for nothing but an unmap before it
//! that has the same addresses.
//!
//! # Release barriers
//!
//! | message | its reply says | and waits for |
//! |---|---|---|
//! | `DMA_UNMAP` | the range is out of reach | lanes to leave the bursts in which they could see it, then the pins of the range; [`WITHIN`] |
//! | `DEVICE_RESET` | no queue runs | all workers; [`WITHIN`] |
//!
//! Memory that the device has not let go of by then is taken away from it where that is possible. Where the kernel may be at work on
//! it, the queues are stopped, what is in flight is cancelled, the controller reports a fatal status, and after
//! [`LAST_CHANCE`] more the message is answered with an error. QEMU takes a connection for dead whose replies take five
//! seconds: so there is always a reply before.
//!
//! # Locks
//!
//! None. A session belongs to the control thread.
//!
//! # What it does not implement
//!
//! Migration and device features (refused), interrupts that the client asks the device to trigger.

mod commands;
mod dispatch;
mod error;
mod function;
mod interrupts;
mod memory;
mod outbox;
#[cfg(test)]
mod tests;
mod version;
mod wire;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mdev_dma::Windows;
use mdev_pin::{Access, Change, Ioas, Stretch, Within};
use mdev_protocol::frame::{Connection, Received};
use mdev_protocol::vfio_user::{Header, ToServer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};

use super::access::access_of;
use super::{POLL, Queues, SessionError, SessionOptions, TURN};
use crate::device::QueueNews;
use crate::device::nvme::{NvmeDevice, Seat};
use crate::limit::LogLimit;
use crate::ring::QueueState;
use crate::sys::Poll;

use function::Function;
use memory::Lent;
use outbox::Outbox;
use wire::Wire;

/// How long a second client waits for the first one to be gone.
pub const SEAT: Duration = Duration::from_secs(3);
/// How long a release may take, however much more the operator allows.
pub const WITHIN: Duration = Duration::from_secs(3);
/// How much longer what was cancelled may take.
pub const LAST_CHANCE: Duration = Duration::from_secs(1);
/// Bytes that may wait for room in the socket before nothing more is read: a command of the server, since a client may not read it before
/// its own answer is taken, and a few replies.
const MOST_UNSENT: usize = wire::PIECE + 4096;
/// How often a session that waits for its seat looks.
const LOOK: Duration = Duration::from_millis(10);

/// One connection of a client. See the [module](self).
pub struct Session {
    conn: u64,
    name: String,
    link: Connection<ToServer>,
    device: Arc<NvmeDevice>,
    options: SessionOptions,
    seat: Waiting,
    /// `VERSION` has been served.
    agreed: bool,
    ioas: Ioas,
    access: Access,
    lent: Lent,
    function: Function,
    wire: Wire,
    /// Where the server's commands go, if not where the client's come.
    twin: Option<Connection<ToServer>>,
    /// What the control thread is woken by beside the socket.
    watch: Poll,
    /// A reset whose queues have not all ended, and when to give up.
    reset: Option<Reset>,
    life: Life,
    /// Why the connection is to be closed, if that came up where nobody could be told.
    fault: Option<SessionError>,
    log_limit: LogLimit,
}

/// Whether it is the function's client.
enum Waiting {
    /// Since then it has not been.
    Since(Instant),
    /// It is, as long as this is held.
    Over(#[expect(dead_code, reason = "held, and given back when it is dropped")] Seat),
}

struct Reset {
    header: Header,
    deadline: Instant,
    last_chance: bool,
}

/// How far the end has come.
enum Life {
    Open,
    /// Queues are being stopped.
    Stopping,
    /// The device is letting go of the memory.
    Detaching(Change),
    Closed,
}

impl Session {
    /// A session on a connection that was just made.
    ///
    /// `conn` is the connection's number, which no other has. `windows` is the daemon's. `busy_workers`: they poll and never sleep,
    /// so that the client may write doorbells where nobody notices.
    ///
    /// # Errors
    /// No memory or descriptors for the function's doorbells.
    pub fn new(
        conn: u64,
        socket: impl Into<OwnedFd>,
        device: Arc<NvmeDevice>,
        windows: Arc<Windows>,
        options: SessionOptions,
        busy_workers: bool,
    ) -> io::Result<Session> {
        let ioas = Ioas::new(windows);
        let access = access_of(device.clone());
        access.attach(&ioas).map_err(io::Error::other)?;
        let function = Function::new(&device, ioas.clone(), busy_workers)?;
        let wire = Wire::new(Outbox::new()?);
        let watch = commands::watch(&function, &wire)?;
        Ok(Session {
            conn,
            name: device.config().name.clone(),
            link: Connection::new(socket),
            seat: Waiting::Since(Instant::now()),
            device,
            options,
            agreed: false,
            ioas,
            access,
            lent: Lent::default(),
            function,
            wire,
            twin: None,
            watch,
            reset: None,
            life: Life::Open,
            fault: None,
            log_limit: LogLimit::new(10, Duration::from_secs(10)),
        })
    }

    fn is_open(&self) -> bool {
        matches!(self.life, Life::Open)
    }

    /// How long a release may take.
    fn within(&self) -> Duration {
        self.options.barrier.min(WITHIN)
    }

    /// Becomes the function's client, if nobody else is.
    fn sit_down(&mut self) -> bool {
        if let Waiting::Since(_) = self.seat
            && let Some(seat) = self.device.take_seat()
        {
            self.seat = Waiting::Over(seat);
        }
        matches!(self.seat, Waiting::Over(_))
    }

    /// Sends a message. What goes wrong ends the connection at its next turn.
    fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
        if let Err(error) = self.link.send(bytes, fds) {
            self.fault = Some(error.into());
            let _ = shutdown(&self.link, Shutdown::Both);
        }
    }

    fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.link, PollFlags::RDHUP)];
        let over = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        ready.is_ok() && fds.iter().any(|fd| fd.revents().intersects(over))
    }

    /// Goes on with what waits: releases, a reset, the end.
    fn advance(&mut self, queues: &mut dyn Queues, now: Instant) {
        if self.is_open() {
            self.advance_memory(queues);
            self.advance_reset(queues, now);
            if let Some(ranges) = self.function.queue_memory() {
                self.ioas.keep_whole(ranges.into_iter().map(Stretch::At));
            }
        }
        self.advance_close();
    }

    fn advance_close(&mut self) {
        if matches!(self.life, Life::Stopping) {
            if !self.function.is_over() {
                return;
            }
            self.life = match self.access.begin_detach(self.within()) {
                Ok(change) => Life::Detaching(change),
                Err(_) => Life::Closed,
            };
        }
        let Life::Detaching(change) = &mut self.life else { return };
        let Some(detached) = change.poll() else { return };
        self.life = Life::Closed;
        self.lent = Lent::default();
        // What the device has not let go of by now is taken away from it. All else goes with the session, which takes less time where
        // there are thousands of ranges.
        let unmapped = detached.is_ok() || self.ioas.unmap_all(Within::or_revoke(Duration::ZERO)).is_ok();
        let released = self.access.close(Duration::ZERO).is_ok() && unmapped;
        if let Err(error) = detached {
            let (name, conn) = (&self.name, self.conn);
            log::warn!("{name}: connection {conn} is closed, but the device held on to its memory: {error}");
        }
        log::debug!("{}: connection {}: memory released: {released}", self.name, self.conn);
        self.seat = Waiting::Since(Instant::now());
    }
}

impl super::Session for Session {
    fn fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    fn wants_read(&self) -> bool {
        let waits = matches!(self.seat, Waiting::Since(_))
            || self.link.pending_output() > MOST_UNSENT
            || self.lent.is_busy();
        self.fault.is_some() || (self.is_open() && !waits)
    }

    fn wants_write(&self) -> bool {
        self.is_open() && self.link.pending_output() > 0
    }

    fn readable(&mut self, queues: &mut dyn Queues) -> Result<(), SessionError> {
        self.sit_down();
        if !self.wants_read() && self.has_hung_up() {
            return Err(SessionError::Closed);
        }
        for _ in 0..TURN {
            if let Some(fault) = self.fault.take() {
                return Err(fault);
            }
            if !self.wants_read() {
                break;
            }
            match self.link.receive()? {
                Received::Message(frame) => self.serve(queues, frame),
                Received::Rejected { header, error } => self.reject(queues, &header, error),
                Received::WouldBlock => break,
                Received::Closed => return Err(SessionError::Closed),
            }
        }
        self.fault.take().map_or(Ok(()), Err)
    }

    fn writable(&mut self, _queues: &mut dyn Queues) -> Result<(), SessionError> {
        self.link.flush()?;
        self.send_commands();
        Ok(())
    }

    fn tick(&mut self, queues: &mut dyn Queues, now: Instant) -> Option<Instant> {
        self.advance(queues, now);
        match &self.life {
            Life::Open => {
                if !self.sit_down() {
                    return self.wait_for_seat(now);
                }
                let function = self.function.tick(&self.access, self.conn, queues, now);
                let memory = self.lent.due(now);
                let reset = self.reset.as_ref().map(|reset| reset.deadline);
                function.into_iter().chain(memory).chain(reset).min()
            }
            Life::Detaching(_) => now.checked_add(POLL),
            Life::Stopping | Life::Closed => None,
        }
    }

    fn queue_stopped(&mut self, queues: &mut dyn Queues, token: u64, _state: QueueState) {
        self.function.queue_stopped(&self.access, self.conn, queues, token);
        self.advance(queues, Instant::now());
    }

    fn device_free(&mut self, _queues: &mut dyn Queues) {
        self.sit_down();
    }

    fn close(&mut self, queues: &mut dyn Queues) {
        if !self.is_open() {
            return;
        }
        self.life = Life::Stopping;
        self.fault = None;
        self.reset = None;
        let _ = shutdown(&self.link, Shutdown::Both);
        self.function.end(&self.access, self.conn, queues);
        self.close_commands();
        self.advance_close();
    }

    fn is_closed(&self) -> bool {
        matches!(self.life, Life::Closed)
    }

    fn config_changed(&mut self, queues: &mut dyn Queues) {
        if self.is_open() {
            self.function.namespaces_changed(&self.access, self.conn, queues);
        }
    }

    fn notices(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn say_notices(&mut self, queues: &mut dyn Queues) {
        if self.is_open() {
            self.look_around(queues);
        }
    }

    fn queue_news(&mut self, queues: &mut dyn Queues, index: u16, news: QueueNews) {
        if self.is_open() {
            self.function.queue_news(&self.access, self.conn, queues, index, news);
        }
    }
}

impl Session {
    /// Somebody else is the function's client: looks again soon, or gives up.
    fn wait_for_seat(&mut self, now: Instant) -> Option<Instant> {
        let Waiting::Since(since) = self.seat else { return None };
        if now.saturating_duration_since(since) < SEAT {
            return now.checked_add(LOOK);
        }
        if self.fault.is_none() {
            log::warn!(
                "{}: connection {}: the controller has a client already, and one at a time is all it can have; \
                 closing",
                self.name,
                self.conn
            );
            self.fault = Some(SessionError::Occupied);
            let _ = shutdown(&self.link, Shutdown::Both);
        }
        None
    }

    /// Answers a reset when its queues have ended, or when they take too long.
    fn advance_reset(&mut self, queues: &mut dyn Queues, now: Instant) {
        let Some(reset) = &mut self.reset else { return };
        let quiet = self.function.is_quiet();
        if !quiet && now < reset.deadline {
            return;
        }
        if !quiet && !reset.last_chance {
            reset.last_chance = true;
            reset.deadline = now.checked_add(LAST_CHANCE).unwrap_or(now);
            self.function.give_up(&self.access, self.conn, queues);
            return;
        }
        let header = reset.header;
        self.reset = None;
        self.conclude_reset(&header, quiet);
        // What engines ask from now on, and have asked if they run still.
        self.send_commands();
    }
}
