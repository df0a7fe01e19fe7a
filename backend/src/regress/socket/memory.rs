//! Memory that is shared anew by other names, and memory that is taken away by messages.
use super::guest::{Connection, Memory, churn, exchange};
use super::held;
use super::leaving::{buffers, expect_untouched};
use super::server::Server;
use crate::regress::random::Random;
use crate::regress::run::Run;
use crate::regress::scenario::{Body, Failure, Outcome, Scenario};
use crate::regress::space::{SECOND, await_that, beside};
use crate::sys::Kicks;
use std::sync::atomic::AtomicBool;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        number: 21,
        name: "mem-table-new-vaddrs",
        origin: "Q",
        bound: SECOND,
        shows: "a second connection shares the same files by other user addresses while the first is open: rings go \
                on where they stopped, and old addresses mean nothing there",
        body: Body::Play(mem_table_new_vaddrs),
    },
    Scenario {
        number: 22,
        name: "remreg-barrier",
        origin: "Q",
        bound: SECOND,
        shows: "memory is removed, the table replaced, or the rings stopped under traffic or while a store holds the \
                requests: the reply comes after the last access, and nothing is written later",
        body: Body::Play(remreg_barrier),
    },
];

/// How far apart the user addresses of the two processes are.
const SHIFT: u64 = 0x10_0000_0000;

fn mem_table_new_vaddrs(run: &Run) -> Outcome {
    let server = Server::start()?;
    for mut random in run.rounds(10) {
        let memory = Memory::new()?;
        let mut old = Connection::start(&server, &memory)?;
        exchange(&memory, &old.fds, 1 + random.below(100))?;
        for index in 0..2 {
            run.time("stop", || old.stop_ring(&memory, index))?;
        }
        let mut new = Connection::new(&server, SHIFT)?;
        run.time("share", || new.share(&memory))?;
        old_addresses_mean_nothing(&mut new, &memory)?;
        for index in 0..2 {
            run.time("start", || new.start_ring(&memory, index))?;
        }
        exchange(&memory, &new.fds, 100)?;
        drop(old);
        exchange(&memory, &new.fds, 100)?;
        drop(new);
    }
    server.end()
}

/// A ring that is placed by user addresses of the other process must fail, and can be placed anew.
fn old_addresses_mean_nothing(connection: &mut Connection, memory: &Memory) -> Outcome {
    connection.start_ring_by(memory, 1, 0)?;
    let fds = connection.fds.clone();
    let [_, tx] = &*fds;
    await_that("a ring at an address of the old process fails", || tx.err.drain() != Kicks::None)?;
    connection.front.stop(1)?;
    Ok(())
}

/// By which message memory is taken away.
#[derive(Copy, Clone)]
pub enum Way {
    /// REM_MEM_REG.
    Region,
    /// SET_MEM_TABLE without the region.
    Table,
    /// GET_VRING_BASE of all rings.
    Stop,
}

impl Way {
    /// One of them.
    pub fn any(random: &mut Random) -> Way {
        match random.below(3) {
            0 => Way::Region,
            1 => Way::Table,
            _ => Way::Stop,
        }
    }
}

fn take(connection: &mut Connection, memory: &Memory, way: Way) -> Outcome {
    match way {
        Way::Region => {
            let buffers = connection.named(memory, 1)?;
            connection.front.client().remove_mem_region(buffers)?;
        }
        Way::Table => {
            let rings = connection.named(memory, 0)?;
            let region = memory.guest.regions().first().ok_or_else(|| Failure::new("there are no rings"))?;
            connection.front.client().set_mem_table(&[(rings, region.extent.file.as_fd())])?;
        }
        Way::Stop => {
            for index in 0..2 {
                connection.front.stop(index)?;
            }
        }
    }
    Ok(())
}

fn remreg_barrier(run: &Run) -> Outcome {
    let server = Server::start()?;
    for mut random in run.rounds(4) {
        let memory = Memory::new()?;
        let mut connection = Connection::start(&server, &memory)?;
        let fds = connection.fds.clone();
        let driver = |stop: &AtomicBool| churn(&memory, &fds, stop);
        let before = server.taken();
        let way = Way::any(&mut random);
        beside(&[&driver], || {
            await_that("traffic", || server.taken() > before + 32)?;
            random.spin();
            run.time("reply", || take(&mut connection, &memory, way))?;
            expect_untouched(buffers(&memory)?, &mut random)
        })?;
    }
    server.end()?;
    held::barrier(run)
}
