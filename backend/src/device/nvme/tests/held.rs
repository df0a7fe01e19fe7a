//! Commands that end when somebody says so.

use std::time::Duration;

use mdev_dma::{Iova, IovaRange};
use mdev_pin::Within;
use mdev_protocol::nvme::command::{CDW11_DEALLOCATE, Command, NSID_ALL};
use mdev_protocol::nvme::opcode::nvm;
use mdev_protocol::nvme::status::Status;
use rustix::io::Errno;

use super::rig::{CQ, Options, Rig, SIZE, device, read, transfer, write};
use crate::device::{DropCause, QueueNews};
use crate::store::held::Held;
use crate::store::{MAX_IN_FLIGHT, Operation, Store};

fn deep() -> Options {
    Options { entries: 512, completions: 512, ..Options::default() }
}

#[test]
fn commands_end_in_any_order_with_their_data() {
    let (mut rig, held) = Rig::held(Options::default());
    for lba in 0..8u64 {
        rig.fill(lba * 4096, 512, lba as u8 + 1);
        let at = rig.at(lba * 4096);
        rig.place(0, write(lba, 1, at, 0));
    }
    rig.ring(0);
    assert_eq!((rig.poll(), rig.poll()), (8, 0));
    for lba in [5u64, 0, 7, 2, 1, 3, 6, 4] {
        let id = held.pending().iter().find(|one| one.offset == lba * 512).unwrap().id;
        assert!(held.finish(id));
        assert_eq!(rig.poll(), 1);
        let found = rig.reap();
        assert_eq!((found.len(), found[0].cid, found[0].sq_head), (1, lba as u16, 8));
        assert_eq!(found[0].status(), Status::SUCCESS);
    }
    let bytes = held.bytes();
    assert!((0..8).all(|lba| bytes[lba * 512..][..512].iter().all(|&byte| byte == lba as u8 + 1)));
    assert_eq!((rig.ioas.pins(), rig.counters().bytes), (0, 8 * 512));
    assert_eq!(rig.device.shared().used().written_bytes, 8 * 512);
}

#[test]
fn no_more_are_taken_than_may_be_in_flight() {
    let (mut rig, held) = Rig::held(deep());
    let at = rig.at(0);
    let all = MAX_IN_FLIGHT as u64 + 40;
    (0..all).for_each(|lba| rig.place(0, read(lba, 1, at, 0)));
    rig.ring(0);
    while rig.poll() > 0 {}
    assert_eq!(held.pending().len(), MAX_IN_FLIGHT);
    assert!(!rig.queues[0].engine.arm(), "what waits cannot be taken");
    held.finish_all();
    while rig.poll() > 0 {}
    assert_eq!(held.finish_all(), 40);
    while rig.poll() > 0 {}
    assert_eq!(rig.reap().len() as u64, all);
}

#[test]
fn failures_of_the_store_have_a_status_each() {
    let (mut rig, held) = Rig::held(Options::default());
    let at = rig.at(0);
    let cases = [
        (nvm::READ, Errno::IO, Status::UNRECOVERED_READ_ERROR, DropCause::StoreFailed),
        (nvm::WRITE, Errno::IO, Status::WRITE_FAULT, DropCause::StoreFailed),
        (nvm::WRITE, Errno::NOSPC, Status::CAPACITY_EXCEEDED, DropCause::NoSpace),
        (nvm::WRITE, Errno::ROFS, Status::WRITE_PROTECTED, DropCause::ReadOnly),
        (nvm::READ, Errno::FAULT, Status::DATA_TRANSFER_ERROR, DropCause::MemoryLost),
        (nvm::READ, Errno::INVAL, Status::LBA_OUT_OF_RANGE, DropCause::OutOfRange),
        (nvm::VERIFY, Errno::IO, Status::UNRECOVERED_READ_ERROR, DropCause::StoreFailed),
        (nvm::FLUSH, Errno::IO, Status::INTERNAL_ERROR, DropCause::StoreFailed),
    ];
    for (opcode, errno, status, cause) in cases {
        let before = rig.counters().drops_by(cause);
        rig.place(0, transfer(opcode, 3, 1, at, 0));
        rig.place(0, read(4, 1, at, 0));
        rig.ring(0);
        rig.poll();
        let ids: Vec<u64> = held.pending().iter().map(|pending| pending.id).collect();
        held.fail(ids[0], errno);
        held.finish(ids[1]);
        rig.poll();
        let found = rig.reap();
        assert_eq!((found[0].status().plain(), found[1].status()), (status, Status::SUCCESS));
        assert_eq!(rig.counters().drops_by(cause), before + 1);
    }
    assert_eq!(rig.device.shared().mishaps.count(), cases.len() as u64);
}

#[test]
fn compare_and_verify_are_the_stores_to_do() {
    let (mut rig, held) = Rig::held(Options::default());
    let at = rig.at(0);
    let end = |rig: &mut Rig, opcode| {
        rig.offer(transfer(opcode, 3, 8, at, 0));
        rig.poll();
        held.finish_all();
        rig.poll();
        rig.reap()[0].status()
    };
    assert_eq!(end(&mut rig, nvm::COMPARE), Status::SUCCESS);
    rig.fill(4095, 1, 1);
    assert_eq!(end(&mut rig, nvm::COMPARE), Status::COMPARE_FAILURE);
    assert_eq!(end(&mut rig, nvm::VERIFY), Status::SUCCESS);
}

#[test]
fn ranges_are_deallocated_one_after_the_other_and_end_once() {
    let (mut rig, held) = Rig::held(Options::default());
    // The longest discard of this store is 1 MiB.
    rig.list(0, &[4096 << 32, 0, 8 << 32, 8]);
    let mut command = Command::new(nvm::DATASET_MANAGEMENT, 9, 1);
    (command.cdw10, command.cdw11, command.dptr) = (1, CDW11_DEALLOCATE, [rig.lists.at.0, 0]);
    rig.offer(command);
    rig.poll();
    for (offset, len) in [(0, 1 << 20), (1 << 20, 1 << 20), (8 * 512, 8 * 512)] {
        let pending = held.pending();
        assert_eq!((pending.len(), pending[0].offset, pending[0].len), (1, offset, len));
        assert_eq!(pending[0].operation, Operation::Discard);
        assert!(rig.look().is_empty());
        held.finish_all();
        rig.poll();
    }
    assert_eq!((rig.reap().len(), held.pending().len()), (1, 0));
    // The second step fails: the third is not begun.
    rig.offer(command);
    rig.poll();
    held.finish_all();
    rig.poll();
    held.fail(held.pending()[0].id, Errno::IO);
    rig.poll();
    assert_eq!((rig.reap()[0].status(), held.pending().len()), (Status::WRITE_FAULT, 0));
}

#[test]
fn unmap_waits_for_the_command_and_finds_no_pin_afterwards() {
    let (mut rig, held) = Rig::held(Options::default());
    let at = rig.at(4096);
    rig.offer(read(0, 1, at, 0));
    rig.poll();
    assert_eq!(rig.ioas.pins(), 1);
    let all = IovaRange::new(Iova(0), Iova(u64::MAX)).unwrap();
    assert!(rig.ioas.unmap(all, Within::or_fail(Duration::from_millis(5))).is_err(), "it is held");
    held.finish_all();
    assert_eq!(rig.ioas.pins(), 0);
    assert!(rig.ioas.unmap(all, Within::or_fail(Duration::from_secs(5))).is_ok());
}

#[test]
fn nothing_is_written_after_the_engine_is_gone() {
    let (mut rig, held) = Rig::held(Options::default());
    rig.fill(0, 4096, 0xee);
    let at = rig.at(0);
    (0..8).for_each(|lba| rig.place(0, read(lba, 1, at, 0)));
    rig.ring(0);
    rig.poll();
    drop(rig.queues.remove(0));
    assert_eq!((held.finish_all(), rig.ioas.pins()), (0, 0));
    assert_eq!(rig.bytes(0, 4096), [0xee; 4096]);
    assert!(rig.look().is_empty());
}

fn aborts(rig: &mut Rig) -> Vec<(u64, bool)> {
    let engine = &mut rig.queues[0].engine;
    assert!(engine.has_news() || engine.news().is_none());
    let decided = std::iter::from_fn(|| engine.news()).map(|news| match news {
        QueueNews::Abort { number, aborted } => (number, aborted),
        other => panic!("{other}"),
    });
    decided.collect()
}

#[test]
fn abort_is_decided_when_the_host_can_see_the_end_of_its_command() {
    let (mut rig, held) = Rig::held(Options { completions: 2, ..Options::default() });
    let at = rig.at(0);
    (0..3).for_each(|lba| rig.place(0, read(lba, 1, at, 0)));
    rig.ring(0);
    rig.poll();
    held.finish(held.pending()[0].id);
    rig.queues[0].engine.abort(1, 70);
    assert_eq!(rig.ioas.pins(), 1, "it holds no memory from now on");
    rig.poll();
    assert_eq!((aborts(&mut rig), rig.look().len()), (vec![], 1), "there is no room for its completion");
    rig.doorbells.set_head(CQ, rig.head);
    rig.poll();
    let found = rig.reap();
    assert_eq!((found[0].cid, found[0].status()), (1, Status::ABORT_REQUESTED));
    assert_eq!(aborts(&mut rig), [(70, true)]);
    assert_eq!(rig.counters().drops_by(DropCause::Cancelled), 1);
}

#[test]
fn command_that_ends_before_its_abort_was_not_aborted() {
    let (mut rig, held) = Rig::held(Options::default());
    let at = rig.at(0);
    rig.offer(read(3, 1, at, 0));
    rig.poll();
    // It has ended when it is to be cancelled, and nobody has looked.
    held.finish_all();
    rig.queues[0].engine.abort(3, 1);
    rig.queues[0].engine.abort(4, 2);
    assert_eq!(aborts(&mut rig), [(2, false)]);
    rig.poll();
    assert_eq!((rig.reap()[0].status(), aborts(&mut rig)), (Status::SUCCESS, vec![(1, false)]));
    rig.queues[0].engine.abort(3, 3);
    assert_eq!(aborts(&mut rig), [(3, false)]);
}

#[test]
fn command_of_several_steps_is_aborted_between_them() {
    let (mut rig, held) = Rig::held(Options::default());
    rig.list(0, &[4096 << 32, 0]);
    let mut command = Command::new(nvm::DATASET_MANAGEMENT, 9, 1);
    (command.cdw11, command.dptr) = (CDW11_DEALLOCATE, [rig.lists.at.0, 0]);
    rig.offer(command);
    rig.poll();
    held.finish_all();
    rig.queues[0].engine.abort(9, 5);
    rig.poll();
    assert_eq!((rig.reap()[0].status(), held.pending().len()), (Status::ABORT_REQUESTED, 0));
    assert_eq!(aborts(&mut rig), [(5, true)]);
    // A store that needs no time does it step by step, too.
    let store = Store::open(&"mem,size=64M".parse().unwrap()).unwrap();
    let mut rig = Rig::on(store, Options::default());
    rig.offer(transfer(nvm::WRITE_ZEROES, 0, 65536, 0, 0));
    rig.poll();
    let cid = transfer(nvm::WRITE_ZEROES, 0, 65536, 0, 0).cid();
    rig.queues[0].engine.abort(cid, 6);
    rig.poll();
    assert_eq!((rig.reap()[0].status(), aborts(&mut rig)), (Status::ABORT_REQUESTED, vec![(6, true)]));
    assert!(!rig.queues[0].engine.arm());
}

#[test]
fn command_that_is_aborted_again_and_again_costs_little() {
    let (mut rig, held) = Rig::held(Options::default());
    let at = rig.at(0);
    rig.offer(read(3, 1, at, 0));
    rig.poll();
    let id = held.pending()[0].id;
    held.finish(id);
    (0..100).for_each(|number| rig.queues[0].engine.abort(3, number));
    let refused = aborts(&mut rig);
    assert!(refused.len() == 84 && refused.iter().all(|(_, aborted)| !aborted));
    rig.poll();
    assert_eq!(aborts(&mut rig).len(), 16);
}

#[test]
fn flush_of_all_namespaces_goes_from_one_to_the_next() {
    let stores: Vec<Held> = (0..3).map(|_| Held::new(vec![0; SIZE as usize])).collect();
    let mut all: Vec<Store> = stores.iter().cloned().map(Store::Held).collect();
    all.insert(1, Store::open(&"mem,size=4M".parse().unwrap()).unwrap());
    let mut rig = Rig::of(device(all, false), Options::default());
    rig.device.shared().namespaces.detach(4).unwrap();
    let command = Command::new(nvm::FLUSH, 9, NSID_ALL);
    let pending = |held: &Held| held.pending().iter().map(|one| one.operation).collect::<Vec<_>>();
    rig.offer(command);
    rig.poll();
    for at in 0..2 {
        let flushes = [0, 1, 2].map(|store| pending(&stores[store]).len());
        assert_eq!(flushes, [usize::from(at == 0), usize::from(at == 1), 0]);
        assert_eq!(pending(&stores[at]), [Operation::Flush]);
        assert!(rig.look().is_empty());
        stores[at].finish_all();
        rig.poll();
    }
    let found = rig.reap();
    assert_eq!((found.len(), found[0].cid, found[0].status()), (1, 9, Status::SUCCESS));
    // One that fails, and one that is aborted between two.
    rig.offer(command);
    rig.poll();
    stores[0].fail(stores[0].pending()[0].id, Errno::IO);
    rig.poll();
    assert_eq!((rig.reap()[0].status(), pending(&stores[1]).len()), (Status::INTERNAL_ERROR, 0));
    rig.offer(command);
    rig.poll();
    stores[0].finish_all();
    rig.queues[0].engine.abort(9, 1);
    rig.poll();
    assert_eq!((rig.reap()[0].status(), pending(&stores[1]).len()), (Status::ABORT_REQUESTED, 0));
    assert_eq!(aborts(&mut rig), [(1, true)]);
    let mut fused = command;
    fused.cdw0 |= 1 << 8;
    assert_eq!(rig.run(fused).plain(), Status::INVALID_FIELD);
    for nsid in 1..4 {
        rig.device.shared().namespaces.detach(nsid).unwrap();
    }
    assert_eq!(rig.run(command), Status::SUCCESS, "there is nothing to flush");
}

#[test]
fn stop_waits_for_what_is_in_flight_and_takes_nothing_more() {
    let (mut rig, held) = Rig::held(Options::default());
    let at = rig.at(0);
    rig.offer(read(0, 1, at, 0));
    rig.poll();
    assert!(!rig.queues[0].engine.quiesce());
    rig.offer(read(1, 1, at, 0));
    assert_eq!(rig.poll(), 0);
    held.finish_all();
    assert_eq!(rig.poll(), 1);
    assert!(rig.queues[0].engine.quiesce());
    let found = rig.reap();
    assert_eq!((found.len(), found[0].status()), (1, Status::SUCCESS));
}

#[test]
fn deletion_aborts_what_is_in_flight_and_tells_so_as_far_as_there_is_room() {
    let (mut rig, held) = Rig::held(Options { completions: 4, ..Options::default() });
    let at = rig.at(0);
    (0..6).for_each(|lba| rig.place(0, read(lba, 1, at, 0)));
    rig.ring(0);
    rig.poll();
    rig.queues[0].engine.quiesce();
    rig.queues[0].engine.cancel();
    rig.poll();
    assert!(rig.queues[0].engine.quiesce(), "nobody waits for the host to make room");
    let found = rig.reap();
    assert!(found.len() == 3 && found.iter().all(|one| one.status() == Status::ABORTED_SQ_DELETION));
    assert_eq!((held.pending().len(), rig.ioas.pins()), (0, 0));
    assert_eq!(rig.counters().drops_by(DropCause::Cancelled), 6);
}

#[test]
fn detached_namespace_ends_what_it_has() {
    let held = Held::new(vec![0; SIZE as usize]);
    let null = Store::open(&"null,size=4M".parse().unwrap()).unwrap();
    let mut rig = Rig::of(device(vec![null, Store::Held(held.clone())], false), Options::default());
    let at = rig.at(0);
    let second = |lba| Command { nsid: 2, ..read(lba, 1, at, 0) };
    rig.offer(second(0));
    rig.poll();
    rig.device.shared().namespaces.detach(2).unwrap();
    rig.offer(second(1));
    rig.poll();
    assert_eq!(rig.reap()[0].status().plain(), Status::INVALID_NAMESPACE);
    rig.device.shared().namespaces.attach(2).unwrap();
    rig.offer(second(2));
    rig.poll();
    assert_eq!(held.finish_all(), 2);
    rig.poll();
    let cids: Vec<u16> = rig.reap().iter().map(|one| one.cid).collect();
    assert_eq!(cids, [0, 2]);
    assert_eq!(rig.run(read(7, 1, at, 0)), Status::SUCCESS, "the other is not concerned");
}

#[test]
fn bell_and_deadline_wake_a_sleeping_worker() {
    let (mut rig, held) = Rig::held(Options::default());
    let at = rig.at(0);
    rig.offer(read(0, 1, at, 0));
    rig.poll();
    assert!(!rig.queues[0].engine.arm());
    let at = std::time::Instant::now();
    held.delay(held.pending()[0].id, crate::store::held::Delay::Until(at));
    assert_eq!(rig.queues[0].engine.next_deadline(), Some(at));
    rig.poll();
    assert_eq!((rig.reap().len(), rig.queues[0].engine.next_deadline()), (1, None));
}
