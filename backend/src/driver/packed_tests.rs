use super::*;
use crate::driver::MemoryOptions;
use crate::driver::model_tests::{self as model, Taken, agrees, piece, steps};
use mdev_protocol::virtio::packed::{EventSuppress, VIRTQ_DESC_F_AVAIL, VIRTQ_DESC_F_USED, used_flags};
use proptest::prelude::*;

fn options(size: u16) -> RingOptions {
    RingOptions::plain(size)
}

fn queue(options: RingOptions) -> (GuestMemory, PackedQueue) {
    let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
    let queue = PackedQueue::new(&mut memory, options).unwrap();
    (memory, queue)
}

/// The naivest device: counts slots and laps from the beginning, and computes wrap counters from them.
#[derive(Default)]
struct NaiveDevice {
    taken: u64,
    used: u64,
}

impl NaiveDevice {
    /// The slot of the `count`-th descriptor ever, and whether its lap is an even one.
    fn place(count: u64, size: u16) -> (u16, bool) {
        ((count % u64::from(size)) as u16, (count / u64::from(size)).is_multiple_of(2))
    }

    fn take(&mut self, memory: &GuestMemory, ring: &RawPacked<'_>) -> Option<Taken> {
        let (first, lap) = Self::place(self.taken, ring.size());
        let expected = if lap { VIRTQ_DESC_F_AVAIL } else { VIRTQ_DESC_F_USED };
        let both = VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED;
        if ring.desc(first).flags & both != expected {
            return None;
        }
        let read = |desc: Desc| piece(desc.addr, desc.len, desc.flags & VIRTQ_DESC_F_WRITE != 0);
        let (mut pieces, mut slots) = (Vec::new(), 0);
        loop {
            let (slot, lap) = Self::place(self.taken, ring.size());
            let desc = ring.desc(slot);
            let expected = if lap { VIRTQ_DESC_F_AVAIL } else { VIRTQ_DESC_F_USED };
            assert_eq!(
                desc.flags & both,
                expected,
                "all of a chain is available when its first descriptor is"
            );
            self.taken += 1;
            slots += 1;
            if desc.flags & VIRTQ_DESC_F_INDIRECT != 0 {
                assert_eq!(desc.flags & VIRTQ_DESC_F_NEXT, 0);
                let table = memory.slice(Iova(desc.addr), desc.len.into()).unwrap();
                let entries = desc.len as usize / DESC_LEN;
                pieces.extend((0..entries).map(|entry| read(table.read(entry * DESC_LEN).unwrap())));
            } else {
                pieces.push(read(desc));
            }
            if desc.flags & VIRTQ_DESC_F_NEXT == 0 {
                return Some(Taken { head: desc.id, slots, pieces });
            }
        }
    }

    /// Uses a chain, and says nothing of those that were `skipped` before it.
    fn complete(&mut self, ring: &RawPacked<'_>, skipped: &[Taken], taken: &Taken, len: u32) {
        let (slot, lap) = Self::place(self.used, ring.size());
        let written = if len > 0 { VIRTQ_DESC_F_WRITE } else { 0 };
        ring.set_used(slot, Desc { addr: 0, len, id: taken.head, flags: used_flags(lap) | written });
        let slots: u16 = skipped.iter().chain([taken]).map(|chain| chain.slots).sum();
        self.used += u64::from(slots);
    }
}

#[test]
fn ring_size_out_of_range_is_refused_and_an_odd_one_is_not() {
    let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
    for size in [0, 32_769, u16::MAX] {
        assert!(matches!(PackedQueue::new(&mut memory, options(size)), Err(DriverError::Size(_))));
    }
    for size in [1, 3, 100] {
        assert!(PackedQueue::new(&mut memory, options(size)).is_ok());
    }
}

#[test]
fn chain_is_seen_by_the_device_after_publish_only() {
    let (memory, mut queue) = queue(options(8));
    let mut device = NaiveDevice::default();
    let chains = [vec![piece(4096, 10, false), piece(8192, 20, true)], vec![piece(0, 5, true)]];
    let heads: Vec<u16> = chains.iter().map(|chain| queue.prepare(chain).unwrap()).collect();
    queue.offer_each(heads.clone()).unwrap();
    assert_eq!(device.take(&memory, &queue.raw()), None);
    assert!(queue.publish(), "a device that says nothing wants kicks");
    assert!(!queue.publish(), "nothing new");
    for (head, chain) in heads.iter().zip(&chains) {
        let taken = device.take(&memory, &queue.raw()).unwrap();
        assert_eq!((taken.head, &taken.pieces), (*head, chain));
    }
    assert_eq!(device.take(&memory, &queue.raw()), None);
}

#[test]
fn chain_cannot_be_offered_twice_nor_touched_before_it_was_taken_back() {
    let (_memory, mut queue) = queue(options(4));
    let head = queue.prepare(&[piece(0, 1, false)]).unwrap();
    queue.offer_each([head]).unwrap();
    queue.publish();
    let held = |queue: &mut PackedQueue| {
        queue.offer_each([head]).is_ok() || queue.release(head).is_ok() || queue.resize_last(head, 2).is_ok()
    };
    assert!(!held(&mut queue));
    queue.raw().set_used(0, Desc { id: head, flags: used_flags(true), ..Desc::default() });
    assert_eq!(queue.ready().unwrap(), 1);
    assert!(!held(&mut queue), "used, but not taken back yet");
    queue.pop_each(1, |_| ()).unwrap();
    assert!(held(&mut queue));
    assert!(matches!(queue.offer_each([9]), Err(DriverError::NotHeld(9))));
}

#[test]
fn chain_longer_than_free_slots_is_refused_and_takes_none() {
    let (_memory, mut queue) = queue(options(4));
    let long = [piece(0, 1, false); 5];
    assert!(matches!(queue.prepare(&long), Err(DriverError::NoDescriptors { pieces: 5, free: 4 })));
    assert!(matches!(queue.prepare(&[]), Err(DriverError::NoDescriptors { .. })));
    let head = queue.prepare(&long[..4]).unwrap();
    assert_eq!(queue.next_head(), None);
    queue.release(head).unwrap();
    assert!(queue.prepare(&long[..4]).is_ok());
}

#[test]
fn indirect_chain_takes_one_slot_and_is_resized_in_its_table() {
    let (memory, mut queue) = queue(RingOptions { indirect: true, ..options(3) });
    let heads: Vec<u16> = (0..3)
        .map(|number| queue.prepare(&[piece(number, 12, true), piece(number + 64, 100, true)]).unwrap())
        .collect();
    queue.resize_last(heads[1], 7).unwrap();
    queue.offer_each(heads).unwrap();
    queue.publish();
    let mut device = NaiveDevice::default();
    let lens: Vec<u32> = (0..3).map(|_| device.take(&memory, &queue.raw()).unwrap().pieces[1].len).collect();
    assert_eq!(lens, [100, 7, 100]);
    assert!(queue.prepare(&[piece(0, 1, true)]).is_err());
}

#[test]
fn used_descriptor_of_a_chain_that_is_not_out_is_an_error() {
    for id in [1, 7, 8, u16::MAX] {
        let (_memory, mut queue) = queue(options(8));
        let head = queue.prepare(&[piece(0, 1, false)]).unwrap();
        assert_eq!(head, 0);
        queue.offer_each([head]).unwrap();
        queue.publish();
        queue.raw().set_used(0, Desc { id, flags: used_flags(true), ..Desc::default() });
        assert!(matches!(queue.ready(), Err(DriverError::UsedTwice(seen)) if seen == u32::from(id)));
    }
}

#[test]
fn descriptor_used_where_nothing_is_out_is_an_error() {
    let (_memory, mut queue) = queue(options(8));
    queue.raw().set_used(0, Desc { flags: used_flags(true), ..Desc::default() });
    assert!(matches!(queue.ready(), Err(DriverError::UsedTwice(0))));
}

#[test]
fn length_beyond_what_the_device_may_write_is_an_error_and_means_nothing_without_the_flag() {
    for (device_writes, flag, len, expected) in [
        (true, VIRTQ_DESC_F_WRITE, 100, Some(100)),
        (true, VIRTQ_DESC_F_WRITE, 101, None),
        (false, VIRTQ_DESC_F_WRITE, 1, None),
        (true, 0, u32::MAX, Some(0)),
    ] {
        let (_memory, mut queue) = queue(options(8));
        let head = queue.prepare(&[piece(0, 100, device_writes)]).unwrap();
        queue.offer_each([head]).unwrap();
        queue.publish();
        queue.raw().set_used(0, Desc { addr: 0, len, id: head, flags: used_flags(true) | flag });
        let mut seen = None;
        match queue.ready() {
            Ok(count) => queue.pop_each(count, |used| seen = Some(used.len)).unwrap(),
            Err(error) => assert!(matches!(error, DriverError::UsedLength { .. }), "{error}"),
        }
        assert_eq!(seen, expected, "{len} bytes");
    }
}

#[test]
fn kick_is_wanted_as_the_device_says_by_flag_or_position() {
    let (_memory, mut queue) = queue(RingOptions { event_idx: true, ..options(4) });
    let heads: Vec<u16> = (0..4).map(|_| queue.prepare(&[piece(0, 1, false)]).unwrap()).collect();
    let say = |queue: &PackedQueue, desc: Position, flags| {
        queue.raw().set_device_event(EventSuppress { desc: desc.word(), flags });
    };
    let publish = |queue: &mut PackedQueue, head: u16| {
        queue.offer_each([head]).unwrap();
        queue.publish()
    };
    say(&queue, Position::START, RING_EVENT_FLAGS_DISABLE);
    assert!(!publish(&mut queue, heads[0]));
    say(&queue, Position { slot: 2, wrap: true }, RING_EVENT_FLAGS_DESC);
    assert!(!publish(&mut queue, heads[1]), "slot 1 is not slot 2");
    assert!(publish(&mut queue, heads[2]));
    assert!(!publish(&mut queue, heads[3]));
}

#[test]
fn calls_are_unwanted_at_first_and_wanted_on_request() {
    let (_memory, mut queue) = queue(options(8));
    assert_eq!(queue.raw().driver_event().flags, RING_EVENT_FLAGS_DISABLE);
    queue.want_calls(true);
    assert_eq!(queue.raw().driver_event().flags, RING_EVENT_FLAGS_ENABLE);
    let (_memory, mut queue) = self::queue(RingOptions { event_idx: true, ..options(8) });
    queue.want_calls(true);
    let event = queue.raw().driver_event();
    assert_eq!((event.flags, event.desc), (RING_EVENT_FLAGS_DESC, 0x8000));
}

#[test]
fn reset_returns_every_chain_and_starts_at_the_first_slot() {
    let (memory, mut queue) = queue(options(3));
    let heads: Vec<u16> = (0..3).map(|_| queue.prepare(&[piece(0, 1, false)]).unwrap()).collect();
    queue.offer_each(heads.clone()).unwrap();
    queue.publish();
    let mut device = NaiveDevice::default();
    let taken = device.take(&memory, &queue.raw()).unwrap();
    device.complete(&queue.raw(), &[], &taken, 0);
    assert_eq!(queue.ready().unwrap(), 1);
    assert_eq!(queue.base(), 0x8001_8001);
    queue.reset();
    assert_eq!((queue.base(), queue.outstanding(), queue.ready().unwrap()), (0x8000_8000, 0, 0));
    assert_eq!(queue.held_heads(), heads);
    queue.offer_each(heads).unwrap();
    queue.publish();
    assert!(NaiveDevice::default().take(&memory, &queue.raw()).is_some());
}

impl model::NaiveDevice<PackedQueue> for NaiveDevice {
    fn take(&mut self, memory: &GuestMemory, queue: &PackedQueue) -> Option<Taken> {
        self.take(memory, &queue.raw())
    }

    fn complete(&mut self, queue: &PackedQueue, skipped: &[Taken], chain: &Taken, len: u32) {
        self.complete(&queue.raw(), skipped, chain, len);
    }
}

proptest! {
    /// Also at sizes that are no powers of two, and in batches.
    #[test]
    fn ring_agrees_with_a_naive_model(
        size in 1u16..12, indirect: bool, in_order: bool, script in prop::collection::vec(steps(), 1..600)
    ) {
        agrees::<PackedQueue, NaiveDevice>(RingOptions { indirect, in_order, ..options(size) }, script)?;
    }
}

#[test]
fn every_length_of_chain_wraps_at_every_position() {
    for size in 1..=9u16 {
        for length in 1..=size {
            let (memory, mut queue) = queue(options(size));
            let mut device = NaiveDevice::default();
            let chain: Vec<Piece> = (0..length).map(|at| piece(at.into(), 1, true)).collect();
            let head = queue.prepare(&chain).unwrap();
            for round in 0..u32::from(size) * 4 {
                queue.offer_each([head]).unwrap();
                queue.publish();
                let taken = device.take(&memory, &queue.raw()).unwrap();
                assert_eq!(taken.pieces, chain);
                let len = round % (u32::from(length) + 1);
                device.complete(&queue.raw(), &[], &taken, len);
                assert_eq!(queue.ready().unwrap(), 1);
                queue.pop_each(1, |used| assert_eq!(used, Used { head, len })).unwrap();
            }
        }
    }
}
