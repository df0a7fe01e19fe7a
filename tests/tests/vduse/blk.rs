//! Requests of a disk through the kernel.

use std::time::{Duration, Instant};

use mdev_protocol::virtio::feature::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use mdev_tests::disk::{Load, Unheard};
use mdev_tests::kernel::{self, Serving};
use mdev_tests::random::Random;
use mdev_tests::stage::await_that;
use mdevd::driver::blk::{BlkQueue, BlkQueueOptions, Request};
use mdevd::driver::{GuestMemory, MemoryOptions, PackedQueue, RingOptions, SplitQueue, Virtqueue};
use mdevd::session::vduse::model::{Action, Outcome};
use mdevd::store::{Store, StoreKind};
use tempfile::TempDir;

use super::{BLOCKS, disk, held, model};

/// Requests until so many more have ended; `finish` is called meanwhile.
pub fn run<Q: Virtqueue, T>(load: &mut Load<Q>, requests: u64, mut finish: impl FnMut() -> T) {
    let end = load.work.ended + requests;
    await_that("requests end", || {
        load.step(true, &mut Unheard);
        finish();
        load.work.ended >= end
    });
}

/// Waits until all that is under way has ended.
pub fn drain<Q: Virtqueue, T>(load: &mut Load<Q>, mut finish: impl FnMut() -> T) {
    await_that("the rest ends", || {
        load.step(false, &mut Unheard);
        finish();
        load.under_way() == 0
    });
}

fn serves<Q: Virtqueue>(packed: bool, store: Store) {
    let device = disk(store);
    let model = model(&device);
    let serving = Serving::start(&model, device, None);
    let mut load = Load::<Q>::new(packed, BLOCKS, 1, Random::of_number(1));
    load.start_on(&model);
    run(&mut load, 3000, || ());
    let ledger = load.work.ledger.clone();
    drain(&mut load, || ());
    load.verify(&load.work.ledger.clone());
    assert!(ledger.written() > 0);
    // Again after a reset.
    load.start_on(&model);
    run(&mut load, 500, || ());
    drain(&mut load, || ());
    load.verify(&load.work.ledger.clone());
    assert!(model.calls(0) > 0 && serving.end().is_none());
}

#[test]
fn requests_in_a_split_ring_end_as_they_should() {
    serves::<SplitQueue>(false, Store::open(&memory()).expect("a store"));
}

#[test]
fn requests_in_a_packed_ring_end_as_they_should() {
    serves::<PackedQueue>(true, Store::open(&memory()).expect("a store"));
}

#[test]
fn requests_to_a_file_end_as_they_should() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("image");
    std::fs::write(&path, vec![0; (BLOCKS * 4096) as usize]).expect("an image");
    let kind: StoreKind = format!("file={}", path.display()).parse().expect("a kind of store");
    serves::<SplitQueue>(false, Store::open(&kind).expect("a store"));
    serves::<PackedQueue>(true, Store::open(&kind).expect("a store"));
}

fn memory() -> StoreKind {
    format!("mem,size={}", BLOCKS * 4096).parse().expect("a kind of store")
}

/// A ring is asked how far it is, again and again, while requests are under way.
fn tells_how_far<Q: Virtqueue>(packed: bool) {
    let (folder, store) = (TempDir::new().expect("a folder"), held());
    let device = disk(Store::Held(store.clone()));
    let model = model(&device);
    let serving = Serving::start(&model, device, Some(folder.path()));
    let mut load = Load::<Q>::new(packed, BLOCKS, 2, Random::of_number(2));
    load.start_on(&model);
    for _ in 0..100 {
        run(&mut load, 20, || store.finish_all());
        let asked = model.begin(Action::State(0));
        let mut outcome = None;
        await_that("an answer", || {
            load.step(true, &mut Unheard);
            store.finish_all();
            outcome = model.outcome(&asked);
            outcome.is_some()
        });
        assert!(matches!(outcome, Some(Outcome::State(_))), "{outcome:?}");
    }
    drain(&mut load, || store.finish_all());
    assert_eq!(model.carry_out(Action::State(0)), Outcome::State(load.position()));
    store_verifies(&load, &store.bytes());
    assert!(serving.end().is_none());
}

/// Whether a store has what its driver has written.
pub fn store_verifies<Q: Virtqueue>(load: &Load<Q>, bytes: &[u8]) {
    for (block, bytes) in (0..).zip(bytes.chunks(4096)) {
        load.work.ledger.check(block, bytes).expect("what was written");
    }
}

#[test]
fn busy_split_ring_says_how_far_it_is_and_loses_nothing() {
    tells_how_far::<SplitQueue>(false);
}

#[test]
fn busy_packed_ring_says_how_far_it_is_and_loses_nothing() {
    tells_how_far::<PackedQueue>(true);
}

/// A device that is suspended has finished what it took, says where that ends, and takes nothing more.
fn suspends<Q: Virtqueue>(packed: bool) {
    let (folder, store) = (TempDir::new().expect("a folder"), held());
    let device = disk(Store::Held(store.clone()));
    let model = model(&device);
    let serving = Serving::start(&model, device, Some(folder.path()));
    let mut load = Load::<Q>::new(packed, BLOCKS, 3, Random::of_number(3));
    load.start_on(&model);
    run(&mut load, 100, || store.finish_all());
    load.step(true, &mut Unheard);
    await_that("requests are in flight", || !store.pending().is_empty());
    let asked = model.begin(Action::Suspend);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(model.outcome(&asked), None, "what is in flight ends first");
    let mut outcome = None;
    await_that("an answer", || {
        store.finish_all();
        outcome = model.outcome(&asked);
        outcome.is_some()
    });
    assert_eq!(outcome, Some(Outcome::Done));
    let Outcome::State(told) = model.carry_out(Action::State(0)) else { panic!("no state") };
    load.step(false, &mut Unheard);
    assert_eq!(told, load.position());
    let taken = load.work.ended;
    load.step(true, &mut Unheard);
    model.kick(0);
    let watch = Instant::now();
    while watch.elapsed() < Duration::from_millis(100) {
        load.step(false, &mut Unheard);
        assert!(store.pending().is_empty(), "it takes nothing more");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(load.work.ended, taken, "and ends nothing");
    assert!(serving.end().is_none());
}

#[test]
fn suspended_split_ring_has_finished_what_it_took_and_takes_nothing_more() {
    suspends::<SplitQueue>(false);
}

#[test]
fn suspended_packed_ring_has_finished_what_it_took_and_takes_nothing_more() {
    suspends::<PackedQueue>(true);
}

/// The driver offers a request before it is ready, and sleeps from then on.
fn calls_a_driver_that_sleeps<Q: Virtqueue>(packed: bool) {
    let device = disk(Store::open(&memory()).expect("a store"));
    let model = model(&device);
    let mut memory = GuestMemory::new(MemoryOptions::default()).expect("memory");
    let options = BlkQueueOptions { ring: RingOptions::plain(64), requests: 16, capacity: 4096 };
    let mut queue = BlkQueue::<Q>::new(&mut memory, options).expect("a queue");
    let features = VIRTIO_F_VERSION_1 | if packed { VIRTIO_F_RING_PACKED } else { 0 };
    let serving = Serving::start(&model, device, None);
    for _ in 0..50 {
        assert_eq!(model.carry_out(Action::Reset), Outcome::Done);
        queue.reset();
        queue.queue.want_calls(true);
        queue.submit_one(Request::Read { sector: 0, len: 4096 }).expect("a request").expect("a tag");
        queue.publish();
        let (before, mut ended) = (model.calls(0), 0);
        kernel::start(&model, features, kernel::entries(&memory), &[kernel::place(&queue.queue, packed)]);
        await_that("the request ends, and the driver is called after that", || {
            let called = model.calls(0) > before;
            ended += queue
                .reap(u32::MAX, |done, _| assert!(done.is_ok()))
                .expect("a device that keeps to the rules");
            called && ended == 1
        });
    }
    assert!(serving.end().is_none());
}

#[test]
fn driver_that_sleeps_before_it_is_ready_is_called_for_its_split_ring() {
    calls_a_driver_that_sleeps::<SplitQueue>(false);
}

#[test]
fn driver_that_sleeps_before_it_is_ready_is_called_for_its_packed_ring() {
    calls_a_driver_that_sleeps::<PackedQueue>(true);
}
