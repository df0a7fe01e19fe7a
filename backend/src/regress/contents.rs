//! Copies under way while their memory goes, and how long memory stays.
use super::run::Run;
use super::scenario::{Body, Failure, Outcome, Scenario, expect, expect_equal};
use super::space::{
    BOTH, EINVAL, ENOENT, LONG, PAGE, SECOND, Space, area, await_that, beside, errno, memory, range, stopped,
};
use mdev_dma::{Iova, IovaRange};
use mdev_pin::{Burst, ResolveError, Rw};
use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        number: 14,
        name: "rw-vs-unmap",
        origin: "K",
        bound: SECOND,
        shows: "an area is unmapped during a long copy: the unmap ends after that copy, which is whole",
        body: Body::Play(rw_vs_unmap),
    },
    Scenario {
        number: 19,
        name: "fd-closed-first",
        origin: "K",
        bound: SECOND,
        shows: "the last user of a space but the device is gone: the device works on, and its close frees all",
        body: Body::Play(fd_closed_first),
    },
    Scenario {
        number: 20,
        name: "truncate-under-io",
        origin: "K",
        bound: SECOND,
        shows: "the file is truncated or punched during requests and under a pin: those requests fail or read \
                zeros, everything else goes on, and a seal prevents it",
        body: Body::Play(truncate_under_io),
    },
];

/// Pages of the long copy.
const LENGTH: u64 = 64;

fn rw_vs_unmap(run: &Run) -> Outcome {
    let size = LENGTH * PAGE;
    let len = u32::try_from(size)?;
    let file = memory(LENGTH)?;
    let whole = range(0, size)?;
    for mut random in run.rounds(4) {
        let space = Space::new()?;
        space.ioas.map(area(&file, 0, size, 0)?)?;
        let by_rw = random.below(2) == 0;
        let (copies, copying) = (AtomicU64::new(0), AtomicBool::new(false));
        let worker = |stop: &AtomicBool| {
            let mut lane = space.access.lane();
            while !stopped(stop) {
                let copy = copies.load(Ordering::Relaxed) + 1;
                let code = if by_rw {
                    let bytes = vec![copy as u8; size as usize];
                    let copied = space.access.rw(Iova(0), Rw::Write(&bytes));
                    copied.map_or_else(|error| error.errno(), |()| 0)
                } else {
                    let burst = lane.enter();
                    errno(burst.slice(Iova(0), len, BOTH).map(|slice| {
                        copying.store(true, Ordering::SeqCst);
                        slice.fill(copy as u8);
                        copying.store(false, Ordering::SeqCst);
                    }))
                };
                match code {
                    0 => copies.store(copy, Ordering::Relaxed),
                    ENOENT | EINVAL => {}
                    code => return Err(Failure::new(format!("a copy ended with {code}"))),
                }
            }
            Ok(())
        };
        let contents = || {
            let mut bytes = vec![0; size as usize];
            expect_equal(rustix::io::pread(file.as_fd(), &mut bytes, 0)?, bytes.len(), "bytes read")?;
            expect(bytes.iter().all(|byte| bytes.first() == Some(byte)), "the last copy is not whole")?;
            Ok::<_, Failure>(bytes)
        };
        beside(&[&worker], || {
            await_that("a copy", || copies.load(Ordering::Relaxed) > 0)?;
            random.spin();
            let unmapped = run.time("unmap", || space.ioas.unmap(whole, LONG))?;
            expect(!copying.load(Ordering::SeqCst), "the unmap returned during a copy")?;
            expect_equal(unmapped, size, "bytes unmapped")?;
            let after = contents()?;
            random.spin();
            expect(contents()? == after, "a copy was made after the unmap")
        })?;
        expect(space.device.told().len() == 1, "not exactly one callback")?;
        space.end()?;
    }
    Ok(())
}

fn fd_closed_first(run: &Run) -> Outcome {
    for _ in run.rounds(10) {
        let Space { windows, ioas, device, access } = Space::new()?;
        let file = memory(1)?;
        ioas.map(area(&file, 0, PAGE, 0)?)?;
        drop((ioas, file));
        let mut lane = access.lane();
        run.time("pin", || device.pin(&mut lane, 8, 64))?;
        lane.enter().slice(Iova(0), 8, BOTH)?.fill(1);
        expect_equal(windows.live(), 1, "windows while the device is there")?;
        run.time("close", || access.close(LONG))?;
        expect_equal(errno(lane.enter().pin(Iova(0), 1, BOTH)), ENOENT, "a pin after the close")?;
        expect_equal((access.pins(), device.held()), (0, 0), "pins after the close")?;
        drop((lane, access));
        expect_equal(windows.live(), 0, "windows after the close")?;
    }
    Ok(())
}

fn truncate_under_io(run: &Run) -> Outcome {
    for mut random in run.rounds(10) {
        let space = Space::new()?;
        let (shrinking, fine) = (memory(2)?, memory(1)?);
        let other = 4 * PAGE;
        space.ioas.map(area(&shrinking, 0, 2 * PAGE, 0)?)?;
        space.ioas.map(area(&fine, other, PAGE, 0)?)?;
        let (done, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        let pin = space.access.lane().enter().pin(Iova(PAGE), 64, BOTH)?;
        let worker = |stop: &AtomicBool| {
            let mut lane = space.access.lane();
            while !stopped(stop) {
                let request = |burst: &Burst<'_>, at| {
                    burst.slice(Iova(at), 64, BOTH).map(|slice| slice.fill(1))?;
                    if burst.poisoned() { Err(ResolveError::Poisoned) } else { Ok(()) }
                };
                match request(&lane.enter(), 8) {
                    Ok(()) => {}
                    Err(ResolveError::Poisoned) => drop(failed.fetch_add(1, Ordering::SeqCst)),
                    Err(error) => return Err(error.into()),
                }
                request(&lane.enter(), other)
                    .map_err(|error| Failure::new(format!("a request on another file failed: {error}")))?;
                done.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        };
        beside(&[&worker], || {
            await_that("requests", || done.load(Ordering::SeqCst) > 10)?;
            let holes = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(shrinking.as_fd(), holes, 0, 2 * PAGE)?;
            expect_equal(failed.load(Ordering::SeqCst), 0, "requests that failed because of a hole")?;
            random.spin();
            ftruncate(shrinking.as_fd(), 0)?;
            run.time("requests fail", || {
                await_that("a request fails", || failed.load(Ordering::SeqCst) > 0)
            })?;
            let end = done.load(Ordering::SeqCst) + 10;
            await_that("requests on another file", || done.load(Ordering::SeqCst) > end)
        })?;
        // What is held stays an address that can be touched.
        expect_equal(pin.slices().map(|slice| slice.fill(1)).count(), 1, "pieces of the pin")?;
        drop(pin);
        ftruncate(shrinking.as_fd(), 2 * PAGE)?;
        space.ioas.unmap(range(0, 2 * PAGE)?, LONG)?;
        space.ioas.map(area(&shrinking, 0, 2 * PAGE, 0)?)?;
        let mut lane = space.access.lane();
        let burst = lane.enter();
        expect_equal(errno(burst.slice(Iova(0), 64, BOTH)), 0, "an access after mapping anew")?;
        drop(burst);
        fcntl_add_seals(fine.as_fd(), SealFlags::SHRINK)?;
        let refused = ftruncate(fine.as_fd(), 0);
        expect_equal(refused, Err(rustix::io::Errno::PERM), "truncating a sealed file")?;
        expect_equal(space.ioas.unmap(IovaRange::FULL, LONG)?, 3 * PAGE, "bytes unmapped")?;
        space.end()?;
    }
    Ok(())
}
