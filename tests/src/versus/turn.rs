//! One back-end under the front-end for some seconds.
use std::time::{Duration, Instant};

use mdevd::perf::roundtrip;
use mdevd::report::{median, online_cpus};

use super::{Cell, Direction, Entry, ceiling, cell};
use crate::lab::{Counters, Lab, Layout, Mdevd, RunningTestpmd, Skip, Testpmd};

/// Reports of a second each before those that count.
const WARM_UP: usize = 1;
/// How long the back-end that only returns descriptors may take to listen.
const START: Duration = Duration::from_secs(20);

/// The cache line's round trip between the processors of back-end and front-end.
fn line() -> Option<f64> {
    match online_cpus()[..] {
        [first, second, ..] => roundtrip::between(first, second),
        _ => None,
    }
}

/// Measures a pair, mdevd and then DPDK, by so many reports of a second each; and the ceiling, if that is wanted.
///
/// # Errors
/// [`Skip`]: testpmd cannot be started here.
///
/// # Panics
/// When a peer fails in the middle.
pub fn pair(lab: &Lab, cell: &Cell, seconds: usize, commit: &str, with_ceiling: bool) -> Result<Entry, Skip> {
    let layout = cell::layout(&cell.layout).map_err(Skip)?;
    let before = line();
    let (mdevd, busy) = mdevd_turn(lab, cell, layout, seconds)?;
    let between = line();
    let dpdk = dpdk_turn(lab, cell, layout, seconds)?;
    let lines = [before, between, line()].into_iter().flatten().collect();
    let ceiling = with_ceiling.then(|| ceiling_turn(lab, cell, layout, seconds)).transpose()?;
    Ok(Entry { cell: cell.clone(), commit: commit.into(), mdevd, dpdk, lines, busy, ceiling })
}

fn mdevd_turn(lab: &Lab, cell: &Cell, layout: Layout, seconds: usize) -> Result<(f64, Option<f64>), Skip> {
    let link = cell.direction.link(cell.size);
    let arguments = ["--link", &link, "--mode", "busy", "--cpus", "0"];
    let mut device = Mdevd::net(lab, "mdevd.sock", 1, &arguments);
    let mut driver = front_end(lab, "mdevd.sock", cell, layout)?;
    let before = device.counters();
    let rate = rate(&mut driver, cell.direction, seconds);
    let busy = busy(cell.direction, &before, &device.counters());
    driver.kill();
    device.terminate();
    Ok((rate, busy))
}

/// Nanoseconds for each packet between two looks at the counters of a queue pair.
fn busy(direction: Direction, before: &[Counters], after: &[Counters]) -> Option<f64> {
    let ([receive, transmit], [receive_then, transmit_then]) = (after, before) else { return None };
    let since = |title, now: &Counters, then: &Counters| now.get(title).saturating_sub(then.get(title));
    let packets = match direction {
        Direction::To => since("packets", transmit, transmit_then),
        Direction::From | Direction::Loop => since("packets", receive, receive_then),
    };
    let busy = since("busy-ns", receive, receive_then) + since("busy-ns", transmit, transmit_then);
    (packets > 0).then(|| busy as f64 / packets as f64)
}

/// With the back-end that only returns descriptors.
fn ceiling_turn(lab: &Lab, cell: &Cell, layout: Layout, seconds: usize) -> Result<f64, Skip> {
    let (socket, size) = ("ceiling.sock", cell.size.to_string());
    let mut device = Mdevd::run(lab, &[ceiling::COMMAND, socket, cell.direction.name(), &size]);
    let path = lab.work().join(socket);
    let deadline = Instant::now() + START;
    while !path.exists() {
        let ended = device.wait(Duration::from_millis(5)).is_some();
        assert!(!ended && Instant::now() < deadline, "no back-end listens on {socket}");
    }
    let mut driver = front_end(lab, socket, cell, layout)?;
    let rate = rate(&mut driver, cell.direction, seconds);
    driver.kill();
    drop(device);
    // What a back-end that was killed leaves behind.
    let _ = std::fs::remove_file(path);
    Ok(rate)
}

fn dpdk_turn(lab: &Lab, cell: &Cell, layout: Layout, seconds: usize) -> Result<f64, Skip> {
    let device =
        Testpmd::back_end("dpdk.sock", cell.direction.back_end()).packet_size(cell.size).start(lab)?;
    let mut driver = front_end(lab, "dpdk.sock", cell, layout)?;
    let rate = rate(&mut driver, cell.direction, seconds);
    driver.kill();
    device.kill();
    // What a back-end that was killed leaves behind.
    let _ = std::fs::remove_file(lab.work().join("dpdk.sock"));
    Ok(rate)
}

/// The front-end that drives a back-end, warm.
fn front_end(lab: &Lab, socket: &str, cell: &Cell, layout: Layout) -> Result<RunningTestpmd, Skip> {
    let mut driver = Testpmd::front_end(socket, cell.direction.front_end())
        .ring_size(cell.ring_size)
        .mergeable(cell.mergeable)
        .layout(layout)
        .packet_size(cell.size)
        .start(lab)?;
    for _ in 0..WARM_UP {
        driver.next_rate();
    }
    Ok(driver)
}

/// Millions of packets a second: the median of the seconds.
fn rate(driver: &mut RunningTestpmd, direction: Direction, seconds: usize) -> f64 {
    let mut rates: Vec<f64> = (0..seconds)
        .map(|_| {
            let rate = driver.next_rate();
            let packets = if direction == Direction::To { rate.tx } else { rate.rx };
            packets as f64 / 1e6
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    median(&rates)
}
