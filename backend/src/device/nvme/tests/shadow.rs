//! Doorbells in the host's memory.

use mdev_dma::Iova;
use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::opcode::nvm;

use super::rig::{CQ, Options, Rig};
use crate::device::nvme::{QueueNews, Shadow};
use crate::store::Store;

const TAIL: usize = 8;
const HEAD: usize = CQ as usize * 8 + 4;

fn flush(cid: u16) -> Command {
    Command::new(nvm::FLUSH, cid, 1)
}

fn null(completions: u32) -> Rig {
    let store = Store::open(&"null,size=4M".parse().unwrap()).unwrap();
    Rig::on(store, Options { completions, ..Options::default() })
}

fn shadow(rig: &Rig) -> Shadow {
    Shadow { doorbells: rig.lists.at, events: Iova(rig.lists.at.0 + 4096) }
}

fn begin(rig: &Rig) {
    let mut lane = rig.access.lane();
    rig.doorbells.begin_shadow(&lane.enter(), shadow(rig), 128).unwrap();
}

fn set(rig: &Rig, at: usize, value: u32) {
    rig.lists.slice().unwrap().write(at, value).unwrap();
}

fn get(rig: &Rig, at: usize) -> u32 {
    rig.lists.slice().unwrap().read(at).unwrap()
}

#[test]
fn tails_and_heads_are_read_where_the_host_writes_them() {
    let mut rig = null(4);
    rig.offer(flush(0));
    rig.poll();
    assert_eq!(rig.reap().len(), 1);
    begin(&rig);
    assert_eq!((get(&rig, TAIL), get(&rig, HEAD), get(&rig, 4096 + TAIL)), (1, 1, 1), "as they were");
    (1..9).for_each(|cid| rig.place(0, flush(cid)));
    assert_eq!(rig.poll(), 0);
    rig.ring(0);
    assert_eq!(rig.poll(), 0, "the register does not count");
    set(&rig, TAIL, 9);
    rig.poll();
    let mut cids = Vec::new();
    for _ in 0..5 {
        cids.extend(rig.look().iter().map(|one| one.cid));
        set(&rig, HEAD, rig.head);
        rig.poll();
    }
    assert_eq!(cids, (1..9).collect::<Vec<_>>());
    rig.doorbells.reset();
    assert_eq!((rig.doorbells.tail(1), rig.doorbells.head(CQ)), (0, 0));
}

#[test]
fn sleeping_queue_asks_for_the_register_where_it_stands() {
    let mut rig = null(4);
    begin(&rig);
    for cid in 0..5 {
        assert!(!rig.queues[0].engine.arm());
        assert_eq!(get(&rig, 4096 + TAIL), u32::from(cid));
        rig.place(0, flush(cid));
        set(&rig, TAIL, rig.queues[0].tail);
        assert!(rig.queues[0].engine.arm(), "what came before the sleep is seen");
        rig.queues[0].engine.disarm();
        rig.poll();
        rig.look();
        set(&rig, HEAD, rig.head);
    }
}

#[test]
fn queue_that_waits_for_room_asks_for_the_head() {
    let mut rig = null(4);
    begin(&rig);
    (0..5).for_each(|cid| rig.place(0, flush(cid)));
    set(&rig, TAIL, 5);
    rig.poll();
    set(&rig, 4096 + HEAD, 77);
    assert!(!rig.queues[0].engine.arm());
    assert_eq!(get(&rig, 4096 + HEAD), 0);
    assert_eq!(rig.look().len(), 3);
    set(&rig, HEAD, 3);
    assert!(rig.queues[0].engine.arm());
    rig.poll();
    assert_eq!(rig.look().len(), 2);
}

#[test]
fn bad_values_in_memory_are_told_of_too() {
    let mut rig = null(4);
    begin(&rig);
    set(&rig, TAIL, 64);
    rig.poll();
    let told = QueueNews::InvalidDoorbell { qid: 1, head: false, value: 64 };
    assert_eq!(rig.queues[0].engine.news(), Some(told));
}

#[test]
fn pages_that_are_no_memory_are_refused_and_change_nothing() {
    let mut rig = null(4);
    let mut lane = rig.access.lane();
    let bad = Shadow { doorbells: rig.lists.at, events: Iova(0) };
    assert!(rig.doorbells.begin_shadow(&lane.enter(), bad, 128).is_err());
    drop(lane);
    rig.offer(flush(0));
    rig.poll();
    assert_eq!(rig.reap().len(), 1, "registers count as before");
}

#[test]
fn memory_that_went_away_parks_the_queue_and_then_fails_it() {
    let mut rig = null(4);
    rig.doorbells.set_shadow(Some(Shadow { doorbells: Iova(0), events: Iova(4096) }));
    assert_eq!(rig.poll(), 0);
    assert!(rig.queues[0].engine.next_deadline().is_some());
    std::thread::sleep(std::time::Duration::from_millis(35));
    rig.poll();
    assert!(rig.queues[0].engine.news().unwrap().is_fatal());
}

#[test]
fn admin_queues_have_no_shadow() {
    let rig = null(4);
    let mut doorbell = crate::device::nvme::doorbells::Doorbell::of_tail(rig.doorbells.clone(), 0);
    begin(&rig);
    rig.doorbells.set_tail(0, 5);
    assert_eq!(doorbell.peek(), Some(5));
}

#[test]
fn client_can_map_the_page_and_not_change_its_size() {
    let rig = null(4);
    let file = rustix::io::dup(rig.doorbells.fd()).unwrap();
    assert!(rustix::fs::ftruncate(&file, 0).is_err() && rustix::fs::ftruncate(&file, 1 << 20).is_err());
    rustix::io::pwrite(&file, &7u32.to_le_bytes(), 4096 + 8).unwrap();
    rustix::io::pwrite(&file, &9u32.to_le_bytes(), 4096 + 12).unwrap();
    assert_eq!((rig.doorbells.tail(1), rig.doorbells.head(1)), (7, 9));
}
