use super::*;
use crate::driver::model_tests::{self as model, Taken, agrees, piece, steps};
use crate::driver::{MemoryError, MemoryOptions};
use mdev_protocol::virtio::split::UsedElem;
use mdev_protocol::virtio::split::{VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE};
use proptest::prelude::*;
use std::collections::VecDeque;

fn queue(options: RingOptions) -> (GuestMemory, SplitQueue) {
    let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
    let queue = SplitQueue::new(&mut memory, options).unwrap();
    (memory, queue)
}

/// The naivest device: takes heads one by one and uses them with a length of its choice.
#[derive(Default)]
struct NaiveDevice {
    taken: u16,
    used: u16,
}

impl NaiveDevice {
    fn take(&mut self, ring: &RawRing<'_>) -> Option<u16> {
        if ring.avail_index() == self.taken {
            return None;
        }
        let head = ring.avail_entry(self.taken);
        self.taken = self.taken.wrapping_add(1);
        Some(head)
    }

    fn complete(&mut self, ring: &RawRing<'_>, head: u16, len: u32) {
        ring.set_used_entry(self.used, UsedElem { id: head.into(), len });
        self.used = self.used.wrapping_add(1);
        ring.set_used_index(self.used);
    }
}

/// The pieces of a chain as a device reads them.
fn walk(memory: &GuestMemory, ring: &RawRing<'_>, head: u16) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let first = ring.desc(head);
    let read = |place: u16| {
        if first.flags & VIRTQ_DESC_F_INDIRECT == 0 {
            return ring.desc(place);
        }
        let table = memory.slice(Iova(first.addr), first.len.into()).unwrap();
        table.read(usize::from(place) * size_of::<Desc>()).unwrap()
    };
    let mut place = if first.flags & VIRTQ_DESC_F_INDIRECT == 0 { head } else { 0 };
    loop {
        let desc = read(place);
        pieces.push(piece(desc.addr, desc.len, desc.flags & VIRTQ_DESC_F_WRITE != 0));
        if desc.flags & VIRTQ_DESC_F_NEXT == 0 {
            return pieces;
        }
        place = desc.next;
    }
}

#[test]
fn ring_size_that_is_no_power_of_two_is_refused() {
    let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
    for size in [0, 3, 100, 40_000] {
        assert!(matches!(SplitQueue::new(&mut memory, RingOptions::plain(size)), Err(DriverError::Size(_))));
    }
}

#[test]
fn ring_that_does_not_fit_into_memory_is_refused() {
    let mut memory = GuestMemory::new(MemoryOptions { size: 4096, ..Default::default() }).unwrap();
    let result = SplitQueue::new(&mut memory, RingOptions::plain(1024));
    assert!(matches!(result, Err(DriverError::Memory(MemoryError::Full(_)))));
}

#[test]
fn chain_is_seen_by_the_device_after_publish_only() {
    let (memory, mut queue) = queue(RingOptions::plain(8));
    let chain = [piece(4096, 10, false), piece(8192, 20, true)];
    let head = queue.prepare(&chain).unwrap();
    queue.offer(head).unwrap();
    assert_eq!(queue.raw().avail_index(), 0);
    assert!(queue.publish(), "a device that says nothing wants kicks");
    assert!(!queue.publish(), "nothing new");
    assert_eq!((queue.raw().avail_index(), queue.raw().avail_entry(0)), (1, head));
    assert_eq!(walk(&memory, &queue.raw(), head), chain);
}

#[test]
fn chain_cannot_be_offered_twice_nor_touched_while_out() {
    let (_memory, mut queue) = queue(RingOptions::plain(4));
    let head = queue.prepare(&[piece(0, 1, false)]).unwrap();
    queue.offer(head).unwrap();
    assert!(matches!(queue.offer(head), Err(DriverError::NotHeld(_))));
    assert!(matches!(queue.release(head), Err(DriverError::NotHeld(_))));
    assert!(matches!(queue.resize_last(head, 2), Err(DriverError::NotHeld(_))));
    assert!(matches!(queue.offer(9), Err(DriverError::NotHeld(9))));
}

#[test]
fn chain_longer_than_free_descriptors_is_refused_and_takes_none() {
    let (_memory, mut queue) = queue(RingOptions::plain(4));
    let long = [piece(0, 1, false); 5];
    assert!(matches!(queue.prepare(&long), Err(DriverError::NoDescriptors { pieces: 5, free: 4 })));
    assert!(matches!(queue.prepare(&[]), Err(DriverError::NoDescriptors { .. })));
    let head = queue.prepare(&long[..4]).unwrap();
    assert_eq!(queue.next_head(), None);
    queue.release(head).unwrap();
    assert!(queue.prepare(&long[..4]).is_ok());
}

#[test]
fn indirect_chain_takes_one_descriptor_and_is_resized_in_its_table() {
    let (memory, mut queue) = queue(RingOptions { indirect: true, ..RingOptions::plain(4) });
    let heads: Vec<u16> = (0..4)
        .map(|number| queue.prepare(&[piece(number, 12, true), piece(number + 64, 100, true)]).unwrap())
        .collect();
    queue.resize_last(heads[2], 7).unwrap();
    assert_eq!(walk(&memory, &queue.raw(), heads[2]), [piece(2, 12, true), piece(66, 7, true)]);
    assert_eq!(walk(&memory, &queue.raw(), heads[3]), [piece(3, 12, true), piece(67, 100, true)]);
    assert!(queue.prepare(&[piece(0, 1, true)]).is_err());
}

#[test]
fn used_index_beyond_outstanding_chains_is_an_error() {
    let (_memory, mut queue) = queue(RingOptions::plain(8));
    let head = queue.prepare(&[piece(0, 1, false)]).unwrap();
    queue.offer(head).unwrap();
    queue.publish();
    queue.raw().set_used_index(2);
    assert!(matches!(queue.ready(), Err(DriverError::UsedIndexJump { used: 2, outstanding: 1 })));
}

#[test]
fn used_entry_of_a_chain_that_is_not_out_is_an_error() {
    for id in [1, 8, 65_536, u32::MAX] {
        let (_memory, mut queue) = queue(RingOptions::plain(8));
        let head = queue.prepare(&[piece(0, 1, false)]).unwrap();
        assert_eq!(head, 0);
        queue.offer(head).unwrap();
        queue.publish();
        queue.raw().set_used_entry(0, UsedElem { id, len: 0 });
        queue.raw().set_used_index(1);
        assert_eq!(queue.ready().unwrap(), 1);
        assert!(matches!(queue.pop(), Err(DriverError::UsedTwice(seen)) if seen == id));
    }
}

#[test]
fn kick_is_wanted_as_the_device_says_by_flag_or_event_index() {
    let (_memory, mut queue) = queue(RingOptions::plain(8));
    queue.raw().set_used_flags(VIRTQ_USED_F_NO_NOTIFY);
    let head = queue.prepare(&[piece(0, 1, false)]).unwrap();
    queue.offer(head).unwrap();
    assert!(!queue.publish());

    let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
    let mut queue =
        SplitQueue::new(&mut memory, RingOptions { event_idx: true, ..RingOptions::plain(8) }).unwrap();
    let heads: Vec<u16> = (0..3).map(|_| queue.prepare(&[piece(0, 1, false)]).unwrap()).collect();
    let place = memory.slice(queue.addresses().used, used_len(8, true) as u64).unwrap();
    let set_event = |event: u16| place.store_u16(used_entry(8), event, Ordering::Relaxed).unwrap();
    set_event(1);
    queue.offer(heads[0]).unwrap();
    assert!(!queue.publish(), "index 0 to 1 does not pass 1");
    queue.offer(heads[1]).unwrap();
    assert!(queue.publish(), "index 1 to 2 passes 1");
    queue.offer(heads[2]).unwrap();
    assert!(!queue.publish());
}

#[test]
fn calls_are_unwanted_at_first_and_wanted_on_request() {
    let (_memory, mut queue) = queue(RingOptions::plain(8));
    let flags = |queue: &SplitQueue| queue.avail.slice().unwrap().load_u16(0, Ordering::Relaxed).unwrap();
    assert_eq!(flags(&queue), VIRTQ_AVAIL_F_NO_INTERRUPT);
    queue.want_calls(true);
    assert_eq!(flags(&queue), 0);
}

#[test]
fn reset_returns_every_chain_and_starts_at_zero() {
    let (_memory, mut queue) = queue(RingOptions::plain(8));
    let head = queue.prepare(&[piece(0, 1, false)]).unwrap();
    queue.offer(head).unwrap();
    queue.publish();
    queue.reset();
    assert_eq!((queue.base(), queue.outstanding(), queue.raw().avail_index()), (0, 0, 0));
    assert_eq!(queue.held_heads().collect::<Vec<_>>(), [head]);
    assert!(queue.offer(head).is_ok());
}

impl model::NaiveDevice<SplitQueue> for NaiveDevice {
    fn take(&mut self, memory: &GuestMemory, queue: &SplitQueue) -> Option<Taken> {
        let head = self.take(&queue.raw())?;
        Some(Taken { head, slots: 1, pieces: walk(memory, &queue.raw(), head) })
    }

    /// Batches, which only rings in order have, are played apart.
    fn complete(&mut self, queue: &SplitQueue, _: &[Taken], chain: &Taken, len: u32) {
        self.complete(&queue.raw(), chain.head, len);
    }
}

proptest! {
    #[test]
    fn ring_agrees_with_a_naive_model(
        log in 0u32..5, indirect: bool, script in prop::collection::vec(steps(), 1..600)
    ) {
        let options = RingOptions { indirect, ..RingOptions::plain(1 << log) };
        agrees::<SplitQueue, NaiveDevice>(options, script)?;
    }
}

#[test]
fn indices_wrap_at_two_to_the_sixteenth_without_a_trace() {
    let (_memory, mut queue) = queue(RingOptions::plain(2));
    let heads =
        [queue.prepare(&[piece(0, 1, false)]).unwrap(), queue.prepare(&[piece(8, 1, false)]).unwrap()];
    let mut device = NaiveDevice::default();
    for round in 0..70_000u32 {
        let head = heads[(round % 2) as usize];
        queue.offer(head).unwrap();
        queue.publish();
        let taken = device.take(&queue.raw()).unwrap();
        device.complete(&queue.raw(), taken, round);
        assert_eq!(queue.ready().unwrap(), 1);
        assert_eq!(queue.pop().unwrap(), Used { head, len: round });
    }
    assert_eq!(queue.base(), (70_000u32 % 65_536) as u16);
}

fn in_order(size: u16) -> (GuestMemory, SplitQueue, Vec<u16>) {
    let (memory, mut queue) = queue(RingOptions { in_order: true, ..RingOptions::plain(size) });
    let heads = (0..size).map(|at| queue.prepare(&[piece(at.into(), 10, at % 2 == 1)]).unwrap()).collect();
    (memory, queue, heads)
}

#[test]
fn chains_that_are_offered_out_of_ring_order_are_refused() {
    let (_memory, mut queue, heads) = in_order(4);
    assert!(matches!(queue.offer(heads[1]), Err(DriverError::OutOfOrder { head: 1, due: 0 })));
    queue.offer_each(heads[..2].iter().copied()).unwrap();
    assert!(matches!(queue.offer(heads[3]), Err(DriverError::OutOfOrder { head: 3, due: 2 })));
    queue.reset();
    assert!(queue.offer(heads[0]).is_ok());
}

#[test]
fn used_entry_that_names_what_is_not_out_or_lies_beyond_the_index_is_an_error_in_order() {
    for (id, index) in [(2, 3), (70_000, 1), (1, 1)] {
        let (_memory, mut queue, heads) = in_order(4);
        queue.offer_each(heads[..2].iter().copied()).unwrap();
        queue.publish();
        queue.raw().set_used_entry(0, UsedElem { id, len: 0 });
        queue.raw().set_used_index(index.min(2));
        let error = queue.pop().unwrap_err();
        match id {
            1 => assert!(matches!(error, DriverError::BatchBeyondIndex { head: 1, batch: 2, used: 1 })),
            _ => assert!(matches!(error, DriverError::UsedTwice(seen) if seen == id)),
        }
    }
}

proptest! {
    /// A device that uses chains in batches of its choice, with one entry each, against a queue of what must come back.
    #[test]
    fn batches_in_order_come_back_whole(
        script in prop::collection::vec((1usize..9, 1usize..9, 1u16..9, 0u32..11), 1..200)
    ) {
        let (_memory, mut queue, heads) = in_order(8);
        let (mut next, mut index) = (0usize, 0u16);
        let (mut out, mut used) = (VecDeque::new(), VecDeque::new());
        for (offer, batch, pop, len) in script {
            for _ in 0..offer.min(8 - usize::from(queue.outstanding())) {
                let head = heads[next % 8];
                next += 1;
                queue.offer(head).unwrap();
                out.push_back(head);
            }
            queue.publish();
            let batch: Vec<u16> = out.drain(..batch.min(out.len())).collect();
            if let Some((&last, before)) = batch.split_last() {
                queue.raw().set_used_entry(index, UsedElem { id: last.into(), len });
                index = index.wrapping_add(batch.len() as u16);
                queue.raw().set_used_index(index);
                used.extend(before.iter().map(|&head| Used { head, len: if head % 2 == 1 { 10 } else { 0 } }));
                used.push_back(Used { head: last, len });
            }
            let ready = queue.ready().unwrap();
            prop_assert_eq!(usize::from(ready), used.len());
            let mut seen = Vec::new();
            queue.pop_each(pop.min(ready), |each| seen.push(each)).unwrap();
            let expected: Vec<Used> = used.drain(..seen.len()).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
