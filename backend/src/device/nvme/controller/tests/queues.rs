use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::admin;
use mdev_protocol::nvme::register::{AQA, CC};
use mdev_protocol::nvme::status::Status;

use super::super::COMMANDS_AT_ONCE;
use super::rig::*;

fn delete_sq(qid: u16) -> Command {
    Command { cdw10: qid.into(), ..Command::new(admin::DELETE_SQ, 0, 0) }
}

fn delete_cq(qid: u16) -> Command {
    Command { cdw10: qid.into(), ..Command::new(admin::DELETE_CQ, 0, 0) }
}

#[test]
fn completion_queues_that_cannot_be_are_refused_with_their_status() {
    let mut rig = Rig::enabled();
    let at = rig.data.at.0;
    let good = create_cq(1, 64, at);
    for (command, status) in [
        (create_cq(0, 64, at), Status::INVALID_QUEUE_ID),
        (create_cq(PAIRS + 1, 64, at), Status::INVALID_QUEUE_ID),
        (create_cq(1, 1, at), Status::INVALID_QUEUE_SIZE),
        (create_cq(1, 4097, at), Status::INVALID_QUEUE_SIZE),
        (create_cq(1, 65536, at), Status::INVALID_QUEUE_SIZE),
        (Command { cdw11: 0, ..good }, Status::INVALID_FIELD),
        (create_cq(1, 64, at + 8), Status::PRP_OFFSET_INVALID),
        (Command { cdw11: 3 | u32::from(PAIRS + 1) << 16, ..good }, Status::INVALID_INTERRUPT_VECTOR),
    ] {
        assert_eq!(rig.run(command).0, status, "{command:?}");
    }
    rig.done(create_cq(1, 4096, at));
    assert_eq!(rig.run(good).0, Status::INVALID_QUEUE_ID, "it is there already");
    rig.done(Command { cdw11: 3 | u32::from(PAIRS) << 16, ..create_cq(2, 2, at) });
}

#[test]
fn submission_queues_that_cannot_be_are_refused_with_their_status() {
    let mut rig = Rig::enabled();
    let at = rig.data.at.0;
    rig.done(create_cq(1, 64, at));
    for (command, status) in [
        (create_sq(0, 64, at, 1), Status::INVALID_QUEUE_ID),
        (create_sq(PAIRS + 1, 64, at, 1), Status::INVALID_QUEUE_ID),
        (create_sq(1, 1, at, 1), Status::INVALID_QUEUE_SIZE),
        (create_sq(1, 4097, at, 1), Status::INVALID_QUEUE_SIZE),
        (create_sq(1, 64, at, 0), Status::COMPLETION_QUEUE_INVALID),
        (create_sq(1, 64, at, 2), Status::COMPLETION_QUEUE_INVALID),
        (create_sq(1, 64, at + 512, 1), Status::PRP_OFFSET_INVALID),
        (Command { cdw11: 1 << 16, ..create_sq(1, 64, at, 1) }, Status::INVALID_FIELD),
    ] {
        assert_eq!(rig.run(command).0, status, "{command:?}");
    }
    assert!(rig.host.started.is_empty());
    rig.done(create_sq(2, 4096, at + PAGE, 1));
    rig.done(create_sq(1, 2, at + PAGE, 1));
    assert_eq!(rig.run(create_sq(1, 64, at, 1)).0, Status::INVALID_QUEUE_ID);
    let started: Vec<_> =
        rig.host.started.iter().map(|(qid, entries, base)| (*qid, *entries, base.0)).collect();
    assert_eq!(started, [(2, 4096, at + PAGE), (1, 2, at + PAGE)]);
}

#[test]
fn queues_need_entries_of_the_right_size() {
    let mut rig = Rig::enabled();
    let at = rig.data.at.0;
    rig.write(CC, 0x0045_0001);
    rig.done(create_cq(1, 64, at));
    assert_eq!(rig.run(create_sq(1, 64, at, 1)).0, Status::INVALID_QUEUE_SIZE);
    rig.write(CC, 0x0006_0001);
    assert_eq!(rig.run(create_cq(2, 64, at)).0, Status::INVALID_QUEUE_SIZE);
    rig.done(create_sq(1, 64, at, 1));
}

#[test]
fn deletion_of_a_submission_queue_ends_when_its_engine_has() {
    let mut rig = Rig::enabled();
    rig.create_pair(1);
    let cid = rig.submit(delete_sq(1));
    assert!(rig.ended().is_empty());
    assert_eq!(rig.host.stopping, [1]);
    rig.ring(1, false, 1);
    assert!(rig.host.kicked.is_empty(), "nobody looks at a queue that ends");
    assert_eq!(rig.run(delete_sq(1)).0, Status::INVALID_QUEUE_ID, "it is being deleted");
    assert_eq!(rig.run(delete_cq(1)).0, Status::INVALID_QUEUE_DELETION);
    assert_eq!(rig.run(create_sq(1, 64, rig.data.at.0, 1)).0, Status::INVALID_QUEUE_ID);
    rig.finish_stops();
    let ended = rig.ended();
    assert_eq!((ended.len(), ended[0].cid, ended[0].status()), (1, cid, Status::SUCCESS));
    rig.done(delete_cq(1));
    assert_eq!(rig.run(delete_cq(1)).0, Status::INVALID_QUEUE_ID);
    assert_eq!(rig.run(delete_sq(0)).0, Status::INVALID_QUEUE_ID);
    assert_eq!(rig.run(delete_cq(0)).0, Status::INVALID_QUEUE_ID);
    rig.create_pair(1);
}

#[test]
fn queues_over_the_admin_queues_hurt_nobody_but_their_host() {
    let mut rig = Rig::enabled();
    let (asq, acq) = (rig.asq.at.0, rig.acq.at.0);
    rig.done(create_cq(1, 64, acq));
    rig.done(create_sq(1, 64, asq, 1));
    rig.submit(Command { dptr: [asq, 0], cdw10: 1, ..Command::new(admin::IDENTIFY, 0, 0) });
    assert_eq!(rig.ended().len(), 1);
    rig.disable();
    rig.enable();
}

#[test]
fn doorbells_reach_their_queue_and_unknown_ones_nobody() {
    let mut rig = Rig::enabled();
    rig.create_pair(2);
    rig.ring(2, false, 7);
    assert_eq!((rig.host.kicked.clone(), rig.doorbells.tail(2)), (vec![2], 7));
    rig.ring(2, true, 3);
    assert_eq!(rig.doorbells.head(2), 3);
    rig.ring(3, false, 7);
    rig.ring(3, true, 7);
    rig.ring(511, true, 7);
    assert_eq!((rig.doorbells.tail(3), rig.doorbells.head(3), rig.host.kicked.len()), (0, 0, 1));
}

#[test]
fn recreated_queue_begins_with_doorbells_at_zero() {
    let mut rig = Rig::enabled();
    rig.create_pair(1);
    rig.ring(1, false, 9);
    rig.ring(1, true, 9);
    rig.submit(delete_sq(1));
    rig.finish_stops();
    rig.ended();
    rig.done(delete_cq(1));
    rig.create_pair(1);
    assert_eq!((rig.doorbells.tail(1), rig.doorbells.head(1)), (0, 0));
}

#[test]
fn doorbell_buffer_takes_over_what_registers_say() {
    let mut rig = Rig::enabled();
    rig.create_pair(1);
    rig.ring(1, false, 5);
    let at = rig.data.at.0;
    let config = |dbs: u64, events: u64| Command {
        dptr: [dbs, events],
        ..Command::new(admin::DOORBELL_BUFFER_CONFIG, 0, 0)
    };
    assert_eq!(rig.run(config(at + 8, at)).0, Status::INVALID_FIELD);
    assert_eq!(rig.run(config(at, at + 8)).0, Status::INVALID_FIELD);
    rig.host.kicked.clear();
    rig.done(config(at + 4 * PAGE, at + 5 * PAGE));
    assert_eq!(rig.host.kicked, [1]);
    let tail: u32 = rig.data.range(4 * PAGE + 8, 4).unwrap().read(0).unwrap();
    let event: u32 = rig.data.range(5 * PAGE + 8, 4).unwrap().read(0).unwrap();
    assert_eq!((tail, event), (5, 5));
}

#[test]
fn completions_wait_for_room_and_none_is_lost() {
    let mut rig = Rig::enabled();
    let wanted = u64::from(ENTRIES) * 3;
    let mut cids = Vec::new();
    let mut seen = Vec::new();
    for _ in 0..wanted {
        // The host takes completions only when it has no room for another command.
        if cids.len() - seen.len() == ENTRIES as usize - 1 {
            seen.extend(rig.ended().into_iter().map(|one| one.cid));
        }
        cids.push(rig.submit(Command { cdw10: 7, ..Command::new(admin::GET_FEATURES, 0, 0) }));
    }
    for _ in 0..4 {
        seen.extend(rig.ended().into_iter().map(|one| one.cid));
    }
    assert_eq!(seen, cids);
}

#[test]
fn host_that_takes_no_completions_is_looked_at_again() {
    let mut rig = Rig::enabled();
    let tail = rig.tail;
    for _ in 0..ENTRIES + 8 {
        rig.submit(Command { cdw10: 7, ..Command::new(admin::GET_FEATURES, 0, 0) });
    }
    assert!(rig.controller.next_deadline().is_some());
    assert_ne!(rig.tail, tail);
    let first = rig.ended().len();
    assert_eq!(first, ENTRIES as usize - 1);
    assert!(!rig.ended().is_empty());
    assert_eq!(rig.read(mdev_protocol::nvme::register::CSTS), 1);
}

#[test]
fn one_call_serves_so_many_commands_and_asks_for_another() {
    let mut rig = Rig::new();
    let (asq, acq) = (rig.memory.allocate(2 * PAGE, PAGE).unwrap(), rig.memory.allocate(PAGE, PAGE).unwrap());
    rig.point(asq.at.0, acq.at.0);
    rig.write(AQA, 127 << 16 | 127);
    rig.write(CC, ENABLED);
    for slot in 0..100u16 {
        let command = Command { cdw10: 7, ..Command::new(admin::GET_FEATURES, slot, 0) };
        asq.range(u64::from(slot) * 64, 64).unwrap().write(0, command).unwrap();
    }
    rig.ring(0, false, 100);
    let ended =
        || (0..128).filter(|slot| acq.range(slot * 16 + 14, 2).unwrap().read::<u16>(0).unwrap() & 1 != 0);
    assert_eq!(ended().count() as u32, COMMANDS_AT_ONCE);
    assert!(rig.controller.next_deadline().is_some_and(|at| at <= std::time::Instant::now()));
    rig.controller.serve_admin(&mut rig.host);
    assert_eq!((ended().count(), rig.controller.next_deadline()), (100, None));
}
