//! The daemon, and what it has.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use mdev_tests::stage::await_that;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Pairs of I/O queues of the controller that is attacked.
pub const PAIRS: u16 = 16;
/// Its namespaces: in memory, in a file; and, in a house that holds, one whose commands end when somebody says so.
pub const IN_MEMORY: u32 = 1;
pub const IN_FILE: u32 = 2;
pub const HELD: u32 = 3;
/// Bytes of each of its namespaces.
pub const SIZE: u64 = 8 << 20;

/// Anonymous memory that may be left: what allocators keep.
const KEPT_KIB: u64 = 8 << 10;

/// A daemon with one worker and two controllers on it.
pub struct House {
    folder: TempDir,
    child: Child,
    orders: Option<(ChildStdin, BufReader<ChildStdout>)>,
    log: Receiver<String>,
}

impl House {
    /// `mdevd serve`.
    pub fn serving(mode: &str) -> House {
        let folder = TempDir::new().expect("a folder");
        let socket = |name: &str| folder.path().join(name).display().to_string();
        let text = format!(
            "[workers]\ncount = 1\nmode = \"{mode}\"\n\n\
             [[nvme]]\nname = \"neighbour\"\nsocket-path = \"{}\"\nnamespaces = [\"mem,size=4M\"]\nqueues = 1\n\n\
             [[nvme]]\nname = \"target\"\nsocket-path = \"{}\"\n\
             namespaces = [\"mem,size={SIZE}\", \"file=disk.img\"]\nqueues = {PAIRS}\n",
            socket("neighbour"),
            socket("target"),
        );
        std::fs::write(folder.path().join("mdevd.toml"), text).expect("a file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_victim-daemon"));
        command.args(["serve", "mdevd.toml"]);
        House::start(folder, command, false)
    }

    /// A daemon whose controller has a namespace that holds all commands.
    pub fn holding(mode: &str) -> House {
        let folder = TempDir::new().expect("a folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_held-controllers"));
        command.args([".", mode]);
        House::start(folder, command, true)
    }

    fn start(folder: TempDir, mut command: Command, takes_orders: bool) -> House {
        let disk = File::create(folder.path().join("disk.img")).expect("a file");
        disk.set_len(SIZE).expect("a size");
        command.current_dir(folder.path()).env("RUST_LOG", "warn").stderr(Stdio::piped());
        if takes_orders {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        }
        let mut child = command.spawn().expect("the daemon starts");
        let stderr = child.stderr.take().expect("a pipe");
        let (told, log) = channel();
        // Reads to the end, so that the daemon never waits for us.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = told.send(line);
            }
        });
        let orders = child.stdin.take().zip(child.stdout.take().map(BufReader::new));
        let house = House { folder, child, orders, log };
        for name in ["neighbour", "target"] {
            await_that("the daemon listens", || house.socket(name).exists());
        }
        house
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The socket of the controller that is attacked.
    pub fn target(&self) -> PathBuf {
        self.socket("target")
    }

    /// Tells a daemon that holds to do something, and how many commands that was about.
    pub fn order(&mut self, what: &str) -> u64 {
        let (orders, answers) = self.orders.as_mut().expect("a daemon that takes orders");
        writeln!(orders, "{what}").expect("it listens");
        let mut line = String::new();
        answers.read_line(&mut line).expect("it answers");
        line.trim().parse().expect("a number")
    }

    /// Waits until so many commands are held.
    pub fn await_held(&mut self, count: u64) {
        await_that(&format!("{count} commands in flight"), || self.order("pending") == count);
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it has now.
    pub fn census(&self) -> Census {
        Census::of(self.pid())
    }

    /// Waits until it has what it had before.
    pub fn must_settle(&mut self, before: &Census, what: &str) {
        let vain = || format!("{what}: the daemon had {before:?} and has {:?}", self.census());
        await_that(&vain(), || self.census().is_like(before));
        assert!(self.child.try_wait().expect("a child").is_none(), "{what}: the daemon has ended");
    }

    /// Tells it to end, which it must do in order.
    pub fn end(mut self) {
        kill_process(self.pid(), Signal::TERM).expect("it runs");
        let mut status = None;
        await_that("the daemon ends", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            while let Ok(line) = self.log.recv_timeout(Duration::from_millis(200)) {
                eprintln!("daemon: {line}");
            }
        }
    }
}

/// What a process has.
#[derive(Clone, Debug)]
pub struct Census {
    descriptors: BTreeMap<String, usize>,
    /// Of memory files.
    mappings: BTreeMap<String, usize>,
    /// Anonymous memory that is there.
    resident_kib: u64,
}

impl Census {
    fn of(pid: Pid) -> Census {
        let proc = PathBuf::from(format!("/proc/{}", pid.as_raw_pid()));
        let read = |name: &str| std::fs::read_to_string(proc.join(name)).unwrap_or_default();
        let (mut descriptors, mut mappings) = (BTreeMap::new(), BTreeMap::new());
        for entry in std::fs::read_dir(proc.join("fd")).into_iter().flatten().flatten() {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            let target = target.to_string_lossy();
            *descriptors.entry(target.split(":[").next().unwrap_or_default().to_owned()).or_default() += 1;
        }
        for line in read("maps").lines() {
            if let Some((_, file)) = line.split_once("/memfd:") {
                *mappings.entry(file.to_owned()).or_default() += 1;
            }
        }
        let status = read("status");
        let resident = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let resident_kib = resident.and_then(|text| text.split_whitespace().next()?.parse().ok());
        Census { descriptors, mappings, resident_kib: resident_kib.unwrap_or(u64::MAX) }
    }

    /// The same with the anonymous memory of another.
    pub fn with_memory_of(self, other: &Census) -> Census {
        Census { resident_kib: other.resident_kib, ..self }
    }

    fn is_like(&self, before: &Census) -> bool {
        let same = self.descriptors == before.descriptors && self.mappings == before.mappings;
        same && self.resident_kib <= before.resident_kib + KEPT_KIB
    }
}
