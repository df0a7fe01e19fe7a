//! Requests that end when somebody says so.

use std::time::Duration;

use mdev_dma::IovaRange;
use mdev_pin::Within;
use mdev_protocol::virtio::blk::{
    BlkRange, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::super::*;
use super::config;
use super::rig::{Rig, SIZE};
use crate::device::DropCause;
use crate::driver::{PackedQueue, SplitQueue, Virtqueue};
use crate::store::held::Held;
use crate::store::{MAX_IN_FLIGHT, Operation};

fn out_of_order<Q: Virtqueue>(packed: bool) {
    let (mut rig, held) = Rig::<Q>::held(packed);
    let asked: Vec<_> = (0..8u64)
        .map(|slot| {
            rig.fill(slot * 512, 512, slot as u8 + 1);
            let piece = rig.piece(slot * 512, 512, false);
            rig.ask(VIRTIO_BLK_T_OUT, slot, &[piece])
        })
        .collect();
    assert_eq!(rig.engine.poll(), 8);
    assert_eq!(rig.engine.poll(), 0);
    assert_eq!((held.pending().len(), rig.used()), (8, vec![]));
    for slot in [5, 0, 7, 2, 1, 3, 6, 4] {
        let id = held.pending().iter().find(|one| one.offset == slot * 512).unwrap().id;
        assert!(held.finish(id));
        assert_eq!(rig.engine.poll(), 1);
        let asked = asked[slot as usize];
        assert_eq!((rig.used(), rig.status(asked)), (vec![(asked.head, 1)], 0));
    }
    let bytes = held.bytes();
    assert!((0..8).all(|slot| bytes[slot * 512..][..512].iter().all(|&byte| byte == slot as u8 + 1)));
    assert_eq!(rig.ioas.pins(), 0);
    assert_eq!(rig.counters().bytes, 8 * 512);
}

#[test]
fn requests_end_in_any_order_in_both_formats() {
    out_of_order::<SplitQueue>(false);
    out_of_order::<PackedQueue>(true);
}

#[test]
fn no_more_are_taken_than_may_be_in_flight() {
    let (mut rig, held) = Rig::<PackedQueue>::held(true);
    let piece = rig.piece(0, 512, true);
    let all = MAX_IN_FLIGHT + 40;
    for _ in 0..all {
        rig.ask(VIRTIO_BLK_T_IN, 0, &[piece]);
    }
    while rig.engine.poll() > 0 {}
    assert_eq!(held.pending().len(), MAX_IN_FLIGHT);
    assert!(!rig.engine.arm(), "what waits cannot be taken");
    assert_eq!(held.finish_all(), MAX_IN_FLIGHT);
    while rig.engine.poll() > 0 {}
    assert_eq!((held.finish_all(), rig.engine.poll()), (40, 40));
    while rig.engine.poll() > 0 {}
    assert_eq!(rig.used().len(), all);
}

#[test]
fn failure_of_the_store_is_that_requests_alone() {
    let (mut rig, held) = Rig::<SplitQueue>::held(false);
    let piece = rig.piece(0, 512, true);
    let cases = [
        (Errno::IO, DropCause::StoreFailed),
        (Errno::NOSPC, DropCause::NoSpace),
        (Errno::FAULT, DropCause::MemoryLost),
    ];
    for (errno, cause) in cases {
        let (bad, good) = (rig.ask(VIRTIO_BLK_T_IN, 0, &[piece]), rig.ask(VIRTIO_BLK_T_IN, 1, &[piece]));
        rig.engine.poll();
        let ids: Vec<u64> = held.pending().iter().map(|pending| pending.id).collect();
        held.fail(ids[0], errno);
        held.finish(ids[1]);
        rig.engine.poll();
        assert_eq!(rig.used().len(), 2);
        assert_eq!((rig.status(bad), rig.status(good)), (1, 0));
        assert_eq!(rig.counters().drops_by(cause), 1);
    }
}

#[test]
fn unmap_waits_for_the_request_and_its_status_and_finds_no_pin_afterwards() {
    let (mut rig, held) = Rig::<SplitQueue>::held(false);
    let piece = rig.piece(0, 512, true);
    let asked = rig.ask(VIRTIO_BLK_T_IN, 0, &[piece]);
    rig.engine.poll();
    assert_eq!(rig.ioas.pins(), 2);
    let all = IovaRange::new(mdev_dma::Iova(0), mdev_dma::Iova(u64::MAX)).unwrap();
    let short = Within::or_fail(Duration::from_millis(5));
    assert!(rig.ioas.unmap(all, short).is_err(), "it is held");
    held.finish_all();
    // The store has let go of the data, and the engine of the status.
    rig.engine.poll();
    assert_eq!((rig.ioas.pins(), rig.status(asked)), (0, 0));
    assert!(rig.ioas.unmap(all, Within::or_fail(Duration::from_secs(5))).is_ok());
}

#[test]
fn stop_waits_for_what_is_in_flight_and_takes_nothing_more() {
    let (mut rig, held) = Rig::<SplitQueue>::held(false);
    let piece = rig.piece(0, 512, true);
    rig.ask(VIRTIO_BLK_T_IN, 0, &[piece]);
    rig.engine.poll();
    assert!(!rig.engine.quiesce(0));
    rig.ask(VIRTIO_BLK_T_IN, 1, &[piece]);
    assert_eq!(rig.engine.poll(), 0);
    held.finish_all();
    assert_eq!(rig.engine.poll(), 1);
    assert!(rig.engine.quiesce(0));
    let queue = rig.engine.stop_queue(0).unwrap();
    assert_eq!((queue.ring.state().next_avail, rig.used().len()), (1, 1));
    drop(queue);
    rig.start(crate::ring::QueueState::split(1));
    assert_eq!(rig.engine.poll(), 1);
    held.finish_all();
    rig.engine.poll();
    assert_eq!(rig.used().len(), 1);
}

#[test]
fn cancelled_requests_fail_where_nobody_goes_on_with_them() {
    let (mut rig, held) = Rig::<SplitQueue>::held(false);
    let piece = rig.piece(0, 512, true);
    let asked = [0, 1].map(|sector| rig.ask(VIRTIO_BLK_T_IN, sector, &[piece]));
    rig.engine.poll();
    assert!(!rig.engine.quiesce(0));
    rig.engine.cancel(0);
    rig.engine.poll();
    assert!(rig.engine.quiesce(0));
    assert_eq!((rig.used().len(), held.pending().len(), rig.ioas.pins()), (2, 0, 0));
    assert_eq!(asked.map(|asked| rig.status(asked)), [1, 1]);
    assert_eq!(rig.counters().drops_by(DropCause::Cancelled), 2);
}

#[test]
fn request_of_an_earlier_start_ends_unheard() {
    let (mut rig, held) = Rig::<SplitQueue>::held(false);
    let piece = rig.piece(0, 512, true);
    let before = rig.ask(VIRTIO_BLK_T_IN, 0, &[piece]);
    rig.engine.poll();
    rig.start(crate::ring::QueueState::split(1));
    let after = rig.ask(VIRTIO_BLK_T_IN, 1, &[piece]);
    rig.engine.poll();
    assert_eq!(held.finish_all(), 2);
    rig.engine.poll();
    assert_eq!(rig.used(), [(after.head, 513)]);
    assert_eq!((rig.status(before), rig.status(after), rig.ioas.pins()), (0xff, 0, 0));
}

fn operation_of(features: u64, write_back: bool) -> Operation {
    let held = Held::new(vec![0; SIZE as usize]);
    let device = BlkDevice::on(config("null,size=512"), Store::Held(held.clone())).unwrap();
    let at = mdev_protocol::virtio::blk::BlkConfig::WRITEBACK_OFFSET as u32;
    device.set_config(at, &[write_back.into()]).unwrap();
    let mut rig = Rig::<SplitQueue>::of(false, device, features);
    let piece = rig.piece(0, 512, false);
    rig.ask(VIRTIO_BLK_T_OUT, 0, &[piece]);
    rig.engine.poll();
    held.pending()[0].operation
}

#[test]
fn writes_are_durable_where_the_driver_cannot_or_does_not_want_to_flush() {
    let durable = Operation::Write { durable: true };
    assert_eq!(operation_of(VIRTIO_F_VERSION_1, true), durable);
    assert_eq!(operation_of(VIRTIO_BLK_F_FLUSH, true), Operation::WRITE);
    assert_eq!(operation_of(VIRTIO_BLK_F_FLUSH, false), Operation::WRITE);
    let both = VIRTIO_BLK_F_FLUSH | VIRTIO_BLK_F_CONFIG_WCE;
    assert_eq!(operation_of(both, true), Operation::WRITE);
    assert_eq!(operation_of(both, false), durable);
}

#[test]
fn zeroes_are_durable_where_writes_are() {
    for (write_back, durable) in [(true, false), (false, true)] {
        let held = Held::new(vec![0; SIZE as usize]);
        let device = BlkDevice::on(config("null,size=512"), Store::Held(held.clone())).unwrap();
        let at = mdev_protocol::virtio::blk::BlkConfig::WRITEBACK_OFFSET as u32;
        device.set_config(at, &[write_back.into()]).unwrap();
        let mut rig = Rig::<SplitQueue>::of(false, device, u64::MAX);
        rig.data.range(0, 16).unwrap().copy_from(BlkRange::new(0, 8, 1).as_bytes());
        let piece = rig.piece(0, 16, false);
        rig.ask(VIRTIO_BLK_T_WRITE_ZEROES, 0, &[piece]);
        rig.engine.poll();
        assert_eq!(held.pending()[0].operation, Operation::WriteZeroes { unmap: true, durable });
    }
}

#[test]
fn flush_is_a_request_like_others() {
    let (mut rig, held) = Rig::<SplitQueue>::held(false);
    let asked = rig.ask(VIRTIO_BLK_T_FLUSH, 0, &[]);
    rig.engine.poll();
    assert_eq!(held.pending()[0].operation, Operation::Flush);
    held.finish_all();
    rig.engine.poll();
    assert_eq!((rig.used().len(), rig.status(asked)), (1, 0));
}

#[test]
fn memory_that_is_lost_under_a_request_fails_it_and_no_write_comes_later() {
    let (mut rig, held) = Rig::<SplitQueue>::held(false);
    let piece = rig.piece(0, 512, true);
    rig.ask(VIRTIO_BLK_T_IN, 0, &[piece]);
    rig.engine.poll();
    let file = &rig.memory.regions()[0].extent.file;
    rustix::fs::ftruncate(file.as_fd(), 0).unwrap();
    held.finish_all();
    rig.engine.poll();
    assert!(rig.engine.needs_reset(), "its ring is gone too");
    assert_eq!(rig.ioas.pins(), 0);
    assert_eq!(rig.counters().drops_by(DropCause::MemoryLost), 1);
}
