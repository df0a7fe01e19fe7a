//! `mdevd blk` is killed, or ended and started again, under a guest that writes and verifies. QEMU reconnects, and keeps the log of what is in flight.

use std::time::Duration;

use mdev_tests::lab::{Lab, Mdevd, Skip, Trial, rounds};
use mdev_tests::random::Random;
use serde_json::json;

use super::blk_update::transfer;
use super::disk::{SIZE, begin, goes_on, guest_on, image, off, rest};

/// QEMU's end of the socket.
const RECONNECTING: &str = "path=blk.sock,reconnect-ms=300";

/// Ends of the device in a round.
const ENDS: u32 = 5;

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("blk_daemon_killed_under_io_and_started_again_loses_no_request", |lab| {
            outlived(lab, ",direct=on", "")
        })
        .in_rounds(),
        Trial::new("blk_daemon_killed_under_io_on_packed_rings_and_started_again_loses_no_request", |lab| {
            outlived(lab, "", ",packed=on")
        })
        .in_rounds(),
        Trial::new(
            "blk_daemon_killed_before_and_after_an_update_of_qemu_loses_no_request",
            outlived_and_updated,
        )
        .in_rounds(),
    ]
}

fn outlived(lab: &Lab, store: &str, disk: &str) -> Result<(), Skip> {
    let (_, store) = image(lab, "disk.img", SIZE, store);
    let serve = || Mdevd::blk(lab, "blk.sock", 2, &store, &[]);
    let mut mdevd = serve();
    let mut guest = guest_on(lab, "guest", RECONNECTING, 2, disk).start();
    guest.booted();
    begin(&mut guest, 8);
    let mut random = Random::seeded("blk_restart");
    for end in 1..=rounds() * ENDS {
        // Not to wait for anything: it is to end in the middle of something.
        std::thread::sleep(Duration::from_millis(random.below(300)));
        if end % ENDS == 0 {
            mdevd.terminate();
        } else {
            mdevd.kill();
        }
        mdevd = serve();
        let gap = goes_on(&mut guest);
        println!("end {end}: {gap:.1?} without a request that ended");
    }
    // Between the two the guest does not run, and its rings do not either.
    guest.qmp().execute("stop", json!({}));
    mdevd.kill();
    mdevd = serve();
    guest.qmp().execute("cont", json!({}));
    goes_on(&mut guest);
    rest(&mut guest);
    off(guest, mdevd);
    Ok(())
}

/// The log of requests goes from one QEMU to the next, and each of them finds another device than it began with.
fn outlived_and_updated(lab: &Lab) -> Result<(), Skip> {
    let (_, store) = image(lab, "disk.img", SIZE, ",direct=on");
    let serve = || Mdevd::blk(lab, "blk.sock", 2, &store, &[]);
    let make = |name: &str| guest_on(lab, name, RECONNECTING, 2, ",inflight-migration=on").movable();
    let mut mdevd = serve();
    let mut guest = make("qemu0").start();
    guest.booted();
    begin(&mut guest, 8);
    for round in 1..=rounds() {
        mdevd.kill();
        mdevd = serve();
        goes_on(&mut guest);
        let gap;
        (guest, gap) = transfer(guest, make(&format!("qemu{round}")))?;
        println!("round {round}: {gap:.1?} without a request that ended");
        mdevd.kill();
        mdevd = serve();
        goes_on(&mut guest);
    }
    rest(&mut guest);
    off(guest, mdevd);
    Ok(())
}
