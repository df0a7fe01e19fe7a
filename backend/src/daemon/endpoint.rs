//! Where front-ends come from: a socket of our own in the file system, one of theirs, or a descriptor from our parent.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
    sockopt,
};
use thiserror::Error;

use crate::sys::inherit;

use super::dialer::Dialer;
use super::kernel_device::KernelDoor;

/// Front-ends that may wait to be accepted.
const BACKLOG: i32 = 16;
/// How often to try for the lock of the socket's folder, and how long to wait in between: a second in all.
const LOCK_TRIES: u32 = 1000;
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Where front-ends come from.
#[derive(Debug)]
pub enum Endpoint {
    /// A listening socket: any number of front-ends, one after another and at once.
    Listening(Listener),
    /// One front-end that is connected already; the daemon ends with it.
    Connected(OwnedFd),
    /// A socket on which a front-end listens: one front-end at a time, and again when its connection has ended.
    Dialing(Dialer),
    /// The host's own kernel, which has drivers for the device.
    Kernel(KernelDoor),
}

/// A listening socket and, if we made it, its file, which is removed on drop.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    /// Removed when the listener goes.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

/// Why there is no endpoint. Each message says what to do.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the messages say it
pub enum EndpointError {
    #[error("{0:?}: another process is listening on this socket; stop it, or choose another --socket-path")]
    Live(PathBuf),
    #[error("{0:?} exists and is not a socket; remove it, or choose another --socket-path")]
    NotASocket(PathBuf),
    #[error("{0:?} is too long for a socket (107 bytes at most); choose a shorter path")]
    TooLong(PathBuf),
    #[error("cannot listen on {path:?}: {source}; check that its directory exists and is writable")]
    Bind { path: PathBuf, source: io::Error },
    #[error("cannot remove the stale socket {path:?}: {source}; remove it, or choose another --socket-path")]
    Stale { path: PathBuf, source: io::Error },
    #[error(
        "--fd {fd}: {source}; pass a Unix stream socket, listening or connected, that is open in this process"
    )]
    Inherited { fd: RawFd, source: io::Error },
}

impl Endpoint {
    /// Listens on a new socket at `path`, with exactly the permissions `mode` if given and those of the umask
    /// otherwise. A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// A file that is no socket, a socket that somebody listens on, a path that is too long or cannot be bound.
    pub fn bind(path: &Path, mode: Option<u32>) -> Result<Endpoint, EndpointError> {
        let address = SocketAddrUnix::new(path).map_err(|_| EndpointError::TooLong(path.to_owned()))?;
        let _alone = alone_in_folder(path);
        remove_stale(path, &address)?;
        let failed = |source: io::Error| EndpointError::Bind { path: path.to_owned(), source };
        let socket = new_socket().map_err(|errno| failed(errno.into()))?;
        if let Some(mode) = mode {
            // The new file gets the mode of the socket less the umask: nobody slips in before it is final.
            rustix::fs::fchmod(&socket, Mode::from_raw_mode(mode)).map_err(|errno| failed(errno.into()))?;
        }
        bind(&socket, &address).map_err(|errno| failed(errno.into()))?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let file = SocketFile { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) };
        if let Some(mode) = mode {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
        }
        listen(&socket, BACKLOG).map_err(|errno| failed(errno.into()))?;
        Ok(Endpoint::Listening(Listener { socket, _file: Some(file) }))
    }

    /// Connects to a front-end that listens at `path`, whenever it does: nothing needs to be there yet.
    ///
    /// # Errors
    /// A path that is too long.
    pub fn dial(path: &Path) -> Result<Endpoint, EndpointError> {
        Dialer::new(path).map(Endpoint::Dialing)
    }

    /// Takes over descriptor `fd` of this process: a listening socket, or one that is connected to a front-end.
    /// See [`inherit`] for what the caller must know.
    ///
    /// # Errors
    /// A descriptor that is not open or not a Unix stream socket.
    pub fn inherited(fd: RawFd) -> Result<Endpoint, EndpointError> {
        let failed = |source: io::Error| EndpointError::Inherited { fd, source };
        Self::from_fd(inherit(fd).map_err(failed)?).map_err(failed)
    }

    fn from_fd(socket: OwnedFd) -> io::Result<Endpoint> {
        let unix = sockopt::socket_domain(&socket)? == AddressFamily::UNIX;
        if !unix || sockopt::socket_type(&socket)? != SocketType::STREAM {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a Unix stream socket"));
        }
        let flags = rustix::fs::fcntl_getfl(&socket)?;
        rustix::fs::fcntl_setfl(&socket, flags | OFlags::NONBLOCK)?;
        if sockopt::socket_acceptconn(&socket)? {
            return Ok(Endpoint::Listening(Listener { socket, _file: None }));
        }
        // A socket that is neither listening nor connected would never hear of a front-end.
        rustix::net::getpeername(&socket)?;
        Ok(Endpoint::Connected(socket))
    }
}

impl Listener {
    /// The next front-end, non-blocking; `None` when no one waits.
    ///
    /// # Errors
    /// What accept4(2) answers, but for a front-end that has left again.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        loop {
            return match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => Ok(Some(socket)),
                Err(Errno::AGAIN) => Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("cannot remove {:?}: {error}", self.path);
        }
    }
}

/// A Unix stream socket that never blocks.
pub(super) fn new_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Keeps other daemons that start in the same instant from taking a socket that is bound, but does not listen yet, for a
/// stale one. Whoever holds this lock for longer than a start takes does not keep us from starting, and neither does a
/// folder that cannot be locked.
fn alone_in_folder(path: &Path) -> Option<OwnedFd> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty()).ok()?;
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(folder),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(LOCK_PAUSE),
            Err(_) => return None,
        }
    }
    None
}

/// Makes room at `path`: removes a socket that refuses connections, and nothing else.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), EndpointError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(EndpointError::NotASocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(EndpointError::Bind { path: path.to_owned(), source }),
    }
    let probe =
        new_socket().map_err(|errno| EndpointError::Bind { path: path.to_owned(), source: errno.into() })?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => match fs::remove_file(path) {
            Ok(()) => {
                log::info!("removed the stale socket {path:?}");
                Ok(())
            }
            Err(source) => Err(EndpointError::Stale { path: path.to_owned(), source }),
        },
        Err(Errno::NOENT) => Ok(()),
        // Connected, a full backlog, no permission to connect: somebody may be there.
        Ok(()) | Err(_) => Err(EndpointError::Live(path.to_owned())),
    }
}

#[cfg(test)]
mod tests;
