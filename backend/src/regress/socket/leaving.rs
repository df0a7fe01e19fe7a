//! Front-ends that go away, in an orderly way or not.
use super::guest::{Connection, Memory, churn, exchange, kick};
use super::held;
use super::server::{Server, mappings};
use crate::regress::random::Random;
use crate::regress::run::{Run, lock};
use crate::regress::scenario::{Body, Failure, Outcome, Scenario, expect_equal};
use crate::regress::space::{SECOND, await_that, beside, pause, stopped};
use mdev_dma::GuestSlice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        number: 2,
        name: "late-pin-race",
        origin: "T",
        bound: SECOND,
        shows: "the connection is closed at a random instant under traffic: the device lets go of all memory, and \
                touches nothing afterwards",
        body: Body::Play(late_pin_race),
    },
    Scenario {
        number: 3,
        name: "other-device-waiters",
        origin: "T",
        bound: SECOND,
        shows: "two devices work on one guest's memory, and one is disconnected: the other loses no frame and \
                finds no hole",
        body: Body::Play(other_device_waiters),
    },
    Scenario {
        number: 24,
        name: "front-end-vanishes",
        origin: "Q/T",
        bound: SECOND,
        shows: "front-ends vanish at random points of their conversation, also while a queue waits for memory or \
                a store holds their requests: the device lets go of all memory and serves the next one",
        body: Body::Play(front_end_vanishes),
    },
];

/// What is written over memory that the device has let go of.
pub const MARK: u8 = 0xa5;

/// All buffers of the guest.
pub fn buffers(memory: &Memory) -> Result<GuestSlice<'_>, Failure> {
    let region = memory.guest.regions().get(1);
    let buffers = region.and_then(|region| memory.guest.slice(region.range.first(), region.size()));
    buffers.ok_or_else(|| Failure::new("there are no buffers"))
}

/// Writes over these bytes, and fails if somebody else writes there in the next moments.
pub fn expect_untouched(buffers: GuestSlice<'_>, random: &mut Random) -> Outcome {
    buffers.fill(MARK);
    for _ in 0..20 {
        random.spin();
        pause();
    }
    let mut bytes = vec![0; buffers.len()];
    buffers.copy_to(&mut bytes);
    let written = bytes.iter().position(|byte| *byte != MARK);
    expect_equal(written, None, "where the device wrote after it had let go")
}

/// Waits until so many mappings of guests' memory are left.
pub fn await_mappings(count: usize) -> Outcome {
    await_that("the device lets go of the memory", || mappings() <= count)
}

fn late_pin_race(run: &Run) -> Outcome {
    let server = Server::start()?;
    for mut random in run.rounds(4) {
        let memory = Memory::new()?;
        let own = mappings();
        let connection = Connection::start(&server, &memory)?;
        let fds = connection.fds.clone();
        let driver = |stop: &AtomicBool| churn(&memory, &fds, stop);
        let before = server.taken();
        beside(&[&driver], || {
            await_that("traffic", || server.taken() > before)?;
            random.spin();
            run.time("close", || {
                drop(connection);
                await_mappings(own)
            })?;
            expect_untouched(buffers(&memory)?, &mut random)
        })?;
    }
    server.end()
}

fn other_device_waiters(run: &Run) -> Outcome {
    let (closing, staying) = (Server::start()?, Server::start()?);
    for mut random in run.rounds(10) {
        let (memory, other) = Memory::pair()?;
        let own = mappings();
        let stays = Connection::start(&staying, &other)?;
        let both = mappings();
        let leaves = Connection::start(&closing, &memory)?;
        let (leaving_fds, staying_fds) = (leaves.fds.clone(), stays.fds.clone());
        let done = AtomicU64::new(0);
        let churning = |stop: &AtomicBool| churn(&memory, &leaving_fds, stop);
        let exchanging = |stop: &AtomicBool| {
            while !stopped(stop) {
                exchange(&other, &staying_fds, 10)?;
                done.fetch_add(10, Ordering::SeqCst);
            }
            Ok(())
        };
        let goes_on = || {
            let end = done.load(Ordering::SeqCst) + 50;
            await_that("frames of the device that stays", || done.load(Ordering::SeqCst) >= end)
        };
        beside(&[&churning, &exchanging], || {
            goes_on()?;
            random.spin();
            run.time("close", || {
                drop(leaves);
                await_mappings(both)
            })?;
            goes_on()
        })?;
        drop(stays);
        await_mappings(own)?;
    }
    staying.is_clean()?;
    closing.end()?;
    staying.end()
}

fn front_end_vanishes(run: &Run) -> Outcome {
    let server = Server::start()?;
    let before = mappings();
    for mut random in run.rounds(4) {
        let memory = Memory::new()?;
        let mut connection = Connection::new(&server, 0)?;
        let last = random.below(7);
        if last > 0 {
            connection.share(&memory)?;
        }
        for index in 0..2u8 {
            if last > 1 + u64::from(index) {
                connection.start_ring(&memory, index)?;
            }
        }
        match last {
            // In the middle of traffic: chains are out that nobody waits for.
            4 => {
                for _ in 0..random.below(20) {
                    lock(&memory.port).churn()?;
                    kick(&connection.fds);
                    random.spin();
                }
            }
            5 => exchange(&memory, &connection.fds, random.below(20))?,
            // While a queue waits for memory that was taken away, and may come back.
            6 => {
                let parks = || server.counters(1).parks;
                let before = parks();
                let buffers = connection.named(&memory, 1)?;
                connection.front.client().remove_mem_region(buffers)?;
                lock(&memory.port).churn()?;
                kick(&connection.fds);
                await_that("the queue waits", || parks() > before)?;
            }
            _ => {}
        }
        run.time("end", || {
            if random.below(2) == 0 {
                drop(memory);
                drop(connection);
            } else {
                drop(connection);
                drop(memory);
            }
            await_mappings(before)
        })?;
    }
    let memory = Memory::new()?;
    let connection = Connection::start(&server, &memory)?;
    run.time("the next one", || exchange(&memory, &connection.fds, 50))?;
    drop((connection, memory));
    server.end()?;
    held::vanishing(run)
}
