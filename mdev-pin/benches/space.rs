//! What changes of a space cost, whoever is busy beside them, and what they cost a queue that has nothing to do with
//! them.
//!
//! `cargo bench -p mdev-pin --bench space`.

mod measure;

use std::{
    hint::black_box,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use mdev_dma::{Iova, IovaMap, Perm};
use mdev_pin::{Access, Ioas};
use measure::{area, beside, heading, place, print, round_trip, space};

const LONG: Duration = Duration::from_secs(10);
/// Changes of each kind.
const CHANGES: u64 = 2_000;

fn main() {
    heading();
    for areas in [64, 4_096, 65_535] {
        tables(areas);
        changes(areas);
    }
    busy();
    round_trip();
    neighbour();
}

/// A number below `end` in no order that a processor learns.
fn scattered(n: u64, end: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) % end
}

/// The table alone.
fn tables(areas: u64) {
    let file = measure::file(areas);
    let mut table =
        IovaMap::from_items((0..areas).map(|number| area(&file, number)).collect()).expect("a table");
    let (mut removals, mut insertions) = (Vec::new(), Vec::new());
    for n in 0..CHANGES {
        let first = place(scattered(n, areas)).first();
        let started = Instant::now();
        let (without, item) = table.remove(first).expect("an area");
        table = without;
        removals.push(started.elapsed().as_secs_f64() * 1e9);
        let started = Instant::now();
        table = table.insert(item).expect("room");
        insertions.push(started.elapsed().as_secs_f64() * 1e9);
    }
    print(&format!("remove from a table of {areas}"), &mut removals);
    print(&format!("insert into a table of {areas}"), &mut insertions);
}

/// Unmap and map of one area anywhere in a space that many lanes may look at, but none does.
fn changes(areas: u64) {
    let (ioas, access, file) = space(areas);
    let mut lane = access.lane();
    let (mut unmaps, mut maps) = (Vec::new(), Vec::new());
    for n in 0..CHANGES {
        let number = scattered(n, areas);
        let started = Instant::now();
        ioas.unmap(place(number), LONG).expect("unmap");
        unmaps.push(started.elapsed().as_secs_f64() * 1e9);
        black_box(lane.enter().slice(Iova(0), 8, Perm::READ).is_ok());
        let started = Instant::now();
        ioas.map(area(&file, number)).expect("map");
        maps.push(started.elapsed().as_secs_f64() * 1e9);
    }
    print(&format!("unmap one of {areas} areas"), &mut unmaps);
    print(&format!("map one of {areas} areas"), &mut maps);
}

/// A burst of 32 descriptors in the first area.
fn burst(lane: &mut mdev_pin::Lane) {
    let burst = lane.enter();
    for n in 0..32 {
        black_box(burst.slice(Iova(black_box(n * 104)), 8, Perm::READ).is_ok());
    }
}

/// Unmap without pins beside a worker that is busy in bursts on another area.
fn busy() {
    let (ioas, access, file) = space(2);
    let mut samples = Vec::new();
    beside(
        |stop| {
            let mut lane = access.lane();
            while !stop.load(Ordering::Relaxed) {
                burst(&mut lane);
            }
        },
        || {
            for _ in 0..CHANGES {
                let started = Instant::now();
                ioas.unmap(place(1), LONG).expect("unmap");
                samples.push(started.elapsed().as_secs_f64() * 1e9);
                ioas.map(area(&file, 1)).expect("map");
            }
        },
    );
    print("unmap without pins beside a busy worker", &mut samples);
}

/// The gaps between the bursts of a queue while another area is mapped and unmapped 10,000 times, and while it is not.
fn neighbour() {
    let (ioas, access, file) = space(512);
    let changing = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    let [mut quiet, mut changed] =
        [(); 2].map(|()| Histogram::<u64>::new_with_max(60_000_000_000, 3).expect("a histogram"));
    beside(
        |stop| {
            let mut lane = access.lane();
            let mut last = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let into = if changing.load(Ordering::Relaxed) { &mut changed } else { &mut quiet };
                burst(&mut lane);
                let now = Instant::now();
                into.saturating_record(now.duration_since(last).as_nanos() as u64);
                last = now;
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        },
        || {
            for _ in 0..20 {
                changing.store(true, Ordering::Relaxed);
                let took = map_and_unmap(&ioas, &access, &file, 500);
                changing.store(false, Ordering::Relaxed);
                // As busy, without a change.
                let begun = Instant::now();
                while begun.elapsed() < took {
                    black_box(rounds.load(Ordering::Relaxed));
                }
            }
        },
    );
    println!(
        "\ngap between a neighbour's bursts, ns {:>21} {:>9} {:>9} {:>9} {:>9}",
        "median", "99 %", "99.9 %", "99.99 %", "max"
    );
    for (name, histogram) in [("no change", &quiet), ("10,000 maps and unmaps of another area", &changed)] {
        let at = |percentile| histogram.value_at_percentile(percentile);
        let [median, p99, p999, p9999] = [50.0, 99.0, 99.9, 99.99].map(at);
        println!("{name:<48} {median:>9} {p99:>9} {p999:>9} {p9999:>9} {:>9}", histogram.max());
    }
}

fn map_and_unmap(
    ioas: &Ioas,
    access: &Access,
    file: &std::sync::Arc<mdev_dma::BackingFile>,
    pairs: u64,
) -> Duration {
    let begun = Instant::now();
    for n in 0..pairs {
        let number = 1 + scattered(n, 511);
        ioas.unmap(place(number), LONG).expect("unmap");
        ioas.map(area(file, number)).expect("map");
    }
    assert_eq!(access.pins(), 0);
    begun.elapsed()
}
