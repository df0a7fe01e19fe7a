//! Aborts of commands that queues have in flight.

use mdev_dma::Iova;
use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::{admin, nvm};
use mdev_protocol::nvme::status::Status;

use super::rig::PAGE;
use super::served::{Machine, transfer};

fn abort(qid: u16, cid: u16) -> Command {
    Command { cdw10: u32::from(qid) | u32::from(cid) << 16, ..Command::new(admin::ABORT, 0, 0) }
}

#[test]
fn aborted_command_ends_first_and_its_buffer_is_not_written_any_more() {
    let mut machine = Machine::new();
    let mut admin = machine.enable();
    let mut pair = machine.create(&mut admin, 1);
    let at = machine.data();
    machine.memory.slice(Iova(at), PAGE).unwrap().fill(0x33);
    let reads = [0, 8].map(|block| machine.submit(&mut pair, transfer(nvm::READ, 2, block, at)));
    assert_eq!(machine.ended(&mut pair), []);
    let cid = machine.submit(&mut admin, abort(1, reads[0]));
    assert_eq!(machine.results(&mut admin), [], "not before its command has ended");
    machine.work();
    assert_eq!(machine.ended(&mut pair), [(reads[0], Status::ABORT_REQUESTED)]);
    assert_eq!(machine.results(&mut admin), [(cid, Status::SUCCESS, 0)]);
    assert_eq!(machine.held.pending().len(), 1, "the other is not concerned");
    let mut bytes = [0; 4096];
    machine.memory.slice(Iova(at), PAGE).unwrap().copy_to(&mut bytes);
    assert_eq!(bytes, [0x33; 4096]);
    machine.held.finish_all();
    assert_eq!(machine.ended(&mut pair), [(reads[1], Status::SUCCESS)]);
    // It has ended, as have those that never were.
    for cid in [reads[0], reads[1], 999] {
        let by = machine.submit(&mut admin, abort(1, cid));
        machine.work();
        assert_eq!(machine.results(&mut admin), [(by, Status::SUCCESS, 1)]);
    }
    assert_eq!(machine.run(&mut admin, abort(4, 1)), Status::INVALID_FIELD, "there is no such queue");
}

#[test]
fn more_aborts_than_are_allowed_are_refused_and_those_that_wait_end_in_time() {
    let mut machine = Machine::new();
    let mut admin = machine.enable();
    machine.create(&mut admin, 1);
    // Nobody works on the queue: nothing is decided.
    let waiting: Vec<u16> = (0..5).map(|cid| machine.submit(&mut admin, abort(1, cid))).collect();
    assert_eq!(machine.results(&mut admin), [(waiting[4], Status::ABORT_LIMIT_EXCEEDED, 0)]);
    let until = machine.controller.next_deadline().unwrap();
    std::thread::sleep(until.saturating_duration_since(std::time::Instant::now()));
    while machine.controller.next_deadline().is_some() {
        machine.controller.look(&mut machine.host);
    }
    let expected: Vec<_> = waiting[..4].iter().map(|cid| (*cid, Status::SUCCESS, 1)).collect();
    assert_eq!(machine.results(&mut admin), expected);
    machine.work();
    assert_eq!(machine.results(&mut admin), [], "what the queue says later is not told again");
}

#[test]
fn deletion_decides_the_aborts_of_its_queue() {
    let mut machine = Machine::new();
    let mut admin = machine.enable();
    machine.create(&mut admin, 1);
    let aborting = machine.submit(&mut admin, abort(1, 7));
    let deletion = Command { cdw10: 1, ..Command::new(admin::DELETE_SQ, 0, 0) };
    let deleting = machine.submit(&mut admin, deletion);
    let second = machine.submit(&mut admin, abort(1, 7));
    for engine in machine.host.engines.values_mut() {
        while engine.news().is_some() {}
    }
    machine.work();
    let ended = machine.results(&mut admin);
    let expected =
        [(second, Status::SUCCESS, 1), (aborting, Status::SUCCESS, 1), (deleting, Status::SUCCESS, 0)];
    let sorted = |mut all: Vec<(u16, Status, u32)>| {
        all.sort_by_key(|(cid, ..)| *cid);
        all
    };
    assert_eq!(sorted(ended), sorted(expected.to_vec()));
}
