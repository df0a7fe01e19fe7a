use super::*;
use crate::driver::{MemoryOptions, PackedQueue, RawRing};
use mdev_protocol::virtio::blk::VIRTIO_BLK_S_IOERR;
use mdev_protocol::virtio::split::{Desc, UsedElem, VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_WRITE};

fn options(requests: u16, indirect: bool) -> BlkQueueOptions {
    BlkQueueOptions { ring: RingOptions { indirect, ..RingOptions::plain(16) }, requests, capacity: 4096 }
}

fn queue(requests: u16, indirect: bool) -> (GuestMemory, BlkQueue) {
    let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
    let queue = BlkQueue::new(&mut memory, options(requests, indirect)).unwrap();
    (memory, queue)
}

/// The descriptors of the chain in available entry `slot`, and its head.
fn chain(memory: &GuestMemory, ring: &RawRing<'_>, slot: u16) -> (u16, Vec<Desc>) {
    let head = ring.avail_entry(slot);
    let mut desc = ring.desc(head);
    if desc.flags & VIRTQ_DESC_F_INDIRECT != 0 {
        let table = memory.slice(Iova(desc.addr), desc.len.into()).unwrap();
        let count = desc.len as usize / size_of::<Desc>();
        return (head, (0..count).map(|place| table.read(place * size_of::<Desc>()).unwrap()).collect());
    }
    let mut all = vec![desc];
    while desc.flags & mdev_protocol::virtio::split::VIRTQ_DESC_F_NEXT != 0 {
        desc = ring.desc(desc.next);
        all.push(desc);
    }
    (head, all)
}

fn header(memory: &GuestMemory, descs: &[Desc]) -> (u32, u64) {
    let header: BlkHeader = memory.slice(Iova(descs[0].addr), 16).unwrap().read(0).unwrap();
    (header.kind(), header.sector())
}

/// Ends the chain in available entry `slot` as a device does, as the `number`-th used entry.
fn end(memory: &GuestMemory, ring: &RawRing<'_>, slot: u16, number: u16, status: u8) {
    let (head, descs) = chain(memory, ring, slot);
    let last = descs.last().unwrap();
    memory.slice(Iova(last.addr), 1).unwrap().write(0, status).unwrap();
    ring.set_used_entry(number, UsedElem { id: head.into(), len: 1 });
    ring.set_used_index(number + 1);
}

fn reaped(queue: &mut BlkQueue) -> Vec<Done> {
    let mut done = Vec::new();
    queue.reap(100, |each, _| done.push(each)).unwrap();
    done
}

#[test]
fn each_kind_of_request_has_the_pieces_that_the_specification_says() {
    for indirect in [false, true] {
        let (memory, mut queue) = queue(1, indirect);
        let range = BlkRange::new(9, 2, 0);
        let kinds = [
            (Request::Read { sector: 5, len: 512 }, (VIRTIO_BLK_T_IN, 5), vec![(16, 0), (512, 2), (1, 2)]),
            (
                Request::Write { sector: 6, len: 4096 },
                (VIRTIO_BLK_T_OUT, 6),
                vec![(16, 0), (4096, 0), (1, 2)],
            ),
            (Request::Flush, (VIRTIO_BLK_T_FLUSH, 0), vec![(16, 0), (1, 2)]),
            (Request::Discard(range), (VIRTIO_BLK_T_DISCARD, 0), vec![(16, 0), (16, 0), (1, 2)]),
            (
                Request::WriteZeroes { sector: 7, sectors: 3, unmap: true },
                (VIRTIO_BLK_T_WRITE_ZEROES, 0),
                vec![(16, 0), (16, 0), (1, 2)],
            ),
            (Request::GetId, (VIRTIO_BLK_T_GET_ID, 0), vec![(16, 0), (20, 2), (1, 2)]),
            (Request::Unknown(99), (99, 0), vec![(16, 0), (1, 2)]),
            (Request::Read { sector: 1 << 40, len: 4096 }, (0, 1 << 40), vec![(16, 0), (4096, 2), (1, 2)]),
        ];
        for (number, (request, expected, pieces)) in kinds.into_iter().enumerate() {
            let slot = number as u16;
            assert_eq!(queue.submit_one(request).unwrap(), Some(0));
            assert!(queue.publish());
            let (_, descs) = chain(&memory, &queue.queue.raw(), slot);
            assert_eq!(header(&memory, &descs), expected, "{request:?}");
            let seen = |desc: &Desc| (desc.len, desc.flags & VIRTQ_DESC_F_WRITE);
            assert_eq!(descs.iter().map(seen).collect::<Vec<_>>(), pieces, "{request:?}");
            if let Request::WriteZeroes { .. } = request {
                let range: BlkRange = memory.slice(Iova(descs[1].addr), 16).unwrap().read(0).unwrap();
                assert_eq!((range.sector(), range.sectors(), range.flags()), (7, 3, 1));
            }
            end(&memory, &queue.queue.raw(), slot, slot, 0);
            assert_eq!(reaped(&mut queue), [Done { tag: 0, status: 0, written: 1 }]);
        }
    }
}

#[test]
fn requests_end_in_any_order_and_their_tags_go_round() {
    let (memory, mut queue) = queue(5, false);
    let mut tags = Vec::new();
    let submitted = queue.submit(9, |tag, data| {
        data.fill(tag as u8);
        tags.push(tag);
        Request::Write { sector: tag.into(), len: 512 }
    });
    assert_eq!((submitted.unwrap(), queue.idle(), queue.under_way()), (5, 0, 5));
    queue.publish();
    for (number, slot) in [3, 0, 4].into_iter().enumerate() {
        let status = if slot == 0 { VIRTIO_BLK_S_IOERR } else { 0 };
        end(&memory, &queue.queue.raw(), slot, number as u16, status);
    }
    let done = reaped(&mut queue);
    let seen: Vec<(u16, u8)> = done.iter().map(|done| (done.tag, done.status)).collect();
    assert_eq!(seen, [(tags[3], 0), (tags[0], VIRTIO_BLK_S_IOERR), (tags[4], 0)]);
    assert_eq!(queue.data(tags[3]).unwrap().read::<u8>(511), Some(tags[3] as u8));
    assert_eq!(queue.submit_one(Request::Flush).unwrap(), Some(tags[4]), "the warmest first");
    queue.publish();
    assert_eq!((queue.idle(), queue.under_way()), (2, 3));
}

#[test]
fn request_without_a_status_is_not_ok() {
    let (memory, mut queue) = queue(1, false);
    for number in 0..2 {
        queue.submit_one(Request::Read { sector: 0, len: 512 }).unwrap();
        queue.publish();
        let status = if number == 0 { 0 } else { UNANSWERED };
        end(&memory, &queue.queue.raw(), number, number, status);
        assert_eq!(reaped(&mut queue)[0].is_ok(), number == 0);
    }
}

#[test]
fn request_that_ends_twice_and_one_that_the_device_does_not_have_are_errors() {
    let (memory, mut queue) = queue(4, false);
    queue.submit(2, |_, _| Request::Flush).unwrap();
    queue.publish();
    end(&memory, &queue.queue.raw(), 0, 0, 0);
    assert_eq!(reaped(&mut queue).len(), 1);
    end(&memory, &queue.queue.raw(), 0, 1, 0);
    let error = queue.reap(100, |_, _| ()).unwrap_err();
    assert!(matches!(error, DriverError::UsedTwice(_)), "{error}");
}

#[test]
fn length_that_the_request_has_no_room_for_is_an_error() {
    let (memory, mut queue) = queue(1, false);
    queue.submit_one(Request::Read { sector: 0, len: 512 }).unwrap();
    queue.publish();
    end(&memory, &queue.queue.raw(), 0, 0, 0);
    let id = queue.queue.raw().avail_entry(0).into();
    queue.queue.raw().set_used_entry(0, UsedElem { id, len: 4098 });
    let error = queue.reap(1, |_, _| ()).unwrap_err();
    assert!(matches!(error, DriverError::UsedLength { len: 4098, .. }), "{error}");
}

#[test]
fn more_requests_than_descriptors_and_more_data_than_the_buffer_are_refused() {
    let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
    assert!(BlkQueue::<SplitQueue>::new(&mut memory, options(6, false)).is_err());
    assert!(BlkQueue::<SplitQueue>::new(&mut memory, options(16, true)).is_ok());
    assert_eq!((BlkQueueOptions::descriptors(5, false), BlkQueueOptions::descriptors(16, true)), (15, 16));
    let mut queue = BlkQueue::<SplitQueue>::new(&mut memory, options(1, false)).unwrap();
    let error = queue.submit_one(Request::Read { sector: 0, len: 4097 }).unwrap_err();
    assert!(matches!(error, DriverError::UsedLength { len: 4097, capacity: 4096 }), "{error}");
}

#[test]
fn memory_of_a_queue_is_enough_for_it_at_any_size() {
    for (requests, capacity, size, indirect) in
        [(1, 512, 4, false), (5, 4096, 16, false), (1000, 513, 1024, true), (16, 1 << 20, 64, false)]
    {
        let ring = RingOptions { indirect, ..RingOptions::plain(size) };
        let options = BlkQueueOptions { ring, requests, capacity };
        let region = || MemoryOptions { size: options.memory(), ..Default::default() };
        BlkQueue::<SplitQueue>::new(&mut GuestMemory::new(region()).unwrap(), options).unwrap();
        BlkQueue::<PackedQueue>::new(&mut GuestMemory::new(region()).unwrap(), options).unwrap();
    }
}

#[test]
fn reset_queue_has_all_tags_again() {
    let (memory, mut queue) = queue(3, false);
    queue.submit(2, |_, _| Request::Flush).unwrap();
    queue.publish();
    queue.reset();
    assert_eq!((queue.idle(), queue.under_way()), (3, 0));
    queue.submit_one(Request::Read { sector: 3, len: 512 }).unwrap();
    queue.publish();
    let (_, descs) = chain(&memory, &queue.queue.raw(), 0);
    assert_eq!(header(&memory, &descs), (VIRTIO_BLK_T_IN, 3));
}

#[test]
fn packed_ring_takes_requests_of_changing_forms() {
    for indirect in [false, true] {
        let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
        let mut queue = BlkQueue::<PackedQueue>::new(&mut memory, options(3, indirect)).unwrap();
        queue.submit_one(Request::Write { sector: 8, len: 512 }).unwrap();
        queue.submit_one(Request::Flush).unwrap();
        queue.publish();
        let ring = queue.queue.raw();
        let mut first = ring.desc(0);
        if indirect {
            first = memory.slice(Iova(first.addr), 48).unwrap().read(0).unwrap();
        }
        let header: BlkHeader = memory.slice(Iova(first.addr), 16).unwrap().read(0).unwrap();
        assert_eq!((header.kind(), header.sector()), (VIRTIO_BLK_T_OUT, 8));
        let flush = ring.desc(if indirect { 1 } else { 3 });
        assert_eq!(flush.len, if indirect { 32 } else { 16 });
    }
}
