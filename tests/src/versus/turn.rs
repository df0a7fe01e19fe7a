//! One back-end under the front-end for some seconds.
use mdevd::perf::roundtrip;
use mdevd::report::{median, online_cpus};

use super::{Cell, Direction, Entry, cell};
use crate::lab::{Lab, Layout, Mdevd, RunningTestpmd, Skip, Testpmd};

/// Reports of a second each before those that count.
const WARM_UP: usize = 2;

/// The cache line's round trip between the processors of back-end and front-end.
fn line() -> Option<f64> {
    match online_cpus()[..] {
        [first, second, ..] => roundtrip::between(first, second),
        _ => None,
    }
}

/// Measures a pair, mdevd and then DPDK, by so many reports of a second each.
///
/// # Errors
/// [`Skip`]: testpmd cannot be started here.
///
/// # Panics
/// When a peer fails in the middle.
pub fn pair(lab: &Lab, cell: &Cell, seconds: usize, commit: &str) -> Result<Entry, Skip> {
    let layout = cell::layout(&cell.layout).map_err(Skip)?;
    let before = line();
    let mdevd = mdevd_turn(lab, cell, layout, seconds)?;
    let between = line();
    let dpdk = dpdk_turn(lab, cell, layout, seconds)?;
    let lines = [before, between, line()].into_iter().flatten().collect();
    Ok(Entry { cell: cell.clone(), commit: commit.into(), mdevd, dpdk, lines })
}

fn mdevd_turn(lab: &Lab, cell: &Cell, layout: Layout, seconds: usize) -> Result<f64, Skip> {
    let link = cell.direction.link(cell.size);
    let arguments = ["--link", &link, "--mode", "busy", "--cpus", "0"];
    let device = Mdevd::net(lab, "mdevd.sock", 1, &arguments);
    let rate = front_end(lab, "mdevd.sock", cell, layout, seconds)?;
    device.terminate();
    Ok(rate)
}

fn dpdk_turn(lab: &Lab, cell: &Cell, layout: Layout, seconds: usize) -> Result<f64, Skip> {
    let device =
        Testpmd::back_end("dpdk.sock", cell.direction.back_end()).packet_size(cell.size).start(lab)?;
    let rate = front_end(lab, "dpdk.sock", cell, layout, seconds)?;
    device.kill();
    // What a back-end that was killed leaves behind.
    let _ = std::fs::remove_file(lab.work().join("dpdk.sock"));
    Ok(rate)
}

fn front_end(lab: &Lab, socket: &str, cell: &Cell, layout: Layout, seconds: usize) -> Result<f64, Skip> {
    let mut driver = Testpmd::front_end(socket, cell.direction.front_end())
        .ring_size(cell.ring_size)
        .mergeable(cell.mergeable)
        .layout(layout)
        .packet_size(cell.size)
        .start(lab)?;
    let rate = rate(&mut driver, cell.direction, seconds);
    driver.kill();
    Ok(rate)
}

/// Millions of packets a second: the median of the seconds.
fn rate(driver: &mut RunningTestpmd, direction: Direction, seconds: usize) -> f64 {
    for _ in 0..WARM_UP {
        driver.next_rate();
    }
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
