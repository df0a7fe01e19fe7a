//! `mdevd perf blk` from outside.

use std::fs;

use mdevd::report::{Report, Status};
use rustix::process::{Signal, kill_process};

use super::{Other, Run};

fn perf(arguments: &str) -> Run {
    Run::of("blk", arguments)
}

#[test]
fn every_workload_is_measured_and_verified_on_both_rings_and_the_report_says_so() {
    let run = perf(
        "--store mem,size=4M --verify --rw randread,randwrite,read,write,mixed --ring split,packed --iodepth 8 \
         --queues 2 --duration 500ms --json -",
    );
    let (status, out, err) = run.end();
    assert!(status.success(), "{err}{out}");
    let report: Report = serde_json::from_str(&out).expect("nothing but the report");
    for rw in ["randread", "randwrite", "read", "write", "mixed"] {
        for ring in ["split", "packed"] {
            let result = |what: &str| report.result(&format!("mem/{rw}/4k/8/{ring}/{what}")).unwrap();
            for (what, unit) in [("rate", "kIOPS"), ("throughput", "GB/s"), ("device-time", "ns")] {
                let result = result(what);
                assert_eq!((result.status, result.unit.as_str()), (Status::Ok, unit), "{}", result.name);
            }
            assert!(result("rate").max > 0.0);
            for what in ["errors", "lost", "doubled", "torn", "misplaced"] {
                assert_eq!((result(what).status, result(what).max), (Status::Ok, 0.0), "{rw} {ring} {what}");
            }
            assert!(result("latency-max").max >= result("latency-p50").max);
        }
    }
}

#[test]
fn table_has_a_line_for_each_cell_and_the_page_its_figures() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.html");
    let arguments = format!(
        "--store null,size=1M --store mem,size=4M --bs 512,64k --iodepth 1,16 --indirect --event-idx --rw randwrite --duration 300ms --html {}",
        page.display()
    );
    let (status, out, err) = perf(&arguments).end();
    assert!(status.success(), "{err}{out}");
    let rows: Vec<&str> = out.lines().filter(|line| line.ends_with(" ok")).collect();
    assert_eq!(rows.len(), 8, "{out}");
    assert_eq!(rows.iter().filter(|row| row.starts_with("null ")).count(), 4);
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && page.contains("mem/randwrite/64k/16/split/rate"));
}

#[test]
fn device_at_a_socket_is_only_read_unless_it_is_to_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    let bytes: Vec<u8> = (0..1u32 << 20).map(|number| (number % 251) as u8).collect();
    fs::write(&file, &bytes).unwrap();
    let device = Other::of(&["blk", "--store", &format!("file={}", file.display())]);
    let socket = device.socket().display().to_string();
    let (status, out, err) = perf(&format!("--socket-path {socket} --iodepth 4 --duration 300ms")).end();
    assert!(status.success(), "{err}{out}");
    assert!(out.lines().any(|line| line.starts_with("-  randread  4k      4  split")), "{out}");
    assert!(fs::read(&file).unwrap() == bytes, "nothing was written");
    let arguments = format!(
        "--socket-path {socket} --iodepth 1,4 --duration 300ms --rw randwrite,mixed --verify --span 512k"
    );
    let (status, out, err) = perf(&arguments).end();
    assert!(status.success(), "{err}{out}");
    let after = fs::read(&file).unwrap();
    assert!(after[..512 << 10] != bytes[..512 << 10] && after[512 << 10..] == bytes[512 << 10..]);
}

#[test]
fn device_that_is_read_only_or_too_small_is_refused_with_what_to_do() {
    let device = Other::of(&["blk", "--store", "mem,size=8k", "--read-only"]);
    let socket = device.socket().display().to_string();
    for (arguments, hint) in [
        ("--rw write", "read-only: use --rw randread or read"),
        ("--rw read --verify", "without --verify"),
        ("--rw read --bs 64k", "not even a block of 64k"),
        ("--rw read --queues 2", "ask for fewer (--queues)"),
    ] {
        let run = perf(&format!("--socket-path {socket} --iodepth 1 --duration 100ms {arguments}"));
        let (status, out, err) = run.end();
        assert_eq!(status.code(), Some(1), "{arguments}");
        assert!(err.contains(hint) && out.contains("FAILED"), "{arguments}: {err}{out}");
    }
}

#[test]
fn device_that_dies_ends_the_run_with_an_error() {
    let run = perf("--store null,size=1M --duration 60s");
    let device = run.device();
    kill_process(device, Signal::KILL).unwrap();
    let (status, out, err) = run.end();
    assert_eq!(status.code(), Some(1));
    assert!(err.contains("has ended (signal: 9"), "{err}");
    assert!(out.contains("FAILED"), "{out}");
}

#[test]
fn two_devices_are_compared_in_turns() {
    let other = Other::of(&["blk", "--store", "null,size=1M"]);
    let arguments = format!(
        "--store null,size=1M --rw randread --iodepth 16 --duration 600ms --pairs 2 --pause --json - --against {}",
        other.socket().display()
    );
    let (status, out, err) = perf(&arguments).end();
    assert!(status.success(), "{err}{out}");
    let report: Report = serde_json::from_str(&out).expect("nothing but the report");
    let place = "null/randread/4k/16/split";
    let dropped = report.result(&format!("{place}/B/pairs-dropped")).unwrap().median as usize;
    let rate = report.result(&format!("{place}/B/rate")).unwrap();
    assert_eq!((rate.unit.as_str(), rate.samples.len() + dropped), ("kIOPS", 2));
}
