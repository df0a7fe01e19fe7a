//! A device of our own: another process of this same program.
use super::drive::Direction;
use super::size::PacketSize;
use crate::report::CounterLine;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long the device may take to answer a question for its counters.
const ANSWER: Duration = Duration::from_secs(2);
/// How long it may take to listen.
const START: Duration = Duration::from_secs(10);
/// How long it may take to end.
const END: Duration = Duration::from_secs(2);

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No place for its socket.
    #[error("cannot make a directory for the device's socket in {path}: {source}; is TMPDIR right?")]
    Directory {
        /// Where it was to be.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The process could not be started.
    #[error("cannot start the device's process: {0}")]
    Start(#[source] io::Error),
    /// The process gives no counters.
    #[error("the device's process does not answer: {0}")]
    Counters(#[source] io::Error),
    /// The process does not listen.
    #[error("the device's process does not listen within {} s", .0.as_secs())]
    Slow(Duration),
    /// The process has ended.
    #[error("the device's process has ended ({status}); it said:\n{said}")]
    Ended {
        /// How.
        status: String,
        /// What it wrote to standard error.
        said: String,
    },
}

/// A directory that nobody else may enter, removed with what is in it.
struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    fn new() -> Result<Self, DeviceError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("mdevd-perf-{}-{number}", std::process::id()));
        // Fails if something is there already, so that nobody can prepare the place.
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(PrivateDirectory(path)),
            Err(source) => Err(DeviceError::Directory { path, source }),
        }
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What device to start.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// The program; this very one if `None`.
    pub program: Option<PathBuf>,
    /// Which way the packets will go: decides the link.
    pub direction: Direction,
    /// The sizes that it makes, if it makes packets.
    pub size: PacketSize,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// Processors of its workers. None: it shares a processor with others, so it must not poll all the time.
    pub cpus: Vec<usize>,
}

impl DeviceOptions {
    fn link(&self) -> String {
        match self.direction {
            Direction::To => "null".to_owned(),
            Direction::From => format!("pktgen,size={}", self.size),
            Direction::Loop => "loopback".to_owned(),
        }
    }

    fn arguments(&self, socket: &Path) -> Vec<String> {
        let mut arguments = vec!["net".to_owned(), "--socket-path".to_owned(), socket.display().to_string()];
        arguments.extend(["--link".to_owned(), self.link()]);
        arguments.extend(["--queue-pairs".to_owned(), self.queue_pairs.to_string()]);
        arguments.extend(workers(&self.cpus));
        arguments
    }
}

/// The options that say where a device's workers run, and how.
pub fn workers(cpus: &[usize]) -> Vec<String> {
    if cpus.is_empty() {
        return vec!["--mode".to_owned(), "adaptive".to_owned()];
    }
    let list: Vec<String> = cpus.iter().map(usize::to_string).collect();
    ["--mode", "busy", "--cpus", &list.join(",")].map(str::to_owned).into()
}

/// The device's process. It ends when this is dropped, and also when this process dies.
pub struct DeviceProcess {
    child: Child,
    counters: BufReader<UnixStream>,
    directory: PrivateDirectory,
    socket: PathBuf,
}

impl DeviceProcess {
    /// Starts it and waits for its socket.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn start(options: &DeviceOptions) -> Result<Self, DeviceError> {
        Self::launch(options.program.as_deref(), "net.sock", |socket| options.arguments(socket))
    }

    /// Starts a device of whatever kind, which listens at a socket of this name, and waits for the socket. `arguments` says what it
    /// is told; `program` is this very one if `None`.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn launch(
        program: Option<&Path>,
        socket: &str,
        arguments: impl FnOnce(&Path) -> Vec<String>,
    ) -> Result<Self, DeviceError> {
        let directory = PrivateDirectory::new()?;
        let socket = directory.0.join(socket);
        let program = match program {
            Some(program) => program.to_owned(),
            None => std::env::current_exe().map_err(DeviceError::Start)?,
        };
        let log = File::create(directory.0.join("log")).map_err(DeviceError::Start)?;
        let pair = || -> io::Result<(UnixStream, UnixStream)> {
            let ours = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None)?;
            rustix::io::fcntl_setfd(&ours.0, rustix::io::FdFlags::CLOEXEC)?;
            Ok((ours.0.into(), ours.1.into()))
        };
        let (ours, theirs) = pair().map_err(DeviceError::Start)?;
        ours.set_read_timeout(Some(ANSWER)).map_err(DeviceError::Start)?;
        let mut command = Command::new(program);
        command.args(arguments(&socket));
        // The other end stays open across exec and is the device's under the same number.
        command.arg("--counters-fd").arg(theirs.as_raw_fd().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        // A group of its own: Ctrl-C is for us, and we end the device in order.
        command.process_group(0);
        if std::env::var_os("MDEVD_LOG").is_none() {
            command.env("MDEVD_LOG", "warn");
        }
        let child = command.spawn().map_err(DeviceError::Start)?;
        drop(theirs);
        let mut device = DeviceProcess { child, counters: BufReader::new(ours), directory, socket };
        let deadline = Instant::now() + START;
        while !device.socket.exists() {
            if let Some(error) = device.ended(Duration::ZERO) {
                return Err(error);
            }
            if Instant::now() >= deadline {
                return Err(DeviceError::Slow(START));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(device)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// Its counters now.
    ///
    /// # Errors
    /// [`DeviceError::Counters`]: it does not answer.
    pub fn counters(&mut self) -> Result<CounterLine, DeviceError> {
        let mut ask = || -> io::Result<CounterLine> {
            self.counters.get_mut().write_all(b"?")?;
            let mut line = String::new();
            if self.counters.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(serde_json::from_str(&line)?)
        };
        ask().map_err(DeviceError::Counters)
    }

    /// If the process has ended by itself, or does so within this time: how, and its last words. (Its socket closes a
    /// moment before it has ended.)
    pub fn ended(&mut self, within: Duration) -> Option<DeviceError> {
        let deadline = Instant::now() + within;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
                _ => return None,
            }
        };
        let said = fs::read_to_string(self.directory.0.join("log")).unwrap_or_default();
        let said = if said.trim().is_empty() { "(nothing)".to_owned() } else { said.trim_end().to_owned() };
        Some(DeviceError::Ended { status: status.to_string(), said })
    }
}

impl Drop for DeviceProcess {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + END;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn options() -> DeviceOptions {
        DeviceOptions {
            program: None,
            direction: Direction::From,
            size: PacketSize::Imix,
            queue_pairs: 2,
            cpus: vec![0, 3],
        }
    }

    #[test]
    fn device_is_told_its_link_mode_and_processors() {
        let text = options().arguments(Path::new("/s")).join(" ");
        assert_eq!(
            text,
            "net --socket-path /s --link pktgen,size=imix --queue-pairs 2 --mode busy --cpus 0,3"
        );
        let shared = DeviceOptions { cpus: vec![], direction: Direction::To, ..options() };
        let text = shared.arguments(Path::new("/s")).join(" ");
        assert_eq!(text, "net --socket-path /s --link null --queue-pairs 2 --mode adaptive");
    }

    #[test]
    fn private_directory_is_for_the_owner_only_and_goes() {
        let directory = PrivateDirectory::new().unwrap();
        let path = directory.0.clone();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(path.join("something"), "x").unwrap();
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn process_that_ends_at_once_is_reported_with_its_last_words() {
        let program = Some("/bin/false".into());
        let error = DeviceProcess::start(&DeviceOptions { program, ..options() }).err().unwrap();
        let text = error.to_string();
        assert!(text.contains("exit status: 1") && text.contains("(nothing)"), "{text}");
    }

    #[test]
    fn missing_program_is_an_error() {
        let program = Some("/nonexistent/mdevd".into());
        assert!(matches!(
            DeviceProcess::start(&DeviceOptions { program, ..options() }),
            Err(DeviceError::Start(_))
        ));
    }
}
