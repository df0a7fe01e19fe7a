//! A Linux guest in QEMU with a virtio-net NIC on `mdevd net`.

use std::time::{Duration, Instant};

use mdev_tests::lab::{Guest, Lab, Mdevd, QemuGuest, Skip, Trial};
use serde_json::json;

/// How long the guest's exchange of frames may take; it does thousands a second.
pub const EXCHANGE: Duration = Duration::from_secs(60);

/// The script: obey the console. `up` brings the link up and says so, `carrier 0` or `carrier 1` waits for the link to be down or
/// up, `frames COUNT [LOSSES]`, `reboot`, `off`.
pub const OBEY: &str = r#"
while read -r command count; do
    case $command in
        features) echo "features: $(cat /sys/class/net/eth0/device/features) end" ;;
        up)
            until ip link set eth0 up 2>/dev/null; do sleep 0.1; done
            until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
            echo "link: up" ;;
        carrier)
            until [ "$(cat /sys/class/net/eth0/carrier)" = "$count" ]; do sleep 0.1; done
            echo "carrier: $count" ;;
        frames) guest-frames eth0 $count ;;
        reboot) reboot -f ;;
        off) exit 0 ;;
    esac
done
"#;

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("net_guest_brings_its_link_up_and_gets_its_frames_back", frames_come_back),
        Trial::new("net_guest_with_two_queue_pairs_gets_its_frames_back", two_pairs),
        Trial::new("net_guest_with_packed_rings_gets_its_frames_back_over_pause_and_reset", |lab| {
            layout(lab, ",packed=on", PACKED)
        }),
        Trial::new("net_guest_with_packed_rings_in_order_gets_its_frames_back_over_pause_and_reset", |lab| {
            layout(lab, ",packed=on,in_order=on", PACKED | IN_ORDER)
        }),
        Trial::new("net_guest_with_split_rings_in_order_gets_its_frames_back_over_pause_and_reset", |lab| {
            layout(lab, ",in_order=on", IN_ORDER)
        }),
        Trial::new("net_guest_with_nothing_to_send_lets_the_device_sleep", idles),
        Trial::new("net_guest_works_again_after_pause_reboot_and_reset", reboots),
        Trial::new("net_guest_nic_unplugged_and_plugged_again_on_one_connection_works", replugged),
    ]
}

/// A guest with a NIC on `net.sock` that obeys the console.
pub fn guest<'a>(lab: &'a Lab, name: &str, queue_pairs: u16) -> Guest<'a> {
    guest_with(lab, name, queue_pairs, "")
}

/// The same with more options for the NIC.
fn guest_with<'a>(lab: &'a Lab, name: &str, queue_pairs: u16, options: &str) -> Guest<'a> {
    QemuGuest::with_script(lab, name, OBEY)
        .program("guest-frames", env!("CARGO_BIN_EXE_guest-frames"))
        .cores(if queue_pairs > 1 { 2 } else { 1 })
        .vhost_user_net_with("net.sock", queue_pairs, options)
}

/// Wait until the guest's link is up and let it exchange frames.
pub fn works(guest: &mut QemuGuest, count: u32) {
    guest.booted();
    link_up(guest);
    exchange(guest, count);
}

fn link_up(guest: &mut QemuGuest) {
    guest.type_in("up\n");
    guest.expect("link: up", EXCHANGE);
}

/// Let the guest exchange frames, none of which may be lost.
pub fn exchange(guest: &mut QemuGuest, count: u32) {
    guest.type_in(&format!("frames {count}\n"));
    let said = guest.expect("frames: ", EXCHANGE);
    assert!(said.contains(&format!("frames: {count} sent and back")), "{said}");
}

fn frames_come_back(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"]);
    let mut guest = guest(lab, "guest", 1).start();
    works(&mut guest, 2000);
    let counters = mdevd.counters();
    assert!(
        counters.iter().all(|queue| queue.packets() >= 2000 && queue.get("errors") == 0),
        "{counters:#?}"
    );
    guest.type_in("off\n");
    guest.powered_off();
    mdevd.terminate();
    Ok(())
}

/// Feature bits as the guest's driver lists them.
pub const PACKED: u64 = 1 << 34;
const IN_ORDER: u64 = 1 << 35;

/// The guest's driver takes a ring layout, and its frames come back: at once, after a pause, after a reset.
fn layout(lab: &Lab, options: &str, wanted: u64) -> Result<(), Skip> {
    let mut mdevd = Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"]);
    let mut guest = guest_with(lab, "guest", 1, options).start();
    works(&mut guest, 1000);
    let features = features(&mut guest);
    // A driver may not know the feature; without packed rings nothing of this would have been tried.
    assert_eq!(features & wanted & PACKED, wanted & PACKED, "{features:#x}");
    eprintln!("the driver took {:#x} of {wanted:#x}", features & wanted);
    guest.qmp().execute("stop", json!({}));
    guest.qmp().execute("cont", json!({}));
    exchange(&mut guest, 777);
    guest.system_reset();
    works(&mut guest, 500);
    let counters = mdevd.counters();
    assert!(
        counters.iter().all(|queue| queue.packets() >= 2277 && queue.get("errors") == 0),
        "{counters:#?}"
    );
    guest.quit();
    mdevd.terminate();
    Ok(())
}

/// The features between the guest's driver and its NIC: the kernel prints a character for each bit, the lowest first.
pub fn features(guest: &mut QemuGuest) -> u64 {
    guest.type_in("features\n");
    let said = guest.expect(" end", EXCHANGE);
    let (_, bits) = said.rsplit_once("features: ").expect("a list of features");
    let bits = bits.split_whitespace().next().expect("a list of features");
    bits.bytes().take(64).enumerate().fold(0, |set, (bit, digit)| set | u64::from(digit == b'1') << bit)
}

fn two_pairs(lab: &Lab) -> Result<(), Skip> {
    let mdevd = Mdevd::net(lab, "net.sock", 2, &["--link", "loopback", "--mode", "event"]);
    let mut guest = guest(lab, "guest", 2).start();
    works(&mut guest, 1000);
    guest.quit();
    mdevd.terminate();
    Ok(())
}

/// Ten times what an idle device is said to use; a worker that polls on would use all of a processor.
fn idles(lab: &Lab) -> Result<(), Skip> {
    let mdevd = Mdevd::net(lab, "net.sock", 2, &["--link", "loopback"]);
    let mut guest = guest(lab, "guest", 1).start();
    works(&mut guest, 100);
    let (before, time) = (mdevd.processor_time(), Duration::from_secs(2));
    std::thread::sleep(time);
    let used = mdevd.processor_time() - before;
    assert!(used < time / 10, "{used:?} of processor time in {time:?} without a packet");
    exchange(&mut guest, 100);
    guest.quit();
    mdevd.terminate();
    Ok(())
}

fn reboots(lab: &Lab) -> Result<(), Skip> {
    let mdevd = Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"]);
    let mut guest = guest(lab, "guest", 1).start();
    works(&mut guest, 500);
    guest.qmp().execute("stop", json!({}));
    guest.qmp().execute("cont", json!({}));
    exchange(&mut guest, 500);
    guest.type_in("reboot\n");
    works(&mut guest, 500);
    guest.system_reset();
    works(&mut guest, 500);
    guest.quit();
    mdevd.terminate();
    Ok(())
}

/// QEMU keeps the connection over an unplug and begins a new session on it, with the memory it has announced before.
fn replugged(lab: &Lab) -> Result<(), Skip> {
    let mdevd = Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"]);
    let mut guest = guest(lab, "guest", 1).start();
    works(&mut guest, 300);
    guest.qmp().execute("device_del", json!({ "id": "nic0" }));
    guest.qmp().event("DEVICE_DELETED", |event| event["data"]["device"] == "nic0");
    guest.qmp().execute(
        "device_add",
        json!({ "driver": "virtio-net-pci", "netdev": "n0", "bus": "port0", "id": "nic0" }),
    );
    link_up(&mut guest);
    exchange(&mut guest, 300);
    guest.quit();
    mdevd.terminate();
    Ok(())
}

/// Wait until so many more packets have come from the guest.
pub fn passes(mdevd: &mut Mdevd, packets: u64) {
    let start = mdevd.counters()[1].packets();
    let give_up = Instant::now() + EXCHANGE;
    while mdevd.counters()[1].packets() < start + packets {
        assert!(Instant::now() < give_up, "the guest's frames have stopped");
        std::thread::sleep(Duration::from_millis(20));
    }
}
