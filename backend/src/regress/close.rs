//! A device is closed while its workers pin.
use super::run::Run;
use super::scenario::{Body, Failure, Outcome, Scenario, expect, expect_equal};
use super::space::{
    Attached, BOTH, LONG, PAGE, SECOND, Space, Work, area, await_that, beside, expect_errno, memory, range,
    stopped,
};
use mdev_dma::Iova;
use mdev_pin::{Access, ResolveError};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        number: 2,
        name: "late-pin-race",
        origin: "T",
        bound: SECOND,
        shows: "workers pin in a loop, and the device is closed at a random instant: no later pin succeeds",
        body: Body::Play(late_pin_race),
    },
    Scenario {
        number: 3,
        name: "other-device-waiters",
        origin: "T",
        bound: SECOND,
        shows: "of two busy devices on one space one is closed: the other sees no error, no callback and no gate",
        body: Body::Play(other_device_waiters),
    },
];

/// Pins and unpins until the access is closed. From then on every attempt must fail, and none may succeed that began
/// after the close had returned.
pub fn pin_until_closed(run: &Run, access: &Access, closed: &AtomicBool, pins: &AtomicU64) -> Outcome {
    let mut lane = access.lane();
    let mut refusals = 0;
    loop {
        let over = closed.load(Ordering::SeqCst);
        let begin = Instant::now();
        let pinned = lane.enter().pin(Iova(8), 64, BOTH);
        run.note(begin.elapsed());
        match pinned {
            Ok(_) if over => return Err(Failure::new("a pin succeeded after the close had returned")),
            Ok(_) if refusals > 0 => return Err(Failure::new("a pin succeeded after another was refused")),
            Ok(pin) => {
                pins.fetch_add(1, Ordering::Relaxed);
                drop(pin);
            }
            Err(ResolveError::Detached) => refusals += 1,
            Err(error) => return Err(Failure::new(format!("a pin failed with {error:?}"))),
        }
        if over {
            return Ok(());
        }
    }
}

fn late_pin_race(run: &Run) -> Outcome {
    let file = memory(1)?;
    for mut random in run.rounds(1) {
        let space = Space::new()?;
        space.ioas.map(area(&file, 0, PAGE, 0)?)?;
        let (closed, pins) = (AtomicBool::new(false), AtomicU64::new(0));
        let worker = |_: &AtomicBool| pin_until_closed(run, &space.access, &closed, &pins);
        let workers: Vec<Work<'_>> = (0..run.threads()).map(|_| &worker as Work<'_>).collect();
        beside(&workers, || {
            let begun = await_that("a worker pins", || pins.load(Ordering::Relaxed) > 0);
            random.spin();
            let result = run.time("close", || space.access.close(LONG));
            closed.store(true, Ordering::SeqCst);
            begun.and(result.map_err(Failure::from))
        })?;
        space.end()?;
    }
    Ok(())
}

fn other_device_waiters(run: &Run) -> Outcome {
    let file = memory(2)?;
    for mut random in run.rounds(2) {
        let space = Space::new()?;
        space.ioas.map(area(&file, 0, PAGE, 0)?)?;
        space.ioas.map(area(&file, PAGE, PAGE, PAGE)?)?;
        let areas = |space: &Space| space.ioas.areas().iter().map(|area| area.range).collect::<Vec<_>>();
        let before = areas(&space);
        let closing = Attached::to(&space.ioas)?;
        let (closed, pins, others) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let leaving = |_: &AtomicBool| pin_until_closed(run, &closing.access, &closed, &pins);
        let staying = |stop: &AtomicBool| {
            let mut lane = space.access.lane();
            while !stopped(stop) {
                space
                    .device
                    .pin(&mut lane, 8, 64)
                    .map_err(|error| Failure::new(format!("the device that stays was refused: {error}")))?;
                lane.enter().slice(Iova(PAGE), 8, BOTH)?;
                space.device.let_go();
                others.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let on = |counter: &AtomicU64, by: u64| {
            let end = counter.load(Ordering::Relaxed) + by;
            await_that("a device goes on", || counter.load(Ordering::Relaxed) >= end)
        };
        beside(&[&leaving, &staying], || {
            let begun = on(&pins, 1).and(on(&others, 1));
            random.spin();
            let result = run.time("close", || closing.access.close(LONG));
            closed.store(true, Ordering::SeqCst);
            begun?;
            result?;
            on(&others, 10)
        })?;
        expect(space.device.told().is_empty(), "the device that stays was called back")?;
        expect_equal(areas(&space), before, "areas after the close")?;
        expect_errno(space.ioas.unmap(range(0, 1)?, LONG), super::space::ENOENT, "an unmap of one byte")?;
        space.end()?;
    }
    Ok(())
}
