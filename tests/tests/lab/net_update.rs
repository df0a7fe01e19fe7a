//! Live update of QEMU while a ping and a transfer go on through its guest: by another QEMU, and by another program in the same process.
//!
//! What the device is told meanwhile: on a second connection everything but the start (`cpr-transfer`) or, between the end of one
//! connection and the next, nothing (`cpr-exec`). Either way the memory is the same.

use mdev_tests::lab::{Lab, QemuGuest, Skip, Stream, Trial, rounds};
use serde_json::json;

use super::net_guest::EXCHANGE;
use super::traffic::{House, flows, guest, obeys, pings, spread};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("net_update_by_another_qemu_under_traffic_loses_nothing", |lab| updates(lab, transfer))
            .in_rounds(),
        Trial::new("net_update_in_the_same_process_under_traffic_loses_nothing", |lab| updates(lab, execute))
            .in_rounds(),
        Trial::new("net_update_that_fails_or_is_cancelled_leaves_the_guest_running", failures),
    ]
}

/// Updates one after another, each of the QEMU before it. The first maps the guest's memory, and nobody after it.
fn updates(
    lab: &Lab,
    update: impl Fn(&Lab, QemuGuest, &Stream, &str) -> Result<QemuGuest, Skip>,
) -> Result<(), Skip> {
    let mut house = House::new(lab, 1, &[])?;
    let mut guest = guest(lab, "qemu0", 1).movable().start();
    let stream = house.begin(&mut guest);
    let (before, memory) = house.clean();
    let mut gaps = Vec::new();
    for round in 1..=rounds() {
        stream.gap();
        guest = update(lab, guest, &stream, &format!("qemu{round}"))?;
        let gap = stream.gap();
        gaps.push(gap);
        let (queues, now) = house.clean();
        assert_eq!(now, memory, "windows of memory that stayed");
        let starts =
            queues.iter().zip(&before).map(|(queue, before)| queue.get("starts") - before.get("starts"));
        assert!(starts.eq([u64::from(round); 2]), "one start for each update: {queues:?}");
        println!("round {round}: {gap:.1?} without traffic");
    }
    obeys(&mut guest, "still here");
    let (sent, lost) = pings(&mut guest);
    assert!(sent > 0 && lost <= 1, "{lost} of {sent} pings were not answered");
    let (after, _) = house.clean();
    let packets = |queue: usize| after[queue].packets() - before[queue].packets();
    let (received, transmitted) = (packets(0), packets(1));
    println!(
        "{} updates: {} without traffic; {} MiB verified, {received} frames received, {transmitted} transmitted; {lost} of {sent} \
         pings unanswered; drops 0, errors 0, parks 0, windows mapped anew 0",
        gaps.len(),
        spread(gaps),
        stream.bytes() >> 20
    );
    drop(stream);
    guest.quit();
    house.mdevd.terminate();
    Ok(())
}

/// By another QEMU. The old one keeps its connection until it ends.
fn transfer(lab: &Lab, mut old: QemuGuest, stream: &Stream, name: &str) -> Result<QemuGuest, Skip> {
    let successor = guest(lab, name, 1).movable().successor();
    stream.gap(); // QEMU's start takes the guest's processor away
    old.hand_over(successor.name())?;
    let new = successor.runs();
    flows(stream);
    old.quit();
    flows(stream);
    Ok(new)
}

/// By another program in the same process: the connection ends before there is the next.
fn execute(lab: &Lab, mut qemu: QemuGuest, stream: &Stream, _: &str) -> Result<QemuGuest, Skip> {
    qemu.execute_successor(guest(lab, "qemu0", 1).movable())?;
    flows(stream);
    Ok(qemu)
}

/// Every way in which an update can come to nothing, one after another on one guest.
fn failures(lab: &Lab) -> Result<(), Skip> {
    let mut house = House::new(lab, 1, &[])?;
    // A device more than its successors have, so that they cannot load its state.
    let mut old = guest(lab, "old", 1).movable().arguments(&["-device", "virtio-rng-pci,id=more"]).start();
    let stream = house.begin(&mut old);
    let (_, memory) = house.clean();
    let goes_on = |house: &mut House, old: &mut QemuGuest, what: &str| {
        old.wait_for("query-status", "running", EXCHANGE);
        flows(&stream);
        obeys(old, what);
        assert_eq!(house.clean().1, memory, "{what}");
        println!("{what}: {:.1?} without traffic", stream.gap());
    };

    let refused = old.hand_over("nobody");
    if refused.is_ok() {
        old.update_is("failed");
    }
    goes_on(&mut house, &mut old, "nobody listened");

    let idle = guest(lab, "idle", 1).movable().idle_successor();
    old.hand_over(idle.name())?;
    house.mdevd.expect("a front-end is there", EXCHANGE);
    goes_on(&mut house, &mut old, "the successor was connected");
    old.qmp().execute("migrate_cancel", json!({}));
    old.update_is("cancelled");
    idle.kill();
    house.mdevd.expect("the front-end closed", EXCHANGE);
    goes_on(&mut house, &mut old, "cancelled");

    let killed = guest(lab, "killed", 1).movable().idle_successor();
    old.hand_over(killed.name())?;
    house.mdevd.expect("a front-end is there", EXCHANGE);
    killed.kill();
    old.update_is("failed");
    house.mdevd.expect("the front-end closed", EXCHANGE);
    goes_on(&mut house, &mut old, "the successor was killed");

    let other = guest(lab, "other", 1).movable().successor();
    old.hand_over(other.name())?;
    house.mdevd.expect("a front-end is there", EXCHANGE);
    assert!(!other.gives_up().status.success(), "it has loaded the state of a device that it does not have");
    old.wait_for("query-status", "postmigrate", EXCHANGE);
    old.qmp().execute("cont", json!({}));
    goes_on(&mut house, &mut old, "the successor did not have all devices");

    old.execute_program("no-such-program", guest(lab, "old", 1).movable())?;
    old.update_is("failed");
    goes_on(&mut house, &mut old, "the program was not there");

    house.end(stream, old);
    Ok(())
}
