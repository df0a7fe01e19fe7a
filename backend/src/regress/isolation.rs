//! What one device on a space notices of another.
use super::run::Run;
use super::scenario::{Body, Outcome, Scenario, expect_equal};
use super::space::{Attached, LONG, PAGE, SECOND, Space, area, memory, range};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    number: 11,
    name: "notify-all",
    origin: "K",
    bound: SECOND,
    shows: "an unmap calls every device of the space back, and does not wait for one that holds nothing",
    body: Body::Play(notify_all),
}];

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
