//! What a chain costs in a packed ring, beside the same in a split ring, and with one used entry for a burst where the order is kept.
//!
//! The driver is the same thread: it makes 32 chains of one buffer available, the device takes them, does nothing, or
//! reads 8 bytes of each buffer, and uses them: all at once as a device that reads, or each with a length as one that writes.
//! The time is the device's part alone. All take turns, slice by slice, so that the drift of a shared machine
//! reaches them alike; printed are ns per chain, medians and ranges over the slices.
//! `cargo bench -p mdevd --bench packed`

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mdev_dma::{
    Area, BackingFile, FileExtent, FilePolicy, GuestSlice, Iova, IovaRange, Perm, Segment, Windows,
};
use mdev_pin::{Access, IgnoreUnmap, Ioas, Lane};
use mdev_protocol::virtio::packed::{Position, available_flags};
use mdevd::ring::{QueueState, Ring, RingAddr, RingSetup};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const SIZE: u16 = 256;
const BATCH: u16 = 32;
const MEMORY: u64 = 4 << 20;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 1 << 20;
const BUFFER: u64 = 2048;
/// Slices of each ring, and batches in one.
const SLICES: usize = 101;
const BATCHES: u32 = 1_000;

struct Rig {
    ring: Ring,
    packed: bool,
    lane: Lane,
    segment: Segment,
    next: Position,
    index: u16,
    _access: Access,
    _ioas: Ioas,
}

impl Rig {
    fn new(packed: bool, in_order: bool) -> Self {
        let fd = memfd_create("packed-bench", MemfdFlags::CLOEXEC).unwrap();
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
            desc: at(0),
            avail: at(AVAIL),
            used: at(USED),
            packed,
            in_order,
            event_idx: false,
            indirect: true,
            state: QueueState::fresh(packed),
            log: None,
        };
        let rig = Rig {
            ring: Ring::new(setup).unwrap(),
            packed,
            lane: access.lane(),
            segment,
            next: Position::START,
            index: 0,
            _access: access,
            _ioas: ioas,
        };
        let memory = rig.memory();
        for slot in 0..SIZE {
            let at = 16 * usize::from(slot);
            memory.write(at, BUFFERS + BUFFER * u64::from(slot)).unwrap();
            memory.write(at + 8, if packed { 0u64 } else { 1500 }).unwrap();
            memory.write(AVAIL as usize + 4 + 2 * usize::from(slot), slot).unwrap();
        }
        // The driver wants no calls.
        memory.write(AVAIL as usize + if packed { 2 } else { 0 }, 1u16).unwrap();
        rig
    }

    fn memory(&self) -> GuestSlice<'_> {
        self.segment.window.slice(0, MEMORY as usize).unwrap()
    }

    #[inline(never)]
    fn drive(&mut self) {
        let memory = self.segment.window.slice(0, MEMORY as usize).unwrap();
        if self.packed {
            for _ in 0..BATCH {
                let Position { slot, wrap } = self.next;
                let word = 1500 | u64::from(slot) << 32 | u64::from(available_flags(wrap)) << 48;
                memory.store_u64(16 * usize::from(slot) + 8, word, Ordering::Release).unwrap();
                self.next = self.next.advance(1, SIZE);
            }
        } else {
            self.index = self.index.wrapping_add(BATCH);
            memory.store_u16(AVAIL as usize + 2, self.index, Ordering::Release).unwrap();
        }
    }

    #[inline(never)]
    fn serve<const READ: bool, const EACH: bool>(&mut self) -> u64 {
        let burst = self.lane.enter();
        let mut vring = self.ring.begin(&burst).unwrap();
        let mut sum = 0u64;
        let taken = vring.take(
            BATCH.into(),
            #[inline(always)]
            |chain| {
                for buffer in chain.readable {
                    if READ {
                        let slice = burst.slice(buffer.iova, buffer.len, Perm::READ)?;
                        sum = sum.wrapping_add(slice.read::<u64>(0).unwrap());
                    } else {
                        sum = sum.rotate_left(1) ^ buffer.iova.0;
                    }
                }
                Ok(())
            },
        );
        assert_eq!(taken.unwrap(), usize::from(BATCH));
        if EACH {
            for index in 0..BATCH.into() {
                let head = vring.head(index).unwrap();
                vring.complete(head, 76).unwrap();
            }
        } else {
            vring.complete_all().unwrap();
        }
        black_box(vring.publish().unwrap());
        sum
    }

    /// ns per chain of one slice.
    fn slice<const READ: bool, const EACH: bool>(&mut self) -> f64 {
        let mut spent = Duration::ZERO;
        for _ in 0..BATCHES {
            self.drive();
            let started = Instant::now();
            black_box(self.serve::<READ, EACH>());
            spent += started.elapsed();
        }
        spent.as_secs_f64() * 1e9 / f64::from(BATCHES) / f64::from(BATCH)
    }
}

fn compare<const READ: bool, const EACH: bool>(name: &str) {
    let rigs = [(false, false), (false, true), (true, false), (true, true)];
    let mut rigs = rigs.map(|(packed, in_order)| Rig::new(packed, in_order));
    let mut samples = [const { Vec::new() }; 4];
    for _ in 0..SLICES {
        for (rig, samples) in rigs.iter_mut().zip(&mut samples) {
            samples.push(rig.slice::<READ, EACH>());
        }
    }
    print!("{name:<14}");
    for mut samples in samples {
        samples.sort_by(f64::total_cmp);
        let shown = format!("{:.2} ({:.2}-{:.2})", samples[SLICES / 2], samples[0], samples[SLICES - 1]);
        print!("{shown:>22}");
    }
    println!();
}

fn main() {
    println!(
        "{:<14}{:>22}{:>22}{:>22}{:>22}",
        "ns/chain", "split", "split in order", "packed", "packed in order"
    );
    compare::<false, false>("walk");
    compare::<false, true>("walk, lengths");
    compare::<true, false>("read8");
    compare::<true, true>("read8, lengths");
}
