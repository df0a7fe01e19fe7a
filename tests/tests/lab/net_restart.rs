//! `mdevd net` is killed, or ended and started again, under a guest whose QEMU reconnects.

use std::time::Duration;

use mdev_tests::lab::{Lab, Mdevd, QemuGuest, Skip, Trial};

const EXCHANGE: Duration = Duration::from_secs(60);

/// The script: obey the console: `frames COUNT`, `carrier 0` or `carrier 1` to wait for the link to be down or up, `off`.
const OBEY: &str = r#"
ip link set eth0 up
while read -r command value; do
    case $command in
        frames) guest-frames eth0 "$value" ;;
        carrier)
            until [ "$(cat /sys/class/net/eth0/carrier)" = "$value" ]; do sleep 0.1; done
            echo "carrier: $value" ;;
        off) exit 0 ;;
    esac
done
"#;

pub fn trials() -> Vec<Trial> {
    vec![Trial::new("net_guest_goes_on_when_the_daemon_is_killed_and_when_it_is_started_again", restarts)]
}

fn restarts(lab: &Lab) -> Result<(), Skip> {
    let serve = || Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"]);
    let first = serve();
    let mut guest = QemuGuest::with_script(lab, "guest", OBEY)
        .program("guest-frames", env!("CARGO_BIN_EXE_guest-frames"))
        .arguments(&["-chardev", "socket,id=c0,path=net.sock,reconnect-ms=300"])
        .arguments(&["-netdev", "vhost-user,id=n0,chardev=c0"])
        .arguments(&["-device", "virtio-net-pci,netdev=n0,romfile="])
        .start();
    guest.booted();
    link(&mut guest, 1);
    exchange(&mut guest, 500);

    drop(first); // killed
    link(&mut guest, 0);
    let second = serve();
    link(&mut guest, 1);
    exchange(&mut guest, 500);

    second.terminate();
    link(&mut guest, 0);
    let third = serve();
    link(&mut guest, 1);
    exchange(&mut guest, 500);

    guest.type_in("off\n");
    guest.powered_off();
    third.terminate();
    Ok(())
}

/// Wait until the guest sees its link down (0) or up (1).
fn link(guest: &mut QemuGuest, carrier: u8) {
    guest.type_in(&format!("carrier {carrier}\n"));
    guest.expect(&format!("carrier: {carrier}"), EXCHANGE);
}

fn exchange(guest: &mut QemuGuest, count: u32) {
    guest.type_in(&format!("frames {count}\n"));
    let said = guest.expect("frames: ", EXCHANGE);
    assert!(said.contains(&format!("frames: {count} sent and back")), "{said}");
}
