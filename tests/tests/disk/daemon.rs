//! The daemon, as a process of its own.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mdev_tests::disk::BLOCK;
use rustix::process::Pid;
use tempfile::TempDir;

/// Blocks of its disk.
pub const BLOCKS: u64 = 512;

/// A daemon with a disk in a file, which may be killed and started again.
pub struct Disk {
    folder: TempDir,
    /// The command that serves it, and the option by which that is given the store.
    command: [&'static str; 2],
    store: &'static str,
    mode: &'static str,
    daemon: Option<Child>,
}

impl Disk {
    /// A daemon that serves this store as a block device. Its file, if it is one, is `disk.img`.
    pub fn new(store: &'static str, mode: &'static str) -> Disk {
        Disk::served(["blk", "--store"], store, mode)
    }

    /// The same as a namespace of an NVMe controller.
    pub fn nvme(store: &'static str, mode: &'static str) -> Disk {
        Disk::served(["nvme", "--namespace"], store, mode)
    }

    fn served(command: [&'static str; 2], store: &'static str, mode: &'static str) -> Disk {
        let folder = TempDir::new().expect("a folder");
        let file = File::create(folder.path().join("disk.img")).expect("a file");
        file.set_len(BLOCKS * u64::from(BLOCK)).expect("a size");
        let mut disk = Disk { folder, command, store, mode, daemon: None };
        disk.start();
        disk
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("disk.sock")
    }

    pub fn start(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_victim-daemon"));
        let [kind, store] = self.command;
        command.args([kind, "--mode", self.mode, "--socket-path"]).arg(self.socket());
        command.args([store, self.store]).current_dir(self.folder.path());
        let mut daemon = command.stderr(Stdio::piped()).spawn().expect("the daemon starts");
        let stderr = daemon.stderr.take().expect("a pipe");
        let (told, serves) = std::sync::mpsc::channel();
        // Reads to the end, so that the daemon never waits for us.
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains("serving") {
                    let _ = told.send(());
                } else {
                    eprintln!("daemon: {line}");
                }
            }
        });
        serves.recv_timeout(Duration::from_secs(30)).expect("a daemon that serves");
        self.daemon = Some(daemon);
    }

    /// The daemon's process.
    pub fn process(&self) -> Pid {
        let daemon = self.daemon.as_ref().expect("a daemon");
        Pid::from_child(daemon)
    }

    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().expect("a process");
            daemon.wait().expect("a process that has ended");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.kill();
    }
}
