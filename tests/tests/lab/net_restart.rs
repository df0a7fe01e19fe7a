//! `mdevd net` is killed, or ended and started again, under a guest whose QEMU reconnects.

use mdev_tests::lab::{Lab, Mdevd, QemuGuest, Skip, Trial};

use super::net_guest::{EXCHANGE, OBEY, exchange, works};

pub fn trials() -> Vec<Trial> {
    vec![Trial::new("net_guest_goes_on_when_the_daemon_is_killed_and_when_it_is_started_again", |lab| {
        let serve = || Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"]);
        outlived(lab, serve, "path=net.sock,reconnect-ms=300")
    })]
}

/// A guest exchanges frames with three devices, of which the first is killed and the second ended. `socket` are the options of
/// QEMU's end.
pub fn outlived(lab: &Lab, serve: impl Fn() -> Mdevd, socket: &str) -> Result<(), Skip> {
    let first = serve();
    let mut guest = QemuGuest::with_script(lab, "guest", OBEY)
        .program("guest-frames", env!("CARGO_BIN_EXE_guest-frames"))
        .arguments(&["-chardev", &format!("socket,id=c0,{socket}")])
        .arguments(&["-netdev", "vhost-user,id=n0,chardev=c0"])
        .arguments(&["-device", "virtio-net-pci,netdev=n0,romfile="])
        .start();
    works(&mut guest, 500);

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
