use super::*;
use crate::report::QueueLine;

fn slice(packets: u64, lost: u64) -> Slice {
    Slice {
        seconds: 0.5,
        share: 1.0,
        counts: Counts { packets, bytes: 64 * packets, lost, ..Counts::default() },
    }
}

fn line(packets: u64, busy_ns: u64) -> CounterLine {
    let queue = QueueLine { packets, busy_ns, ..QueueLine::default() };
    CounterLine { queues: vec![queue, queue], ..CounterLine::default() }
}

const SIZE: PacketSize = PacketSize::Bytes(64);

#[test]
fn rates_are_by_the_second_and_bits_without_preamble() {
    let cell = CellResult { slices: vec![slice(1_000_000, 0), slice(3_000_000, 0)], ..CellResult::default() };
    let outcome = Outcome::of(Direction::Loop, SIZE, &cell, &[]);
    assert_eq!(outcome.rate.samples, [2.0, 6.0]);
    assert_eq!(outcome.rate.median, 4.0);
    assert_eq!(outcome.throughput.samples, [1.024, 3.072]);
    assert_eq!(outcome.rate.name, "loop/64/rate");
    assert!(outcome.faults.is_empty());
    let names: Vec<&str> = outcome.measurements().map(|result| result.name.as_str()).collect();
    assert_eq!(names.len(), 9);
}

#[test]
fn device_time_is_busy_time_of_all_queues_by_packet() {
    let counters = vec![line(100, 1000), line(200, 3000), line(200, 3000)];
    let cell = CellResult { slices: vec![slice(1, 0)], counters, completed: 200, ..CellResult::default() };
    let outcome = Outcome::of(Direction::To, SIZE, &cell, &[60.0, 62.0]);
    assert_eq!(outcome.device.samples, [40.0], "a slice without packets has no time by packet");
    assert_eq!(outcome.cache_line.median, 61.0);
    assert!(outcome.faults.is_empty(), "{:?}", outcome.faults);
}

#[test]
fn device_without_counters_skips_what_only_it_can_tell() {
    let cell = CellResult { slices: vec![slice(1, 0)], ..CellResult::default() };
    let outcome = Outcome::of(Direction::To, SIZE, &cell, &[]);
    assert_eq!((outcome.device.status, outcome.drops.status), (Status::Skipped, Status::Skipped));
    assert_eq!(outcome.rate.status, Status::Ok);
    let outcome = Outcome::of(Direction::From, SIZE, &cell, &[]);
    assert_eq!(outcome.drops.status, Status::Skipped, "packets without numbers are not missed");
}

#[test]
fn losses_under_load_are_drops_but_fail_the_verification() {
    let cell = CellResult { slices: vec![slice(10, 3)], numbered: true, ..CellResult::default() };
    let outcome = Outcome::of(Direction::From, SIZE, &cell, &[]);
    assert_eq!(outcome.drops.samples, [3.0]);
    assert_eq!(outcome.rate.status, Status::Ok);

    let verified = Some(Counts { packets: 100, lost: 1, corrupt: 2, ..Counts::default() });
    let outcome = Outcome::of(Direction::From, SIZE, &CellResult { verified, ..cell }, &[]);
    assert_eq!(outcome.rate.status, Status::Failed);
    assert_eq!(outcome.faults, ["before the measuring: of 100 packets 1 lost, 2 with wrong bytes"]);
}

#[test]
fn nothing_arrived_is_a_failure() {
    let cell = CellResult { slices: vec![slice(0, 0)], ..CellResult::default() };
    let outcome = Outcome::of(Direction::Loop, SIZE, &cell, &[]);
    assert_eq!(outcome.rate.status, Status::Failed);
    assert_eq!(outcome.faults, ["no packet arrived"]);
}

#[test]
fn packets_counted_twice_or_ring_errors_are_failures() {
    let mut last = line(300, 1);
    let cell = CellResult {
        slices: vec![slice(1, 0)],
        last: Some(last.clone()),
        completed: 299,
        ..CellResult::default()
    };
    assert_eq!(
        Outcome::of(Direction::To, SIZE, &cell, &[]).faults,
        ["the device used 299 packets, but counted 300"]
    );
    last.queues[0].errors = 1;
    let cell = CellResult { last: Some(last), completed: 300, ..cell };
    assert_eq!(Outcome::of(Direction::To, SIZE, &cell, &[]).faults, ["the device counted 1 ring errors"]);
}

#[test]
fn cell_that_was_not_measured_is_failed_in_the_report() {
    let outcome = Outcome::failed(Direction::To, SIZE);
    assert_eq!(outcome.rate.status, Status::Failed);
    assert!(!outcome.faults.is_empty());
}
