//! `virtio-queue` reads the same legal rings and sees the same chains.

use std::fs::File;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::guest::{BASE, Guest, Ring};
use super::legal::{Driver, shape};

const MEMORY: u64 = 1 << 18;

/// A chain as (head, buffers as (address, length, writable)).
type Seen = (u16, Vec<(u64, u32, bool)>);

fn theirs(guest: &Guest, ring: &Ring, from: u16) -> Vec<Seen> {
    let file = File::from(guest.file.as_fd().try_clone_to_owned().unwrap());
    let backing = Some(FileOffset::new(file, 0));
    let ranges = [(GuestAddress(BASE), MEMORY as usize, backing)];
    let memory = GuestMemoryMmap::<()>::from_ranges_with_files(ranges).unwrap();
    let mut queue = Queue::new(ring.size).unwrap();
    queue.set_size(ring.size);
    queue.try_set_desc_table_address(GuestAddress(BASE + ring.desc)).unwrap();
    queue.try_set_avail_ring_address(GuestAddress(BASE + ring.avail)).unwrap();
    queue.try_set_used_ring_address(GuestAddress(BASE + ring.used)).unwrap();
    queue.set_next_avail(from);
    queue.set_ready(true);
    let chains = queue.iter(&memory).unwrap();
    chains
        .map(|chain| {
            let head = chain.head_index();
            (head, chain.map(|d| (d.addr().0, d.len(), d.is_write_only())).collect())
        })
        .collect()
}

fn ours(guest: &Guest, ring: &Ring, from: u16) -> Vec<Seen> {
    let mut device = Ring { start: from, ..*ring }.device(guest);
    let mut lane = guest.lane();
    let burst = lane.enter();
    let mut vring = device.begin(&burst).unwrap();
    let mut seen = Vec::new();
    vring
        .take(256, |chain| {
            let part = |buffers: &[crate::ring::Buffer], write| {
                buffers.iter().map(move |b| (b.iova.0, b.len, write)).collect::<Vec<_>>()
            };
            seen.push((chain.head, [part(chain.readable, false), part(chain.writable, true)].concat()));
            Ok(())
        })
        .unwrap();
    seen
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn virtio_queue_sees_the_same_chains(
        size_log in 1u32..7,
        start in prop_oneof![Just(0u16), 65500u16..=65535, any::<u16>()],
        shapes in prop::collection::vec(shape(), 1..24),
    ) {
        let guest = Guest::new(MEMORY);
        let mut driver = Driver::new(Ring::new(&guest, 0, 1 << size_log, start));
        let mut serial = 0;
        shapes.iter().for_each(|shape| driver.offer(&guest, shape, &mut serial));
        driver.ring.publish(&guest);
        prop_assert_eq!(ours(&guest, &driver.ring, start), theirs(&guest, &driver.ring, start));
    }
}
