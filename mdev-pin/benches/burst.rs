//! What protection costs: ns per descriptor of a burst of 32 that resolves and reads 8 bytes, beside the same loop
//! without any protection and beside other ways to protect a table; lookups over many areas; pins.
//!
//! `cargo bench -p mdev-pin --bench burst`.

mod measure;

use std::{
    hint::black_box,
    ptr,
    sync::{
        Arc, RwLock,
        atomic::{AtomicPtr, AtomicU64, Ordering, fence},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use crossbeam_epoch::Atomic;
use mdev_dma::{Area, FileExtent, GuestSlice, HostWindow, Iova, IovaRange, Perm, Windows};
use mdev_pin::Lane;
use measure::{PAGE, SLICES, beside, file, heading, print, space};
use seize::{Collector, Guard};

const BURST: u64 = 32;
/// Bursts of one slice of one variant.
const ROUNDS: u32 = 4_000;

fn main() {
    // `cargo test --benches` and `cargo bench` both pass flags; none matters here.
    heading();
    alone();
    together();
    lookups();
    pins();
}

/// Runs each variant once per slice, in turn, so that the drift of a shared machine reaches all of them alike, and prints
/// ns per item.
fn interleave(items: u64, variants: &mut [(&str, &mut dyn FnMut())]) {
    let mut samples = vec![Vec::new(); variants.len()];
    for _ in 0..SLICES {
        for ((_, run), samples) in variants.iter_mut().zip(&mut samples) {
            let started = Instant::now();
            run();
            samples.push(started.elapsed().as_secs_f64() * 1e9 / items as f64);
        }
    }
    for ((name, _), samples) in variants.iter().zip(&mut samples) {
        print(name, samples);
    }
}

/// Addresses of one burst, spread over a page; opaque to the optimiser.
fn addresses(first: u64) -> [u64; BURST as usize] {
    black_box(std::array::from_fn(|n| first + (n as u64 * 104) % 4000))
}

#[inline(always)]
fn protected(lane: &mut Lane, at: &[u64]) -> u64 {
    let burst = lane.enter();
    let read = |at: &u64| burst.slice(Iova(*at), 8, Perm::READ).ok().and_then(|slice| slice.read::<u64>(0));
    at.iter().filter_map(read).fold(0, u64::wrapping_add)
}

/// What the alternatives protect: one area, without gate, permission or a table to search.
struct OneArea {
    window: Arc<HostWindow>,
    first: u64,
}

impl OneArea {
    fn new() -> OneArea {
        let range = IovaRange::with_len(Iova(0), PAGE).expect("range");
        let extent = FileExtent { file: file(1), offset: 0 }.into();
        let area = Area { range, extent, perm: Perm::READ, log: None };
        let segments = Windows::new().expect("windows").segments(&area).expect("one segment");
        OneArea { window: segments[0].window.clone(), first: 0 }
    }

    #[inline(always)]
    fn memory(&self) -> GuestSlice<'_> {
        self.window.slice(0, PAGE as usize).expect("memory")
    }
}

#[inline(always)]
fn unprotected(memory: &GuestSlice<'_>, first: u64, at: &[u64]) -> u64 {
    let read = |at: &u64| memory.subslice(usize::try_from(at.wrapping_sub(first)).ok()?, 8)?.read::<u64>(0);
    at.iter().filter_map(read).fold(0, u64::wrapping_add)
}

fn alone() {
    let (_ioas, access, _file) = space(2);
    let plain = OneArea::new();
    let memory = plain.memory();
    let mut lane = access.lane();
    let at = addresses(0);
    let swapped = ArcSwap::from_pointee(OneArea::new());
    let locked = RwLock::new(OneArea::new());
    let counted = Arc::new(OneArea::new());
    let announced = AtomicU64::new(0);
    let epoch = Atomic::new(0_u64);
    let collector = Collector::new();
    let collected = AtomicPtr::new(ptr::dangling_mut::<u64>());
    interleave(
        u64::from(ROUNDS) * BURST,
        &mut [
            ("descriptor, no protection", &mut || {
                for _ in 0..ROUNDS {
                    black_box(unprotected(&memory, black_box(plain.first), black_box(&at)));
                }
            }),
            // What a reader must do whom a writer can wait for without the kernel's help.
            ("descriptor, a store, a fence and a store once a burst", &mut || {
                for round in 0..u64::from(ROUNDS) {
                    announced.store(2 * round + 1, Ordering::Relaxed);
                    fence(Ordering::SeqCst);
                    black_box(unprotected(&memory, black_box(plain.first), black_box(&at)));
                    announced.store(2 * round + 2, Ordering::Release);
                }
            }),
            ("descriptor, in a burst", &mut || {
                for _ in 0..ROUNDS {
                    black_box(protected(&mut lane, black_box(&at)));
                }
            }),
            ("descriptor, arc-swap once a burst", &mut || {
                for _ in 0..ROUNDS {
                    let area = swapped.load();
                    black_box(unprotected(&area.memory(), black_box(area.first), black_box(&at)));
                }
            }),
            ("descriptor, RwLock once a burst", &mut || {
                for _ in 0..ROUNDS {
                    let area = locked.read().expect("no panic");
                    black_box(unprotected(&area.memory(), black_box(area.first), black_box(&at)));
                }
            }),
            ("descriptor, reference count once a burst", &mut || {
                for _ in 0..ROUNDS {
                    let area = black_box(Arc::clone(&counted));
                    black_box(unprotected(&area.memory(), black_box(area.first), black_box(&at)));
                }
            }),
            // What these two protect is reached through a raw pointer: loaded here as they want it, and not followed.
            ("descriptor, crossbeam-epoch once a burst", &mut || {
                for _ in 0..ROUNDS {
                    let guard = crossbeam_epoch::pin();
                    black_box(epoch.load(Ordering::Acquire, &guard).is_null());
                    black_box(unprotected(&memory, black_box(plain.first), black_box(&at)));
                }
            }),
            ("descriptor, seize once a burst", &mut || {
                for _ in 0..ROUNDS {
                    let guard = collector.enter();
                    black_box(guard.protect(&collected, Ordering::Acquire));
                    black_box(unprotected(&memory, black_box(plain.first), black_box(&at)));
                }
            }),
        ],
    );
}

/// The same with a second worker on the other core.
fn together() {
    let (_ioas, access, _file) = space(2);
    let plain = OneArea::new();
    let memory = plain.memory();
    let locked = RwLock::new(OneArea::new());
    let at = addresses(0);
    for (name, other) in [("the same area", 0), ("another area", 2 * PAGE)] {
        let mut lane = access.lane();
        let (nothing, in_burst) = (
            format!("descriptor, no protection, beside bursts on {name}"),
            format!("descriptor, in a burst, beside bursts on {name}"),
        );
        beside(
            |stop| {
                let mut lane = access.lane();
                let at = addresses(other);
                while !stop.load(Ordering::Relaxed) {
                    black_box(protected(&mut lane, black_box(&at)));
                }
            },
            || {
                interleave(
                    u64::from(ROUNDS) * BURST,
                    &mut [
                        (&nothing, &mut || {
                            for _ in 0..ROUNDS {
                                black_box(unprotected(&memory, black_box(plain.first), black_box(&at)));
                            }
                        }),
                        (&in_burst, &mut || {
                            for _ in 0..ROUNDS {
                                black_box(protected(&mut lane, black_box(&at)));
                            }
                        }),
                    ],
                )
            },
        );
    }
    let read = || {
        let area = locked.read().expect("no panic");
        black_box(unprotected(&area.memory(), black_box(area.first), black_box(&at)));
    };
    beside(
        |stop| {
            while !stop.load(Ordering::Relaxed) {
                read();
            }
        },
        || {
            let mut bursts = || (0..ROUNDS).for_each(|_| read());
            let name = "descriptor, RwLock once a burst, beside the same";
            interleave(u64::from(ROUNDS) * BURST, &mut [(name, &mut bursts)]);
        },
    );
}

fn lookups() {
    for areas in [1, 8, 64, 512] {
        let (_ioas, access, _file) = space(areas);
        let mut lane = access.lane();
        let local: Vec<[u64; BURST as usize]> =
            (0..64).map(|n| addresses(2 * PAGE * (n * 7919 % areas))).collect();
        let random: Vec<u64> = (0..2048u64).map(|n| 2 * PAGE * (n.wrapping_mul(40_503) % areas)).collect();
        let local_name = format!("lookup, burst-local, {areas} areas");
        let random_name = format!("lookup, random, {areas} areas");
        let mut other = access.lane();
        let rounds = 64 * 64;
        interleave(
            rounds * BURST,
            &mut [
                (&local_name, &mut || {
                    for round in 0..rounds as usize {
                        black_box(protected(&mut lane, black_box(&local[round % 64])));
                    }
                }),
                (&random_name, &mut || {
                    for round in 0..rounds as usize {
                        let at = round * BURST as usize % random.len();
                        black_box(protected(&mut other, black_box(&random[at..at + BURST as usize])));
                    }
                }),
            ],
        );
    }
}

fn pins() {
    let (_ioas, access, _file) = space(8);
    let mut lane = access.lane();
    let items = u64::from(ROUNDS) * BURST;
    interleave(
        items,
        &mut [("pin and drop, in bursts of 32", &mut || {
            for _ in 0..ROUNDS {
                let burst = lane.enter();
                for at in 0..BURST {
                    black_box(&burst.pin(Iova(black_box(at * 8)), 64, Perm::WRITE));
                }
            }
        })],
    );
}
