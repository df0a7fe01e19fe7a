//! What a chain costs: our split ring, beside `virtio-queue`, and beside a reader without chains, checks or protection, which
//! says how quick the machine is.
//!
//! The driver is the same thread: it makes 32 chains available, the device takes them, does nothing, or reads 8 bytes,
//! or copies 64 bytes of each buffer, and uses them. The three take turns, slice by slice, so that the drift of a shared
//! machine reaches all alike; printed are ns per chain, medians and ranges over the slices, and the median of the
//! quotients of neighbouring slices. `cargo bench -p mdevd --bench ring`.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use mdev_dma::{
    Area, BackingFile, FileExtent, FilePolicy, GuestSlice, Iova, IovaRange, Perm, Segment, Windows,
};
use mdev_pin::{Access, IgnoreUnmap, Ioas, Lane};
use mdevd::ring::{QueueState, Ring, RingAddr, RingSetup};
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
/// Slices of each reader, and batches in one.
const SLICES: usize = 101;
const BATCHES: u32 = 2_000;

/// What the device does with a buffer. A constant, as it is in a device.
type Work = u8;
const WALK: Work = 0;
const READ8: Work = 1;
const COPY64: Work = 2;

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
    ring: Ring,
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
            extent: FileExtent { file: file.clone(), offset: 0 }.into(),
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
            packed: false,
            in_order: false,
            state: QueueState::split(0),
            log: None,
        };
        let ours = Self {
            ring: Ring::new(setup).unwrap(),
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
    fn serve<const WORK: Work>(&mut self) -> u64 {
        let burst = self.lane.enter();
        let mut vring = self.ring.begin(&burst).unwrap();
        let mut sum = 0u64;
        let mut scratch = [0u8; 64];
        let taken = vring.take(
            BATCH.into(),
            #[inline(always)]
            |chain| {
                for buffer in chain.readable {
                    match WORK {
                        WALK => sum = sum.rotate_left(1) ^ buffer.iova.0,
                        READ8 => {
                            let slice = burst.slice(buffer.iova, buffer.len, Perm::READ)?;
                            sum = sum.wrapping_add(slice.read::<u64>(0).unwrap());
                        }
                        _ => {
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
    fn serve<const WORK: Work>(&mut self) -> u64 {
        let mut sum = 0u64;
        let mut scratch = [0u8; 64];
        let mut heads = [0u16; BATCH as usize];
        let mut count = 0;
        for chain in self.queue.iter(&self.memory).unwrap() {
            heads[count] = chain.head_index();
            count += 1;
            match WORK {
                WALK => chain.readable().for_each(|desc| sum = sum.wrapping_add(desc.addr().0)),
                READ8 => {
                    chain.readable().for_each(|desc| {
                        sum = sum.wrapping_add(self.memory.read_obj::<u64>(desc.addr()).unwrap());
                    });
                }
                _ => {
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

/// The least that a ring can cost: every chain is two words at its head, every buffer lies where the first one says.
struct Plain {
    ours: Ours,
    links: u16,
    taken: u16,
}

impl Plain {
    #[inline(never)]
    fn serve<const WORK: Work>(&mut self) -> u64 {
        let memory = self.ours.memory();
        let word = |at: u64| memory.read::<u64>(at as usize).unwrap();
        let mut sum = 0u64;
        let mut scratch = [0u8; 64];
        let index = memory.load_u16(AVAIL as usize + 2, Ordering::Acquire).unwrap();
        while self.taken != index {
            let slot = u64::from(self.taken % SIZE);
            let head = memory.read::<u16>((AVAIL + 4 + 2 * slot) as usize).unwrap();
            for link in 0..self.links {
                let desc = DESC + 16 * u64::from(head + link);
                let (at, rest) = (word(desc), word(desc + 8));
                match WORK {
                    WALK => sum = sum.rotate_left(1) ^ at ^ rest,
                    READ8 => sum = sum.wrapping_add(word(at)),
                    _ => {
                        let buffer = memory.subslice(at as usize, rest as u32 as usize).unwrap();
                        sum = sum.wrapping_add(buffer.copy_to(&mut scratch) as u64);
                        black_box(&mut scratch);
                    }
                }
            }
            memory.write::<u64>((USED + 4 + 8 * slot) as usize, head.into()).unwrap();
            self.taken = self.taken.wrapping_add(1);
        }
        memory.store_u16(USED as usize + 2, self.taken, Ordering::Release).unwrap();
        sum
    }
}

/// ns per chain of one slice.
fn slice(mut batch: impl FnMut() -> u64) -> f64 {
    let started = Instant::now();
    for _ in 0..BATCHES {
        black_box(batch());
    }
    started.elapsed().as_secs_f64() * 1e9 / f64::from(BATCHES) / f64::from(BATCH)
}

fn shown(samples: &mut [f64]) -> String {
    samples.sort_by(f64::total_cmp);
    format!("{:.2} ({:.2}-{:.2})", samples[SLICES / 2], samples[0], samples[SLICES - 1])
}

fn compare<const WORK: Work>(name: &str) {
    for links in [1, 2] {
        let mut plain = Plain { ours: Ours::new(links), links, taken: 0 };
        let (mut ours, mut theirs) = (Ours::new(links), Theirs::new(links));
        let mut samples = [const { Vec::new() }; 3];
        for _ in 0..SLICES {
            samples[0].push(slice(|| {
                plain.ours.drive();
                plain.serve::<WORK>()
            }));
            samples[1].push(slice(|| {
                ours.drive();
                ours.serve::<WORK>()
            }));
            samples[2].push(slice(|| {
                theirs.drive();
                theirs.serve::<WORK>()
            }));
        }
        let mut quotients: Vec<f64> = samples[1].iter().zip(&samples[0]).map(|(a, b)| a / b).collect();
        quotients.sort_by(f64::total_cmp);
        let [plain, ours, theirs] = &mut samples;
        println!(
            "{name:<8}{links:>6}{:>22}{:>22}{:>24}{:>8.2}",
            shown(plain),
            shown(ours),
            shown(theirs),
            quotients[SLICES / 2]
        );
    }
}

fn main() {
    println!(
        "{:<8}{:>6}{:>22}{:>22}{:>24}{:>8}",
        "ns/chain", "links", "plain", "mdevd", "virtio-queue", "ratio"
    );
    compare::<WALK>("walk");
    compare::<READ8>("read8");
    compare::<COPY64>("copy64");
}
