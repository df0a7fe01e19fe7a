//! Memory that is taken away in other ways than its client thinks, or not at all.
use super::host::{BUFFERS, Host, MEMORY, any_way, store, stored};
use crate::driver::MemoryOptions;
use crate::regress::run::Run;
use crate::regress::scenario::{Body, Failure, Outcome, Scenario, expect, expect_equal};
use crate::regress::socket::held::await_pending;
use crate::regress::socket::leaving::{MARK, expect_untouched};
use crate::regress::socket::server::Server;
use crate::regress::space::{PAGE, SECOND, SHORT, await_that};
use crate::store::held::Held;
use mdev_dma::Iova;
use mdev_protocol::vfio_user::{ClientError, DmaFlags, DmaMap, DmaUnmap};
use rustix::fs::ftruncate;
use rustix::io::Errno;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        number: 8,
        name: "stubborn-device",
        origin: "K",
        bound: SECOND,
        shows: "a command does not end: its memory is taken away from the device all the same, the command ends in the \
                void, others go on, and memory that is lent anew is used",
        body: Body::Play(stubborn_device),
    },
    Scenario {
        number: 15,
        name: "partial-unmap",
        origin: "S",
        bound: SECOND,
        shows: "an unmap of half a range, and a map over one, are refused under traffic, and every command succeeds",
        body: Body::Play(partial_unmap),
    },
    Scenario {
        number: 20,
        name: "truncate-under-io",
        origin: "K",
        bound: SECOND,
        shows: "the file of data is truncated under traffic: those commands fail, those on other memory succeed, and \
                memory that is lent anew is used",
        body: Body::Play(truncate_under_io),
    },
];

/// Where the guest sees other data.
const ELSEWHERE: Iova = Iova(1 << 34);

/// A read that ends at once, whatever else the store holds.
fn round_trip(host: &mut Host, held: &Held) -> Outcome {
    let before = held.pending().len();
    let tag = host.read()?;
    await_pending(held, before + 1)?;
    let newest = held.pending().last().map(|pending| pending.id).unwrap_or_default();
    expect(held.finish(newest), "the command had ended by itself")?;
    let mut ended = Vec::new();
    await_that("a command ends", || match host.reap() {
        Ok(mut more) => {
            ended.append(&mut more);
            !ended.is_empty()
        }
        Err(_) => true,
    })?;
    let ends: Vec<_> = ended.iter().map(|end| (end.tag, end.status.is_success())).collect();
    expect_equal(ends, vec![(tag, true)], "the command that ended")?;
    expect(host.buffer(tag)? == stored(held, tag), "the command read something else")
}

fn stubborn_device(run: &Run) -> Outcome {
    let held = store();
    for mut random in run.rounds(20) {
        let server = Server::nvme_held(&held, SHORT)?;
        let mut host = Host::new(&server, any_way(&mut random))?;
        host.controller.add_region(MemoryOptions { size: PAGE, first: ELSEWHERE, huge_pages: false })?;
        let function = host.controller.function().clone();
        let region = host.region(BUFFERS)?;
        let stuck = host.read()?;
        await_pending(&held, 1)?;
        run.time("unmap", || function.take_back_region(&region))?;
        expect_equal(held.pending().len(), 1, "commands in flight")?;
        host.bytes(BUFFERS)?.fill(MARK);
        host.read_into(ELSEWHERE.0)?;
        await_pending(&held, 2)?;
        let newest = held.pending().last().map(|pending| pending.id).unwrap_or_default();
        expect(held.finish(newest), "the command had ended by itself")?;
        host.await_other()?;
        held.finish_all();
        let ended: Vec<u16> = host.await_all()?.iter().map(|end| end.tag).collect();
        expect_equal(ended, vec![stuck], "commands that ended")?;
        expect(host.buffer(stuck)?.iter().all(|byte| *byte == MARK), "the late command reached the guest")?;
        expect_untouched(host.bytes(BUFFERS)?, &mut random)?;
        function.lend_region(&region)?;
        run.time("round trip", || round_trip(&mut host, &held))?;
        drop((host, function));
        server.end()?;
    }
    Ok(())
}

fn partial_unmap(run: &Run) -> Outcome {
    let server = Server::nvme(MEMORY)?;
    for mut random in run.rounds(4) {
        let mut host = Host::new(&server, any_way(&mut random))?;
        let function = host.controller.function().clone();
        let region = host.region(BUFFERS)?;
        let (first, size, half) = (region.range.first().0, region.size(), region.size() / 2);
        for number in 0..8 {
            host.submit(&mut random)?;
            random.spin();
            let unmap = match number % 4 {
                0 => DmaUnmap::Range { address: first, size: half },
                1 => DmaUnmap::Range { address: first + half, size: half },
                2 => DmaUnmap::Range { address: first, size: size * 2 },
                _ => DmaUnmap::Range { address: first - PAGE, size: size + PAGE },
            };
            let unmapped = run.time("unmap in vain", || function.client().dma_unmap(unmap));
            refused(unmapped, Errno::NOENT, "an unmap of a part")?;
            let flags = DmaFlags::READ | DmaFlags::WRITE;
            let map = DmaMap { flags, offset: 0, address: first + half, size: half };
            let file = Some(region.extent.file.as_fd());
            let mapped = run.time("map in vain", || function.client().dma_map(map, file));
            refused(mapped, Errno::EXIST, "a map over another")?;
            host.await_success()?;
        }
    }
    server.end()
}

fn refused(result: Result<(), ClientError>, wanted: Errno, what: &str) -> Outcome {
    match result {
        Err(ClientError::Refused { errno, .. }) => {
            expect_equal(errno, wanted.raw_os_error().unsigned_abs(), what)
        }
        Err(error) => Err(error.into()),
        Ok(()) => Err(Failure::new(format!("{what} succeeded"))),
    }
}

fn truncate_under_io(run: &Run) -> Outcome {
    let server = Server::nvme(MEMORY)?;
    for mut random in run.rounds(10) {
        let mut host = Host::new(&server, any_way(&mut random))?;
        host.controller.add_region(MemoryOptions { size: PAGE, first: ELSEWHERE, huge_pages: false })?;
        let function = host.controller.function().clone();
        let region = host.region(BUFFERS)?;
        host.submit_reads()?;
        random.spin();
        ftruncate(region.extent.file.as_fd(), 0)?;
        // Those of before may have ended well.
        host.await_all()?;
        host.submit_reads()?;
        let ended = run.time("commands fail", || host.await_all())?;
        expect(ended.iter().all(|end| !end.status.is_success()), "a command on lost memory succeeded")?;
        host.read_into(ELSEWHERE.0)?;
        host.await_other()?;
        run.time("unmap", || function.take_back_region(&region))?;
        ftruncate(region.extent.file.as_fd(), region.size())?;
        function.lend_region(&region)?;
        host.submit_reads()?;
        run.time("commands succeed", || host.await_success())?;
    }
    server.end()
}
