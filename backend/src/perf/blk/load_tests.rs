use super::*;
use crate::driver::ledger::Damage;
use crate::driver::{GuestMemory, MemoryOptions};
use crate::perf::blk::workload::{Protocol, Rings};
use crate::perf::shape::Format;
use mdev_dma::Iova;
use mdev_protocol::virtio::blk::{BlkHeader, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use mdev_protocol::virtio::split::UsedElem;

const BLOCKS: u64 = 64;
const BLOCK: usize = 4096;

/// What a device does to its writes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Harm {
    None,
    /// Every fifth write is forgotten.
    Forget,
    /// Every fifth write goes to the block behind.
    Astray,
    /// Of every fifth write the second half is forgotten.
    Half,
    /// Every fifth request fails and does nothing.
    Fail,
    /// Every fifth request ends twice.
    Twice,
}

/// A device in the same thread, which keeps its bytes in a vector and ends requests last first.
struct Device {
    disk: Vec<u8>,
    harm: Harm,
    seen: u16,
    used: u16,
    requests: u64,
}

impl Device {
    fn serve(&mut self, memory: &GuestMemory, load: &Load) {
        let ring = load.ring().raw();
        let mut slots: Vec<u16> = Vec::new();
        while self.seen != ring.avail_index() {
            slots.push(self.seen);
            self.seen = self.seen.wrapping_add(1);
        }
        for &slot in slots.iter().rev() {
            let head = ring.avail_entry(slot);
            let header = ring.desc(head);
            let data = ring.desc(header.next);
            let status = ring.desc(data.next);
            let header: BlkHeader = memory.slice(Iova(header.addr), 16).unwrap().read(0).unwrap();
            let data = memory.slice(Iova(data.addr), data.len.into()).unwrap();
            self.requests += 1;
            let harmed = self.requests.is_multiple_of(5);
            let fails = harmed && self.harm == Harm::Fail;
            if !fails {
                self.transfer(header, &data, harmed);
            }
            let answer = if fails { VIRTIO_BLK_S_IOERR } else { 0 };
            memory.slice(Iova(status.addr), 1).unwrap().write(0, answer).unwrap();
            let times = if harmed && self.harm == Harm::Twice { 2 } else { 1 };
            for _ in 0..times {
                ring.set_used_entry(self.used, UsedElem { id: head.into(), len: 1 });
                self.used = self.used.wrapping_add(1);
            }
        }
        ring.set_used_index(self.used);
    }

    fn transfer(&mut self, header: BlkHeader, data: &GuestSlice<'_>, harmed: bool) {
        let block = header.sector() as usize / 8;
        let mut bytes = vec![0; BLOCK];
        data.copy_to(&mut bytes);
        match (header.kind(), self.harm) {
            (VIRTIO_BLK_T_IN, _) => {
                data.copy_from(&self.disk[block * BLOCK..][..BLOCK]);
            }
            (VIRTIO_BLK_T_OUT, Harm::Forget) if harmed => {}
            (VIRTIO_BLK_T_OUT, Harm::Astray) if harmed => {
                let block = (block + 1) % BLOCKS as usize;
                self.disk[block * BLOCK..][..BLOCK].copy_from_slice(&bytes);
            }
            (VIRTIO_BLK_T_OUT, Harm::Half) if harmed => {
                self.disk[block * BLOCK..][..BLOCK / 2].copy_from_slice(&bytes[..BLOCK / 2]);
            }
            (VIRTIO_BLK_T_OUT, _) => self.disk[block * BLOCK..][..BLOCK].copy_from_slice(&bytes),
            (kind, _) => panic!("a request of kind {kind}"),
        }
    }
}

fn options(rw: Rw, verify: bool) -> BlkCellOptions {
    BlkCellOptions {
        workload: Workload {
            rw,
            size: "4k".parse().unwrap(),
            depth: 8,
            protocol: Protocol::Virtio(Format::Split),
        },
        rings: Rings { size: Some(64), burst: 3, indirect: false, event_idx: false },
        queues: 1,
        span: None,
        prefill: false,
        verify,
        seed: 5,
        duration: Duration::from_secs(1),
        cpus: Vec::new(),
    }
}

/// A load on such a device, and what a run of some hundred requests and reading everything back found.
fn run(rw: Rw, harm: Harm, verify: bool) -> Result<(Load, BlkCounts), DriverError> {
    let options = options(rw, verify);
    let queue = options.workload.queue(&options.rings).unwrap();
    let mut memory = GuestMemory::new(MemoryOptions::default()).unwrap();
    let queue = BlkQueue::new(&mut memory, queue).unwrap();
    let place = Place { all: BLOCKS, first: 0, count: BLOCKS };
    let mut load = Load::new(queue, RingFds::new().unwrap(), &options, place);
    let disk = vec![0; BLOCK * BLOCKS as usize];
    let mut device = Device { disk, harm, seen: 0, used: 0, requests: 0 };
    let mut through = |load: &mut Load, write| {
        load.go_through(write);
        while !load.is_done(true) {
            load.poll(true)?;
            device.serve(&memory, load);
        }
        Ok::<_, DriverError>(())
    };
    if !rw.writes() {
        through(&mut load, true)?;
    }
    load.take();
    load.work();
    for _ in 0..400 {
        load.poll(true)?;
        device.serve(&memory, &load);
    }
    while !load.is_done(false) {
        load.poll(false)?;
    }
    let counts = load.take();
    if verify {
        let mut through = |load: &mut Load| {
            load.go_through(false);
            while !load.is_done(true) {
                load.poll(true)?;
                device.serve(&memory, load);
            }
            Ok::<_, DriverError>(())
        };
        through(&mut load)?;
    }
    Ok((load, counts))
}

const ALL: [Rw; 5] = [Rw::RandRead, Rw::RandWrite, Rw::Read, Rw::Write, Rw::Mixed];

#[test]
fn device_that_does_as_it_is_told_passes_every_workload() {
    for rw in ALL {
        let (load, counts) = run(rw, Harm::None, true).unwrap();
        assert_eq!((load.faults().findings.total(), load.faults().failed), (0, 0), "{rw}");
        assert!(counts.requests > 1000 && counts.bytes == counts.requests * BLOCK as u64, "{rw}");
        let sampled = counts.requests / u64::from(SAMPLE);
        assert!((sampled - 1..=sampled + 1).contains(&counts.latencies.count()), "{rw}");
    }
}

#[test]
fn harm_to_writes_is_found_and_named() {
    for (harm, damage) in
        [(Harm::Forget, Damage::Lost), (Harm::Astray, Damage::Misplaced), (Harm::Half, Damage::Torn)]
    {
        for rw in ALL {
            let (load, _) = run(rw, harm, true).unwrap();
            let findings = &load.faults().findings;
            assert!(findings.count(damage) > 0, "{harm:?} {rw}: {findings:?}");
            assert_eq!(findings.count(Damage::Doubled), 0, "{harm:?} {rw}");
        }
    }
}

#[test]
fn request_that_ends_twice_ends_the_run() {
    let error = run(Rw::RandWrite, Harm::Twice, true).map(drop).unwrap_err();
    assert!(matches!(error, DriverError::UsedTwice(_) | DriverError::UsedIndexJump { .. }), "{error}");
}

#[test]
fn requests_that_fail_are_counted_and_their_blocks_are_not_damaged() {
    for rw in [Rw::RandWrite, Rw::Mixed] {
        let (load, counts) = run(rw, Harm::Fail, true).unwrap();
        assert!(load.faults().failed > 100 && load.faults().failed >= counts.failed, "{rw}");
        assert_eq!(load.faults().status, Some(Failed::Virtio(VIRTIO_BLK_S_IOERR)));
        assert_eq!(load.faults().findings.total(), 0, "{rw}");
        assert_eq!(counts.bytes, (counts.requests - counts.failed) * BLOCK as u64);
    }
}

#[test]
fn mixed_workload_reads_seven_of_ten_and_reaches_nearly_every_block() {
    let (load, counts) = run(Rw::Mixed, Harm::None, true).unwrap();
    let check = load.check.as_ref().unwrap();
    assert!(check.ledger.written() as u64 > BLOCKS - 5);
    let writes = check.ledger.begun() as f64 / counts.requests as f64;
    assert!((0.25..0.35).contains(&writes), "{writes}");
}
