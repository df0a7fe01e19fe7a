//! Memory is taken away while the device has requests in flight, for as long as a store holds them.
use super::leaving::{MARK, expect_untouched};
use super::memory::Way;
use super::requests::{Asked, BLOCK, BLOCKS, Memory, Ring, SLOTS, connect};
use super::server::{Server, mappings};
use crate::driver::FrontEnd;
use crate::regress::random::Random;
use crate::regress::run::Run;
use crate::regress::scenario::{Body, Failure, Outcome, Scenario, expect, expect_equal};
use crate::regress::space::{LONG, SECOND, SHORT, await_that, beside};
use crate::store::Operation;
use crate::store::held::{Delay, Held};
use mdev_protocol::vhost_user::{ClientError, FrontendMessage, VringState};
use mdev_protocol::virtio::status::DEVICE_NEEDS_RESET;
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    number: 8,
    name: "stubborn-device",
    origin: "K",
    bound: SECOND,
    shows: "a request does not end: the message that takes its memory away fails in bounded time, the region is closed, \
            other regions and devices go on, and a later message succeeds; from a device that copies the memory is \
            taken all the same, and the request ends in the void; a request that can be cancelled is",
    body: Body::Play(stubborn_device),
}];

/// A store of one block for each slot.
pub fn store() -> Held {
    Held::new((0..BLOCKS).map(|at| (at / 7) as u8).collect())
}

/// Waits until the store has so many requests.
pub fn await_pending(held: &Held, count: usize) -> Outcome {
    await_that("the store has the requests", || held.pending().len() == count)
}

/// The block of a slot in the store.
pub fn stored(held: &Held, slot: u16) -> Vec<u8> {
    let first = usize::from(slot) * BLOCK as usize;
    held.bytes().into_iter().skip(first).take(BLOCK as usize).collect()
}

/// Takes memory away while every slot has a request in flight. The reply comes after the last of them.
pub fn barrier(run: &Run) -> Outcome {
    let held = store();
    let server = Server::held(&held, 1, LONG)?;
    for mut random in run.rounds(8) {
        let (memory, mut rings) = Memory::new(1, 1)?;
        let ring = rings.first_mut().ok_or_else(|| Failure::new("there is no ring"))?;
        let mut front = connect(&server, &memory)?;
        ring.start(&mut front, &memory, 0)?;
        let fill = random.number() as u8;
        memory.buffers(1)?.fill(fill);
        for slot in 0..SLOTS {
            let operation = if random.below(2) == 0 { Operation::Read } else { Operation::WRITE };
            ring.ask(Asked { slot, operation, region: 1 })?;
        }
        await_pending(&held, SLOTS.into())?;
        let way = Way::any(&mut random);
        let (replied, chance) = (AtomicBool::new(false), random.clone());
        let ender = |_: &AtomicBool| {
            let ended = end_all(&held, &replied, chance.clone());
            // Nobody waits for what this thread has left.
            held.finish_all();
            ended
        };
        let mut seen = Vec::new();
        let mut used = Vec::new();
        beside(&[&ender], || {
            run.time("reply", || take(&mut front, &memory, ring, way))?;
            replied.store(true, Ordering::SeqCst);
            if let Way::Stop = way {
                used = ring.used()?;
                expect_equal(used.len(), SLOTS.into(), "requests that have ended when the ring has stopped")?;
            }
            seen = (0..SLOTS).map(|slot| memory.block(1, slot)).collect::<Result<_, _>>()?;
            expect_untouched(memory.buffers(1)?, &mut random)
        })?;
        if used.is_empty() {
            used = ring.await_used(SLOTS.into())?;
        }
        for (asked, moved) in used {
            let slot = usize::from(asked.slot);
            let seen = seen.get(slot).cloned().unwrap_or_default();
            let wanted = match (moved, asked.operation) {
                (BLOCK, _) => stored(&held, asked.slot),
                (0, _) => vec![fill; BLOCK as usize],
                _ => Vec::new(),
            };
            expect_equal(seen, wanted, "the bytes of a request when the reply had come")?;
        }
    }
    server.end()
}

fn take(front: &mut FrontEnd, memory: &Memory, ring: &mut Ring, way: Way) -> Outcome {
    match way {
        Way::Region => front.client().remove_mem_region(memory.named(1)?)?,
        Way::Table => {
            let rings = memory.guest.regions().first().ok_or_else(|| Failure::new("there are no rings"))?;
            front.client().set_mem_table(&[(memory.named(0)?, rings.extent.file.as_fd())])?;
        }
        Way::Stop => expect_equal(ring.stop(front, 0)?, 0, "chains that were not taken")?,
    }
    Ok(())
}

/// Ends all requests in any order, by hand, by delay or with an error. Fails if the reply comes before the last.
pub fn end_all(held: &Held, replied: &AtomicBool, mut random: Random) -> Outcome {
    // Until the message is there; what was not taken away yet would end in vain.
    std::thread::sleep(Duration::from_micros(random.below(1000)));
    loop {
        let early = replied.load(Ordering::SeqCst);
        let pending = held.pending();
        let Some(one) = pending.get(random.below(pending.len() as u64) as usize) else { return Ok(()) };
        expect(!early, "the reply came while a request was in flight")?;
        match random.below(8) {
            0 => held.fail(one.id, Errno::IO),
            1 => held.delay(one.id, Delay::Others(1 + random.below(2))),
            2 => held.delay(one.id, Delay::Until(Instant::now() + Duration::from_micros(random.below(200)))),
            _ => held.finish(one.id),
        };
        random.spin();
    }
}

/// Front-ends vanish while the store holds their requests, some of them in the middle of a stop.
pub fn vanishing(run: &Run) -> Outcome {
    let held = store();
    let server = Server::held(&held, 1, LONG)?;
    let before = mappings();
    for mut random in run.rounds(8) {
        let (memory, mut rings) = Memory::new(1, 1)?;
        let ring = rings.first_mut().ok_or_else(|| Failure::new("there is no ring"))?;
        let mut front = connect(&server, &memory)?;
        ring.start(&mut front, &memory, 0)?;
        let count = 1 + random.below(SLOTS.into()) as u16;
        for slot in 0..count {
            ring.ask(Asked { slot, operation: Operation::WRITE, region: 1 })?;
        }
        await_pending(&held, count.into())?;
        if random.below(2) == 0 {
            let state = VringState { index: 0, num: 0 };
            front.client().send(&FrontendMessage::GetVringBase(state), &[], false)?;
        }
        run.time("end", || {
            drop((front, rings, memory));
            await_pending(&held, 0)?;
            await_that("the device lets go of the memory", || mappings() <= before)
        })?;
    }
    let (memory, mut rings) = Memory::new(1, 1)?;
    let ring = rings.first_mut().ok_or_else(|| Failure::new("there is no ring"))?;
    let mut front = connect(&server, &memory)?;
    ring.start(&mut front, &memory, 0)?;
    run.time("the next one", || round_trip(ring, &held, 1, 0))?;
    drop((front, rings, memory));
    server.end()
}

fn stubborn_device(run: &Run) -> Outcome {
    for mut random in run.rounds(40) {
        let (held, others) = (store(), store());
        let (server, other) = (Server::stubborn(&held, 2, SHORT)?, Server::held(&others, 1, SHORT)?);
        let (memory, rings) = Memory::new(3, 2)?;
        let Ok([mut stuck, mut second, mut apart]) = <[Ring; 3]>::try_from(rings) else {
            return Err(Failure::new("there are not three rings"));
        };
        let (mut front, mut elsewhere) = (connect(&server, &memory)?, connect(&other, &memory)?);
        stuck.start(&mut front, &memory, 0)?;
        second.start(&mut front, &memory, 1)?;
        apart.start(&mut elsewhere, &memory, 0)?;
        let slot = random.below(SLOTS.into()) as u16;
        stuck.ask(Asked { slot, operation: Operation::Read, region: 1 })?;
        await_pending(&held, 1)?;

        run.time("removal in vain", || refused(&mut front, &memory))?;
        expect_equal(needs_reset(&mut front)?, true, "whether the device asks for a reset")?;
        // Another device, on the same guest's memory.
        round_trip(&mut apart, &others, 1, slot)?;
        // The same device: its rings were stopped; one that is started again works on what is left.
        expect_equal(second.stop(&mut front, 1)?, 0, "chains that were not taken")?;
        second.start(&mut front, &memory, 1)?;
        round_trip(&mut second, &held, 2, slot)?;
        // The region is closed, though it is mapped: the request waits for it outside of the store.
        let parks = server.counters(1).parks;
        second.ask(Asked { slot, operation: Operation::WRITE, region: 1 })?;
        await_that("the closed region is met", || server.counters(1).parks > parks)?;
        expect_equal(second.stop(&mut front, 1)?, 1, "chains that were not taken")?;
        run.time("removal in vain", || refused(&mut front, &memory))?;

        expect_equal(held.pending().len(), 1, "requests in flight")?;
        expect_equal(held.finish_all(), 1, "requests that ended")?;
        run.time("removal", || front.client().remove_mem_region(memory.named(1)?).map_err(Failure::from))?;
        expect_equal(memory.block(1, slot)?, stored(&held, slot), "the bytes of the late request")?;
        expect_untouched(memory.buffers(1)?, &mut random)?;
        let late: Vec<u32> = stuck.await_used(1)?.into_iter().map(|(_, moved)| moved).collect();
        expect_equal(late, vec![BLOCK], "bytes of the late request")?;

        run.time("reset", || front.client().set_status(0))?;
        expect_equal(needs_reset(&mut front)?, false, "whether the device asks for a reset after one")?;
        memory.share(&mut front, 1)?;
        stuck.start(&mut front, &memory, 0)?;
        round_trip(&mut stuck, &held, 1, slot)?;
        second.start(&mut front, &memory, 1)?;
        await_pending(&held, 1)?;
        held.finish_all();
        second.await_used(1)?;
        drop((front, elsewhere));
        server.end()?;
        other.end()?;
    }
    diverted(run)?;
    cancelled(run)
}

/// The kernel is at work on the memory, and the device cancels what does not end in time: the removal succeeds, and the device
/// asks for a reset.
fn cancelled(run: &Run) -> Outcome {
    for mut random in run.rounds(40) {
        let held = store();
        let server = Server::held(&held, 1, SHORT)?;
        let (memory, mut rings) = Memory::new(1, 1)?;
        let ring = rings.first_mut().ok_or_else(|| Failure::new("there is no ring"))?;
        let mut front = connect(&server, &memory)?;
        ring.start(&mut front, &memory, 0)?;
        let slot = random.below(SLOTS.into()) as u16;
        ring.ask(Asked { slot, operation: Operation::Read, region: 1 })?;
        await_pending(&held, 1)?;
        run.time("removal", || front.client().remove_mem_region(memory.named(1)?).map_err(Failure::from))?;
        expect_equal(needs_reset(&mut front)?, true, "whether the device asks for a reset")?;
        expect_equal(held.pending().len(), 0, "requests in flight")?;
        let failed: Vec<u32> = ring.await_used(1)?.into_iter().map(|(_, moved)| moved).collect();
        expect_equal(failed, vec![0], "bytes of a request that was cancelled")?;
        drop((front, rings, memory));
        server.end()?;
    }
    Ok(())
}

/// The device copies by itself, and a request does not end: the removal succeeds, and the copy does not reach the guest.
fn diverted(run: &Run) -> Outcome {
    for mut random in run.rounds(40) {
        let held = store();
        let server = Server::copying(&held, SHORT)?;
        let (memory, mut rings) = Memory::new(1, 1)?;
        let ring = rings.first_mut().ok_or_else(|| Failure::new("there is no ring"))?;
        let mut front = connect(&server, &memory)?;
        ring.start(&mut front, &memory, 0)?;
        let slot = random.below(SLOTS.into()) as u16;
        ring.ask(Asked { slot, operation: Operation::Read, region: 1 })?;
        await_pending(&held, 1)?;
        run.time("removal", || front.client().remove_mem_region(memory.named(1)?).map_err(Failure::from))?;
        expect_equal(needs_reset(&mut front)?, false, "whether the device asks for a reset")?;
        memory.buffers(1)?.fill(MARK);
        expect_equal(held.finish_all(), 1, "requests that ended")?;
        expect_equal(memory.block(1, slot)?, vec![MARK; BLOCK as usize], "the guest's bytes")?;
        ring.await_used(1)?;
        memory.share(&mut front, 1)?;
        round_trip(ring, &held, 1, slot)?;
        drop((front, rings, memory));
        server.end()?;
    }
    Ok(())
}

/// The removal of the first region of buffers, which must be refused.
fn refused(front: &mut FrontEnd, memory: &Memory) -> Outcome {
    match front.client().remove_mem_region(memory.named(1)?) {
        Err(ClientError::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => Err(Failure::new("memory was released while a request was in flight")),
    }
}

fn needs_reset(front: &mut FrontEnd) -> Result<bool, Failure> {
    Ok(front.client().status()? & u64::from(DEVICE_NEEDS_RESET) != 0)
}

/// A read that is finished at once, whatever else the store holds.
fn round_trip(ring: &mut Ring, held: &Held, region: u64, slot: u16) -> Outcome {
    let before = held.pending().len();
    ring.ask(Asked { slot, operation: Operation::Read, region })?;
    await_pending(held, before + 1)?;
    let newest = held.pending().last().map(|pending| pending.id).unwrap_or_default();
    expect(held.finish(newest), "the request had ended by itself")?;
    let moved: Vec<u32> = ring.await_used(1)?.into_iter().map(|(_, moved)| moved).collect();
    expect_equal(moved, vec![BLOCK], "bytes of a request")
}
