//! Stores that do not answer: every request of the kernel is answered within five seconds all the same.

use std::time::Duration;

use mdev_tests::disk::{Load, Unheard};
use mdev_tests::kernel::{BOUND, Serving};
use mdev_tests::random::Random;
use mdev_tests::stage::await_that;
use mdevd::driver::{PackedQueue, SplitQueue, Virtqueue};
use mdevd::session::SessionError;
use mdevd::session::vduse::model::{Action, Model, Outcome};
use mdevd::store::Store;
use mdevd::store::held::Held;
use tempfile::TempDir;

use super::blk::{drain, run, store_verifies};
use super::tables::Pair;
use super::{BLOCKS, disk, held, model};

/// What a device may take before it is told to cancel.
const PATIENCE: Duration = Duration::from_secs(3);

struct Busy<Q> {
    model: Model,
    store: Held,
    serving: Serving,
    load: Load<Q>,
    _folder: TempDir,
}

/// A disk with requests in flight that do not end.
fn busy<Q: Virtqueue>(packed: bool) -> Busy<Q> {
    let (folder, store) = (TempDir::new().expect("a folder"), held());
    let device = disk(Store::Held(store.clone()));
    let model = model(&device);
    let serving = Serving::start(&model, device, Some(folder.path()));
    let mut load = Load::<Q>::new(packed, BLOCKS, 5, Random::of_number(5));
    load.start_on(&model);
    run(&mut load, 50, || store.finish_all());
    load.step(true, &mut Unheard);
    await_that("requests are in flight", || store.pending().len() > 8);
    Busy { model, store, serving, load, _folder: folder }
}

impl<Q: Virtqueue> Busy<Q> {
    fn ask(&self, action: Action) -> (Outcome, Duration) {
        let asked = self.model.begin(action);
        let mut outcome = None;
        await_that("an answer", || {
            outcome = self.model.outcome(&asked);
            outcome.is_some()
        });
        let waited = asked.waited();
        assert!(waited < BOUND, "{waited:?}");
        (outcome.expect("an answer"), waited)
    }

    /// Everything that was under way ends, once, and more does.
    fn goes_on(mut self) {
        let store = self.store.clone();
        run(&mut self.load, 200, || store.finish_all());
        drain(&mut self.load, || store.finish_all());
        store_verifies(&self.load, &store.bytes());
        assert!(self.serving.end().is_none());
    }
}

fn suspension_is_late<Q: Virtqueue>(packed: bool) {
    let busy = busy::<Q>(packed);
    let (outcome, waited) = busy.ask(Action::Suspend);
    assert_eq!(outcome, Outcome::Failed);
    assert!(waited >= PATIENCE && !busy.model.is_suspended());
    busy.goes_on();
}

#[test]
fn suspension_with_a_late_store_fails_in_time_and_split_rings_go_on() {
    suspension_is_late::<SplitQueue>(false);
}

#[test]
fn suspension_with_a_late_store_fails_in_time_and_packed_rings_go_on() {
    suspension_is_late::<PackedQueue>(true);
}

fn disabling_is_late<Q: Virtqueue>(packed: bool) {
    let busy = busy::<Q>(packed);
    let (outcome, waited) = busy.ask(Action::SetReady { index: 0, ready: false });
    assert_eq!(outcome, Outcome::Done);
    assert!(waited >= PATIENCE && busy.store.pending().is_empty(), "it was cancelled");
    assert_eq!(busy.ask(Action::SetReady { index: 0, ready: true }).0, Outcome::Done);
    let store = busy.store.clone();
    await_that("what is recorded is taken again", || store.pending().len() > 8);
    busy.goes_on();
}

#[test]
fn split_ring_that_is_disabled_with_a_late_store_takes_its_requests_again_later() {
    disabling_is_late::<SplitQueue>(false);
}

#[test]
fn packed_ring_that_is_disabled_with_a_late_store_takes_its_requests_again_later() {
    disabling_is_late::<PackedQueue>(true);
}

#[test]
fn reset_with_a_late_store_succeeds_in_time_and_touches_nothing_any_more() {
    let mut busy = busy::<SplitQueue>(false);
    let (outcome, waited) = busy.ask(Action::Reset);
    assert_eq!(outcome, Outcome::Done);
    assert!(waited >= PATIENCE);
    let watched = busy.load.watched();
    watched.mark();
    busy.store.finish_all();
    std::thread::sleep(Duration::from_millis(20));
    assert!(watched.is_marked());
    // The next driver finds nothing in flight.
    busy.load = Load::new(false, BLOCKS, 6, Random::of_number(6));
    busy.load.start_on(&busy.model);
    std::thread::sleep(Duration::from_millis(20));
    assert!(busy.store.pending().is_empty());
    let (store, load) = (busy.store.clone(), &mut busy.load);
    run(load, 100, || store.finish_all());
    drain(load, || store.finish_all());
    assert!(busy.serving.end().is_none());
}

#[test]
fn scenario_25_update_iotlb_with_a_late_store_is_answered_in_time_and_touches_nothing_any_more() {
    let mut pair = Pair::start();
    let asked = pair.model.begin(Action::SetMap(pair.entries()[..1].to_vec()));
    await_that("an answer", || pair.model.outcome(&asked) == Some(Outcome::Done));
    assert!(asked.waited() >= PATIENCE && asked.waited() < BOUND, "{:?}", asked.waited());
    pair.mark();
    pair.finish(1);
    pair.finish(0);
    pair.reaps(0, 4);
    assert!(pair.is_marked(), "nothing was written where nothing is mapped");
    pair.goes_on();
}

#[test]
fn scenario_25_device_that_nobody_serves_is_broken_after_a_time_for_whoever_comes() {
    let device = disk(Store::Held(held()));
    let model = model(&device).with_timeout(Duration::from_millis(50));
    assert_eq!(model.carry_out(Action::SetMap(Vec::new())), Outcome::Failed);
    let serving = Serving::start(&model, device, None);
    std::thread::sleep(Duration::from_millis(50));
    assert!(matches!(serving.end(), Some(SessionError::Broken)));
    assert_eq!(model.carry_out(Action::Reset), Outcome::Failed);
}
