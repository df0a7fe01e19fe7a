//! `mdevd net --connect`: the front-end listens, the device comes, and comes back.

use mdev_tests::lab::{Forward, Lab, Mdevd, Skip, Testpmd, Trial};

use super::net_guest::EXCHANGE;
use super::net_restart::outlived;

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
    outlived(lab, || serve(lab), "path=front.sock,server=on,wait=off")
}

fn testpmd_listens(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = serve(lab);
    let mut testpmd = Testpmd::front_end("front.sock", Forward::FlowGen).listening().start(lab)?;
    testpmd.flows();
    for _ in 0..3 {
        drop(mdevd); // killed
        testpmd.stands_still();
        mdevd = serve(lab);
        testpmd.flows();
    }
    testpmd.stop();
    mdevd.terminate();
    Ok(())
}

fn front_ends_go(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = serve(lab);
    mdevd.expect("nobody to serve", EXCHANGE);
    let mut packets = 0;
    for _ in 0..2 {
        let mut testpmd = Testpmd::front_end("front.sock", Forward::FlowGen).listening().start(lab)?;
        testpmd.flows();
        testpmd.kill();
        // A listening virtio-user does not replace a socket that a killed one has left.
        std::fs::remove_file(lab.work().join("front.sock")).expect("it was there");
        mdevd.expect("nobody to serve", EXCHANGE);
        let now = mdevd.counters()[1].packets();
        assert!(now > packets, "counters begin anew with a connection: {packets}, then {now}");
        packets = now;
    }
    mdevd.terminate();
    Ok(())
}
