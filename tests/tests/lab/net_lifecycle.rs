//! What a guest and its operator do to a NIC while it is busy: its link goes down, its driver goes and comes back, the device is reset
//! under its driver, the machine is rebooted. Two queue pairs on two workers, and each has to work again every time.

use mdev_tests::lab::{Counters, Lab, QemuGuest, Skip, Stream, Trial, ip};
use serde_json::json;

use super::net_guest::EXCHANGE;
use super::traffic::{House, flows, guest, pings};

pub fn trials() -> Vec<Trial> {
    vec![Trial::new("net_lifecycle_under_traffic_on_two_workers_leaves_no_queue_stopped", lifecycle)]
}

fn lifecycle(lab: &Lab) -> Result<(), Skip> {
    let mut house = House::new(lab, 2, &["--mode", "event"])?;
    let mut guest = guest(lab, "guest", 2).start();
    let mut stream = house.begin(&mut guest);
    both_pairs_work(&mut house, &mut guest, "at first");

    for what in ["the link was down", "it was down again"] {
        link(&mut guest, false);
        link(&mut guest, true);
        flows(&stream);
        both_pairs_work(&mut house, &mut guest, what);
    }

    // The interface on the host goes down and comes back. QEMU gives the guest no word of it.
    ip(lab, "link set vm0 down");
    house.mdevd.expect("the link is down", EXCHANGE);
    carrier(&mut guest, 1);
    ip(lab, "link set vm0 up");
    house.mdevd.expect("the link is up", EXCHANGE);
    flows(&stream);
    both_pairs_work(&mut house, &mut guest, "the interface was down");

    // With `reset` the device is reset while its rings run, and its driver is not asked: as a kernel does that is executed by another.
    for how in ["rebind", "rebind reset"] {
        guest.type_in(&format!("{how}\n"));
        guest.expect("rebind: done", EXCHANGE);
        drop(stream);
        stream = begin_again(&house, &mut guest);
        both_pairs_work(&mut house, &mut guest, how);
    }

    for how in ["reboot", "the reset button"] {
        match how {
            "reboot" => guest.type_in("reboot\n"),
            _ => guest.system_reset(),
        }
        drop(stream);
        stream = house.begin(&mut guest);
        both_pairs_work(&mut house, &mut guest, how);
    }

    let (sent, lost) = pings(&mut guest);
    assert!(sent > 0 && lost <= 1, "{lost} of {sent} pings were not answered");
    drop(stream);
    guest.type_in("off\n");
    guest.powered_off();
    house.mdevd.terminate();
    Ok(())
}

/// Traffic after the guest's interface was gone.
fn begin_again(house: &House, guest: &mut QemuGuest) -> Stream {
    guest.type_in("up\n");
    guest.expect("link: up", EXCHANGE);
    house.call(guest)
}

/// Take the link down or bring it up, as the operator of QEMU does, and wait until the guest has seen it.
fn link(guest: &mut QemuGuest, up: bool) {
    guest.qmp().execute("set_link", json!({ "name": "nic0", "up": up }));
    carrier(guest, u8::from(up));
}

/// Wait until the guest sees its link down (0) or up (1).
fn carrier(guest: &mut QemuGuest, carrier: u8) {
    guest.type_in(&format!("carrier {carrier}\n"));
    guest.expect(&format!("carrier: {carrier}"), EXCHANGE);
}

/// Each processor of the guest sends on a pair of its own, and gets its answers there.
fn both_pairs_work(house: &mut House, guest: &mut QemuGuest, after: &str) {
    let before = house.mdevd.counters();
    guest.type_in("pairs\n");
    guest.expect("pairs: answered", EXCHANGE);
    let now = house.mdevd.counters();
    println!("{after}: {}", summary(&now));
    for (index, (queue, before)) in now.iter().zip(&before).enumerate() {
        assert!(queue.packets() > before.packets(), "{after}: queue {index} stands still: {queue:?}");
        let bad = ["errors", "parks"].map(|title| queue.get(title));
        assert_eq!(bad, [0; 2], "{after}: errors, parks of queue {index}: {queue:?}");
    }
}

fn summary(queues: &[Counters]) -> String {
    let column = |title| queues.iter().map(|queue| queue.get(title)).collect::<Vec<_>>();
    format!("packets {:?}, starts {:?}, drops {:?}", column("packets"), column("starts"), column("drops"))
}
