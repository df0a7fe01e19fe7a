//! Who the memory is charged to, while its owner becomes somebody else or ends.
use super::owner::{goes_on, owned, work};
use super::run::Run;
use super::scenario::{Body, Failure, Outcome, Scenario, expect, expect_equal};
use super::space::{
    BOTH, EFAULT, EINVAL, LONG, PAGE, SECOND, Space, area, await_that, beside, expect_errno, memory, pause,
    range, stopped,
};
use crate::sys::OwnerProcess;
use mdev_dma::{Area, Iova, IovaRange, Process, ProcessExtent, UserAddr, Windows};
use mdev_pin::{Access, Account, IgnoreUnmap, Ioas, Rw, change_process};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const EBUSY: i32 = 16;
const ENOMEM: i32 = 12;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        number: 6,
        name: "fork-change-exec",
        origin: "T",
        bound: SECOND,
        shows: "the owner forks, the child takes the space over, the parent executes and takes it back: the device goes \
                on, the charge moves twice, and no translation changes",
        body: Body::Play(fork_change_exec),
    },
    Scenario {
        number: 17,
        name: "change-process-refused",
        origin: "S/K",
        bound: SECOND,
        shows: "a change of process is refused, for memory by address, for an area on its way, for a limit: nothing \
                changes, and the device goes on",
        body: Body::Play(change_process_refused),
    },
    Scenario {
        number: 18,
        name: "owner-sigkill-vaddr",
        origin: "K/S",
        bound: SECOND,
        shows: "the owner of memory by address is killed: new pins and copies fail, pins that are held stay, and all is \
                freed when the device is closed",
        body: Body::Play(owner_sigkill_vaddr),
    },
];

/// What two accounts are charged.
fn charged(accounts: &[Account; 2]) -> (u64, u64) {
    (accounts[0].pinned(), accounts[1].pinned())
}

fn fork_change_exec(run: &Run) -> Outcome {
    const PAGES: u64 = 4;
    for mut random in run.rounds(10) {
        let (owner, fd) = OwnerProcess::start(usize::try_from(PAGES * PAGE)?)?;
        let child = owner.fork()?;
        let accounts = [Account::of_process(owner.pid())?, Account::of_process(child)?];
        let space = Space::charged_to(&accounts[0])?;
        let file = owned(fd, PAGES, &space)?;
        let spaces = [space.ioas.clone()];
        let generation = space.access.lane().enter().generation();
        let same = || {
            let areas = space.ioas.areas();
            let whole = areas.first().is_some_and(|area| area.range.size() == u128::from(PAGES * PAGE));
            expect(whole && areas.len() == 1, "the areas are others")?;
            expect_equal(space.access.lane().enter().generation(), generation, "tables published")
        };
        space.device.pin(&mut space.access.lane(), PAGE, 64)?;
        expect_equal(charged(&accounts), (PAGES, 0), "charged at first")?;
        let done = AtomicU64::new(0);
        let worker = |stop: &AtomicBool| work(&space.access, stop, &done);
        beside(&[&worker], || {
            goes_on(&done, 10)?;
            random.spin();
            run.time("change to the child", || change_process(&spaces, &accounts[1]))?;
            expect_equal(charged(&accounts), (0, PAGES), "charged when the child has taken over")?;
            same()?;
            owner.execute()?;
            run.time("work while the owner runs another program", || goes_on(&done, 100))?;
            run.time("change back", || change_process(&spaces, &accounts[0]))?;
            expect_equal(charged(&accounts), (PAGES, 0), "charged when the parent has it back")?;
            goes_on(&done, 10)?;
            same()
        })?;
        expect_equal(space.device.held(), 1, "pins that the device kept")?;
        expect(space.device.told().is_empty(), "the device was told of something")?;
        space.device.let_go();
        drop((file, spaces));
        space.end()?;
        expect_equal(charged(&accounts), (0, 0), "charged in the end")?;
    }
    Ok(())
}

/// An area of a process.
fn area_of(process: &Arc<Process>, iova: u64, len: u64, address: u64) -> Result<Area, Failure> {
    let extent = ProcessExtent { process: process.clone(), address: UserAddr(address) };
    Ok(Area { range: range(iova, len)?, extent: extent.into(), perm: BOTH, log: None })
}

fn change_process_refused(run: &Run) -> Outcome {
    const OTHER: u64 = 16 * PAGE;
    let here = Process::open(std::process::id())?;
    for mut random in run.rounds(10) {
        let accounts = [Account::new(8 * PAGE), Account::new(PAGE)];
        let plenty = Account::unlimited();
        let space = Space::charged_to(&accounts[0])?;
        let file = memory(4)?;
        space.ioas.map(area(&file, 0, 2 * PAGE, 0)?)?;
        // One that could be changed is not, if its neighbour cannot.
        let neighbour = Ioas::charged_to(Windows::new()?, &accounts[0]);
        neighbour.map(area(&file, 0, PAGE, 0)?)?;
        let spaces = [neighbour.clone(), space.ioas.clone()];
        let refused = |to: &Account, code: i32, what: &str| {
            let pinned = (charged(&accounts), plenty.pinned());
            expect_errno(run.time("change", || change_process(&spaces, to)), code, what)?;
            expect_equal((charged(&accounts), plenty.pinned()), pinned, what)?;
            let unchanged = spaces.iter().all(|ioas| ioas.account().limit() == Some(8));
            expect(unchanged, "a space has another account")
        };
        let done = AtomicU64::new(0);
        let worker = |stop: &AtomicBool| work(&space.access, stop, &done);
        beside(&[&worker], || {
            goes_on(&done, 10)?;
            refused(&accounts[1], ENOMEM, "an account with room for one page of two")?;
            random.spin();
            let word = 0u64;
            space.ioas.map(area_of(&here, OTHER, 8, std::ptr::from_ref(&word).addr() as u64)?)?;
            refused(&plenty, EINVAL, "a space with memory by address")?;
            space.ioas.unmap(range(OTHER, 8)?, LONG)?;

            space.ioas.map(area(&file, OTHER, PAGE, 2 * PAGE)?)?;
            space.device.pin(&mut space.access.lane(), OTHER, 8)?;
            space.device.set_stubborn(true);
            let leaving = space.ioas.begin_unmap(range(OTHER, PAGE)?, LONG)?;
            refused(&plenty, EBUSY, "a space with an area that leaves")?;
            space.device.let_go();
            leaving.wait()?;
            goes_on(&done, 10)
        })?;
        mapping_and_changing(&space, &accounts[0], &plenty)?;
        drop((file, spaces, neighbour));
        space.end()?;
        expect_equal((charged(&accounts), plenty.pinned()), ((0, 0), 0), "charged in the end")?;
    }
    Ok(())
}

/// Somebody maps and unmaps while the process changes to and fro: a change happens or is refused, and what is charged
/// is charged to one of both.
fn mapping_and_changing(space: &Space, one: &Account, other: &Account) -> Outcome {
    let file = memory(1)?;
    let mapping = |stop: &AtomicBool| {
        while !stopped(stop) {
            space.ioas.map(area(&file, 1 << 40, PAGE, 0)?)?;
            space.ioas.unmap(range(1 << 40, PAGE)?, LONG)?;
            pause();
        }
        Ok(())
    };
    beside(&[&mapping], || {
        for round in 0..50 {
            let to = if round % 2 == 0 { other } else { one };
            match change_process(std::slice::from_ref(&space.ioas), to) {
                Ok(()) => {}
                Err(error) => expect_equal(error.errno(), EBUSY, "a change while somebody maps")?,
            }
            pause();
        }
        Ok(())
    })?;
    change_process(std::slice::from_ref(&space.ioas), one)?;
    expect_equal((one.pinned(), other.pinned()), (2, 0), "charged when all is quiet")
}

fn owner_sigkill_vaddr(run: &Run) -> Outcome {
    for mut random in run.rounds(10) {
        let (mut owner, _file) = OwnerProcess::start(usize::try_from(2 * PAGE)?)?;
        let (address, _) = owner.map()?;
        let account = Account::of_process(owner.pid())?;
        let ioas = Ioas::charged_to(Windows::new()?, &account);
        let process = Process::open(owner.pid())?;
        ioas.map(area_of(&process, 0, 2 * PAGE, address)?)?;
        let access = Access::pinning(Arc::new(IgnoreUnmap));
        access.attach(&ioas)?;
        let held = access.pin_pages(Iova(PAGE), PAGE, BOTH)?;
        let (gone, done) = (AtomicBool::new(false), AtomicU64::new(0));
        let worker = |stop: &AtomicBool| copy_until_gone(&access, stop, &gone, &done);
        beside(&[&worker], || {
            goes_on(&done, 10)?;
            random.spin();
            owner.kill()?;
            gone.store(true, Ordering::SeqCst);
            await_that("the device is told that the owner is gone", || {
                done.load(Ordering::SeqCst) == u64::MAX
            })
        })?;
        let pinned = run.time("pin after the owner", || access.pin_pages(Iova(0), PAGE, BOTH));
        expect_equal(pinned.map_or_else(|error| error.errno(), |_| 0), EFAULT, "a new pin")?;
        held.with(|pin| pin.slices().for_each(|slice| slice.fill(7)))?;
        let read = held.with(|pin| pin.slices().next().and_then(|slice| slice.read::<u8>(9)))?;
        expect_equal(read, Some(7), "a pin that is held")?;
        expect_equal((access.pins(), account.pinned()), (1, 1), "pins and pages charged")?;
        held.unpin()?;
        run.time("close", || access.close(LONG))?;
        expect_equal(ioas.unmap(IovaRange::FULL, LONG)?, 2 * PAGE, "bytes unmapped")?;
        expect_equal((ioas.pins(), account.pinned()), (0, 0), "pins and pages charged in the end")?;
    }
    Ok(())
}

/// Writes numbers and reads them back by copies, until the owner is gone; from then on every copy must fail.
fn copy_until_gone(access: &Access, stop: &AtomicBool, gone: &AtomicBool, done: &AtomicU64) -> Outcome {
    let mut number = 0u64;
    while !stopped(stop) {
        let late = gone.load(Ordering::SeqCst);
        number = number.wrapping_add(1);
        let mut back = [0; 8];
        let copied = access
            .rw(Iova(16), Rw::Write(&number.to_ne_bytes()))
            .and_then(|()| access.rw(Iova(16), Rw::Read(&mut back)));
        match copied {
            Ok(()) => {
                expect(!late, "a copy succeeded after the owner was gone")?;
                expect_equal(u64::from_ne_bytes(back), number, "what was read back")?;
                done.store(number, Ordering::SeqCst);
            }
            Err(error) => {
                expect_equal(error.errno(), EFAULT, "a copy when the owner is gone")?;
                done.store(u64::MAX, Ordering::SeqCst);
            }
        }
    }
    Ok(())
}
