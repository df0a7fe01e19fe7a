//! Memory files that shrink, or get holes, under queues and data, with commands in flight.

use std::time::{Duration, Instant};

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::nvm::{READ, WRITE};
use mdev_protocol::nvme::status::Status;
use mdev_tests::stage::await_that;
use rustix::fs::{FallocateFlags, fallocate, ftruncate};

use super::house::{HELD, IN_FILE, IN_MEMORY};
use super::intruder::{ENTRIES, Intruder, PAGE, transfer};
use super::trial::Trial;

/// The files of an intruder's memory.
const QUEUES: usize = 0;
const DATA: usize = 1;

fn shrink(intruder: &Intruder, region: usize, len: u64) {
    let file = &intruder.memory.regions()[region].extent.file;
    ftruncate(file.as_fd(), len).expect("nothing forbids it");
}

fn punch(intruder: &Intruder, region: usize) {
    let file = &intruder.memory.regions()[region].extent.file;
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file.as_fd(), hole, 0, 8 << 20).expect("nothing forbids it");
}

/// Commands on a namespace, as many as the queue takes.
fn load(intruder: &mut Intruder, nsid: u32) {
    let at = intruder.data.at.0;
    for number in 0..u64::from(ENTRIES) - 1 {
        let opcode = if number % 2 == 0 { READ } else { WRITE };
        let dptr = [at + number * 8 * PAGE, at + number * 8 * PAGE + PAGE];
        let command = Command { nsid, cdw10: number as u32 * 16, ..transfer(opcode, dptr, 16) };
        intruder.rings[0].push(&super::intruder::with_cid(command, number as u16));
    }
    intruder.ring(0);
}

#[test]
fn data_that_is_lost_fails_its_commands_alone() {
    let mut trial = Trial::begin("adaptive");
    for nsid in [IN_MEMORY, IN_FILE] {
        for len in [0, PAGE] {
            trial.case(&format!("data cut to {len} bytes, namespace {nsid}"), |intruder, _| {
                for _ in 0..8 {
                    load(intruder, nsid);
                    intruder.await_io(0, ENTRIES as usize - 1);
                }
                load(intruder, nsid);
                shrink(intruder, DATA, len);
                // Those that were on their way before may have ended well.
                for completion in intruder.await_io(0, ENTRIES as usize - 1) {
                    let status = completion.status().plain();
                    assert!([Status::SUCCESS, Status::DATA_TRANSFER_ERROR].contains(&status), "{status:?}");
                }
                load(intruder, nsid);
                for completion in intruder.await_io(0, ENTRIES as usize - 1) {
                    assert_eq!(completion.status().plain(), Status::DATA_TRANSFER_ERROR);
                }
                assert!(!intruder.is_fatal(), "its queues are where they were");
                intruder.renew_memory();
            });
        }
    }
    trial.end();
}

#[test]
fn queues_that_are_lost_are_a_fatal_status() {
    let mut trial = Trial::begin("adaptive");
    for mapped_way in ["load", "idle"] {
        for nsid in [IN_MEMORY, IN_FILE] {
            trial.case(&format!("queues lost, {mapped_way}, namespace {nsid}"), |intruder, _| {
                if mapped_way == "load" {
                    load(intruder, nsid);
                }
                shrink(intruder, QUEUES, 0);
                intruder.bell(1, false, 1);
                await_that("it looks at its queue", || {
                    for tail in [2, 5, 7] {
                        intruder.bell(1, false, tail);
                    }
                    intruder.is_fatal()
                });
                intruder.renew_memory();
            });
        }
    }
    trial.case("the admin queues lost", |intruder, _| {
        shrink(intruder, QUEUES, 0);
        intruder.bell(0, false, 9);
        intruder.must_be_fatal("the admin queues lost");
        intruder.renew_memory();
    });
    trial.end();
}

#[test]
fn lost_memory_under_commands_in_flight_concerns_their_host_only() {
    for mode in ["adaptive", "busy"] {
        let mut trial = Trial::holding(mode);
        for (what, region) in [("data", DATA), ("queues", QUEUES)] {
            trial.case(&format!("{what} lost in flight, {mode}"), |intruder, house| {
                load(intruder, HELD);
                house.await_held(u64::from(ENTRIES) - 1);
                shrink(intruder, region, 0);
                assert_eq!(house.order("finish"), u64::from(ENTRIES) - 1);
                if region == DATA {
                    for completion in intruder.await_io(0, ENTRIES as usize - 1) {
                        assert_eq!(completion.status().plain(), Status::DATA_TRANSFER_ERROR);
                    }
                } else {
                    intruder.must_be_fatal("completions cannot be posted");
                }
                intruder.renew_memory();
            });
        }
        trial.case(&format!("holes in flight, {mode}"), |intruder, house| {
            load(intruder, HELD);
            house.await_held(u64::from(ENTRIES) - 1);
            punch(intruder, DATA);
            assert_eq!(house.order("finish"), u64::from(ENTRIES) - 1);
            for completion in intruder.await_io(0, ENTRIES as usize - 1) {
                assert!(completion.status().is_success());
            }
            load(intruder, HELD);
            house.await_held(u64::from(ENTRIES) - 1);
            punch(intruder, QUEUES);
            assert_eq!(house.order("finish"), u64::from(ENTRIES) - 1);
        });
        trial.case(&format!("an error of the store, {mode}"), |intruder, house| {
            load(intruder, HELD);
            house.await_held(u64::from(ENTRIES) - 1);
            assert_eq!(house.order("fail"), u64::from(ENTRIES) - 1);
            for completion in intruder.await_io(0, ENTRIES as usize - 1) {
                let status = completion.status().plain();
                assert!(
                    [Status::UNRECOVERED_READ_ERROR, Status::WRITE_FAULT].contains(&status),
                    "{status:?}"
                );
            }
        });
        trial.end();
    }
}

#[test]
fn holes_in_live_queues_and_data_are_bytes_of_zero() {
    let mut trial = Trial::begin("adaptive");
    for nsid in [IN_MEMORY, IN_FILE] {
        trial.case(&format!("holes in data, namespace {nsid}"), |intruder, _| {
            for _ in 0..50 {
                load(intruder, nsid);
                punch(intruder, DATA);
                for completion in intruder.await_io(0, ENTRIES as usize - 1) {
                    assert!(completion.status().is_success(), "{:?}", completion.status());
                }
            }
        });
        trial.case(&format!("holes in queues, namespace {nsid}"), |intruder, _| {
            for _ in 0..20 {
                load(intruder, nsid);
                punch(intruder, QUEUES);
                let until = Instant::now() + Duration::from_millis(5);
                while Instant::now() < until {
                    for value in 0..ENTRIES {
                        intruder.bell(1, false, value);
                        intruder.bell(1, true, value);
                    }
                    intruder.csts();
                }
            }
        });
    }
    trial.end();
}

#[test]
fn files_that_shrink_and_grow_all_the_time_harm_their_host_only() {
    let mut trial = Trial::begin("adaptive");
    for region in [QUEUES, DATA] {
        trial.case(&format!("region {region} shrinks and grows"), |intruder, _| {
            for round in 0..200 {
                load(intruder, if round % 2 == 0 { IN_FILE } else { IN_MEMORY });
                shrink(intruder, region, 0);
                shrink(intruder, region, 8 << 20);
                intruder.bell(1, true, round % ENTRIES);
            }
            intruder.csts();
            intruder.renew_memory();
        });
    }
    trial.end();
}
