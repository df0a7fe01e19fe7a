//! The table of memory changes while requests are in flight, and has holes.
use super::front::{connect, only, region, round_trip, start};
use super::server::KernelServer;
use crate::driver::vdpa::VdpaFrontEnd;
use crate::regress::random::Random;
use crate::regress::run::Run;
use crate::regress::scenario::{Body, Failure, Outcome, Scenario, expect, expect_equal};
use crate::regress::socket::device::Grip;
use crate::regress::socket::held::{await_pending, store, stored};
use crate::regress::socket::leaving::expect_untouched;
use crate::regress::socket::requests::{Asked, BLOCK, BLOCKS, Memory, Ring, SLOTS};
use crate::regress::space::{LONG, PAGE, SECOND, await_that, beside};
use crate::store::Operation;
use crate::store::held::{Held, Pending};
use mdev_protocol::vhost_user::IotlbPerm;
use mdev_protocol::vhost_vdpa::{IotlbChange, IotlbMessage};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        number: 23,
        name: "iotlb-miss-no-update",
        origin: "Q",
        bound: SECOND,
        shows: "a request is about memory that was never lent, or that the kernel leaves out since it is private to a process: \
                it is not taken and its queue fails, the other queue goes on, and after a reset and with memory all is well",
        body: Body::Play(iotlb_miss_no_update),
    },
    Scenario {
        number: 25,
        name: "update-iotlb-inflight",
        origin: "V",
        bound: SECOND,
        shows: "memory is unmapped while requests in it and elsewhere are in flight: the call returns when those in it have \
                ended, the others go on meanwhile; changes of other memory wait for nobody, a map over another is refused, and \
                memory that is lent anew is used",
        body: Body::Play(update_iotlb_inflight),
    },
];

/// How long the device may keep a call waiting whatever its requests do.
pub const PROMISED: Duration = LONG;

fn update_iotlb_inflight(run: &Run) -> Outcome {
    let held = store();
    let server = KernelServer::held(&held, 1, Grip::Kernel)?;
    for mut random in run.rounds(8) {
        let (memory, mut rings) = Memory::new(1, 3)?;
        let ring = only(&mut rings)?;
        let front = connect(&server, &memory, &[ring])?;
        let fill = random.number() as u8;
        for number in 1..=2 {
            memory.buffers(number)?.fill(fill);
        }
        let chance = random.number();
        for slot in 0..SLOTS {
            let operation = if random.below(2) == 0 { Operation::Read } else { Operation::WRITE };
            ring.ask(Asked { slot, operation, region: region_of(slot, chance) })?;
        }
        await_pending(&held, SLOTS.into())?;
        elsewhere(run, &front, &memory, &mut random)?;
        expect_equal(held.pending().len(), SLOTS.into(), "requests that wait for nothing but the store")?;

        let returned = AtomicBool::new(false);
        let going = region(&memory, 1)?;
        let unmap = |_: &AtomicBool| {
            let begun = Instant::now();
            let done = front.take_back(going);
            returned.store(true, Ordering::SeqCst);
            run.note(begun.elapsed());
            Ok(done?)
        };
        let mut late = Vec::new();
        let ended = beside(&[&unmap], || {
            random.spin();
            late = end_one_by_one(ring, &held, &mut random, chance, &returned)?;
            await_that("the call returns", || returned.load(Ordering::SeqCst))
        });
        // Nobody waits for what is left.
        held.finish_all();
        ended?;
        for (asked, moved) in late {
            expect_equal(moved, BLOCK, "bytes of a request")?;
            let wanted = match asked.operation {
                Operation::Read => stored(&held, asked.slot),
                _ => vec![fill; BLOCK as usize],
            };
            expect_equal(memory.block(asked.region, asked.slot)?, wanted, "the bytes of a request")?;
        }
        expect_untouched(memory.buffers(1)?, &mut random)?;
        run.time("map", || front.lend(going))?;
        run.time("round trip", || round_trip(ring, &held, 1, 0))?;
        drop(front);
    }
    server.end()
}

/// Half of the requests is in the memory that goes, at least one of them.
fn region_of(slot: u16, chance: u64) -> u64 {
    match slot {
        0 => 1,
        1 => 2,
        slot => 1 + (chance >> slot & 1),
    }
}

/// Memory in which no request is comes and goes, alone and in batches, and is not lent twice.
fn elsewhere(run: &Run, front: &VdpaFrontEnd, memory: &Memory, random: &mut Random) -> Outcome {
    let (busy, idle) = (region(memory, 1)?, region(memory, 3)?);
    for _ in 0..1 + random.below(3) {
        run.time("unmap of other memory", || front.take_back(idle))?;
        run.time("map of other memory", || front.lend(idle))?;
    }
    for taken in [busy, idle] {
        let twice = run.time("map over another", || front.lend(taken));
        expect(twice.is_err(), "memory was lent where other memory is")?;
    }
    Ok(())
}

/// Ends those elsewhere, with one more round trip, and then those in the memory that goes.
fn end_one_by_one(
    ring: &mut Ring,
    held: &Held,
    random: &mut Random,
    chance: u64,
    returned: &AtomicBool,
) -> Result<Vec<(Asked, u32)>, Failure> {
    let slot_of = |pending: &Pending| (pending.offset / u64::from(BLOCK)) as u16;
    let mut used = Vec::new();
    for region in [2, 1] {
        loop {
            let early = returned.load(Ordering::SeqCst);
            let pending: Vec<_> =
                held.pending().into_iter().filter(|one| region_of(slot_of(one), chance) == region).collect();
            let Some(one) = pending.get(random.below(pending.len() as u64) as usize) else { break };
            expect(!early, "the call returned while a request was in flight there")?;
            expect(held.finish(one.id), "the request had ended by itself")?;
            used.append(&mut ring.await_used(1)?);
        }
        if region == 2 {
            round_trip(ring, held, 2, 1)?;
        }
    }
    Ok(used)
}

/// Why there is no memory at an address.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Hole {
    /// Nobody lent any.
    Nothing,
    /// It is a private mapping, which the kernel leaves out without a word.
    Private,
}

fn iotlb_miss_no_update(run: &Run) -> Outcome {
    let held = store();
    let server = KernelServer::held(&held, 2, Grip::Kernel)?;
    for mut random in run.rounds(10) {
        let (memory, rings) = Memory::new(2, 2)?;
        let Ok([mut starved, mut other]) = <[Ring; 2]>::try_from(rings) else {
            return Err(Failure::new("there are not two rings"));
        };
        let mut front = connect(&server, &memory, &[&starved, &other])?;
        let missing = region(&memory, 1)?;
        run.time("unmap", || front.take_back(missing))?;
        let hole = if random.below(2) == 0 { Hole::Nothing } else { Hole::Private };
        let private = vec![0u8; (BLOCKS + PAGE) as usize];
        if hole == Hole::Private {
            lend_private(&front, missing.range.first().0, &private)?;
        }
        let before = server.counters(0).errors;
        let slot = random.below(SLOTS.into()) as u16;
        starved.ask(Asked { slot, operation: Operation::Read, region: 1 })?;
        run.time("the queue fails", || await_that("the queue fails", || server.counters(0).errors > before))?;
        expect_equal(held.pending().len(), 0, "requests that were taken")?;
        run.time("the other queue", || round_trip(&mut other, &held, 2, slot))?;
        expect_equal(starved.used()?.len(), 0, "requests that were answered")?;
        run.time("map", || front.lend(missing))?;
        run.time("reset", || front.reset())?;
        start(&front, &[&starved, &other])?;
        run.time("the request", || await_pending(&held, 1))?;
        held.finish_all();
        let moved: Vec<u32> = starved.await_used(1)?.into_iter().map(|(_, moved)| moved).collect();
        expect_equal(moved, vec![BLOCK], "bytes of the request")?;
        expect_equal(memory.block(1, slot)?, stored(&held, slot), "the bytes of the request")?;
        drop((front, private));
    }
    server.end()
}

/// What a front-end does that knows nothing of files: it lends the pages that these bytes lie in.
fn lend_private(front: &VdpaFrontEnd, iova: u64, bytes: &[u8]) -> Outcome {
    let user_addr = (bytes.as_ptr().addr() as u64).next_multiple_of(PAGE);
    let perm = IotlbPerm::READ | IotlbPerm::WRITE;
    let change = IotlbChange::Update { iova, size: BLOCKS, user_addr, perm };
    front.vdpa().begin_batch(0)?;
    rustix::io::write(front.vdpa().as_fd(), &IotlbMessage { asid: 0, change }.to_bytes())?;
    Ok(front.vdpa().end_batch(0)?)
}
