//! A Linux host in QEMU, whose kernel uses devices of the product over VDUSE, and what tests let it do. The product runs inside.

use std::time::Duration;

use mdev_tests::lab::{Counters, Guest, Lab, QemuGuest};

use super::disk::OBEY;

/// How long something may take that the host does: its kernel, its driver and the product share emulated processors.
pub const DOES: Duration = Duration::from_secs(120);

/// What its console knows beside the commands of a shell.
///
/// - `start NAME ARGUMENTS`: starts `mdevd` and waits until it serves. `$NAME` is its process, `/tmp/NAME.log` its log.
/// - `leave NAME [SIGNAL]`: ends it and waits. Its status is the command's.
/// - `plug NAME`: puts a device on the bus.
/// - `find NAME`: waits for the disk of the device on the bus, and calls it `$disk`; `find NAME net` the interface, `$nic`.
/// - `far COMMAND`: runs it in the network namespace of the process `$far`.
/// - `until_true COMMAND`: waits until that succeeds.
const WORDS: &str = r#"
until_true() { until eval "$1"; do usleep 20000; done; }
start() {
    name=$1
    shift
    RUST_LOG=info mdevd "$@" > /tmp/$name.log 2>&1 &
    eval $name=$!
    until grep -q 'serving ' /tmp/$name.log; do
        if ! kill -0 $! 2>/dev/null; then cat /tmp/$name.log; return 1; fi
        usleep 10000
    done
}
leave() { eval "kill -${2:-TERM} \$$1; wait \$$1"; }
far() { nsenter -t $far -n "$@"; }
plug() { vdpa dev add name $1 mgmtdev vduse; }
find() {
    class=${2:-block}
    until_true "[ -e /sys/bus/vdpa/devices/$1/virtio*/$class/* ]"
    set -- /sys/bus/vdpa/devices/$1/virtio*/$class/*
    case $class in
        block) disk=/dev/${1##*/}; until_true "[ -b $disk ]" ;;
        net) nic=${1##*/} ;;
    esac
}
"#;

/// The host. `disk` and `nic` stand for what `find` has found last.
pub struct Host {
    guest: QemuGuest,
}

/// A host in the making, with two processors.
pub fn host(lab: &Lab) -> Guest<'_> {
    host_without_modules(lab).vduse()
}

/// The same, but its kernel knows nothing of VDUSE.
pub fn host_without_modules(lab: &Lab) -> Guest<'_> {
    QemuGuest::with_script(lab, "host", &format!("{WORDS}{OBEY}"))
        .product()
        .program("guest-blocks", env!("CARGO_BIN_EXE_guest-blocks"))
        .program("guest-frames", env!("CARGO_BIN_EXE_guest-frames"))
        .cores(2)
}

impl Host {
    /// Power on, and wait until it obeys.
    pub fn up(host: Guest<'_>) -> Host {
        let mut guest = host.start();
        guest.booted();
        Host { guest }
    }

    /// The machine.
    pub fn guest(&mut self) -> &mut QemuGuest {
        &mut self.guest
    }

    /// Run a command: how it ended, and what it said.
    pub fn ran(&mut self, command: &str) -> (u32, String) {
        self.guest.forget_output();
        self.guest.type_in(&format!("do {command}\n"));
        let said = self.guest.expect("did: ", DOES);
        let (said, status) = said.rsplit_once("did: ").expect("how it ended");
        // The console shows what is typed.
        let said = said.split_once('\n').map_or("", |(_, said)| said);
        (status.trim().parse().expect("a status"), said.to_owned())
    }

    /// Run a command, which succeeds, and return what it said.
    pub fn runs(&mut self, command: &str) -> String {
        let (status, said) = self.ran(command);
        assert_eq!(status, 0, "{command}: {said}\n{}", self.logs());
        said
    }

    /// Run a command, which fails with this status, and return what it said.
    pub fn fails(&mut self, command: &str, status: u32) -> String {
        let (ended, said) = self.ran(command);
        assert_eq!(ended, status, "{command}: {said}\n{}", self.logs());
        said
    }

    /// Wait until this command of the shell succeeds.
    pub fn waits(&mut self, command: &str) {
        self.runs(&format!("until_true '{command}'"));
    }

    fn logs(&mut self) -> String {
        self.ran("tail -n 20 /tmp/*.log; dmesg | tail -n 20").1
    }

    /// Start `mdevd` with these arguments, a disk `name` on the bus, and find it.
    pub fn disk(&mut self, name: &str, arguments: &str) {
        self.runs(&format!("start {name} blk --vduse {name} {arguments} && plug {name} && find {name}"));
    }

    /// The counters of a daemon of one device, one entry for each queue, when no request has failed.
    pub fn clean(&mut self, name: &str) -> Vec<Counters> {
        let asked = format!("wc -l < /tmp/{name}.log && kill -USR1 ${name}");
        let before: usize = self.runs(&asked).trim().parse().expect("a number");
        self.waits(&format!("tail -n +{} /tmp/{name}.log | grep -q \"  memory: \"", before + 1));
        let log = self.runs(&format!("tail -n +{} /tmp/{name}.log", before + 1));
        let queues = Counters::in_log(&log);
        assert!(!queues.is_empty(), "no counters: {log}");
        for queue in &queues {
            assert_eq!((queue.get("drops"), queue.get("errors")), (0, 0), "drops, errors: {log}");
        }
        queues
    }

    /// Power off. Its kernel has not complained.
    pub fn off(mut self) {
        let complaints = "dmesg | grep -E 'WARNING:|BUG:|Oops|blocked for more than|Kernel panic'";
        let (status, said) = self.ran(complaints);
        assert_eq!(status, 1, "{said}");
        // A device that is still on the bus is reset, and nobody may be there to answer: the kernel is not to wait for its 30 seconds.
        self.runs("for wait in /sys/class/vduse/*/msg_timeout; do [ ! -e $wait ] || echo 1 > $wait; done");
        self.guest.type_in("off\n");
        self.guest.powered_off();
    }
}
