//! A guest that obeys the console, with an NVMe controller on `mdevd nvme`.

use mdev_tests::lab::{Guest, Lab, QemuGuest};

use super::disk::{obeying, runs};

/// Namespace 1, once it was [`found`].
pub const DISK: &str = "/dev/ns1";

/// Namespace 2, once it was [`found`].
pub const SECOND: &str = "/dev/ns2";

/// Where a guest finds the controller.
pub const CONTROLLER: &str = "/sys/class/nvme/nvme0";

/// A guest whose controller is on `nvme.sock`, with a processor for each of up to two queues. It obeys the console, and the disk that it
/// writes is namespace 1.
pub fn guest<'a>(lab: &'a Lab, name: &str, queues: u16) -> Guest<'a> {
    obeying(lab, name, queues, DISK).vfio_user("nvme.sock")
}

/// The same guest with a port that the controller can be plugged into.
pub fn guest_without<'a>(lab: &'a Lab, name: &str, queues: u16) -> Guest<'a> {
    obeying(lab, name, queues, DISK).vfio_user_port()
}

/// Wait until a guest that runs has found so many namespaces, and let it name them by their identifiers: the numbers in its own names
/// follow the order in which it happened to find them.
pub fn found(guest: &mut QemuGuest, namespaces: u32) {
    for namespace in 1..=namespaces {
        let links = format!("[ $(cat $at/nsid) = {namespace} ] && ln -sf ${{at##*/}} /dev/ns{namespace}");
        let look = format!("for at in /sys/block/nvme*; do {links}; done 2>/dev/null");
        runs(guest, &format!("until {look}; [ -b /dev/ns{namespace} ]; do sleep 0.1; done"));
    }
}

/// Wait until a guest has booted (again) and has found so many namespaces.
pub fn ready(guest: &mut QemuGuest, namespaces: u32) {
    guest.booted();
    found(guest, namespaces);
}
