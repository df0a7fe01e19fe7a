//! The program as a child process, with its log.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use mdev_protocol::vhost_user::Client;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use tempfile::TempDir;

/// No test may take longer for one step, however loaded the machine is.
pub const WATCHDOG: Duration = Duration::from_secs(30);

/// The program with these arguments, separated by spaces.
pub fn mdevd(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mdevd"));
    command.args(arguments.split_whitespace()).env_remove("MDEVD_LOG").env_remove("RUST_LOG");
    command
}

/// What a command that ends by itself says: status, standard output, standard error.
pub fn output(arguments: &str) -> (i32, String, String) {
    let mut daemon = Daemon::spawn(mdevd(arguments).stdin(Stdio::null()), PathBuf::new());
    let status = daemon.wait();
    (status.code().unwrap_or(-1), daemon.stdout(), daemon.log())
}

/// A running program. Killed when dropped.
pub struct Daemon {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    socket: PathBuf,
    _folder: Option<TempDir>,
}

impl Daemon {
    /// `mdevd net` on a socket of its own, listening.
    pub fn net(options: &str) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("net.sock");
        let mut daemon = Daemon::spawn(&mut net_on(&socket, options), socket);
        daemon._folder = Some(folder);
        daemon.expect("serving");
        daemon
    }

    pub fn spawn(command: &mut Command, socket: PathBuf) -> Daemon {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Daemon { child, lines, seen: Vec::new(), socket, _folder: None }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket, WATCHDOG).unwrap()
    }

    /// The next line of its log that contains `text`.
    pub fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + WATCHDOG;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(_) => panic!("no line with {text:?} in:\n{}", self.seen.join("\n")),
            }
        }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The processor time it has used so far, all threads together.
    pub fn cpu_time(&self) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let nanoseconds = |task: fs::DirEntry| -> u64 {
            let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap();
            schedstat.split_whitespace().next().unwrap().parse().unwrap()
        };
        Duration::from_nanos(tasks.map(|task| nanoseconds(task.unwrap())).sum())
    }

    /// Lowers its limit on open files, or sets it to the maximum again.
    pub fn limit_files(&self, current: Option<u64>) {
        let pid = Some(Pid::from_child(&self.child));
        let maximum = getrlimit(Resource::Nofile).maximum;
        prlimit(pid, Resource::Nofile, Rlimit { current: current.or(maximum), maximum }).unwrap();
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + WATCHDOG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// All lines of its log, after its end.
    pub fn log(&mut self) -> String {
        self.seen.extend(self.lines.iter());
        self.seen.join("\n")
    }

    fn stdout(&mut self) -> String {
        let mut text = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `mdevd net` on this socket.
pub fn net_on(socket: &Path, options: &str) -> Command {
    let mut command = mdevd("net");
    command.arg("--socket-path").arg(socket).args(options.split_whitespace()).stdin(Stdio::null());
    command
}
