//! A queue waits for a translation that nobody brings.
use super::run::Run;
use super::scenario::{Body, Failure, Outcome, Scenario, expect_equal};
use super::space::{
    BOTH, ENOENT, LONG, PAGE, SECOND, Space, Work, area, await_that, beside, errno, memory, pause, range,
    stopped,
};
use mdev_dma::Iova;
use mdev_pin::{Lane, ParkState, Parked};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    number: 23,
    name: "iotlb-miss-no-update",
    origin: "Q",
    bound: SECOND,
    shows: "a queue waits for a mapping that does not come: other mappings do not wake it, its deadline or the \
            close of its device ends the wait with an error, and its thread is free meanwhile",
    body: Body::Play(miss_without_update),
}];

/// How long a queue waits.
const PATIENCE: Duration = Duration::from_millis(20);
/// Where it waits, and where others map.
const MISSING: u64 = 0x10_0000;

/// Counts how often a queue was woken.
#[derive(Default)]
struct Bell(AtomicU64);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn park(lane: &mut Lane, bell: &Arc<Bell>, patience: Duration) -> Result<Parked, Failure> {
    expect_equal(errno(lane.enter().slice(Iova(MISSING), 8, BOTH)), ENOENT, "the miss")?;
    let parked = lane.park(Instant::now() + patience, &Waker::from(bell.clone()));
    parked.ok_or_else(|| Failure::new("the miss left no note"))
}

fn await_end(parked: &Parked) -> ParkState {
    while parked.state() == ParkState::Waiting {
        pause();
    }
    parked.state()
}

fn miss_without_update(run: &Run) -> Outcome {
    let file = memory(2)?;
    for mut random in run.rounds(10) {
        let space = Space::new()?;
        let mut lane = space.access.lane();
        let bell = Arc::<Bell>::default();
        let changes = AtomicU64::new(0);
        let elsewhere = |stop: &AtomicBool| {
            let page = range(0, PAGE)?;
            while !stopped(stop) {
                space.ioas.map(area(&file, 0, PAGE, 0)?)?;
                space.ioas.unmap(page, LONG)?;
                changes.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        };
        beside(&[&elsewhere as Work<'_>], || {
            let parked = park(&mut lane, &bell, PATIENCE)?;
            // The thread is free: another request of it goes through while this one waits.
            space.ioas.map(area(&file, 0x20_0000, PAGE, PAGE)?)?;
            lane.enter().slice(Iova(0x20_0000), 8, BOTH)?;
            let before = changes.load(Ordering::SeqCst);
            await_that("mappings elsewhere", || changes.load(Ordering::SeqCst) > before)?;
            let end = run.time("wait", || await_end(&parked));
            expect_equal(end, ParkState::Expired, "how a wait ends that nothing answers")?;
            expect_equal(errno(lane.enter().slice(Iova(MISSING), 8, BOTH)), ENOENT, "the request then")?;
            expect_equal(bell.0.load(Ordering::SeqCst), 0, "wake-ups by mappings elsewhere")
        })?;
        // The device is closed while a queue waits far longer than anybody wants to.
        let parked = park(&mut lane, &bell, LONG)?;
        random.spin();
        run.time("close", || space.access.close(LONG))?;
        expect_equal(parked.state(), ParkState::Woken, "the wait after the close")?;
        expect_equal(
            errno(lane.enter().slice(Iova(MISSING), 8, BOTH)),
            ENOENT,
            "the request after the close",
        )?;
        drop((parked, lane));
        space.end()?;
    }
    Ok(())
}
