//! Front-ends come, go, die, and come in twos; the device is there for whoever is next.

use std::time::Duration;

use mdev_tests::lab::{Forward, Lab, Mdevd, Skip, Testpmd, Trial};

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("net_testpmd_that_is_killed_under_traffic_makes_room_for_the_next", killed_under_traffic),
        Trial::new("net_second_front_end_waits_for_the_first_and_then_runs", second_waits),
        Trial::new("net_socket_left_by_a_killed_daemon_is_replaced_and_a_live_one_is_not", stale_socket),
    ]
}

fn killed_under_traffic(lab: &Lab) -> Result<(), Skip> {
    let mut mdevd = Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"]);
    for _ in 0..3 {
        let mut testpmd = Testpmd::front_end("net.sock", Forward::FlowGen).start(lab)?;
        testpmd.flows();
        testpmd.kill();
    }
    let mut last = Testpmd::front_end("net.sock", Forward::FlowGen).start(lab)?;
    last.flows();
    let totals = last.stop();
    assert!(totals.rx > 0, "{totals:?}");
    assert!(mdevd.alive());
    mdevd.terminate();
    Ok(())
}

fn second_waits(lab: &Lab) -> Result<(), Skip> {
    let mdevd = Mdevd::net(lab, "net.sock", 1, &["--link", "loopback"]);
    let mut first = Testpmd::front_end("net.sock", Forward::FlowGen).name("first").start(lab)?;
    first.flows();
    let mut second = Testpmd::front_end("net.sock", Forward::FlowGen).name("second").start(lab)?;
    let rate = second.next_rate();
    assert_eq!(rate.rx, 0, "the rings of one device ran on two connections");
    first.flows();
    first.stop();
    second.flows();
    second.stop();
    mdevd.terminate();
    Ok(())
}

fn stale_socket(lab: &Lab) -> Result<(), Skip> {
    let first = Mdevd::net(lab, "net.sock", 1, &["--link", "null"]);
    drop(first); // killed: its socket file stays
    assert!(lab.work().join("net.sock").exists());
    let mdevd = Mdevd::net(lab, "net.sock", 1, &["--link", "null"]);
    let mut testpmd = Testpmd::front_end("net.sock", Forward::TxOnly).start(lab)?;
    assert!(testpmd.next_rate().tx > 0);
    let mut refused = Mdevd::run(lab, &["net", "--socket-path", "net.sock", "--link", "null"]);
    let ended = refused.ended(Duration::from_secs(10));
    assert!(!ended.status.success() && ended.output.contains("net.sock"), "{ended:?}");
    assert!(testpmd.next_rate().tx > 0, "the live daemon was disturbed");
    testpmd.stop();
    mdevd.terminate();
    Ok(())
}
