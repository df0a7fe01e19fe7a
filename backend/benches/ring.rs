//! What a chain costs: our split ring beside `virtio-queue`, in one run.
//!
//! The driver is the same thread: it makes 32 chains available, the device takes them, does nothing, or reads 8 bytes,
//! or copies 64 bytes of each buffer, and uses them. Figures are per batch; the throughput line is per chain.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mdev_dma::{
    Area, BackingFile, FileExtent, FilePolicy, GuestSlice, Iova, IovaRange, Perm, Segment, Windows,
};
use mdev_pin::{Access, IgnoreUnmap, Ioas, Lane};
use mdevd::ring::{RingAddr, RingSetup, SplitRing};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_queue::{Queue, QueueOwnedT, QueueT, Reader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};
use zerocopy::IntoBytes;

const SIZE: u16 = 256;
const BATCH: u16 = 32;
const MEMORY: u64 = 4 << 20;
const DESC: u64 = 0;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 1 << 20;
const BUFFER: u64 = 2048;

/// What the device does with a buffer.
#[derive(Copy, Clone, PartialEq)]
enum Work {
    Walk,
    Read8,
    Copy64,
}

/// The descriptors of a table whose chains have `links` device-readable buffers each, as (offset, word).
fn table(links: u16) -> impl Iterator<Item = (u64, u64)> {
    (0..SIZE).flat_map(move |index| {
        let flags = u64::from(index % links + 1 < links);
        let rest = 1500 | (flags << 32) | (u64::from(index + 1) << 48);
        let at = DESC + 16 * u64::from(index);
        [(at, BUFFERS + BUFFER * u64::from(index)), (at + 8, rest)]
    })
}

/// The head that each slot of the available ring names.
fn heads(links: u16) -> [u16; SIZE as usize] {
    std::array::from_fn(|slot| (slot as u16 % (SIZE / links)) * links)
}

struct Ours {
    ring: SplitRing,
    lane: Lane,
    segment: Segment,
    heads: [u16; SIZE as usize],
    next: u16,
    _access: Access,
    _ioas: Ioas,
}

impl Ours {
    fn new(links: u16) -> Self {
        let fd = memfd_create("ring-bench", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, MEMORY).unwrap();
        let file = BackingFile::new(fd, &FilePolicy::default()).unwrap();
        let windows = Windows::new().unwrap();
        let area = Area {
            range: IovaRange::with_len(Iova(0), MEMORY).unwrap(),
            extent: FileExtent { file: file.clone(), offset: 0 },
            perm: Perm::READ | Perm::WRITE,
            log: None,
        };
        let segment = windows.segments(&area).unwrap().remove(0);
        let ioas = Ioas::new(windows);
        ioas.map(area).unwrap();
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).unwrap();
        let at = |offset| RingAddr::Extent(FileExtent { file: file.clone(), offset });
        let setup = RingSetup {
            size: SIZE,
            desc: at(DESC),
            avail: at(AVAIL),
            used: at(USED),
            event_idx: false,
            indirect: true,
            next_avail: 0,
        };
        let ours = Self {
            ring: SplitRing::new(setup).unwrap(),
            lane: access.lane(),
            segment,
            heads: heads(links),
            next: 0,
            _access: access,
            _ioas: ioas,
        };
        let memory = ours.memory();
        table(links).for_each(|(at, word)| memory.write::<u64>(at as usize, word).unwrap());
        memory.write::<u16>(AVAIL as usize, 1).unwrap();
        ours
    }

    fn memory(&self) -> GuestSlice<'_> {
        self.segment.window.slice(0, MEMORY as usize).unwrap()
    }

    #[inline(never)]
    fn drive(&mut self) {
        let avail = self.segment.window.slice(AVAIL, 4 + 2 * usize::from(SIZE)).unwrap();
        let slot = usize::from(self.next % SIZE);
        let heads = self.heads[slot..slot + usize::from(BATCH)].as_bytes();
        avail.subslice(4 + 2 * slot, heads.len()).unwrap().copy_from(heads);
        self.next = self.next.wrapping_add(BATCH);
        avail.store_u16(2, self.next, Ordering::Release).unwrap();
    }

    #[inline(never)]
    fn serve(&mut self, work: Work) -> u64 {
        let burst = self.lane.enter();
        let mut vring = self.ring.begin(&burst).unwrap();
        let mut sum = 0u64;
        let mut scratch = [0u8; 64];
        let taken = vring.take(
            BATCH.into(),
            #[inline(always)]
            |chain| {
                for buffer in chain.readable {
                    match work {
                        Work::Walk => sum = sum.rotate_left(1) ^ buffer.iova.0,
                        Work::Read8 => {
                            let slice = burst.slice(buffer.iova, buffer.len, Perm::READ)?;
                            sum = sum.wrapping_add(slice.read::<u64>(0).unwrap());
                        }
                        Work::Copy64 => {
                            let slice = burst.slice(buffer.iova, buffer.len, Perm::READ)?;
                            sum = sum.wrapping_add(slice.copy_to(&mut scratch) as u64);
                            black_box(&mut scratch);
                        }
                    }
                }
                Ok(())
            },
        );
        taken.unwrap();
        vring.complete_all().unwrap();
        black_box(vring.publish().unwrap());
        sum
    }
}

struct Theirs {
    memory: GuestMemoryMmap,
    queue: Queue,
    heads: [u16; SIZE as usize],
    links: u16,
    next: u16,
}

impl Theirs {
    fn new(links: u16) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_size(SIZE);
        queue.try_set_desc_table_address(GuestAddress(DESC)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAIL)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        table(links).for_each(|(at, word)| memory.write_obj(word, GuestAddress(at)).unwrap());
        memory.write_obj(1u16, GuestAddress(AVAIL)).unwrap();
        Self { memory, queue, heads: heads(links), links, next: 0 }
    }

    fn avail(&self) -> VolatileSlice<'_> {
        self.memory.get_slice(GuestAddress(AVAIL), 4 + 2 * usize::from(SIZE)).unwrap()
    }

    #[inline(never)]
    fn drive(&mut self) {
        let next = self.next.wrapping_add(BATCH);
        let avail = self.avail();
        let slot = usize::from(self.next % SIZE);
        let heads = self.heads[slot..slot + usize::from(BATCH)].as_bytes();
        avail.subslice(4 + 2 * slot, heads.len()).unwrap().copy_from(heads);
        avail.store(next, 2, Ordering::Release).unwrap();
        self.next = next;
    }

    #[inline(never)]
    fn serve(&mut self, work: Work) -> u64 {
        let mut sum = 0u64;
        let mut scratch = [0u8; 64];
        let mut heads = [0u16; BATCH as usize];
        let mut count = 0;
        for chain in self.queue.iter(&self.memory).unwrap() {
            heads[count] = chain.head_index();
            count += 1;
            match work {
                Work::Walk => chain.readable().for_each(|desc| sum = sum.wrapping_add(desc.addr().0)),
                Work::Read8 => {
                    chain.readable().for_each(|desc| {
                        sum = sum.wrapping_add(self.memory.read_obj::<u64>(desc.addr()).unwrap());
                    });
                }
                Work::Copy64 => {
                    let mut reader = Reader::new(&self.memory, chain).unwrap();
                    for _ in 0..self.links {
                        sum =
                            sum.wrapping_add(std::io::Read::read(&mut reader, &mut scratch).unwrap() as u64);
                        black_box(&mut scratch);
                    }
                }
            }
        }
        for head in &heads[..count] {
            self.queue.add_used(&self.memory, *head, 0).unwrap();
        }
        black_box(self.queue.needs_notification(&self.memory).unwrap());
        sum
    }
}

fn chains(criterion: &mut Criterion) {
    for (name, work) in [("walk", Work::Walk), ("read8", Work::Read8), ("copy64", Work::Copy64)] {
        for links in [1, 2] {
            let mut group = criterion.benchmark_group(format!("{name}/{links}"));
            group.throughput(Throughput::Elements(BATCH.into()));
            let mut ours = Ours::new(links);
            group.bench_function("mdevd", |b| {
                b.iter(|| {
                    ours.drive();
                    ours.serve(work)
                })
            });
            let mut theirs = Theirs::new(links);
            group.bench_function("virtio-queue", |b| {
                b.iter(|| {
                    theirs.drive();
                    theirs.serve(work)
                })
            });
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_millis(1000))
        .sample_size(30);
    targets = chains
}
criterion_main!(benches);
