//! What a lookup, a change and a 64-byte copy cost, beside `vm-memory` where it has the same.
//!
//! Run with `cargo bench -p mdev-dma`. Each size is measured for both, one right after the other, since a shared
//! machine drifts. A lookup here is the whole way from an address to a slice of guest memory.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mdev_dma::{
    Area, BackingFile, FileExtent, FilePolicy, Hint, Iova, IovaMap, IovaRange, Perm, Segment, Windows,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory};

/// Each item is a page, with a page of nothing behind it, so that neighbours cannot be joined.
const PAGE: u64 = 4096;
const STEP: u64 = 2 * PAGE;
const SIZES: [u64; 5] = [1, 8, 64, 512, 65_535];
/// Addresses looked up in one measured round.
const ROUND: u64 = 256;

fn segments(items: u64) -> IovaMap<Segment> {
    let fd = memfd_create("bench", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&fd, items * PAGE).expect("a size");
    let file = BackingFile::new(fd, &FilePolicy::default()).expect("memory");
    let windows = Windows::new().expect("windows");
    let all = (0..items).flat_map(|n| {
        let range = IovaRange::with_len(Iova(n * STEP), PAGE).expect("a range");
        let extent = FileExtent { file: Arc::clone(&file), offset: n * PAGE };
        let area = Area { range, extent: extent.into(), perm: Perm::READ | Perm::WRITE, log: None };
        windows.segments(&area).expect("a segment")
    });
    IovaMap::from_items(all.collect()).expect("a map")
}

fn regions(items: u64) -> Option<GuestMemoryMmap> {
    let ranges: Vec<_> = (0..items).map(|n| (GuestAddress(n * STEP), PAGE as usize)).collect();
    GuestMemoryMmap::from_ranges(&ranges).ok()
}

/// Addresses spread over all items, in an order no predictor learns.
fn random(items: u64) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..16 * ROUND).map(|_| (next() % items) * STEP + (next() % (PAGE - 64))).collect()
}

/// Addresses in one item.
fn local(items: u64) -> Vec<u64> {
    (0..ROUND).map(|n| (items / 2) * STEP + (n * 64) % PAGE).collect()
}

fn lookup(c: &mut Criterion) {
    for (name, addresses) in [("last-hit", local as fn(u64) -> Vec<u64>), ("random", random)] {
        let mut group = c.benchmark_group(format!("lookup/{name}"));
        for items in SIZES {
            let addresses = addresses(items);
            group.throughput(Throughput::Elements(addresses.len() as u64));
            let map = segments(items);
            group.bench_with_input(BenchmarkId::new("mdev-dma", items), &addresses, |b, addresses| {
                let mut hint = Hint::default();
                b.iter(|| {
                    for at in addresses {
                        let segment = map.lookup_hinted(Iova(*at), &mut hint);
                        black_box(segment.and_then(|segment| segment.slice(Iova(*at), 64)));
                    }
                });
            });
            let Some(memory) = regions(items) else { continue };
            group.bench_with_input(BenchmarkId::new("vm-memory", items), &addresses, |b, addresses| {
                b.iter(|| {
                    for at in addresses {
                        black_box(memory.get_slice(GuestAddress(*at), 64).ok());
                    }
                });
            });
        }
    }
}

fn change(c: &mut Criterion) {
    let mut group = c.benchmark_group("change");
    for items in [64, 65_535] {
        let map = segments(items);
        let middle = Iova(items / 2 * STEP);
        group.bench_function(BenchmarkId::new("remove", items), |b| {
            b.iter_batched(|| map.clone(), |map| map.remove(middle), BatchSize::SmallInput);
        });
        let Some((without, item)) = map.remove(middle) else { continue };
        group.bench_function(BenchmarkId::new("insert", items), |b| {
            b.iter_batched(|| item.clone(), |item| without.insert(item), BatchSize::SmallInput);
        });
    }
}

fn copy(c: &mut Criterion) {
    let mut group = c.benchmark_group("copy");
    let map = segments(16);
    let memory = regions(16);
    for len in [8, 12, 16, 32, 64, 128, 256, 1518] {
        group.throughput(Throughput::Bytes(len as u64));
        let mut buffer = [0_u8; 2048];
        let slice = map.lookup(Iova(0)).and_then(|segment| segment.slice(Iova(0), 4096)).expect("a page");
        group.bench_function(BenchmarkId::new("out/mdev-dma", len), |b| {
            b.iter(|| {
                let out = buffer.get_mut(..black_box(len)).unwrap_or_default();
                let copied = slice.copy_to(out);
                black_box((&mut buffer, copied));
            });
        });
        group.bench_function(BenchmarkId::new("in/mdev-dma", len), |b| {
            b.iter(|| {
                let from = black_box(&buffer).get(..black_box(len)).unwrap_or_default();
                black_box(slice.copy_from(from))
            });
        });
        let other = memory.as_ref().and_then(|memory| memory.get_slice(GuestAddress(0), 4096).ok());
        let Some(other) = other else { continue };
        group.bench_function(BenchmarkId::new("out/vm-memory", len), |b| {
            b.iter(|| {
                let out = buffer.get_mut(..black_box(len)).unwrap_or_default();
                let copied = other.get_slice(0, out.len()).map(|part| part.copy_to(out));
                black_box((&mut buffer, copied.ok()));
            });
        });
    }
}

criterion_group!(benches, lookup, change, copy);
criterion_main!(benches);
