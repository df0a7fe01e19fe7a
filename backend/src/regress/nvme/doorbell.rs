//! Doorbells that are trapped, while the memory that they are about is away.
use super::host::{Host, QUEUES, store, unmap_of};
use crate::driver::nvme::{DoorbellWay, NvmeController};
use crate::regress::random::Random;
use crate::regress::run::Run;
use crate::regress::scenario::{Body, Failure, Outcome, Scenario, expect, expect_equal};
use crate::regress::socket::held::await_pending;
use crate::regress::socket::server::Server;
use crate::regress::space::{LONG, PAGE, SECOND};
use crate::store::held::Held;
use crate::sys::OwnerProcess;
use mdev_protocol::nvme::command::Command;
use mdev_protocol::nvme::identify::cns;
use mdev_protocol::nvme::opcode::admin;
use mdev_protocol::nvme::register::{CSTS, csts};
use mdev_protocol::vfio_user::{DmaFlags, DmaMap, DmaUnmap, Request};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    number: 4,
    name: "trapped-mmio-no-close",
    origin: "T",
    bound: SECOND,
    shows: "the thread that serves a trapped doorbell finds the data or the queue of the command in memory that is being \
            unmapped or is away, and whose owner is stopped or dead: it answers the next register at once, though \
            nobody closes the device, and the commands are carried out when the memory is back",
    body: Body::Play(trapped_mmio_no_close),
}];

/// Where the guest sees the memory of its owner: a page for answers, and one that a command in flight holds.
const OWNED: u64 = 1 << 33;
/// Doorbells while memory is being unmapped, and while it is away.
const DOORBELLS: u64 = 8;
/// How long a command waits for its memory.
const WAIT: Duration = Duration::from_secs(1);
const IDENTIFY: &str = "Identify";

/// A range that goes and comes back.
struct Range<'r> {
    unmap: Request,
    map: Request,
    file: BorrowedFd<'r>,
    /// A page of it that a command in flight holds.
    held: u64,
}

fn trapped_mmio_no_close(run: &Run) -> Outcome {
    let held = store();
    let server = Server::nvme_held(&held, LONG)?;
    for mut random in run.rounds(10) {
        let (mut owner, file) = OwnerProcess::start(usize::try_from(2 * PAGE)?)?;
        let mut host = Host::new(&server, DoorbellWay::Trapped)?;
        let map =
            DmaMap { flags: DmaFlags::READ | DmaFlags::WRITE, offset: 0, address: OWNED, size: 2 * PAGE };
        host.controller.function().client().dma_map(map, Some(file.as_fd()))?;
        let owned = Range {
            unmap: Request::DmaUnmap(DmaUnmap::Range { address: OWNED, size: 2 * PAGE }),
            map: Request::DmaMap(map),
            file: file.as_fd(),
            held: OWNED + PAGE,
        };
        rings(run, &mut host, &held, &owned, Some(&mut owner), &mut random)?;
        // The same where it is the queues that go.
        let queues = host.region(QUEUES)?;
        let last = queues.range.last().0 + 1 - PAGE;
        let address = queues.range.first().0;
        let queues = Range {
            unmap: unmap_of(&queues),
            map: Request::DmaMap(DmaMap {
                address,
                size: queues.size(),
                offset: queues.extent.offset,
                ..map
            }),
            file: queues.extent.file.as_fd(),
            held: last,
        };
        rings(run, &mut host, &held, &queues, None, &mut random)?;
        drop(owner);
    }
    server.end()
}

/// Rings while the range is being unmapped, which takes until a command in flight has ended, and while it is away.
fn rings(
    run: &Run,
    host: &mut Host,
    held: &Held,
    range: &Range<'_>,
    mut owner: Option<&mut OwnerProcess>,
    random: &mut Random,
) -> Outcome {
    let function = host.controller.function().clone();
    host.read_into(range.held)?;
    await_pending(held, 1)?;
    let unmap = function.client().send(&range.unmap, &[])?;
    let (since, mut asked) = (Instant::now(), Vec::new());
    for number in 0..DOORBELLS {
        match (number, &mut owner) {
            (2, Some(owner)) => owner.stop()?,
            (4, Some(owner)) => owner.kill()?,
            _ => {}
        }
        asked.push(run.time("doorbell while memory is being unmapped", || ring(&mut host.controller))?);
        random.spin();
    }
    expect_equal(function.client().under_way(), 1, "unmaps that are under way while a command is in flight")?;
    expect_equal(held.finish_all(), 1, "commands that end")?;
    run.time("unmap", || function.client().await_reply(unmap))?;
    for _ in 0..DOORBELLS {
        asked.push(run.time("doorbell while memory is away", || ring(&mut host.controller))?);
        random.spin();
    }
    run.time("map", || function.client().call(&range.map, &[range.file]))?;
    for cid in asked {
        let end = run.time("command", || host.controller.end(IDENTIFY, cid))?.status();
        // One that waits for too long fails by itself.
        let late = since.elapsed() >= WAIT;
        expect(end.is_success() || late, &format!("a command ended with {end:?} when its memory was back"))?;
    }
    let cid = ring(&mut host.controller)?;
    let end = run.time("command", || host.controller.end(IDENTIFY, cid))?.status();
    expect(end.is_success(), &format!("the next command ended with {end:?}"))?;
    host.await_other()
}

/// Rings for a command whose data go to the owner's memory. The thread that serves the doorbell is then free for a register.
fn ring(controller: &mut NvmeController) -> Result<u16, Failure> {
    let identify =
        Command { dptr: [OWNED, 0], cdw10: cns::CONTROLLER.into(), ..Command::new(admin::IDENTIFY, 0, 0) };
    let cid = controller.begin(IDENTIFY, identify)?;
    let status = controller.function().read32(CSTS)?;
    expect_equal(status & (csts::READY | csts::FATAL), csts::READY, "the controller's status")?;
    Ok(cid)
}
