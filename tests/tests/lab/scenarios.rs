//! The scenarios of the book that are about QEMU, with QEMU: its guest goes on, and the device holds no memory longer than it may.

use std::time::{Duration, Instant};

use mdev_tests::lab::{Lab, Mdevd, QemuGuest, Skip, Trial};
use serde_json::json;

use super::net_guest::{EXCHANGE, exchange, guest, passes, works};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("scenario_21_guest_handed_from_one_qemu_to_another_goes_on", handed_over),
        Trial::new("scenario_22_memory_unplugged_under_traffic_is_released_before_qemu_says_so", unplugged),
        Trial::new("scenario_24_guest_killed_under_traffic_leaves_nothing_and_makes_room", killed),
    ]
}

fn serve(lab: &Lab) -> Mdevd {
    Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"])
}

/// No queue has failed, whatever happened to its memory.
fn no_errors(mdevd: &mut Mdevd) {
    let counters = mdevd.counters();
    assert!(counters.iter().all(|queue| queue.get("errors") == 0), "{counters:#?}");
}

/// QEMU's cpr-transfer: a second QEMU connects while the first one's rings run, and shares the same files at other user addresses. Frames
/// that are on the wire when the rings stop may be lost, as on any wire; nothing else is.
fn handed_over(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = serve(lab);
    let mut old = guest(lab, "old", 1).movable().start();
    works(&mut old, 300);
    let mapped = mdevd.mapped_files();
    let successor = guest(lab, "new", 1).movable().successor();
    old.type_in("frames 20000 20\n");
    passes(&mut mdevd, 500);
    old.hand_over(successor.name())?;
    let mut new = successor.runs();
    mdevd.expect("connection 2: a front-end is there", EXCHANGE);
    let said = new.expect("frames: ", EXCHANGE);
    assert!(said.contains("frames: 20000 sent and back"), "{said}");
    // Both are connected: the files are the same, and mapped once.
    assert_eq!(mdevd.mapped_files(), mapped);
    exchange(&mut new, 300);
    old.quit();
    mdevd.expect("connection 1: the front-end closed", EXCHANGE);
    exchange(&mut new, 300);
    assert_eq!(mdevd.mapped_files(), mapped);
    no_errors(&mut mdevd);
    new.type_in("off\n");
    new.powered_off();
    mdevd.terminate();
    Ok(())
}

/// A memory module comes and goes beside running rings. QEMU says that it is gone when the device has answered its REM_MEM_REG: not before
/// the device has let go of it.
fn unplugged(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = serve(lab);
    let mut guest = guest(lab, "guest", 1).start();
    works(&mut guest, 300);
    let before = mdevd.mapped_files();
    guest.type_in("frames 1000000\n");
    for _ in 0..3 {
        plug(&mut guest);
        assert_eq!(mdevd.mapped_files().len(), before.len() + 1, "the module is not mapped");
        passes(&mut mdevd, 500);
        guest.qmp().execute("device_del", json!({ "id": "dimm0" }));
        guest.qmp().event("DEVICE_DELETED", |event| event["data"]["device"] == "dimm0");
        assert_eq!(mdevd.mapped_files(), before, "the module is still mapped");
        guest.qmp().execute("object-del", json!({ "id": "more" }));
        passes(&mut mdevd, 500);
    }
    no_errors(&mut mdevd);
    guest.quit();
    mdevd.terminate();
    Ok(())
}

/// Plug a memory module `dimm0` with the memory `more`.
pub fn plug(guest: &mut QemuGuest) {
    let module =
        json!({ "qom-type": "memory-backend-memfd", "id": "more", "size": 128 << 20, "share": true });
    guest.qmp().execute("object-add", module);
    guest.qmp().execute("device_add", json!({ "driver": "pc-dimm", "id": "dimm0", "memdev": "more" }));
}

fn killed(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = serve(lab);
    for name in ["first", "second"] {
        let mut guest = guest(lab, name, 1).start();
        works(&mut guest, 300);
        assert!(!mdevd.mapped_files().is_empty() && mdevd.open_files() > 0);
        guest.type_in("frames 1000000\n"); // killed in the middle of it
        passes(&mut mdevd, 100);
        guest.kill();
        lets_go(&mdevd);
        assert!(mdevd.alive());
    }
    no_errors(&mut mdevd);
    let mut last = guest(lab, "last", 1).start();
    works(&mut last, 300);
    last.quit();
    mdevd.terminate();
    Ok(())
}

/// Wait until the device has neither mappings of a guest's memory nor files of it.
fn lets_go(mdevd: &Mdevd) {
    let give_up = Instant::now() + Duration::from_secs(10);
    while !mdevd.mapped_files().is_empty() || mdevd.open_files() > 0 {
        assert!(Instant::now() < give_up, "the device holds on to the memory of a dead guest");
        std::thread::sleep(Duration::from_millis(5));
    }
}
