//! Several devices on one space, and one device that goes from one space to another.
use super::run::Run;
use super::scenario::{Body, Failure, Outcome, Scenario, expect_equal};
use super::space::{Attached, BOTH, LONG, PAGE, Recorder, SECOND, Space, area, memory, range};
use mdev_dma::{Iova, IovaRange, Windows};
use mdev_pin::{Access, AccessError, Ioas};
use std::sync::Arc;

const EBUSY: i32 = 16;
const EADDRINUSE: i32 = 98;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        number: 11,
        name: "notify-all",
        origin: "K",
        bound: SECOND,
        shows: "an unmap calls every device of the space back, and does not wait for one that holds nothing",
        body: Body::Play(notify_all),
    },
    Scenario {
        number: 13,
        name: "replace",
        origin: "S",
        bound: SECOND,
        shows: "a device with a pin moves from one space to another: the pin goes and the first can be destroyed; \
                where the second does not suit it, all is as it was",
        body: Body::Play(replace),
    },
];

fn notify_all(run: &Run) -> Outcome {
    let file = memory(1)?;
    for _ in run.rounds(10) {
        let space = Space::new()?;
        let idle = Attached::to(&space.ioas)?;
        space.ioas.map(area(&file, 0, PAGE, 0)?)?;
        space.device.pin(&mut space.access.lane(), 8, 64)?;
        let whole = range(0, PAGE)?;
        run.time("unmap", || space.ioas.unmap(whole, LONG))?;
        expect_equal(space.device.told(), vec![whole], "callbacks of the device with a pin")?;
        expect_equal(idle.device.told(), vec![whole], "callbacks of the idle device")?;
        idle.access.close(LONG)?;
        space.end()?;
    }
    Ok(())
}

/// The code that a refused operation of an access failed with.
fn refused<T>(result: Result<T, AccessError>) -> i32 {
    result.map_or_else(|error| error.errno(), |_| 0)
}

fn replace(run: &Run) -> Outcome {
    let (file, other) = (memory(1)?, memory(1)?);
    rustix::io::pwrite(other.as_fd(), &[2], 0)?;
    for _ in run.rounds(10) {
        let windows = Windows::new()?;
        let [first, second, odd] = [(); 3].map(|()| Ioas::new(windows.clone()));
        first.map(area(&file, 0, PAGE, 0)?)?;
        second.map(area(&other, 0, PAGE, 0)?)?;
        // Not aligned to pages, as a device that pins demands.
        odd.map(area(&other, 8, 64, 0)?)?;
        let device = Arc::new(Recorder::default());
        let access = Access::pinning(device.clone());
        access.attach(&first)?;
        let mut lane = access.lane();
        access.pin_pages(Iova(0), PAGE, BOTH)?;

        let conflict = run.time("conflict", || access.replace(&odd, LONG));
        expect_equal(refused(conflict), EADDRINUSE, "a space that does not suit the device")?;
        expect_equal((first.pins(), device.told().len()), (1, 0), "pins and callbacks after the conflict")?;
        lane.enter().slice(Iova(0), 8, BOTH)?;

        let change = access.begin_replace(&second, LONG)?;
        let change = change.ok_or_else(|| Failure::new("the replacement did nothing"))?;
        expect_equal(refused(access.replace(&odd, LONG)), EBUSY, "a second replacement")?;
        expect_equal(device.told(), vec![IovaRange::FULL], "callbacks of the replacement")?;
        access.unpin_pages(Iova(0), PAGE)?;
        run.time("replace", || change.wait())?;
        expect_equal((first.pins(), access.pins()), (0, 0), "pins after the replacement")?;
        expect_equal(lane.enter().slice(Iova(0), 1, BOTH)?.read(0), Some(2u8), "the byte in the new space")?;
        run.time("destroy", || first.destroy())?;

        access.close(LONG)?;
        drop((lane, access, first, second, odd));
        expect_equal(windows.live(), 0, "windows after the spaces")?;
    }
    Ok(())
}
