//! A Linux guest in QEMU, emulated in software: correct and slow.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use super::{Ended, Initramfs, Lab, Qmp, Running};

/// How long a guest may take from power-on to its script: 4 to 5 seconds when the machine has nothing else to do.
pub const BOOT: Duration = Duration::from_secs(90);

/// A guest in the making.
#[derive(Debug)]
pub struct Guest<'a> {
    lab: &'a Lab,
    pub(super) name: String,
    script: String,
    programs: Vec<(String, PathBuf)>,
    lab_programs: Vec<String>,
    module_folders: Vec<&'static str>,
    memory_mib: u32,
    /// More options of the file that is the memory.
    memory_options: &'static str,
    /// It is QEMU's own.
    private: bool,
    cores: u8,
    arguments: Vec<String>,
    kernel: String,
}

/// A guest that runs: its serial console is its output.
#[derive(Debug)]
pub struct QemuGuest {
    pub(super) run: Running,
    pub(super) qmp: Qmp,
}

impl<'a> Guest<'a> {
    /// Give the guest a program of this machine, as `/bin/NAME`.
    pub fn program(mut self, name: &str, path: impl AsRef<Path>) -> Guest<'a> {
        self.programs.push((name.into(), path.as_ref().into()));
        self
    }

    /// Give the guest programs of the lab's root, and memory that holds what they bring along.
    pub fn lab_programs(mut self, paths: &[&str]) -> Guest<'a> {
        self.memory_mib = self.memory_mib.max(448);
        self.lab_programs.extend(paths.iter().map(ToString::to_string));
        self
    }

    /// Have the guest run the product itself, as `/bin/mdevd`, with the tool that puts devices on its vDPA bus, and memory that holds
    /// images too.
    pub fn product(mut self) -> Guest<'a> {
        let product = self.lab.product.clone();
        self = self.lab_programs(&["/usr/sbin/vdpa"]).program("mdevd", product);
        self.memory_mib = 1024;
        self
    }

    /// Load the modules of VDUSE, and of taps.
    pub fn vduse(mut self) -> Guest<'a> {
        self.module_folders.push("vduse");
        self
    }

    /// Load the modules of VDUSE and the driver that lends its devices to processes, not the one for the kernel's own drivers.
    pub fn vhost_vdpa(mut self) -> Guest<'a> {
        self.module_folders.push("vhost");
        self
    }

    /// Virtual processors; 1 otherwise.
    pub fn cores(mut self, cores: u8) -> Guest<'a> {
        self.cores = cores;
        self
    }

    /// Memory in one huge page of 1 GiB.
    pub fn in_gigantic_pages(mut self) -> Guest<'a> {
        (self.memory_mib, self.memory_options) = (1024, ",hugetlb=on,hugetlbsize=1G");
        self
    }

    /// Memory of QEMU's own, which it shares with nobody.
    pub fn in_private_memory(mut self) -> Guest<'a> {
        self.private = true;
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

    /// A virtio-blk disk `disk0` on the vhost-user socket of these options (`path=S`, with more behind commas), behind the port `port0`, where
    /// it can be unplugged. `options` are more options of the disk, each behind a comma: `,packed=on`.
    pub fn vhost_user_blk(self, socket: &str, queues: u16, options: &str) -> Guest<'a> {
        self.arguments(&[
            "-device",
            "pcie-root-port,id=port0,slot=1,chassis=1",
            "-chardev",
            &format!("socket,id=c0,{socket}"),
            "-device",
            &format!("vhost-user-blk-pci,id=disk0,chardev=c0,bus=port0,num-queues={queues}{options}"),
        ])
    }

    /// A PCI function `function0` on the vfio-user socket at `socket`, in the port that [`Guest::vfio_user_port`] makes.
    pub fn vfio_user(self, socket: &str) -> Guest<'a> {
        let function = vfio_user_function(socket).to_string();
        self.vfio_user_port().arguments(&["-device", &function])
    }

    /// A port `port0` for a PCI function on a vfio-user socket, which can map all memory of the guest: that of ROMs has a file too.
    pub fn vfio_user_port(self) -> Guest<'a> {
        let port = "pcie-root-port,id=port0,slot=1,chassis=1";
        self.arguments(&["-machine", "aux-ram-share=on", "-device", port])
    }

    /// Power on. Returns at once; wait for `guest: running` with [`QemuGuest::booted`].
    ///
    /// # Panics
    /// When QEMU cannot be started.
    pub fn start(self) -> QemuGuest {
        let (run, monitor) = self.spawn();
        QemuGuest { run, qmp: Qmp::connect(&monitor, BOOT) }
    }

    /// Where its monitor listens.
    pub(super) fn monitor(&self) -> PathBuf {
        self.lab.work().join(format!("{}.qmp", self.name))
    }

    pub(super) fn spawn(self) -> (Running, PathBuf) {
        let mut files = Initramfs::for_guest(self.lab, &self.script).expect("the guest's files");
        for folder in &self.module_folders {
            files.add_modules(self.lab, folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
        }
        for path in &self.lab_programs {
            files.add_lab_program(self.lab, path).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        for (name, path) in &self.programs {
            files.add_program(name, path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        let initrd = self.lab.work().join(self.initrd());
        std::fs::write(initrd, files.finish()).expect("room for the initramfs");
        let mut command = self.lab.command("qemu-system-x86_64");
        command.args(self.command_line());
        (Running::spawn_with_input(&self.name, command), self.monitor())
    }

    fn initrd(&self) -> String {
        format!("{}.cpio", self.name)
    }

    /// The arguments of its QEMU.
    pub(super) fn command_line(&self) -> Vec<String> {
        let Guest { name, memory_mib, memory_options, private, cores, arguments, kernel, .. } = self;
        let (kind, share) = if *private { ("ram", "share=off") } else { ("memfd", "share=on") };
        let initrd = self.initrd();
        // movable: what the guest allocates in a plugged module never keeps it from being unplugged
        let always = "console=ttyS0 panic=-1 quiet tsc=reliable memhp_default_state=online_movable";
        let mut line: Vec<String> = [
            format!(
                "-name {name} -machine q35,memory-backend=mem -accel tcg,thread=multi -cpu max -smp {cores}"
            ),
            format!("-m {memory_mib}M,slots=4,maxmem=2G"), // modules may be plugged
            format!("-object memory-backend-{kind},id=mem,size={memory_mib}M,{share}{memory_options}"),
            "-nodefaults -no-user-config -display none -serial stdio -monitor none".to_owned(),
            format!("-qmp unix:{name}.qmp,server=on,wait=off -kernel /guest/vmlinuz -initrd {initrd}"),
        ]
        .iter()
        .flat_map(|part| part.split(' ').map(str::to_owned))
        .collect();
        line.extend(["-append".to_owned(), format!("{always}{kernel}")]);
        line.extend_from_slice(arguments);
        line
    }
}

/// What `-device` and `device_add` want for a PCI function `function0` on the vfio-user socket at `socket`.
pub fn vfio_user_function(socket: &str) -> serde_json::Value {
    let address = json!({ "type": "unix", "path": socket });
    json!({ "driver": "vfio-user-pci", "id": "function0", "bus": "port0", "socket": address })
}

impl QemuGuest {
    /// A guest named `name` (the names of its files in the working folder) that runs `script` in busybox's shell and then powers off.
    pub fn with_script<'a>(lab: &'a Lab, name: &str, script: &str) -> Guest<'a> {
        Guest {
            lab,
            name: name.into(),
            script: script.into(),
            programs: Vec::new(),
            lab_programs: Vec::new(),
            module_folders: Vec::new(),
            memory_mib: 256,
            memory_options: "",
            private: false,
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

    /// Have the next wait look only at what the guest says from now on.
    pub fn forget_output(&mut self) {
        self.run.forget_output();
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

    /// Make QEMU end in order, as `quit` does.
    pub fn quit(mut self) -> Ended {
        self.qmp.execute("quit", json!({}));
        self.run.ended(Duration::from_secs(30))
    }

    /// Wait until the guest has powered itself off.
    pub fn powered_off(mut self) -> Ended {
        self.run.ended(Duration::from_secs(60))
    }

    /// Kill QEMU without a word to anybody. What the guest has said on its console comes back.
    pub fn kill(self) -> Ended {
        self.run.end(Signal::KILL, Duration::from_secs(10))
    }
}
