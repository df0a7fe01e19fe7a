//! The scenarios of `mdevd regress` that need a device of the host's kernel, on a host whose kernel lends such devices to processes.

use std::time::Duration;

use mdev_tests::lab::{Lab, Skip, Trial};
use mdevd::regress::{Body, Transport, scenarios};

use super::vduse::{Host, host, host_without_modules};

/// Rounds of the quickest scenarios: the guest is slow, and those in which the device uses all the time it may have take seconds.
const ROUNDS: u32 = 20;

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::new("vduse_scenarios_hold_over_vhost_vdpa", hold).within(Duration::from_secs(600)),
        Trial::new("vduse_scenarios_are_not_played_where_something_is_missing", refused),
    ]
}

fn hold(lab: &Lab) -> Result<(), Skip> {
    let mut host = Host::up(host_without_modules(lab).vhost_vdpa());
    let played =
        scenarios(Transport::Vduse).into_iter().filter(|scenario| matches!(scenario.body, Body::Play(_)));
    let mut count = 0;
    for scenario in played {
        let name = scenario.name;
        let said = host.runs(&format!(
            "mdevd regress --transport vduse --rounds {ROUNDS} --filter {name} 2> /tmp/regress.log"
        ));
        let line = said.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{said}"));
        assert_eq!(line.split_whitespace().nth(3), Some("ok"), "{said}");
        println!("{}", line.trim());
        count += 1;
    }
    assert!(count > 0);
    // Nothing of all that is left.
    assert_eq!(
        host.runs("ls /dev/vduse; ls /sys/bus/vdpa/devices; ls /tmp | grep regress-; true").trim(),
        "control"
    );
    host.off();
    Ok(())
}

/// The command says what is missing: VDUSE, or the driver that lends its devices to processes.
fn refused(lab: &Lab) -> Result<(), Skip> {
    for (guest, missing) in [(host_without_modules(lab), "/dev/vduse/control"), (host(lab), "vhost_vdpa")] {
        let mut host = Host::up(guest);
        let said = host.fails("mdevd regress --transport vduse 2>&1", 1);
        assert!(said.contains("nothing can be played on vduse here") && said.contains(missing), "{said}");
        host.off();
    }
    Ok(())
}
