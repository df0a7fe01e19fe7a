//! Requests that do not end in the memory that goes, and memory that is lost under them.
use super::front::{connect, only, region, round_trip, start};
use super::iotlb::PROMISED;
use super::server::KernelServer;
use crate::driver::vdpa::{VdpaFrontEnd, VdpaFrontEndError};
use crate::regress::run::Run;
use crate::regress::scenario::{Body, Failure, Outcome, Scenario, expect, expect_equal};
use crate::regress::socket::device::Grip;
use crate::regress::socket::held::{await_pending, store, stored};
use crate::regress::socket::leaving::{MARK, expect_untouched};
use crate::regress::socket::requests::{Asked, BLOCK, Memory, Ring, SLOTS};
use crate::regress::space::{LONG, SECOND, await_that, beside};
use crate::store::Operation;
use rustix::fs::ftruncate;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        number: 8,
        name: "stubborn-device",
        origin: "K",
        bound: LONG,
        shows: "a request does not end: its memory is taken away from a device that copies, and the request ends in the void; \
                one that can be cancelled is; a device that can do neither stands still until it lets go and is reset; every call \
                returns within five seconds, and requests elsewhere go on meanwhile",
        body: Body::Play(stubborn_device),
    },
    Scenario {
        number: 20,
        name: "truncate-under-io",
        origin: "K",
        bound: SECOND,
        shows: "a file is truncated while requests in it are in flight: those fail, those in other memory succeed, and memory \
                that is lent anew is used",
        body: Body::Play(truncate_under_io),
    },
];

fn stubborn_device(run: &Run) -> Outcome {
    for _ in run.rounds(100) {
        for grip in [Grip::Copies, Grip::Kernel, Grip::Stubborn] {
            stubborn(run, grip)?;
        }
    }
    Ok(())
}

fn stubborn(run: &Run, grip: Grip) -> Outcome {
    let held = store();
    let server = KernelServer::held(&held, 1, grip)?;
    let (memory, mut rings) = Memory::new(1, 2)?;
    let ring = only(&mut rings)?;
    let mut front = connect(&server, &memory, &[ring])?;
    let going = region(&memory, 1)?;
    ring.ask(Asked { slot: 0, operation: Operation::Read, region: 1 })?;
    await_pending(&held, 1)?;
    let returned = AtomicBool::new(false);
    let unmap = |_: &AtomicBool| {
        let begun = Instant::now();
        let done = front.take_back(going);
        returned.store(true, Ordering::SeqCst);
        run.note(begun.elapsed());
        expect(begun.elapsed() < PROMISED, "the unmap took longer than the device may take")?;
        Ok(done?)
    };
    let mut others = 0;
    beside(&[&unmap], || {
        while !returned.load(Ordering::SeqCst) && others < 100 {
            round_trip(ring, &held, 2, 1)?;
            others += 1;
        }
        await_that("the call returns", || returned.load(Ordering::SeqCst))
    })?;
    expect(others >= 10, "requests in other memory did not go on while the unmap waited")?;
    memory.buffers(1)?.fill(MARK);
    match grip {
        Grip::Copies => {
            expect_equal(held.finish_all(), 1, "requests that ended")?;
            expect_equal(memory.block(1, 0)?, vec![MARK; BLOCK as usize], "the guest's bytes")?;
            ring.await_used(1)?;
            front.lend(going)?;
        }
        Grip::Kernel => {
            expect_equal(held.pending().len(), 0, "requests in flight")?;
            front.lend(going)?;
            again(run, &mut front, ring)?;
        }
        Grip::Stubborn => {
            let reset = run.time("reset in vain", || timed(&mut front))?;
            expect(reset.is_err(), "a device that did not let go was reset")?;
            expect_equal(held.finish_all(), 1, "requests that ended")?;
            front.lend(going)?;
            again(run, &mut front, ring)?;
        }
    }
    run.time("round trip", || round_trip(ring, &held, 1, 0))?;
    drop(front);
    server.end()
}

/// A driver that has lost a request resets the device and asks again.
fn again(run: &Run, front: &mut VdpaFrontEnd, ring: &mut Ring) -> Outcome {
    run.time("reset", || front.reset())?;
    let lost = ring.reset()?;
    start(front, &[ring])?;
    let lost: Vec<u16> = lost.into_iter().map(|asked| asked.slot).collect();
    expect_equal(lost, vec![0], "requests that were not answered")
}

/// A reset that takes no longer than it may.
fn timed(front: &mut VdpaFrontEnd) -> Result<Result<(), VdpaFrontEndError>, Failure> {
    let begun = Instant::now();
    let reset = front.reset();
    expect(begun.elapsed() < PROMISED, "the reset took longer than the device may take")?;
    Ok(reset)
}

fn truncate_under_io(run: &Run) -> Outcome {
    let held = store();
    let server = KernelServer::held(&held, 1, Grip::Kernel)?;
    for mut random in run.rounds(10) {
        let (memory, mut rings) = Memory::new(1, 2)?;
        let ring = only(&mut rings)?;
        let front = connect(&server, &memory, &[ring])?;
        let losing = region(&memory, 1)?;
        for slot in 0..SLOTS {
            let operation = if random.below(2) == 0 { Operation::Read } else { Operation::WRITE };
            ring.ask(Asked { slot, operation, region: 1 + u64::from(slot % 2) })?;
        }
        await_pending(&held, SLOTS.into())?;
        ftruncate(losing.extent.file.as_fd(), 0)?;
        expect_equal(held.finish_all(), SLOTS.into(), "requests that ended")?;
        for (asked, moved) in run.time("ends", || ring.await_used(SLOTS.into()))? {
            let wanted = if asked.region == 1 { 0 } else { BLOCK };
            expect_equal(moved, wanted, "bytes of a request when one of the files was truncated")?;
        }
        run.time("round trip elsewhere", || round_trip(ring, &held, 2, 1))?;
        run.time("unmap", || front.take_back(losing))?;
        ftruncate(losing.extent.file.as_fd(), losing.size())?;
        run.time("map", || front.lend(losing))?;
        run.time("round trip", || round_trip(ring, &held, 1, 0))?;
        expect_equal(memory.block(1, 0)?, stored(&held, 0), "bytes of memory that was lent anew")?;
        run.time("unmap", || front.take_back(losing))?;
        expect_untouched(memory.buffers(1)?, &mut random)?;
        drop(front);
    }
    server.end()
}
