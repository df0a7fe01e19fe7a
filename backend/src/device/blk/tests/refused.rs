//! Requests that make no sense, and chains that are no requests.

use std::time::{Duration, Instant};

use mdev_dma::Iova;
use mdev_protocol::virtio::blk::{
    BlkRange, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use zerocopy::IntoBytes;

use super::super::fuzzing::fuzz_requests;
use super::super::*;
use super::config;
use super::rig::{Rig, SIZE};
use crate::device::DropCause;
use crate::device::fuzzing::tests::corpus_and_noise;
use crate::driver::{Piece, SplitQueue};

const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// The status of a request, what it was counted as, and that the next one is served.
fn refused(rig: &mut Rig<SplitQueue>, kind: u32, sector: u64, data: &[Piece]) -> (u8, Vec<DropCause>) {
    let before = rig.counters();
    let (status, _) = rig.status_of(kind, sector, data);
    let after = rig.counters();
    let counted = |cause: &DropCause| after.drops_by(*cause) != before.drops_by(*cause);
    let causes = DropCause::ALL.into_iter().filter(counted).collect();
    assert!(!rig.engine.needs_reset());
    assert_eq!(rig.status_of(VIRTIO_BLK_T_FLUSH, 0, &[]).0, 0);
    (status, causes)
}

#[test]
fn requests_that_make_no_sense_end_with_a_status_and_a_cause() {
    let mut rig = Rig::<SplitQueue>::new(false, "mem,size=1M");
    let inn = |len| Piece { at: rig.data.at, len, device_writes: true };
    let out = |len| Piece { at: rig.data.at, len, device_writes: false };
    let (inn, out) = ([inn(512), inn(511), inn(1024)], [out(512), out(513), out(16)]);
    let last = SIZE / 512;
    let cases = [
        (VIRTIO_BLK_T_IN, 0, &inn[1..2], IOERR, DropCause::Malformed),
        (VIRTIO_BLK_T_OUT, 0, &out[1..2], IOERR, DropCause::Malformed),
        (VIRTIO_BLK_T_IN, 0, &[][..], IOERR, DropCause::Malformed),
        (VIRTIO_BLK_T_OUT, 0, &[][..], IOERR, DropCause::Malformed),
        (VIRTIO_BLK_T_IN, last, &inn[..1], IOERR, DropCause::OutOfRange),
        (VIRTIO_BLK_T_IN, last - 1, &inn[2..], IOERR, DropCause::OutOfRange),
        (VIRTIO_BLK_T_OUT, u64::MAX, &out[..1], IOERR, DropCause::OutOfRange),
        (VIRTIO_BLK_T_OUT, u64::MAX / 512, &out[..1], IOERR, DropCause::OutOfRange),
        (VIRTIO_BLK_T_DISCARD, 0, &out[..1], IOERR, DropCause::Malformed),
        (VIRTIO_BLK_T_DISCARD, 0, &[][..], IOERR, DropCause::Malformed),
        (2, 0, &out[..1], UNSUPP, DropCause::Unsupported),
        (14, 0, &out[2..], UNSUPP, DropCause::Unsupported),
        (u32::MAX, 0, &inn[..1], UNSUPP, DropCause::Unsupported),
    ];
    for (kind, sector, data, status, cause) in cases {
        assert_eq!(refused(&mut rig, kind, sector, data), (status, vec![cause]), "{kind} {sector} {data:?}");
    }
}

#[test]
fn request_of_more_than_the_limits_come_to_is_refused() {
    let device = BlkDevice::new(config("null,size=1G")).unwrap();
    let mut rig = Rig::<SplitQueue>::of(false, device, u64::MAX);
    // The same 64 KiB again and again: 126 descriptors of 128 KiB are what the configuration permits.
    let piece = rig.piece(0, 64 << 10, true);
    let mut data = vec![piece; 252];
    assert_eq!(rig.status_of(VIRTIO_BLK_T_IN, 0, &data).0, 0);
    data.push(rig.piece(0, 512, true));
    assert_eq!(refused(&mut rig, VIRTIO_BLK_T_IN, 0, &data), (IOERR, vec![DropCause::OutOfRange]));
}

#[test]
fn ranges_of_discards_and_zeroes_are_checked() {
    let mut rig = Rig::<SplitQueue>::new(false, "mem,size=1M");
    let last = SIZE / 512;
    let cases = [
        (VIRTIO_BLK_T_DISCARD, BlkRange::new(last, 1, 0), IOERR, DropCause::OutOfRange),
        (VIRTIO_BLK_T_DISCARD, BlkRange::new(0, u32::MAX, 0), IOERR, DropCause::OutOfRange),
        (VIRTIO_BLK_T_DISCARD, BlkRange::new(u64::MAX, 1, 0), IOERR, DropCause::OutOfRange),
        (VIRTIO_BLK_T_DISCARD, BlkRange::new(0, 1, 1), UNSUPP, DropCause::Unsupported),
        (VIRTIO_BLK_T_WRITE_ZEROES, BlkRange::new(0, 1, 2), UNSUPP, DropCause::Unsupported),
        (VIRTIO_BLK_T_WRITE_ZEROES, BlkRange::new(last - 1, 2, 1), IOERR, DropCause::OutOfRange),
    ];
    for (kind, range, status, cause) in cases {
        rig.data.range(0, 16).unwrap().copy_from(range.as_bytes());
        let piece = rig.piece(0, 16, false);
        assert_eq!(refused(&mut rig, kind, 0, &[piece]), (status, vec![cause]), "{range:?}");
    }
}

#[test]
fn feature_that_was_not_acknowledged_is_not_served() {
    let device = BlkDevice::new(config("mem,size=1M")).unwrap();
    let mut rig = Rig::<SplitQueue>::of(false, device, VIRTIO_F_VERSION_1);
    let piece = rig.piece(0, 16, false);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(refused(&mut rig, kind, 0, &[piece]), (UNSUPP, vec![DropCause::Unsupported]));
    }
}

#[test]
fn read_only_device_is_read_and_not_written() {
    let device = BlkDevice::new(BlkConfig { read_only: true, ..config("mem,size=1M") }).unwrap();
    let mut rig = Rig::<SplitQueue>::of(false, device, u64::MAX);
    let (inn, out) = (rig.piece(0, 512, true), rig.piece(0, 512, false));
    assert_eq!(rig.status_of(VIRTIO_BLK_T_IN, 0, &[inn]).0, 0);
    assert_eq!(refused(&mut rig, VIRTIO_BLK_T_OUT, 0, &[out]), (IOERR, vec![DropCause::ReadOnly]));
}

#[test]
fn chain_without_header_or_status_fails_its_queue() {
    // Bytes that the device reads, and whether there is a byte that it writes.
    for (readable, status) in [(Some(16), false), (Some(15), true), (None, true)] {
        let mut rig = Rig::<SplitQueue>::new(false, "mem,size=1M");
        let readable = readable.map(|len| rig.piece(0, len, false));
        let status = status.then(|| rig.piece(64, 1, true));
        let chain: Vec<Piece> = readable.into_iter().chain(status).collect();
        rig.offer(&chain);
        assert_eq!(rig.engine.poll(), 0);
        assert!(rig.engine.needs_reset(), "{chain:?}");
        assert_eq!(rig.used(), []);
    }
}

#[test]
fn data_where_there_is_no_memory_is_waited_for_and_then_fails_that_request_alone() {
    for held in [false, true] {
        let mut rig = match held {
            false => Rig::<SplitQueue>::new(false, "mem,size=1M"),
            true => Rig::<SplitQueue>::held(false).0,
        };
        let nowhere = Piece { at: Iova(1 << 40), len: 512, device_writes: true };
        let asked = rig.ask(VIRTIO_BLK_T_IN, 0, &[nowhere]);
        assert_eq!(rig.engine.poll(), 0);
        assert_eq!(rig.used(), []);
        let deadline = rig.engine.next_deadline().expect("it waits");
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        assert_eq!(rig.engine.poll(), 1, "held {held}");
        assert_eq!((rig.used(), rig.status(asked)), (vec![(asked.head, 513)], IOERR));
        assert_eq!(rig.counters().drops_by(DropCause::NoMemory), 1);
        assert!(!rig.engine.needs_reset());
        assert_eq!(rig.engine.next_deadline(), None);
    }
}

#[test]
fn status_where_there_is_no_memory_fails_the_queue_in_the_end() {
    let mut rig = Rig::<SplitQueue>::new(false, "mem,size=1M");
    rig.fill(0, 16, 0);
    let chain = [rig.piece(0, 16, false), Piece { at: Iova(1 << 40), len: 513, device_writes: true }];
    rig.offer(&chain);
    assert_eq!(rig.engine.poll(), 0);
    let deadline = rig.engine.next_deadline().expect("it waits");
    std::thread::sleep(deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
    assert_eq!(rig.engine.poll(), 0);
    assert!(rig.engine.needs_reset());
}

#[test]
fn corpus_and_noise_end_in_errors_or_statuses() {
    // The ring is in the first bytes, headers and a table are behind.
    corpus_and_noise("requests", fuzz_requests, |_, random| match random(2) {
        0 => random(0x400),
        _ => 0x7c0 + random(0x400),
    });
}
