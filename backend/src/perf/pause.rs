//! Back-ends that stand still while it is not their turn.
//!
//! Most back-ends poll whether they are connected or not. Two of them on one processor would share it, and neither would show what it
//! can do; so the processes that listen at the sockets can be stopped but for the one that is measured.
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, Signal, getpid, kill_process};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Why a back-end cannot be stopped.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// Who listens is not known.
    #[error("cannot tell which process listens at {path}: {source}")]
    Who {
        /// The socket.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// It is a process that cannot be named here.
    #[error(
        "the process that listens at {0} is this one, or in a PID namespace of its own: run without --pause"
    )]
    Foreign(PathBuf),
    /// It may not be stopped.
    #[error(
        "cannot stop process {pid}, which listens at {path}: {source}; run as its user, or without --pause"
    )]
    Stop {
        /// The process.
        pid: i32,
        /// The socket.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Processes that are stopped unless it is their turn. They go on when this is dropped.
#[derive(Debug, Default)]
pub struct Paused(Vec<Pid>);

impl Paused {
    /// Stops the processes that listen at these sockets.
    ///
    /// # Errors
    /// [`PauseError`]; those that were stopped go on.
    pub fn new<'p>(sockets: impl IntoIterator<Item = &'p Path>) -> Result<Self, PauseError> {
        let mut paused = Paused::default();
        // All are found before the first is stopped: two sockets may be one process's, which must accept both connections.
        let mut found = Vec::new();
        for path in sockets {
            let who = |source| PauseError::Who { path: path.to_owned(), source };
            let stream = UnixStream::connect(path).map_err(who)?;
            let pid = socket_peercred(&stream).map_err(|errno| who(errno.into()))?.pid;
            if pid == getpid() || pid.as_raw_pid() <= 1 {
                return Err(PauseError::Foreign(path.to_owned()));
            }
            found.push((pid, path));
        }
        for (pid, path) in found {
            kill_process(pid, Signal::STOP).map_err(|errno| PauseError::Stop {
                pid: pid.as_raw_pid(),
                path: path.to_owned(),
                source: errno.into(),
            })?;
            paused.0.push(pid);
        }
        Ok(paused)
    }

    /// Lets the process of the `number`-th socket run during `work`. Others, and numbers of nobody, stand still.
    pub fn turn<T>(&self, number: usize, work: impl FnOnce() -> T) -> T {
        let pid = self.0.get(number);
        // A process that has died meanwhile shows when it is connected to.
        let signal = |signal| pid.map(|&pid| kill_process(pid, signal));
        signal(Signal::CONT);
        let done = work();
        signal(Signal::STOP);
        done
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        for &pid in &self.0 {
            let _ = kill_process(pid, Signal::CONT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn socket_of_this_process_or_of_nobody_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("here.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = Paused::new([path.as_path()]).unwrap_err();
        assert!(matches!(&error, PauseError::Foreign(seen) if *seen == path), "{error}");
        let nobody = folder.path().join("nobody.sock");
        assert!(Paused::new([nobody.as_path()]).unwrap_err().to_string().contains("nobody.sock"));
    }

    #[test]
    fn nobody_is_stopped_where_nobody_is_named() {
        assert_eq!(Paused::default().turn(3, || 7), 7);
    }
}
