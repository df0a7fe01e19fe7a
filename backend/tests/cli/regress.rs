//! `mdevd regress` as a user types it.

use mdevd::report::{Report, Status};

use crate::process::output;

#[test]
fn every_scenario_on_memory_holds_and_has_its_line() {
    let (status, stdout, stderr) = output("regress");
    assert_eq!(status, 0, "{stderr}{stdout}");
    assert!(stdout.contains(" seed "), "{stdout}");
    let result = |name: &str| {
        let line =
            stdout.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {stdout}"));
        line.split_whitespace().nth(3).unwrap().to_owned()
    };
    for name in
        ["late-pin-race", "other-device-waiters", "unmap-with-pin", "stubborn-device", "pin-record-gap"]
    {
        assert_eq!(result(name), "ok", "{stdout}");
    }
    assert_eq!(result("update-iotlb-inflight"), "skipped");
    assert!(stdout.contains("25 update-iotlb-inflight: needs "), "{stdout}");
}

#[test]
fn every_scenario_over_a_socket_holds() {
    let (status, stdout, stderr) = output("regress --transport vhost-user");
    assert_eq!(status, 0, "{stderr}{stdout}");
    assert!(stdout.contains(" scenarios on vhost-user") && stdout.contains("remreg-barrier"), "{stdout}");
    assert!(!stdout.contains("FAILED"), "{stdout}");
}

#[test]
fn every_scenario_of_a_controller_holds_and_what_is_not_played_is_named() {
    let (status, stdout, stderr) = output("regress --transport vfio-user");
    assert_eq!(status, 0, "{stderr}{stdout}");
    let result = |name: &str| {
        let line =
            stdout.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {stdout}"));
        line.split_whitespace().skip(3).take(1).collect::<String>()
    };
    for name in ["trapped-mmio-no-close", "remreg-barrier"] {
        assert_eq!(result(name), "ok", "{stdout}");
    }
    assert_eq!(result("iotlb-miss-no-update"), "not", "{stdout}");
    assert!(stdout.contains("not on this transport") && !stdout.contains("FAILED"), "{stdout}");
}

#[test]
fn filter_takes_a_part_of_a_name_or_a_number() {
    let (status, stdout, stderr) = output("regress --rounds 5 --seed 7 --filter unmap");
    assert_eq!(status, 0, "{stderr}{stdout}");
    assert!(stdout.contains("unmap-with-pin") && stdout.contains("partial-unmap"), "{stdout}");
    assert!(stdout.contains("seed 7") && !stdout.contains("late-pin-race"), "{stdout}");
    let (status, stdout, _) = output("regress --rounds 5 --filter 2");
    assert_eq!(status, 0);
    assert!(stdout.contains("late-pin-race") && stdout.contains("1 scenario on memory"), "{stdout}");
}

#[test]
fn filter_that_fits_nothing_fails_and_says_where_names_are() {
    for list in ["", " --list"] {
        let (status, stdout, stderr) = output(&format!("regress --filter no-such-scenario{list}"));
        assert_eq!((status, stdout.as_str()), (1, ""));
        assert!(stderr.contains("no-such-scenario") && stderr.contains("--list"), "{stderr}");
    }
}

#[test]
fn list_names_scenarios_of_all_transports_and_plays_none() {
    for (transport, name) in [
        ("memory", "late-pin-race"),
        ("vhost-user", "iotlb-miss-no-update"),
        ("vfio-user", "trapped-mmio-no-close"),
        ("vduse", "update-iotlb-inflight"),
    ] {
        let (status, stdout, stderr) = output(&format!("regress --list --transport {transport}"));
        assert_eq!((status, stderr.as_str()), (0, ""));
        assert!(stdout.contains(name) && !stdout.contains("seed"), "{stdout}");
    }
}

#[test]
fn json_is_a_report_with_a_seed_to_play_it_again() {
    let (status, stdout, stderr) = output("regress --rounds 5 --filter 8 --json -");
    assert_eq!(status, 0, "{stderr}");
    let report: Report = serde_json::from_str(&stdout).expect("nothing but the report");
    assert!(report.command.starts_with("mdevd regress --rounds 5 --filter 8 --json - --seed "));
    let result = report.result("memory/08-stubborn-device").unwrap();
    assert_eq!((result.status, result.unit.as_str()), (Status::Ok, "ms"));
    assert!(result.max > 0.0);
    let (_, stdout, _) = output("regress --filter 25 --json -");
    let report: Report = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report.result("memory/25-update-iotlb-inflight").unwrap().status, Status::Skipped);
}

#[test]
fn wrong_values_are_usage_errors() {
    for arguments in ["--rounds 0", "--seed x", "--transport pigeon"] {
        let (status, stdout, stderr) = output(&format!("regress {arguments}"));
        assert_eq!((status, stdout.as_str()), (2, ""), "{arguments}: {stderr}");
    }
}

#[test]
fn transport_that_this_host_lacks_is_refused_before_anything_is_played() {
    // What is missing depends on the machine; where nothing is, the lab plays the scenarios.
    let Some(what) = mdevd::regress::Transport::Vduse.missing() else { return };
    let (status, stdout, stderr) = output("regress --transport vduse");
    assert_eq!((status, stdout.as_str()), (1, ""), "{stderr}");
    assert!(stderr.contains("nothing can be played on vduse here") && stderr.contains(&what), "{stderr}");
}
