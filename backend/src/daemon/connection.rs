//! Front-ends: how they come to a device, are served, and leave.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use mdev_dma::{Iova, Perm};

use crate::device::QueueNews;
use crate::limit::LogLimit;
use crate::ring::{QueueState, RingError};
use crate::session::{Session, SessionError, vduse};
use crate::sys::{Interest, Readiness};

use super::DaemonError;
use super::control::Control;
use super::kernel_device::KernelDeviceError;
use super::key::Key;
use super::served::ACCEPT_PAUSE;

/// Connections of one device at a time.
pub const MAX_CONNECTIONS: usize = 16;

/// Front-ends accepted before others are looked after.
const ACCEPTS_AT_ONCE: usize = MAX_CONNECTIONS;

static COMINGS: LogLimit = LogLimit::new(20, Duration::from_secs(10));
static REFUSALS: LogLimit = LogLimit::new(5, Duration::from_secs(10));
static ACCEPT_ERRORS: LogLimit = LogLimit::new(5, Duration::from_secs(10));

/// One front-end.
pub(super) struct Connection {
    /// The device it came for.
    pub(super) device: u64,
    pub(super) session: Box<dyn Session>,
    interest: Interest,
    /// What the session has to say is watched for.
    noticed: bool,
    /// When the session wants to be called.
    pub(super) tick: Option<Instant>,
    /// It is gone, but for its rings and its memory.
    closing: bool,
}

impl Control {
    /// Somebody waits at a device's listening socket.
    pub(super) fn accept(&mut self, device: u64) {
        for _ in 0..ACCEPTS_AT_ONCE {
            let Some(served) = self.devices.get_mut(&device) else { return };
            let error = match served.accept() {
                Ok(None) => return,
                Ok(Some(socket)) => match self.connect(device, socket) {
                    Ok(_) => continue,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if let Some(left_out) = ACCEPT_ERRORS.permit() {
                log::error!("cannot accept a front-end: {error}; trying again in {ACCEPT_PAUSE:?}{left_out}");
            }
            if let Some(served) = self.devices.get_mut(&device) {
                served.pause(device, &self.poll);
            }
            return;
        }
    }

    /// A device wants to accept again, or to call on its front-end.
    pub(super) fn look_for_front_end(&mut self, device: u64, now: Instant) {
        let Some(served) = self.devices.get_mut(&device) else { return };
        let Some(socket) = served.on_time(device, &self.poll, now) else { return };
        let connected = self.connect(device, socket);
        let Some(dialer) = self.devices.get_mut(&device).and_then(|served| served.dialer()) else { return };
        match connected {
            Ok(Some(conn)) => dialer.connected(conn, now),
            Ok(None) => dialer.wait(now),
            Err(error) => {
                if let Some(left_out) = ACCEPT_ERRORS.permit() {
                    log::error!("cannot serve a front-end: {error}; trying again{left_out}");
                }
                dialer.wait(now);
            }
        }
    }

    /// Begins to serve a front-end: the connection's number, `None` if there are too many.
    pub(super) fn connect(&mut self, device: u64, socket: OwnedFd) -> io::Result<Option<u64>> {
        let Some(served) = self.devices.get_mut(&device) else { return Ok(None) };
        let of_device = |connection: &&Connection| connection.device == device && !connection.closing;
        let open = self.connections.values().filter(of_device).count();
        if open >= MAX_CONNECTIONS {
            if let Some(left_out) = REFUSALS.permit() {
                let name = served.name();
                log::warn!("{name}: refused a front-end: {open} are connected, and no more may be{left_out}");
            }
            return Ok(None);
        }
        let conn = self.next_connection;
        let (windows, options) = (self.windows.share(), served.sessions.clone());
        let session = served.model.session(
            conn,
            socket,
            windows,
            options,
            served.translations.clone(),
            self.busy_workers,
        )?;
        served.kept.somebody_came(Instant::now());
        self.welcome(device, session)?;
        let Some(served) = self.devices.get(&device) else { return Ok(None) };
        if let Some(left_out) = COMINGS.permit() {
            log::info!("{}: connection {conn}: a front-end is there{left_out}", served.name());
        }
        Ok(Some(conn))
    }

    /// Begins to serve the kernel's device.
    pub(super) fn connect_kernel(&mut self, device: u64) -> Result<(), DaemonError> {
        let Some(served) = self.devices.get(&device) else { return Ok(()) };
        let Some(((kernel, file), virtio)) = served
            .kernel
            .as_ref()
            .and_then(|kernel| Some((kernel, kernel.device()?)))
            .zip(served.model.virtio())
        else {
            return Ok(());
        };
        let conn = self.next_connection;
        let (windows, files) = (self.windows.share(), served.sessions.files);
        let session =
            vduse::Session::new(conn, file.clone(), virtio.clone(), windows, files, kernel.records())
                .map_err(KernelDeviceError::from)?
                .counted_in(served.translations.clone());
        let session = if kernel.own_bounce() { session.with_own_bounce() } else { session };
        self.welcome(device, Box::new(session)).map_err(DaemonError::system("watch descriptors"))?;
        self.refresh(conn, Instant::now());
        Ok(())
    }

    /// One session more, which goes by the next number.
    fn welcome(&mut self, device: u64, session: Box<dyn Session>) -> io::Result<()> {
        let conn = self.next_connection;
        self.poll.add(session.fd(), Key::Connection(conn).number(), Interest::READ)?;
        self.next_connection += 1;
        let (interest, noticed) = (Interest::READ, false);
        let connection = Connection { device, session, interest, noticed, tick: None, closing: false };
        self.connections.insert(conn, connection);
        Ok(())
    }

    /// Something happened on a connection's socket.
    pub(super) fn serve(&mut self, conn: u64, readiness: Readiness) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let Some(served) = self.devices.get_mut(&connection.device) else { return };
        let mut result = Ok(());
        if readiness.writable {
            result = connection.session.writable(&mut served.rings);
        }
        if result.is_ok() && (readiness.readable || readiness.hung_up) {
            // Takes what arrived before the hang-up, then ends, also where nothing is read at the moment.
            result = connection.session.readable(&mut served.rings);
        }
        match result {
            Err(error) => self.close(conn, Some(&error)),
            Ok(()) => self.refresh(conn, Instant::now()),
        }
    }

    /// A session has something to say that its front-end wants to hear by messages.
    pub(super) fn say_notices(&mut self, conn: u64) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let Some(served) = self.devices.get_mut(&connection.device) else { return };
        connection.session.say_notices(&mut served.rings);
        self.refresh(conn, Instant::now());
    }

    /// A queue that is no ring tells of trouble, or of an abort.
    pub(super) fn queue_news(&mut self, device: u64, index: u16, news: QueueNews) {
        let Some(served) = self.devices.get_mut(&device) else { return };
        let Some(conn) = served.rings.owner() else { return };
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.session.queue_news(&mut served.rings, index, news);
        }
        self.refresh(conn, Instant::now());
    }

    /// Lets a session go on with what waits for time or memory, watches its socket for what it now wants, and
    /// drops it when its end is complete.
    pub(super) fn refresh(&mut self, conn: u64, now: Instant) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let Some(served) = self.devices.get_mut(&connection.device) else { return };
        connection.tick = connection.session.tick(&mut served.rings, now);
        if served.rings.owner().is_some() {
            served.kept.let_go();
        }
        if connection.closing {
            if connection.session.is_closed() {
                let device = connection.device;
                self.connections.remove(&conn);
                self.forget(device);
            }
            return;
        }
        let mut interest = Interest::empty();
        interest.set(Interest::READ, connection.session.wants_read());
        interest.set(Interest::WRITE, connection.session.wants_write());
        if let (false, Some(notices)) = (connection.noticed, connection.session.notices()) {
            connection.noticed = self.poll.add(notices, Key::Notices(conn).number(), Interest::READ).is_ok();
        }
        if interest != connection.interest {
            connection.interest = interest;
            let _ = self.poll.change(connection.session.fd(), Key::Connection(conn).number(), interest);
        }
    }

    /// Ends a connection; the session stays until its rings have stopped and its memory is let go.
    pub(super) fn close(&mut self, conn: u64, why: Option<&SessionError>) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let Some(served) = self.devices.get_mut(&connection.device) else { return };
        if !connection.closing {
            connection.closing = true;
            self.poll.remove(connection.session.fd());
            if let Some(notices) = connection.session.notices() {
                self.poll.remove(notices);
            }
            if !served.is_shut() && served.rings.owner().is_none() {
                served.kept.keep(connection.session.leaves_behind(), Instant::now());
            }
            connection.session.close(&mut served.rings);
            if served.kernel.is_some() {
                // There is no other.
                served.shut(&self.poll);
            }
            if let (Some(SessionError::Broken), None) = (why, &self.plans) {
                self.failure = Some(DaemonError::GivenUp(served.name().to_owned()));
            }
            if let Some(dialer) = served.dialer() {
                dialer.ended(conn, Instant::now());
            }
            if let Some(left_out) = COMINGS.permit() {
                let name = served.name();
                match why {
                    None => log::info!("{name}: connection {conn}: closed{left_out}"),
                    Some(error @ SessionError::Closed) => {
                        log::info!("{name}: connection {conn}: {error}{left_out}")
                    }
                    Some(error) => log::warn!("{name}: connection {conn}: closed: {error}{left_out}"),
                }
            }
        }
        self.refresh(conn, Instant::now());
    }

    /// A worker has let go of a ring. When it was the last one, those who wait for the device are told, oldest first.
    pub(super) fn ring_stopped(&mut self, token: u64, state: QueueState) {
        // A token names its connection: no other stop of any session has it.
        let stopping =
            self.devices.iter_mut().find_map(|(&id, served)| Some((id, served.rings.stopped(token)?)));
        let Some((device, conn)) = stopping else { return };
        let Some(served) = self.devices.get_mut(&device) else { return };
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.session.queue_stopped(&mut served.rings, token, state);
        }
        let freed = served.rings.take_freed();
        self.refresh(conn, Instant::now());
        if !freed {
            return;
        }
        for conn in self.connections_of(device) {
            let Some(served) = self.devices.get_mut(&device) else { return };
            if let Some(connection) = self.connections.get_mut(&conn) {
                connection.session.device_free(&mut served.rings);
            }
            self.refresh(conn, Instant::now());
        }
    }

    /// A worker has given a ring up.
    pub(super) fn ring_failed(&mut self, device: u64, index: u16, error: &RingError) {
        let owner = self.devices.get(&device).and_then(|served| served.rings.owner());
        if let Some(connection) = owner.and_then(|conn| self.connections.get_mut(&conn)) {
            connection.session.queue_failed(index, error);
        }
    }

    /// A ring of a device behind an IOMMU waits for a translation: its session asks for it.
    pub(super) fn ring_missed(&mut self, device: u64, index: u16, iova: Iova, perm: Perm) {
        let Some(served) = self.devices.get_mut(&device) else { return };
        let Some(conn) = served.rings.owner() else { return };
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.session.queue_missed(&mut served.rings, index, iova, perm);
        }
        self.refresh(conn, Instant::now());
    }

    /// The connections of a device, oldest first.
    pub(super) fn connections_of(&self, device: u64) -> Vec<u64> {
        let of_device =
            |(&conn, connection): (&u64, &Connection)| (connection.device == device).then_some(conn);
        self.connections.iter().filter_map(of_device).collect()
    }
}
