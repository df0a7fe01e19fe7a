//! `mdevd net --connect`: the front-end listens, the device comes, and comes back.

use std::time::{Duration, Instant};

use mdev_tests::lab::{Forward, Lab, Mdevd, QemuGuest, RunningTestpmd, Skip, Testpmd, Trial};

const EXCHANGE: Duration = Duration::from_secs(60);
const FLOW: Duration = Duration::from_secs(30);

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
    vec![
        Trial::new(
            "net_device_that_connects_serves_a_guest_again_after_it_was_killed_or_ended",
            qemu_listens,
        ),
        Trial::new("net_device_that_connects_serves_virtio_user_again_after_it_was_killed", testpmd_listens),
        Trial::new("net_device_that_connects_outlives_its_front_ends_and_ends_while_it_waits", front_ends_go),
    ]
}

fn serve(lab: &Lab) -> Mdevd {
    Mdevd::dialing(lab, "front.sock", 1, &["--link", "loopback"])
}

fn qemu_listens(lab: &Lab) -> Result<(), Skip> {
    let mut first = serve(lab);
    first.expect("nobody to serve", EXCHANGE);
    let mut guest = QemuGuest::with_script(lab, "guest", OBEY)
        .program("guest-frames", env!("CARGO_BIN_EXE_guest-frames"))
        .arguments(&["-chardev", "socket,id=c0,path=front.sock,server=on,wait=off"])
        .arguments(&["-netdev", "vhost-user,id=n0,chardev=c0"])
        .arguments(&["-device", "virtio-net-pci,netdev=n0,romfile="])
        .start();
    guest.booted();
    link(&mut guest, 1);
    exchange(&mut guest, 500);

    drop(first); // killed
    link(&mut guest, 0);
    let second = serve(lab);
    link(&mut guest, 1);
    exchange(&mut guest, 500);

    second.terminate();
    link(&mut guest, 0);
    let third = serve(lab);
    link(&mut guest, 1);
    exchange(&mut guest, 500);

    guest.type_in("off\n");
    guest.powered_off();
    third.terminate();
    Ok(())
}

fn testpmd_listens(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = serve(lab);
    let mut testpmd = Testpmd::front_end("front.sock", Forward::FlowGen).listening().start(lab)?;
    flows(&mut testpmd);
    for _ in 0..3 {
        drop(mdevd); // killed
        stands_still(&mut testpmd);
        mdevd = serve(lab);
        flows(&mut testpmd);
    }
    testpmd.stop();
    mdevd.terminate();
    Ok(())
}

fn front_ends_go(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = serve(lab);
    let mut packets = 0;
    for _ in 0..2 {
        let mut testpmd = Testpmd::front_end("front.sock", Forward::FlowGen).listening().start(lab)?;
        flows(&mut testpmd);
        testpmd.kill();
        // A listening virtio-user does not replace a socket that a killed one has left.
        std::fs::remove_file(lab.work().join("front.sock")).expect("it was there");
        let now = mdevd.counters()[1].packets();
        assert!(now > packets, "counters begin anew with a connection: {packets}, then {now}");
        packets = now;
    }
    mdevd.expect("nobody to serve", EXCHANGE);
    mdevd.terminate();
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

/// Wait until packets come back to this front-end.
fn flows(testpmd: &mut RunningTestpmd) {
    let give_up = Instant::now() + FLOW;
    while testpmd.next_rate().rx == 0 {
        assert!(Instant::now() < give_up, "no packet comes back");
    }
}

/// Wait until none comes any more.
fn stands_still(testpmd: &mut RunningTestpmd) {
    let give_up = Instant::now() + FLOW;
    while testpmd.next_rate().rx != 0 {
        assert!(Instant::now() < give_up, "packets come from nowhere");
    }
}
