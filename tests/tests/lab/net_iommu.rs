//! A Linux guest whose NIC is behind QEMU's Intel IOMMU: every address of the device is asked for.

use mdev_tests::lab::{Guest, Lab, Mdevd, QemuGuest, Skip, Trial};
use serde_json::json;

use super::net_guest::{OBEY, exchange, works};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("net_iommu_strict_guest_gets_its_frames_back", |lab| frames_come_back(lab, "strict=1")),
        Trial::new("net_iommu_lazy_guest_gets_its_frames_back", |lab| frames_come_back(lab, "strict=0")),
        Trial::new("net_iommu_guest_with_two_queue_pairs_gets_its_frames_back", two_pairs),
        Trial::new("net_iommu_guest_works_again_after_pause_reboot_and_reset", reboots),
    ]
}

/// A guest with a NIC behind an IOMMU that obeys the console.
fn guest<'a>(lab: &'a Lab, queue_pairs: u16, mode: &str) -> Guest<'a> {
    QemuGuest::with_script(lab, "guest", OBEY)
        .program("guest-frames", env!("CARGO_BIN_EXE_guest-frames"))
        .behind_iommu()
        .kernel(&format!("iommu.{mode}"))
        .vhost_user_net("net.sock", queue_pairs)
}

/// Nothing was dropped, nothing failed, and translations came and went.
fn translated(mdevd: &mut Mdevd, packets: u64) {
    for queue in mdevd.counters() {
        assert!(queue.get("errors") == 0 && queue.get("drops") == 0, "{queue:?}");
        assert!(queue.packets() >= packets, "{queue:?}");
    }
    let translations = mdevd.translations();
    for counter in ["misses", "updates", "invalidations"] {
        assert!(translations.get(counter) > 0, "{translations:?}");
    }
    assert_eq!(translations.get("evictions"), 0, "{translations:?}");
}

fn frames_come_back(lab: &Lab, mode: &str) -> Result<(), Skip> {
    let mut mdevd = Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"]);
    let mut guest = guest(lab, 1, mode).start();
    works(&mut guest, 2000);
    translated(&mut mdevd, 2000);
    guest.type_in("off\n");
    guest.powered_off();
    mdevd.terminate();
    Ok(())
}

fn two_pairs(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = Mdevd::net(lab, "net.sock", 2, &["--link", "loopback", "--mode", "event"]);
    let mut guest = guest(lab, 2, "strict=1").cores(2).start();
    works(&mut guest, 1000);
    translated(&mut mdevd, 0);
    guest.quit();
    mdevd.terminate();
    Ok(())
}

fn reboots(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"]);
    let mut guest = guest(lab, 1, "strict=1").start();
    works(&mut guest, 300);
    guest.qmp().execute("stop", json!({}));
    guest.qmp().execute("cont", json!({}));
    exchange(&mut guest, 300);
    guest.type_in("reboot\n");
    works(&mut guest, 300);
    guest.system_reset();
    works(&mut guest, 300);
    translated(&mut mdevd, 1200);
    guest.quit();
    mdevd.terminate();
    Ok(())
}
