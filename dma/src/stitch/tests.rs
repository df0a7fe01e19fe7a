use std::fs;
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};

use super::*;
use crate::faults::{Fault, Step};
use crate::tests::{area, memory, resize};
use crate::{BackingFile, CHUNK, FilePolicy, Occupancy};

const PAGE: u64 = 4096;

/// The segments of so many bytes of a file, whose addresses mean nothing.
fn bytes(windows: &Windows, file: &Arc<BackingFile>, offset: u64, len: u64) -> Vec<Segment> {
    windows.segments(&area(file, offset, offset, len)).unwrap()
}

/// Two files, and the pages `(file, page)` of them one after another.
fn scattered(windows: &Windows, files: &[Arc<BackingFile>], pages: &[(usize, u64)]) -> Vec<Segment> {
    pages.iter().flat_map(|(file, page)| bytes(windows, &files[*file], page * PAGE, PAGE)).collect()
}

fn read(stitch: &Stitch, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stitch.slice(offset, len).unwrap().copy_to(&mut bytes);
    bytes
}

fn in_file(file: &BackingFile, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pread(file.as_fd(), &mut bytes, at).unwrap();
    bytes
}

#[test]
fn pages_of_several_files_lie_side_by_side_and_writes_reach_them() {
    let windows = Windows::new().unwrap();
    let files = [memory(8 * PAGE), memory(8 * PAGE)];
    for (number, file) in files.iter().enumerate() {
        for page in 0..8 {
            pwrite(file.as_fd(), &[(16 * number) as u8 + page + 1; PAGE as usize], u64::from(page) * PAGE)
                .unwrap();
        }
    }
    // From the middle of a page to the middle of another.
    let mut segments = bytes(&windows, &files[0], 5 * PAGE + 100, PAGE - 100);
    segments.extend(scattered(&windows, &files, &[(1, 3), (0, 0), (0, 1)]));
    segments.extend(bytes(&windows, &files[1], 0, 50));
    let stitch = windows.stitch(&segments).unwrap();
    assert_eq!(stitch.len(), (PAGE - 100) + 3 * PAGE + 50);
    assert_eq!(stitch.parts(), 4, "two pages follow each other");
    assert_eq!(stitch.slice(0, 0).unwrap().as_io_vec_parts().0 % PAGE as usize, 100);
    assert_eq!(read(&stitch, PAGE - 101, 2), [6, 20]);
    assert_eq!(read(&stitch, PAGE - 100 + 3 * PAGE - 1, 2), [2, 17]);
    assert!(stitch.slice(stitch.len(), 1).is_none() && stitch.slice(u64::MAX, 2).is_none());
    // Across a seam.
    stitch.slice(PAGE - 104, 8).unwrap().fill(0xee);
    assert_eq!(in_file(&files[0], 6 * PAGE - 4, 4), [0xee; 4]);
    assert_eq!(in_file(&files[1], 3 * PAGE, 5), [0xee, 0xee, 0xee, 0xee, 20]);

    assert!(stitch.shows(&segments));
    segments.swap(1, 2);
    assert!(!stitch.shows(&segments) && !stitch.shows(&segments[..3]) && !stitch.shows(&[]));
    assert_eq!(windows.live(), 3);
    drop(stitch);
    assert_eq!(windows.live(), 2);
}

#[test]
fn bytes_on_both_sides_of_a_chunk_are_one_piece() {
    let windows = Windows::new().unwrap();
    let file = memory(CHUNK + 4 * PAGE);
    let segments = bytes(&windows, &file, CHUNK - PAGE - 8, 2 * PAGE);
    assert_eq!(segments.len(), 2);
    let stitch = windows.stitch(&segments).unwrap();
    stitch.slice(0, 2 * PAGE as usize).unwrap().fill(7);
    assert_eq!(
        in_file(&file, CHUNK - PAGE - 9, 2 * PAGE as usize + 2).iter().filter(|b| **b == 7).count(),
        8192
    );
}

#[test]
fn bytes_that_meet_within_a_page_and_too_many_of_them_are_refused() {
    let windows = Windows::new().unwrap();
    let file = memory(2 * (STITCH_PARTS as u64 + 2) * PAGE);
    let apart = |first: (u64, u64), second: (u64, u64)| {
        let mut segments = bytes(&windows, &file, first.0, first.1);
        segments.extend(bytes(&windows, &file, second.0, second.1));
        assert!(matches!(windows.stitch(&segments), Err(StitchError::Apart)));
    };
    apart((0, PAGE - 1), (2 * PAGE, PAGE));
    apart((0, PAGE), (2 * PAGE + 1, 8));
    assert!(matches!(windows.stitch(&[]), Err(StitchError::Apart)));
    let pages = |count: u64| -> Vec<Segment> {
        (0..count).flat_map(|page| bytes(&windows, &file, 2 * page * PAGE, PAGE)).collect()
    };
    assert_eq!(windows.stitch(&pages(STITCH_PARTS as u64)).unwrap().parts(), STITCH_PARTS);
    assert!(matches!(windows.stitch(&pages(STITCH_PARTS as u64 + 1)), Err(StitchError::TooMany)));
    assert_eq!(windows.live(), 0, "what was refused is gone");
}

#[test]
fn pages_that_are_lost_are_contained_and_poison_the_stitch_alone() {
    let windows = Windows::new().unwrap();
    let files = [memory(4 * PAGE), memory(4 * PAGE)];
    let segments = scattered(&windows, &files, &[(0, 3), (1, 0), (0, 1)]);
    let stitch = windows.stitch(&segments).unwrap();
    stitch.slice(0, 3 * PAGE as usize).unwrap().fill(9);
    resize(&files[0], 2 * PAGE);
    assert_eq!(read(&stitch, 0, 8), [0; 8]);
    assert!(stitch.poisoned() && windows.losses().poisoned == 1 && windows.losses().faults == 1);
    assert!(segments.iter().all(|segment| !segment.window.poisoned()));
    assert_eq!(read(&stitch, PAGE, 2 * PAGE as usize), [9; 2 * PAGE as usize], "the others are there");
    drop(stitch);
    assert_eq!((windows.losses().poisoned, windows.losses().faults), (0, 1));
}

#[test]
fn pages_that_are_revoked_are_taken_away_from_every_stitch_that_shows_them() {
    let windows = Windows::new().unwrap();
    let files = [memory(4 * PAGE), memory(4 * PAGE)];
    let pages = [(0, 2), (1, 1), (0, 0)];
    let areas: Vec<Vec<Segment>> = pages.iter().map(|page| scattered(&windows, &files, &[*page])).collect();
    let occupied: Vec<Occupancy> = areas.iter().map(|area| Occupancy::of(area).unwrap()).collect();
    let segments: Vec<Segment> = areas.concat();
    let stitches = [windows.stitch(&segments).unwrap(), windows.stitch(&segments[1..]).unwrap()];
    stitches[0].slice(0, 3 * PAGE as usize).unwrap().fill(5);
    Occupancy::revoke([&occupied[1]]).unwrap();
    assert_eq!([PAGE - 1, PAGE, 2 * PAGE - 1, 2 * PAGE].map(|at| read(&stitches[0], at, 1)[0]), [5, 0, 0, 5]);
    assert_eq!([0, PAGE].map(|at| read(&stitches[1], at, 1)[0]), [0, 5]);
    stitches[0].slice(PAGE, 8).unwrap().fill(0xbb);
    assert_eq!(in_file(&files[1], PAGE, 8), [5; 8], "it is the file's no more");
    assert!(!stitches[0].poisoned() && !stitches[1].poisoned());
    assert!(matches!(windows.stitch(&segments), Err(StitchError::Revoked)));
    assert_eq!(windows.live(), 4, "the one that was refused is gone");
}

#[test]
fn whichever_step_fails_nothing_is_left() {
    const NAME: &str = "mdev-fault-stitch";
    let mappings =
        || fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains(NAME)).count();
    let fd = memfd_create(NAME, MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 8 * PAGE).unwrap();
    let file = BackingFile::new(fd, &FilePolicy::default()).unwrap();
    let windows = Windows::new().unwrap();
    let segments = scattered(&windows, std::slice::from_ref(&file), &[(0, 5), (0, 1), (0, 3)]);
    let mut steps = Vec::new();
    for n in 1.. {
        let fault = Fault::at(n);
        let stitch = windows.stitch(&segments);
        let Some(step) = fault.step() else {
            assert_eq!((mappings(), windows.live()), (4, 2));
            drop(stitch.unwrap());
            break;
        };
        steps.push(step);
        assert!(stitch.is_err());
        assert_eq!((mappings(), windows.live()), (1, 1), "step {n}, {step:?}");
    }
    for step in [Step::Map, Step::Advise, Step::WindowSlot, Step::Memory] {
        assert!(steps.contains(&step), "{step:?} was never reached");
    }
    assert_eq!((mappings(), windows.live()), (1, 1));
}

proptest! {
    /// Whatever pages it is made of, it shows what a list of those pages shows, from both sides.
    #[test]
    fn a_stitch_is_its_pages_in_order(
        pages in prop::collection::vec((0..3usize, 0..16u64), 1..40),
        cut in (0..PAGE, 0..PAGE),
        writes in prop::collection::vec((any::<bool>(), any::<u32>(), 1..9000usize, any::<u8>()), 1..30),
    ) {
        let windows = Windows::new().unwrap();
        let files = [memory(16 * PAGE), memory(16 * PAGE), memory(16 * PAGE)];
        let mut segments: Vec<Segment> = Vec::new();
        for (number, (file, page)) in pages.iter().enumerate() {
            let first = if number == 0 { cut.0 } else { 0 };
            let last = if number + 1 == pages.len() { first.max(cut.1) } else { PAGE - 1 };
            segments.extend(bytes(&windows, &files[*file], page * PAGE + first, last - first + 1));
        }
        let stitch = windows.stitch(&segments).unwrap();
        prop_assert!(stitch.shows(&segments));
        let mut model = vec![vec![0u8; 16 * PAGE as usize]; 3];
        // Where in the model each byte of the stitch is.
        let places: Vec<(usize, usize)> = pages.iter().enumerate().flat_map(|(number, (file, page))| {
            let first = if number == 0 { cut.0 } else { 0 };
            let last = if number + 1 == pages.len() { first.max(cut.1) } else { PAGE - 1 };
            (first..=last).map(move |byte| (*file, (page * PAGE + byte) as usize))
        }).collect();
        prop_assert_eq!(stitch.len(), places.len() as u64);
        for (through, at, len, value) in writes {
            if through {
                let at = at as usize % places.len();
                let len = len.min(places.len() - at);
                stitch.slice(at as u64, len).unwrap().fill(value);
                places[at..at + len].iter().for_each(|(file, byte)| model[*file][*byte] = value);
            } else {
                let (file, at) = (at as usize % 3, at as usize % (16 * PAGE as usize - 9000));
                pwrite(files[file].as_fd(), &vec![value; len], at as u64).unwrap();
                model[file][at..at + len].fill(value);
            }
        }
        let expected: Vec<u8> = places.iter().map(|(file, byte)| model[*file][*byte]).collect();
        prop_assert!(read(&stitch, 0, places.len()) == expected);
    }
}
