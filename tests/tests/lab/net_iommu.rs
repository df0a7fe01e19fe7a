//! A Linux guest whose NIC is behind QEMU's Intel IOMMU: every address of the device is asked for.

use mdev_tests::lab::{Guest, Lab, Mdevd, QemuGuest, Skip, Trial};
use serde_json::json;

use super::net_guest::{OBEY, PACKED, exchange, features, works};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("net_iommu_strict_guest_gets_its_frames_back", |lab| frames_come_back(lab, "strict=1")),
        Trial::new("net_iommu_lazy_guest_gets_its_frames_back", |lab| frames_come_back(lab, "strict=0")),
        Trial::new("net_iommu_strict_guest_with_packed_rings_gets_its_frames_back", |lab| {
            rings(lab, "strict=1", ",packed=on", 256)
        }),
        Trial::new("net_iommu_lazy_guest_with_packed_rings_gets_its_frames_back", |lab| {
            rings(lab, "strict=0", ",packed=on", 256)
        }),
        Trial::new("net_iommu_strict_guest_with_large_rings_gets_its_frames_back", |lab| {
            rings(lab, "strict=1", LARGE, 1024)
        }),
        Trial::new("net_iommu_lazy_guest_with_large_packed_rings_gets_its_frames_back", |lab| {
            rings(lab, "strict=0", &format!("{LARGE},packed=on"), 1024)
        }),
        Trial::new("net_iommu_guest_with_two_queue_pairs_gets_its_frames_back", two_pairs),
        Trial::new("net_iommu_guest_works_again_after_pause_reboot_and_reset", reboots),
    ]
}

/// The largest rings that QEMU has.
const LARGE: &str = ",rx_queue_size=1024,tx_queue_size=1024";

/// A guest with a NIC behind an IOMMU that obeys the console.
fn guest<'a>(lab: &'a Lab, queue_pairs: u16, mode: &str) -> Guest<'a> {
    guest_with(lab, queue_pairs, mode, "")
}

/// The same with more options for the NIC.
fn guest_with<'a>(lab: &'a Lab, queue_pairs: u16, mode: &str, options: &str) -> Guest<'a> {
    QemuGuest::with_script(lab, "guest", OBEY)
        .program("guest-frames", env!("CARGO_BIN_EXE_guest-frames"))
        .behind_iommu()
        .kernel(&format!("iommu.{mode}"))
        .vhost_user_net_with("net.sock", queue_pairs, options)
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

/// Rings of another layout or size, also after a pause and a reset.
fn rings(lab: &Lab, mode: &str, options: &str, size: u32) -> Result<(), Skip> {
    let mut mdevd = Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"]);
    let mut guest = guest_with(lab, 1, mode, options).start();
    works(&mut guest, 1000);
    if options.contains("packed") {
        let features = features(&mut guest);
        assert_ne!(features & PACKED, 0, "{features:#x}");
    }
    guest.qmp().execute("stop", json!({}));
    guest.qmp().execute("cont", json!({}));
    // Around the ring.
    exchange(&mut guest, 2 * size);
    guest.system_reset();
    works(&mut guest, 500);
    translated(&mut mdevd, u64::from(1500 + 2 * size));
    guest.quit();
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
