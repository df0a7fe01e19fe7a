//! A Linux guest in QEMU with a virtio-net NIC on `mdevd net`.

use std::time::Duration;

use mdev_tests::lab::{Guest, Lab, Mdevd, QemuGuest, Skip, Trial};

/// How long the guest's exchange of frames may take; it does thousands a second.
const EXCHANGE: Duration = Duration::from_secs(60);

/// The script: bring the link up, say so, then obey the console: `frames COUNT`, `reboot`, `off`.
const OBEY: &str = r#"
ip link set eth0 up
until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do sleep 0.1; done
echo "link: up"
while read -r command count; do
    case $command in
        frames) guest-frames eth0 "$count" ;;
        reboot) reboot -f ;;
        off) exit 0 ;;
    esac
done
"#;

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("net_guest_brings_its_link_up_and_gets_its_frames_back", frames_come_back),
        Trial::new("net_guest_with_two_queue_pairs_gets_its_frames_back", two_pairs),
        Trial::new("net_guest_works_again_after_pause_reboot_and_reset", reboots),
        Trial::new("net_guest_killed_makes_room_for_a_new_one_on_the_same_socket", killed),
    ]
}

fn guest<'a>(lab: &'a Lab, name: &str, queue_pairs: u16) -> Guest<'a> {
    QemuGuest::with_script(lab, name, OBEY)
        .program("guest-frames", env!("CARGO_BIN_EXE_guest-frames"))
        .cores(if queue_pairs > 1 { 2 } else { 1 })
        .vhost_user_net("net.sock", queue_pairs)
}

/// Wait until the guest's link is up and let it exchange frames.
fn works(guest: &mut QemuGuest, count: u32) {
    guest.booted();
    guest.expect("link: up", EXCHANGE);
    exchange(guest, count);
}

fn exchange(guest: &mut QemuGuest, count: u32) {
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

fn two_pairs(lab: &Lab) -> Result<(), Skip> {
    let mdevd = Mdevd::net(lab, "net.sock", 2, &["--link", "loopback"]);
    let mut guest = guest(lab, "guest", 2).start();
    works(&mut guest, 1000);
    guest.quit();
    mdevd.terminate();
    Ok(())
}

fn reboots(lab: &Lab) -> Result<(), Skip> {
    let mdevd = Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"]);
    let mut guest = guest(lab, "guest", 1).start();
    works(&mut guest, 500);
    guest.qmp().execute("stop", serde_json::json!({}));
    guest.qmp().execute("cont", serde_json::json!({}));
    exchange(&mut guest, 500);
    guest.type_in("reboot\n");
    works(&mut guest, 500);
    guest.system_reset();
    works(&mut guest, 500);
    guest.quit();
    mdevd.terminate();
    Ok(())
}

fn killed(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"]);
    let mut first = guest(lab, "first", 1).start();
    works(&mut first, 500);
    first.type_in("frames 1000000\n"); // killed in the middle of it
    let before = mdevd.counters()[1].packets();
    while mdevd.counters()[1].packets() < before + 100 {
        std::thread::sleep(Duration::from_millis(20));
    }
    first.kill();
    assert!(mdevd.alive());
    let mut second = guest(lab, "second", 1).start();
    works(&mut second, 500);
    second.quit();
    mdevd.terminate();
    Ok(())
}
