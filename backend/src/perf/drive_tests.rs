use super::*;
use crate::driver::net::{HEADER_LEN, QueueOptions};
use crate::driver::{GuestMemory, MemoryOptions, RawRing};
use mdev_dma::Iova;
use mdev_protocol::virtio::split::UsedElem;

const SIZE: u16 = 64;

/// A pair and the naivest device behind it.
struct Rig {
    memory: GuestMemory,
    pair: Pair,
    rx: Position,
    tx: Position,
}

#[derive(Default)]
struct Position {
    taken: u16,
    used: u16,
}

impl Position {
    /// Takes a head and its buffer's address, if there is one.
    fn take(&mut self, ring: &RawRing<'_>) -> Option<(u16, Iova, u32)> {
        if ring.avail_index() == self.taken {
            return None;
        }
        let head = ring.avail_entry(self.taken);
        self.taken = self.taken.wrapping_add(1);
        let desc = ring.desc(head);
        Some((head, Iova(desc.addr), desc.len))
    }

    fn complete(&mut self, ring: &RawRing<'_>, head: u16, len: u32) {
        ring.set_used_entry(self.used, UsedElem { id: head.into(), len });
        self.used = self.used.wrapping_add(1);
        ring.set_used_index(self.used);
    }
}

impl Rig {
    fn new(direction: Direction, size: PacketSize) -> Self {
        let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
        let rx = RxQueue::new(&mut memory, QueueOptions::plain(SIZE)).unwrap();
        let tx = TxQueue::new(&mut memory, QueueOptions::plain(SIZE)).unwrap();
        let mut pair = Pair::new(rx, tx, direction, size);
        pair.set_care(Care::Bytes);
        pair.prime().unwrap();
        Rig { memory, pair, rx: Position::default(), tx: Position::default() }
    }

    /// Takes the next sent packet.
    fn sent(&mut self) -> Option<Vec<u8>> {
        let ring = self.pair.queues().1.queue.raw();
        let (head, at, len) = self.tx.take(&ring)?;
        let mut bytes = vec![0; len as usize];
        self.memory.slice(at, len.into()).unwrap().copy_to(&mut bytes);
        self.tx.complete(&ring, head, 0);
        Some(bytes.split_off(HEADER_LEN))
    }

    /// Delivers a frame; false if there is no buffer.
    fn deliver(&mut self, frame: &[u8]) -> bool {
        let ring = self.pair.queues().0.queue.raw();
        let Some((head, at, _)) = self.rx.take(&ring) else { return false };
        let mut bytes = vec![0; HEADER_LEN];
        bytes[10] = 1;
        bytes.extend_from_slice(frame);
        self.memory.slice(at, bytes.len() as u64).unwrap().copy_from(&bytes);
        self.rx.complete(&ring, head, bytes.len() as u32);
        true
    }

    /// Brings back what was sent, changed by `change`, which returns what to deliver instead.
    fn loop_back(&mut self, mut change: impl FnMut(u64, Vec<u8>) -> Vec<Vec<u8>>) {
        let mut number = 0;
        while let Some(frame) = self.sent() {
            for frame in change(number, frame) {
                assert!(self.deliver(&frame), "never more under way than there are buffers");
            }
            number += 1;
        }
    }
}

#[test]
fn looped_packets_of_all_sizes_arrive_whole_and_in_order() {
    for size in [PacketSize::Bytes(60), PacketSize::Bytes(1518), PacketSize::Imix] {
        let mut rig = Rig::new(Direction::Loop, size);
        for _ in 0..1000 {
            rig.pair.poll(true).unwrap();
            rig.loop_back(|_, frame| vec![frame]);
        }
        rig.pair.poll(false).unwrap();
        let counts = rig.pair.take();
        assert_eq!((counts.lost, counts.misordered, counts.corrupt), (0, 0, 0), "{size}");
        assert_eq!(counts.packets, 1000 * u64::from(BURST));
        assert_eq!(counts.bytes, (0..counts.packets).map(|number| u64::from(size.of(number))).sum::<u64>());
        assert_eq!(rig.pair.in_flight(), 0);
        assert!(counts.latencies.count() > 0);
    }
}

#[test]
fn lost_repeated_swapped_and_changed_packets_are_counted() {
    let mut rig = Rig::new(Direction::Loop, PacketSize::Bytes(64));
    rig.pair.poll(true).unwrap();
    let mut kept = None;
    rig.loop_back(|number, mut frame| match number {
        3 => vec![],
        5 => vec![frame.clone(), frame],
        7 => {
            kept = Some(frame);
            vec![]
        }
        8 => vec![frame, kept.take().unwrap()],
        10 => {
            frame[60] ^= 1;
            vec![frame]
        }
        12 => {
            frame.pop();
            vec![frame]
        }
        _ => vec![frame],
    });
    rig.pair.poll(false).unwrap();
    let counts = rig.pair.take();
    // Packet 7 counts as lost when 8 comes first, and as misordered when it comes after all.
    assert_eq!((counts.lost, counts.misordered, counts.corrupt), (2, 2, 2));
    assert_eq!(rig.pair.in_flight(), 0);
}

#[test]
fn packets_that_never_come_back_are_lost_when_given_up() {
    let mut rig = Rig::new(Direction::Loop, PacketSize::Bytes(64));
    for _ in 0..10 {
        rig.pair.poll(true).unwrap();
        rig.loop_back(|_, _| vec![]);
    }
    assert_eq!(rig.pair.in_flight(), u64::from(SIZE), "no more are sent than there are buffers");
    rig.pair.give_up_in_flight();
    assert_eq!((rig.pair.in_flight(), rig.pair.take().lost), (0, u64::from(SIZE)));
    rig.pair.poll(true).unwrap();
    rig.loop_back(|_, frame| vec![frame]);
    rig.pair.poll(false).unwrap();
    assert_eq!(rig.pair.take().packets, u64::from(BURST));
}

#[test]
fn packets_to_the_device_count_when_it_has_used_them() {
    let mut rig = Rig::new(Direction::To, PacketSize::Bytes(64));
    rig.pair.poll(true).unwrap();
    assert_eq!(rig.pair.take().packets, 0);
    while let Some(frame) = rig.sent() {
        assert!(frames::is_numbered(&frame, 64));
    }
    assert_eq!(rig.pair.poll(true).unwrap().packets, BURST);
}

#[test]
fn generated_packets_may_begin_at_any_number_and_gaps_are_lost() {
    let mut rig = Rig::new(Direction::From, PacketSize::Bytes(64));
    // Frames of our own have the generator's headers.
    let mut source = Rig::new(Direction::To, PacketSize::Bytes(64));
    source.pair.poll(true).unwrap();
    let frames: Vec<_> = std::iter::from_fn(|| source.sent()).skip(5).collect();
    for (number, frame) in frames.iter().enumerate() {
        if number != 4 {
            assert!(rig.deliver(frame));
        }
    }
    rig.pair.poll(true).unwrap();
    let counts = rig.pair.take();
    assert_eq!((counts.lost, counts.misordered, counts.corrupt), (1, 0, 0));
    assert!(rig.deliver(&frames[0][..40]), "too short for a number");
    rig.pair.poll(true).unwrap();
    assert_eq!(rig.pair.take().corrupt, 1);
}
