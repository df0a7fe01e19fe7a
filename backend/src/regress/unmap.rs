//! Memory is unmapped while a device holds it.
use super::run::Run;
use super::scenario::{Body, Outcome, Scenario, expect, expect_equal};
use super::space::{
    BOTH, EDEADLK, EINVAL, ENOENT, LONG, PAGE, SECOND, SHORT, Space, area, await_that, beside, errno,
    expect_errno, memory, pause, range, stopped,
};
use mdev_dma::{Iova, IovaRange};
use std::sync::atomic::{AtomicBool, Ordering};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        number: 7,
        name: "unmap-with-pin",
        origin: "S",
        bound: SECOND,
        shows: "an unmap calls back once, the device lets its pin go there, and the unmap succeeds",
        body: Body::Play(unmap_with_pin),
    },
    Scenario {
        number: 8,
        name: "stubborn-device",
        origin: "K",
        bound: SECOND,
        shows: "a device does not let go: the unmap fails in bounded time, the area stays mapped and closed, \
                and a later unmap succeeds",
        body: Body::Play(stubborn_device),
    },
    Scenario {
        number: 9,
        name: "pin-record-gap",
        origin: "K/S",
        bound: SECOND,
        shows: "a worker pauses between a pin and its record: the unmap waits for the burst and then sees the pin",
        body: Body::Play(pin_record_gap),
    },
    Scenario {
        number: 15,
        name: "partial-unmap",
        origin: "S",
        bound: SECOND,
        shows: "an unmap of half an area is refused, and area, pins and gate are as they were",
        body: Body::Play(partial_unmap),
    },
    Scenario {
        number: 16,
        name: "multi-area-unmap",
        origin: "K",
        bound: SECOND,
        shows: "of two areas the second is held: the first goes and can be used again, the second stays",
        body: Body::Play(multi_area_unmap),
    },
];

fn unmap_with_pin(run: &Run) -> Outcome {
    let file = memory(2)?;
    for mut random in run.rounds(10) {
        let space = Space::new()?;
        space.ioas.map(area(&file, PAGE, 2 * PAGE, 0)?)?;
        let at = PAGE + random.below(2 * PAGE - 64);
        space.device.pin(&mut space.access.lane(), at, 64)?;
        let whole = range(PAGE, 2 * PAGE)?;
        let unmapped = run.time("unmap", || space.ioas.unmap(whole, LONG))?;
        expect_equal(unmapped, 2 * PAGE, "bytes unmapped")?;
        expect_equal(space.device.told(), vec![whole], "callbacks")?;
        expect_equal(space.ioas.pins(), 0, "pins after the unmap")?;
        expect_equal(space.windows.live(), 0, "windows after the unmap")?;
        expect_errno(space.ioas.unmap(whole, LONG), ENOENT, "a second unmap")?;
        space.end()?;
    }
    Ok(())
}

fn stubborn_device(run: &Run) -> Outcome {
    let file = memory(2)?;
    for _ in run.rounds(50) {
        let space = Space::new()?;
        space.ioas.map(area(&file, 0, PAGE, 0)?)?;
        space.ioas.map(area(&file, PAGE, PAGE, PAGE)?)?;
        space.device.set_stubborn(true);
        let mut lane = space.access.lane();
        space.device.pin(&mut lane, 8, 64)?;
        let first = range(0, PAGE)?;
        expect_errno(run.time("unmap", || space.ioas.unmap(first, SHORT)), EDEADLK, "the unmap")?;
        {
            let burst = lane.enter();
            expect_equal(errno(burst.slice(Iova(0), 1, BOTH)), EINVAL, "an access to the closed area")?;
            expect_equal(errno(burst.pin(Iova(0), 1, BOTH)), EINVAL, "a pin on the closed area")?;
            expect_equal(errno(burst.pin(Iova(PAGE), 1, BOTH)), 0, "a pin on another area")?;
        }
        expect_equal(space.ioas.areas().len(), 2, "areas after the failed unmap")?;
        space.device.let_go();
        expect_equal(errno(lane.enter().slice(Iova(0), 1, BOTH)), EINVAL, "an access after the pin is gone")?;
        expect_equal(run.time("retry", || space.ioas.unmap(first, LONG))?, PAGE, "bytes of the retry")?;
        expect_equal(errno(lane.enter().slice(Iova(0), 1, BOTH)), ENOENT, "an access after the retry")?;
        expect_equal(errno(lane.enter().slice(Iova(PAGE), 1, BOTH)), 0, "an access to the other area")?;
        space.device.set_stubborn(false);
        space.end()?;
    }
    Ok(())
}

fn pin_record_gap(run: &Run) -> Outcome {
    let file = memory(1)?;
    let whole = range(0, PAGE)?;
    for mut random in run.rounds(2) {
        let space = Space::new()?;
        space.ioas.map(area(&file, 0, PAGE, 0)?)?;
        let (pinned, go) = (AtomicBool::new(false), AtomicBool::new(false));
        let worker = |stop: &AtomicBool| {
            let mut lane = space.access.lane();
            let burst = lane.enter();
            let pin = burst.pin(Iova(8), 64, BOTH)?;
            pinned.store(true, Ordering::SeqCst);
            while !go.load(Ordering::SeqCst) && !stopped(stop) {
                pause();
            }
            space.device.record(range(8, 64)?, pin);
            Ok(())
        };
        beside(&[&worker], || {
            await_that("the worker has its pin", || pinned.load(Ordering::SeqCst))?;
            let mut change = space.ioas.begin_unmap(whole, LONG)?;
            for _ in 0..random.below(50) {
                expect(change.poll().is_none(), "the unmap did not wait for the burst")?;
            }
            expect(space.device.told().is_empty(), "the device was called back inside its burst")?;
            go.store(true, Ordering::SeqCst);
            expect_equal(run.time("unmap", || change.wait())?, PAGE, "bytes unmapped")
        })?;
        expect_equal(space.device.held(), 0, "recorded pins that the callback did not see")?;
        space.end()?;
    }
    late_record_is_not_seen(run)
}

/// The counterpart: a device that records its pin after the burst breaks its duty, and the unmap says so.
fn late_record_is_not_seen(run: &Run) -> Outcome {
    let file = memory(1)?;
    let space = Space::new()?;
    space.ioas.map(area(&file, 0, PAGE, 0)?)?;
    let late = space.access.lane().enter().pin(Iova(8), 64, BOTH)?;
    let whole = range(0, PAGE)?;
    let unmapped = run.time("unmap", || space.ioas.unmap(whole, SHORT));
    expect_errno(unmapped, EDEADLK, "an unmap with a pin that was never recorded")?;
    drop(late);
    expect_equal(space.ioas.unmap(whole, LONG)?, PAGE, "bytes of the retry")?;
    space.end()
}

fn partial_unmap(run: &Run) -> Outcome {
    let file = memory(2)?;
    for mut random in run.rounds(10) {
        let space = Space::new()?;
        let size = 2 * PAGE;
        space.ioas.map(area(&file, size, size, 0)?)?;
        let mut lane = space.access.lane();
        space.device.pin(&mut lane, size + 8, 64)?;
        let part = 1 + random.below(size - 1);
        for half in [range(size, part)?, range(size + part, size - part)?, range(0, size + part)?] {
            let unmapped = run.time("unmap", || space.ioas.unmap(half, LONG));
            expect_errno(unmapped, ENOENT, "an unmap of a part")?;
        }
        expect(space.device.told().is_empty(), "the device was called back")?;
        expect_equal(space.access.pins(), 1, "pins after the refusal")?;
        expect_equal(errno(lane.enter().pin(Iova(size), 64, BOTH)), 0, "a pin after the refusal")?;
        expect_equal(run.time("unmap", || space.ioas.unmap(IovaRange::FULL, LONG))?, size, "bytes of all")?;
        space.end()?;
    }
    Ok(())
}

fn multi_area_unmap(run: &Run) -> Outcome {
    let file = memory(3)?;
    for _ in run.rounds(50) {
        let space = Space::new()?;
        for page in 0..2 {
            space.ioas.map(area(&file, page * PAGE, PAGE, page * PAGE)?)?;
        }
        space.device.set_stubborn(true);
        let mut lane = space.access.lane();
        space.device.pin(&mut lane, PAGE + 8, 64)?;
        let both = range(0, 2 * PAGE)?;
        expect_errno(run.time("unmap", || space.ioas.unmap(both, SHORT)), EDEADLK, "the unmap of both")?;
        let left: Vec<_> = space.ioas.areas().iter().map(|area| area.range).collect();
        expect_equal(left, vec![range(PAGE, PAGE)?], "areas after the failed unmap")?;
        space.ioas.map(area(&file, 0, PAGE, 2 * PAGE)?)?;
        expect_equal(errno(lane.enter().slice(Iova(0), 8, BOTH)), 0, "an access to the area mapped anew")?;
        expect_equal(errno(lane.enter().slice(Iova(PAGE), 8, BOTH)), EINVAL, "an access to the held area")?;
        space.device.set_stubborn(false);
        space.device.let_go();
        expect_equal(run.time("retry", || space.ioas.unmap(both, LONG))?, 2 * PAGE, "bytes of the retry")?;
        space.end()?;
    }
    Ok(())
}
