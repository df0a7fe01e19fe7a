use mdev_pin::ResolveError;
use mdev_protocol::nvme::command::{Command, NSID_ALL};
use mdev_protocol::nvme::feature;
use mdev_protocol::nvme::log;
use mdev_protocol::nvme::opcode::admin;
use mdev_protocol::nvme::status::Status;

use super::super::{Namespace, QueueNews};
use super::rig::*;
use crate::device::nvme::NamespaceConfig;
use crate::store::Store;
use crate::store::held::Held;

const NAMESPACES: u32 = 0x0004_0002;
const BAD_VALUE: u32 = 0x0001_0100;
const BAD_REGISTER: u32 = 0x0001_0000;

fn request(rig: &mut Rig) -> u16 {
    rig.submit(Command::new(admin::ASYNC_EVENT, 0, 0))
}

fn results(rig: &mut Rig) -> Vec<(u16, u32)> {
    rig.ended().into_iter().map(|one| (one.cid, one.dw0)).collect()
}

fn read_log(rig: &mut Rig, page: u8, retain: bool) -> Vec<u8> {
    let cdw10 = u32::from(page) | 1023 << 16 | u32::from(retain) << 15;
    let command = Command::new(admin::GET_LOG_PAGE, 0, NSID_ALL);
    rig.done(Command { dptr: [rig.data.at.0, 0], cdw10, ..command });
    rig.bytes(4096)
}

fn listen(rig: &mut Rig) {
    let command = Command::new(admin::SET_FEATURES, 0, 0);
    rig.done(Command { cdw10: feature::ASYNC_EVENTS.into(), cdw11: 0x1ff, ..command });
}

fn attach(rig: &mut Rig, nsid: u32, select: u32, list: &[u16]) -> Status {
    rig.data.slice().unwrap().fill(0);
    for (at, word) in list.iter().enumerate() {
        rig.data.range(at as u64 * 2, 2).unwrap().write(0, *word).unwrap();
    }
    let command = Command::new(admin::NAMESPACE_ATTACHMENT, 0, nsid);
    rig.submit(Command { dptr: [rig.data.at.0, 0], cdw10: select, ..command });
    rig.ended()[0].status().plain()
}

#[test]
fn attached_namespace_is_told_once_until_its_log_is_read() {
    let mut rig = Rig::enabled();
    listen(&mut rig);
    let (first, second) = (request(&mut rig), request(&mut rig));
    rig.device.shared().namespaces.attach(11).unwrap();
    rig.controller.namespaces_changed(&mut rig.host);
    assert_eq!(results(&mut rig), [(first, NAMESPACES)]);
    rig.device.shared().namespaces.detach(1).unwrap();
    rig.controller.namespaces_changed(&mut rig.host);
    rig.controller.namespaces_changed(&mut rig.host);
    assert_eq!(results(&mut rig), []);
    let retained = read_log(&mut rig, log::CHANGED_NAMESPACES, true);
    assert_eq!((retained[0], retained[4], retained[8]), (1, 11, 0));
    assert_eq!(read_log(&mut rig, log::CHANGED_NAMESPACES, false), retained);
    assert_eq!(read_log(&mut rig, log::CHANGED_NAMESPACES, false), [0; 4096]);
    let namespaces = &rig.device.shared().namespaces;
    let (config, store) =
        (NamespaceConfig::new(5, "null,size=512".parse().unwrap()), Held::new(vec![0; 512]));
    namespaces.add(Namespace::on("disk", &config, Store::Held(store)), true).unwrap();
    rig.controller.namespaces_changed(&mut rig.host);
    assert_eq!(results(&mut rig), [(second, NAMESPACES)]);
}

#[test]
fn host_that_does_not_listen_hears_nothing_of_namespaces() {
    let mut rig = Rig::enabled();
    request(&mut rig);
    rig.device.shared().namespaces.attach(11).unwrap();
    rig.controller.namespaces_changed(&mut rig.host);
    assert_eq!(results(&mut rig), []);
    assert_eq!(read_log(&mut rig, log::CHANGED_NAMESPACES, false)[0], 11);
}

#[test]
fn bad_doorbells_are_told_as_errors() {
    let mut rig = Rig::enabled();
    rig.create_pair(1);
    let first = request(&mut rig);
    rig.ring(3, false, 1);
    assert_eq!(results(&mut rig), [(first, BAD_REGISTER)]);
    let second = request(&mut rig);
    let failure = QueueNews::InvalidDoorbell { qid: 1, head: false, value: 64 };
    rig.controller.queue_news(1, failure, &mut rig.host);
    assert_eq!(results(&mut rig), [], "the error log was not read");
    read_log(&mut rig, log::ERRORS, false);
    rig.controller.queue_news(1, failure, &mut rig.host);
    assert_eq!(results(&mut rig), [(second, BAD_VALUE)]);
    read_log(&mut rig, log::ERRORS, false);
    let third = request(&mut rig);
    let tail = rig.tail;
    rig.ring(0, false, ENTRIES);
    assert_eq!(results(&mut rig), [(third, BAD_VALUE)], "of the admin queue");
    rig.ring(0, false, tail);
    listen(&mut rig);
}

#[test]
fn queue_that_lost_its_memory_makes_the_controller_fatal() {
    let mut rig = Rig::enabled();
    rig.create_pair(1);
    rig.controller.queue_news(2, QueueNews::Memory(ResolveError::Hole), &mut rig.host);
    assert_eq!(rig.read(0x1c), 1, "there is no queue 2");
    rig.controller.queue_news(1, QueueNews::Memory(ResolveError::Hole), &mut rig.host);
    assert_eq!(rig.read(0x1c), 3);
    rig.disable();
    rig.enable();
}

#[test]
fn temperature_is_told_when_a_threshold_is_crossed_and_the_host_listens() {
    let mut rig = Rig::enabled();
    let event = request(&mut rig);
    let set =
        Command { cdw10: feature::TEMPERATURE_THRESHOLD.into(), ..Command::new(admin::SET_FEATURES, 0, 0) };
    rig.done(Command { cdw11: 300, ..set });
    rig.done(Command { cdw11: 343, ..set });
    listen(&mut rig);
    rig.submit(Command { cdw11: 300, ..set });
    let told = results(&mut rig);
    assert!(told.contains(&(event, 0x0002_0101)), "{told:x?}");
    assert_eq!(read_log(&mut rig, log::HEALTH, false)[0], 2);
}

#[test]
fn requests_beyond_the_limit_are_refused_and_can_be_aborted() {
    let mut rig = Rig::enabled();
    let cids: Vec<u16> = (0..8).map(|_| request(&mut rig)).collect();
    assert_eq!(rig.run(Command::new(admin::ASYNC_EVENT, 0, 0)).0, Status::ASYNC_EVENT_LIMIT_EXCEEDED);
    let abort = |qid: u16, cid: u16| Command {
        cdw10: u32::from(qid) | u32::from(cid) << 16,
        ..Command::new(admin::ABORT, 0, 0)
    };
    let cid = rig.submit(abort(0, cids[3]));
    let ended = rig.ended();
    assert_eq!((ended[0].cid, ended[0].status().plain()), (cids[3], Status::ABORT_REQUESTED));
    assert_eq!((ended[1].cid, ended[1].status(), ended[1].dw0), (cid, Status::SUCCESS, 0));
    assert_eq!(rig.done(abort(0, cids[3])), 1, "not aborted");
    assert_eq!(rig.run(abort(1, 0)).0, Status::INVALID_FIELD);
    rig.create_pair(1);
    let cid = rig.submit(abort(1, 0x77));
    assert!(rig.ended().is_empty(), "the queue knows");
    let [(1, 0x77, number)] = rig.host.aborted[..] else { panic!("{:?}", rig.host.aborted) };
    let wrong = QueueNews::Abort { number: number + 1, aborted: true };
    rig.controller.queue_news(1, wrong, &mut rig.host);
    assert!(rig.ended().is_empty());
    rig.controller.queue_news(1, QueueNews::Abort { number, aborted: true }, &mut rig.host);
    assert_eq!(rig.ended().iter().map(|one| (one.cid, one.dw0)).collect::<Vec<_>>(), [(cid, 0)]);
    rig.controller.queue_news(1, QueueNews::Abort { number, aborted: true }, &mut rig.host);
    assert!(rig.ended().is_empty(), "once");
}

#[test]
fn host_attaches_and_detaches_namespaces() {
    let mut rig = Rig::enabled();
    assert_eq!(attach(&mut rig, 11, 0, &[1, 1]), Status::SUCCESS);
    assert!(rig.device.shared().namespaces.attached().1.get(11).is_some());
    assert_eq!(attach(&mut rig, 11, 0, &[1, 1]), Status::NAMESPACE_ALREADY_ATTACHED);
    assert_eq!(attach(&mut rig, 11, 1, &[1, 1]), Status::SUCCESS);
    assert_eq!(attach(&mut rig, 11, 1, &[1, 1]), Status::NAMESPACE_NOT_ATTACHED);
    assert_eq!(attach(&mut rig, 2, 0, &[1, 1]), Status::INVALID_NAMESPACE);
    assert_eq!(attach(&mut rig, NSID_ALL, 1, &[1, 1]), Status::INVALID_NAMESPACE);
    assert_eq!(attach(&mut rig, 11, 2, &[1, 1]), Status::INVALID_FIELD);
    for list in [&[0][..], &[2048], &[1, 2], &[2, 1, 1], &[u16::MAX, 1]] {
        assert_eq!(attach(&mut rig, 11, 0, list), Status::CONTROLLER_LIST_INVALID, "{list:?}");
    }
    let manage = |select| Command { cdw10: select, ..Command::new(admin::NAMESPACE_MANAGEMENT, 0, 1) };
    assert_eq!(rig.run(manage(0)).0, Status::NAMESPACE_INSUFFICIENT_CAPACITY);
    assert_eq!(rig.run(manage(1)).0, Status::OPERATION_DENIED);
    assert_eq!(rig.run(manage(2)).0, Status::INVALID_FIELD);
}
