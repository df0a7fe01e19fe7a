//! Operations that do not end by themselves: reads of pipes into pinned memory.

use std::io::Write;
use std::os::fd::OwnedFd;

use mdev_dma::{Iova, Perm};
use mdev_pin::{Access, IgnoreUnmap, Ioas};

use super::*;
use crate::driver::{GuestMemory, MemoryOptions};

struct Guest {
    memory: GuestMemory,
    ioas: Ioas,
    access: Access,
}

impl Guest {
    fn new() -> Guest {
        let memory =
            GuestMemory::new(MemoryOptions { size: 4096, first: Iova(0), huge_pages: false }).unwrap();
        let ioas = Ioas::new(memory.windows().clone());
        ioas.map(memory.regions()[0].area()).unwrap();
        let access = Access::new(Arc::new(IgnoreUnmap));
        access.attach(&ioas).unwrap();
        Guest { memory, ioas, access }
    }

    fn memory(&self) -> Memory {
        let mut lane = self.access.lane();
        let burst = lane.enter();
        Memory::pinned(smallvec::smallvec![burst.pin(Iova(0), 16, Perm::READ | Perm::WRITE).unwrap()])
    }

    fn first(&self) -> u8 {
        self.memory.slice(Iova(0), 1).unwrap().read(0).unwrap()
    }
}

const READ: Order = Order::Read { file: 0, offset: u64::MAX };

fn ring() -> (Ring<u64>, std::io::PipeWriter) {
    let (files, writer) = pipe();
    (Ring::new(4, files, false, &EventFd::new().unwrap()).unwrap(), writer)
}

fn pipe() -> (Arc<[OwnedFd]>, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Arc::new([reader.into()]), writer)
}

fn wait(ring: &mut Ring<u64>) -> Ended<u64> {
    loop {
        ring.look();
        if let Some(ended) = ring.reap() {
            return ended;
        }
        std::thread::yield_now();
    }
}

#[test]
fn operation_ends_when_its_bytes_come_and_holds_its_memory_until_then() {
    let (guest, (mut ring, mut writer)) = (Guest::new(), ring());
    assert!(ring.push(READ, guest.memory(), 7).is_ok());
    ring.enter();
    ring.look();
    assert!(ring.reap().is_none() && guest.ioas.pins() == 1 && !ring.is_idle());
    writer.write_all(b"abc").unwrap();
    let ended = wait(&mut ring);
    assert_eq!((ended.owner, ended.result, ended.order, ring.is_idle()), (7, Ok(3), READ, true));
    assert_eq!((ended.memory.left(), guest.first(), guest.ioas.pins()), (16, b'a', 1));
    drop(ended);
    assert_eq!(guest.ioas.pins(), 0);
}

#[test]
fn operations_that_wait_are_cancelled() {
    let (guest, (mut ring, _writer)) = (Guest::new(), ring());
    for owner in 0..4 {
        assert!(ring.push(READ, guest.memory(), owner).is_ok());
    }
    assert_eq!(ring.push(READ, Memory::none(), 4), Err(4), "all slots are taken");
    ring.enter();
    ring.cancel();
    let mut owners: Vec<u64> = (0..4)
        .map(|_| {
            let ended = wait(&mut ring);
            assert_eq!(ended.result, Err(Errno::CANCELED));
            ended.owner
        })
        .collect();
    owners.sort_unstable();
    assert_eq!((owners, guest.ioas.pins()), (vec![0, 1, 2, 3], 0));
}

#[test]
fn ring_that_is_dropped_ends_what_waits_and_gives_memory_back() {
    let (guest, (mut ring, mut writer)) = (Guest::new(), ring());
    assert!(ring.push(READ, guest.memory(), 1).is_ok());
    ring.enter();
    assert!(ring.push(READ, guest.memory(), 2).is_ok());
    drop(ring);
    assert_eq!(guest.ioas.pins(), 0);
    assert!(writer.write_all(b"x").is_err(), "the pipe was closed at once");
    assert_eq!(guest.first(), 0);
}

#[test]
fn memory_of_what_does_not_end_is_kept_for_good() {
    let (guest, (mut ring, mut writer)) = (Guest::new(), ring());
    assert!(ring.push(READ, guest.memory(), 1).is_ok());
    ring.enter();
    // Another thread may not look for ends.
    std::thread::scope(|scope| {
        scope.spawn(move || drop(ring));
    });
    assert_eq!(guest.ioas.pins(), 1, "the kernel may still write there");
    let _ = writer.write_all(b"x");
    assert_eq!(guest.ioas.pins(), 1);
}

#[test]
fn operations_without_memory_and_of_zeros_end() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    rustix::io::pwrite(&file, &[0xff; 8192], 0).unwrap();
    let files: Arc<[OwnedFd]> = Arc::new([file.try_clone().unwrap().into()]);
    let mut ring: Ring<u64> = Ring::new(4, files, false, &EventFd::new().unwrap()).unwrap();
    assert_eq!(ring.push(READ, Memory::zeros(512), 0), Err(0), "zeros stay zeros");
    let write = Order::Write { file: 0, offset: 512, durable: true };
    assert!(ring.push(write, Memory::zeros(1024), 1).is_ok());
    ring.enter();
    let ended = wait(&mut ring);
    assert_eq!((ended.owner, ended.result), (1, Ok(1024)));
    assert!(ring.push(Order::Sync { file: 0 }, Memory::none(), 2).is_ok());
    ring.enter();
    let ended = wait(&mut ring);
    assert_eq!((ended.owner, ended.result), (2, Ok(0)));
    let mut bytes = [1; 2048];
    rustix::io::pread(&file, &mut bytes, 0).unwrap();
    let zeros = 512..1536;
    assert!(bytes.iter().enumerate().all(|(at, byte)| (*byte == 0) == zeros.contains(&at)));
}

#[test]
fn plain_ring_of_older_kernels_ends_signals_and_cancels_as_well() {
    let (guest, (files, mut writer)) = (Guest::new(), pipe());
    let bell = EventFd::new().unwrap();
    let mut ring: Ring<u64> = Ring::on(plain(4).unwrap(), false, files, false, &bell).unwrap();
    for round in 0..100 {
        assert!(ring.push(READ, guest.memory(), round).is_ok());
        assert!(!ring.arm());
        writer.write_all(&[round as u8]).unwrap();
        let fds = &mut [rustix::event::PollFd::new(&bell, rustix::event::PollFlags::IN)];
        while matches!(rustix::event::poll(fds, None), Err(Errno::INTR)) {}
        ring.disarm();
        bell.drain();
        assert_eq!(wait(&mut ring).result, Ok(1));
        assert_eq!(guest.first(), round as u8);
    }
    assert!(ring.push(READ, guest.memory(), 1).is_ok());
    ring.cancel();
    assert_eq!(wait(&mut ring).result, Err(Errno::CANCELED));
    assert_eq!(guest.ioas.pins(), 0);
}
