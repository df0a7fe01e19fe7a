use std::fs;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{Fault, Step, fail};
use crate::tests::{area, memory};
use crate::{BackingFile, CHUNK, FileError, FilePolicy, WindowError, Windows};

fn named(name: &str, len: u64) -> OwnedFd {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, len).unwrap();
    fd
}

/// Open descriptors of a memfd of this name.
fn descriptors(name: &str) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    links.filter(|to| to.to_string_lossy().contains(name)).count()
}

/// Mappings of a memfd of this name.
fn mappings(name: &str) -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains(name)).count()
}

#[test]
fn exactly_the_chosen_step_fails_and_none_without_a_fault() {
    assert!(!fail(Step::Map));
    let fault = Fault::at(2);
    assert_eq!([fail(Step::Map), fail(Step::Size), fail(Step::Size)], [false, true, false]);
    assert_eq!(fault.step(), Some(Step::Size));
    drop(fault);
    let of_this_thread = Fault::at(1);
    std::thread::spawn(|| assert!(!fail(Step::Map))).join().unwrap();
    drop(of_this_thread);
    assert!(!fail(Step::Map));
}

#[test]
fn a_descriptor_is_closed_whichever_look_at_it_fails() {
    const NAME: &str = "mdev-fault-inspect";
    for n in 1.. {
        let fd = named(NAME, 4096);
        let fault = Fault::at(n);
        let file = BackingFile::new(fd, &FilePolicy::default());
        match fault.step() {
            Some(step) => {
                assert_eq!(step, Step::Inspect);
                let error = file.expect_err("a step failed");
                assert!(matches!(error, FileError::Inspect(_)) && error.errno() == libc::EIO);
                assert_eq!(descriptors(NAME), 0, "step {n}");
            }
            None => {
                assert_eq!((descriptors(NAME), n), (1, 4), "three looks, each failed once");
                drop(file.unwrap());
                break;
            }
        }
    }
    assert_eq!(descriptors(NAME), 0);
}

#[test]
fn an_area_of_three_windows_is_mapped_whole_or_not_at_all() {
    const NAME: &str = "mdev-fault-windows";
    let mut seen = Vec::new();
    for n in 1.. {
        let windows = Windows::new().unwrap();
        let file = BackingFile::new(named(NAME, 3 * CHUNK), &FilePolicy::default()).unwrap();
        let wanted = area(&file, 0, 4096, 3 * CHUNK - 8192);
        let fault = Fault::at(n);
        let segments = windows.segments(&wanted);
        let Some(step) = fault.step() else {
            assert_eq!((segments.unwrap().len(), mappings(NAME)), (3, 3));
            break;
        };
        seen.push(step);
        let error = segments.expect_err("a step failed");
        let expected = match step {
            Step::Size => matches!(error, WindowError::Size(_)) && error.errno() == libc::EIO,
            Step::Map | Step::Advise => matches!(error, WindowError::Map(_)) && error.errno() == libc::ENOMEM,
            Step::WindowSlot => matches!(error, WindowError::TableFull { .. }),
            Step::Memory => matches!(error, WindowError::Memory(_)) && error.errno() == libc::ENOMEM,
            Step::Inspect | Step::AreaSlot | Step::TakeAway | Step::Charge => false,
        };
        assert!(expected, "{step:?}: {error:?}");
        assert_eq!(
            (windows.live(), mappings(NAME), Arc::strong_count(&file)),
            (0, 0, 2),
            "{step:?}, step {n}"
        );
        // The failure left nothing that could be found instead of a mapping.
        drop(fault);
        assert_eq!(windows.segments(&wanted).unwrap().len(), 3);
        assert_eq!(windows.live(), 0);
    }
    // The size once, then for each window: map, two advices, a slot, the list.
    let each = [Step::Map, Step::Advise, Step::Advise, Step::WindowSlot, Step::Memory];
    assert_eq!(seen, [&[Step::Size][..], &each, &each, &each].concat());
    assert_eq!((descriptors(NAME), mappings(NAME)), (0, 0));
}

#[test]
fn a_window_that_others_hold_survives_the_failure_beside_it() {
    let windows = Windows::new().unwrap();
    let file = memory(2 * CHUNK);
    let held = windows.segments(&area(&file, 0, 0, 4096)).unwrap();
    let wanted = area(&file, 0, 0, 2 * CHUNK);
    for n in 1.. {
        let fault = Fault::at(n);
        let segments = windows.segments(&wanted);
        if fault.step().is_none() {
            assert!(Arc::ptr_eq(&segments.unwrap()[0].window, &held[0].window));
            break;
        }
        assert!(segments.is_err());
        assert_eq!(windows.live(), 1, "step {n}");
    }
}
