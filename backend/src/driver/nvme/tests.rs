//! The driver and the project's controller, at the two ends of a real socket.

use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mdev_protocol::nvme::command::{Command, Completion};
use mdev_protocol::nvme::data::{SGL_DATA_BLOCK, SGL_LAST_SEGMENT, SglDescriptor};
use mdev_protocol::nvme::feature;
use mdev_protocol::nvme::opcode::{admin, nvm};
use mdev_protocol::nvme::status::Status;
use mdev_protocol::vfio_user::Client;

use super::*;
use crate::daemon::{Daemon, DaemonError, Endpoint, Options};
use crate::device::nvme::{NamespaceConfig, NvmeConfig, NvmeDevice, QUEUE_NAMES};
use crate::driver::{DriverError, GuestMemory, MemoryOptions};
use crate::session::SessionOptions;
use crate::worker::Mode;

const BLOCKS: u64 = 8192;
const LONG: Duration = Duration::from_secs(20);

/// A device that ends with its only connection.
struct Rig {
    controller: NvmeController,
    daemon: JoinHandle<Result<(), DaemonError>>,
}

impl Rig {
    fn try_new(mode: Mode, way: DoorbellWay) -> Result<Rig, NvmeError> {
        let stores = ["mem,size=4M", "null,size=1G"].map(|store| store.parse().unwrap());
        let namespaces = (1..).zip(stores).map(|(nsid, store)| NamespaceConfig::new(nsid, store)).collect();
        let config = NvmeConfig { name: "nvme-test".into(), namespaces, queues: 4, serial: None };
        let (front, back) = UnixStream::pair().unwrap();
        back.set_nonblocking(true).unwrap();
        let options = Options {
            mode,
            cpus: Vec::new(),
            stats: None,
            queue_names: QUEUE_NAMES,
            sessions: SessionOptions::default(),
            counters: None,
        };
        let device = NvmeDevice::new(config).unwrap();
        let daemon = Daemon::new(device, Endpoint::Connected(back.into()), options).unwrap();
        let daemon = std::thread::spawn(move || daemon.run());
        let memory = GuestMemory::new(MemoryOptions { size: 64 << 20, ..Default::default() }).unwrap();
        let controller = NvmeController::over(Client::new(front, LONG), memory, way)?;
        Ok(Rig { controller, daemon })
    }

    fn new(way: DoorbellWay) -> Rig {
        Rig::try_new(Mode::Adaptive, way).unwrap()
    }

    fn queue(&mut self, options: NvmeQueueOptions) -> NvmeQueue {
        NvmeQueue::new(&mut self.controller, options).unwrap()
    }

    /// The device has nothing to complain about. Queues must be gone, since each holds the connection.
    fn end(self) {
        drop(self.controller);
        self.daemon.join().unwrap().unwrap();
    }
}

fn options(qid: u16) -> NvmeQueueOptions {
    let pointers = Pointers::Prp;
    NvmeQueueOptions { qid, nsid: 1, block: 512, entries: 64, requests: 16, capacity: 4096, pointers }
}

/// Waits until nothing is under way, and returns what has ended.
fn all(queue: &mut NvmeQueue) -> Vec<Ended> {
    let deadline = Instant::now() + LONG;
    let mut ended = Vec::new();
    while queue.under_way() > 0 {
        queue.reap(64, |one, _| ended.push(one)).unwrap();
        assert!(Instant::now() < deadline, "{} requests have not ended", queue.under_way());
        std::thread::yield_now();
    }
    ended
}

/// Carries out one request on a buffer of this contents, and returns how it ended and the buffer after it.
fn one(queue: &mut NvmeQueue, bytes: &[u8], request: NvmeRequest) -> (Status, Vec<u8>) {
    queue
        .submit(1, |_, data| {
            data.copy_from(bytes);
            request
        })
        .unwrap();
    queue.publish().unwrap();
    let [Ended { tag, status }] = all(queue)[..] else { panic!("not one end") };
    let mut after = vec![0; bytes.len()];
    queue.data(tag).unwrap().copy_to(&mut after);
    (status.plain(), after)
}

fn noise(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ seed).collect()
}

/// Writes, compares, and reads back, at three lengths and places; then zeroes and deallocates.
fn exercise(queue: &mut NvmeQueue, capacity: usize) {
    for (round, len) in [512, capacity / 2 + 512, capacity].into_iter().enumerate() {
        let (block, len) = (round as u64 * 64 + 3, len.min(capacity) / 512 * 512);
        let (bytes, size) = (noise(len, round as u8), len as u32);
        let (read, compare) =
            (NvmeRequest::Read { block, len: size }, NvmeRequest::Compare { block, len: size });
        let write = NvmeRequest::Write { block, len: size, durable: round == 1 };
        assert_eq!(one(queue, &bytes, write).0, Status::SUCCESS);
        assert_eq!(one(queue, &bytes, compare).0, Status::SUCCESS);
        let mut other = bytes.clone();
        other[len - 1] ^= 1;
        assert_eq!(one(queue, &other, compare).0, Status::COMPARE_FAILURE);
        assert_eq!(one(queue, &vec![0xee; len], read), (Status::SUCCESS, bytes));
        assert_eq!(one(queue, &[], NvmeRequest::Flush).0, Status::SUCCESS);
        let blocks = size / 512;
        let gone = match round {
            0 => NvmeRequest::Deallocate { block, blocks },
            _ => NvmeRequest::WriteZeroes { block, blocks, deallocate: round == 2 },
        };
        assert_eq!(one(queue, &[], gone).0, Status::SUCCESS);
        assert_eq!(one(queue, &vec![0xee; len], read), (Status::SUCCESS, vec![0; len]));
    }
    let beyond = NvmeRequest::Read { block: BLOCKS, len: 512 };
    assert_eq!(one(queue, &[], beyond).0, Status::LBA_OUT_OF_RANGE);
}

#[test]
fn controller_and_namespaces_say_what_they_are() {
    let mut rig = Rig::new(DoorbellWay::Trapped);
    let controller = rig.controller.identify_controller().unwrap();
    assert_eq!((controller.vendor, controller.kind, controller.namespaces > 1), (0x1b36, 1, true));
    assert_eq!(&controller.serial[..9], b"nvme-test");
    assert_eq!(rig.controller.identify_namespace(1).unwrap().size, BLOCKS);
    assert_eq!(rig.controller.identify_namespace(2).unwrap().size, 1 << 21);
    assert_eq!([2, 100].map(|pairs| rig.controller.ask_for_queues(pairs).unwrap()), [2, 4]);
    let set = rig.controller.set_feature(feature::TEMPERATURE_THRESHOLD, 300);
    assert!(set.is_ok() && rig.controller.feature(feature::TEMPERATURE_THRESHOLD).unwrap() == 300);
    let unknown = Command::new(0xc5, 0, 0);
    let error = rig.controller.carry_out("Something", unknown).unwrap_err();
    assert!(matches!(error, NvmeError::Refused { status, .. } if status.plain() == Status::INVALID_OPCODE));
    rig.controller.shut_down().unwrap();
    rig.end();
}

#[test]
fn data_goes_to_the_store_and_comes_back_by_prp_and_sgl() {
    for pointers in [Pointers::Prp, Pointers::Sgl] {
        let mut rig = Rig::new(DoorbellWay::Trapped);
        for (qid, capacity) in [(1, 512), (2, 4096), (3, 8192), (4, 1 << 18)] {
            let mut queue = rig.queue(NvmeQueueOptions { capacity, pointers, requests: 3, ..options(qid) });
            exercise(&mut queue, capacity as usize);
        }
        rig.end();
    }
}

#[test]
fn list_of_prp_entries_of_the_longest_command_is_followed_to_its_end() {
    let mut rig = Rig::new(DoorbellWay::Trapped);
    let mut queue = rig.queue(NvmeQueueOptions { capacity: MOST_DATA, requests: 2, ..options(1) });
    let bytes = noise(MOST_DATA as usize, 7);
    let write = NvmeRequest::Write { block: 5, len: MOST_DATA, durable: false };
    assert_eq!(one(&mut queue, &bytes, write).0, Status::SUCCESS);
    let read = NvmeRequest::Read { block: 5, len: MOST_DATA };
    assert!(one(&mut queue, &vec![1; MOST_DATA as usize], read) == (Status::SUCCESS, bytes));
    drop(queue);
    rig.end();
}

#[test]
fn sgl_of_a_segment_gathers_its_pieces() {
    let mut rig = Rig::new(DoorbellWay::Trapped);
    let mut queue = rig.queue(options(1));
    assert_eq!(
        one(&mut queue, &noise(4096, 1), NvmeRequest::Write { block: 0, len: 4096, durable: false }).0,
        Status::SUCCESS
    );
    let part = rig.controller.memory().allocate(8192, 4096).unwrap();
    let page = part.slice().unwrap();
    page.fill(0);
    // The first 1000 bytes lie behind the others.
    for (at, (offset, len)) in [(6000, 1000), (4096, 1500), (1000, 1596)].into_iter().enumerate() {
        page.write(at * 16, SglDescriptor::new(SGL_DATA_BLOCK, part.at.0 + offset, len)).unwrap();
    }
    let dptr = SglDescriptor::new(SGL_LAST_SEGMENT, part.at.0, 48).pointer();
    let read = Command::new(nvm::READ, 40, 1);
    let read = Command { cdw0: read.cdw0 | 1 << 14, dptr, cdw12: 7, ..read };
    assert!(queue.pair.push(&read));
    queue.pair.ring().unwrap();
    let mut found = None;
    let deadline = Instant::now() + LONG;
    while found.is_none() {
        queue.pair.reap(1, |completion| found = Some((completion.cid, completion.status()))).unwrap();
        assert!(Instant::now() < deadline);
    }
    assert_eq!(found, Some((40, Status::SUCCESS)));
    let mut gathered = Vec::new();
    for (offset, len) in [(6000, 1000), (4096, 1500), (1000, 1596)] {
        let mut piece = vec![0; len];
        page.subslice(offset, len).unwrap().copy_to(&mut piece);
        gathered.extend(piece);
    }
    assert!(gathered == noise(4096, 1));
    drop(queue);
    rig.end();
}

#[test]
fn queues_wrap_many_times_and_lose_nothing_by_every_way_of_doorbells() {
    for (mode, way) in [
        (Mode::Adaptive, DoorbellWay::Trapped),
        (Mode::Adaptive, DoorbellWay::Shadow),
        (Mode::Busy, DoorbellWay::Shadow),
        (Mode::Busy, DoorbellWay::Mapped),
    ] {
        let mut rig = match Rig::try_new(mode, way) {
            Err(error) => panic!("{mode:?} {way:?}: {error}"),
            Ok(rig) => rig,
        };
        let given = rig.controller.ask_for_queues(4).unwrap();
        assert_eq!(given, 4);
        let mut queues: Vec<NvmeQueue> = (1..=4)
            .map(|qid| rig.queue(NvmeQueueOptions { entries: 9, requests: 8, ..options(qid) }))
            .collect();
        let mut ended = [0u64; 4];
        let deadline = Instant::now() + LONG;
        while ended.iter().any(|&count| count < 2000) {
            for (number, queue) in queues.iter_mut().enumerate() {
                let block = number as u64 * 64;
                queue
                    .submit(5, |tag, data| {
                        data.fill(tag as u8);
                        NvmeRequest::Write { block: block + u64::from(tag) * 8, len: 4096, durable: false }
                    })
                    .unwrap();
                queue.publish().unwrap();
                let count = queue
                    .reap(5, |one, _| assert_eq!(one.status, Status::SUCCESS, "{mode:?} {way:?}"))
                    .unwrap();
                ended[number] += u64::from(count);
            }
            assert!(Instant::now() < deadline, "{mode:?} {way:?}: {ended:?}");
        }
        for (number, queue) in queues.iter_mut().enumerate() {
            assert!(all(queue).iter().all(|one| one.status.is_success()));
            for tag in 0..8 {
                let block = number as u64 * 64 + tag * 8;
                let read = NvmeRequest::Read { block, len: 4096 };
                assert_eq!(one(queue, &[0xee; 4096], read), (Status::SUCCESS, vec![tag as u8; 4096]));
            }
        }
        drop(queues);
        rig.end();
    }
}

#[test]
fn doorbells_of_a_device_that_sleeps_cannot_be_mapped() {
    let error = Rig::try_new(Mode::Event, DoorbellWay::Mapped).err().unwrap();
    assert!(matches!(error, NvmeError::NotMappable), "{error}");
}

#[test]
fn sleeping_device_is_woken_through_shadow_doorbells() {
    let mut rig = Rig::try_new(Mode::Event, DoorbellWay::Shadow).unwrap();
    let mut queue = rig.queue(NvmeQueueOptions { entries: 4, requests: 2, ..options(1) });
    for round in 0..20 {
        std::thread::sleep(Duration::from_millis(round % 4));
        let bytes = noise(512, round as u8);
        let write = NvmeRequest::Write { block: round, len: 512, durable: false };
        assert_eq!(one(&mut queue, &bytes, write).0, Status::SUCCESS, "round {round}");
    }
    drop(queue);
    rig.end();
}

#[test]
fn deleted_queues_are_gone_and_their_numbers_free() {
    for way in [DoorbellWay::Trapped, DoorbellWay::Shadow] {
        let mut rig = Rig::new(way);
        for round in 0..3 {
            let mut queue = rig.queue(options(2));
            exercise(&mut queue, 4096);
            let again = rig.controller.create_pair(2, 64).err().unwrap();
            let taken = |error: &NvmeError| matches!(error, NvmeError::Refused { status, .. } if status.plain() == Status::INVALID_QUEUE_ID);
            assert!(taken(&again), "round {round}: {again}");
            rig.controller.delete_pair(2).unwrap();
            assert!(taken(&rig.controller.delete_pair(2).unwrap_err()));
        }
        let delete = Command { cdw10: 3, ..Command::new(admin::DELETE_CQ, 0, 0) };
        assert!(rig.controller.carry_out("Delete I/O Completion Queue", delete).is_err());
        rig.end();
    }
}

#[test]
fn reset_ends_queues_and_the_controller_can_be_used_again() {
    for way in [DoorbellWay::Trapped, DoorbellWay::Shadow] {
        let mut rig = Rig::new(way);
        for round in 0..3 {
            let mut queue = rig.queue(options(1));
            let bytes = noise(4096, round);
            let read = NvmeRequest::Read { block: 8, len: 4096 };
            if round > 0 {
                let old = noise(4096, round - 1);
                assert_eq!(one(&mut queue, &[0; 4096], read), (Status::SUCCESS, old), "the store stays");
            }
            let write = NvmeRequest::Write { block: 8, len: 4096, durable: false };
            assert_eq!(one(&mut queue, &bytes, write).0, Status::SUCCESS);
            queue.submit(16, |_, _| read).unwrap();
            queue.publish().unwrap();
            if round == 0 {
                rig.controller.reset().unwrap()
            } else {
                rig.controller.enable().unwrap()
            }
            assert!(rig.controller.identify_namespace(1).unwrap().size == BLOCKS);
        }
        rig.end();
    }
}

#[test]
fn requests_and_queues_that_do_not_fit_are_refused_before_the_device_sees_them() {
    let mut rig = Rig::new(DoorbellWay::Trapped);
    for wrong in [
        NvmeQueueOptions { requests: 64, ..options(1) },
        NvmeQueueOptions { capacity: MOST_DATA + 4096, ..options(1) },
        NvmeQueueOptions { capacity: 0, ..options(1) },
        NvmeQueueOptions { capacity: 512, block: 4096, ..options(1) },
        NvmeQueueOptions { block: 1000, ..options(1) },
    ] {
        let error = NvmeQueue::new(&mut rig.controller, wrong).err().unwrap();
        assert!(matches!(error, NvmeError::Requests { .. }), "{wrong:?}: {error}");
    }
    let greatest = rig.controller.greatest_queue();
    for (qid, entries) in [(0, 64), (1, 1), (1, greatest + 1)] {
        let error = rig.controller.create_pair(qid, entries).err().unwrap();
        assert!(matches!(error, NvmeError::Entries { .. }), "{error}");
    }
    let mut queue = rig.queue(options(1));
    for len in [0, 100, 4608] {
        let error = queue.submit_one(NvmeRequest::Read { block: 0, len }).unwrap_err();
        assert!(matches!(error, DriverError::UsedLength { .. }), "{len}: {error}");
    }
    assert_eq!((queue.idle(), queue.under_way(), queue.pair.room()), (16, 0, 63));
    drop(queue);
    rig.end();
}

#[test]
fn completion_of_what_is_not_under_way_is_an_error() {
    let mut rig = Rig::new(DoorbellWay::Trapped);
    let forged = |cid| Completion { cid, ..Completion::default() }.with_status(Status::SUCCESS, true);
    // Nothing is under way at all.
    let mut queue = rig.queue(options(1));
    let [_, at] = queue.pair.bases();
    rig.controller.memory().slice(at, 16).unwrap().write(0, forged(3)).unwrap();
    assert!(matches!(queue.reap(8, |_, _| ()), Err(DriverError::NotUnderWay(3))));
    // Another is: it is pushed, and never rung for.
    for cid in [5, 40_000] {
        let qid = if cid == 5 { 2 } else { 3 };
        let mut queue = rig.queue(options(qid));
        let [_, at] = queue.pair.bases();
        assert_eq!(queue.submit_one(NvmeRequest::Flush).unwrap(), Some(0));
        rig.controller.memory().slice(at, 16).unwrap().write(0, forged(cid)).unwrap();
        let error = queue.reap(8, |ended, _| panic!("{ended:?}")).unwrap_err();
        assert!(matches!(error, DriverError::NotUnderWay(wrong) if wrong == cid), "{error}");
    }
    drop(queue);

    rig.end();
}

#[test]
fn memory_of_a_queue_is_enough_for_it_at_any_size() {
    let mut rig = Rig::new(DoorbellWay::Trapped);
    for (requests, capacity, entries) in [(1, 512, 2), (31, 1536, 32), (100, 4096, 128), (5, 12_288, 64)] {
        let wanted = NvmeQueueOptions { requests, capacity, entries, ..options(1) };
        let before = rig.controller.memory().allocate(1, 1).unwrap().at.0;
        rig.queue(wanted);
        let after = rig.controller.memory().allocate(1, 1).unwrap().at.0;
        assert!(after - before <= wanted.memory(), "{wanted:?}: {}", after - before);
        rig.controller.delete_pair(1).unwrap();
    }
    rig.end();
}
