//! The product's own driver at the other end, in both formats: what the device completes is what the driver sees.

use std::collections::VecDeque;
use std::sync::Arc;

use mdev_dma::Iova;
use mdev_pin::{Access, IgnoreUnmap, Ioas};
use proptest::prelude::*;

use crate::driver::{GuestMemory, MemoryOptions, PackedQueue, Piece, RingOptions, SplitQueue, Virtqueue};
use crate::ring::{QueueState, Ring, RingAddr, RingSetup};

/// How many chains are offered, how many the device takes at most, whether it uses all that it has; and a choice among them.
type Step = (u8, u8, bool, prop::sample::Index);

fn both_ends<D: Virtqueue>(options: RingOptions, packed: bool, shapes: &[u8], steps: &[Step]) {
    let mut memory = GuestMemory::new(MemoryOptions { size: 1 << 20, ..Default::default() }).unwrap();
    let mut driver = D::new(&mut memory, options).unwrap();
    let buffer = memory.allocate(4096, 64).unwrap().at;
    let ioas = Ioas::new(memory.windows().clone());
    for region in memory.regions() {
        ioas.map(region.area()).unwrap();
    }
    let access = Access::new(Arc::new(IgnoreUnmap));
    access.attach(&ioas).unwrap();
    let RingOptions { size, event_idx, in_order, .. } = options;
    let addresses = driver.addresses();
    let setup = RingSetup {
        size,
        desc: RingAddr::Iova(addresses.desc),
        avail: RingAddr::Iova(addresses.avail),
        used: RingAddr::Iova(addresses.used),
        packed,
        in_order,
        event_idx,
        indirect: true,
        state: QueueState::fresh(packed),
        log: None,
    };
    let mut device = Ring::new(setup).unwrap();
    let mut lane = access.lane();

    let mut held = VecDeque::new();
    for shape in shapes.iter().cycle().take(usize::from(size)) {
        let count = u64::from(shape % 4 + 1);
        let piece =
            |n| Piece { at: Iova(buffer.0 + 64 * n), len: 64, device_writes: n >= u64::from(shape >> 4) };
        // A driver that keeps the order has chains in all descriptors: what is left is filled with short ones.
        let pieces: Vec<Piece> = (0..count).map(piece).collect();
        match driver.prepare(&pieces).or_else(|_| driver.prepare(&pieces[..1])) {
            Ok(head) => held.push_back(head),
            Err(_) => break,
        }
    }
    let mut in_flight = Vec::new();
    for &(offer, max, all, pick) in steps {
        let offered: Vec<u16> = held.drain(..usize::from(offer).min(held.len())).collect();
        driver.offer_each(offered).unwrap();
        driver.publish();
        let mut completed = Vec::new();
        {
            let burst = lane.enter();
            let mut vring = device.begin(&burst).unwrap();
            let mut taken = Vec::new();
            vring
                .take(max.into(), |chain| {
                    taken.push((chain.head, chain.writable.iter().map(|buffer| buffer.len).sum::<u32>()));
                    Ok(())
                })
                .unwrap();
            if in_order && all {
                vring.complete_all().unwrap();
                completed.extend(taken.iter().map(|(head, _)| (*head, 0)));
            } else {
                in_flight.extend(taken);
                let left = if all || in_order { 0 } else { in_flight.len() / 2 };
                while in_flight.len() > left {
                    let at = if in_order { 0 } else { pick.index(in_flight.len()) };
                    let (head, room): (u16, u32) = in_flight.remove(at);
                    let len = room.min(1 + completed.len() as u32);
                    vring.complete(head, len).unwrap();
                    completed.push((head, len));
                }
            }
            vring.publish().unwrap();
        }
        let count = driver.ready().unwrap();
        let mut seen = Vec::new();
        driver.pop_each(count, |used| seen.push((used.head, used.len))).unwrap();
        held.extend(seen.iter().map(|used| used.0));
        if in_order && all {
            // Of chains that one entry spoke for nobody said a length.
            let heads = |uses: &[(u16, u32)]| uses.iter().map(|used| used.0).collect::<Vec<_>>();
            assert_eq!(heads(&seen), heads(&completed));
        } else {
            assert_eq!(seen, completed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn driver_sees_what_the_device_completes_in_both_formats(
        size in 1u16..40, size_log in 0u32..6, event_idx: bool, indirect: bool, in_order: bool,
        shapes in prop::collection::vec(any::<u8>(), 1..10),
        steps in prop::collection::vec((0u8..20, 1u8..20, any::<bool>(), any::<prop::sample::Index>()), 1..80),
    ) {
        let options = |size| RingOptions { size, event_idx, indirect, in_order };
        both_ends::<SplitQueue>(options(1 << size_log), false, &shapes, &steps);
        both_ends::<PackedQueue>(options(size), true, &shapes, &steps);
    }
}
