//! UNSAFETY: handlers and dispositions of a signal are set and called here as the C library has them, in processes of
//! their own.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};

use super::{default_action, set_action};
use crate::raw::table::{Entry, Registration, SLOTS};
use crate::tests::{area, memory, resize};
use crate::{BackingFile, FilePolicy, Iova, Segment, WindowError, Windows, poison_epoch};

const MIB: u64 = 1 << 20;

fn map(windows: &Windows, file: &std::sync::Arc<BackingFile>, len: u64) -> Segment {
    windows.segments(&area(file, 0, 0, len)).unwrap().remove(0)
}

#[test]
fn only_the_window_of_the_file_that_shrank_is_poisoned() {
    let windows = Windows::new().unwrap();
    let (shrinks, stays) = (memory(MIB), memory(MIB));
    let (bad, good) = (map(&windows, &shrinks, MIB), map(&windows, &stays, MIB));
    bad.slice(Iova(0), 16 * 4096).unwrap().fill(7);
    good.slice(Iova(0), 16 * 4096).unwrap().fill(7);
    let before = poison_epoch();
    resize(&shrinks, 4096);
    assert_eq!(good.slice(Iova(8192), 1).unwrap().read(0), Some(7_u8));
    assert_eq!(bad.slice(Iova(8192), 1).unwrap().read(0), Some(0_u8), "zeros where the page was");
    assert_eq!(bad.slice(Iova(0), 1).unwrap().read(0), Some(7_u8), "the page that is left is still there");
    assert_eq!((bad.window.poison_count(), good.window.poison_count()), (1, 0));
    assert!(poison_epoch() > before);

    // The replacement can be read and written like any page, without another fault.
    bad.slice(Iova(8200), 4).unwrap().fill(1);
    assert_eq!(bad.slice(Iova(8200), 1).unwrap().read(0), Some(1_u8));
    assert_eq!(bad.window.poison_count(), 1);
}

#[test]
fn every_kind_of_access_to_a_lost_page_completes() {
    use Ordering::{Acquire, Release};
    let windows = Windows::new().unwrap();
    let file = memory(MIB);
    let segment = map(&windows, &file, MIB);
    resize(&file, 0);
    let page = |n: u64| segment.slice(Iova(n * 4096), 4096).unwrap();
    assert_eq!(page(0).load_u16(0, Acquire), Some(0));
    assert_eq!(page(1).store_u64(8, 1, Release), Some(()));
    assert_eq!(page(2).copy_to(&mut [1; 64]), 64);
    assert_eq!(page(3).copy_from(&[1; 4096]), 4096);
    assert_eq!(page(4).copy_to_slice(&page(5)), 4096);
    page(6).fill(1);
    page(7).prefetch_write(0);
    assert!(segment.window.poison_count() >= 7);
}

#[test]
fn a_punched_hole_reads_zeros_and_is_no_fault() {
    let windows = Windows::new().unwrap();
    let file = memory(MIB);
    let segment = map(&windows, &file, MIB);
    segment.slice(Iova(0), 8192).unwrap().fill(7);
    fallocate(file.as_fd(), FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096).unwrap();
    assert_eq!(segment.slice(Iova(4095), 2).unwrap().read(0), Some([0_u8, 7]));
    assert!(!segment.window.poisoned());
}

#[test]
fn a_file_that_shrinks_under_copies_of_other_threads_harms_neither_them_nor_a_bystander() {
    let windows = Windows::new().unwrap();
    let stays = memory(MIB);
    let good = map(&windows, &stays, MIB);
    good.slice(Iova(0), MIB as usize).unwrap().fill(5);
    for round in 0..40_u64 {
        let file = memory(MIB);
        let bad = map(&windows, &file, MIB);
        bad.slice(Iova(0), MIB as usize).unwrap().fill(5);
        let started = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut buffer = vec![0; MIB as usize];
                    loop {
                        bad.slice(Iova(0), MIB as usize).unwrap().copy_to(&mut buffer);
                        started.store(true, Ordering::Release);
                        let poisoned = bad.window.poisoned();
                        // Whatever was read that is not the file's is accounted for by the time the copy is over.
                        assert!(poisoned || buffer.iter().all(|byte| *byte == 5));
                        if poisoned {
                            break;
                        }
                    }
                });
            }
            scope.spawn(|| {
                let mut buffer = vec![0; MIB as usize];
                good.slice(Iova(0), MIB as usize).unwrap().copy_to(&mut buffer);
                assert!(buffer.iter().all(|byte| *byte == 5));
            });
            while !started.load(Ordering::Acquire) {
                thread::yield_now();
            }
            resize(&file, (round % 9) * 4096 * 20 + round);
        });
        assert!(bad.window.poisoned());
        assert!(!good.window.poisoned());
    }
}

#[test]
fn a_window_that_loses_many_pages_is_replaced_as_a_whole() {
    let windows = Windows::new().unwrap();
    let file = memory(4 * MIB);
    let segment = map(&windows, &file, 4 * MIB);
    resize(&file, 0);
    for page in (0..1024).step_by(2) {
        assert_eq!(segment.slice(Iova(page * 4096), 8).unwrap().read(0), Some(0_u64));
    }
    assert_eq!(segment.window.poison_count(), 17, "sixteen pages one by one, then all");
}

#[test]
fn huge_pages_that_run_out_or_are_cut_off_are_contained_as_huge_pages() {
    let Ok(fd) = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB) else {
        eprintln!("skipped: this kernel has no huge pages");
        return;
    };
    ftruncate(&fd, 64 << 30).unwrap();
    let file = BackingFile::new(fd, &FilePolicy::default()).unwrap();
    assert_eq!(file.kind(), crate::FileKind::Hugetlbfs);
    let page = file.page_size();
    assert!(page >= 2 * MIB);
    // More than any pool has: nothing is reserved, and what is not there is found out on access.
    let segments = Windows::new().unwrap().segments(&area(&file, 0, 0, 64 << 30)).unwrap();
    assert_eq!(segments.len(), 64);
    let at = |n: u64| segments[0].slice(Iova(n * page), page as usize).unwrap();
    let count = || segments[0].window.poison_count();

    let first = at(0);
    first.write(12, 7_u32);
    if count() == 0 {
        // There are huge pages here: cut this one off.
        resize(&file, 0);
        assert_eq!(first.read(12), Some(0_u32));
    } else {
        eprintln!("no huge page is free here: tested running out of them, not truncation");
        assert_eq!(first.read(12), Some(7_u32), "the replacement keeps what is written");
        resize(&file, 0);
    }
    assert_eq!(count(), 1);
    first.fill(1);
    assert_eq!(count(), 1, "one fault for all of the huge page");
    assert_eq!(at(1).read(0), Some(0_u8));
    assert_eq!(count(), 2, "and one more for the next");
    assert!(!segments[1].window.poisoned());
}

/// Runs the named test of this file in a process of its own, where it finds `CHILD` set.
fn in_child(test: &str) -> ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .arg(format!("raw::sigbus::tests::{test}"))
        .env(CHILD, "1")
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{test} did not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

const CHILD: &str = "MDEV_DMA_TEST_CHILD";

fn is_child() -> bool {
    if std::env::var_os(CHILD).is_none() {
        return false;
    }
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(rustix::process::Resource::Core, none).unwrap();
    true
}

/// Sets what SIGBUS does before the containment is installed.
fn act_before(handler: usize, flags: libc::c_int) {
    let mut action = default_action();
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    set_action(Some(&action)).unwrap();
}

/// Makes an access that faults in memory that is no window of ours.
fn fault_elsewhere() {
    let file = memory(4096);
    resize(&file, 0);
    use std::os::fd::AsRawFd;
    // SAFETY: a new mapping, not touched by anybody else; touching it raises SIGBUS, which is the test.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_fd().as_raw_fd(),
            0,
        );
        assert_ne!(at, libc::MAP_FAILED);
        at.cast::<u8>().read_volatile();
    }
}

extern "C" fn exit_42(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: called with a siginfo; _exit may be called anywhere.
    unsafe { libc::_exit(if (*info).si_signo == libc::SIGBUS { 42 } else { 1 }) }
}

extern "C" fn exit_43(signal: libc::c_int) {
    // SAFETY: _exit may be called anywhere.
    unsafe { libc::_exit(if signal == libc::SIGBUS { 43 } else { 1 }) }
}

#[test]
fn a_fault_elsewhere_still_kills() {
    if is_child() {
        act_before(libc::SIG_DFL, 0);
        let _windows = Windows::new().unwrap();
        fault_elsewhere();
        return;
    }
    assert_eq!(in_child("a_fault_elsewhere_still_kills").signal(), Some(libc::SIGBUS));
}

#[test]
fn a_fault_elsewhere_kills_though_the_signal_was_ignored() {
    if is_child() {
        act_before(libc::SIG_IGN, 0);
        let _windows = Windows::new().unwrap();
        fault_elsewhere();
        return;
    }
    assert_eq!(
        in_child("a_fault_elsewhere_kills_though_the_signal_was_ignored").signal(),
        Some(libc::SIGBUS)
    );
}

#[test]
fn a_signal_that_was_sent_kills_by_default() {
    if is_child() {
        act_before(libc::SIG_DFL, 0);
        let _windows = Windows::new().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::BUS).unwrap();
        thread::sleep(Duration::from_secs(30));
        return;
    }
    assert_eq!(in_child("a_signal_that_was_sent_kills_by_default").signal(), Some(libc::SIGBUS));
}

#[test]
fn a_signal_that_was_sent_is_ignored_where_it_was_ignored() {
    if is_child() {
        act_before(libc::SIG_IGN, 0);
        let windows = Windows::new().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::BUS).unwrap();
        // And containment goes on.
        let file = memory(MIB);
        let segment = map(&windows, &file, MIB);
        resize(&file, 0);
        assert_eq!(segment.slice(Iova(0), 1).unwrap().read(0), Some(0_u8));
        return;
    }
    assert!(in_child("a_signal_that_was_sent_is_ignored_where_it_was_ignored").success());
}

#[test]
fn a_fault_elsewhere_reaches_the_handler_that_was_there() {
    if is_child() {
        act_before(exit_42 as *const () as usize, libc::SA_SIGINFO);
        let _windows = Windows::new().unwrap();
        fault_elsewhere();
        return;
    }
    assert_eq!(in_child("a_fault_elsewhere_reaches_the_handler_that_was_there").code(), Some(42));
}

#[test]
fn a_fault_elsewhere_reaches_a_plain_handler_that_was_there() {
    if is_child() {
        act_before(exit_43 as *const () as usize, 0);
        let _windows = Windows::new().unwrap();
        fault_elsewhere();
        return;
    }
    assert_eq!(in_child("a_fault_elsewhere_reaches_a_plain_handler_that_was_there").code(), Some(43));
}

#[test]
fn a_full_table_is_an_error_and_frees_itself() {
    if is_child() {
        let windows = Windows::new().unwrap();
        let entry = |n: usize| Entry { base: (1 << 62) + n * 4096, len: 4096, page: 4096, writable: false };
        let mut all: Vec<_> = (0..SLOTS).map(|n| Registration::new(entry(n)).unwrap()).collect();
        let file = memory(4096);
        let error = windows.segments(&area(&file, 0, 0, 4096)).unwrap_err();
        assert!(matches!(error, WindowError::TableFull { limit: SLOTS }), "{error}");
        assert_eq!((error.errno(), windows.live(), windows.mapped_total()), (libc::ENOSPC, 0, 0));
        all.pop();
        let segment = map(&windows, &file, 4096);
        resize(&file, 0);
        assert_eq!(segment.slice(Iova(0), 1).unwrap().read(0), Some(0_u8));
        assert!(segment.window.poisoned());
        return;
    }
    assert!(in_child("a_full_table_is_an_error_and_frees_itself").success());
}
