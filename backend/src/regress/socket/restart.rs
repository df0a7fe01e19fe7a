//! The device ends while it has requests in flight, and another one goes on with what is recorded of them.
use super::held::{await_pending, store, stored};
use super::requests::{Asked, BLOCK, Memory, Ring, SLOTS, connect_recorded};
use super::server::Server;
use crate::driver::{FrontEnd, InFlightRecord};
use crate::regress::random::Random;
use crate::regress::run::Run;
use crate::regress::scenario::{Body, Failure, Outcome, Scenario, expect_equal};
use crate::regress::space::{LONG, SECOND, await_that};
use crate::store::Operation;
use crate::store::held::Held;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    number: 26,
    name: "daemon-restart",
    origin: "V/Q",
    bound: SECOND,
    shows: "rings are stopped, connections end and daemons end while requests are in flight, and the next one is given the \
            record of them: no request is lost, none is answered twice, and none fails",
    body: Body::Play(restart),
}];

/// How a device loses its requests.
#[derive(Copy, Clone, Debug)]
enum End {
    /// The ring is stopped, and leaves what it has in flight.
    Stop,
    /// The connection ends.
    Connection,
    /// The daemon ends.
    Daemon,
}

fn restart(run: &Run) -> Outcome {
    for mut random in run.rounds(8) {
        let held = store();
        let mut server = Server::held(&held, 1, LONG)?;
        let (memory, mut rings) = Memory::new(1, 1)?;
        let ring = rings.first_mut().ok_or_else(|| Failure::new("there is no ring"))?;
        let fill = random.number() as u8;
        memory.buffers(1)?.fill(fill);
        let mut record: Option<InFlightRecord> = None;
        let mut written = Vec::new();
        let mut next = 0;
        while next < SLOTS {
            let (mut front, kept) = connect_recorded(&server, &memory, record)?;
            ring.start(&mut front, &memory, 0)?;
            for _ in 0..1 + random.below(4) {
                if next < SLOTS {
                    ring.ask(Asked { slot: next, operation: Operation::WRITE, region: 1 })?;
                    next += 1;
                }
            }
            run.time("start", || await_pending(&held, ring.outstanding()))?;
            end_some(ring, &held, &mut random, &mut written)?;
            let end = match random.below(3) {
                0 => End::Stop,
                1 => End::Connection,
                _ => End::Daemon,
            };
            server = run.time("end", || ended(server, front, &held, end))?;
            // What the device had told before it ended.
            written.extend(answers(ring.used()?)?);
            record = Some(kept);
        }
        let (mut front, _kept) = connect_recorded(&server, &memory, record)?;
        ring.start(&mut front, &memory, 0)?;
        let left = ring.outstanding();
        await_pending(&held, left)?;
        expect_equal(held.finish_all(), left, "requests that the last device has")?;
        written.extend(answers(ring.await_used(left)?)?);
        written.sort_unstable();
        expect_equal(written, (0..SLOTS).collect(), "requests that were answered, each once")?;
        for slot in 0..SLOTS {
            expect_equal(stored(&held, slot), vec![fill; BLOCK as usize], "bytes in the store")?;
        }
        drop((front, rings, memory));
        server.end()?;
    }
    Ok(())
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
    expect_equal(whole, true, "whether all requests that were answered were carried out")?;
    Ok(used.into_iter().map(|(asked, _)| asked.slot).collect())
}

/// The server that the next front-end connects to. None of the requests of the last one is in flight.
fn ended(server: Server, mut front: FrontEnd, held: &Held, end: End) -> Result<Server, Failure> {
    let server = match end {
        End::Stop => {
            front.stop(0)?;
            expect_equal(held.pending().len(), 0, "requests in flight of a ring that was stopped")?;
            server
        }
        End::Connection => server,
        End::Daemon => {
            drop(front);
            server.end()?;
            return Server::held(held, 1, LONG);
        }
    };
    drop(front);
    await_that("the device lets go of its requests", || held.pending().is_empty())?;
    Ok(server)
}
