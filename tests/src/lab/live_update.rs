//! Live update of QEMU: its guest goes on in another QEMU (`cpr-transfer`), or in another program of the same process (`cpr-exec`).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::qemu::{BOOT, Guest, QemuGuest};
use super::{Ended, Qmp, Running, Skip};

/// How long a QEMU may take to notice that an update has failed.
const FAILURE: Duration = Duration::from_secs(30);

/// Where a QEMU of this name takes over a guest: its state, and the descriptors of its memory.
fn sockets(name: &str) -> (String, String) {
    (format!("{name}.main"), format!("{name}.cpr"))
}

/// How QEMU calls a socket in the working folder.
fn socket(path: &str) -> Value {
    json!({ "transport": "socket", "type": "unix", "path": path })
}

/// Whether somebody listens on a socket that was bound by this name: its file is there a little earlier.
fn listens(name: &str) -> bool {
    const ACCEPTS: &str = "00010000"; // net/unix/af_unix.c, unix_seq_show: __SO_ACCEPTCON
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("a list of sockets");
    let is_meant = |line: &str| {
        // Num, RefCount, Protocol, Flags, Type, St, Inode, Path
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&ACCEPTS) && fields.get(7) == Some(&name)
    };
    sockets.lines().any(is_meant)
}

impl Guest<'_> {
    /// Memory that another QEMU can take over while the guest lives: see [`Guest::successor`].
    pub fn movable(self) -> Self {
        self.arguments(&["-machine", "aux-ram-share=on"])
    }

    /// Start a QEMU that waits to take over the guest of another one, of the same arguments, with its memory and its state
    /// (`cpr-transfer`). It has no monitor before.
    ///
    /// # Panics
    /// When QEMU cannot be started, or does not listen in time.
    pub fn successor(self) -> Successor {
        let main = format!("unix:{}", sockets(&self.name).0);
        self.incoming(&main)
    }

    /// The same, but it gets its devices ready and then does not take the guest over.
    pub fn idle_successor(self) -> Successor {
        self.incoming("defer")
    }

    fn incoming(self, main: &str) -> Successor {
        let name = self.name.clone();
        let (_, cpr) = sockets(&name);
        let channel = json!({ "channel-type": "cpr", "addr": socket(&cpr) }).to_string();
        let (run, monitor) = self.arguments(&["-incoming", main, "-incoming", &channel]).spawn();
        let give_up = Instant::now() + BOOT;
        while !listens(&cpr) {
            assert!(Instant::now() < give_up, "the successor does not listen on {cpr}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Successor { name, run, monitor }
    }
}

/// A QEMU that waits for another one's guest.
#[derive(Debug)]
pub struct Successor {
    name: String,
    run: Running,
    monitor: PathBuf,
}

impl Successor {
    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Wait until it runs the guest.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn runs(self) -> QemuGuest {
        let Successor { run, monitor, .. } = self;
        let mut guest = QemuGuest { run, qmp: Qmp::connect(&monitor, BOOT) };
        guest.wait_for("query-status", "running", BOOT);
        guest
    }

    /// Kill it before it has.
    pub fn kill(self) {
        self.run.end(Signal::KILL, Duration::from_secs(10));
    }

    /// Wait until it has given up by itself.
    pub fn gives_up(mut self) -> Ended {
        self.run.ended(FAILURE)
    }
}

impl QemuGuest {
    /// Hand the guest to the QEMU of this name that waits for it. This one keeps its connections until it is told to quit.
    ///
    /// # Errors
    /// What QEMU says if it does not do that.
    pub fn hand_over(&mut self, successor: &str) -> Result<(), Skip> {
        let refused = |error: Value| Skip(format!("QEMU does not hand its guest over: {error}"));
        self.qmp.try_execute("migrate-set-parameters", json!({ "mode": "cpr-transfer" })).map_err(refused)?;
        let (main, cpr) = sockets(successor);
        let channel = |kind, path: &str| json!({ "channel-type": kind, "addr": socket(path) });
        let channels = json!({ "channels": [channel("main", &main), channel("cpr", &cpr)] });
        self.qmp.try_execute("migrate", channels).map_err(refused)?;
        Ok(())
    }

    /// Replace QEMU by `program` with the arguments of `guest`, in the same process, and wait until that runs the guest.
    ///
    /// # Errors
    /// What QEMU says if it does not know how.
    ///
    /// # Panics
    /// When it does not run in time.
    pub fn execute_successor(&mut self, guest: Guest<'_>) -> Result<(), Skip> {
        let monitor = guest.monitor();
        self.execute_program("qemu-system-x86_64", guest)?;
        self.qmp.until_gone();
        self.qmp = Qmp::connect(&monitor, BOOT);
        self.wait_for("query-status", "running", BOOT);
        Ok(())
    }

    /// Let QEMU try to execute `program`, and do not wait for what becomes of it.
    ///
    /// # Errors
    /// What QEMU says if it does not know how.
    pub fn execute_program(&mut self, program: &str, guest: Guest<'_>) -> Result<(), Skip> {
        let refused = |error: Value| Skip(format!("QEMU does not execute another: {error}"));
        let state = format!("file:{}.state", guest.name);
        let mut command = vec![program.to_owned()];
        command.extend(guest.arguments(&["-incoming", &state]).command_line());
        let mode = json!({ "mode": "cpr-exec", "cpr-exec-command": command });
        self.qmp.try_execute("migrate-set-parameters", mode).map_err(refused)?;
        self.qmp.try_execute("migrate", json!({ "uri": state })).map_err(refused)?;
        Ok(())
    }

    /// Wait until this question is answered with this status.
    ///
    /// # Panics
    /// When it is not in time.
    pub fn wait_for(&mut self, question: &str, status: &str, within: Duration) {
        let give_up = Instant::now() + within;
        loop {
            let answer = self.qmp.execute(question, json!({}));
            if answer["status"] == status {
                return;
            }
            assert!(Instant::now() < give_up, "{question} never says {status}, but {answer}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Wait until the update is over in this way: `failed`, `cancelled`, `completed`.
    ///
    /// # Panics
    /// When it is not in time.
    pub fn update_is(&mut self, how: &str) {
        self.wait_for("query-migrate", how, FAILURE);
    }
}
