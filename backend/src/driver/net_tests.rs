use super::*;
use crate::driver::{MemoryOptions, RawRing};
use mdev_protocol::virtio::split::{UsedElem, VIRTQ_DESC_F_NEXT};

fn rx(options: QueueOptions) -> (GuestMemory, RxQueue) {
    let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
    let queue = RxQueue::new(&mut memory, options).unwrap();
    (memory, queue)
}

/// Uses the buffer of available entry `slot` as a device that delivers `bytes`, which start with a header.
fn deliver(memory: &GuestMemory, ring: &RawRing<'_>, slot: u16, bytes: &[u8]) {
    let head = ring.avail_entry(slot);
    let desc = ring.desc(head);
    assert_eq!(desc.flags & VIRTQ_DESC_F_NEXT, 0);
    memory.slice(Iova(desc.addr), desc.len.into()).unwrap().copy_from(bytes);
    ring.set_used_entry(slot, UsedElem { id: head.into(), len: bytes.len() as u32 });
}

fn with_header(num_buffers: u16, frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    bytes[NetHeader::NUM_BUFFERS_OFFSET..].copy_from_slice(&num_buffers.to_le_bytes());
    bytes.extend_from_slice(frame);
    bytes
}

#[test]
fn received_packet_is_handed_out_and_its_buffer_offered_again() {
    let (memory, mut rx) = rx(QueueOptions::plain(4));
    assert_eq!(rx.offer_all().unwrap(), 4);
    rx.queue.publish();
    deliver(&memory, &rx.queue.raw(), 0, &with_header(1, b"frame"));
    rx.queue.raw().set_used_index(1);
    let mut seen = Vec::new();
    assert_eq!(rx.receive(8, |_, packet| seen.push(packet.to_vec())).unwrap(), 1);
    assert_eq!(seen, [b"frame"]);
    assert_eq!(rx.queue.outstanding(), 4);
    rx.queue.publish();
    assert_eq!(rx.queue.raw().avail_index(), 5);
}

#[test]
fn packet_over_three_buffers_is_joined_in_order() {
    let (memory, mut rx) = rx(QueueOptions::plain(8));
    rx.offer_all().unwrap();
    rx.queue.publish();
    deliver(&memory, &rx.queue.raw(), 0, &with_header(3, b"one "));
    deliver(&memory, &rx.queue.raw(), 1, b"two ");
    deliver(&memory, &rx.queue.raw(), 2, b"three");
    deliver(&memory, &rx.queue.raw(), 3, &with_header(1, b"next"));
    rx.queue.raw().set_used_index(4);
    let mut seen = Vec::new();
    assert_eq!(rx.receive(8, |_, packet| seen.push((packet.len(), packet.to_vec()))).unwrap(), 2);
    assert_eq!(seen, [(13, b"one two three".to_vec()), (4, b"next".to_vec())]);
    assert_eq!(rx.queue.outstanding(), 8);
}

#[test]
fn packet_whose_other_buffers_are_not_used_yet_is_an_error() {
    let (memory, mut rx) = rx(QueueOptions::plain(8));
    rx.offer_all().unwrap();
    rx.queue.publish();
    deliver(&memory, &rx.queue.raw(), 0, &with_header(3, b"one"));
    deliver(&memory, &rx.queue.raw(), 1, b"two");
    rx.queue.raw().set_used_index(2);
    let error = rx.receive(8, |_, _| ()).unwrap_err();
    assert!(matches!(error, DriverError::TornPacket { wanted: 3, used: 2 }), "{error}");
}

#[test]
fn used_length_below_a_header_or_above_the_buffer_is_an_error() {
    for len in [0, 11, 2049, u32::MAX] {
        let (_memory, mut rx) = rx(QueueOptions::plain(2));
        rx.offer_all().unwrap();
        rx.queue.publish();
        rx.queue.raw().set_used_entry(0, UsedElem { id: 0, len });
        rx.queue.raw().set_used_index(1);
        let error = rx.receive(8, |_, _| ()).unwrap_err();
        assert!(matches!(error, DriverError::UsedLength { capacity: 2048, .. }), "{error}");
    }
}

#[test]
fn sent_packet_is_described_with_its_length_and_comes_back() {
    for (layout, indirect) in [(Layout::Joined, false), (Layout::Split, false), (Layout::Split, true)] {
        let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
        let mut options = QueueOptions::plain(4);
        (options.layout, options.ring.indirect) = (layout, indirect);
        let mut tx = TxQueue::new(&mut memory, options).unwrap();
        assert_eq!(tx.idle(), if layout == Layout::Split && !indirect { 2 } else { 4 });
        let sent = tx.send(1, |_, frame| frame.copy_from(b"hello") as u32).unwrap();
        assert_eq!(sent, 1);
        tx.queue.publish();
        let ring = tx.queue.raw();
        let head = ring.avail_entry(0);
        let mut desc = ring.desc(head);
        if indirect {
            desc = memory.slice(Iova(desc.addr), 32).unwrap().read(16).unwrap();
        } else if layout == Layout::Split {
            desc = ring.desc(desc.next);
        }
        let skip = if layout == Layout::Joined { HEADER_LEN } else { 0 };
        assert_eq!(desc.len as usize, skip + 5);
        let mut bytes = [0; 5];
        memory.slice(Iova(desc.addr + skip as u64), 5).unwrap().copy_to(&mut bytes);
        assert_eq!(&bytes, b"hello");

        ring.set_used_entry(0, UsedElem { id: head.into(), len: 0 });
        ring.set_used_index(1);
        let mut back = Vec::new();
        assert_eq!(tx.reclaim(8, |head| back.push(head)).unwrap(), 1);
        assert_eq!(back, [head]);
    }
}

#[test]
fn sending_stops_when_no_buffer_is_idle() {
    let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
    let mut tx = TxQueue::new(&mut memory, QueueOptions::plain(4)).unwrap();
    assert_eq!(tx.send(10, |_, _| 60).unwrap(), 4);
    assert_eq!(tx.send(10, |_, _| 60).unwrap(), 0);
    tx.reset();
    assert_eq!(tx.idle(), 4);
}

#[test]
fn frame_longer_than_the_buffer_is_refused() {
    let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
    let mut tx = TxQueue::new(&mut memory, QueueOptions::plain(4)).unwrap();
    assert!(matches!(tx.send(1, |_, _| 2037), Err(DriverError::UsedLength { .. })));
    assert!(matches!(tx.send(1, |_, _| u32::MAX), Err(DriverError::UsedLength { .. })));
}
