//! `mdevd blk` under the `virtio-driver` crate, in both ring formats: whatever requests it makes, what it reads is what it wrote.
//!
//! UNSAFETY: the driver wants raw addresses of memory that it shares with the device; they are given to it here.
#![allow(unsafe_code)]

mod first_base;

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mdev_tests::lab::{Lab, Mdevd};
use mdev_tests::random::Random;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags as Features};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// Bytes of the disk, of which each place in a batch has a share of its own.
const SIZE: usize = 8 << 20;
const PLACES: usize = 16;
const SHARE: usize = SIZE / PLACES;
const QUEUES: usize = 2;
const BATCHES: u32 = 150;
/// Bytes of the longest request, and of a place's memory.
const LONGEST: usize = 128 << 10;
const SECTOR: usize = 512;
const PATIENCE: Duration = Duration::from_secs(30);
const EIO: i32 = -5;

#[test]
fn a_driver_with_split_rings_finds_in_memory_what_it_wrote() {
    drive(&format!("mem,size={SIZE}"), Features::empty(), SECTOR);
}

#[test]
fn a_driver_with_split_rings_indirect_tables_and_event_indices_finds_in_a_file_what_it_wrote() {
    drive("file=disk.img", Features::RING_INDIRECT_DESC | Features::RING_EVENT_IDX, SECTOR);
}

#[test]
fn a_driver_with_packed_rings_finds_in_a_direct_file_what_it_wrote() {
    drive("file=disk.img,direct=on", Features::RING_PACKED, 4096);
}

#[test]
fn a_driver_with_packed_rings_indirect_tables_and_event_indices_finds_in_a_file_what_it_wrote() {
    drive(
        "file=disk.img",
        Features::RING_PACKED | Features::RING_INDIRECT_DESC | Features::RING_EVENT_IDX,
        SECTOR,
    );
}

/// What the disk holds, as far as is known: what was discarded may be anything.
struct Model {
    bytes: Vec<u8>,
    known: Vec<bool>,
}

impl Model {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.known[at / SECTOR..(at + bytes.len()) / SECTOR].fill(true);
    }

    fn forget(&mut self, at: usize, length: usize) {
        self.known[at / SECTOR..(at + length) / SECTOR].fill(false);
    }

    fn check(&self, at: usize, found: &[u8], where_found: &str) {
        let sectors = found.chunks(SECTOR).zip(self.bytes[at..].chunks(SECTOR)).zip(at / SECTOR..);
        for ((found, wanted), sector) in sectors {
            assert!(!self.known[sector] || found == wanted, "sector {sector} is wrong {where_found}");
        }
    }
}

/// One request of a batch.
#[derive(Copy, Clone, Debug)]
enum Request {
    Read,
    Write,
    Discard,
    Zero { unmap: bool },
    Flush,
    ReadBehindTheEnd,
}

/// Memory that the driver shares with the device: a piece for each place.
struct Shared(MmapRegion<()>);

impl Shared {
    fn address(&self, place: usize) -> *mut u8 {
        self.0.as_ptr().wrapping_add(place * LONGEST)
    }

    fn get(&self, place: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.as_volatile_slice().read_slice(&mut bytes, place * LONGEST).expect("in the region");
        bytes
    }

    fn put(&self, place: usize, bytes: &[u8]) {
        self.0.as_volatile_slice().write_slice(bytes, place * LONGEST).expect("in the region");
    }
}

fn drive(store: &str, features: Features, grain: usize) {
    let work = tempfile::tempdir().expect("a folder");
    let lab = Lab::without_peers(work.path());
    let image = work.path().join("disk.img");
    std::fs::write(&image, vec![0; SIZE]).expect("an image");
    let mut mdevd = Mdevd::blk(&lab, "blk.sock", QUEUES as u16, store, &[]);

    let device = work.path().join("blk.sock");
    let packed = features.contains(Features::RING_PACKED);
    let socket = if packed { first_base::relay(&device) } else { device };
    let wanted = Features::VERSION_1 | features;
    // All features of the device itself, or it has one queue.
    let mut transport: Box<VirtioBlkTransport> = Box::new(
        VhostUser::new(socket.to_str().expect("a path"), wanted.bits() | 0xff_ffff).expect("a device"),
    );
    assert_eq!(Features::from_bits_truncate(transport.get_features()), wanted);
    assert_eq!(u64::from(transport.get_config().expect("its space").capacity), (SIZE / SECTOR) as u64);
    let mut queues = VirtioBlkQueue::setup_queues(transport.as_mut(), QUEUES, 64).expect("queues");
    queues.iter_mut().for_each(|queue| queue.set_used_notif_enabled(true));

    let length = PLACES * LONGEST;
    let file = std::fs::File::from(memfd_create("buffers", MemfdFlags::CLOEXEC).expect("a memfd"));
    ftruncate(&file, length as u64).expect("its length");
    let fd = file.as_raw_fd();
    let shared = Shared(
        MmapRegion::from_file(FileOffset::new(file.try_clone().expect("a descriptor"), 0), length)
            .expect("a mapping"),
    );
    transport.map_mem_region(shared.address(0) as usize, length, fd, 0).expect("a place in its table");

    let mut model = Model { bytes: vec![0; SIZE], known: vec![true; SIZE / SECTOR] };
    let mut random = Random::seeded("virtio_driver");
    let mut served = 0;
    for _ in 0..BATCHES {
        let requests: Vec<(Request, usize, Vec<u8>)> =
            (0..PLACES).map(|place| request(&mut random, place, grain)).collect();
        for (place, (request, at, bytes)) in requests.iter().enumerate() {
            shared.put(place, bytes);
            let (at, length, address) = (*at as u64, bytes.len(), shared.address(place));
            let queue = &mut queues[place % QUEUES];
            let queued = match request {
                // SAFETY: the address is that of this place's piece of the region, which is longer than any request, outlives the
                // queues, and is not touched before the request has ended.
                Request::Read => unsafe { queue.read_raw(at, address, length, place) },
                // SAFETY: as above.
                Request::ReadBehindTheEnd => unsafe { queue.read_raw(SIZE as u64, address, length, place) },
                // SAFETY: as above.
                Request::Write => unsafe { queue.write_raw(at, address, length, place) },
                Request::Discard => queue.discard(at, length as u64, place),
                Request::Zero { unmap } => queue.write_zeroes(at, length as u64, *unmap, place),
                Request::Flush => queue.flush(place),
            };
            queued.expect("room in the ring");
        }
        for (index, queue) in queues.iter_mut().enumerate() {
            if queue.avail_notif_needed() {
                transport.get_submission_notifier(index).notify().expect("a kick");
            }
        }
        for (index, queue) in queues.iter_mut().enumerate() {
            let mut open = PLACES / QUEUES;
            while open > 0 {
                for ended in queue.completions() {
                    let (request, at, bytes) = &requests[ended.context];
                    let found = || shared.get(ended.context, bytes.len());
                    let right = if matches!(request, Request::ReadBehindTheEnd) { EIO } else { 0 };
                    assert_eq!(ended.ret, right, "{request:?} of {} bytes at {at}", bytes.len());
                    match request {
                        Request::Read => model.check(*at, &found(), "when it is read"),
                        Request::Write => model.write(*at, bytes),
                        Request::Discard => model.forget(*at, bytes.len()),
                        Request::Zero { .. } => model.write(*at, &vec![0; bytes.len()]),
                        Request::Flush | Request::ReadBehindTheEnd => {}
                    }
                    open -= 1;
                    served += 1;
                }
                if open > 0 {
                    let call = transport.get_completion_fd(index);
                    let mut polled = [PollFd::from_borrowed_fd(call.as_fd(), PollFlags::IN)];
                    let patience = PATIENCE.try_into().expect("a time");
                    assert_eq!(
                        poll(&mut polled, Some(&patience)),
                        Ok(1),
                        "queue {index} does not end {open}"
                    );
                    call.read().expect("a count of calls");
                }
            }
        }
    }
    let counted: u64 = mdevd.counters().iter().map(|queue| queue.requests()).sum();
    assert_eq!(counted, served);
    drop((queues, transport));
    mdevd.terminate();
    if store.starts_with("file") {
        model.check(0, &std::fs::read(image).expect("the image"), "in the image");
    }
}

/// A request in a place's share of the disk, of a length that is a multiple of `grain`, and bytes for it.
fn request(random: &mut Random, place: usize, grain: usize) -> (Request, usize, Vec<u8>) {
    const CHOICES: &[Request] = &[
        Request::Read,
        Request::Read,
        Request::Read,
        Request::Write,
        Request::Write,
        Request::Write,
        Request::Discard,
        Request::Zero { unmap: true },
        Request::Zero { unmap: false },
        Request::Flush,
        Request::ReadBehindTheEnd,
    ];
    let request = *random.of(CHOICES);
    let length = grain * (1 + random.below((LONGEST / grain) as u64) as usize);
    let first = random.below(((SHARE - length) / grain + 1) as u64) as usize;
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    (request, place * SHARE + first * grain, bytes)
}
