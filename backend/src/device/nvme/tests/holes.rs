//! Memory that goes away under a queue, and comes back.

use std::sync::atomic::Ordering;
use std::time::Duration;

use mdev_dma::{Iova, IovaRange};
use mdev_pin::{ResolveError, Within};
use mdev_protocol::nvme::status::Status;

use super::rig::{Options, Rig, read};
use crate::device::DropCause;
use crate::device::nvme::QueueNews;
use crate::driver::MemoryOptions;
use crate::store::Store;

const FAR: u64 = 1 << 33;

/// A second region, for data alone.
fn with_far_region(store: &str) -> (Rig, mdev_dma::Area) {
    let mut rig = Rig::new(store);
    rig.memory.add_region(MemoryOptions { size: 1 << 20, first: Iova(FAR), huge_pages: false }).unwrap();
    let area = rig.memory.regions()[1].area();
    (rig, area)
}

fn all() -> IovaRange {
    IovaRange::new(Iova(0), Iova(u64::MAX)).unwrap()
}

fn unmap(rig: &Rig) {
    rig.ioas.unmap(all(), Within::or_fail(Duration::from_secs(5))).unwrap();
}

fn map(rig: &Rig) {
    rig.ioas.map(rig.memory.regions()[0].area()).unwrap();
}

#[test]
fn data_that_come_back_are_served_and_those_before_are_not_held_up() {
    let (mut rig, area) = with_far_region("mem,size=4M");
    let at = rig.at(0);
    rig.place(0, read(0, 1, at, 0));
    rig.place(0, read(1, 1, FAR, 0));
    rig.place(0, read(2, 1, at, 0));
    rig.ring(0);
    assert_eq!((rig.poll(), rig.reap().len()), (2, 1));
    assert_eq!(rig.poll(), 0);
    assert!(rig.queues[0].engine.next_deadline().is_some());
    assert!(!rig.queues[0].engine.arm());
    assert_eq!(rig.woken.0.load(Ordering::SeqCst), 0);
    rig.ioas.map(area).unwrap();
    assert_eq!(rig.woken.0.load(Ordering::SeqCst), 1);
    assert!(rig.queues[0].engine.arm(), "woken since it was polled");
    rig.poll();
    assert_eq!(
        rig.reap().iter().map(|one| (one.cid, one.status())).collect::<Vec<_>>(),
        [(1, Status::SUCCESS), (2, Status::SUCCESS)]
    );
    assert_eq!((rig.counters().parks, rig.queues[0].engine.next_deadline()), (1, None));
}

#[test]
fn data_that_stay_away_fail_their_command_alone() {
    let (mut rig, _) = with_far_region("null,size=4M");
    let at = rig.at(0);
    rig.place(0, read(1, 1, FAR, 0));
    rig.place(0, read(2, 1, at, 0));
    rig.ring(0);
    assert_eq!(rig.poll(), 0);
    std::thread::sleep(Duration::from_millis(35));
    rig.poll();
    let found = rig.reap();
    assert_eq!(found[0].status().plain(), Status::DATA_TRANSFER_ERROR);
    assert_eq!((found[1].status(), rig.queues[0].engine.news()), (Status::SUCCESS, None));
    assert_eq!(rig.counters().drops_by(DropCause::NoMemory), 1);
}

#[test]
fn lists_that_are_away_park_the_queue_too() {
    let (mut rig, area) = with_far_region("null,size=4M");
    let at = rig.at(0);
    rig.offer(read(1, 24, at, FAR));
    assert_eq!(rig.poll(), 0);
    rig.ioas.map(area).unwrap();
    let list = rig.memory.slice(Iova(FAR), 16).unwrap();
    list.write(0, at + 4096).unwrap();
    list.write(8, at + 8192).unwrap();
    rig.poll();
    assert_eq!(rig.reap()[0].status(), Status::SUCCESS);
}

#[test]
fn queues_that_come_back_go_on() {
    let mut rig = Rig::new("null,size=4M");
    let at = rig.at(0);
    assert_eq!(rig.run(read(0, 1, at, 0)), Status::SUCCESS);
    for lba in 1..10 {
        unmap(&rig);
        rig.offer(read(lba, 1, at, 0));
        assert_eq!(rig.poll(), 0);
        map(&rig);
        rig.poll();
        let found = rig.reap();
        assert_eq!((found.len(), found[0].cid), (1, lba as u16));
    }
}

#[test]
fn completions_wait_for_their_queue() {
    let (mut rig, held) = Rig::held(Options::default());
    let at = rig.at(0);
    rig.offer(read(3, 1, at, 0));
    rig.poll();
    held.finish_all();
    unmap(&rig);
    assert_eq!(rig.poll(), 0);
    map(&rig);
    rig.poll();
    assert_eq!(rig.reap()[0].cid, 3);
}

#[test]
fn queue_whose_memory_stays_away_fails_once() {
    let mut rig = Rig::new("null,size=4M");
    let at = rig.at(0);
    rig.offer(read(0, 1, at, 0));
    unmap(&rig);
    rig.poll();
    assert_eq!(rig.queues[0].engine.news(), None);
    std::thread::sleep(Duration::from_millis(35));
    rig.poll();
    let failure = rig.queues[0].engine.news();
    assert_eq!(failure, Some(QueueNews::Memory(ResolveError::Hole)));
    map(&rig);
    assert_eq!((rig.poll(), rig.queues[0].engine.news()), (0, None), "it is over");
    assert!(!rig.queues[0].engine.arm() && rig.queues[0].engine.quiesce());
}

/// Takes the bytes of a region away from under its mapping.
fn shrink(rig: &Rig, region: usize) {
    rustix::fs::ftruncate(rig.memory.regions()[region].extent.file.as_fd(), 0).unwrap();
}

#[test]
fn data_that_are_lost_fail_their_command_alone() {
    let (mut rig, area) = with_far_region("mem,size=4M");
    rig.ioas.map(area).unwrap();
    let at = rig.at(0);
    assert_eq!(rig.run(read(0, 1, FAR, 0)), Status::SUCCESS);
    shrink(&rig, 1);
    for lba in [10, 20] {
        rig.place(0, read(lba, 1, at, 0));
        rig.place(0, read(lba + 1, 1, FAR, 0));
        rig.place(0, read(lba + 2, 1, at, 0));
        rig.place(0, read(lba + 3, 24, at, FAR));
        rig.ring(0);
        rig.poll();
        let ends: Vec<_> = rig.reap().iter().map(|one| one.status().plain()).collect();
        let (fine, lost) = (Status::SUCCESS, Status::DATA_TRANSFER_ERROR);
        assert_eq!(ends, [fine, lost, fine, lost]);
    }
    assert_eq!(rig.queues[0].engine.news(), None);
    assert_eq!(rig.counters().drops_by(DropCause::MemoryLost), 4);
}

#[test]
fn queue_that_is_lost_fails() {
    let mut rig = Rig::new("mem,size=4M");
    let at = rig.at(0);
    assert_eq!(rig.run(read(0, 1, at, 0)), Status::SUCCESS);
    rig.offer(read(1, 1, at, 0));
    shrink(&rig, 0);
    rig.poll();
    assert_eq!(rig.queues[0].engine.news(), Some(QueueNews::Memory(ResolveError::Poisoned)));
    assert_eq!(rig.poll(), 0);
}

#[test]
fn data_that_must_not_be_written_fail_at_once() {
    let store = Store::open(&"null,size=4M".parse().unwrap()).unwrap();
    let mut rig = Rig::on(store, Options::default());
    rig.memory.add_region(MemoryOptions { size: 4096, first: Iova(FAR), huge_pages: false }).unwrap();
    let mut area = rig.memory.regions()[1].area();
    area.perm = mdev_dma::Perm::READ;
    rig.ioas.map(area).unwrap();
    let status = rig.run(read(0, 8, FAR, 0));
    assert_eq!(status.plain(), Status::DATA_TRANSFER_ERROR);
    assert_eq!(rig.run(super::rig::write(0, 8, FAR, 0)), Status::SUCCESS);
}
