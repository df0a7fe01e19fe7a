//! Clients that go away.
use super::host::{BUFFERS, Host, MEMORY, QUEUES, REQUESTS, any_way, store, unmap_of};
use crate::driver::nvme::DoorbellWay;
use crate::regress::run::Run;
use crate::regress::scenario::{Body, Outcome, Scenario};
use crate::regress::socket::held::await_pending;
use crate::regress::socket::leaving::{await_mappings, expect_untouched};
use crate::regress::socket::server::{Server, mappings};
use crate::regress::space::{LONG, SECOND, await_that};
use mdev_protocol::vfio_user::Capabilities;
use rustix::net::{Shutdown, shutdown};

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
        number: 24,
        name: "front-end-vanishes",
        origin: "Q/T",
        bound: SECOND,
        shows: "clients vanish at random points of their conversation, also while a queue waits for memory or a store \
                holds their commands: the device lets go of all memory and serves the next one",
        body: Body::Play(front_end_vanishes),
    },
];

fn late_pin_race(run: &Run) -> Outcome {
    let server = Server::nvme(MEMORY)?;
    for mut random in run.rounds(4) {
        let before = mappings();
        let mut host = Host::new(&server, any_way(&mut random))?;
        // Each of its two regions is mapped once by itself.
        let own = before + 2;
        for _ in 0..random.below(8) {
            host.submit(&mut random)?;
            host.await_success()?;
        }
        host.submit(&mut random)?;
        random.spin();
        run.time("close", || {
            shutdown(&*host.controller.function().client(), Shutdown::Both)?;
            await_mappings(own)
        })?;
        for region in [QUEUES, BUFFERS] {
            expect_untouched(host.bytes(region)?, &mut random)?;
        }
    }
    server.end()
}

fn front_end_vanishes(run: &Run) -> Outcome {
    let server = Server::nvme(MEMORY)?;
    let before = mappings();
    for mut random in run.rounds(4) {
        let way = any_way(&mut random);
        match random.below(6) {
            0 => drop(server.vfio_client()?),
            1 => {
                server.vfio_client()?.negotiate(Capabilities::default())?;
            }
            2 => drop(Host::enabled(&server, way)?),
            // In the middle of traffic: commands are out that nobody waits for.
            3 => {
                let mut host = Host::new(&server, way)?;
                for _ in 0..random.below(20) {
                    host.submit(&mut random)?;
                    host.reap()?;
                    random.spin();
                }
            }
            4 => {
                let mut host = Host::new(&server, way)?;
                host.submit(&mut random)?;
                host.await_success()?;
                host.controller.shut_down()?;
            }
            // While a queue waits for memory that was taken away, and may come back.
            _ => {
                let parks = || server.counters(0).parks;
                let mut host = Host::new(&server, way)?;
                let waiting = parks();
                host.controller.function().take_back_region(&host.region(BUFFERS)?)?;
                host.submit(&mut random)?;
                await_that("the queue waits", || parks() > waiting)?;
            }
        }
        run.time("end", || await_mappings(before))?;
    }
    let mut host = Host::new(&server, DoorbellWay::Trapped)?;
    run.time("the next one", || {
        host.read()?;
        host.await_success()
    })?;
    drop(host);
    server.end()?;
    vanishing(run)
}

/// The same while the store holds their commands, some of which somebody else waits for.
fn vanishing(run: &Run) -> Outcome {
    let held = store();
    let server = Server::nvme_held(&held, LONG)?;
    let before = mappings();
    for mut random in run.rounds(8) {
        let mut host = Host::new(&server, any_way(&mut random))?;
        host.submit(&mut random)?;
        await_pending(&held, REQUESTS.into())?;
        if random.below(2) == 0 {
            let region = host.region(BUFFERS)?;
            host.controller.function().client().send(&unmap_of(&region), &[])?;
        }
        run.time("end", || {
            drop(host);
            await_pending(&held, 0)?;
            await_mappings(before)
        })?;
    }
    server.end()
}
