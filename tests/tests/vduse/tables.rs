//! Tables that change while requests are under way (contract, scenario 25).

use std::time::Duration;

use mdev_dma::Iova;
use mdev_protocol::virtio::feature::VIRTIO_F_VERSION_1;
use mdev_tests::disk::{Load, Unheard};
use mdev_tests::kernel::{self, BOUND, Serving, cut};
use mdev_tests::random::Random;
use mdev_tests::stage::await_that;
use mdevd::driver::blk::{BlkQueue, BlkQueueOptions, Request};
use mdevd::driver::{GuestMemory, MemoryOptions, PackedQueue, RingOptions, SplitQueue, Virtqueue};
use mdevd::session::vduse::model::{Action, Entry, Model, Outcome};
use mdevd::store::Store;
use mdevd::store::held::Held;

use super::blk::{drain, run, store_verifies};
use super::{BLOCKS, disk, held, model};

/// The same memory in other pieces each time, with something else beside it: nobody notices.
fn under_load<Q: Virtqueue>(packed: bool) {
    let store = held();
    let device = disk(Store::Held(store.clone()));
    let model = model(&device);
    let serving = Serving::start(&model, device, None);
    let mut random = Random::seeded("tables under load");
    let mut load = Load::<Q>::new(packed, BLOCKS, 4, Random::of_number(4));
    load.start_on(&model);
    let whole = load.entries().remove(0);
    let beside = GuestMemory::new(MemoryOptions { first: Iova(1 << 40), ..MemoryOptions::default() });
    let beside = kernel::entries(&beside.expect("memory"));
    for _ in 0..150 {
        let pages = whole.range.size() as u64 / 4096;
        let at = 1 + random.below(pages - 2);
        let [lower, upper] = cut(&whole, 4096 * at);
        let mut table: Vec<Entry> = match random.below(3) {
            0 => vec![whole.clone()],
            1 => vec![lower, upper],
            _ => {
                let [middle, upper] = cut(&upper, 4096 * (1 + random.below(pages - at - 1)));
                vec![lower, middle, upper]
            }
        };
        if random.one_in(2) {
            table.extend(beside.iter().cloned());
        }
        let asked = model.begin(Action::SetMap(table));
        let mut outcome = None;
        await_that("an answer", || {
            load.step(true, &mut Unheard);
            outcome = model.outcome(&asked);
            // Nothing that is under way ends meanwhile: the answer waits for none of that.
            outcome.is_some()
        });
        assert_eq!(outcome, Some(Outcome::Done));
        assert!(asked.waited() < BOUND);
        run(&mut load, 10, || store.finish_all());
    }
    drain(&mut load, || store.finish_all());
    store_verifies(&load, &store.bytes());
    assert!(serving.end().is_none());
}

#[test]
fn scenario_25_update_iotlb_under_load_of_a_split_ring_disturbs_nothing_that_stays() {
    under_load::<SplitQueue>(false);
}

#[test]
fn scenario_25_update_iotlb_under_load_of_a_packed_ring_disturbs_nothing_that_stays() {
    under_load::<PackedQueue>(true);
}

/// A disk with a queue in each of two regions, reads of both in flight.
pub struct Pair {
    pub model: Model,
    pub store: Held,
    pub serving: Serving,
    memory: GuestMemory,
    queues: [BlkQueue<SplitQueue>; 2],
}

const EACH: u64 = 4;
/// Where the second queue reads.
const SECOND: u64 = 32 * 4096;
const MARK: u8 = 0xa5;

impl Pair {
    pub fn start() -> Pair {
        let store = held();
        let device = disk(Store::Held(store.clone()));
        let model = model(&device);
        let serving = Serving::start(&model, device, None);
        let mut memory = GuestMemory::new(MemoryOptions::default()).expect("memory");
        let options = BlkQueueOptions { ring: RingOptions::plain(64), requests: 16, capacity: 4096 };
        let first = BlkQueue::new(&mut memory, options).expect("a queue");
        let region = MemoryOptions { first: Iova(1 << 32), ..MemoryOptions::default() };
        memory.add_region(region).expect("a second region");
        let second = BlkQueue::new(&mut memory, options).expect("a queue");
        let mut pair = Pair { model, store, serving, memory, queues: [first, second] };
        pair.use_device();
        pair.submit(0);
        pair.submit(1);
        pair
    }

    fn use_device(&mut self) {
        self.queues.iter_mut().for_each(BlkQueue::reset);
        let places = [0, 1].map(|index: usize| kernel::place(&self.queues[index].queue, false));
        kernel::start(&self.model, VIRTIO_F_VERSION_1, self.entries(), &places);
    }

    pub fn entries(&self) -> Vec<Entry> {
        kernel::entries(&self.memory)
    }

    fn submit(&mut self, index: u16) {
        let (before, queue) = (self.store.pending().len() as u64, &mut self.queues[usize::from(index)]);
        for at in 0..EACH {
            let sector = (at * 4096 + u64::from(index) * SECOND) / 512;
            queue.submit_one(Request::Read { sector, len: 4096 }).expect("a request").expect("a tag");
        }
        queue.publish();
        self.model.kick(index);
        let store = &self.store;
        await_that("reads are in flight", || store.pending().len() as u64 == before + EACH);
    }

    pub fn finish(&self, index: u16) {
        let of_queue = |offset: u64| (offset >= SECOND) == (index == 1);
        self.store.pending().iter().filter(|pending| of_queue(pending.offset)).for_each(|pending| {
            self.store.finish(pending.id);
        });
    }

    pub fn reaps(&mut self, index: u16, count: u64) {
        let mut reaped = 0;
        await_that("reads end", || {
            let ended = self.queues[usize::from(index)].reap(u32::MAX, |done, _| assert!(done.is_ok()));
            reaped += u64::from(ended.expect("a device that keeps to the rules"));
            reaped == count
        });
    }

    /// Bytes of the second region that are there when nobody has written any since.
    pub fn mark(&self) {
        for at in 0..16 {
            self.queues[1].data(at).expect("a buffer").fill(MARK);
        }
    }

    pub fn is_marked(&self) -> bool {
        let mut bytes = vec![0; 4096];
        (0..16).all(|at| {
            self.queues[1].data(at).expect("a buffer").copy_to(&mut bytes);
            bytes.iter().all(|byte| *byte == MARK)
        })
    }

    /// The first queue goes on, and after a reset both do.
    pub fn goes_on(mut self) {
        self.submit(0);
        self.finish(0);
        self.reaps(0, EACH);
        assert_eq!(self.model.carry_out(Action::Reset), Outcome::Done);
        self.use_device();
        for index in [0, 1] {
            self.submit(index);
            self.finish(index);
            self.reaps(index, EACH);
        }
        assert!(self.serving.end().is_none());
    }
}

#[test]
fn scenario_25_update_iotlb_inflight_waits_for_what_pins_the_range_and_for_nothing_else() {
    let mut pair = Pair::start();
    let asked = pair.model.begin(Action::SetMap(pair.entries()[..1].to_vec()));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(pair.model.outcome(&asked), None, "reads are in flight there");
    pair.finish(1);
    await_that("an answer", || pair.model.outcome(&asked) == Some(Outcome::Done));
    assert_eq!(pair.store.pending().len() as u64, EACH, "those of the other queue are in flight still");
    pair.mark();
    pair.finish(0);
    pair.reaps(0, EACH);
    assert!(pair.is_marked(), "nothing was written where nothing is mapped");
    pair.goes_on();
}
