use clap::CommandFactory;

use super::values::{parse_cpus, parse_duration, parse_mode};
use super::*;
use std::time::Duration;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(arguments(line.split(' ').map(OsString::from)))
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn an_endpoint_is_needed_and_only_one() {
    assert!(parse("mdevd net").is_err());
    assert!(parse("mdevd net --socket-path a --fd 3").is_err());
    assert!(parse("mdevd net --socket-path a --connect b").is_err());
    assert!(parse("mdevd net --connect a --fd 3").is_err());
    assert!(parse("mdevd net --connect a --socket-mode 0600").is_err());
    assert!(parse("mdevd net --connect a").is_ok());
    assert!(parse("mdevd net --fd 3 --socket-mode 0600").is_err());
    assert!(parse("mdevd net --fd -1").is_err());
    assert!(parse("mdevd net --fd 3").is_ok());
    assert!(parse("mdevd net --print-capabilities").is_ok());
    let full = "mdevd net --socket-path a --socket-mode 0660 --link pktgen,size=64 --queue-pairs 16 \
                --mac 52:54:00:12:34:56 --mtu 9000 --mode event --cpus 0,2-3 --stats 1s";
    assert!(parse(&full.split_whitespace().collect::<Vec<_>>().join(" ")).is_ok());
}

#[test]
fn out_of_range_values_are_usage_errors() {
    for option in
        ["--queue-pairs 0", "--queue-pairs 17", "--mtu 67", "--mode lazy", "--link nowhere", "--stats 0s"]
    {
        let error = parse(&format!("mdevd net --fd 3 {option}")).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{option}");
    }
}

#[test]
fn the_program_is_its_subcommand_under_another_name() {
    assert!(parse("/usr/libexec/mdevd-net --print-capabilities").is_ok());
    assert!(parse("mdevd --print-capabilities").is_err());
}

#[test]
fn times_have_units() {
    assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
    assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
    assert_eq!(parse_duration("2"), Ok(Duration::from_secs(2)));
    assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
    for wrong in ["", "s", "1h", "-1s", "0", "0.1ms", "1e9s", "inf", "NaNs", "1 s", "µ"] {
        assert!(parse_duration(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn processors_are_numbers_and_ranges() {
    assert_eq!(parse_cpus("0,2-3"), Ok(vec![0, 2, 3]));
    assert_eq!(parse_cpus("7"), Ok(vec![7]));
    for wrong in ["", ",", "a", "3-2", "1-", "-1", "0,0", "0-2,1", "0-99999999999"] {
        assert!(parse_cpus(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn permissions_are_octal() {
    assert_eq!(parse_mode("0660"), Ok(0o660));
    assert_eq!(parse_mode("777"), Ok(0o777));
    for wrong in ["", "888", "1777", "rw", "-1"] {
        assert!(parse_mode(wrong).is_err(), "{wrong}");
    }
}
