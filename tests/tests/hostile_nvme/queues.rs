//! Queues: what cannot be created, what cannot be used, and what lies over each other.

use std::os::fd::AsFd;

use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::admin::{
    ABORT, ASYNC_EVENT, CREATE_CQ, CREATE_SQ, DELETE_CQ, DELETE_SQ, DOORBELL_BUFFER_CONFIG, SET_FEATURES,
};
use mdev_protocol::nvme::opcode::nvm::{FLUSH, READ};
use mdev_protocol::nvme::register::{AQA, CC, CSTS, csts};
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::{DmaFlags, DmaMap};
use mdev_tests::stage::await_that;

use super::house::PAIRS;
use super::intruder::{ENABLED, ENTRIES, Intruder, NOWHERE, PAGE, creation, transfer};
use super::maps::memfd;
use super::trial::Trial;

const LAST_PAGE: u64 = u64::MAX - 4095;
/// Where submissions and completions are, given a place in memory, or whose they are on top of.
type Place = fn(u64) -> [u64; 2];
type PlaceOver = fn(&Intruder) -> [u64; 2];
/// The pair that is attacked; the first one works.
const QID: u16 = 2;

#[test]
fn queues_that_cannot_be_are_refused() {
    let mut trial = Trial::begin("adaptive");
    trial.case("creations", |intruder, _| {
        let at = intruder.scratch.at.0;
        let completions = [
            ("no identifier", creation(CREATE_CQ, 0, 16, at, 1), Status::INVALID_QUEUE_ID),
            ("one too many", creation(CREATE_CQ, PAIRS + 1, 16, at, 1), Status::INVALID_QUEUE_ID),
            ("the last identifier", creation(CREATE_CQ, u16::MAX, 16, at, 1), Status::INVALID_QUEUE_ID),
            ("one that is there", creation(CREATE_CQ, 1, 16, at, 1), Status::INVALID_QUEUE_ID),
            ("one entry", creation(CREATE_CQ, QID, 1, at, 1), Status::INVALID_QUEUE_SIZE),
            ("too many entries", creation(CREATE_CQ, QID, 4097, at, 1), Status::INVALID_QUEUE_SIZE),
            ("65536 entries", creation(CREATE_CQ, QID, 65536, at, 1), Status::INVALID_QUEUE_SIZE),
            ("in pieces", creation(CREATE_CQ, QID, 16, at, 0), Status::INVALID_FIELD),
            ("not aligned", creation(CREATE_CQ, QID, 16, at + 64, 1), Status::PRP_OFFSET_INVALID),
            (
                "a vector that is not there",
                creation(CREATE_CQ, QID, 16, at, 3 | 17 << 16),
                Status::INVALID_INTERRUPT_VECTOR,
            ),
        ];
        for (what, command, status) in completions {
            assert_eq!(intruder.admin(command).status().plain(), status, "{what}");
        }
        let submissions = [
            ("no identifier", creation(CREATE_SQ, 0, 16, at, 1 | 1 << 16), Status::INVALID_QUEUE_ID),
            ("one that is there", creation(CREATE_SQ, 1, 16, at, 1 | 1 << 16), Status::INVALID_QUEUE_ID),
            ("too many entries", creation(CREATE_SQ, QID, 4097, at, 1 | 1 << 16), Status::INVALID_QUEUE_SIZE),
            ("in pieces", creation(CREATE_SQ, QID, 16, at, 1 << 16), Status::INVALID_FIELD),
            ("not aligned", creation(CREATE_SQ, QID, 16, at + 8, 1 | 1 << 16), Status::PRP_OFFSET_INVALID),
            (
                "no completion queue",
                creation(CREATE_SQ, QID, 16, at, 1 | 5 << 16),
                Status::COMPLETION_QUEUE_INVALID,
            ),
            ("the admin's", creation(CREATE_SQ, QID, 16, at, 1), Status::COMPLETION_QUEUE_INVALID),
        ];
        for (what, command, status) in submissions {
            assert_eq!(intruder.admin(command).status().plain(), status, "{what}");
        }
        intruder.must_work("after refusals");
    });
    trial.case("deletions and others", |intruder, _| {
        for qid in [0, QID, PAIRS + 1, u16::MAX] {
            assert_eq!(intruder.delete(DELETE_SQ, qid).plain(), Status::INVALID_QUEUE_ID, "{qid}");
            assert_eq!(intruder.delete(DELETE_CQ, qid).plain(), Status::INVALID_QUEUE_ID, "{qid}");
        }
        assert_eq!(intruder.delete(DELETE_CQ, 1).plain(), Status::INVALID_QUEUE_DELETION);
        let late = Command { cdw10: 7, cdw11: 1 | 1 << 16, ..Command::new(SET_FEATURES, 0, 0) };
        assert_eq!(intruder.admin(late).status().plain(), Status::COMMAND_SEQUENCE_ERROR);
        let strange = Command { cdw10: 9, ..Command::new(ABORT, 0, 0) };
        assert!(!intruder.admin(strange).status().is_success());
        let nothing = Command { cdw10: 0xffff_0001, ..Command::new(ABORT, 0, 0) };
        assert_eq!(intruder.admin(nothing).dw0, 1, "nothing was aborted");
        let requests: Vec<u16> =
            (0..9).map(|_| intruder.submit_admin(Command::new(ASYNC_EVENT, 0, 0))).collect();
        let status = intruder.await_admin(requests[8]).status().plain();
        assert_eq!(status, Status::ASYNC_EVENT_LIMIT_EXCEEDED);
        intruder.must_work("after refusals");
        assert!(intruder.delete(DELETE_SQ, 1).is_success());
        assert_eq!(intruder.delete(DELETE_SQ, 1).plain(), Status::INVALID_QUEUE_ID, "twice");
        assert!(intruder.delete(DELETE_CQ, 1).is_success());
    });
    trial.end();
}

/// Creates a pair of queues at these addresses and uses it. The first pair works all the while.
fn use_at(intruder: &mut Intruder, submissions: u64, completions: u64, entries: u32) {
    assert!(intruder.create_completion(QID, entries, completions).is_success());
    assert!(intruder.create_submission(QID, entries, submissions, QID).is_success());
    intruder.must_work("before the other pair is used");
    intruder.bell(QID, false, 1);
}

#[test]
fn queues_that_are_nowhere_are_a_fatal_status() {
    let mut trial = Trial::begin("adaptive");
    let read_only = memfd(4 * PAGE);
    let places: [(&str, Place, u32); 8] = [
        ("submissions nowhere", |at| [NOWHERE, at], 16),
        ("completions nowhere", |at| [at, NOWHERE], 16),
        ("submissions at the end of addresses", |at| [LAST_PAGE, at], 64),
        ("submissions that wrap", |at| [LAST_PAGE, at], 4096),
        ("completions that wrap", |at| [at, LAST_PAGE], 4096),
        ("submissions at zero", |at| [0, at], 16),
        ("submissions half out of memory", |_| [super::intruder::QUEUES_AT + (8 << 20) - PAGE, 0], 4096),
        ("completions that may only be read", |at| [at, NOWHERE + PAGE], 16),
    ];
    for (what, place, entries) in places {
        trial.case(what, |intruder, _| {
            let flags = DmaFlags::READ;
            let map = DmaMap { flags, offset: 0, address: NOWHERE + PAGE, size: PAGE };
            intruder.client.dma_map(map, Some(read_only.as_fd())).expect("a page");
            let [submissions, completions] = place(intruder.scratch.at.0);
            let completions = if completions == 0 { intruder.scratch.at.0 } else { completions };
            use_at(intruder, submissions, completions, entries);
            intruder.must_be_fatal(what);
            // Nothing is served any more until the host resets it.
            intruder.submit(0, transfer(READ, [intruder.data.at.0, 0], 1));
            assert!(intruder.is_fatal());
        });
    }
    trial.end();
}

#[test]
fn admin_queues_that_are_nowhere_are_a_fatal_status() {
    let mut trial = Trial::begin("adaptive");
    let places: [(&str, Place); 5] = [
        ("both nowhere", |_| [NOWHERE, NOWHERE]),
        ("submissions nowhere", |at| [NOWHERE, at]),
        ("completions nowhere", |at| [at, NOWHERE]),
        ("at the end of addresses", |_| [LAST_PAGE, LAST_PAGE]),
        ("at zero", |_| [0, 0]),
    ];
    for (what, place) in places {
        for entries in [16, 4096] {
            trial.case(&format!("{what}, {entries} entries"), |intruder, _| {
                let at = intruder.scratch.at.0;
                intruder.enable_with(entries, place(at));
                await_that("it is ready", || intruder.read32(CSTS) & csts::READY != 0);
                intruder.bell(0, false, 1);
                intruder.must_be_fatal(what);
            });
        }
    }
    trial.case("configurations that cannot be", |intruder, _| {
        for (what, configuration) in [
            ("pages of 8 KiB", ENABLED | 1 << 7),
            ("pages of 128 MiB", ENABLED | 15 << 7),
            ("another command set", ENABLED | 1 << 4),
            ("all command sets", ENABLED | 7 << 4),
            ("another arbitration", ENABLED | 1 << 11),
        ] {
            intruder.disable();
            intruder.write32(CC, configuration);
            intruder.must_be_fatal(what);
        }
        for attributes in [0, 15, 15 << 16] {
            intruder.disable();
            intruder.write32(AQA, attributes);
            intruder.write32(CC, ENABLED);
            intruder.must_be_fatal("admin queues of one entry");
        }
    });
    trial.end();
}

#[test]
fn queues_over_each_other_harm_their_host_only() {
    let mut trial = Trial::begin("adaptive");
    let places: [(&str, PlaceOver); 6] = [
        ("submissions on their completions", |it| [it.scratch.at.0, it.scratch.at.0]),
        ("submissions on those of another", |it| [it.rings[0].submissions.at.0, it.scratch.at.0]),
        ("completions on those of another", |it| [it.scratch.at.0, it.rings[0].completions.at.0]),
        ("completions on the submissions of another", |it| [it.scratch.at.0, it.rings[0].submissions.at.0]),
        ("submissions on the admin's", |it| [it.admin.submissions.at.0, it.scratch.at.0]),
        ("completions on the admin's submissions", |it| [it.scratch.at.0, it.admin.submissions.at.0]),
    ];
    for (what, place) in places {
        trial.case(what, |intruder, _| {
            let [submissions, completions] = place(intruder);
            use_at(intruder, submissions, completions, ENTRIES);
            for tail in 0..3 * ENTRIES {
                intruder.bell(QID, false, tail % ENTRIES);
                intruder.bell(QID, true, tail % ENTRIES);
                intruder.bell(1, false, tail % ENTRIES);
                intruder.bell(1, true, tail % ENTRIES);
                intruder.bell(0, false, tail % 16);
            }
            intruder.csts();
        });
    }
    trial.case("the admin queues on each other", |intruder, _| {
        let at = intruder.scratch.at.0;
        intruder.enable_with(16, [at, at]);
        for tail in 0..64 {
            intruder.bell(0, false, tail % 16);
            intruder.bell(0, true, tail % 16);
        }
        intruder.csts();
    });
    trial.case("many submission queues on one completion queue that nobody reads", |intruder, _| {
        for qid in QID..=PAIRS {
            let at = intruder.rings[usize::from(qid) - 1].submissions.at.0;
            assert!(intruder.create_submission(qid, ENTRIES, at, 1).is_success());
        }
        let data = intruder.data.at.0;
        for ring in 1..usize::from(PAIRS) {
            for _ in 0..ENTRIES - 1 {
                intruder.rings[ring].push(&Command { dptr: [data, 0], ..Command::new(FLUSH, 0, 1) });
            }
            intruder.ring(ring);
        }
        // It is full now, and all queues wait for room; their deletion does not.
        std::thread::sleep(std::time::Duration::from_millis(50));
        for qid in QID..=PAIRS {
            assert!(intruder.delete(DELETE_SQ, qid).is_success());
        }
    });
    trial.end();
}

#[test]
fn memory_for_doorbells_that_is_none_is_refused_or_fatal() {
    let mut trial = Trial::begin("adaptive");
    let config = |pages: [u64; 2]| Command { dptr: pages, ..Command::new(DOORBELL_BUFFER_CONFIG, 0, 0) };
    trial.case("pages that are none", |intruder, _| {
        let at = intruder.scratch.at.0;
        for (pages, status) in [
            ([at + 4, at + PAGE], Status::INVALID_FIELD),
            ([at, at + PAGE + 1], Status::INVALID_FIELD),
            ([NOWHERE, at], Status::DATA_TRANSFER_ERROR),
            ([at, LAST_PAGE], Status::DATA_TRANSFER_ERROR),
        ] {
            assert_eq!(intruder.admin(config(pages)).status().plain(), status, "{pages:x?}");
        }
        intruder.must_work("registers are what counts still");
    });
    trial.case("pages on top of queues", |intruder, _| {
        let pages = [intruder.rings[0].submissions.at.0, intruder.rings[0].completions.at.0];
        assert!(intruder.admin(config(pages)).status().is_success());
        for tail in 0..2 * ENTRIES {
            intruder.rings[0].push(&transfer(READ, [pages[0], 0], 1));
            intruder.bell(1, false, tail % ENTRIES);
        }
        intruder.csts();
    });
    trial.case("pages that say what cannot be", |intruder, _| {
        let at = intruder.scratch.at.0;
        let event = intruder.listen();
        assert!(intruder.admin(config([at, at + PAGE])).status().is_success());
        intruder.scratch.range(0, PAGE).expect("room").fill(0xff);
        intruder.bell(1, false, 1);
        assert_eq!(intruder.await_admin(event).dw0 & 0xffff, 1 << 8, "invalid doorbell write value");
        intruder.csts();
    });
    trial.end();
}
