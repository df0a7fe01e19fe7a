//! Servers that are killed (contract, scenario 26): whoever comes next is asked what was not answered, and nothing is lost or done
//! twice. `MDEV_ROUNDS` says how often they are killed.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mdev_tests::disk::{Load, Unheard};
use mdev_tests::kernel::{Serving, cut};
use mdev_tests::random::Random;
use mdev_tests::stage::await_that;
use mdevd::device::VirtioDevice;
use mdevd::driver::{PackedQueue, SplitQueue, Virtqueue};
use mdevd::session::vduse::model::{Action, Asked, Model, Outcome};
use mdevd::store::{Store, StoreKind};
use tempfile::TempDir;

use super::blk::{drain, store_verifies};
use super::{BLOCKS, disk, held, model};

fn rounds() -> u32 {
    std::env::var("MDEV_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(60)
}

/// Serves a device, kills whoever does, and again. `finish` may end some of what is in flight.
fn killed<Q: Virtqueue>(
    packed: bool,
    mut device: impl FnMut() -> Arc<dyn VirtioDevice>,
    mut finish: impl FnMut(&mut Random),
) -> Load<Q> {
    let folder = TempDir::new().expect("a folder");
    let mut random = Random::seeded("killed");
    let first = device();
    let model = model(&first);
    let mut serving = Serving::start(&model, first, Some(folder.path()));
    let mut load = Load::<Q>::new(packed, BLOCKS, 7, Random::of_number(7));
    load.start_on(&model);
    let mut interrupted = 0;
    for _ in 0..rounds() {
        let end = Instant::now() + Duration::from_micros(random.below(8000));
        let mut asked = None;
        while Instant::now() < end {
            load.step(!random.one_in(3), &mut Unheard);
            finish(&mut random);
            ask_now_and_then(&model, &load, &mut random, &mut asked);
        }
        serving.kill();
        interrupted += load.under_way();
        serving = again(&model, &mut device, folder.path());
        if let Some(asked) = asked {
            await_that("an answer", || {
                load.step(true, &mut Unheard);
                finish(&mut random);
                let outcome = model.outcome(&asked);
                assert_ne!(outcome, Some(Outcome::Failed));
                outcome.is_some()
            });
        }
    }
    assert!(interrupted > 0, "the server was never busy when it was killed");
    let ended = load.work.ended;
    await_that("it goes on", || {
        load.step(true, &mut Unheard);
        finish(&mut random);
        load.work.ended > ended + 100
    });
    drain(&mut load, || finish(&mut random));
    assert!(serving.end().is_none());
    // What was closed in order leaves its driver to the next as well.
    let serving = again(&model, &mut device, folder.path());
    let ended = load.work.ended;
    await_that("it goes on", || {
        load.step(true, &mut Unheard);
        finish(&mut random);
        load.work.ended > ended
    });
    drain(&mut load, || finish(&mut random));
    assert!(serving.end().is_none());
    load
}

fn again(model: &Model, device: &mut impl FnMut() -> Arc<dyn VirtioDevice>, folder: &Path) -> Serving {
    Serving::start(model, device(), Some(folder))
}

/// The kernel asks for something, and may be asking when the server dies.
fn ask_now_and_then<Q: Virtqueue>(
    model: &Model,
    load: &Load<Q>,
    random: &mut Random,
    asked: &mut Option<Asked>,
) {
    if let Some(waiting) = asked {
        if let Some(outcome) = model.outcome(waiting) {
            assert_ne!(outcome, Outcome::Failed);
            *asked = None;
        }
    } else if random.one_in(20) {
        let whole = load.entries().remove(0);
        *asked = Some(model.begin(match random.below(3) {
            0 => Action::State(0),
            1 => Action::SetMap(vec![whole]),
            _ => Action::SetMap(cut(&whole, 4096 * (1 + random.below(1000))).to_vec()),
        }));
    }
}

fn killed_with_requests_held<Q: Virtqueue>(packed: bool) {
    let store = held();
    let device = || disk(Store::Held(store.clone()));
    let load = killed::<Q>(packed, device, |random| {
        let pending = store.pending();
        for pending in pending.iter().filter(|_| !random.one_in(3)) {
            store.finish(pending.id);
        }
    });
    store_verifies(&load, &store.bytes());
}

#[test]
fn scenario_26_daemon_restart_loses_and_doubles_nothing_of_a_split_ring() {
    killed_with_requests_held::<SplitQueue>(false);
}

#[test]
fn scenario_26_daemon_restart_loses_and_doubles_nothing_of_a_packed_ring() {
    killed_with_requests_held::<PackedQueue>(true);
}

#[test]
fn scenario_26_daemon_restart_loses_and_doubles_nothing_of_a_file() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("image");
    std::fs::write(&path, vec![0; (BLOCKS * 4096) as usize]).expect("an image");
    let kind: StoreKind = format!("file={}", path.display()).parse().expect("a kind of store");
    let load = killed::<SplitQueue>(false, || disk(Store::open(&kind).expect("a store")), |_| ());
    store_verifies(&load, &std::fs::read(&path).expect("the image"));
}
