//! What a guest and its operator do to a disk while it is busy: it is paused, unplugged and plugged again, the machine is reset, memory
//! comes and goes.

use mdev_tests::lab::{Lab, Mdevd, QemuGuest, Skip, Trial, rounds};
use serde_json::json;

use super::disk::{SIZE, begin, clean, goes_on, guest, image, off, rest, runs};
use super::scenarios::plug;

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("blk_lifecycle_under_io_leaves_a_disk_that_works", |lab| lifecycle(lab, "")),
        Trial::new("blk_lifecycle_under_io_with_packed_rings_leaves_a_disk_that_works", |lab| {
            lifecycle(lab, ",packed=on")
        }),
        Trial::new("scenario_22_memory_unplugged_under_io_is_released_before_qemu_says_so", memory)
            .in_rounds(),
    ]
}

fn lifecycle(lab: &Lab, options: &str) -> Result<(), Skip> {
    let (_, store) = image(lab, "disk.img", SIZE, ",direct=on");
    let mut mdevd = Mdevd::blk(lab, "blk.sock", 2, &store, &[]);
    let mut guest = guest(lab, "guest", 2, options).start();
    guest.booted();
    begin(&mut guest, 4);
    for _ in 0..3 {
        guest.qmp().execute("stop", json!({}));
        guest.qmp().execute("cont", json!({}));
        goes_on(&mut guest);
    }
    unplug(&mut guest);
    let disk = format!("vhost-user-blk-pci,id=disk0,chardev=c0,bus=port0,num-queues=2{options}");
    guest.qmp().execute("device_add", device(&disk));
    runs(&mut guest, "until [ -b /dev/vda ]; do sleep 0.1; done");
    begin(&mut guest, 4);
    guest.system_reset();
    guest.booted();
    begin(&mut guest, 4);
    rest(&mut guest);
    clean(&mut mdevd);
    off(guest, mdevd);
    Ok(())
}

/// Unplug the disk while it is written, and wait until those who wrote have found out.
fn unplug(guest: &mut QemuGuest) {
    guest.qmp().execute("device_del", json!({ "id": "disk0" }));
    guest.qmp().event("DEVICE_DELETED", |event| event["data"]["device"] == "disk0");
    runs(guest, "wait; until ! [ -b /dev/vda ]; do sleep 0.1; done");
}

/// What `device_add` wants of options as `-device` has them.
fn device(options: &str) -> serde_json::Value {
    let value = |word: &str| match word.parse::<u64>() {
        Ok(number) => json!(number),
        Err(_) if word == "on" => json!(true),
        Err(_) => json!(word),
    };
    let pairs = options.split(',').map(|option| option.split_once('=').unwrap_or(("driver", option)));
    serde_json::Value::Object(pairs.map(|(key, word)| (key.to_owned(), value(word))).collect())
}

/// A memory module comes and goes. The guest's buffers are in it, if the guest likes, and what is read into them has its time.
fn memory(lab: &Lab) -> Result<(), Skip> {
    let (_, store) = image(lab, "disk.img", SIZE, ",direct=on");
    let mut mdevd = Mdevd::blk(lab, "blk.sock", 2, &store, &[]);
    let mut guest = guest(lab, "guest", 2, "").start();
    guest.booted();
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
