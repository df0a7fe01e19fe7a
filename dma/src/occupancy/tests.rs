use std::sync::{Arc, Barrier};
use std::thread;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::pread;

use super::*;
use crate::faults::{self, Fault};
use crate::tests::{area, memory, resize};
use crate::{BackingFile, CHUNK, FilePolicy, Iova, Windows};

const PAGE: u64 = 4096;

/// Fills every page of a file with its number, counted from 1.
fn number_pages(file: &BackingFile) {
    for page in 0..file.size().unwrap() / PAGE {
        rustix::io::pwrite(file.as_fd(), &[page as u8 + 1; PAGE as usize], page * PAGE).unwrap();
    }
}

fn numbered(pages: u64) -> (Arc<Windows>, Arc<BackingFile>) {
    let file = memory(pages * PAGE);
    number_pages(&file);
    (Windows::new().unwrap(), file)
}

/// The segments of an area whose addresses are its offsets.
fn segments(windows: &Windows, file: &Arc<BackingFile>, offset: u64, len: u64) -> Vec<Segment> {
    windows.segments(&area(file, offset, offset, len)).unwrap()
}

/// The byte at an offset, as the owner of the segments sees it.
fn seen(segments: &[Segment], at: u64) -> u8 {
    segments.iter().find_map(|segment| segment.slice(Iova(at), 1)).unwrap().read(0).unwrap()
}

fn in_file(file: &BackingFile, at: u64) -> u8 {
    let mut byte = [0];
    pread(file.as_fd(), &mut byte, at).unwrap();
    byte[0]
}

#[test]
fn revoked_pages_show_zeros_and_their_neighbours_in_the_window_show_the_file() {
    let (windows, file) = numbered(4);
    let (going, staying) = (segments(&windows, &file, PAGE, PAGE), segments(&windows, &file, 0, PAGE));
    let (mine, _others) = (Occupancy::of(&going).unwrap(), Occupancy::of(&staying).unwrap());
    Occupancy::revoke([&mine]).unwrap();
    assert_eq!((seen(&going, PAGE), seen(&staying, 0)), (0, 1));
    going[0].slice(Iova(PAGE), 8).unwrap().fill(0xaa);
    assert_eq!(seen(&going, PAGE), 0xaa, "the slice is still memory");
    assert_eq!(in_file(&file, PAGE), 2, "but not the file's");
    staying[0].slice(Iova(0), 1).unwrap().fill(9);
    assert_eq!(in_file(&file, 0), 9);
    let window = &going[0].window;
    assert!(window.revoked(PAGE, 1) && window.revoked(0, 4 * PAGE) && !window.revoked(0, PAGE));
    assert!(!window.poisoned(), "nobody else is to blame");
}

#[test]
fn what_is_mapped_after_a_revocation_shows_the_file_through_a_new_window() {
    let (windows, file) = numbered(2);
    let old = segments(&windows, &file, 0, PAGE);
    let occupied = Occupancy::of(&old).unwrap();
    Occupancy::revoke([&occupied]).unwrap();
    assert!(Occupancy::of(&old).is_none(), "its pages cannot be occupied again");
    let new = segments(&windows, &file, 0, 2 * PAGE);
    assert!(!Arc::ptr_eq(&old[0].window, &new[0].window));
    assert_eq!((seen(&old, 0), seen(&new, 0), seen(&new, PAGE)), (0, 1, 2));
    assert!(Occupancy::of(&new).is_some());
    drop((old, occupied));
    assert_eq!(windows.live(), 1);
}

#[test]
fn a_page_that_somebody_else_uses_a_byte_of_is_not_revoked() {
    let (windows, file) = numbered(4);
    let going = segments(&windows, &file, PAGE + 100, PAGE);
    let mine = Occupancy::of(&going).unwrap();
    let mut beside = Vec::new();
    for (offset, len, shared) in [
        (PAGE, 1, true),
        (PAGE + 99, 1, true),
        (3 * PAGE - 1, 1, true),
        (0, PAGE, false),
        (3 * PAGE, 1, false),
    ] {
        let other = Occupancy::of(&segments(&windows, &file, offset, len)).unwrap();
        if shared {
            let error = Occupancy::revoke([&mine]).unwrap_err();
            assert!(matches!(error, RevokeError::Shared { offset: at } if at == offset), "{error}");
            assert_eq!(seen(&going, PAGE + 100), 2, "nothing was taken");
        }
        beside.extend((!shared).then_some(other));
    }
    assert_eq!(beside.len(), 2);
    Occupancy::revoke([&mine]).unwrap();
    assert_eq!((seen(&going, PAGE + 100), seen(&going, 2 * PAGE + 99)), (0, 0));
}

#[test]
fn neighbours_in_a_page_are_revoked_together_or_not_at_all() {
    let (windows, file) = numbered(2);
    let (a, b) = (segments(&windows, &file, 0, 100), segments(&windows, &file, 100, PAGE));
    let (first, second) = (Occupancy::of(&a).unwrap(), Occupancy::of(&b).unwrap());
    assert!(Occupancy::revoke([&first]).is_err());
    assert!(Occupancy::revoke([&second]).is_err());
    Occupancy::revoke([&first, &second]).unwrap();
    assert_eq!((seen(&a, 0), seen(&b, 100), seen(&b, PAGE)), (0, 0, 0));
}

#[test]
fn the_same_bytes_in_another_window_are_not_in_the_way_and_not_touched() {
    let (windows, file) = numbered(1);
    let old = segments(&windows, &file, 0, PAGE);
    resize(&file, 2 * PAGE);
    // The file grew: what needs the new page gets a larger window.
    let new = segments(&windows, &file, 0, 2 * PAGE);
    let (mine, _theirs) = (Occupancy::of(&old).unwrap(), Occupancy::of(&new).unwrap());
    Occupancy::revoke([&mine]).unwrap();
    assert_eq!((seen(&old, 0), seen(&new, 0)), (0, 1));
}

#[test]
fn an_area_over_two_windows_goes_whole_or_not_at_all() {
    let file = memory(CHUNK + PAGE);
    let windows = Windows::new().unwrap();
    rustix::io::pwrite(file.as_fd(), &[7; 2 * PAGE as usize], CHUNK - PAGE).unwrap();
    let going = segments(&windows, &file, CHUNK - PAGE, 2 * PAGE);
    assert_eq!(going.len(), 2);
    let mine = Occupancy::of(&going).unwrap();
    let other = Occupancy::of(&segments(&windows, &file, CHUNK, 1)).unwrap();
    assert!(Occupancy::revoke([&mine]).is_err());
    assert_eq!((seen(&going, CHUNK - 1), seen(&going, CHUNK)), (7, 7));
    drop(other);
    Occupancy::revoke([&mine]).unwrap();
    assert_eq!((seen(&going, CHUNK - 1), seen(&going, CHUNK)), (0, 0));
}

#[test]
fn a_revocation_that_fails_half_way_can_be_tried_again() {
    let file = memory(CHUNK + PAGE);
    let windows = Windows::new().unwrap();
    let going = segments(&windows, &file, CHUNK - PAGE, 2 * PAGE);
    let mine = Occupancy::of(&going).unwrap();
    let fault = Fault::at(2);
    let error = Occupancy::revoke([&mine]).unwrap_err();
    assert_eq!(fault.step(), Some(faults::Step::TakeAway), "{error}");
    drop(fault);
    rustix::io::pwrite(file.as_fd(), &[7; 2 * PAGE as usize], CHUNK - PAGE).unwrap();
    Occupancy::revoke([&mine]).unwrap();
    assert_eq!((seen(&going, CHUNK - 1), seen(&going, CHUNK)), (0, 0));
}

#[test]
fn a_page_that_was_lost_before_it_was_revoked_stays_contained() {
    let (windows, file) = numbered(2);
    let going = segments(&windows, &file, 0, 2 * PAGE);
    let mine = Occupancy::of(&going).unwrap();
    resize(&file, PAGE);
    assert_eq!(seen(&going, PAGE), 0);
    Occupancy::revoke([&mine]).unwrap();
    assert_eq!((seen(&going, 0), seen(&going, PAGE)), (0, 0));
    assert_eq!(going[0].window.poison_count(), 1);
    resize(&file, 0);
    assert_eq!((seen(&going, 0), going[0].window.poison_count()), (0, 1), "what is revoked cannot be lost");
}

#[test]
fn pages_of_a_huge_page_file_are_huge() {
    const HUGE: u64 = 2 << 20;
    let fd = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB).unwrap();
    ftruncate(&fd, 2 * HUGE).unwrap();
    let file = BackingFile::new(fd, &FilePolicy::default()).unwrap();
    let windows = Windows::new().unwrap();
    let going = segments(&windows, &file, 0, PAGE);
    let (mine, other) = (
        Occupancy::of(&going).unwrap(),
        Occupancy::of(&segments(&windows, &file, HUGE - PAGE, PAGE)).unwrap(),
    );
    assert!(matches!(Occupancy::revoke([&mine]), Err(RevokeError::Shared { .. })));
    drop(other);
    // Needs no page of the pool.
    Occupancy::revoke([&mine]).unwrap();
    going[0].slice(Iova(0), 16).unwrap().fill(1);
    assert!(going[0].window.revoked(HUGE - 1, 1) && !going[0].window.revoked(HUGE, 1));
    assert!(!going[0].window.poisoned());
}

/// Mapping the same pages races with their revocation: who comes first wins, and nobody who holds an occupancy of them
/// ever sees them go.
#[test]
fn pages_are_occupied_or_revoked_but_never_both() {
    let (windows, file) = numbered(1);
    let mut revoked = 0;
    for _ in 0..300 {
        let going = segments(&windows, &file, 0, PAGE);
        let mine = Occupancy::of(&going).unwrap();
        let start = Barrier::new(2);
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                start.wait();
                for _ in 0..20 {
                    let segments = segments(&windows, &file, 0, PAGE);
                    let Some(_occupancy) = Occupancy::of(&segments) else { continue };
                    for _ in 0..10 {
                        assert_eq!(seen(&segments, 0), 1, "an occupied page was taken away");
                    }
                }
            });
            start.wait();
            while Occupancy::revoke([&mine]).is_err() && !other.is_finished() {}
            revoked += usize::from(mine.parts[0].0.revoked(0, 1));
        });
    }
    assert!(revoked > 0);
}

#[derive(Clone, Debug)]
enum Step {
    Occupy { offset: u64, len: u64 },
    Leave(usize),
    Revoke(Vec<usize>),
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = (0..8 * PAGE, 1..2 * PAGE);
    prop_oneof![
        4 => bytes.prop_map(|(offset, len)| Step::Occupy { offset, len: len.min(8 * PAGE - offset) }),
        2 => any::<usize>().prop_map(Step::Leave),
        2 => prop::collection::vec(any::<usize>(), 1..4).prop_map(Step::Revoke),
    ]
}

/// A user as the model knows it: bytes, and which of its pages it has lost.
struct User {
    segments: Vec<Segment>,
    occupancy: Occupancy,
    pages: std::ops::RangeInclusive<u64>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The naive model is a set of pages per user, compared one by one.
    #[test]
    fn pages_go_exactly_when_no_other_user_has_a_byte_in_them(steps in prop::collection::vec(step(), 1..60)) {
        let (windows, file) = numbered(8);
        let mut users: Vec<User> = Vec::new();
        for step in steps {
            match step {
                Step::Occupy { offset, len } => {
                    let segments = segments(&windows, &file, offset, len);
                    let occupancy = Occupancy::of(&segments).expect("windows with revoked pages are not handed out");
                    users.push(User { segments, occupancy, pages: offset / PAGE..=(offset + len - 1) / PAGE });
                }
                Step::Leave(_) | Step::Revoke(_) if users.is_empty() => {}
                Step::Leave(which) => drop(users.swap_remove(which % users.len())),
                Step::Revoke(which) => {
                    let mut going: Vec<usize> = which.iter().map(|which| which % users.len()).collect();
                    going.sort_unstable();
                    going.dedup();
                    let same = |a: &User, b: &User| Arc::ptr_eq(&a.segments[0].window, &b.segments[0].window);
                    let shared = going.iter().any(|&one| {
                        let others = (0..users.len()).filter(|other| !going.contains(other));
                        others.into_iter().any(|other| {
                            same(&users[one], &users[other])
                                && users[one].pages.clone().any(|page| users[other].pages.contains(&page))
                        })
                    });
                    let result = Occupancy::revoke(going.iter().map(|&one| &users[one].occupancy));
                    prop_assert_eq!(result.is_err(), shared);
                    if result.is_ok() {
                        for &one in going.iter().rev() {
                            let gone = users.swap_remove(one);
                            for at in gone.pages.clone() {
                                let at = (at * PAGE).max(gone.segments[0].range.first().0);
                                prop_assert_eq!(seen(&gone.segments, at), 0);
                            }
                        }
                    }
                }
            }
            for user in &users {
                for page in user.pages.clone() {
                    let at = (page * PAGE).max(user.segments[0].range.first().0);
                    prop_assert_eq!(seen(&user.segments, at), page as u8 + 1);
                }
            }
        }
        let occupied: usize = users
            .iter()
            .map(|user| user.segments[0].window.occupants().lock().used.len())
            .max()
            .unwrap_or(0);
        prop_assert!(occupied <= users.len(), "nobody is forgotten in the record");
    }
}
