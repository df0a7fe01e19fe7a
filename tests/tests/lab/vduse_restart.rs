//! `mdevd blk --vduse` is killed under a kernel that writes and verifies. The kernel keeps the device and its rings, and a file what is in
//! flight.

use std::time::Duration;

use mdev_tests::lab::{Lab, Skip, Trial, rounds};
use mdev_tests::random::Random;

use super::disk::{SIZE, begin, goes_on, rest};
use super::vduse::{Host, host};

/// Kills in a round.
const KILLS: u32 = 10;

/// What a round may take.
const ROUND: Duration = Duration::from_secs(90);

/// How much longer than its device was away a request may take: the others that waited too come first.
const BEHIND: Duration = Duration::from_secs(5);

pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, store: &'static str, arguments: &'static str| {
        let limit = Duration::from_secs(120) + ROUND * rounds();
        Trial::new(name, move |lab: &Lab| outlived(lab, store, arguments)).within(limit)
    };
    vec![
        trial("vduse_daemon_killed_under_io_and_started_again_loses_no_request", "", ""),
        trial("vduse_daemon_killed_under_direct_io_and_started_again_loses_no_request", ",direct=on", ""),
        trial(
            "vduse_daemon_with_bounce_pages_of_its_own_killed_under_io_loses_no_request",
            "",
            "--own-bounce",
        ),
    ]
}

/// The kernel's driver uses packed rings, because they are offered.
fn outlived(lab: &Lab, store: &str, arguments: &str) -> Result<(), Skip> {
    let mut host = Host::up(host(lab));
    host.runs(&format!("truncate -s {SIZE} /tmp/disk.img"));
    let arguments = format!("{arguments} --queues 2 --store file=/tmp/disk.img{store}");
    host.disk("vd0", &arguments);
    assert_eq!(host.runs("cut -c 35 /sys/bus/vdpa/devices/vd0/virtio*/features").trim(), "1", "packed");
    begin(host.guest(), 8);
    let mut random = Random::seeded("vduse_restart");
    let mut away = Duration::ZERO;
    for kill in 1..=rounds() * KILLS {
        // Not to wait for anything: it is to end in the middle of something.
        std::thread::sleep(Duration::from_millis(random.below(300)));
        let said = host.runs(&format!(
            "read was rest < /proc/uptime; leave vd0 KILL; start vd0 blk --vduse vd0 {arguments}; read is rest < /proc/uptime; \
             grep -c 'a driver is at work' /tmp/vd0.log; echo away $was $is"
        ));
        let was_away = times(&said);
        let gap = goes_on(host.guest());
        println!("kill {kill}: away for {was_away:.1?}, {gap:.1?} without a request that ended");
        away = away.max(was_away);
    }
    let longest = rest(host.guest());
    println!(
        "{} kills: away for {away:.1?} at most, the longest request took {longest:.1?}",
        rounds() * KILLS
    );
    assert!(longest < away + BEHIND, "a request took {longest:.1?}, the device was away for {away:.1?}");
    host.clean("vd0");
    host.runs("leave vd0");
    host.off();
    Ok(())
}

/// The time between the two in "away 12.34 12.56".
fn times(said: &str) -> Duration {
    let line = said.lines().rev().find_map(|line| line.strip_prefix("away ")).expect("two times");
    let times: Vec<f64> = line.split_whitespace().filter_map(|time| time.parse().ok()).collect();
    let [was, is] = times[..] else { panic!("two times: {said}") };
    Duration::from_secs_f64((is - was).max(0.0))
}
