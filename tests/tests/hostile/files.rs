//! Descriptors that are no memory, and memory that is not where it is said to be.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use mdev_pin::ResolveError;
use mdev_protocol::vhost_user::MemoryRegion;
use mdev_tests::stage::{Guest, GuestOptions};
use mdevd::ring::RingError;
use mdevd::sys::EventFd;
use mdevd::worker::Mode;
use rustix::fs::{
    MemfdFlags, Mode as Permissions, OFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create,
};
use rustix::pipe::pipe;

use super::latched::{ATTACKED, Attacks, RX, TX};

const MIB: u64 = 1 << 20;

fn region(size: u64, offset: u64) -> MemoryRegion {
    MemoryRegion { guest_addr: 1 << 40, size, user_addr: 0x7f00_0000_0000, mmap_offset: offset }
}

/// A memory file of so many bytes.
pub fn memfd(size: u64) -> OwnedFd {
    let file = memfd_create("hostile", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, size).expect("it can grow");
    file
}

/// Offers `file` as memory, by both messages: each must be refused for this reason, and cost nothing but itself.
fn must_be_refused(
    attacks: &Attacks,
    guest: &mut Guest,
    region: MemoryRegion,
    file: BorrowedFd<'_>,
    why: &str,
) {
    guest.refused(|client| client.add_mem_region(region, file));
    attacks.stage.said(why);
    guest.refused(|client| client.set_mem_table(&[(region, file)]));
    attacks.stage.said(why);
}

/// A guest that has sent what is refused works all the same.
fn goes_on(attacks: &Attacks, mut guest: Guest) {
    guest.exchange(20);
    assert!(!guest.needs_reset());
    attacks.victim.must_go_on(20);
    attacks.leave("refused memory", guest);
}

#[test]
fn files_that_are_no_memory_are_refused_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    // Of each kind one connection: refusals are logged at a bounded rate.
    let offer = |file: &dyn AsFd, why: &str| {
        let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
        must_be_refused(&attacks, &mut guest, region(4096, 0), file.as_fd(), why);
        goes_on(&attacks, guest);
    };
    let (pipe_end, other_end) = pipe().expect("a pipe");
    offer(&pipe_end, "no regular file");
    offer(&other_end, "no regular file");
    offer(&File::open("/").expect("a directory"), "no regular file");
    offer(&File::open("/dev/zero").expect("a device"), "no regular file");
    offer(&UnixStream::pair().expect("sockets").0, "no regular file");
    offer(&EventFd::new().expect("an eventfd"), "no regular file");
    offer(&File::open("/proc/self/maps").expect("a file of the kernel"), "neither tmpfs nor hugetlbfs");
    drop((pipe_end, other_end));

    let mut disk = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    disk.write_all(&[0; 8192]).expect("room on the disk");
    // Where the tests are built may be in memory.
    if rustix::fs::fstatfs(&disk).expect("a file system").f_type != 0x0102_1994 {
        offer(&disk, "neither tmpfs nor hugetlbfs");
    }
    let memory = memfd(8192);
    offer(&reopen(&memory, OFlags::WRONLY), "for writing only");
    offer(&reopen(&memory, OFlags::PATH), "O_PATH");
    drop((disk, memory));

    let sealed = memfd_create("sealed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memfd");
    ftruncate(&sealed, 8192).expect("it can grow");
    fcntl_add_seals(&sealed, SealFlags::WRITE).expect("nobody writes to it");
    offer(&sealed, "cannot map the memory file");
    drop(sealed);
    attacks.end();
}

/// The same file, opened anew with these flags.
fn reopen(file: &impl AsFd, flags: OFlags) -> OwnedFd {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Permissions::empty()).expect("it can be opened")
}

#[test]
fn regions_longer_than_their_files_are_refused_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let file = memfd(MIB);
    let beyond = "which has only 0x100000";
    let wrong = [
        (region(MIB + 1, 0), beyond),
        (region(MIB, 1), beyond),
        (region(4096, MIB), beyond),
        (region(1 << 40, 0), beyond),
        (region(4096, u64::MAX - 4095), "wraps around in its file offsets"),
        (region(0, 0), "is empty"),
        (region(u64::MAX, 0), "wraps around"),
        (MemoryRegion { guest_addr: u64::MAX - 4094, ..region(4096, 0) }, "in its guest physical addresses"),
        (MemoryRegion { user_addr: u64::MAX - 4094, ..region(4096, 0) }, "in its user addresses"),
    ];
    for (region, why) in wrong {
        let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
        must_be_refused(&attacks, &mut guest, region, file.as_fd(), why);
        goes_on(&attacks, guest);
    }
    drop(file);
    attacks.end();
}

#[test]
fn regions_over_each_other_are_refused_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let file = memfd(MIB);
    let mut guest = Guest::start(&attacks.stage, ATTACKED, GuestOptions::default());
    let known = &guest.memory.regions()[0];
    let (guest_addr, user_addr) = (known.range.last().0, known.user.0 + known.size() - 1);
    let in_memory = MemoryRegion { guest_addr, ..region(4096, 0) };
    let in_front_end = MemoryRegion { user_addr, ..region(4096, 0) };
    guest.refused(|client| client.add_mem_region(in_memory, file.as_fd()));
    attacks.stage.said("in guest physical addresses");
    guest.refused(|client| client.add_mem_region(in_front_end, file.as_fd()));
    attacks.stage.said("in user addresses");
    guest.refused(|client| {
        client.set_mem_table(&[(region(4096, 0), file.as_fd()), (region(8192, 0), file.as_fd())])
    });
    attacks.stage.said("overlaps");
    goes_on(&attacks, guest);
    drop(file);
    attacks.end();
}

#[test]
fn memory_that_may_only_be_read_is_never_written_and_nobody_else_notices() {
    let attacks = Attacks::begin(Mode::Adaptive);
    let permission = RingError::Memory(ResolveError::Permission);
    // Everything is in memory to read only: the used ring cannot be there.
    let mut guest = Guest::connect(&attacks.stage, ATTACKED, GuestOptions::default());
    share_read_only(&mut guest, 0);
    guest.start_rings();
    attacks.must_fail("a used ring to read only", &mut guest, TX, permission);
    attacks.leave("a used ring to read only", guest);

    // Only the buffers are: frames can be read from there, but none can be received.
    let apart = GuestOptions { apart: true, ..Default::default() };
    let mut guest = Guest::connect(&attacks.stage, ATTACKED, apart);
    let [rings, _] = guest.memory.regions() else { panic!("two regions") };
    let described = described(rings);
    guest.front.client().add_mem_region(described, rings.extent.file.as_fd()).expect("good memory");
    share_read_only(&mut guest, 1);
    guest.start_rings();
    super::latched::send_one(&mut guest);
    guest.fds[1].kick.signal();
    attacks.must_fail("receive buffers to read only", &mut guest, RX, permission);
    attacks.leave("receive buffers to read only", guest);
    attacks.end();
}

/// A region as messages describe it.
pub fn described(region: &mdevd::driver::Region) -> MemoryRegion {
    MemoryRegion {
        guest_addr: region.range.first().0,
        size: region.size(),
        user_addr: region.user.0,
        mmap_offset: region.extent.offset,
    }
}

fn share_read_only(guest: &mut Guest, number: usize) {
    let region = &guest.memory.regions()[number];
    let file = reopen(&region.extent.file.as_fd(), OFlags::RDONLY);
    let described = described(region);
    guest.front.client().add_mem_region(described, file.as_fd()).expect("memory to read is memory");
}
