//! Requests that are served at once.

use mdev_protocol::virtio::blk::{
    BlkHeader, BlkRange, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::super::*;
use super::config;
use super::rig::{Rig, SIZE};
use crate::driver::{PackedQueue, Piece, SplitQueue, Virtqueue};

fn both_ways<Q: Virtqueue>(packed: bool) {
    let mut rig = Rig::<Q>::new(packed, "mem,size=1M");
    rig.fill(0, 4096, 7);
    let (out, inn) = (rig.piece(0, 4096, false), rig.piece(8192, 8192, true));
    assert_eq!(rig.status_of(VIRTIO_BLK_T_OUT, 8, &[out]), (0, 1));
    assert_eq!(rig.status_of(VIRTIO_BLK_T_IN, 4, &[inn]), (0, 8193));
    let seen = rig.bytes(8192, 8192);
    let expected = [vec![0; 2048], vec![7; 4096], vec![0; 2048]].concat();
    assert!(seen == expected);
    assert_eq!(rig.status_of(VIRTIO_BLK_T_FLUSH, 0, &[]), (0, 1));
    let counters = rig.counters();
    assert_eq!((counters.packets, counters.bytes, counters.dropped()), (3, 12288, 0));
}

#[test]
fn what_is_written_is_read_again_in_both_formats() {
    both_ways::<SplitQueue>(false);
    both_ways::<PackedQueue>(true);
}

#[test]
fn last_sector_can_be_read_and_the_one_behind_it_cannot() {
    let mut rig = Rig::<SplitQueue>::new(false, "mem,size=1M");
    let one = [rig.piece(0, 512, true)];
    assert_eq!(rig.status_of(VIRTIO_BLK_T_IN, SIZE / 512 - 1, &one), (0, 513));
    assert_eq!(rig.status_of(VIRTIO_BLK_T_IN, SIZE / 512, &one).0, 1);
}

#[test]
fn null_store_leaves_what_the_guest_has() {
    let mut rig = Rig::<SplitQueue>::new(false, "null,size=1M");
    rig.fill(0, 4096, 9);
    let (out, inn) = (rig.piece(0, 4096, false), rig.piece(0, 4096, true));
    assert_eq!(rig.status_of(VIRTIO_BLK_T_OUT, 0, &[out]), (0, 1));
    assert_eq!(rig.status_of(VIRTIO_BLK_T_IN, 0, &[inn]), (0, 4097));
    assert!(rig.bytes(0, 4096).iter().all(|&byte| byte == 9));
}

#[test]
fn name_is_twenty_bytes_or_as_many_as_there_is_room_for() {
    let named = BlkConfig { serial: Some("serial-number".into()), ..config("null,size=1M") };
    let mut rig = Rig::<SplitQueue>::of(false, BlkDevice::new(named).unwrap(), u64::MAX);
    rig.fill(0, 64, 0xff);
    let split = [rig.piece(0, 6, true), rig.piece(100, 14, true)];
    assert_eq!(rig.status_of(VIRTIO_BLK_T_GET_ID, 0, &split), (0, 21));
    assert_eq!([rig.bytes(0, 6), rig.bytes(100, 14)].concat(), b"serial-number\0\0\0\0\0\0\0");
    let long = [rig.piece(200, 64, true)];
    rig.fill(200, 64, 0xff);
    assert_eq!(rig.status_of(VIRTIO_BLK_T_GET_ID, 0, &long).0, 0);
    assert_eq!(rig.bytes(219, 2), [0, 0xff]);
    assert_eq!(rig.status_of(VIRTIO_BLK_T_GET_ID, 0, &[]).0, 0);
}

#[test]
fn discarded_and_zeroed_sectors_read_as_zeros() {
    let mut rig = Rig::<SplitQueue>::new(false, "mem,size=1M");
    rig.fill(0, 65536, 5);
    let whole = rig.piece(0, 65536, false);
    assert_eq!(rig.status_of(VIRTIO_BLK_T_OUT, 0, &[whole]).0, 0);
    let ranges = [
        (VIRTIO_BLK_T_DISCARD, BlkRange::new(0, 8, 0)),
        (VIRTIO_BLK_T_WRITE_ZEROES, BlkRange::new(16, 1, 0)),
        (VIRTIO_BLK_T_WRITE_ZEROES, BlkRange::new(24, 8, 1)),
        (VIRTIO_BLK_T_DISCARD, BlkRange::new(40, 0, 0)),
    ];
    for (kind, range) in ranges {
        rig.data.range(100_000, 16).unwrap().copy_from(range.as_bytes());
        let piece = rig.piece(100_000, 16, false);
        assert_eq!(rig.status_of(kind, 0, &[piece]), (0, 1), "{range:?}");
    }
    let back = rig.piece(0, 65536, true);
    assert_eq!(rig.status_of(VIRTIO_BLK_T_IN, 0, &[back]).0, 0);
    for (sector, bytes) in rig.bytes(0, 65536).chunks(512).enumerate() {
        let zero = sector < 8 || sector == 16 || (24..32).contains(&sector);
        assert!(bytes.iter().all(|&byte| byte == if zero { 0 } else { 5 }), "sector {sector}");
    }
}

#[test]
fn burst_of_requests_is_answered_by_one_poll() {
    let mut rig = Rig::<SplitQueue>::new(false, "mem,size=1M");
    let data: Vec<Piece> = (0..20).map(|slot| rig.piece(slot * 512, 512, true)).collect();
    let asked: Vec<_> =
        (0..20).map(|slot| rig.ask(VIRTIO_BLK_T_IN, slot, &data[slot as usize..][..1])).collect();
    assert_eq!(rig.engine.poll(), 20);
    assert_eq!(rig.used(), asked.iter().map(|asked| (asked.head, 513)).collect::<Vec<_>>());
    assert!(asked.iter().all(|asked| rig.status(*asked) == 0));
    assert_eq!(rig.engine.poll(), 0);
}

#[test]
fn burst_ends_when_much_has_been_copied_and_goes_on_in_the_next() {
    let mut rig = Rig::<SplitQueue>::new(false, "mem,size=1M");
    let piece = rig.piece(0, 256 << 10, true);
    for _ in 0..10 {
        rig.ask(VIRTIO_BLK_T_IN, 0, &[piece]);
    }
    assert_eq!([rig.engine.poll(), rig.engine.poll(), rig.engine.poll(), rig.engine.poll()], [4, 4, 2, 0]);
    assert_eq!(rig.used().len(), 10);
}

/// Cuts `len` bytes from `at` on into pieces at these places.
fn cut(rig_at: u64, len: u32, cuts: &[u32], device_writes: bool) -> Vec<Piece> {
    let mut places: Vec<u32> = cuts.iter().map(|cut| cut % len).chain([0, len]).collect();
    places.sort_unstable();
    places.dedup();
    let piece = |pair: &[u32]| Piece {
        at: mdev_dma::Iova(rig_at + u64::from(pair[0])),
        len: pair[1] - pair[0],
        device_writes,
    };
    places.windows(2).map(piece).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn request_means_the_same_however_its_bytes_are_cut(
        cuts in proptest::collection::vec(any::<u32>(), 0..6),
        other_cuts in proptest::collection::vec(any::<u32>(), 0..6),
        sectors in 1..8u32,
        sector in 0..100u64,
    ) {
        let mut rig = Rig::<SplitQueue>::new(false, "mem,size=1M");
        let len = sectors * 512;
        // The header and the data are 16 + len bytes in a row, and so are data and status of the read.
        let (out, inn) = (0, 65536 + 3);
        let pattern: Vec<u8> = (0..len).map(|at| (at * 7 + sectors) as u8).collect();
        rig.data.range(out, 16).unwrap().copy_from(BlkHeader::new(VIRTIO_BLK_T_OUT, sector).as_bytes());
        rig.data.range(out + 16, len.into()).unwrap().copy_from(&pattern);
        let at = rig.data.at.0;
        let mut chain = cut(at + out, 16 + len, &cuts, false);
        chain.push(rig.piece(200_000, 1, true));
        rig.fill(200_000, 1, 0xff);
        rig.offer(&chain);
        rig.engine.poll();
        prop_assert_eq!(rig.used().len(), 1);
        prop_assert_eq!(rig.bytes(200_000, 1), vec![0]);

        rig.data.range(out, 16).unwrap().copy_from(BlkHeader::new(VIRTIO_BLK_T_IN, sector).as_bytes());
        let mut chain = cut(at + out, 16, &other_cuts, false);
        chain.extend(cut(at + inn, len + 1, &cuts, true));
        rig.fill(inn, u64::from(len) + 2, 0xff);
        rig.offer(&chain);
        rig.engine.poll();
        prop_assert_eq!(rig.used().iter().map(|(_, len)| *len).collect::<Vec<_>>(), vec![len + 1]);
        prop_assert!(rig.bytes(inn, len.into()) == pattern);
        prop_assert_eq!(rig.bytes(inn + u64::from(len), 2), vec![0, 0xff]);
    }
}
