//! A Linux guest in QEMU, emulated in software: correct and slow.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::{Ended, Initramfs, Lab, Qmp, Running, Skip};

/// How long a guest may take from power-on to its script: 4 to 5 seconds when the machine has nothing else to do.
pub const BOOT: Duration = Duration::from_secs(90);

/// Where one QEMU hands its guest to another: its state, and the descriptors of its memory.
const MAIN: &str = "main.sock";
const CPR: &str = "cpr.sock";

/// A guest in the making.
#[derive(Debug)]
pub struct Guest<'a> {
    lab: &'a Lab,
    name: String,
    script: String,
    programs: Vec<(String, PathBuf)>,
    memory_mib: u32,
    cores: u8,
    arguments: Vec<String>,
    kernel: String,
}

/// A guest that runs: its serial console is its output.
#[derive(Debug)]
pub struct QemuGuest {
    run: Running,
    qmp: Qmp,
}

impl<'a> Guest<'a> {
    /// Give the guest a program of this machine, as `/bin/NAME`.
    pub fn program(mut self, name: &str, path: impl AsRef<Path>) -> Guest<'a> {
        self.programs.push((name.into(), path.as_ref().into()));
        self
    }

    /// Virtual processors; 1 otherwise.
    pub fn cores(mut self, cores: u8) -> Guest<'a> {
        self.cores = cores;
        self
    }

    /// More arguments for QEMU.
    pub fn arguments(mut self, arguments: &[&str]) -> Guest<'a> {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// More arguments for its kernel.
    pub fn kernel(mut self, arguments: &str) -> Guest<'a> {
        self.kernel = format!("{} {arguments}", self.kernel);
        self
    }

    /// An IOMMU between the guest's memory and its virtio devices, which its kernel uses. Comes before the devices.
    pub fn behind_iommu(self) -> Guest<'a> {
        let translated = ["iommu_platform=on", "ats=on"].map(|set| format!("virtio-net-pci.{set}"));
        let globals = translated.iter().flat_map(|set| ["-global", set]).collect::<Vec<_>>();
        self.arguments(&["-device", "intel-iommu,intremap=on,device-iotlb=on"])
            .arguments(&globals)
            .kernel("intel_iommu=on")
    }

    /// A virtio-net NIC `nic0` on the vhost-user socket `socket`, behind the port `port0`, where it can be unplugged.
    pub fn vhost_user_net(self, socket: &str, queue_pairs: u16) -> Guest<'a> {
        self.vhost_user_net_with(socket, queue_pairs, "")
    }

    /// The same with more options for the NIC, each behind a comma: `,packed=on`.
    pub fn vhost_user_net_with(self, socket: &str, queue_pairs: u16, options: &str) -> Guest<'a> {
        let vectors = 2 * queue_pairs + 2;
        let multiqueue = if queue_pairs > 1 { format!(",mq=on,vectors={vectors}") } else { String::new() };
        self.arguments(&[
            "-device",
            "pcie-root-port,id=port0,slot=1,chassis=1",
            "-chardev",
            &format!("socket,id=c0,path={socket}"),
            "-netdev",
            &format!("vhost-user,id=n0,chardev=c0,queues={queue_pairs}"),
            "-device",
            &format!("virtio-net-pci,netdev=n0,romfile=,id=nic0,bus=port0,mac=52:54:00:12:34:56{multiqueue}{options}"),
        ])
    }

    /// Memory that another QEMU can take over while the guest lives: see [`Guest::successor`].
    pub fn movable(self) -> Guest<'a> {
        self.arguments(&["-machine", "aux-ram-share=on"])
    }

    /// Power on. Returns at once; wait for `guest: running` with [`QemuGuest::booted`].
    ///
    /// # Panics
    /// When QEMU cannot be started.
    pub fn start(self) -> QemuGuest {
        let (run, monitor) = self.spawn();
        QemuGuest { run, qmp: Qmp::connect(&monitor, BOOT) }
    }

    /// Start a QEMU that waits to take over the guest of another one, of the same arguments, with its memory and its state
    /// (`cpr-transfer`). It has no monitor before.
    ///
    /// # Panics
    /// When QEMU cannot be started, or does not listen in time.
    pub fn successor(self) -> Successor {
        let cpr = json!({ "channel-type": "cpr", "addr": socket(CPR) }).to_string();
        let main = format!("unix:{MAIN}");
        let (run, monitor) = self.arguments(&["-incoming", &main, "-incoming", &cpr]).spawn();
        let give_up = Instant::now() + BOOT;
        while !listens(CPR) {
            assert!(Instant::now() < give_up, "the successor does not listen on {CPR}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Successor { run, monitor }
    }

    fn spawn(self) -> (Running, PathBuf) {
        let mut files = Initramfs::for_guest(self.lab, &self.script).expect("the guest's files");
        for (name, path) in &self.programs {
            files.add_program(name, path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        let initrd = format!("{}.cpio", self.name);
        std::fs::write(self.lab.work().join(&initrd), files.finish()).expect("room for the initramfs");
        let monitor = format!("{}.qmp", self.name);
        let memory = format!("{}M", self.memory_mib);
        let mut command = self.lab.command("qemu-system-x86_64");
        command.args([
            "-name",
            &self.name,
            "-machine",
            "q35,memory-backend=mem",
            "-accel",
            "tcg,thread=multi",
        ]);
        command.args(["-cpu", "max", "-smp", &self.cores.to_string()]);
        command.args(["-m", &format!("{memory},slots=4,maxmem=2G")]); // modules may be plugged
        command.args(["-object", &format!("memory-backend-memfd,id=mem,size={memory},share=on")]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-monitor",
            "none",
        ]);
        command.args(["-qmp", &format!("unix:{monitor},server=on,wait=off")]);
        command.args(["-kernel", "/guest/vmlinuz", "-initrd", &initrd]);
        // movable: what the guest allocates in a plugged module never keeps it from being unplugged
        let kernel = "console=ttyS0 panic=-1 quiet tsc=reliable memhp_default_state=online_movable";
        command.args(["-append", &format!("{kernel}{}", self.kernel)]);
        command.args(&self.arguments);
        (Running::spawn_with_input(&self.name, command), self.lab.work().join(monitor))
    }
}

/// A QEMU that waits for another one's guest.
#[derive(Debug)]
pub struct Successor {
    run: Running,
    monitor: PathBuf,
}

impl Successor {
    /// Wait until it runs the guest.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn runs(self) -> QemuGuest {
        let Successor { run, monitor } = self;
        let mut qmp = Qmp::connect(&monitor, BOOT);
        let give_up = Instant::now() + BOOT;
        while qmp.execute("query-status", json!({}))["status"] != "running" {
            assert!(Instant::now() < give_up, "the successor does not run the guest");
            std::thread::sleep(Duration::from_millis(10));
        }
        QemuGuest { run, qmp }
    }
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

/// How QEMU calls a socket in the working folder.
fn socket(path: &str) -> Value {
    json!({ "transport": "socket", "type": "unix", "path": path })
}

impl QemuGuest {
    /// A guest named `name` (the names of its files in the working folder) that runs `script` in busybox's shell and then powers off.
    pub fn with_script<'a>(lab: &'a Lab, name: &str, script: &str) -> Guest<'a> {
        Guest {
            lab,
            name: name.into(),
            script: script.into(),
            programs: Vec::new(),
            memory_mib: 256,
            cores: 1,
            arguments: Vec::new(),
            kernel: String::new(),
        }
    }

    /// Wait until the guest has booted (again) and starts its script.
    pub fn booted(&mut self) {
        self.run.expect("guest: running", BOOT);
    }

    /// Wait for `what` on the console; see [`Running::expect`].
    pub fn expect(&mut self, what: &str, within: Duration) -> String {
        self.run.expect(what, within)
    }

    /// Type on the serial console.
    pub fn type_in(&mut self, text: &str) {
        self.run.type_in(text);
    }

    /// The monitor.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Press the reset button.
    pub fn system_reset(&mut self) {
        self.qmp.execute("system_reset", json!({}));
    }

    /// Hand the guest to the QEMU that waits for it. This one keeps its connections until it is told to quit.
    ///
    /// # Errors
    /// What QEMU says if it does not do that.
    pub fn hand_over(&mut self) -> Result<(), Skip> {
        let refused = |error: Value| Skip(format!("QEMU does not hand its guest over: {error}"));
        let mode = json!({ "mode": "cpr-transfer" });
        self.qmp.try_execute("migrate-set-parameters", mode).map_err(refused)?;
        let channel = |kind, path| json!({ "channel-type": kind, "addr": socket(path) });
        let channels = json!({ "channels": [channel("main", MAIN), channel("cpr", CPR)] });
        self.qmp.try_execute("migrate", channels).map_err(refused)?;
        Ok(())
    }

    /// Make QEMU end in order, as `quit` does.
    pub fn quit(mut self) -> Ended {
        self.qmp.execute("quit", json!({}));
        self.run.ended(Duration::from_secs(30))
    }

    /// Wait until the guest has powered itself off.
    pub fn powered_off(mut self) -> Ended {
        self.run.ended(Duration::from_secs(60))
    }

    /// Kill QEMU without a word to anybody.
    pub fn kill(self) {
        self.run.end(Signal::KILL, Duration::from_secs(10));
    }
}
