//! Maps.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use mdev_protocol::vfio_user::{Client, DmaFlags, DmaMap, DmaUnmap, Request};
use mdevd::sys::EventFd;
use rustix::fs::{
    MemfdFlags, Mode as Permissions, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::io::Errno;

use super::framing::{Raw, errno};
use super::intruder::{DATA_AT, PAGE, refused};
use super::trial::Trial;

const BOTH: DmaFlags = DmaFlags::READ.union(DmaFlags::WRITE);
const AT: u64 = 1 << 40;
/// Ranges that may be mapped at a time.
const MOST: u64 = 65535;

/// A memory file of so many bytes.
pub fn memfd(size: u64) -> OwnedFd {
    let file = memfd_create("hostile", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, size).expect("it can grow");
    file
}

fn reopen(file: &impl AsFd, flags: OFlags) -> OwnedFd {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Permissions::empty()).expect("it can be opened")
}

fn map(address: u64, size: u64, offset: u64) -> DmaMap {
    DmaMap { flags: BOTH, offset, address, size }
}

#[test]
fn maps_that_make_no_sense_are_refused() {
    let mut trial = Trial::begin("adaptive");
    trial.case("ranges", |intruder, _| {
        let file = memfd(1 << 20);
        let mut refused = |map: DmaMap| refused(intruder.client.dma_map(map, Some(file.as_fd())));
        for (what, wrong, errno) in [
            ("an odd address", map(AT + 1, PAGE, 0), Errno::INVAL),
            ("an odd size", map(AT, PAGE + 1, 0), Errno::INVAL),
            ("an odd offset", map(AT, PAGE, 512), Errno::INVAL),
            ("longer than its file", map(AT, 2 << 20, 0), Errno::INVAL),
            ("behind its file", map(AT, PAGE, 1 << 20), Errno::INVAL),
            ("a terabyte", map(AT, 1 << 40, 0), Errno::INVAL),
            ("half of all addresses", map(1 << 63, 1 << 63, 0), Errno::INVAL),
            ("an offset of the end", map(AT, PAGE, 1 << 62), Errno::INVAL),
            ("what is there", map(DATA_AT, PAGE, 0), Errno::EXIST),
            ("the end of what is there", map(DATA_AT + (8 << 20) - PAGE, 2 * PAGE, 0), Errno::EXIST),
            ("all around what is there", map(DATA_AT - PAGE, (8 << 20) + 2 * PAGE, 0), Errno::EXIST),
            ("no permission", DmaMap { flags: DmaFlags::empty(), ..map(AT, PAGE, 0) }, Errno::INVAL),
        ] {
            assert_eq!(refused(wrong), errno, "{what}");
        }
        intruder.must_work("after maps that make no sense");
    });
    trial.hit("what the client's types cannot say", |house| {
        let mut raw = Raw::agreed(&house.target());
        let body = |argsz: u32, flags: u32, offset: u64, address: u64, size: u64| {
            let mut body = [argsz.to_ne_bytes(), flags.to_ne_bytes()].concat();
            body.extend([offset, address, size].map(u64::to_ne_bytes).concat());
            body
        };
        for (what, body) in [
            ("no bytes", body(32, 3, 0, AT, 0)),
            ("addresses that wrap", body(32, 3, 0, u64::MAX - 4095, 8192)),
            ("offsets that wrap", body(32, 3, u64::MAX - 4095, AT, 8192)),
            ("unknown flags", body(32, 7, 0, AT, PAGE)),
            ("more unknown flags", body(32, u32::MAX, 0, AT, PAGE)),
            ("an argsz of nothing", body(0, 3, 0, AT, PAGE)),
            ("an argsz too short", body(31, 3, 0, AT, PAGE)),
        ] {
            assert_eq!(raw.asks(2, &body), errno(Errno::INVAL), "{what}");
        }
        let unmap = |argsz: u32, flags: u32, address: u64, size: u64| {
            let mut body = [argsz.to_ne_bytes(), flags.to_ne_bytes()].concat();
            body.extend([address, size].map(u64::to_ne_bytes).concat());
            body
        };
        for (what, body, wanted) in [
            ("no bytes", unmap(24, 0, AT, 0), Errno::INVAL),
            ("a range that wraps", unmap(24, 0, u64::MAX, 2), Errno::INVAL),
            ("all, and a range", unmap(24, 2, AT, PAGE), Errno::INVAL),
            ("a bitmap", unmap(40, 1, AT, PAGE), Errno::NOTSUP),
            ("unknown flags", unmap(24, 0x80, AT, PAGE), Errno::INVAL),
        ] {
            assert_eq!(raw.asks(3, &body), errno(wanted), "{what}");
        }
    });
    trial.end();
}

#[test]
fn files_that_are_no_memory_are_refused() {
    let mut trial = Trial::begin("adaptive");
    trial.case("files that are no memory", |intruder, _| {
        let mut offer = |what: &str, file: &dyn AsFd, wanted: Errno| {
            let outcome = intruder.client.dma_map(map(AT, PAGE, 0), Some(file.as_fd()));
            assert_eq!(refused(outcome), wanted, "{what}");
        };
        let (one, other) = rustix::pipe::pipe().expect("a pipe");
        offer("a pipe", &one, Errno::INVAL);
        offer("its other end", &other, Errno::INVAL);
        offer("a folder", &File::open("/").expect("a folder"), Errno::INVAL);
        offer("a device", &File::open("/dev/zero").expect("a device"), Errno::INVAL);
        offer("a socket", &UnixStream::pair().expect("sockets").0, Errno::INVAL);
        offer("an eventfd", &EventFd::new().expect("an eventfd"), Errno::INVAL);
        offer("a file of the kernel", &File::open("/proc/self/maps").expect("a file"), Errno::INVAL);
        let mut disk = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
        disk.write_all(&[0; 8192]).expect("room on the disk");
        // Where the tests are built may be in memory.
        if rustix::fs::fstatfs(&disk).expect("a file system").f_type != 0x0102_1994 {
            offer("a file on a disk", &disk, Errno::INVAL);
        }
        let memory = memfd(8192);
        offer("for writing only", &reopen(&memory, OFlags::WRONLY), Errno::INVAL);
        offer("for nothing", &reopen(&memory, OFlags::PATH), Errno::INVAL);
        offer("for reading only", &reopen(&memory, OFlags::RDONLY), Errno::ACCESS);
        offer("an empty one", &memfd(0), Errno::INVAL);
        let sealed =
            memfd_create("sealed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memfd");
        ftruncate(&sealed, 8192).expect("it can grow");
        fcntl_add_seals(&sealed, SealFlags::WRITE).expect("nobody writes to it");
        let outcome = intruder.client.dma_map(map(AT, PAGE, 0), Some(sealed.as_fd()));
        assert!(outcome.is_err(), "it cannot be written");
        intruder.must_work("after files that are no memory");
    });
    trial.end();
}

/// Sends maps without waiting for each reply, and says how many were obeyed, and with what the others were refused.
fn map_many(client: &mut Client, file: &OwnedFd, count: u64) -> (u64, Vec<Errno>) {
    let (mut obeyed, mut others) = (0, Vec::new());
    let mut first = 0;
    while first < count {
        let last = (first + 64).min(count);
        let tickets: Vec<_> = (first..last)
            .map(|number| {
                // With a page between each and the next, so that nothing can be one.
                let request = Request::DmaMap(map(AT + number * 2 * PAGE, PAGE, number % 16 * PAGE));
                client.send(&request, &[file.as_fd()]).expect("room")
            })
            .collect();
        for ticket in tickets {
            match client.await_reply(ticket) {
                Ok(_) => obeyed += 1,
                other => others.push(refused(other)),
            }
        }
        first = last;
    }
    (obeyed, others)
}

#[test]
fn a_hundred_thousand_maps_run_into_the_limit_and_leave_nothing_behind() {
    let mut trial = Trial::begin("adaptive");
    let file = memfd(16 * PAGE);
    trial.accustom("as many maps as there may be", |intruder| {
        map_many(&mut intruder.client, &file, MOST);
    });
    trial.case("a hundred thousand maps", |intruder, _| {
        let began = std::time::Instant::now();
        let (obeyed, others) = map_many(&mut intruder.client, &file, 100_000);
        // Two are those of its memory.
        assert_eq!(obeyed, MOST - 2);
        assert!(others.len() as u64 == 100_000 - obeyed && others.iter().all(|errno| *errno == Errno::NOSPC));
        intruder.must_work("beside as many maps as there may be");
        println!("mapped in {:?}", began.elapsed());
        intruder.client.dma_unmap(DmaUnmap::All).expect("all of it");
        println!("and unmapped in {:?}", began.elapsed());
        intruder.lend();
    });
    trial.hit("a client that leaves with as many maps as there may be", |house| {
        let mut client = Client::connect(house.target(), mdev_tests::stage::WATCHDOG).expect("a client");
        client.negotiate(Default::default()).expect("a version");
        assert_eq!(map_many(&mut client, &file, MOST).0, MOST);
    });
    trial.case("maps that come and go", |intruder, _| {
        for round in 0..20_000u64 {
            let address = AT + round * PAGE;
            intruder.client.dma_map(map(address, PAGE, 0), Some(file.as_fd())).expect("a page");
            intruder.client.dma_unmap(DmaUnmap::Range { address, size: PAGE }).expect("the same");
        }
    });
    trial.case("a file for each of four thousand maps", |intruder, _| {
        let (mut obeyed, mut refusals) = (0, 0);
        for number in 0..4000u64 {
            let file = memfd(PAGE);
            let outcome = intruder.client.dma_map(map(AT + number * PAGE, PAGE, 0), Some(file.as_fd()));
            match outcome {
                Ok(()) => obeyed += 1,
                Err(_) => refusals += 1,
            }
        }
        println!("{obeyed} files, {refusals} refused");
        intruder.must_work("beside as many files as there may be");
        intruder.client.dma_unmap(DmaUnmap::All).expect("all of it");
        intruder.lend();
    });
    trial.case("terabytes", |intruder, _| {
        let big = memfd(64 << 40);
        let (mut taken, mut refusals) = (0u64, 0);
        for size in [1u64 << 40, 32 << 30, 1 << 30] {
            for number in 0..70u64 {
                let address = (1 << 50) + (size << 8) + number * size;
                match intruder.client.dma_map(map(address, size, 0), Some(big.as_fd())) {
                    Ok(()) => taken += size,
                    Err(_) => refusals += 1,
                }
            }
        }
        println!("{taken:#x} bytes, {refusals} refused");
        intruder.must_work("beside terabytes");
        intruder.client.dma_unmap(DmaUnmap::All).expect("all of it");
        intruder.lend();
    });
    trial.end();
}

#[test]
fn memory_without_a_file_may_be_lent() {
    let mut trial = Trial::begin("adaptive");
    trial.case("memory without a file", |intruder, _| {
        intruder.client.dma_map(map(AT, 1 << 30, 0), None).expect("it is accepted");
        assert_eq!(refused(intruder.client.dma_map(map(AT, PAGE, 0), None)), Errno::EXIST);
        intruder.must_work("beside memory without a file");
        let unmap = DmaUnmap::Range { address: AT, size: 1 << 30 };
        intruder.client.dma_unmap(unmap).expect("it is given back");
    });
    trial.end();
}
