//! Callbacks into a device that take their time, or come at a bad one.
use super::run::{Run, lock};
use super::scenario::{Body, Outcome, Scenario, expect, expect_equal};
use super::space::{BOTH, LONG, PAGE, SECOND, area, await_that, beside, memory, pause, range, stopped};
use mdev_dma::{Iova, IovaRange, Windows};
use mdev_pin::{Access, AccessOps, Ioas, Pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        number: 10,
        name: "callback-reentry",
        origin: "K",
        bound: SECOND,
        shows: "while a callback lets pins go, another thread of the same device pins another area: both finish",
        body: Body::Play(callback_reentry),
    },
    Scenario {
        number: 12,
        name: "destroy-vs-callback",
        origin: "K",
        bound: SECOND,
        shows: "a device is closed while a callback into it runs: the close waits, and no callback follows it",
        body: Body::Play(destroy_vs_callback),
    },
];

/// A device whose callback lets its pins go and returns when another thread of the device has got on meanwhile.
#[derive(Default)]
struct Reentered {
    pins: Mutex<Vec<Pin>>,
    others: AtomicU64,
    got_on: AtomicBool,
}

impl AccessOps for Reentered {
    fn on_unmap(&self, range: IovaRange) {
        if range == IovaRange::FULL {
            return;
        }
        lock(&self.pins).clear();
        let end = self.others.load(Ordering::SeqCst) + 2;
        let got_on = await_that("another thread pins", || self.others.load(Ordering::SeqCst) >= end);
        self.got_on.store(got_on.is_ok(), Ordering::SeqCst);
    }
}

fn callback_reentry(run: &Run) -> Outcome {
    let file = memory(2)?;
    for mut random in run.rounds(4) {
        let windows = Windows::new()?;
        let ioas = Ioas::new(windows.clone());
        let device = Arc::new(Reentered::default());
        let access = Access::new(device.clone());
        access.attach(&ioas)?;
        ioas.map(area(&file, 0, PAGE, 0)?)?;
        ioas.map(area(&file, PAGE, PAGE, PAGE)?)?;
        let other = |stop: &AtomicBool| {
            let mut lane = access.lane();
            while !stopped(stop) {
                drop(lane.enter().pin(Iova(PAGE), 64, BOTH)?);
                device.others.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        };
        beside(&[&other], || {
            {
                let mut lane = access.lane();
                let burst = lane.enter();
                lock(&device.pins).push(burst.pin(Iova(8), 64, BOTH)?);
            }
            random.spin();
            let unmapped =
                run.time("unmap", || ioas.unmap(range(0, PAGE)?, LONG).map_err(super::Failure::from))?;
            expect_equal(unmapped, PAGE, "bytes unmapped")?;
            expect(device.got_on.load(Ordering::SeqCst), "no other thread could pin during the callback")
        })?;
        access.close(LONG)?;
        expect_equal(access.pins(), 0, "pins after the close")?;
        drop((access, ioas));
        expect_equal(windows.live(), 0, "windows after the space")?;
    }
    Ok(())
}

/// A device whose first callback returns when it is told to.
#[derive(Default)]
struct Paused {
    calls: AtomicU64,
    go: AtomicBool,
}

impl AccessOps for Paused {
    fn on_unmap(&self, _range: IovaRange) {
        if self.calls.fetch_add(1, Ordering::SeqCst) == 0 {
            // In vain only if the scenario has failed elsewhere.
            let _ = await_that("the callback may go on", || self.go.load(Ordering::SeqCst));
        }
    }
}

fn destroy_vs_callback(run: &Run) -> Outcome {
    let file = memory(1)?;
    for mut random in run.rounds(10) {
        let windows = Windows::new()?;
        let ioas = Ioas::new(windows.clone());
        let device = Arc::new(Paused::default());
        let access = Access::new(device.clone());
        access.attach(&ioas)?;
        ioas.map(area(&file, 0, PAGE, 0)?)?;
        let whole = range(0, PAGE)?;
        let (closing, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        let began = || device.calls.load(Ordering::SeqCst) > 0;
        let unmapping = |_: &AtomicBool| expect_equal(ioas.unmap(whole, LONG)?, PAGE, "bytes unmapped");
        let destroying = |_: &AtomicBool| {
            await_that("the callback begins", began)?;
            closing.store(true, Ordering::SeqCst);
            access.close(LONG)?;
            closed.store(true, Ordering::SeqCst);
            Ok(())
        };
        beside(&[&unmapping, &destroying], || {
            let begun = await_that("the close begins", || closing.load(Ordering::SeqCst));
            for _ in 0..100 {
                random.spin();
                pause();
            }
            let early = closed.load(Ordering::SeqCst);
            device.go.store(true, Ordering::SeqCst);
            begun?;
            expect(!early, "the close did not wait for the callback")?;
            run.time("close", || await_that("the close ends", || closed.load(Ordering::SeqCst)))
        })?;
        let calls = device.calls.load(Ordering::SeqCst);
        ioas.map(area(&file, 0, PAGE, 0)?)?;
        ioas.unmap(whole, LONG)?;
        expect_equal(device.calls.load(Ordering::SeqCst), calls, "callbacks after the close")?;
        drop((access, ioas));
        expect_equal(windows.live(), 0, "windows after the space")?;
    }
    Ok(())
}
