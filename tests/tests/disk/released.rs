//! What a reply promises while requests are in flight, on every store that has bytes: nothing writes into the guest's memory any more, and
//! nothing was lost.
//!
//! `MDEV_RELEASES` says how often; 12 if it is not set.

use std::time::Duration;

use mdev_tests::disk::{Load, Unheard, Way};
use mdev_tests::random::Random;
use mdevd::driver::{PackedQueue, SplitQueue, Virtqueue};

use super::daemon::{BLOCKS, Disk};

fn releases() -> u32 {
    std::env::var("MDEV_RELEASES").ok().and_then(|text| text.parse().ok()).unwrap_or(12)
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
        // Bytes that nobody but a late request would change.
        load.mark();
        std::thread::sleep(Duration::from_micros(500 + random.below(5000)));
        assert!(load.is_marked(), "{way:?}: a write came after the reply");
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
