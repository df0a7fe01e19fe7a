//! What a guest and its operator do to an NVMe controller while it is busy: its driver resets it, lets go of it and takes it again, it is
//! plugged, the machine is reset, memory comes and goes.

use mdev_tests::lab::{Lab, Mdevd, QemuGuest, Skip, Trial, rounds, vfio_user_function};
use serde_json::json;

use super::controller::{CONTROLLER, DISK, SECOND, found, guest, guest_without, ready};
use super::disk::{SIZE, begin, clean, goes_on, image, off, rest, runs};
use super::scenarios::plug;

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("nvme_lifecycle_reset_under_io_is_not_seen_by_who_writes", reset),
        Trial::new("nvme_lifecycle_driver_that_goes_and_comes_under_io_finds_a_disk_that_works", driver),
        Trial::new("nvme_lifecycle_function_plugged_into_a_running_machine_works", plugged),
        Trial::new("nvme_lifecycle_machine_reset_under_io_finds_what_was_written", rebooted),
        Trial::new("nvme_lifecycle_memory_unplugged_under_io_is_released_before_qemu_says_so", memory)
            .in_rounds(),
    ]
}

fn serve(lab: &Lab) -> Mdevd {
    let (_, store) = image(lab, "disk.img", SIZE, ",direct=on");
    Mdevd::nvme(lab, "nvme.sock", 2, &[&store, &format!("mem,size={SIZE}")], &[])
}

/// The driver gives commands that a reset has ended to the controller again.
fn reset(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = serve(lab);
    let mut guest = guest(lab, "guest", 2).start();
    ready(&mut guest, 2);
    begin(&mut guest, 4);
    for _ in 0..3 {
        runs(&mut guest, &format!("echo 1 > {CONTROLLER}/reset_controller"));
        goes_on(&mut guest);
    }
    for _ in 0..3 {
        guest.qmp().execute("stop", json!({}));
        guest.qmp().execute("cont", json!({}));
        goes_on(&mut guest);
    }
    rest(&mut guest);
    clean(&mut mdevd);
    off(guest, mdevd);
    Ok(())
}

/// Those who write find out that their disk is gone.
fn driver(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = serve(lab);
    let mut guest = guest(lab, "guest", 2).start();
    ready(&mut guest, 2);
    runs(&mut guest, &format!("pci=$(basename $(readlink -f {CONTROLLER}/device))"));
    let gone = format!("wait; ! [ -b {DISK} ]");
    for (go, come) in [
        ("echo $pci > /sys/bus/pci/drivers/nvme/unbind", "echo $pci > /sys/bus/pci/drivers/nvme/bind"),
        ("echo 1 > /sys/bus/pci/devices/$pci/remove", "echo 1 > /sys/bus/pci/rescan"),
        ("echo 1 > /sys/bus/pci/devices/$pci/reset", "true"), // a function level reset, under the driver
    ] {
        begin(&mut guest, 4);
        runs(&mut guest, go);
        if come == "true" {
            goes_on(&mut guest);
            rest(&mut guest);
        } else {
            runs(&mut guest, &gone);
            runs(&mut guest, come);
        }
        found(&mut guest, 2);
    }
    begin(&mut guest, 4);
    rest(&mut guest);
    clean(&mut mdevd);
    off(guest, mdevd);
    Ok(())
}

/// QEMU 11 aborts when such a function is unplugged (it takes a part of the BAR away that it has taken away before), so it is not.
fn plugged(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = serve(lab);
    let mut guest = guest_without(lab, "guest", 2).start();
    guest.booted();
    guest.qmp().execute("device_add", vfio_user_function("nvme.sock"));
    found(&mut guest, 2);
    begin(&mut guest, 4);
    rest(&mut guest);
    clean(&mut mdevd);
    off(guest, mdevd);
    Ok(())
}

/// By the button, and by a kernel that stops at once.
fn rebooted(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = serve(lab);
    let mut guest = guest(lab, "guest", 2).start();
    ready(&mut guest, 2);
    let written = format!("dd if=/dev/urandom of={SECOND} bs=64k count=128 conv=fsync");
    runs(&mut guest, &written);
    let sum = sum(&mut guest);
    begin(&mut guest, 4);
    guest.system_reset();
    ready(&mut guest, 2);
    assert_eq!(self::sum(&mut guest), sum);
    begin(&mut guest, 4);
    guest.forget_output();
    guest.type_in("do reboot -f\n");
    ready(&mut guest, 2);
    assert_eq!(self::sum(&mut guest), sum);
    begin(&mut guest, 4);
    rest(&mut guest);
    clean(&mut mdevd);
    off(guest, mdevd);
    Ok(())
}

/// What namespace 2 holds.
fn sum(guest: &mut QemuGuest) -> String {
    let said = runs(guest, &format!("dd if={SECOND} bs=64k count=128 iflag=direct 2>/dev/null | md5sum"));
    let is_sum = |word: &&str| word.len() == 32 && word.chars().all(|digit| digit.is_ascii_hexdigit());
    said.split_whitespace().find(is_sum).unwrap_or_else(|| panic!("no sum: {said}")).to_owned()
}

/// A memory module comes and goes. The guest's buffers are in it, if the guest likes, and what is read into them has its time.
fn memory(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = serve(lab);
    let mut guest = guest(lab, "guest", 2).start();
    ready(&mut guest, 2);
    begin(&mut guest, 2);
    let before = mdevd.mapped_files();
    for _ in 0..rounds() {
        plug(&mut guest);
        assert_eq!(mdevd.mapped_files().len(), before.len() + 1, "the module is not mapped");
        rest(&mut guest);
        begin(&mut guest, 4); // with buffers that are allocated anew
        guest.qmp().execute("device_del", json!({ "id": "dimm0" }));
        guest.qmp().event("DEVICE_DELETED", |event| event["data"]["device"] == "dimm0");
        assert_eq!(mdevd.mapped_files(), before, "the module is still mapped");
        guest.qmp().execute("object-del", json!({ "id": "more" }));
        goes_on(&mut guest);
    }
    rest(&mut guest);
    clean(&mut mdevd);
    off(guest, mdevd);
    Ok(())
}
