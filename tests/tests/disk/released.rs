//! What a reply promises while requests are in flight, on every store that has bytes: nothing writes into the guest's memory any more, and
//! nothing was lost.
//!
//! `MDEV_RELEASES` says how often; 12 if it is not set.

use std::fmt::Debug;
use std::time::Duration;

use mdev_tests::disk::{Load, NvmeLoad, NvmeWay, Unheard, Watched, Way};
use mdev_tests::random::Random;
use mdevd::driver::nvme::DoorbellWay;
use mdevd::driver::{PackedQueue, SplitQueue, Virtqueue};

use super::daemon::{BLOCKS, Disk};

fn releases() -> usize {
    std::env::var("MDEV_RELEASES").ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

/// Writes over memory that was released, and fails if somebody else writes there in the next moments.
fn expect_untouched(released: &Watched, random: &mut Random, way: &dyn Debug) {
    released.mark();
    std::thread::sleep(Duration::from_micros(500 + random.below(5000)));
    assert!(released.is_marked(), "{way:?}: a write came after the reply");
}

fn released<Q: Virtqueue>(packed: bool, store: &'static str) {
    let name = format!("released, {store}, packed {packed}");
    let mut random = Random::seeded(&name);
    let disk = Disk::new(store, "adaptive");
    let mut cut = 0;
    for _ in 0..releases() {
        let way = *random.of(&Way::ALL);
        let mut load = Load::<Q>::new(packed, BLOCKS, random.number(), Random::of_number(random.number()));
        load.suspends = way == Way::Suspend;
        load.connect(&disk.socket());
        for _ in 0..random.below(200) {
            load.step(true, &mut Unheard);
        }
        cut += load.release(way);
        expect_untouched(&load.watched(), &mut random, &way);
    }
    println!("{name}: {cut} requests were in flight");
}

#[test]
fn memory_store_writes_nothing_after_the_reply() {
    released::<PackedQueue>(true, "mem,size=2M");
}

#[test]
fn file_store_writes_nothing_after_the_reply() {
    released::<SplitQueue>(false, "file=disk.img");
    released::<PackedQueue>(true, "file=disk.img");
}

#[test]
fn file_store_past_the_page_cache_writes_nothing_after_the_reply() {
    released::<SplitQueue>(false, "file=disk.img,direct=on");
    released::<PackedQueue>(true, "file=disk.img,direct=on");
}

/// The same of an NVMe controller, by each way in turn. Where data may have been lost by then, the next client finds all that was
/// acknowledged.
fn released_by_controller(store: &'static str, mode: &'static str, bells: &[DoorbellWay]) {
    let name = format!("released by a controller, {store}, {mode}");
    let mut random = Random::seeded(&name);
    let disk = Disk::nvme(store, mode);
    let connect = |bell, seed, random| NvmeLoad::connect(&disk.socket(), bell, BLOCKS, seed, random);
    let mut cut = 0;
    for way in NvmeWay::ALL.into_iter().cycle().take(releases().max(NvmeWay::ALL.len())) {
        let chance = Random::of_number(random.number());
        let mut load = connect(*random.of(bells), random.number(), chance.clone());
        for _ in 0..random.below(200) {
            load.step(true, &mut Unheard);
        }
        if random.one_in(2) {
            load.flood();
            std::thread::sleep(Duration::from_micros(random.below(300)));
        }
        let (under_way, released) = load.release(way);
        cut += under_way;
        expect_untouched(&released, &mut random, &way);
        let ledger = load.work.ledger.clone();
        drop(load);
        connect(*random.of(bells), 0, chance).verify(&ledger);
    }
    assert!(cut > 0, "no command was in flight");
    println!("{name}: {cut} commands were in flight");
}

/// Doorbells of workers that sleep.
const MESSAGES: &[DoorbellWay] = &[DoorbellWay::Trapped, DoorbellWay::Shadow];

#[test]
fn controller_on_memory_writes_nothing_after_the_reply() {
    released_by_controller("mem,size=2M", "adaptive", MESSAGES);
}

#[test]
fn controller_on_a_file_writes_nothing_after_the_reply() {
    released_by_controller("file=disk.img", "adaptive", MESSAGES);
}

#[test]
fn controller_past_the_page_cache_writes_nothing_after_the_reply() {
    released_by_controller("file=disk.img,direct=on", "adaptive", MESSAGES);
}

#[test]
fn controller_whose_doorbells_are_mapped_writes_nothing_after_the_reply() {
    released_by_controller("file=disk.img,direct=on", "busy", &[DoorbellWay::Mapped, DoorbellWay::Shadow]);
}
