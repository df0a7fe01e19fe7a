//! The owner of the memory does something to it, or to itself, while a device works on it.
use super::close::pin_until_closed;
use super::run::Run;
use super::scenario::{Body, Failure, Outcome, Scenario, expect, expect_equal};
use super::space::{
    Attached, BOTH, EINVAL, ENOENT, LONG, PAGE, SECOND, Space, area, await_that, beside, errno, expect_errno,
    pause, range, stopped,
};
use crate::sys::OwnerProcess;
use mdev_dma::{BackingFile, FilePolicy, Iova, IovaRange};
use mdev_pin::{Access, Rw};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        number: 1,
        name: "close-vs-workqueue",
        origin: "T",
        bound: SECOND,
        shows: "the owner's process is stopped while workers pin: the device can be closed without it",
        body: Body::Play(close_vs_workqueue),
    },
    Scenario {
        number: 4,
        name: "trapped-mmio-no-close",
        origin: "T",
        bound: SECOND,
        shows: "the thread that serves a doorbell pins while the area is unmapped and the owner stopped or dead: \
                it is free again at once, though nobody closes the device",
        body: Body::Play(trapped_mmio_no_close),
    },
    Scenario {
        number: 5,
        name: "vaddr-window",
        origin: "T",
        bound: SECOND,
        shows: "the owner unmaps its memory and maps it elsewhere: the device goes on meanwhile, on the same bytes",
        body: Body::Play(vaddr_window),
    },
    Scenario {
        number: 18,
        name: "owner-sigkill-file",
        origin: "K/S",
        bound: SECOND,
        shows: "the owner is killed: the device goes on, new pins succeed, and all is freed when it is closed",
        body: Body::Play(owner_sigkill_file),
    },
];

/// An owner, and its memory on a space.
fn owner_of(pages: u64, space: &Space) -> Result<(OwnerProcess, Arc<BackingFile>), Failure> {
    let (owner, fd) = OwnerProcess::start(usize::try_from(pages * PAGE)?)?;
    Ok((owner, owned(fd, pages, space)?))
}

/// An owner's file, on a space.
pub fn owned(fd: OwnedFd, pages: u64, space: &Space) -> Result<Arc<BackingFile>, Failure> {
    let file = BackingFile::new(fd, &FilePolicy::default())?;
    space.ioas.map(area(&file, 0, pages * PAGE, 0)?)?;
    Ok(file)
}

/// Writes numbers to the first word and reads them back, and pins. Every access must succeed.
pub fn work(access: &Access, stop: &AtomicBool, done: &AtomicU64) -> Outcome {
    let mut lane = access.lane();
    while !stopped(stop) {
        let next = done.load(Ordering::Relaxed) + 1;
        {
            let burst = lane.enter();
            let word = burst.slice(Iova(0), 8, BOTH)?;
            word.write(0, next);
            expect_equal(word.read::<u64>(0), Some(next), "what was read back")?;
            expect(!burst.poisoned(), "a page was lost")?;
        }
        drop(lane.enter().pin(Iova(8), 64, BOTH)?);
        done.store(next, Ordering::SeqCst);
    }
    Ok(())
}

/// Waits until a worker has done `more`.
pub fn goes_on(done: &AtomicU64, more: u64) -> Outcome {
    let end = done.load(Ordering::SeqCst) + more;
    await_that("the device goes on", || done.load(Ordering::SeqCst) >= end)
}

fn close_vs_workqueue(run: &Run) -> Outcome {
    for mut random in run.rounds(10) {
        let space = Space::new()?;
        let (owner, file) = owner_of(1, &space)?;
        let (closed, pins) = (AtomicBool::new(false), AtomicU64::new(0));
        let worker = |_: &AtomicBool| pin_until_closed(run, &space.access, &closed, &pins);
        beside(&[&worker], || {
            let ready = owner.stop().map_err(Failure::from).and_then(|()| goes_on(&pins, 1));
            random.spin();
            let result = run.time("close", || space.access.close(LONG));
            closed.store(true, Ordering::SeqCst);
            ready?;
            Ok(result?)
        })?;
        expect_equal(space.access.pins(), 0, "pins after the close")?;
        drop(file);
        space.end()?;
    }
    Ok(())
}

fn trapped_mmio_no_close(run: &Run) -> Outcome {
    for mut random in run.rounds(10) {
        let space = Space::new()?;
        let (mut owner, file) = owner_of(1, &space)?;
        let whole = range(0, PAGE)?;
        let remapping = |stop: &AtomicBool| {
            while !stopped(stop) {
                expect_equal(space.ioas.unmap(whole, LONG)?, PAGE, "bytes unmapped")?;
                space.ioas.map(area(&file, 0, PAGE, 0)?)?;
                pause();
            }
            Ok(())
        };
        beside(&[&remapping], || {
            let mut lane = space.access.lane();
            for doorbell in 0..200 {
                match doorbell {
                    50 => owner.stop()?,
                    100 => owner.kill()?,
                    _ => {}
                }
                let codes = run.time("doorbell", || {
                    let copied = space.access.rw(Iova(8), Rw::Write(&[1; 8]));
                    let burst = lane.enter();
                    let filled = burst.slice(Iova(8), 8, BOTH).map(|slice| slice.fill(1));
                    let pinned = burst.pin(Iova(64), 64, BOTH);
                    [copied.map_or_else(|error| error.errno(), |()| 0), errno(filled), errno(pinned)]
                });
                let known = codes.iter().all(|code| [0, ENOENT, EINVAL].contains(code));
                expect(known, &format!("a doorbell's copy, access and pin ended with {codes:?}"))?;
                random.spin();
            }
            Ok(())
        })?;
        drop(file);
        space.end()?;
    }
    Ok(())
}

fn vaddr_window(run: &Run) -> Outcome {
    for _ in run.rounds(10) {
        let space = Space::new()?;
        let (owner, file) = owner_of(2, &space)?;
        let done = AtomicU64::new(0);
        let (first, _) = owner.map()?;
        let worker = |stop: &AtomicBool| work(&space.access, stop, &done);
        beside(&[&worker], || {
            goes_on(&done, 10)?;
            owner.unmap()?;
            run.time("work without a mapping of the owner", || goes_on(&done, 100))?;
            let before = done.load(Ordering::SeqCst);
            let (second, word) = owner.map()?;
            expect(second != first, "the owner maps its memory at the same address")?;
            expect(word >= before, "the owner sees old bytes at its new address")?;
            goes_on(&done, 10)
        })?;
        drop(file);
        space.end()?;
    }
    Ok(())
}

fn owner_sigkill_file(run: &Run) -> Outcome {
    for mut random in run.rounds(10) {
        let space = Space::new()?;
        let (mut owner, file) = owner_of(2, &space)?;
        let done = AtomicU64::new(0);
        space.device.pin(&mut space.access.lane(), PAGE, 64)?;
        let worker = |stop: &AtomicBool| work(&space.access, stop, &done);
        beside(&[&worker], || {
            goes_on(&done, 10)?;
            random.spin();
            owner.kill()?;
            run.time("work without the owner", || goes_on(&done, 100))
        })?;
        let late = Attached::to(&space.ioas)?;
        run.time("pin after the owner", || late.device.pin(&mut late.access.lane(), 8, 64))?;
        late.access.close(LONG)?;
        space.ioas.map(area(&file, 4 * PAGE, PAGE, PAGE)?)?;
        expect_errno(space.ioas.unmap(range(0, PAGE)?, LONG), ENOENT, "an unmap of a part")?;
        let freed = run.time("unmap", || space.ioas.unmap(IovaRange::FULL, LONG))?;
        expect_equal(freed, 3 * PAGE, "bytes unmapped")?;
        drop(file);
        space.end()?;
    }
    Ok(())
}
