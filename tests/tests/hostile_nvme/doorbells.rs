//! Doorbells.

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::admin::{DELETE_CQ, DELETE_SQ, GET_LOG_PAGE};
use mdev_protocol::nvme::opcode::nvm::{FLUSH, READ};
use mdev_protocol::nvme::register::DOORBELLS;
use mdev_tests::random::Random;
use rustix::fs::{FallocateFlags, fallocate, ftruncate};

use super::intruder::{BAR0, ENTRIES, Intruder, transfer};
use super::trial::Trial;

/// What an event request says in dword 0: an error (type 0), a doorbell of no queue or a value that cannot be, log page 1.
const NO_QUEUE: u32 = 1 << 16;
const NO_VALUE: u32 = 1 << 8 | 1 << 16;

/// Values that no queue of [`ENTRIES`] entries has.
const TOO_LARGE: [u32; 6] = [ENTRIES, ENTRIES + 1, 4096, 0xffff, 0x1_0000, u32::MAX];

/// The host reads of what it was told, so that it is told again.
fn read_errors(intruder: &mut Intruder) {
    let at = intruder.data.at.0;
    let log = Command { dptr: [at, 0], cdw10: 1 | 15 << 16, ..Command::new(GET_LOG_PAGE, 0, u32::MAX) };
    assert!(intruder.admin(log).status().is_success());
}

#[test]
fn values_that_cannot_be_are_told_of_and_ignored() {
    for (mode, mapped) in [("adaptive", false), ("event", false), ("busy", true), ("busy", false)] {
        let mut trial = Trial::begin(mode);
        trial.case(&format!("values beyond the queue, {mode}, mapped: {mapped}"), |intruder, _| {
            for value in TOO_LARGE {
                let event = intruder.listen();
                if mapped {
                    intruder.store_bell(1, false, value);
                } else {
                    intruder.bell(1, false, value);
                }
                assert_eq!(intruder.await_admin(event).dw0, NO_VALUE, "tail {value:#x}");
                read_errors(intruder);
                let tail = intruder.rings[0].tail;
                intruder.bell(1, false, tail);
                intruder.must_work("after a tail that cannot be");
            }
            // A head is looked at when room runs out.
            for value in TOO_LARGE {
                let event = intruder.listen();
                for _ in 0..ENTRIES - 1 {
                    intruder.rings[0].push(&Command::new(FLUSH, 7, 1));
                }
                if mapped {
                    intruder.store_bell(1, true, value);
                } else {
                    intruder.bell(1, true, value);
                }
                intruder.ring(0);
                assert_eq!(intruder.await_admin(event).dw0, NO_VALUE, "head {value:#x}");
                read_errors(intruder);
                intruder.await_io(0, ENTRIES as usize - 1);
            }
            intruder.must_work("after heads that cannot be");
            for value in [16, 17, 0xffff, u32::MAX] {
                let event = intruder.listen();
                intruder.bell(0, false, value);
                let tail = intruder.admin.tail;
                intruder.bell(0, false, tail);
                assert_eq!(intruder.await_admin(event).dw0, NO_VALUE, "the admin's tail {value:#x}");
                read_errors(intruder);
            }
        });
        trial.end();
    }
}

#[test]
fn doorbells_that_go_backwards_repeat_commands_and_nothing_else() {
    for (mode, mapped) in [("adaptive", false), ("busy", true)] {
        let mut trial = Trial::begin(mode);
        trial.case(&format!("backwards, mapped: {mapped}"), |intruder, _| {
            let at = intruder.data.at.0;
            for _ in 0..ENTRIES {
                intruder.rings[0].push(&transfer(READ, [at, 0], 8));
            }
            for step in 0..200 {
                let (tail, head) = (ENTRIES - 1 - step % ENTRIES, step * 31 % ENTRIES);
                if mapped {
                    intruder.store_bell(1, false, tail);
                    intruder.store_bell(1, true, head);
                } else {
                    intruder.bell(1, false, tail);
                    intruder.bell(1, true, head);
                }
            }
            assert!(!intruder.is_fatal());
        });
        trial.end();
    }
}

#[test]
fn doorbells_of_no_queue_are_told_of() {
    let mut trial = Trial::begin("adaptive");
    trial.case("doorbells of no queue", |intruder, _| {
        for qid in [2, 16, 17, 127, 128, 255, 511] {
            for is_head in [false, true] {
                let event = intruder.listen();
                intruder.bell(qid, is_head, 1);
                assert_eq!(intruder.await_admin(event).dw0, NO_QUEUE, "queue {qid}");
                read_errors(intruder);
            }
        }
        intruder.must_work("after doorbells of no queue");
        assert!(intruder.delete(DELETE_SQ, 1).is_success());
        let event = intruder.listen();
        intruder.bell(1, false, 3);
        assert_eq!(intruder.await_admin(event).dw0, NO_QUEUE, "a queue that was deleted");
        read_errors(intruder);
        assert!(intruder.delete(DELETE_CQ, 1).is_success());
        let event = intruder.listen();
        intruder.bell(1, true, 3);
        assert_eq!(intruder.await_admin(event).dw0, NO_QUEUE, "a queue that was deleted");
    });
    trial.case("doorbells while it is disabled", |intruder, _| {
        intruder.disable();
        for qid in 0..512 {
            intruder.bell(qid, false, 1);
            intruder.bell(qid, true, u32::MAX);
        }
        assert_eq!(intruder.csts(), 0);
    });
    trial.end();
}

#[test]
fn doorbells_of_queues_that_are_being_deleted_are_ignored() {
    for mode in ["adaptive", "busy"] {
        let mut trial = Trial::begin(mode);
        trial.case("deleted under load", |intruder, _| {
            let at = intruder.data.at.0;
            for round in 0..50 {
                for _ in 0..ENTRIES / 2 {
                    intruder.rings[0].push(&Command { nsid: 2, ..transfer(READ, [at, 0], 8) });
                }
                intruder.ring(0);
                let command = Command { cdw10: 1, ..Command::new(DELETE_SQ, 0, 0) };
                let deletion = intruder.submit_admin(command);
                for value in 0..20 {
                    intruder.bell(1, false, value * 7 % (ENTRIES + 2));
                    intruder.bell(1, true, value * 5 % (ENTRIES + 2));
                }
                assert!(intruder.await_admin(deletion).status().is_success(), "round {round}");
                assert!(intruder.delete(DELETE_CQ, 1).is_success());
                intruder.enable();
                intruder.create_pairs(1);
            }
        });
        trial.end();
    }
}

#[test]
fn a_page_of_doorbells_full_of_rubbish_harms_its_host_only() {
    let mut trial = Trial::begin("busy");
    let mut random = Random::seeded("rubbish in the page of doorbells");
    trial.case("rubbish in the page", |intruder, _| {
        intruder.create_pairs(16);
        for _ in 0..300_000 {
            let value = if random.one_in(2) { random.below(80) } else { random.number() } as u32;
            let queues = if random.one_in(2) { 20 } else { 512 };
            let (qid, is_head) = (random.below(queues) as u16, random.one_in(2));
            intruder.store_bell(qid, is_head, value);
        }
        intruder.csts();
    });
    trial.case("the file of the page", |intruder, _| {
        let (_, file) = intruder.client.region_info(BAR0).expect("a region");
        let file = file.expect("doorbells that can be mapped");
        assert!(ftruncate(&file, 0).is_err() && ftruncate(&file, 1 << 20).is_err(), "it is sealed");
        for (at, len) in [(0, 8192), (4096, 4096), (4096, 1 << 30)] {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = fallocate(&file, hole, at, len);
            intruder.csts();
        }
    });
    trial.case("rubbish by messages", |intruder, _| {
        for _ in 0..5000 {
            let offset = u64::from(DOORBELLS) + random.below(1024) * 4;
            let value = (random.number() as u32).to_le_bytes();
            intruder.client.region_write_posted(BAR0, offset, &value).expect("the connection stays");
        }
        intruder.csts();
    });
    trial.end();
}
