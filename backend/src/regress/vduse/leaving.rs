//! Front-ends that go away, in an orderly way or not.
use super::front::{Connection, buffers, connect, only, round_trip};
use super::killed::Child;
use super::server::KernelServer;
use crate::regress::run::{Run, lock};
use crate::regress::scenario::{Body, Outcome, Scenario, expect};
use crate::regress::socket::device::Grip;
use crate::regress::socket::guest::{Memory, churn, exchange, kick};
use crate::regress::socket::held::{await_pending, store};
use crate::regress::socket::leaving::{self, await_mappings, expect_untouched};
use crate::regress::socket::requests::{self, Asked, SLOTS};
use crate::regress::socket::server::mappings;
use crate::regress::space::{LONG, SECOND, await_that, beside, stopped};
use crate::store::Operation;
use crate::store::held::Held;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        number: 2,
        name: "late-pin-race",
        origin: "T",
        bound: SECOND,
        shows: "the file of vhost-vdpa is closed at a random instant under traffic: the device lets go of all memory, and \
                touches nothing afterwards",
        body: Body::Play(late_pin_race),
    },
    Scenario {
        number: 3,
        name: "other-device-waiters",
        origin: "T",
        bound: SECOND,
        shows: "two devices work on one guest's memory, and the file of one is closed: the other loses no frame and finds no hole",
        body: Body::Play(other_device_waiters),
    },
    Scenario {
        number: 24,
        name: "front-end-vanishes",
        origin: "Q/T",
        bound: LONG,
        shows: "front-ends close their file at random points, and are killed while a store holds their requests and while they \
                map and unmap: the device lets go of all memory and serves the next one",
        body: Body::Play(front_end_vanishes),
    },
];

fn late_pin_race(run: &Run) -> Outcome {
    let server = KernelServer::start()?;
    for mut random in run.rounds(4) {
        let memory = Memory::new()?;
        let own = mappings();
        let Connection { front, fds } = Connection::start(&server, &memory)?;
        let driver = |stop: &AtomicBool| churn(&memory, &fds, stop);
        let before = server.taken();
        beside(&[&driver], || {
            await_that("traffic", || server.taken() > before)?;
            random.spin();
            run.time("close", || {
                drop(front);
                await_mappings(own)
            })?;
            expect_untouched(leaving::buffers(&memory)?, &mut random)
        })?;
    }
    server.end()
}

fn other_device_waiters(run: &Run) -> Outcome {
    let (closing, staying) = (KernelServer::start()?, KernelServer::start()?);
    for mut random in run.rounds(10) {
        let (memory, other) = Memory::pair()?;
        let own = mappings();
        let stays = Connection::start(&staying, &other)?;
        let both = mappings();
        let Connection { front: leaves, fds: leaving_fds } = Connection::start(&closing, &memory)?;
        let done = AtomicU64::new(0);
        let churning = |stop: &AtomicBool| churn(&memory, &leaving_fds, stop);
        let exchanging = |stop: &AtomicBool| {
            while !stopped(stop) {
                exchange(&other, &stays.fds, 10)?;
                done.fetch_add(10, Ordering::SeqCst);
            }
            Ok(())
        };
        let goes_on = || {
            let end = done.load(Ordering::SeqCst).saturating_add(50);
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
    let server = KernelServer::start()?;
    let before = mappings();
    for mut random in run.rounds(4) {
        let memory = Memory::new()?;
        let connection = Connection::new(&server)?;
        let last = random.below(7);
        if last > 0 {
            connection.front.share(&memory.guest)?;
        }
        if last > 1 {
            connection.start_rings(&memory)?;
        }
        if last > 2 {
            connection.front.run()?;
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
            // While a queue finds no memory.
            6 => {
                connection.front.take_back(buffers(&memory)?)?;
                lock(&memory.port).churn()?;
                kick(&connection.fds);
                random.spin();
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
    held(run)
}

/// The same while the store holds their requests. The device waits for those for a while, and then cancels them.
fn held(run: &Run) -> Outcome {
    let held = store();
    let server = KernelServer::held(&held, 1, Grip::Kernel)?;
    let before = mappings();
    for mut random in run.rounds(20) {
        let killed = random.below(4) > 0;
        let stays = random.below(4) == 0;
        let wait = Duration::from_millis(random.below(30));
        // Some of the requests end before the front-end has gone, mostly.
        let ender = |_: &AtomicBool| {
            std::thread::sleep(wait);
            if !stays {
                held.finish_all();
            }
            Ok(())
        };
        if killed {
            let way = if random.below(2) == 0 { Driven::Elsewhere } else { Driven::There };
            let mut child = Child::front_end(server.path(), way)?;
            child.await_that("a front-end has requests in flight", || {
                held.pending().len() == usize::from(SLOTS)
            })?;
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
            beside(&[&ender], || run.time("kill", || child.kill()))?;
        } else {
            let (memory, mut rings) = requests::Memory::new(1, 1)?;
            let ring = only(&mut rings)?;
            let front = connect(&server, &memory, &[ring])?;
            let count = 1 + random.below(SLOTS.into()) as u16;
            for slot in 0..count {
                ring.ask(Asked { slot, operation: Operation::WRITE, region: 1 })?;
            }
            await_pending(&held, count.into())?;
            beside(&[&ender], || {
                run.time("close", || drop((front, rings, memory)));
                Ok(())
            })?;
        }
        run.time("end", || {
            await_pending(&held, 0)?;
            await_mappings(before)
        })?;
    }
    next(run, &server, &held)?;
    server.end()
}

/// Whoever comes next is served.
fn next(run: &Run, server: &KernelServer, held: &Held) -> Outcome {
    let (memory, mut rings) = requests::Memory::new(1, 1)?;
    let ring = only(&mut rings)?;
    let front = connect(server, &memory, &[ring])?;
    run.time("the next one", || round_trip(ring, held, 1, 0))?;
    drop(front);
    expect(held.pending().is_empty(), "requests are left")
}

/// What a front-end does that is going to be killed.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Driven {
    /// It maps and unmaps memory in which no request is.
    Elsewhere,
    /// It unmaps memory in which requests are in flight, and waits for them.
    There,
}

impl Driven {
    /// As a word of the command line.
    pub fn word(self) -> &'static str {
        match self {
            Driven::Elsewhere => "elsewhere",
            Driven::There => "there",
        }
    }
}
