//! A Linux guest in QEMU whose disks are namespaces of `mdevd nvme`.

use std::fs::File;

use mdev_tests::lab::{Counters, Lab, Mdevd, Skip, Trial};

use super::blk_guest::{PROGRAMS, file_system, space_comes_back, zeroes};
use super::controller::{CONTROLLER, DISK, SECOND, guest, ready};
use super::disk::{SIZE, clean, image, off, ran, runs};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("nvme_guest_file_system_on_memory_holds_what_was_written", |lab| on_memory(lab, false)),
        // One worker that never sleeps: QEMU maps the doorbells, and nobody is told when they are rung.
        Trial::new("nvme_guest_file_system_on_memory_with_mapped_doorbells_holds_what_was_written", |lab| {
            on_memory(lab, true)
        }),
        Trial::new(
            "nvme_guest_in_memory_that_qemu_keeps_has_a_file_system_that_holds_what_was_written",
            private,
        ),
        Trial::new("nvme_guest_file_system_on_a_file_holds_what_was_written_and_gives_space_back", |lab| {
            on_a_file(lab, "")
        }),
        Trial::new("nvme_guest_file_system_on_a_direct_file_holds_what_was_written", |lab| {
            on_a_file(lab, ",direct=on")
        }),
        Trial::new("nvme_guest_sees_two_namespaces_and_the_size_of_a_grown_file", grown),
        Trial::new("nvme_guest_cannot_write_to_a_namespace_that_is_read_only", read_only),
        Trial::new("nvme_guest_has_a_device_of_a_file_of_devices", of_a_file_of_devices),
    ]
}

fn on_memory(lab: &Lab, busy: bool) -> Result<(), Skip> {
    let arguments: &[&str] = if busy { &["--mode", "busy", "--cpus", "0"] } else { &[] };
    let mut mdevd = Mdevd::nvme(lab, "nvme.sock", 2, &[&format!("mem,size={SIZE}")], arguments);
    let mut guest = guest(lab, "guest", 2).lab_programs(PROGRAMS).start();
    ready(&mut guest, 1);
    file_system(&mut guest, &mut mdevd, DISK);
    zeroes(&mut guest, "zero", DISK);
    // A queue that starts is kicked once.
    let kicks: u64 = clean(&mut mdevd).iter().map(|queue| queue.get("kicks")).sum();
    assert_eq!(kicks < 10, busy, "{kicks} kicks");
    off(guest, mdevd);
    Ok(())
}

/// QEMU gives no file: queues and data go by its messages.
fn private(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = Mdevd::nvme(lab, "nvme.sock", 2, &[&format!("mem,size={SIZE}")], &[]);
    let mut guest = guest(lab, "guest", 2).lab_programs(PROGRAMS).in_private_memory().start();
    ready(&mut guest, 1);
    file_system(&mut guest, &mut mdevd, DISK);
    off(guest, mdevd);
    Ok(())
}

fn on_a_file(lab: &Lab, options: &str) -> Result<(), Skip> {
    let (image, store) = image(lab, "disk.img", SIZE, options);
    let mut mdevd = Mdevd::nvme(lab, "nvme.sock", 2, &[&store], &[]);
    let mut guest = guest(lab, "guest", 2).lab_programs(PROGRAMS).start();
    ready(&mut guest, 1);
    file_system(&mut guest, &mut mdevd, DISK);
    space_comes_back(&mut guest, &image, DISK);
    off(guest, mdevd);
    Ok(())
}

/// The path of an attribute of a namespace's disk.
fn of(namespace: u32, attribute: &str) -> String {
    format!("/sys/block/$(readlink /dev/ns{namespace})/{attribute}")
}

/// The controller tells of the new size by an asynchronous event; the guest asks nobody.
fn grown(lab: &Lab) -> Result<(), Skip> {
    let (image, store) = image(lab, "disk.img", SIZE, "");
    let second = format!("mem,size={}", 2 * SIZE);
    let mut mdevd = Mdevd::nvme(lab, "nvme.sock", 1, &[&store, &second], &["--serial", "SN-1"]);
    let mut guest = guest(lab, "guest", 1).start();
    ready(&mut guest, 2);
    let guest_ = &mut guest;
    assert!(runs(guest_, &format!("cat {CONTROLLER}/serial")).contains("SN-1"));
    for (namespace, size) in [(1, SIZE), (2, 2 * SIZE)] {
        runs(guest_, &format!("[ $(cat {}) = {} ]", of(namespace, "size"), size / 512));
    }
    runs(guest_, &format!("dd if=/dev/urandom of=/tmp/one bs=1M count=1 && dd if=/tmp/one of={DISK}"));
    runs(guest_, &format!("cmp -n {SIZE} {SECOND} /dev/zero && cmp -n 1048576 {DISK} /tmp/one"));

    let grown = 3 * SIZE;
    File::options().write(true).open(image).and_then(|file| file.set_len(grown)).expect("a longer image");
    runs(guest_, &format!("until [ $(cat {}) = {} ]; do sleep 0.1; done", of(1, "size"), grown / 512));
    let end = format!("bs=1M count=1 seek={} conv=fsync", (grown >> 20) - 1);
    runs(guest_, &format!("dd if=/tmp/one of={DISK} {end}"));
    let end = format!("bs=1M count=1 skip={} iflag=direct", (grown >> 20) - 1);
    runs(guest_, &format!("dd if={DISK} {end} of=/tmp/two && cmp /tmp/one /tmp/two"));
    clean(&mut mdevd);
    off(guest, mdevd);
    Ok(())
}

fn read_only(lab: &Lab) -> Result<(), Skip> {
    let (image, store) = image(lab, "disk.img", SIZE, ",ro=on");
    std::fs::write(&image, vec![7; SIZE as usize]).expect("an image");
    let mdevd = Mdevd::nvme(lab, "nvme.sock", 1, &[&store], &[]);
    let mut guest = guest(lab, "guest", 1).start();
    ready(&mut guest, 1);
    assert!(runs(&mut guest, &format!("cat {}", of(1, "ro"))).contains('1'));
    runs(
        &mut guest,
        &format!("dd if={DISK} bs=1M of=/tmp/all && [ $(tr -d '\\007' < /tmp/all | wc -c) = 0 ]"),
    );
    let (status, said) = ran(&mut guest, &format!("dd if=/dev/zero of={DISK} bs=4k count=1 oflag=direct"));
    assert_ne!(status, 0, "{said}");
    let (status, said) = ran(&mut guest, &format!("blkdiscard {DISK}"));
    assert_ne!(status, 0, "{said}");
    off(guest, mdevd);
    let bytes = std::fs::read(image).expect("an image");
    assert!(bytes.iter().all(|byte| *byte == 7), "the image has changed");
    Ok(())
}

fn of_a_file_of_devices(lab: &Lab) -> Result<(), Skip> {
    let device = "[[nvme]]\nname = \"fast\"\nsocket-path = \"nvme.sock\"\nnamespaces = [\"mem,size=64M\"]\nqueues = 2\n";
    let mut mdevd = Mdevd::serve(lab, &format!("[workers]\ncount = 1\n{device}"));
    let mut guest = guest(lab, "guest", 2).start();
    ready(&mut guest, 1);
    assert!(runs(&mut guest, &format!("cat {CONTROLLER}/serial")).contains("fast"));
    runs(&mut guest, "dd if=/dev/urandom of=/tmp/one bs=1M count=8");
    runs(
        &mut guest,
        &format!("dd if=/tmp/one of={DISK} bs=64k conv=fsync && cmp -n 8388608 {DISK} /tmp/one"),
    );
    let queues = mdevd.counters_of("fast");
    let commands: u64 = queues.iter().map(Counters::requests).sum();
    assert!(commands > 16 && queues.iter().all(|queue| queue.get("errors") == 0), "{queues:?}");
    off(guest, mdevd);
    Ok(())
}
