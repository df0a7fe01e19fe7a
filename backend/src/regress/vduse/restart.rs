//! The daemon ends or is killed while it has requests in flight, and another one goes on with what is recorded of them.
use super::disk::{self, Disk};
use super::front::{connect, only, region};
use super::killed::Child;
use super::server::{KernelServer, Place};
use crate::driver::SplitQueue;
use crate::driver::vdpa::{BusDevice, VdpaFrontEnd};
use crate::regress::random::Random;
use crate::regress::run::Run;
use crate::regress::scenario::{Body, Failure, Outcome, Scenario, expect, expect_equal};
use crate::regress::socket::device::{Grip, HeldDevice};
use crate::regress::socket::held::{await_pending, store, stored};
use crate::regress::socket::requests::{Asked, BLOCK, Memory, Ring, SLOTS};
use crate::regress::space::{LONG, SECOND, await_that, beside, pause};
use crate::store::Operation;
use crate::store::held::Held;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    number: 26,
    name: "daemon-restart",
    origin: "V/Q",
    bound: SECOND,
    shows: "daemons end, and processes of daemons are killed, while requests are in flight and while the front-end unmaps, and the \
            next one finds the kernel's device and the record: no request is lost, none is carried out or answered twice, and \
            none fails",
    body: Body::Play(restart),
}];

fn restart(run: &Run) -> Outcome {
    for mut random in run.rounds(20) {
        let held = store();
        let mut server = KernelServer::held(&held, 1, Grip::Kernel)?;
        let (memory, mut rings) = Memory::new(1, 2)?;
        let ring = only(&mut rings)?;
        let front = connect(&server, &memory, &[ring])?;
        let fill = random.number() as u8;
        memory.buffers(1)?.fill(fill);
        let (mut written, mut next) = (Vec::new(), 0);
        while next < SLOTS {
            for _ in 0..1 + random.below(4) {
                if next < SLOTS {
                    ring.ask(Asked { slot: next, operation: Operation::WRITE, region: 1 })?;
                    next += 1;
                }
            }
            await_pending(&held, ring.outstanding())?;
            end_some(ring, &held, &mut random, &mut written)?;
            server = run.time("restart", || ended(server, &front, &memory, &held, &mut random))?;
            written.extend(answers(ring.used()?)?);
        }
        let left = ring.outstanding();
        await_pending(&held, left)?;
        expect_equal(held.finish_all(), left, "requests that the last device has")?;
        written.extend(answers(ring.await_used(left)?)?);
        written.sort_unstable();
        expect_equal(written, (0..SLOTS).collect(), "requests that were answered, each once")?;
        for slot in 0..SLOTS {
            expect_equal(stored(&held, slot), vec![fill; BLOCK as usize], "bytes in the store")?;
        }
        drop(front);
        server.end()?;
    }
    killed(run)
}

/// Some of the requests end, in any order.
fn end_some(ring: &mut Ring, held: &Held, random: &mut Random, written: &mut Vec<u16>) -> Outcome {
    let mut count = 0;
    for _ in 0..random.below(3) {
        let pending = held.pending();
        let Some(one) = pending.get(random.below(pending.len() as u64) as usize) else { break };
        count += usize::from(held.finish(one.id));
    }
    written.extend(answers(ring.await_used(count)?)?);
    Ok(())
}

/// The slots of requests that were answered, all of which must have been carried out.
fn answers(used: Vec<(Asked, u32)>) -> Result<Vec<u16>, Failure> {
    let whole = used.iter().all(|(_, moved)| *moved == BLOCK);
    expect(whole, "a request was answered that was not carried out")?;
    Ok(used.into_iter().map(|(asked, _)| asked.slot).collect())
}

/// Another daemon, of a device that knows nothing but the record. Sometimes the front-end takes memory back meanwhile, and
/// waits for the next daemon.
fn ended(
    server: KernelServer,
    front: &VdpaFrontEnd,
    memory: &Memory,
    held: &Held,
    random: &mut Random,
) -> Result<KernelServer, Failure> {
    let changes = random.below(2) == 0;
    let other = region(memory, 2)?;
    let device = Arc::new(HeldDevice::new(held.clone(), 1, Grip::Kernel)?);
    let change = |_: &AtomicBool| {
        if changes {
            front.take_back(other)?;
            front.lend(other)?;
        }
        Ok(())
    };
    let mut next = None;
    beside(&[&change], || {
        let none_left = || expect_equal(held.pending().len(), 0, "requests of a daemon that is gone");
        next = Some(server.restart(device, none_left)?);
        Ok(())
    })?;
    next.ok_or_else(|| Failure::new("there is no other daemon"))
}

/// Processes that serve a block device are killed, and the driver writes all the while.
fn killed(run: &Run) -> Outcome {
    let place = Place::new()?;
    let file = place.folder.join("disk");
    std::fs::File::create(&file)?.set_len(disk::SIZE)?;
    let serve = || Child::daemon(&place, &file);
    let mut child = serve()?;
    child.await_that("the kernel has the device", || place.is_there())?;
    let bus = BusDevice::add(&place.name, LONG)?;
    let mut disk = Disk::<SplitQueue>::new()?;
    let front = VdpaFrontEnd::open(bus.path(), 0, 0)?;
    front.share(&disk.guest)?;
    disk.start(&front)?;
    for mut random in run.rounds(20) {
        let until = Instant::now() + Duration::from_micros(random.below(50_000));
        while Instant::now() < until {
            disk.write()?;
            disk.reap()?;
            pause();
        }
        disk.write()?;
        child.kill()?;
        child = serve()?;
        run.time("requests end", || disk.settle())?;
    }
    run.time("what is on the disk", || disk.check())?;
    drop(front);
    bus.remove()?;
    child.end()?;
    await_that("the kernel's device goes", || !place.is_there())
}
