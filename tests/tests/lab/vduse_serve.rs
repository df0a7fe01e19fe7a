//! `mdevd serve` gives a host's own kernel several devices, and takes them away.

use mdev_tests::lab::{Lab, Skip, Trial};

use super::disk::{SIZE, begin, goes_on, rest};
use super::vduse::{Host, host};

pub fn trials() -> Vec<Trial> {
    vec![Trial::new("vduse_devices_of_one_process_come_and_go_on_a_reload", reloaded)]
}

fn reloaded(lab: &Lab) -> Result<(), Skip> {
    let mut host = Host::up(host(lab));
    let disk = "[[blk]]\\nname = \"disk\"\\nvduse = \"vd0\"\\nstore = \"file=/tmp/disk\"\\nqueues = 2\\n";
    let nic =
        |name: &str| format!("[[net]]\\nname = \"{name}\"\\nvduse = \"{name}\"\\nlink = \"loopback\"\\n");
    let file = |text: &str| format!("printf '{text}' > /tmp/mdevd.toml");
    host.runs(&format!("truncate -s {SIZE} /tmp/disk"));
    host.runs(&file(&format!("{disk}{}", nic("vn0"))));
    host.runs("start served serve /tmp/mdevd.toml");
    host.runs("plug vd0 && plug vn0 && find vn0 net && find vd0 && ip link set $nic up");
    let said = host.runs("guest-frames $nic 200");
    assert!(said.contains("frames: 200 sent and back"), "{said}");
    begin(host.guest(), 4);

    // Another NIC comes, and the first one goes.
    host.runs("vdpa dev del vn0");
    host.runs(&file(&format!("{disk}{}", nic("vn1"))));
    host.runs("kill -HUP $served");
    host.waits("grep -q \"1 devices end, 1 begin, 1 go on\" /tmp/served.log");
    host.waits("[ -e /dev/vduse/vn1 ] && [ ! -e /dev/vduse/vn0 ]");
    host.waits("grep -q \"vn1: serving\" /tmp/served.log");
    host.runs("plug vn1 && find vn1 net && ip link set $nic up");
    let said = host.runs("guest-frames $nic 200");
    assert!(said.contains("frames: 200 sent and back"), "{said}");
    goes_on(host.guest());

    // The disk goes on a bus that it stays on; its driver waits until it is there again.
    host.runs(&file(&nic("vn1")));
    host.runs("kill -HUP $served");
    host.waits("grep -q \"vd0: the kernel.s device stays\" /tmp/served.log");
    host.runs(&file(&format!("{disk}{}", nic("vn1"))));
    host.runs("kill -HUP $served");
    host.waits("grep -q \"disk: serving\" /tmp/served.log");
    rest(host.guest());
    host.runs("leave served");
    host.off();
    Ok(())
}
